"""`secure-fed plan`: what each site would spend, before anything runs and without reading a record for it.

Sites that would release the same are shown once; figures are PLD unless it is said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secure_fed.accounting import Mechanism, epsilon, epsilon_by_round, epsilon_curve, patient_epsilon
from secure_fed.client.books import own_records
from secure_fed.config import compose_config, freeze
from secure_fed.engines.simulated_homes import kept_home, plan_of, policy_of
from secure_fed.engines.simulated_sites import simulate, with_public_set
from secure_fed.errors import ConfigError, PolicyRefusal
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import PlannedPhase, SitePlan, budget_share
from secure_fed.ledger import Standing, standing
from secure_fed.methods.base import HistogramPhase
from secure_fed.privacy.plan import GaussianPlan

DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
PATIENT_RECORDS = (2, 5, 10)
# Above this the noise of the whole phase, averaged over its steps, outweighs the longest gradient there can be.
DROWNED = 1.0
_MOST_ROUNDS = 100_000
_NOWHERE = Path("planned")  # nothing is written


@dataclass(frozen=True)
class PhaseView:
    """One phase: its mechanism of one round, the rounds planned (spare ones included), and what it costs alone.

    noise_to_signal: the L2 norm of the noise in the phase's mean gradient over the clip norm, averaged over all of
    the phase's steps: sigma sqrt(P) / (q N sqrt(T)), None for a statistic. rounds_left: the most rounds of this
    phase, at this noise and alone, that the budget would admit now.
    """

    name: str
    components: tuple[str, ...]
    max_grad_norm: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    rounds: int
    spare: int
    epsilon: float
    noise_to_signal: float | None
    rounds_left: int


@dataclass(frozen=True)
class GroupView:
    """Sites with the same plan; their declared numbers from the least to the largest.

    epsilon: all of it, spare rounds included. scheduled: where nothing goes wrong. The noise to signal of the phases
    is that of the smallest site.

    replace_one: the same releases under replace-one. patients: records of one patient -> epsilon for that patient
    (unit=record only; None is infinite). by_round: after each scheduled round. admitted_of: what is held against
    the owner's limit, and that limit.
    """

    sites: tuple[str, ...]
    owns: tuple[str, ...]
    declared_n: tuple[int, int]
    phases: tuple[PhaseView, ...]
    epsilon: float
    scheduled: float
    delta: float
    replace_one: float
    patients: dict[int, float | None]
    curve: tuple[tuple[float, float], ...]
    by_round: tuple[float, ...]
    taken: float
    admitted: float
    limit: float


@dataclass(frozen=True)
class PlanView:
    """The whole plan. `refused`: site -> why its home admits no such run.

    budget_shares: phase -> its part of what the schedule spends, where `privacy.budget_shares` says so; else empty.
    """

    name: str
    method: str
    unit: str
    max_records_per_unit: int
    relation: str
    plan_hash: str
    data_set: str
    groups: tuple[GroupView, ...]
    refused: dict[str, str]
    budget_shares: dict[str, float]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def plan_view(overrides: Sequence[str]) -> PlanView:
    """The plan that these overrides give; raises ConfigError where privacy is off or something cannot work."""
    config = freeze(compose_config(overrides), _NOWHERE)
    if config.privacy.mode == "off":
        raise ConfigError("privacy=off plans nothing: no epsilon holds for what it releases; give privacy=dp")
    simulated = simulate(config)
    federation = Federation(with_public_set(config, simulated)[0], simulated.members)
    asked: dict[_Key, list[_Asked]] = {}
    refused: dict[str, str] = {}
    for site in federation.sites:
        try:
            found = _ask(federation, site)
        except PolicyRefusal as error:
            refused[site.name] = str(error)
        else:
            asked.setdefault(found.key, []).append(found)
    views = tuple(_group(federation, members) for members in asked.values())
    return PlanView(
        name=config.name,
        method=config.method.name,
        unit=config.privacy.unit,
        max_records_per_unit=config.privacy.max_records_per_unit,
        relation="add_or_remove_one",
        plan_hash=federation.plan_hash(),
        data_set=federation.data_set,
        groups=views,
        refused=refused,
        budget_shares=_budget_shares(federation),
        warnings=tuple(_warnings(views)),
    )


def _budget_shares(federation: Federation) -> dict[str, float]:
    if not federation.config.privacy.budget_shares:
        return {}
    training = [phase for phase in federation.phases if not isinstance(phase, HistogramPhase)]
    return {phase.name: budget_share(federation, phase) for phase in training}


_Key = tuple[object, ...]


@dataclass(frozen=True)
class _Asked:
    """A site's plan, and what its home has to say to it."""

    site: Site
    plan: SitePlan
    books: Standing | None
    limit: float

    @property
    def admitted(self) -> float:
        """What is held against the owner's limit."""
        return self.plan.epsilon if self.books is None else self.books.admission(self.plan.mechanisms, "")

    @property
    def key(self) -> _Key:
        """What decides everything that is shown, but for the declared number."""
        phases = tuple((item.phase.name, item.components, item.in_all) for item in self.plan.phases)
        taken = None if self.books is None else self.books.commitments()
        return (self.site.owned, phases, taken, self.limit)


def _ask(federation: Federation, site: Site) -> _Asked:
    home = kept_home(federation.config, site.name)
    plan = plan_of(federation, site)
    assert plan is not None  # noqa: S101 - privacy is on
    records = () if home is None else own_records(home, home.policy())
    books = standing(records) if records else None
    return _Asked(site, plan, books, policy_of(federation, site).epsilon)


def _group(federation: Federation, members: Sequence[_Asked]) -> GroupView:
    least = min(members, key=lambda asked: asked.site.declared_n)
    plan, books = least.plan, least.books
    numbers = [asked.site.declared_n for asked in members]
    scheduled = [item.per_round.repeated(item.phase.rounds) for item in plan.phases]
    deltas = [delta for delta in DELTAS if delta < 1 / max(numbers)]
    return GroupView(
        sites=tuple(asked.site.name for asked in members),
        owns=tuple(sorted(least.site.owned)),
        declared_n=(min(numbers), max(numbers)),
        phases=tuple(_phase(federation, item, least) for item in plan.phases),
        epsilon=plan.epsilon,
        scheduled=epsilon(scheduled, plan.delta),
        delta=plan.delta,
        replace_one=epsilon(plan.mechanisms, plan.delta, relation="replace_one"),
        patients=_patients(federation.config, plan),
        curve=tuple(zip(deltas, epsilon_curve(plan.mechanisms, deltas), strict=True)),
        by_round=_by_round(federation, least.site, plan),
        taken=0.0 if books is None else books.committed(),
        admitted=least.admitted,
        limit=least.limit,
    )


def _phase(federation: Federation, planned: PlannedPhase, asked: _Asked) -> PhaseView:
    release, mechanism = planned.release, planned.per_round
    ratio = None
    if isinstance(release, GaussianPlan):
        sizes = federation.model.component_sizes()
        parameters = sum(sizes[name] for name in planned.components)
        steps = release.steps * planned.phase.rounds
        ratio = release.noise_multiplier * math.sqrt(parameters / steps) / release.expected_batch
    return PhaseView(
        name=planned.phase.name,
        components=planned.components,
        max_grad_norm=planned.sensitivity,
        noise_multiplier=mechanism.noise_multiplier,
        sample_rate=mechanism.sample_rate,
        steps=mechanism.steps,
        rounds=planned.phase.rounds,
        spare=planned.rounds - planned.phase.rounds,
        epsilon=epsilon([planned.in_all], asked.plan.delta),
        noise_to_signal=ratio,
        rounds_left=_rounds_left(mechanism, asked),
    )


def _rounds_left(mechanism: Mechanism, asked: _Asked) -> int:
    """The most rounds of one mechanism alone that the budget would admit now, by bisection: spending never falls."""

    def fits(rounds: int) -> bool:
        more = [mechanism.repeated(rounds)]
        books = asked.books
        return (epsilon(more, asked.plan.delta) if books is None else books.admission(more, "")) <= asked.limit

    low, high = 0, 1
    while high < _MOST_ROUNDS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _patients(config: RunConfig, plan: SitePlan) -> dict[int, float | None]:
    if config.privacy.unit == "patient":
        return {}
    figures = {k: patient_epsilon(plan.mechanisms, plan.delta, k) for k in PATIENT_RECORDS}
    return {k: value if math.isfinite(value) else None for k, value in figures.items()}


def _by_round(federation: Federation, site: Site, plan: SitePlan) -> tuple[float, ...]:
    rounds = [
        [plan.phase(phase.name).per_round for phase in federation.phases_of(site, step)]
        for step in range(federation.total_steps)
    ]
    return epsilon_by_round(rounds, plan.delta)


def _warnings(views: Sequence[GroupView]) -> Iterator[str]:
    """Phases that drown in their noise, each once and where it is worst."""
    worst: dict[str, tuple[float, int]] = {}
    for view in views:
        for phase in view.phases:
            worst[phase.name] = max(worst.get(phase.name, (0.0, 0)), (phase.noise_to_signal or 0.0, view.declared_n[0]))
    for name, (ratio, declared_n) in worst.items():
        if ratio > DROWNED:
            yield (
                f"{name} at a site of N={declared_n}: its noise is {ratio:.1f} times the longest "
                "gradient there can be, averaged over all of its steps: a site of that size will hardly learn "
                "anything. Use a larger epsilon, more records a site, fewer parameters, or more steps"
            )
