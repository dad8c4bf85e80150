"""The homes of simulated sites: made for one run, or kept over runs where `federation.homes` names a folder.

A home that is kept holds one budget for the life of its data; its consortium and coordinator are kept beside it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_fed.client.books import plan_at, unspent
from secure_fed.client.home import Home
from secure_fed.client.policy import Policy
from secure_fed.errors import ConfigError
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import SitePlan, plan_for
from secure_fed.files import sync_folder
from secure_fed.identity import Member, Roster, SigningKey
from secure_fed.ledger import Ledger
from secure_fed.secagg import default_threshold
from secure_fed.secagg.params import SMALLEST_COHORT

# A simulation is no place to wait for tomorrow; a real owner writes a number that his runs need.
_ROUNDS_A_DAY = 1_000_000


def found_homes(folder: Path, federation: Federation) -> Roster:
    """Give each site its home under `folder`/sites, and the run its roster and its coordinator's key.

    Without `federation.homes` all of it is made here; the consortium's key is used once and forgotten, so that
    nobody can add a member to this run later. With it, `folder`/sites holds links to the homes that are kept.
    Raises ConfigError where a kept home cannot serve this run.
    """
    kept = federation.config.federation.homes
    if kept is None:
        homes = {
            site.name: Home.create(folder / "sites" / site.name, _policy(federation, site)) for site in federation.sites
        }
        coordinator = SigningKey.generate()
        coordinator.save(coordinator_key(folder))
        roster = Roster.create(_members(federation, homes), SigningKey.generate(), coordinator=coordinator.public_bytes)
    else:
        roster = _keep(kept, folder, federation)
    roster.save(folder / "roster.json")
    return roster


def coordinator_key(folder: Path) -> Path:
    """Where a run folder keeps the key that its coordinator signs requests with."""
    return folder / "private" / "coordinator.pem"


def kept_home(config: RunConfig, site: str) -> Home | None:
    """The home of `site` that outlives runs; None where there is none yet, or none is kept."""
    if config.federation.homes is None:
        return None
    root = config.federation.homes / site
    return Home(root) if root.is_dir() else None


def policy_of(federation: Federation, site: Site) -> Policy:
    """The policy of a site's home: of the one that is kept, else what its owner would write in a new one."""
    home = kept_home(federation.config, site.name)
    return _policy(federation, site) if home is None else home.policy()


def plan_of(federation: Federation, site: Site, run: str | None = None) -> SitePlan | None:
    """What the gate of a site's home makes of a run, also where the home is not made yet.

    Raises as `plan_at`, and ConfigError where a kept home is one of other data.
    """
    home = kept_home(federation.config, site.name)
    if home is None:
        return plan_for(federation, site, unspent(_policy(federation, site)))
    _require_data_set(home, federation)
    return plan_at(home, federation, site, run)


def refuses_unseen(federation: Federation, site: Site) -> bool:
    """Whether a kept home has no ledger yet: one that refuses a run then leaves nothing for an auditor to read."""
    home = kept_home(federation.config, site.name)
    return home is not None and not Ledger.is_begun(home.ledger_path)


def _keep(kept: Path, folder: Path, federation: Federation) -> Roster:
    with _alone(kept):
        homes = {site.name: _kept(kept / site.name, federation, site) for site in federation.sites}
        consortium = _kept_key(kept / "private" / "consortium.pem")
        coordinator = _kept_key(kept / "private" / "coordinator.pem")
        roster = _kept_roster(kept / "roster.json", _members(federation, homes), consortium, coordinator)
    (folder / "sites").mkdir(parents=True, exist_ok=True)
    for name, home in homes.items():
        (folder / "sites" / name).symlink_to(home.root.resolve(), target_is_directory=True)
    SigningKey.load(kept / "private" / "coordinator.pem").save(coordinator_key(folder))
    return roster


def _kept(root: Path, federation: Federation, site: Site) -> Home:
    if not root.is_dir():
        return _made_whole(root, _policy(federation, site))
    home = Home(root)
    _require_data_set(home, federation)
    return home


def _require_data_set(home: Home, federation: Federation) -> None:
    found = home.policy().data_set
    if found != federation.data_set:
        raise ConfigError(
            f"federation.homes: {home.root.name} belongs to data_set={found}, and this run's sites hold "
            f"{federation.data_set} (data, seed, federation.sites, partition, test_fraction and public_fraction decide "
            "it): give another folder for these data"
        )


def _made_whole(root: Path, policy: Policy) -> Home:
    """A new home that is there whole or not at all: others look without waiting, and a crash must leave no half."""
    unfinished = root.with_name(f".{root.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a crash: nobody has ever seen its keys
    Home.create(unfinished, policy)
    unfinished.rename(root)
    sync_folder(root.parent)
    return Home(root)


def _kept_key(path: Path) -> SigningKey:
    if not path.exists():
        SigningKey.generate().save(path)
    return SigningKey.load(path)


def _kept_roster(path: Path, members: dict[str, Member], consortium: SigningKey, coordinator: SigningKey) -> Roster:
    """The roster that is kept, or a later version of it where members, keys or numbers have changed."""
    version = 1
    if path.exists():
        known = Roster.load(path)
        if known.members == members and known.coordinator == coordinator.public_bytes.hex():
            return known
        version = known.version + 1
    roster = Roster.create(members, consortium, coordinator=coordinator.public_bytes, version=version)
    roster.save(path)
    return roster


@contextmanager
def _alone(kept: Path) -> Iterator[None]:
    """One run at a time makes homes and rosters in this folder; raises ConfigError where it cannot be made."""
    try:
        kept.mkdir(parents=True, exist_ok=True)
        handle = os.open(kept / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"federation.homes={kept} cannot be used: {error.strerror}; give one that can") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _members(federation: Federation, homes: dict[str, Home]) -> dict[str, Member]:
    return {
        site.name: Member(
            public_key=homes[site.name].signing_key().public_bytes.hex(),
            owns=tuple(sorted(site.owned)),
            declared_n=site.declared_n,
        )
        for site in federation.sites
    }


def _policy(federation: Federation, site: Site) -> Policy:
    """What an owner would write who agrees to this run and to nothing weaker.

    Threshold and cohort are those of the smallest federation that tolerates as many corrupt sites: members may leave.
    """
    config = federation.config
    secagg, corrupt = config.secagg, config.federation.corrupt
    return Policy(
        site=site.name,
        data_set=federation.data_set,
        epsilon=config.federation.lifetime_epsilon or config.privacy.epsilon,
        delta=config.privacy.delta,
        unit=config.privacy.unit,
        max_records_per_unit=config.privacy.max_records_per_unit,
        relation="add_or_remove_one",
        declared_n=site.declared_n,
        max_rounds_a_day=_ROUNDS_A_DAY,
        max_parameters=sum(federation.model.component_sizes().values()),
        max_clip=secagg.clip,
        max_value_bits=secagg.value_bits,
        min_corrupt=corrupt,
        min_threshold=default_threshold(SMALLEST_COHORT, corrupt),
        min_cohort=secagg.min_cohort,
        min_contributors=federation.default_floor,
        dp_only={name: floor for name, floor in secagg.floors.items() if site.name in federation.owners(name)},
        allowed_methods=("any",),
        allowed_components=("any",),
        approved_plans=None,
        allow_graph=(secagg.graph,),
        allow_unverified_server_step=config.server_step == "unverified",
        # A home inside a run folder goes with the run: it cannot speak for the life of the data.
        lifetime_claim=config.federation.homes is not None,
        compliance=config.federation.compliance,
    )
