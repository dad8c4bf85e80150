"""The public facts of a run, derived alike by every site and by the server from configuration and roster.

Owners, slices and weights never come over the wire, so no peer can bend them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from secure_fed.data import schema_of
from secure_fed.data.records import Schema
from secure_fed.errors import ConfigError
from secure_fed.federation.config import RunConfig
from secure_fed.federation.evaluation import PHASE as EVALUATION
from secure_fed.federation.evaluation import candidates, evaluation_phase, view_of
from secure_fed.identity import canonical_json
from secure_fed.methods import Method, build
from secure_fed.methods.base import GradientPhase, HistogramPhase, Pair, Phase, component_modalities, owns
from secure_fed.models.multimodal import MultimodalModel, build_model
from secure_fed.secagg import default_threshold
from secure_fed.secagg.params import LARGEST_COMPLETE_ONLY, SMALLEST_COHORT

_SPLIT = {"sites", "partition", "test_fraction", "public_fraction"}
"""What of a simulated federation decides which patients a site holds."""


@dataclass(frozen=True)
class Site:
    """A member of the roster: its modalities, and the number of privacy units that it declares in public."""

    name: str
    owned: frozenset[str]
    declared_n: int


@dataclass(frozen=True)
class Slice:
    """A part of the summed vector: its name, its number of values, and the sites that upload it.

    `counts`: whole numbers that are summed as they are; everything else is a weighted mean in fixed point.
    """

    name: str
    size: int
    owners: frozenset[str]
    counts: bool = False


class Federation:
    """Who trains what, when, and with which weight."""

    def __init__(self, config: RunConfig, sites: Sequence[Site]) -> None:
        """Derive everything and refuse what cannot work; raises ConfigError before any epsilon is spent."""
        self.config = config
        self.sites = tuple(sites)
        self._slices: dict[tuple[str, ...], tuple[Slice, ...]] = {}
        self.schema: Schema = schema_of(config.data)
        self.method: Method = build(config.method)
        self.method.check_model(config.model)
        owned = [site.owned for site in self.sites]
        self.pairs: tuple[Pair, ...] = self.method.pairs(self.schema, owned)
        self.parts = self.method.parts(self.schema, self.pairs, config.model)
        self.phases: tuple[Phase, ...] = (
            *self.method.phases(self.schema, self.pairs, config.federation.rounds, config.model.feature_width),
            *self._evaluation(),
        )
        self._check_cohort()
        self._check_public_set()
        self._check_delta()
        self._check_budget_shares()
        self._check_owners()
        if self.config.secagg.mode == "on":
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
        return frozenset(site.name for site in self.sites if self.contributes(site, name))

    def contributes(self, site: Site, name: str) -> bool:
        """Whether a site uploads a component, a statistic or an evaluation's counts.

        It must own their modalities; beyond that a method may leave sites out, but not of the evaluation.
        """
        if name.startswith(f"{EVALUATION}."):
            return owns(name, site.owned)
        return owns(name, site.owned) and self.method.contributes(name, site.owned, self.schema)

    @property
    def slice_names(self) -> tuple[str, ...]:
        """Names of all slices that the run ever sums, in the order of its phases."""
        return tuple(dict.fromkeys(name for phase in self.phases for name in phase.uploads()))

    @property
    def default_floor(self) -> int:
        """max(min_contributors, C + 2): in an opened sum, no honest site faces only corrupt ones."""
        federation = self.config.federation
        return max(federation.min_contributors, federation.corrupt + 2)

    def floor(self, name: str) -> int:
        """Fewest contributors with which a slice is opened: what its owners opted for, or the default."""
        return self.config.secagg.floors.get(name, self.default_floor)

    @property
    def dp_only(self) -> frozenset[str]:
        """Slices whose owners opted for a lower floor: differential privacy alone protects their updates."""
        return frozenset(self.config.secagg.floors) if self.config.secagg.mode == "on" else frozenset()

    @property
    def threshold(self) -> int:
        """Shamir threshold t = floor((n + C) / 2) + 1, the least with 2 t > n + C."""
        return default_threshold(len(self.sites), self.config.federation.corrupt)

    @property
    def min_cohort(self) -> int:
        """Fewest sites with which a round goes on: the threshold, `secagg.min_cohort`, or what the graph needs."""
        least = max(self.threshold, self.config.secagg.min_cohort)
        if self.config.secagg.graph == "complete":
            return least
        # A k-regular graph is made for so many drop-outs and no more.
        return max(least, len(self.sites) - int(self.config.secagg.max_dropout * len(self.sites)))

    # -- schedule --------------------------------------------------------------------------------------

    def phases_at(self, step: int) -> tuple[Phase, ...]:
        """Phases that run at a step of the schedule, in order."""
        return tuple(phase for phase in self.phases if phase.runs_at(step))

    @property
    def total_steps(self) -> int:
        """Steps of the schedule: the training rounds, and one more where the final model is evaluated at the sites."""
        return self.config.federation.rounds + (self.config.evaluation.name == "federated")

    def trains_at(self, step: int) -> bool:
        """Whether a step can change the model."""
        return any(not isinstance(phase, HistogramPhase) for phase in self.phases_at(step))

    def _evaluation(self) -> tuple[Phase, ...]:
        """The evaluation over the views that enough sites have records for; raises ConfigError where there is none."""
        config = self.config.evaluation
        if config.name != "federated":
            return ()
        rounds = self.config.federation.rounds
        if config.evaluations > rounds:
            raise ConfigError(
                f"evaluation.evaluations={config.evaluations} in federation.rounds={rounds}: at most one for each round"
            )
        wanted = candidates(config, self.schema, [site.owned for site in self.sites])
        masked = self.config.secagg.mode == "on"
        floors = {name: self.floor(name) if masked else 1 for name in wanted}
        slices = [name for name in wanted if len(self.owners(name)) >= floors[name]]
        if not slices:
            found = ", ".join(f"{view_of(name)} at {len(self.owners(name))} sites" for name in wanted)
            raise ConfigError(
                f"evaluation=federated with evaluation.views={config.views} finds {found}: a sum needs "
                f"{self.default_floor} or more; give evaluation.views=all, more owners, or evaluation=holdout"
            )
        return (evaluation_phase(config, self.schema, self.method, slices, rounds),)

    def phases_of(self, site: Site, step: int | None = None) -> tuple[Phase, ...]:
        """Phases that a site takes part in, over the whole schedule or at one step."""
        phases = self.phases if step is None else self.phases_at(step)
        return tuple(phase for phase in phases if any(self.contributes(site, name) for name in phase.uploads()))

    def slices_at(self, step: int) -> tuple[Slice, ...]:
        """The slices of the vector at a step, in a fixed order that everybody derives alike."""
        phases = self.phases_at(step)
        key = tuple(phase.name for phase in phases)
        if key not in self._slices:
            self._slices[key] = self._slices_of(phases)
        return self._slices[key]

    def _slices_of(self, phases: Sequence[Phase]) -> tuple[Slice, ...]:
        sizes = self.model.component_sizes()
        slices: list[Slice] = []
        for phase in phases:
            for name in phase.uploads():
                size = sizes[name] if isinstance(phase, GradientPhase) else phase.size
                slices.append(Slice(name, size, self.owners(name), isinstance(phase, HistogramPhase)))
        return tuple(slices)

    # -- model -----------------------------------------------------------------------------------------

    def new_model(self) -> MultimodalModel:
        """The model with its initial weights, the same everywhere."""
        return build_model(self.schema, self.config.model, self.parts, self.config.seed)

    @cached_property
    def model(self) -> MultimodalModel:
        """A model for its shapes; nobody trains it."""
        return self.new_model()

    def digest(self) -> bytes:
        """SHA-256 of all that decides the run; where it is written and how it is computed are left out."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        aside: dict[str, bool | set[str]] = {
            "run_dir": True,
            "engine": True,
            "secagg": {"threads"},
            "federation": {"homes", "lifetime_epsilon"},
        }
        public = self.config.model_dump(mode="json", exclude=aside) | {"model": self.config.model.agreed()}
        return hashlib.sha256(canonical_json(public)).digest()

    def plan_hash(self) -> str:
        """SHA-256, hex, of all that decides what each site would release: what an owner approves beforehand."""
        members = {site.name: {"owns": sorted(site.owned), "declared_n": site.declared_n} for site in self.sites}
        plan = {"configuration": self.digest().hex(), "members": members}
        return hashlib.sha256(canonical_json(plan)).hexdigest()

    @cached_property
    def data_set(self) -> str:
        """Whose records these are: the same name wherever a site would hold the same patients."""
        public = self.config.model_dump(mode="json", include={"data": True, "seed": True, "federation": _SPLIT})
        return f"{self.config.data.name}-{hashlib.sha256(canonical_json(public)).hexdigest()[:16]}"

    # -- checks ----------------------------------------------------------------------------------------

    def _check_cohort(self) -> None:
        corrupt, secagg, count = self.config.federation.corrupt, self.config.secagg, len(self.sites)
        if secagg.mode == "off":
            return
        if count < SMALLEST_COHORT:
            raise ConfigError(
                f"federation.sites={count}: at least {SMALLEST_COHORT} are needed, because of two each reads the "
                "other's update off the sum; add sites, or compare with secagg=off"
            )
        if self.threshold > count:
            raise ConfigError(
                f"federation.corrupt={corrupt} of {count} sites needs a threshold of {self.threshold}, more than "
                "there are sites; lower federation.corrupt"
            )
        if secagg.min_cohort > count:
            raise ConfigError(
                f"secagg.min_cohort={secagg.min_cohort} can never be met by {count} sites; lower it or add sites"
            )
        if secagg.graph == "k_regular" and count <= LARGEST_COMPLETE_ONLY:
            raise ConfigError(
                f"secagg.graph=k_regular with {count} sites: up to {LARGEST_COMPLETE_ONLY} the complete graph is "
                "stronger and fast enough; give secagg.graph=complete"
            )

    def _check_public_set(self) -> None:
        federation = self.config.federation
        if self.method.needs_public_set and not federation.public_fraction:
            raise ConfigError(
                f"method={self.method.name} works with a public paired set, and federation.public_fraction=0 keeps no "
                "patient for one: give a share of them, federation.public_fraction=0.1"
            )
        if federation.public_set is not None and not self.method.needs_public_set:
            raise ConfigError(
                f"federation.public_set={federation.public_set[:16]}... is given, and method={self.method.name} works "
                "with none: leave it null"
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

    def _check_budget_shares(self) -> None:
        """Shares name training phases and leave something to those that they do not name, else add up to all of it."""
        shares = self.config.privacy.budget_shares
        if not shares or self.config.privacy.mode == "off":
            return
        training = [phase.name for phase in self.phases if not isinstance(phase, HistogramPhase)]
        for name in shares:
            if name not in training:
                elsewhere = "evaluation.noise decides that of the evaluation; " if name == EVALUATION else ""
                raise ConfigError(
                    f"privacy.budget_shares names the phase {name!r}, which method={self.method.name} does not train; "
                    f"{elsewhere}known: {', '.join(training)}"
                )
        total, left = math.fsum(shares.values()), [name for name in training if name not in shares]
        if left and total >= 1:
            raise ConfigError(
                f"privacy.budget_shares add up to {total:g} and leave nothing for {', '.join(left)}: lower them to "
                "less than 1 together"
            )
        if not left and abs(total - 1) > 1e-6:
            raise ConfigError(
                f"privacy.budget_shares name every phase and add up to {total:g}: expected 1; leave one phase out and "
                "it gets the rest"
            )

    def _check_owners(self) -> None:
        for name in self.slice_names:
            if not self.owners(name):
                needed = " and ".join(sorted(component_modalities(name)))
                raise ConfigError(
                    f"federation.ownership={self.config.federation.ownership!r} leaves {name} without a "
                    f"contributor: no site owns {needed}; give a site that modality, or use a method that "
                    "does not train it"
                )

    def _check_floors(self) -> None:
        for name, floor in self.config.secagg.floors.items():
            if name not in self.slice_names:
                raise ConfigError(
                    f"secagg.floors names {name!r}, which this run never sums; known: {', '.join(self.slice_names)}"
                )
            if not 1 <= floor < self.default_floor:
                raise ConfigError(
                    f"secagg.floors gives {name} the floor {floor}, which is not within 1..{self.default_floor - 1}: "
                    f"it lowers the default of {self.default_floor}. Leave {name} out of it for that, or raise "
                    "federation.min_contributors for a higher floor everywhere"
                )
        few = {name: len(self.owners(name)) for name in self.slice_names if len(self.owners(name)) < self.floor(name)}
        if not few:
            return
        federation = self.config.federation
        found = ", ".join(f"{name} {count} contributors (floor of {self.floor(name)})" for name, count in few.items())
        floors = ",".join(f"{name}:{count}" for name, count in {**self.config.secagg.floors, **few}.items())
        alone = "; a floor of 1 shows the coordinator that site's own update" if 1 in few.values() else ""
        raise ConfigError(
            f"federation.ownership={federation.ownership!r} gives {found}: fewer than the floor, which is "
            f"max(federation.min_contributors={federation.min_contributors}, corrupt + 2) with "
            f"federation.corrupt={federation.corrupt} unless owners opted for a lower one, and below it a sum could "
            "show one site's update to a corrupt other. Add owners; or federation.corrupt=0 if nobody colludes; or, "
            f"if the owners accept that DP alone protects those updates, '+secagg.floors={{{floors}}}'{alone}"
        )
