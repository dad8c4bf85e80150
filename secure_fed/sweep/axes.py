"""From Hydra's override grammar to axes: what is swept, over which values, and what stays as it is.

A preset's axes, bundles and base come first; whatever the command line says of the same key takes their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from secure_fed.errors import ConfigError
from secure_fed.sweep.config import SweepConfig
from secure_fed.sweep.record import Scalar

_OF_SWEEP = ("sweep", "launcher")
_REFUSED = {
    "resume": "to go on with a sweep give resume=DIR and nothing but launcher.*; a single run is resumed by "
    "`secure-fed run resume=...`",
    "run_dir": "each cell gets a folder of its own inside the sweep's; give sweep.dir=... for that one",
    "name": "cells are named by what is swept; give sweep.name=... for the whole",
    "federation.homes": "the cells of a sweep would spend one another's budget on homes that are kept; leave it out: "
    "each cell makes its own",
    "federation.lifetime_epsilon": "it limits homes that are kept over runs, and each cell makes its own; leave it out",
}


@dataclass(frozen=True)
class Choice:
    """One value of an axis: what it is called, and the overrides that it stands for."""

    label: Scalar
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Axis:
    """A factor and its values in order: a key of the run's configuration, or a bundle of keys."""

    name: str
    choices: tuple[Choice, ...]

    def choice(self, label: Scalar) -> Choice:
        """The choice with this label; raises ConfigError naming the known ones."""
        for choice in self.choices:
            if choice.label == label and isinstance(choice.label, bool) == isinstance(label, bool):
                return choice
        known = ", ".join(str(choice.label) for choice in self.choices)
        raise ConfigError(f"{self.name}={label} is no value of this axis; it has {known}")


@dataclass(frozen=True)
class Interval:
    """A factor that only a search can take: numbers in [low, high], even in their logarithm with `log`."""

    name: str
    key: str
    low: float
    high: float
    log: bool
    integer: bool

    def choice(self, label: Scalar) -> Choice:
        """The choice that is this number; raises ConfigError where it lies outside."""
        wrong = isinstance(label, bool) or not isinstance(label, int | float) or not self.low <= label <= self.high
        if wrong or (self.integer and not isinstance(label, int)):
            whole = "a whole number" if self.integer else "a number"
            raise ConfigError(f"{self.name}={label}: expected {whole} within [{self.low:g}, {self.high:g}]")
        return Choice(label, (f"{self.key}={label!r}",))


@dataclass(frozen=True)
class Space:
    """What a sweep varies and what it fixes: `fixed` are the overrides of every cell, the last word on each key."""

    axes: tuple[Axis, ...]
    intervals: tuple[Interval, ...]
    fixed: tuple[str, ...]

    @property
    def factors(self) -> tuple[Axis | Interval, ...]:
        """All that varies."""
        return (*self.axes, *self.intervals)


def parsed(text: str) -> Override:
    """One override in Hydra's grammar; raises ConfigError where it cannot be read."""
    return _parsed(text)


@lru_cache(maxsize=100_000)
def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).strip().splitlines()[0]
        if "choice is not legal" in reason:
            raise ConfigError(f"{text}: this axis is empty; give it at least one value") from error
        raise ConfigError(
            f"override {text!r} cannot be read ({reason}); an override is written key=value, several values "
            'key=1,2,3 or key=range(0,3), a text with a colon or comma key=\'"5:1:4","2:2:6"\''
        ) from error


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The sweep's own arguments (`sweep`, `sweep.*`, `sweep/search`, `launcher`, `launcher.*`), and those of the runs.

    Raises ConfigError for an argument that cannot be read, for a key that is given twice, and for keys that no cell of
    a sweep may have.
    """
    own: list[str] = []
    runs: list[str] = []
    seen: dict[str, str] = {}
    for item in arguments:
        override = parsed(item)
        key = _key(override)
        if key in seen:
            raise ConfigError(f"{key} is given twice: {seen[key]} and {item}; give all its values at once")
        seen[key] = item
        if key in _REFUSED:
            raise ConfigError(f"{item} is refused in a sweep: {_REFUSED[key]}")
        if key.partition(".")[0] == "hydra":
            raise ConfigError(f"{item} is refused in a sweep, which runs its cells by itself; leave it out")
        is_own = key.replace("/", ".").partition(".")[0] in _OF_SWEEP
        (own if is_own else runs).append(item)
    return own, runs


def space_of(config: SweepConfig, overrides: Sequence[str]) -> Space:
    """Axes and fixed overrides of a sweep, given the runs' overrides on the command line.

    A key that the preset sweeps gets the values of the command line in the place of its own, one of them too, and
    `~key` leaves it out; a bundle's name chooses among its labels. Any other swept key is one more axis.
    Raises ConfigError for an empty axis, a value that is named twice, and a key that is set in two places.
    """
    given = {_key(parsed(item)): item for item in overrides}
    if config.search is not None and "seed" in given:
        raise ConfigError(
            f"{given['seed']} beside sweep/search, which scores each trial over sweep.search.seeds: set these instead"
        )
    axes: dict[str, Axis | Interval] = {}
    for key, text in config.axes.items():
        name = _key(parsed(f"{key}=0"))
        own = given.pop(name, None)
        if own is None:
            axes[name] = _axis(f"{key}={text}")
        elif not parsed(own).is_delete():
            # Under the preset's key, which knows whether it needs a `+`.
            axes[name] = _axis(f"{key}={own.partition('=')[2]}")
    for name, choices in config.bundles.items():
        axes[name] = _bundle(name, choices, given.pop(name, None))
    fixed: dict[str, str] = {}
    for key, item in given.items():
        if _is_swept(item):
            axes[key] = _axis(item)
        else:
            fixed[key] = item
    if config.search is not None:
        axes["seed"] = _checked(Axis("seed", tuple(Choice(seed, (f"seed={seed}",)) for seed in config.search.seeds)))
    intervals = tuple(axis for axis in axes.values() if isinstance(axis, Interval))
    if intervals and config.search is None:
        raise ConfigError(
            f"{intervals[0].name} is an interval, which has no end of values: give a list or range(...), or search it "
            "with sweep/search=tpe"
        )
    discrete = tuple(axis for axis in axes.values() if isinstance(axis, Axis))
    _check_keys(discrete, intervals, fixed)
    return Space(discrete, intervals, (*_base(config.base, axes, fixed), *fixed.values()))


def keys_of(overrides: Iterable[str]) -> list[str]:
    """The keys that these overrides set, `+` and `~` left out."""
    return [_key(parsed(item)) for item in overrides]


def last_of_each_key(overrides: Iterable[str]) -> tuple[str, ...]:
    """The overrides without those whose key a later one sets again: Hydra takes no group twice."""
    return tuple({_key(parsed(item)): item for item in overrides}.values())


def _key(override: Override) -> str:
    return str(override.key_or_group)


def _is_swept(item: str) -> bool:
    override = parsed(item)
    return bool(override.is_discrete_sweep() or isinstance(override.value(), IntervalSweep))


def _axis(item: str) -> Axis | Interval:
    override = parsed(item)
    name, value = _key(override), override.value()
    if isinstance(value, IntervalSweep):
        return _interval(override, value)
    if isinstance(value, Glob):
        raise ConfigError(f"{item}: glob() is not known in a sweep; list the options")
    texts = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else [item.partition("=")[2]]
    if not [text for text in texts if text.strip()]:
        raise ConfigError(f"{item}: this axis is empty; give it at least one value")
    choices = []
    for text in texts:
        one = f"{override.get_key_element()}={text}"
        choices.append(Choice(_label(parsed(one).value(), text), (one,)))
    return _checked(Axis(name, tuple(choices)))


def _interval(override: Override, value: IntervalSweep) -> Interval:
    low, high, log = value.start, value.end, "log" in value.tags
    assert isinstance(low, int | float)  # noqa: S101 - so after parsing
    assert isinstance(high, int | float)  # noqa: S101 - so after parsing
    name = _key(override)
    if not low < high or (log and low <= 0):
        above = " above 0, as it is logarithmic" if log else ""
        raise ConfigError(f"{name}: interval({low:g},{high:g}) is empty; give two numbers in ascending order{above}")
    return Interval(name, str(override.get_key_element()), low, high, log, isinstance(low, int))


def _bundle(name: str, choices: dict[str, tuple[str, ...]], item: str | None) -> Axis:
    known = Axis(name, tuple(Choice(_number(label), overrides) for label, overrides in choices.items()))
    if not choices:
        raise ConfigError(f"sweep.bundles.{name}: this axis is empty; give it at least one label with its overrides")
    for choice in known.choices:
        for text in choice.overrides:
            if _is_swept(text):
                raise ConfigError(f"sweep.bundles.{name}.{choice.label}: {text} is swept; a bundle's values are single")
    if item is None:
        return known
    if parsed(item).is_delete():
        raise ConfigError(f"{item}: {name} is a bundle of this preset; choose among its labels with {name}=...")
    chosen = _axis(item)
    if isinstance(chosen, Interval):
        raise ConfigError(f"{item}: {name} is a bundle and no number; give labels: {', '.join(choices)}")
    return Axis(name, tuple(known.choice(choice.label) for choice in chosen.choices))


def _checked(axis: Axis) -> Axis:
    labels = [(type(choice.label), choice.label) for choice in axis.choices]
    twice = [label for number, label in enumerate(labels) if label in labels[:number]]
    if twice:
        raise ConfigError(
            f"{axis.name} has the value {twice[0][1]} twice, which would be two equal cells; name it once"
        )
    return axis


def _label(value: object, text: str) -> Scalar:
    return value if value is None or isinstance(value, str | int | float | bool) else text


def _number(text: str) -> Scalar:
    """A bundle's label as a number where it is one, so that a page can order it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check_keys(axes: Sequence[Axis], intervals: Sequence[Interval], fixed: dict[str, str]) -> None:
    """Raise ConfigError where two places set one key: what a cell then is would depend on their order."""
    places: dict[str, str] = {}
    swept = [(axis.name, {key for choice in axis.choices for key in keys_of(choice.overrides)}) for axis in axes]
    for name, keys in [*swept, *((interval.name, {interval.name}) for interval in intervals)]:
        for key in sorted(keys):
            if key in places:
                raise ConfigError(f"{key} is set by two axes, {places[key]} and {name}; leave it to one of them")
            places[key] = name
    for key, item in fixed.items():
        if key in places:
            raise ConfigError(
                f"{item} conflicts with the axis {places[key]}, whose values set {key} themselves; choose among its "
                f"values with {places[key]}=..., or write a preset without it"
            )


def _base(base: Sequence[str], axes: dict[str, Axis | Interval], fixed: dict[str, str]) -> list[str]:
    """What of a preset's base neither an axis nor the command line replaces."""
    for item in base:
        if _is_swept(item):
            raise ConfigError(f"sweep.base: {item} has several values; what is swept belongs into sweep.axes")
    taken = {*axes, *fixed}
    for axis in axes.values():
        for choice in axis.choices if isinstance(axis, Axis) else ():
            taken.update(keys_of(choice.overrides))
    return [item for item in base if _key(parsed(item)) not in taken]
