"""From Hydra's groups and the command line's overrides to one frozen `RunConfig`.

The only place that sees a DictConfig; wrong keys are answered with the nearest known ones.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from secure_fed.errors import ConfigError
from secure_fed.federation.config import RunConfig
from secure_fed.models.pinning import pinned

Primary = Literal["config", "sweep"]
"""Which configuration is composed: a run's (config.yaml), or a sweep's (sweep.yaml)."""

_SWEEP_GROUPS = ("sweep", "launcher")
_COMMAND: dict[Primary, str] = {"config": "run", "sweep": "sweep"}
_Model = TypeVar("_Model", bound=BaseModel)


def config_dir() -> Path:
    """The folder of Hydra groups: inside the installed package, else the repository's (editable installs)."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"no configs/config.yaml beside {package}: the installation is incomplete, reinstall secure-fed")


def compose_config(overrides: Sequence[str], primary: Primary = "config") -> DictConfig:
    """Compose the configuration that `overrides` give; raises ConfigError with the nearest known keys."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            return compose(primary, overrides=list(overrides))
        except (ConfigCompositionException, OverrideParseException, ValueError) as error:
            # Hydra raises a bare ValueError where a group is given null.
            raise ConfigError(_explain(error, overrides, primary)) from error
        except (HydraException, OmegaConfBaseException) as error:
            shown = f"`secure-fed {_COMMAND[primary]} --cfg job` shows all values"
            raise ConfigError(f"{_first_line(error)}; {shown}") from error


def freeze(config: DictConfig, run_dir: Path) -> RunConfig:
    """Resolve and validate; raises ConfigError naming every wrong value. Paths to data and weights become absolute."""
    try:
        tree = OmegaConf.to_container(_without_hydra(config, run_dir), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise ConfigError(f"{key} has no value; give it on the command line: {key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from error
    assert isinstance(tree, dict)  # noqa: S101 - to_container of a DictConfig
    return freeze_tree({str(key): value for key, value in tree.items()})


def freeze_tree(tree: dict[str, Any]) -> RunConfig:
    """What `freeze` makes of plain, resolved values; public weights that are given without a SHA-256 get theirs."""
    # A run may be resumed, and a worker may run, in another working directory.
    absolute = _with_absolute_paths(validate(tree).model_dump())
    assert isinstance(absolute, dict)  # noqa: S101 - it was one
    config = validate(absolute)
    return config.model_copy(update={"model": pinned(config.model)})


def validate(tree: dict[str, Any]) -> RunConfig:
    """A `RunConfig` from plain values; raises ConfigError with one line per wrong value."""
    return validate_as(RunConfig, tree)


def validate_as(model: type[_Model], tree: object, prefix: str = "") -> _Model:
    """A `model` from plain values; raises ConfigError with one line per wrong value, its key behind `prefix`."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [
            prefix + _describe(item["type"], item["loc"], item["msg"], item.get("input")) for item in error.errors()
        ]
        raise ConfigError("; ".join(dict.fromkeys(lines))) from error


def load_config(run: Path) -> RunConfig:
    """The configuration of a run folder; raises ConfigError where it is missing or damaged."""
    path = run / "config.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{run} is not a run folder: it has no config.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged: {_first_line(error)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is damaged: expected a mapping of values")
    try:
        return validate(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; was it changed by hand, or written by another version?") from error


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _without_hydra(config: DictConfig, run_dir: Path) -> DictConfig:
    tree = OmegaConf.masked_copy(config, [str(key) for key in config if key not in {"resume", "run_dir", "hydra"}])
    OmegaConf.set_struct(tree, False)
    tree["run_dir"] = str(run_dir)
    return tree


def _with_absolute_paths(node: object) -> object:
    if isinstance(node, dict):
        return {key: _with_absolute_paths(value) for key, value in node.items()}
    return Path(os.path.abspath(node.expanduser())) if isinstance(node, Path) else node


def _describe(kind: str, location: tuple[int | str, ...], message: str, value: object) -> str:
    # pydantic puts a discriminated union's tag into the location; nobody writes it on the command line.
    path = ".".join(
        str(part)
        for index, part in enumerate(location)
        if not (index == 1 and len(location) > 2 and location[0] in {"data", "method", "strategy", "evaluation"})
        and location[:index] not in {("model", "image"), ("model", "text"), ("model", "translator")}
        and not (index == 3 and location[:2] == ("model", "encoders"))
        and not (index > 1 and location[0] == location[index - 1] == "data")  # a set within a composite
    )
    if kind == "extra_forbidden":
        return f"unknown key {path!r}; `secure-fed run --cfg job` lists all"
    named = f"{path}" if isinstance(value, dict) else f"{path}={value!r}"
    message = message.removeprefix("Value error, ")
    return message if message.startswith(path) else f"{named}: {message[:1].lower()}{message[1:]}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _explain(error: Exception, overrides: Sequence[str], primary: Primary) -> str:
    """Hydra's message, with the nearest known keys or group options for whatever it does not know."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for item in overrides:
        try:
            parsed.append(parser.parse_override(item))
        except HydraException as wrong:
            return f"override {item!r} cannot be read ({_first_line(wrong)}); an override is written key=value"
    groups = _groups(primary)
    choices = [override for override in parsed if override.key_or_group in groups]
    for override in choices:
        key, option = override.key_or_group, str(override.value())
        if option not in groups[key]:
            return f"{key}={option} is unknown; {_nearest(option, groups[key])}known: {', '.join(groups[key])}"
    try:
        known = _known([str(override.input_line) for override in choices], primary)
    except HydraException as wrong:  # options that do not go together
        return _first_line(wrong)
    for override in parsed:
        key = override.key_or_group
        if key not in {*known[0], *known[1], "hydra"} and not key.startswith("hydra.") and not override.is_add():
            return _unknown_key(key, *known, primary)
    # What is left: a value that Hydra cannot place, and it says how to write it.
    return " ".join(line.strip() for line in str(error).strip().splitlines())


def _unknown_key(key: str, keys: Sequence[str], groups: Sequence[str], primary: Primary) -> str:
    if primary == "config" and key.partition(".")[0] in _SWEEP_GROUPS:
        return f"unknown key {key!r}: it belongs to `secure-fed sweep`"
    return f"unknown key {key!r}; {_nearest(key, [*keys, *groups])}`secure-fed {_COMMAND[primary]} --cfg job` lists all"


def _nearest(word: str, known: Sequence[str]) -> str:
    # The last part alone may be right: `epsilon` for `privacy.epsilon`.
    known = list(dict.fromkeys(known))  # a group is a key, too
    match = [name for name in known if name.split(".")[-1] == word.split(".")[-1]][:3]
    match = match or difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(match)}? " if match else ""


def _groups(primary: Primary) -> dict[str, list[str]]:
    """The options of every group of a run's configuration, or of a sweep's."""
    root = config_dir()
    groups: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.yaml")):
        if path.parent != root and (path.relative_to(root).parts[0] in _SWEEP_GROUPS) == (primary == "sweep"):
            groups.setdefault(path.parent.relative_to(root).as_posix(), []).append(path.stem)
    return groups


def _known(choices: Sequence[str], primary: Primary) -> tuple[list[str], list[str]]:
    """All keys of the configuration that these choices of group options give, and all groups."""
    keys: list[str] = []

    def walk(node: object, prefix: str) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                keys.append(f"{prefix}{name}")
                walk(value, f"{prefix}{name}.")

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        walk(OmegaConf.to_container(compose(primary, overrides=list(choices)), resolve=False), "")
    return keys, list(_groups(primary))
