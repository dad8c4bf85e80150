"""The public facts of a run, derived alike by every site and by the server from configuration and roster.

Owners, slices and weights never come over the wire, so no peer can bend them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from secure_fed.data import schema_of
from secure_fed.data.records import Schema
from secure_fed.errors import ConfigError
from secure_fed.federation.config import RunConfig
from secure_fed.identity import canonical_json
from secure_fed.methods import Method, build
from secure_fed.methods.base import GradientPhase, Pair, Phase, component_modalities, owns
from secure_fed.models.multimodal import MultimodalModel, build_model


@dataclass(frozen=True)
class Site:
    """A member of the roster: its modalities, and the number of records that it declares in public."""

    name: str
    owned: frozenset[str]
    declared_n: int


@dataclass(frozen=True)
class Slice:
    """A part of the summed vector: its name, its number of values, and the sites that upload it."""

    name: str
    size: int
    owners: frozenset[str]


class Federation:
    """Who trains what, when, and with which weight."""

    def __init__(self, config: RunConfig, sites: Sequence[Site]) -> None:
        """Derive everything and refuse what cannot work; raises ConfigError before any epsilon is spent."""
        self.config = config
        self.sites = tuple(sites)
        self.schema: Schema = schema_of(config.data)
        self.method: Method = build(config.method)
        self.method.check_model(config.model)
        owned = [site.owned for site in self.sites]
        self.pairs: tuple[Pair, ...] = self.method.pairs(self.schema, owned)
        self.phases: tuple[Phase, ...] = self.method.phases(
            self.schema, self.pairs, config.federation.rounds, config.model.feature_width
        )
        self._check_cohort()
        self._check_delta()
        self._check_floors()

    # -- members ---------------------------------------------------------------------------------------

    def site(self, name: str) -> Site:
        """The member called `name`; raises ConfigError naming the known ones."""
        for site in self.sites:
            if site.name == name:
                return site
        raise ConfigError(f"site {name!r} is not in the roster; known: {', '.join(s.name for s in self.sites)}")

    @cached_property
    def weights(self) -> Mapping[str, float]:
        """Public aggregation weights in (0, 1]: declared count over the largest declared count."""
        largest = max(site.declared_n for site in self.sites)
        return {site.name: site.declared_n / largest for site in self.sites}

    def owners(self, name: str) -> frozenset[str]:
        """Sites that contribute to a component or statistic."""
        return frozenset(site.name for site in self.sites if owns(name, site.owned))

    def floor(self) -> int:
        """Fewest contributors with which a slice is opened: max(min_contributors, C + 2)."""
        federation = self.config.federation
        return max(federation.min_contributors, federation.corrupt + 2)

    @property
    def threshold(self) -> int:
        """Shamir threshold t = floor((n + C) / 2) + 1, the least with 2 t > n + C."""
        return (len(self.sites) + self.config.federation.corrupt) // 2 + 1

    # -- schedule --------------------------------------------------------------------------------------

    def phases_at(self, step: int) -> tuple[Phase, ...]:
        """Phases that run at a step of the schedule, in order."""
        return tuple(phase for phase in self.phases if phase.start <= step < phase.stop)

    def phases_of(self, site: Site, step: int | None = None) -> tuple[Phase, ...]:
        """Phases that a site takes part in, over the whole schedule or at one step."""
        phases = self.phases if step is None else self.phases_at(step)
        return tuple(phase for phase in phases if any(owns(name, site.owned) for name in phase.uploads()))

    def slices_at(self, step: int) -> tuple[Slice, ...]:
        """The slices of the vector at a step, in a fixed order that everybody derives alike."""
        sizes = self.model.component_sizes()
        slices: list[Slice] = []
        for phase in self.phases_at(step):
            for name in phase.uploads():
                size = sizes[name] if isinstance(phase, GradientPhase) else phase.size
                slices.append(Slice(name, size, self.owners(name)))
        return tuple(slices)

    # -- model -----------------------------------------------------------------------------------------

    def new_model(self) -> MultimodalModel:
        """The model with its initial weights, the same everywhere."""
        return build_model(self.schema, self.config.model, self.pairs, self.config.seed)

    @cached_property
    def model(self) -> MultimodalModel:
        """A model for its shapes; nobody trains it."""
        return self.new_model()

    def digest(self) -> bytes:
        """SHA-256 of all that decides the run, the place where it is written excepted."""
        public = self.config.model_dump(mode="json", exclude={"run_dir", "engine"})
        return hashlib.sha256(canonical_json(public)).digest()

    # -- checks ----------------------------------------------------------------------------------------

    def _check_cohort(self) -> None:
        federation = self.config.federation
        if self.config.secagg.mode == "on" and len(self.sites) < max(3, self.floor()):
            raise ConfigError(
                f"federation.sites={len(self.sites)} is below the cohort floor of {max(3, self.floor())} "
                f"(3 sites at least, and corrupt + 2 = {federation.corrupt + 2}); add sites, lower "
                "federation.corrupt, or compare with secagg=off"
            )
        if self.config.secagg.mode == "on" and self.threshold > len(self.sites):
            raise ConfigError(
                f"federation.corrupt={federation.corrupt} of {len(self.sites)} sites needs a threshold of "
                f"{self.threshold}, more than there are sites; lower federation.corrupt"
            )

    def _check_delta(self) -> None:
        if self.config.privacy.mode == "off":
            return
        for site in self.sites:
            if self.config.privacy.delta >= 1 / site.declared_n:
                raise ConfigError(
                    f"privacy.delta={self.config.privacy.delta:g} is not below 1/N for {site.name}, which declares "
                    f"N={site.declared_n}: such a delta allows releasing a whole record; "
                    f"give a delta well below {1 / site.declared_n:.2g}"
                )

    def _check_floors(self) -> None:
        for phase in self.phases:
            for name in phase.uploads():
                owners = self.owners(name)
                if not owners:
                    needed = " and ".join(sorted(component_modalities(name)))
                    raise ConfigError(
                        f"federation.ownership={self.config.federation.ownership!r} leaves {name} without a "
                        f"contributor: no site owns {needed}; give a site that modality, or use a method that "
                        "does not train it"
                    )
                if self.config.secagg.mode == "on" and len(owners) < self.floor():
                    raise ConfigError(
                        f"federation.ownership={self.config.federation.ownership!r} gives {name} "
                        f"{len(owners)} contributors, below the floor of {self.floor()} = max(min_contributors, "
                        f"corrupt + 2) with federation.corrupt={self.config.federation.corrupt}: its sum would show "
                        "one site's update to a corrupt other; add owners, or accept federation.corrupt=0"
                    )
