"""Which files public weights are read from, and one SHA-256 for them: by it all sites prove to hold the same ones.

Weights that are not trained are in no update and in no model hash, so nothing else would notice that a site's differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from secure_fed.errors import ConfigError
from secure_fed.models.config import BertConfig, ModelConfig, ResNetConfig

SAFETENSORS = ".safetensors"
TORCH = (".pth", ".pt", ".bin")
CONFIG, VOCABULARY, TOKENIZER = "config.json", "vocab.txt", "tokenizer_config.json"
_BERT_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_READ_AT_ONCE = 2**20


@dataclass(frozen=True)
class WeightFiles:
    """Files in `folder`, `tensors` among them, by which option they were given, and what tells that one has changed."""

    key: str
    given: Path
    folder: Path
    tensors: str
    names: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]

    def sha256(self) -> str:
        """Hex SHA-256 of the one file, or of the lines that `sha256sum` prints of several, in the order of their names.

        Raises ConfigError where a file cannot be read.
        """
        return _sha256(self)

    def read(self) -> tuple[dict[str, bytes], str]:
        """Name -> content, and the SHA-256 of just these bytes. Raises ConfigError where a file cannot be read."""
        try:
            contents = {name: (self.folder / name).read_bytes() for name in self.names}
        except OSError as error:
            raise self.unreadable(error) from error
        return contents, _joined({name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})

    def unreadable(self, error: OSError) -> ConfigError:
        """The error for a file that is there and cannot be read."""
        return ConfigError(
            f"{self.key}={self.given}: cannot be read ({error.strerror}): look at the file's permissions"
        )


def image_files(config: ResNetConfig, key: str = "model.image.weights") -> WeightFiles:
    """The one file of `config.weights`. Raises ConfigError where it is missing, a folder, or of an unknown kind."""
    path = config.weights
    assert path is not None  # noqa: S101 - asked only where weights are given
    if path.is_dir():
        raise ConfigError(
            f"{key}={path}: found a folder, expected a file: give the {config.name} state itself "
            f"({SAFETENSORS}, {' or '.join(TORCH[:2])})"
        )
    _require_file(path, key, f"a local {config.name} state as torchvision names it, or null")
    return _files(key, path, path.parent, path.name, (path.name,))


def text_files(config: BertConfig, key: str = "model.text.weights") -> WeightFiles:
    """The files of `config.weights`, a folder or its file of tensors. Raises ConfigError naming a missing one."""
    path = config.weights
    assert path is not None  # noqa: S101 - asked only where weights are given
    needed = f"a local folder with {CONFIG}, {' or '.join(_BERT_WEIGHTS)} and {VOCABULARY}, or null"
    folder, tensors = path, ""
    if path.suffix in (SAFETENSORS, *TORCH) and not path.is_dir():
        folder, tensors = path.parent, path.name
        _require_file(path, key, needed)
    elif not path.is_dir():
        raise ConfigError(f"{key}={path}: {'a file of an unknown kind' if path.exists() else 'missing'}: give {needed}")
    tensors = tensors or next((name for name in _BERT_WEIGHTS if (folder / name).is_file()), _BERT_WEIGHTS[0])
    for name in (CONFIG, tensors, VOCABULARY):
        if not (folder / name).is_file():
            raise ConfigError(f"{key}={path}: {name} is missing: give {needed}")
    optional = [TOKENIZER] if (folder / TOKENIZER).is_file() else []
    return _files(key, path, folder, tensors, tuple(sorted({CONFIG, tensors, VOCABULARY, *optional})))


def pinned(config: ModelConfig) -> ModelConfig:
    """`config` with `weights_sha256` filled in wherever weights are given without one.

    So what a run writes down, what its owners approve and what every session binds names the very weights. Raises
    ConfigError where the files are missing.
    """
    encoders = {
        name: _with_digest(chosen, f"model.encoders.{name}.weights")
        if isinstance(chosen, ResNetConfig | BertConfig)
        else chosen
        for name, chosen in config.encoders.items()
    }
    changes: dict[str, object] = {"encoders": encoders}
    if isinstance(config.image, ResNetConfig):
        changes["image"] = _with_digest(config.image, "model.image.weights")
    if isinstance(config.text, BertConfig):
        changes["text"] = _with_digest(config.text, "model.text.weights")
    return config.model_copy(update=changes)


def _with_digest(config: ResNetConfig | BertConfig, key: str) -> ResNetConfig | BertConfig:
    if config.weights is None or config.weights_sha256 is not None:
        return config
    files = image_files(config, key) if isinstance(config, ResNetConfig) else text_files(config, key)
    return config.model_copy(update={"weights_sha256": files.sha256()})


def _require_file(path: Path, key: str, needed: str) -> None:
    if not path.is_file():
        raise ConfigError(f"{key}={path}: missing: give {needed}")
    if path.suffix not in (SAFETENSORS, *TORCH):
        raise ConfigError(f"{key}={path}: found a file {path.suffix or 'without suffix'}, expected {SAFETENSORS}, "
                          f"{', '.join(TORCH)}: give {needed}")  # fmt: skip


def _files(key: str, given: Path, folder: Path, tensors: str, names: tuple[str, ...]) -> WeightFiles:
    stats = [(folder / name).stat() for name in names]
    return WeightFiles(key, given, folder, tensors, names, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@lru_cache(maxsize=32)
def _sha256(files: WeightFiles) -> str:
    digests = {}
    try:
        for name in files.names:
            with (files.folder / name).open("rb") as stream:
                state = hashlib.sha256()
                while block := stream.read(_READ_AT_ONCE):
                    state.update(block)
            digests[name] = state.hexdigest()
    except OSError as error:
        raise files.unreadable(error) from error
    return _joined(digests)


def _joined(digests: Mapping[str, str]) -> str:
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()
