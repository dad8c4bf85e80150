"""Many configurations that differ in little: Hydra composes each choice of groups once, single values go on top.

What comes out is what `compose_config` and `freeze` give, which everything else goes through.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from secure_fed.config import compose_config, freeze, freeze_tree
from secure_fed.errors import ConfigError
from secure_fed.federation.config import RunConfig
from secure_fed.sweep.axes import parsed

_Made = TypeVar("_Made")

_NOWHERE = Path("cell")
"""A cell's folder is not known yet."""

_HARMLESS = {"name", "run_dir", "hydra"}
"""Keys whose values may refer to others: they follow from group choices, or are replaced."""


class Composer:
    """Composes run configurations and remembers what they have in common."""

    def __init__(self) -> None:
        self._trees: dict[tuple[str, ...], dict[str, Any] | None] = {}
        self._faults: dict[tuple[str, ...], str] = {}

    def __call__(self, overrides: Sequence[str]) -> RunConfig:
        """The frozen configuration, its `run_dir` empty; raises ConfigError as `compose_config` and `freeze` do."""
        plain = [override for override in map(parsed, overrides) if _is_plain(override)]
        others = tuple(item for item in overrides if not _is_plain(parsed(item)))
        tree = self._told_once(others, lambda: self._tree(others))
        if tree is None:
            return _placed(freeze(compose_config(overrides), _NOWHERE))
        unknown = tuple(override.key_or_group for override in plain if not _set(tree, override))
        if unknown or any(text == "???" for text in _texts(tree)):
            # Hydra knows what to say of a key that is not there, whatever its value, and of one that has none.
            whole = lambda: freeze(compose_config(overrides), _NOWHERE)  # noqa: E731
            return _placed(self._told_once((*others, *unknown), whole))
        return _placed(freeze_tree(tree))

    def _told_once(self, cause: tuple[str, ...], make: Callable[[], _Made]) -> _Made:
        """What `make` gives; an error is remembered by its cause, since explaining one takes longer than composing."""
        if cause in self._faults:
            raise ConfigError(self._faults[cause])
        try:
            return make()
        except ConfigError as error:
            self._faults[cause] = str(error)
            raise

    def _tree(self, overrides: tuple[str, ...]) -> dict[str, Any] | None:
        """A copy of the values that these overrides give; None where some value refers to another."""
        if overrides not in self._trees:
            self._trees[overrides] = _values(compose_config(overrides))
        return copy.deepcopy(self._trees[overrides])


def _is_plain(override: Override) -> bool:
    """Whether it gives one value to a key inside a group: such overrides come last in Hydra too, in any order."""
    value = override.value()
    is_single = value is None or isinstance(value, str | int | float | bool)
    refers = isinstance(value, str) and "${" in value
    inside = "." in override.key_or_group or override.key_or_group in {"seed", "insecure_reproducible"}
    return override.type == OverrideType.CHANGE and override.package is None and is_single and inside and not refers


def _set(tree: dict[str, Any], override: Override) -> bool:
    """Set a value where its key is there; False where it is not."""
    *path, last = override.key_or_group.split(".")
    node: Any = tree
    for name in path:
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    if not isinstance(node, dict) or last not in node:
        return False
    node[last] = override.value()
    return True


def _values(config: DictConfig) -> dict[str, Any] | None:
    raw = OmegaConf.to_container(config, resolve=False)
    assert isinstance(raw, dict)  # noqa: S101 - of a DictConfig
    if any("${" in text for key, node in raw.items() if key not in _HARMLESS for text in _texts(node)):
        return None
    tree = {str(key): node for key, node in raw.items() if key not in {"resume", "hydra"}}
    return {**tree, "name": str(config.name), "run_dir": str(_NOWHERE)}


def _texts(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for child in node.values():
            yield from _texts(child)
    elif isinstance(node, list):
        for child in node:
            yield from _texts(child)
    elif isinstance(node, str):
        yield node


def _placed(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"run_dir": ""})
