"""What two sweeps do differently: code, versions and data from their manifests, settings from their cells' files.

A setting counts as changed only where cells that are compared with each other disagree on it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from secure_fed.errors import DataError
from secure_fed.sweep.record import CELLS, Manifest, Scalar

# What a run is called and where it lies says nothing of what it does.
_NAMES = {"name", "run_dir"}
_ABSENT = "absent"


@dataclass(frozen=True)
class Change:
    """One thing that differs, as text. `cells`: how many pairs of cells disagree on it; None: of the sweeps."""

    what: str
    before: str
    after: str
    cells: int | None = None


def read_config(folder: Path, cell: str) -> dict[str, Any] | None:
    """A cell's resolved configuration, or None where its run folder was not kept; raises DataError on a damaged one."""
    path = folder / CELLS / cell / "config.yaml"
    if not path.is_file():
        return None
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged, it is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} is damaged: expected a mapping of values, found {type(tree).__name__}.")
    return tree


def value_at(config: Mapping[str, Any], key: str) -> Scalar:
    """The value under a dotted key, a group's choice by its name; None where there is none or it is no scalar."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
        value = value.get("name")
    return value if isinstance(value, str | int | float | bool) else None


def of_manifests(before: Manifest, after: Manifest) -> tuple[Change, ...]:
    """What the sweeps themselves say: code, versions of packages, data, base, axes, references."""
    found = [
        ("code", before.code, after.code),
        ("data", before.data, after.data),
        ("base", " ".join(before.base), " ".join(after.base)),
        ("objective", before.objective, after.objective),
        ("tuning", before.tuning, after.tuning),
        ("references", ", ".join(before.references), ", ".join(after.references)),
    ]
    axes = [{axis.name: ", ".join(map(shown, axis.values)) for axis in m.axes} for m in (before, after)]
    found += [(f"axis {key}", *pair) for key, pair in _both(*axes)]
    found += [(f"version of {key}", *pair) for key, pair in _both(before.versions, after.versions)]
    return tuple(Change(what, a or "none", b or "none") for what, a, b in found if a != b)


def of_configs(pairs: Iterable[tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]]) -> tuple[Change, ...]:
    """Settings on which cells of a pair disagree, each key once; pairs without both files are left out."""
    values: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for before, after in pairs:
        if before is not None and after is not None:
            for key, (a, b) in _both(flat(before), flat(after)):
                if a != b:
                    values[key].append((a, b))
    return tuple(
        Change(key, _one_of(a for a, _ in found), _one_of(b for _, b in found), len(found))
        for key, found in sorted(values.items())
    )


def shown(value: Scalar) -> str:
    """A value as the command line takes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _both(before: Mapping[str, str], after: Mapping[str, str]) -> list[tuple[str, tuple[str, str]]]:
    return [(key, (before.get(key, _ABSENT), after.get(key, _ABSENT))) for key in {**before, **after}]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key -> value as text."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        elif prefix or key not in _NAMES:
            found[f"{prefix}{key}"] = shown(value) if isinstance(value, float | bool | None) else str(value)
    return found


def _one_of(values: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else f"{len(distinct)} values"
