"""A mechanism is what was released, as a frozen value: kind, noise multiplier, sampling rate, steps, and caps.

What it costs is `compose`'s business. The JSON form is our own: a ledger outlives any library's classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import dp_accounting

from secure_fed.errors import AccountingError

Kind = Literal["poisson_gaussian", "truncated_poisson_gaussian", "gaussian"]
KINDS: tuple[Kind, ...] = get_args(Kind)
JsonValue = str | float | int | list[float]
_FIELDS = ("kind", "noise_multiplier", "sample_rate", "steps")
_OPTIONAL = ("batch_cap", "population", "component_noise")


def joint_noise_multiplier(component_noise: Sequence[float]) -> float:
    """(sum_i s_i^-2)^-1/2: the noise multiplier of Gaussian releases that are stepped together on one sample.

    Each s_i is relative to its component's own clip. Dividing every component by its noise's standard
    deviation turns them into one Gaussian release of sensitivity sqrt(sum_i s_i^-2), see McMahan et al. 2018,
    "A general approach to adding differential privacy to iterative training procedures", section 3. The same
    to the last bit on every machine: only correctly rounded operations. Raises AccountingError.
    """
    if not component_noise or not all(_is_number(s) and s > 0 for s in component_noise):
        raise AccountingError(
            f"component_noise={tuple(component_noise)!r} is not a list of finite numbers > 0, one a component."
        )
    least = min(component_noise)
    return float(least / math.sqrt(math.fsum((least / s) * (least / s) for s in component_noise)))


def check_kind(kind: str, sample_rate: float) -> None:
    """Refuse an unknown kind, a sampling rate outside (0, 1] and a Gaussian release that claims sampling."""
    if kind not in KINDS:
        raise AccountingError(f"kind={kind!r} cannot be accounted: use one of {', '.join(KINDS)}.")
    if not _is_number(sample_rate) or not 0 < sample_rate <= 1:
        raise AccountingError(
            f"sample_rate={sample_rate!r} is not a probability in (0, 1]: what is never sampled releases "
            "nothing, so leave it out."
        )
    if kind == "gaussian" and sample_rate != 1:
        raise AccountingError(
            f"sample_rate={sample_rate!r} with kind='gaussian': that kind touches every record. "
            "Set sample_rate=1, or use kind='poisson_gaussian' where the batch is Poisson sampled."
        )


def check_steps(steps: int) -> None:
    """Refuse a number of steps that is not a whole number of at least 1."""
    if not _is_count(steps):
        raise AccountingError(f"steps={steps!r} is not a whole number >= 1: a phase without steps has no mechanism.")


def check_cap(kind: str, batch_cap: int | None, population: int | None) -> None:
    """Refuse a cap on the batch that is not stated in full, or stated where no batch is cut."""
    fields = (("batch_cap", batch_cap), ("population", population))
    if kind != "truncated_poisson_gaussian":
        for field, value in fields:
            if value is not None:
                raise AccountingError(
                    f"{field}={value!r} with kind={kind!r}: only 'truncated_poisson_gaussian' cuts a batch. "
                    "Leave it out."
                )
        return
    for field, value in fields:
        if not _is_count(value):
            raise AccountingError(
                f"{field}={value!r} is not a whole number >= 1: kind='truncated_poisson_gaussian' needs the most "
                "units in a batch (batch_cap) and the declared public number of units (population)."
            )
    if batch_cap is not None and population is not None and batch_cap > population:
        raise AccountingError(
            f"batch_cap={batch_cap!r} is above population={population!r}: no batch is ever cut. "
            "Use kind='poisson_gaussian'."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True, order=True)
class Mechanism:
    """`steps` releases of one Gaussian mechanism; raises AccountingError on anything that cannot be accounted.

    `poisson_gaussian`: each step samples every unit independently with probability `sample_rate`, sums their
    clipped contributions and adds N(0, (noise_multiplier * max_grad_norm)^2).
    `truncated_poisson_gaussian`: the same, but a sample of more than `batch_cap` units is cut to a random
    subset of that size. `population` is the declared public number of units; the data set must hold no more.
    `gaussian`: no sampling is credited, each step may touch every unit, `sample_rate` is 1. A statistic of all
    units is of this kind, and so is each pass of a shuffled or fixed batch: one release a unit an epoch.

    `noise_multiplier` is relative to the L2 sensitivity under adding or removing one unit; under replace-one
    the accountant doubles the sensitivity itself. 0 is allowed and costs an infinite epsilon.
    `component_noise`: components stepped together on one sample, each with its own clip and with noise relative
    to that clip; `noise_multiplier` is then their `joint_noise_multiplier`, to the last bit.
    """

    kind: Kind
    noise_multiplier: float
    sample_rate: float
    steps: int
    batch_cap: int | None = None
    population: int | None = None
    component_noise: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_kind(self.kind, self.sample_rate)
        check_steps(self.steps)
        check_cap(self.kind, self.batch_cap, self.population)
        if not _is_number(self.noise_multiplier) or self.noise_multiplier < 0:
            raise AccountingError(f"noise_multiplier={self.noise_multiplier!r} is not a finite number >= 0.")
        # Equal mechanisms must have equal canonical JSON: 1 and 1.0 hash alike but print differently.
        object.__setattr__(self, "noise_multiplier", float(self.noise_multiplier))
        object.__setattr__(self, "sample_rate", float(self.sample_rate))
        if self.component_noise:
            joint = joint_noise_multiplier(self.component_noise)
            if self.noise_multiplier != joint:
                raise AccountingError(
                    f"noise_multiplier={self.noise_multiplier!r} is not the joint one of component_noise="
                    f"{tuple(self.component_noise)!r}: set it to joint_noise_multiplier(component_noise)={joint!r}."
                )
        object.__setattr__(self, "component_noise", tuple(map(float, self.component_noise)))

    def event(self) -> dp_accounting.DpEvent:
        """The same release in dp-accounting's vocabulary, components one by one.

        dp-accounting knows the cut sample only with a single noise multiplier: there it is the joint one.
        """
        if self.batch_cap is not None:
            cut = dp_accounting.TruncatedSubsampledGaussianDpEvent(
                self.population, self.sample_rate, self.batch_cap, self.noise_multiplier
            )
            return dp_accounting.SelfComposedDpEvent(cut, self.steps)
        noises = self.component_noise or (self.noise_multiplier,)
        parts = [dp_accounting.GaussianDpEvent(s) for s in noises]
        step: dp_accounting.DpEvent = dp_accounting.ComposedDpEvent(parts) if self.component_noise else parts[0]
        if self.kind == "poisson_gaussian":
            step = dp_accounting.PoissonSampledDpEvent(self.sample_rate, step)
        return dp_accounting.SelfComposedDpEvent(step, self.steps)

    def joint(self) -> Mechanism:
        """The mechanism of one noise multiplier that costs the same: this one without its components."""
        return replace(self, component_noise=()) if self.component_noise else self

    def repeated(self, rounds: int) -> Mechanism:
        """The mechanism of `rounds` rounds of this one."""
        return replace(self, steps=self.steps * rounds)

    def to_json(self) -> dict[str, JsonValue]:
        """Plain values, in the form that the ledger's schema documents; what is not set is left out."""
        value: dict[str, JsonValue] = {field: getattr(self, field) for field in _FIELDS}
        if self.batch_cap is not None and self.population is not None:
            value |= {"batch_cap": self.batch_cap, "population": self.population}
        if self.component_noise:
            value["component_noise"] = list(self.component_noise)
        return value

    @classmethod
    def from_json(cls, value: object) -> Mechanism:
        """Read `to_json`'s form strictly; AccountingError on a missing, unknown, empty or wrongly typed field."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or not set(_FIELDS) <= set(value) <= {*_FIELDS, *_OPTIONAL}:
            found = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise AccountingError(
                f"A mechanism has exactly the fields {', '.join(_FIELDS)}, and where they are set "
                f"{', '.join(_OPTIONAL)}; found {found}."
            )
        fields = dict(value)
        for field in _OPTIONAL:
            if field in fields and fields[field] in (None, [], ()):
                raise AccountingError(f"{field}={fields[field]!r} is empty: leave the field out where it is not set.")
        if "component_noise" in fields:
            noises = fields["component_noise"]
            if not isinstance(noises, list | tuple):
                raise AccountingError(f"component_noise={noises!r} is not a list of numbers, one a component.")
            fields["component_noise"] = tuple(noises)
        return cls(**fields)


def merge(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Add up the steps of mechanisms that are equal in everything else, in a fixed order.

    Composition does not depend on the order, and one self-composition of 800 steps is both faster and tighter
    than fifty of 16: without merging, an accountant over 150 interleaved phases takes 40 times as long.
    """
    steps: dict[Mechanism, int] = {}
    for m in mechanisms:
        key = replace(m, steps=1)
        steps[key] = steps.get(key, 0) + m.steps
    return tuple(sorted(replace(key, steps=count) for key, count in steps.items()))


def accounted(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Merged, with components joined: the shortest list of mechanisms that costs the same."""
    return merge(m.joint() for m in mechanisms)


def event(mechanisms: Iterable[Mechanism]) -> dp_accounting.DpEvent:
    """The composition of all mechanisms as one dp-accounting event (merged first)."""
    return dp_accounting.ComposedDpEvent([m.event() for m in merge(mechanisms)])
