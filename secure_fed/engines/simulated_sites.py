"""The sites of a simulation: who holds which records, and how many they declare.

A real site reads its own data; here one data set is split by patient, always alike for a configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from pydantic import TypeAdapter

from secure_fed.data import DataConfig, Loaded, Records, SitesOf, layout_of, load, schema_of
from secure_fed.data.partition import (
    apply_ownership,
    declared_count,
    ownership,
    partition,
    partition_by_part,
    split_by_unit,
)
from secure_fed.data.public_set import split_public
from secure_fed.data.records import Schema
from secure_fed.errors import ConfigError, DataError
from secure_fed.federation.config import FederationConfig, RunConfig
from secure_fed.federation.facts import Site
from secure_fed.federation.public_set import PublicSet
from secure_fed.methods import build

_NOT_OF_THE_DATA: dict[str, None] = {"homes": None, "lifetime_epsilon": None, "public_set": None}
"""What of a federation does not decide who holds which records."""


@dataclass(frozen=True)
class SimulatedSites:
    """Training records of each site (only what it owns), the coordinator's public hold-out, and data notes.

    `public`: what the coordinator holds as public paired set; without a record where none is asked for.
    """

    members: tuple[Site, ...]
    records: Mapping[str, Records]
    holdout: Records
    public: Records
    notes: Mapping[str, int]

    @cached_property
    def public_set(self) -> PublicSet:
        """The public paired set under its digest; raises DataError where no record is in it."""
        return PublicSet.of(self.public)


def simulate(config: RunConfig) -> SimulatedSites:
    """Load and split; raises DataError or ConfigError. Made once per process for each configuration."""
    federation = config.federation.model_dump_json(exclude=set(_NOT_OF_THE_DATA))
    ideal = build(config.method).ideal
    return _simulate(config.data.model_dump_json(), federation, config.privacy.unit, config.seed, ideal)


@lru_cache(maxsize=2)
def _simulate(data_json: str, federation_json: str, unit: str, seed: int, ideal: bool) -> SimulatedSites:
    # JSON is the cache's key: the configurations hold mappings, which have no hash.
    tree = {**json.loads(federation_json), **_NOT_OF_THE_DATA}
    federation = FederationConfig.model_validate(tree)
    loaded = _loaded(data_json, seed)
    records = loaded.records
    owned = _owned(federation, records.schema, loaded.layout, ideal)
    if loaded.holdout is None:
        train, test = split_by_unit(records, federation.test_fraction, seed)
        training, holdout = records.select(train), records.select(test)
    else:
        training, holdout = records, loaded.holdout
    private, public = split_public(training, federation.public_fraction, seed, loaded.layout)
    training, public_set = training.select(private), training.select(public)
    _require_every_modality(training, holdout)
    known = [np.unique(column[~np.isnan(column)]) for column in holdout.labels.T]
    if not any(len(classes) > 1 for classes in known):
        raise DataError(
            f"the hold-out of {len(holdout)} records has no label with both classes: nothing could be scored; "
            "raise federation.test_fraction or give more data"
        )
    scheme, alpha = federation.partition.scheme, federation.partition.alpha
    if loaded.layout:
        parts = partition_by_part(training, loaded.layout, scheme, seed, alpha=alpha)
    else:
        parts = partition(training, federation.sites, scheme, seed, alpha=alpha)
    chosen = [(name, owned[at], parts[at]) for at, name in _taking_part(federation)]
    return SimulatedSites(
        members=tuple(
            Site(name, modalities, declared_count(_units(training.select(part), unit)))
            for name, modalities, part in chosen
        ),
        records={name: apply_ownership(training.select(part), modalities) for name, modalities, part in chosen},
        holdout=holdout,
        public=public_set,
        notes=loaded.notes,
    )


def _require_every_modality(training: Records, holdout: Records) -> None:
    """Refuse data in which nobody has a modality: sites would be charged for noise, and scores miss it unnoticed."""
    for side, records in (("training", training), ("hold-out", holdout)):
        for name, present in records.presence.items():
            if not present.any():
                raise DataError(
                    f"no record of the {side} side has {name}: it could not be learned or scored. Give data that have "
                    "it; a set of films alone, as chexpert, is a part of data=composite (docs/data.md)"
                )


def with_public_set(config: RunConfig, simulated: SimulatedSites) -> tuple[RunConfig, PublicSet | None]:
    """The configuration with its public set's digest, and the set; as it is, and None, where the method needs none.

    Raises ConfigError where another digest is given, DataError where no patient has a record with every modality.
    """
    federation = config.federation
    if not build(config.method).needs_public_set or not federation.public_fraction:
        return config, None
    if not len(simulated.public):
        raise DataError(
            f"method={config.method.name} needs a public paired set, and no record outside the hold-out has every "
            "modality: give data with paired records, or another method"
        )
    public = simulated.public_set
    if federation.public_set not in {None, public.digest}:
        raise ConfigError(
            f"federation.public_set={federation.public_set} is not the set that these data give, {public.digest}: "
            "data, seed, test_fraction and public_fraction decide it; give those that it was made from, or leave it "
            "null"
        )
    named = federation.model_copy(update={"public_set": public.digest})
    return config.model_copy(update={"federation": named}), public


@lru_cache(maxsize=1)  # it may be large, and every split of it is a copy
def _loaded(data_json: str, seed: int) -> Loaded:
    """The data set before it is split: the cells of a sweep differ in ownership more often than in data."""
    return load(TypeAdapter(DataConfig).validate_json(data_json), seed)


def made_up_members(config: RunConfig) -> tuple[Site, ...]:
    """The members that `simulate` would give, without reading data: each declares the least number there is.

    Raises ConfigError as `simulate` does, but for what depends on the records.
    """
    owned = _owned(config.federation, schema_of(config.data), layout_of(config.data), build(config.method).ideal)
    return tuple(Site(name, owned[at], declared_count(0)) for at, name in _taking_part(config.federation))


def _owned(
    federation: FederationConfig, schema: Schema, layout: Sequence[SitesOf], ideal: bool
) -> Sequence[frozenset[str]]:
    """What each site owns, by its number; everything at each where the method is an ideal."""
    owned = ownership(federation.ownership, schema.names, federation.sites, layout)
    return [frozenset(schema.names)] * len(owned) if ideal else owned


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
