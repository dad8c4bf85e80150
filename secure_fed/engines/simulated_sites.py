"""The sites of a simulation: who holds which records, and how many they declare.

A real site reads its own data; here one data set is split by patient, always alike for a configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pydantic import TypeAdapter

from secure_fed.data import DataConfig, Loaded, Records, load, schema_of
from secure_fed.data.partition import apply_ownership, declared_count, ownership, partition, split_by_unit
from secure_fed.errors import ConfigError, DataError
from secure_fed.federation.config import FederationConfig, RunConfig
from secure_fed.federation.facts import Site


@dataclass(frozen=True)
class SimulatedSites:
    """Training records of each site (only what it owns), the coordinator's public hold-out, and data notes."""

    members: tuple[Site, ...]
    records: Mapping[str, Records]
    holdout: Records
    notes: Mapping[str, int]


def simulate(config: RunConfig) -> SimulatedSites:
    """Load and split; raises DataError or ConfigError. Made once per process for each configuration."""
    federation = config.federation.model_dump_json(exclude={"homes", "lifetime_epsilon"})
    return _simulate(config.data.model_dump_json(), federation, config.privacy.unit, config.seed)


@lru_cache(maxsize=2)
def _simulate(data_json: str, federation_json: str, unit: str, seed: int) -> SimulatedSites:
    # JSON is the cache's key: the configurations hold mappings, which have no hash.
    tree = {**json.loads(federation_json), "homes": None, "lifetime_epsilon": None}
    federation = FederationConfig.model_validate(tree)
    loaded = _loaded(data_json, seed)
    records = loaded.records
    owned = ownership(federation.ownership, records.schema.names, federation.sites)
    train, test = split_by_unit(records, federation.test_fraction, seed)
    training = records.select(train)
    holdout = records.select(test)
    known = [np.unique(column[~np.isnan(column)]) for column in holdout.labels.T]
    if not any(len(classes) > 1 for classes in known):
        raise DataError(
            f"the hold-out of {len(holdout)} records has no label with both classes: nothing could be scored; "
            "raise federation.test_fraction or give more data"
        )
    parts = partition(training, federation.sites, federation.partition.scheme, seed, alpha=federation.partition.alpha)
    chosen = [(name, owned[at], parts[at]) for at, name in _taking_part(federation)]
    return SimulatedSites(
        members=tuple(
            Site(name, modalities, declared_count(_units(training.select(part), unit)))
            for name, modalities, part in chosen
        ),
        records={name: apply_ownership(training.select(part), modalities) for name, modalities, part in chosen},
        holdout=holdout,
        notes=loaded.notes,
    )


@lru_cache(maxsize=1)  # it may be large, and every split of it is a copy
def _loaded(data_json: str, seed: int) -> Loaded:
    """The data set before it is split: the cells of a sweep differ in ownership more often than in data."""
    return load(TypeAdapter(DataConfig).validate_json(data_json), seed)


def made_up_members(config: RunConfig) -> tuple[Site, ...]:
    """The members that `simulate` would give, without reading data: each declares the least number there is.

    Raises ConfigError as `simulate` does, but for what depends on the records.
    """
    owned = ownership(config.federation.ownership, schema_of(config.data).names, config.federation.sites)
    return tuple(Site(name, owned[at], declared_count(0)) for at, name in _taking_part(config.federation))


def _taking_part(federation: FederationConfig) -> list[tuple[int, str]]:
    """Number, from 0, and name of each site that trains: all, or the one that is alone."""
    names = [f"site{number:02d}" for number in range(1, federation.sites + 1)]
    if federation.alone is None:
        return list(enumerate(names))
    if federation.alone not in names:
        raise ConfigError(
            f"federation.alone={federation.alone} is none of the federation.sites={federation.sites}: "
            f"give one of {names[0]} to {names[-1]}"
        )
    at = names.index(federation.alone)
    return [(at, names[at])]


def _units(records: Records, unit: str) -> int:
    return len(records) if unit == "record" else len(set(records.unit_ids.tolist()))
