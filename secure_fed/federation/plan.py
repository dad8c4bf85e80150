"""A site's privacy plan: the noise of each phase, calibrated so that the whole run stays within epsilon.

Everything that the site may ever run, spare rounds included, is fixed and composed before it starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from secure_fed.accounting import Mechanism, MechanismShape, Relation, calibrate, epsilon
from secure_fed.errors import AccountingError, BudgetExhausted, ConfigError
from secure_fed.federation.facts import Federation, Site
from secure_fed.ledger import Plan
from secure_fed.methods.base import GradientPhase, HistogramPhase, Phase
from secure_fed.privacy.histograms import HistogramPlan
from secure_fed.privacy.plan import GaussianPlan, StatisticPlan
from secure_fed.secagg import max_level


@dataclass(frozen=True)
class PlannedPhase:
    """One phase at one site: what it releases in one round, and in how many rounds at most."""

    phase: Phase
    components: tuple[str, ...]
    rounds: int
    release: GaussianPlan | StatisticPlan | HistogramPlan

    @property
    def per_round(self) -> Mechanism:
        """The mechanism of one round."""
        return self.release.mechanism()

    @property
    def artefact(self) -> Literal["update", "statistic", "evaluation"]:
        """What leaves the site: the word that its ledger has for it."""
        if isinstance(self.release, HistogramPlan):
            return "evaluation"
        return "update" if isinstance(self.release, GaussianPlan) else "statistic"

    @property
    def in_all(self) -> Mechanism:
        """The mechanism of all rounds, spare ones included."""
        return self.per_round.repeated(self.rounds)

    @property
    def sensitivity(self) -> float:
        """The L2 norm that one unit's contribution is clipped to."""
        return self.release.max_grad_norm if isinstance(self.release, GaussianPlan) else self.release.bound


@dataclass(frozen=True)
class SitePlan:
    """All that a site may release in a run. `epsilon` is the PLD composition of the whole of it."""

    site: str
    phases: tuple[PlannedPhase, ...]
    epsilon: float
    delta: float

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """Everything, spare rounds included."""
        return tuple(planned.in_all for planned in self.phases)

    def phase(self, name: str) -> PlannedPhase:
        """The planned phase called `name`; raises ConfigError if the site has none."""
        for planned in self.phases:
            if planned.phase.name == name:
                return planned
        raise ConfigError(f"{self.site} has no phase {name!r}; its phases: {[p.phase.name for p in self.phases]}")


@dataclass(frozen=True)
class Past:
    """What a home has committed to other runs already, and the owner's limit over all of them.

    `order` is that of the home's Renyi filter.
    """

    mechanisms: tuple[Mechanism, ...]
    limit: float
    delta: float
    order: float
    relation: Relation


def plan_for(federation: Federation, site: Site, past: Past | None = None) -> SitePlan | None:
    """The plan of a site, without a phase where the method asks nothing of it; None where privacy is off.

    One noise scale serves all of a site's phases; it is the least that keeps the site's planned rounds and the
    spare ones within `privacy.epsilon`, and everything on the home within the owner's limit where `past` says what
    the home has given away. Raises ConfigError where no noise reaches the first, BudgetExhausted where none reaches
    the second, or only more than `privacy.max_noise_ratio` times the first's.
    """
    privacy = federation.config.privacy
    if privacy.mode == "off":
        return None
    spare = federation.config.federation.spare_rounds
    phases = federation.phases_of(site)
    if not phases:
        return SitePlan(site.name, (), 0.0, privacy.delta)
    shapes = [_shape(federation, phase, phase.rounds + spare) for phase in phases]
    try:
        scale = calibrate(shapes, privacy.epsilon, privacy.delta)
    except AccountingError as error:
        raise ConfigError(f"privacy.epsilon={privacy.epsilon:g} for {site.name}: {error}") from error
    if past is not None:
        least = _scale_within(site, shapes, past)
        if least > privacy.max_noise_ratio * scale:
            raise BudgetExhausted(
                f"{site.name}: what is left of the owner's epsilon {past.limit:g} over all runs would need "
                f"{least / scale:.2f} times the noise of privacy.epsilon={privacy.epsilon:g}, and the run takes "
                f"at most privacy.max_noise_ratio={privacy.max_noise_ratio:g}: it goes on without this site, or "
                "begins anew with a smaller privacy.epsilon"
            )
        scale = max(scale, least)
    return _planned(federation, site, scale)


def plan_on_record(federation: Federation, site: Site, record: Plan) -> SitePlan:
    """The plan that a site's ledger holds for this run, with the noise that was solved when it was written.

    Raises ConfigError where the run's public facts give other phases, rounds, rates, steps or clips.
    """
    noise = [phase.mechanism.noise_multiplier for phase in record.phases if phase.mechanism is not None]
    phases = federation.phases_of(site)
    if len(noise) != len(phases) or not phases:
        raise ConfigError(f"{site.name}: the plan of run {record.run} on the ledger holds other phases than the run")
    scale = noise[0] / relative_noise(federation, phases[0])
    plan = _planned(federation, site, scale)
    exact = tuple(
        replace(planned, release=replace(planned.release, noise_multiplier=value))
        for planned, value in zip(plan.phases, noise, strict=True)
    )
    for planned, phase in zip(exact, record.phases, strict=True):
        found = (planned.phase.name, planned.per_round, planned.sensitivity, planned.rounds, planned.components)
        if found != (phase.name, phase.mechanism, phase.max_grad_norm, phase.rounds, phase.components):
            raise ConfigError(
                f"{site.name}: phase {phase.name} of run {record.run} was planned otherwise than this configuration "
                "has it; a plan is never changed: begin a new run"
            )
    total = epsilon([planned.in_all for planned in exact], plan.delta)
    return replace(plan, phases=exact, epsilon=total)


def relative_noise(federation: Federation, phase: Phase) -> float:
    """A phase's noise multiplier over the site's common scale."""
    evaluation = federation.config.evaluation
    if isinstance(phase, HistogramPhase) and evaluation.name == "federated":
        return evaluation.noise
    return _own_noise(phase) * math.sqrt(_default_share(federation, phase) / budget_share(federation, phase))


def budget_share(federation: Federation, phase: Phase) -> float:
    """A training phase's part of the sum over the schedule of steps * (sample_rate / noise)^2, as configured.

    With the noise r of one scale, that part is W / r^2 for W = steps * rounds * sample_rate^2. A phase's own noise r0
    (1, but where its method says otherwise) gives it the weight w = W / r0^2 by default, and a share sets
    r^2 = r0^2 (w / sum of w) / share. Spare rounds come on top. A site that takes part in some phases only spends all
    of its epsilon on these, with the same ratios of noise between them.
    """
    shares = federation.config.privacy.budget_shares
    if phase.name in shares:
        return shares[phase.name]
    rest = 1 - math.fsum(shares.values())
    others = math.fsum(_default_share(federation, p) for p in _training(federation) if p.name not in shares)
    return rest * _default_share(federation, phase) / others


def _default_share(federation: Federation, phase: Phase) -> float:
    """A training phase's part where `privacy.budget_shares` names none."""
    return _weight(federation, phase) / math.fsum(_weight(federation, other) for other in _training(federation))


def _weight(federation: Federation, phase: Phase) -> float:
    if isinstance(phase, GradientPhase):
        return phase.steps * phase.rounds * (federation.config.privacy.sample_rate / phase.noise) ** 2
    return phase.rounds / _own_noise(phase) ** 2


def _own_noise(phase: Phase) -> float:
    """Its noise over the site's common scale where no share is given."""
    return 1.0 if isinstance(phase, HistogramPhase) else phase.noise


def _training(federation: Federation) -> tuple[Phase, ...]:
    return tuple(phase for phase in federation.phases if not isinstance(phase, HistogramPhase))


def _scale_within(site: Site, shapes: list[MechanismShape], past: Past) -> float:
    try:
        if not past.mechanisms:
            return calibrate(shapes, past.limit, past.delta, relation=past.relation)
        return calibrate(shapes, past.limit, past.delta, past=past.mechanisms, relation=past.relation, order=past.order)
    except AccountingError as error:
        raise BudgetExhausted(
            f"{site.name}: the owner's limit of epsilon {past.limit:g} over all runs leaves nothing for this one: "
            f"{error} `secure-fed site budget` shows what was spent and what open runs hold"
        ) from error


def _shape(federation: Federation, phase: Phase, rounds: int) -> MechanismShape:
    share = relative_noise(federation, phase)
    if isinstance(phase, GradientPhase):
        rate = federation.config.privacy.sample_rate
        return MechanismShape("poisson_gaussian", rate, phase.steps * rounds, share)
    return MechanismShape("gaussian", 1.0, rounds, share)


def _planned(federation: Federation, site: Site, scale: float) -> SitePlan:
    privacy = federation.config.privacy
    spare = federation.config.federation.spare_rounds
    planned = tuple(
        _planned_phase(federation, site, phase, scale * relative_noise(federation, phase), phase.rounds + spare)
        for phase in federation.phases_of(site)
    )
    return SitePlan(site.name, planned, epsilon([item.in_all for item in planned], privacy.delta), privacy.delta)


def _planned_phase(federation: Federation, site: Site, phase: Phase, noise: float, rounds: int) -> PlannedPhase:
    privacy = federation.config.privacy
    if isinstance(phase, GradientPhase):
        components = tuple(name for name in phase.components if federation.contributes(site, name))
        release = GaussianPlan(
            phase=phase.name,
            max_grad_norm=privacy.max_grad_norm,
            noise_multiplier=noise,
            sample_rate=privacy.sample_rate,
            steps=phase.steps,
            declared_n=site.declared_n,
            unit=privacy.unit,
            max_records_per_unit=privacy.max_records_per_unit,
        )
        return PlannedPhase(phase, components, rounds, release)
    if isinstance(phase, HistogramPhase):
        slices = tuple(name for name in phase.slices if federation.contributes(site, name))
        counted = HistogramPlan(
            phase=phase.name, groups=phase.groups * len(slices), noise_multiplier=noise, unit=privacy.unit
        )
        _require_room(federation, site, counted)
        return PlannedPhase(phase, slices, rounds, counted)
    statistic = StatisticPlan(
        phase=phase.name,
        bound=phase.bound,
        noise_multiplier=noise,
        unit=privacy.unit,
        max_records_per_unit=privacy.max_records_per_unit,
    )
    return PlannedPhase(phase, phase.uploads(), rounds, statistic)


def _require_room(federation: Federation, site: Site, plan: HistogramPlan) -> None:
    """Raise ConfigError where noised counts could pass the ring's range and would be cut."""
    secagg = federation.config.secagg
    largest = plan.largest_count(site.declared_n)
    if largest > max_level(secagg.value_bits):
        raise ConfigError(
            f"secagg.value_bits={secagg.value_bits} holds counts up to {max_level(secagg.value_bits)}, and {site.name} "
            f"(N={site.declared_n}, noise of deviation {plan.deviation:.3g}) may count {largest} in its evaluation; "
            "give more value_bits"
        )
