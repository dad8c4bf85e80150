"""The sites of a simulation: who holds which records, and the homes that stand for them.

A real site reads its own data; here one data set is split by patient, always alike for a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from secure_fed.client.home import Home
from secure_fed.client.policy import Policy
from secure_fed.data import DataConfig, Records, load
from secure_fed.data.partition import apply_ownership, declared_count, ownership, partition, split_by_unit
from secure_fed.errors import DataError
from secure_fed.federation.config import FederationConfig, RunConfig
from secure_fed.federation.facts import Federation, Site
from secure_fed.identity import Member, Roster, SigningKey
from secure_fed.secagg import default_threshold
from secure_fed.secagg.params import SMALLEST_COHORT


@dataclass(frozen=True)
class SimulatedSites:
    """Training records of each site (only what it owns), the coordinator's public hold-out, and data notes."""

    members: tuple[Site, ...]
    records: Mapping[str, Records]
    holdout: Records
    notes: Mapping[str, int]


def simulate(config: RunConfig) -> SimulatedSites:
    """Load and split; raises DataError or ConfigError. Made once per process for each configuration."""
    return _simulate(config.data.model_dump_json(), config.federation.model_dump_json(), config.seed)


@lru_cache(maxsize=2)
def _simulate(data_json: str, federation_json: str, seed: int) -> SimulatedSites:
    # JSON is the cache's key: the configurations hold mappings, which have no hash.
    federation = FederationConfig.model_validate_json(federation_json)
    loaded = load(TypeAdapter(DataConfig).validate_json(data_json), seed)
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
    names = [f"site{number:02d}" for number in range(1, federation.sites + 1)]
    return SimulatedSites(
        members=tuple(
            Site(name, modalities, declared_count(len(part)))
            for name, modalities, part in zip(names, owned, parts, strict=True)
        ),
        records={
            name: apply_ownership(training.select(part), modalities)
            for name, modalities, part in zip(names, owned, parts, strict=True)
        },
        holdout=holdout,
        notes=loaded.notes,
    )


def found_homes(folder: Path, federation: Federation) -> Roster:
    """Make each site's home under `folder`/sites and the roster that a simulated consortium signs.

    The consortium's key is used once and forgotten: nobody can add a member to this run later. The coordinator's,
    with which it signs its requests, stays in the run folder's own private part.
    """
    entries: dict[str, Member] = {}
    for site in federation.sites:
        home = Home.create(folder / "sites" / site.name, _policy(federation, site))
        key = home.signing_key().public_bytes.hex()
        entries[site.name] = Member(public_key=key, owns=tuple(sorted(site.owned)), declared_n=site.declared_n)
    coordinator = SigningKey.generate()
    coordinator.save(coordinator_key(folder))
    roster = Roster.create(entries, SigningKey.generate(), coordinator=coordinator.public_bytes)
    roster.save(folder / "roster.json")
    return roster


def coordinator_key(folder: Path) -> Path:
    """Where a run folder keeps the key that its coordinator signs requests with."""
    return folder / "private" / "coordinator.pem"


def _policy(federation: Federation, site: Site) -> Policy:
    """What an owner would write who agrees to this run and to nothing weaker.

    Threshold and cohort are those of the smallest federation that tolerates as many corrupt sites: members may leave.
    """
    config = federation.config
    secagg, corrupt = config.secagg, config.federation.corrupt
    return Policy(
        site=site.name,
        epsilon=config.privacy.epsilon,
        delta=config.privacy.delta,
        unit="record",
        relation="add_or_remove_one",
        declared_n=site.declared_n,
        max_parameters=sum(federation.model.component_sizes().values()),
        max_clip=secagg.clip,
        max_value_bits=secagg.value_bits,
        min_corrupt=corrupt,
        min_threshold=default_threshold(SMALLEST_COHORT, corrupt),
        min_cohort=secagg.min_cohort,
        min_contributors=federation.default_floor,
        dp_only={name: floor for name, floor in secagg.floors.items() if site.name in federation.owners(name)},
        allowed_methods=("any",),
        allow_graph=(secagg.graph,),
        allow_unverified_server_step=config.server_step == "unverified",
        lifetime_claim=False,
        compliance=config.federation.compliance,
    )
