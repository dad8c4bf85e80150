"""From a sweep's arguments to a checked list of cells, each with its whole configuration and its identity.

Nothing is written, and no data are read: whatever can be known before the first cell is found wrong here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from secure_fed.config import compose_config, validate_as
from secure_fed.errors import ConfigError
from secure_fed.federation.config import RunConfig
from secure_fed.sweep.axes import Axis, Interval, Space, keys_of, last_of_each_key, parsed, space_of, split_arguments
from secure_fed.sweep.composing import Composer
from secure_fed.sweep.config import LauncherConfig, ReferenceConfig, SweepConfig
from secure_fed.sweep.identity import cell_id, code_version
from secure_fed.sweep.record import GRID, AxisRecord, CellRow, Manifest, Scalar
from secure_fed.sweep.soundness import Draft, require_objective, require_sound, require_unequal
from secure_fed.versions import versions

__all__ = ["Cell", "Sweep", "cell_of", "code_version", "described", "read_sweep", "repeated"]

_GENERATED = {"synthetic_cxr"}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. Its overrides compose its configuration, whose `run_dir` is empty: the folder decides."""

    row: CellRow
    overrides: tuple[str, ...]
    config: RunConfig


@dataclass(frozen=True)
class Sweep:
    """What a sweep is: its cells in order, references last. A search and repeat_select make cells as they go.

    `cells` of a search are its references; with tuning=repeat_select they are the candidates, without references.
    """

    config: SweepConfig
    launcher: LauncherConfig
    manifest: Manifest
    cells: tuple[Cell, ...]
    space: Space
    composer: Composer = field(repr=False, compare=False)

    def axis(self, name: str) -> Axis | Interval:
        """The axis called `name`; raises ConfigError naming the known ones."""
        return _axis(self.space, name)


def read_sweep(arguments: Sequence[str]) -> Sweep:
    """Compose, spread out and check a sweep; raises ConfigError, one line per distinct cause, before anything runs."""
    own, overrides = split_arguments(arguments)
    config, launcher = _sections(own)
    space = space_of(config, overrides)
    _check(config, space)
    composer = Composer()
    drafts = [*_grid(config, space), *_references(config, space)]
    try:
        configs = require_sound([*drafts, *_probes(config, space)], composer)
    except ConfigError as error:
        raise ConfigError(f"{error}{_on_other_data(str(error), config, overrides)}") from error
    require_objective(config.objective, configs)
    cells = tuple(_cell(draft, found) for draft, found in zip(drafts, configs, strict=False))
    require_unequal([(draft, cell.row.id) for draft, cell in zip(drafts, cells, strict=True)])
    manifest = _manifest(arguments, config, space, cells, configs)
    _require_one_unit(manifest.tuning, configs)
    return Sweep(config, launcher, manifest, cells, space, composer)


def cell_of(sweep: Sweep, values: Mapping[str, Scalar], kind: str = GRID, repeat: int = 0) -> Cell:
    """The cell with these values, one for each axis of its kind, checked as the others were.

    Raises ConfigError for a value that the axis does not have, and one that is missing or belongs to no axis.
    """
    names = _axes_of(sweep.config, sweep.space, kind)
    if set(values) != set(names):
        given = ", ".join(values) or "none"
        raise ConfigError(f"a cell of {kind} has the axes {', '.join(names)}; it was given values for {given}")
    choices = {name: sweep.axis(name).choice(values[name]) for name in names}
    last = () if kind == GRID else sweep.config.references[kind].overrides
    texts = [text for choice in choices.values() for text in choice.overrides]
    overrides = last_of_each_key([*sweep.space.fixed, *texts, *last])
    draft = Draft(kind, {name: choice.label for name, choice in choices.items()}, overrides)
    return _cell(draft, require_sound([draft], sweep.composer)[0], repeat)


def repeated(cell: Cell, repeat: int) -> Cell:
    """The same cell once more, as another run: `repeat` tells them apart, 0 is the cell of the grid."""
    row = cell.row.model_copy(update={"id": cell_id(cell.config, repeat), "repeat": repeat})
    return replace(cell, row=row)


def described(arguments: Sequence[str]) -> str:
    """The sweep's own configuration as YAML, for `--cfg job`; raises ConfigError as `read_sweep` does of it."""
    config, launcher = _sections(split_arguments(arguments)[0])
    tree = {"sweep": config.model_dump(mode="json"), "launcher": launcher.model_dump(mode="json")}
    return yaml.safe_dump(tree, sort_keys=False)


# -- the sweep's own configuration -----------------------------------------------------------------------


def _sections(own: Sequence[str]) -> tuple[SweepConfig, LauncherConfig]:
    tree = compose_config(own, "sweep")
    sweep = _plain(tree, "sweep")
    # The rest is unresolved: a reference between values in an override is the run's own matter.
    sweep["dir"] = str(tree.sweep.dir)
    return (
        validate_as(SweepConfig, sweep, "sweep."),
        validate_as(LauncherConfig, _plain(tree, "launcher"), "launcher."),
    )


def _plain(tree: DictConfig, key: str) -> dict[str, Any]:
    node = OmegaConf.to_container(tree[key], resolve=False)
    if not isinstance(node, dict):
        raise ConfigError(f"{key}={node} is no group of values")
    return {str(name): value for name, value in node.items()}


def _check(config: SweepConfig, space: Space) -> None:
    """Raise ConfigError where the sweep's parts name each other wrongly."""
    names = [axis.name for axis in space.factors]
    known = ", ".join(names) or "none"
    if not names:
        raise ConfigError("nothing is swept; give at least one key several values, as in privacy.epsilon=1,3,8")
    for what in ("x", "series", "panels"):
        name = getattr(config.page, what)
        if name is not None and name not in names:
            raise ConfigError(f"sweep.page.{what}={name} is no axis of this sweep; give one of {known}, or null")
    for kind, reference in config.references.items():
        if kind == GRID or not kind.replace("_", "").isalnum():
            raise ConfigError(
                f"sweep.references: {kind!r} cannot name a reference; use letters, digits and _, but not {GRID}"
            )
        _check_reference(kind, reference, space, known)
    if config.tuning == "repeat_select" and config.search is not None:
        raise ConfigError(
            "sweep.tuning=repeat_select draws its candidates from the grid, whatever came out before, and sweep/search "
            "chooses the next by the last: give sweep.tuning=composed, or leave out the search"
        )


def _require_one_unit(tuning: str, configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError where a chosen model's report would need one figure over guarantees of different units."""
    units = sorted({found.privacy.unit for found in configs if found.privacy.mode == "dp"})
    if tuning != "public" and len(units) > 1:
        raise ConfigError(
            f"sweep.tuning={tuning} with privacy.unit={','.join(units)}: guarantees per {' and per '.join(units)} have "
            "no common epsilon; give one unit, and sweep the other in another folder"
        )


def _check_reference(kind: str, reference: ReferenceConfig, space: Space, known: str) -> None:
    what = f"sweep.references.{kind}"
    without = f"give others, or leave the reference out with ~{what}"
    for name in reference.axes:
        if name in [interval.name for interval in space.intervals]:
            raise ConfigError(f"{what} goes along {name}, which is an interval here; {without}")
        if name not in [axis.name for axis in space.axes]:
            raise ConfigError(f"{what} goes along {name}, which is no axis; the axes: {known}; {without}")
    own = set(keys_of(reference.overrides))
    for name in reference.axes:
        for choice in _discrete(space, name).choices:
            if both := own & set(keys_of(choice.overrides)):
                raise ConfigError(f"{what} sets {min(both)} and goes along {name}, which sets it too; {without}")


# -- cells -----------------------------------------------------------------------------------------------


def _axes_of(config: SweepConfig, space: Space, kind: str) -> tuple[str, ...]:
    if kind == GRID:
        return tuple(axis.name for axis in space.factors)
    if kind not in config.references:
        raise ConfigError(f"{kind} is no kind of cell; known: {', '.join((GRID, *config.references))}")
    return config.references[kind].axes


def _axis(space: Space, name: str) -> Axis | Interval:
    for axis in space.factors:
        if axis.name == name:
            return axis
    known = ", ".join(axis.name for axis in space.factors)
    raise ConfigError(f"{name} is no axis of this sweep; its axes: {known}")


def _discrete(space: Space, name: str) -> Axis:
    axis = _axis(space, name)
    assert isinstance(axis, Axis)  # noqa: S101 - checked before
    return axis


def _grid(config: SweepConfig, space: Space) -> Iterator[Draft]:
    if config.search is None:
        yield from _product(GRID, space.fixed, space.axes, ())


def _references(config: SweepConfig, space: Space) -> Iterator[Draft]:
    # A release by random stopping covers candidates that are drawn alike, and nothing beside them.
    if config.tuning == "repeat_select":
        return
    for kind, reference in config.references.items():
        axes = [_discrete(space, name) for name in reference.axes]
        yield from _product(kind, space.fixed, axes, reference.overrides)


def _probes(config: SweepConfig, space: Space) -> list[Draft]:
    """Cells that a search may come to: each value of each axis in one of them, and both ends of each interval."""
    if config.search is None:
        return []
    axes = [*space.axes, *(Axis(i.name, (i.choice(i.low), i.choice(i.high))) for i in space.intervals)]
    count = max(len(axis.choices) for axis in axes)
    mixed = [[axis.choices[number % len(axis.choices)] for axis in axes] for number in range(count)]
    return [
        Draft(
            GRID,
            {axis.name: choice.label for axis, choice in zip(axes, choices, strict=True)},
            last_of_each_key([*space.fixed, *(text for choice in choices for text in choice.overrides)]),
        )
        for choices in mixed
    ]


def _on_other_data(text: str, config: SweepConfig, overrides: Sequence[str]) -> str:
    """The way out where a preset's experiment sets what other data do not have."""
    experiments = [item for item in config.base if keys_of([item]) == ["experiment"]]
    if "unknown key 'data." not in text or "data" not in keys_of(overrides) or not experiments:
        return ""
    return f"; {experiments[0]} of this preset is about other data: give ~experiment, or an experiment for yours"


def _product(kind: str, fixed: Sequence[str], axes: Sequence[Axis], last: Sequence[str]) -> Iterator[Draft]:
    for choices in itertools.product(*(axis.choices for axis in axes)):
        factors = {axis.name: choice.label for axis, choice in zip(axes, choices, strict=True)}
        texts = [text for choice in choices for text in choice.overrides]
        yield Draft(kind, factors, last_of_each_key([*fixed, *texts, *last]))


def _cell(draft: Draft, config: RunConfig, repeat: int = 0) -> Cell:
    private = config.privacy.mode == "dp"
    owned = config.federation.ownership
    row = CellRow(
        id=cell_id(config, repeat),
        kind=draft.kind,
        factors=dict(draft.factors),
        method=config.method.name,
        ownership=owned if isinstance(owned, str) else ",".join(f"{kind}:{count}" for kind, count in owned.items()),
        seed=config.seed,
        privacy=config.privacy.mode,
        secagg=config.secagg.mode,
        epsilon_target=config.privacy.epsilon if private else None,
        delta=config.privacy.delta if private else None,
        repeat=repeat,
    )
    return Cell(row, draft.overrides, config)


def _manifest(
    arguments: Sequence[str], config: SweepConfig, space: Space, cells: Sequence[Cell], configs: Sequence[RunConfig]
) -> Manifest:
    names = sorted({found.data.name for found in configs})
    tuning = config.tuning or ("public" if set(names) <= _GENERATED else "composed")
    return Manifest(
        name=config.name,
        code=code_version(),
        arguments=_lasting(arguments, configs),
        base=config.base,
        axes=tuple(AxisRecord(name=axis.name, values=tuple(c.label for c in axis.choices)) for axis in space.axes),
        references=() if config.tuning == "repeat_select" else tuple(config.references),
        objective=config.objective,
        tuning=tuning,
        repeat_select=config.repeat_select,
        page=config.page,
        confidence=config.confidence,
        search_trials=None if config.search is None else config.search.trials,
        data=", ".join(names),
        cells=tuple(cell.row for cell in cells),
        versions=versions(),
    )


def _lasting(arguments: Sequence[str], configs: Sequence[RunConfig]) -> tuple[str, ...]:
    """The arguments that make this sweep again, also from another working directory; where it lies is no part of it."""
    kept: list[str] = []
    for item in arguments:
        override = parsed(item)
        key = str(override.key_or_group)
        if key == "sweep.dir" or key.partition(".")[0] == "launcher":
            continue
        # Of several paths each cell has another one: those stay as they were given.
        path = _at(configs[0], key) if configs and not override.is_discrete_sweep() else None
        quoted = str(path).replace("\\", "\\\\").replace("'", "\\'")
        kept.append(f"{override.get_key_element()}='{quoted}'" if isinstance(path, Path) else item)
    return tuple(kept)


def _at(config: RunConfig, key: str) -> object:
    node: object = config
    for name in key.split("."):
        node = getattr(node, name, None)
    return node
