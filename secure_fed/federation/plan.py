"""A site's privacy plan: the noise of each phase, calibrated so that the whole run stays within epsilon.

Everything that the site may ever run, spare rounds included, is fixed and composed before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from secure_fed.accounting import Mechanism, MechanismShape, calibrate, epsilon
from secure_fed.errors import AccountingError, ConfigError
from secure_fed.federation.facts import Federation, Site
from secure_fed.methods.base import GradientPhase, Phase, owns
from secure_fed.privacy.plan import GaussianPlan, StatisticPlan


@dataclass(frozen=True)
class PlannedPhase:
    """One phase at one site: what it releases in one round, and in how many rounds at most."""

    phase: Phase
    components: tuple[str, ...]
    rounds: int
    release: GaussianPlan | StatisticPlan

    @property
    def per_round(self) -> Mechanism:
        """The mechanism of one round."""
        return self.release.mechanism()

    @property
    def sensitivity(self) -> float:
        """The L2 norm that one record's contribution is clipped to."""
        return self.release.max_grad_norm if isinstance(self.release, GaussianPlan) else self.release.bound


@dataclass(frozen=True)
class SitePlan:
    """All that a site may release in a run. `epsilon` is the PLD composition of the whole of it."""

    site: str
    phases: tuple[PlannedPhase, ...]
    epsilon: float
    delta: float

    def phase(self, name: str) -> PlannedPhase:
        """The planned phase called `name`; raises ConfigError if the site has none."""
        for planned in self.phases:
            if planned.phase.name == name:
                return planned
        raise ConfigError(f"{self.site} has no phase {name!r}; its phases: {[p.phase.name for p in self.phases]}")


def repeated(mechanism: Mechanism, rounds: int) -> Mechanism:
    """The mechanism of `rounds` rounds of `mechanism`."""
    return Mechanism(mechanism.kind, mechanism.noise_multiplier, mechanism.sample_rate, mechanism.steps * rounds)


def plan_for(federation: Federation, site: Site) -> SitePlan | None:
    """The plan of a site; None where privacy is off.

    One noise multiplier serves all of a site's phases; it is the least that keeps the site's planned rounds
    and the spare ones within `privacy.epsilon`. Raises AccountingError where no noise reaches it.
    """
    privacy = federation.config.privacy
    if privacy.mode == "off":
        return None
    spare = federation.config.federation.spare_rounds
    phases = federation.phases_of(site)
    shapes = [_shape(phase, privacy.sample_rate, phase.rounds + spare) for phase in phases]
    try:
        noise = calibrate(shapes, privacy.epsilon, privacy.delta)
    except AccountingError as error:
        raise ConfigError(f"privacy.epsilon={privacy.epsilon:g} for {site.name}: {error}") from error
    planned = tuple(_planned(federation, site, phase, noise, phase.rounds + spare) for phase in phases)
    total = epsilon([repeated(item.per_round, item.rounds) for item in planned], privacy.delta)
    return SitePlan(site.name, planned, total, privacy.delta)


def _shape(phase: Phase, sample_rate: float, rounds: int) -> MechanismShape:
    if isinstance(phase, GradientPhase):
        return MechanismShape("poisson_gaussian", sample_rate, phase.steps * rounds)
    return MechanismShape("gaussian", 1.0, rounds)


def _planned(federation: Federation, site: Site, phase: Phase, noise: float, rounds: int) -> PlannedPhase:
    privacy = federation.config.privacy
    if isinstance(phase, GradientPhase):
        components = tuple(name for name in phase.components if owns(name, site.owned))
        release = GaussianPlan(
            phase=phase.name,
            max_grad_norm=privacy.max_grad_norm,
            noise_multiplier=noise,
            sample_rate=privacy.sample_rate,
            steps=phase.steps,
            declared_n=site.declared_n,
        )
        return PlannedPhase(phase, components, rounds, release)
    statistic = StatisticPlan(phase=phase.name, bound=phase.bound, noise_multiplier=noise)
    return PlannedPhase(phase, phase.uploads(), rounds, statistic)
