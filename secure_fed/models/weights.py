"""Public weights as tensors, from local files alone: what was found and what was expected, where they do not fit.

safetensors, or torch.load(weights_only=True), which runs no code of the file's. What is returned is shared: nobody
writes into it.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from secure_fed.errors import ConfigError
from secure_fed.models.pinning import SAFETENSORS, WeightFiles

_FOREIGN = re.compile(r"GLOBAL (\S+)")
_LFS = b"version https://git-lfs"
_SHOWN = 3
_LOOKS_LIKE = (
    (("module.",), "the state of a DataParallel wrapper: save the inner module's"),
    (("resnet.embedder.", "embedder."), "transformers' names of a ResNet: save torchvision's"),
    (("bert.", "encoder.layer.", "embeddings."), "a BERT's"),
    (("distilbert.", "transformer.layer."), "a DistilBERT's"),
    (("roberta.",), "a RoBERTa's"),
    (("features.",), "a DenseNet's or another network's of torchvision"),
    (("conv1.0.", "stem."), "timm's names of another ResNet (a deep stem)"),
    (("layer1.",), "a ResNet's of another depth or block"),
)


@dataclass(frozen=True, eq=False)
class Weights:
    """What was read: the files, their SHA-256, name -> tensor, and the other files' contents."""

    files: WeightFiles
    sha256: str
    tensors: Mapping[str, Tensor]
    others: Mapping[str, bytes]

    def wrong(self, what: str) -> ConfigError:
        """The error that says of these files what is wrong with them."""
        return ConfigError(f"{self.files.key}={self.files.given}: {what}")


def read_weights(files: WeightFiles, sha256: str | None) -> Weights:
    """The tensors of `files`, read once in a process as long as they do not change.

    Raises ConfigError where they are unreadable, truncated, no plain state, not finite, or not those of `sha256`.
    """
    weights = _read(files)
    if sha256 is not None and weights.sha256 != sha256:
        raise weights.wrong(
            f"found SHA-256 {weights.sha256}, expected weights_sha256={sha256}: these are not the weights that the "
            "run was agreed on; give the same files at every site"
        )
    return weights


def require_fit(weights: Weights, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Raise ConfigError, with what was found and expected, unless `given` has just the names and shapes of `wanted`."""
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    misshapen = [
        f"{name} {_shape(given[name])} instead of {_shape(wanted[name])}"
        for name in given
        if name in wanted and (given[name].shape != wanted[name].shape or not given[name].is_floating_point())
    ]
    if not (missing or unknown or misshapen):
        return
    parts = [f"found {_listed(sorted(weights.tensors))}{_looks_like(weights.tensors, missing)}", f"expected {what}"]
    parts += [f"missing {_listed(missing)}"] if missing else []
    parts += [f"unknown {_listed(unknown)}"] if unknown else []
    parts += [f"other sizes: {'; '.join(misshapen[:_SHOWN])}"] if misshapen else []
    raise weights.wrong(f"{'; '.join(parts)}. Give weights of that very model")


@lru_cache(maxsize=2)
def _read(files: WeightFiles) -> Weights:
    contents, sha256 = files.read()
    raw = contents.pop(files.tensors)
    weights = Weights(files, sha256, {}, contents)
    if raw.startswith(_LFS):
        raise weights.wrong(f"{files.tensors} is a Git LFS pointer, not the file: fetch it with `git lfs pull`")
    parsed = _parsed(weights, raw)
    if not isinstance(parsed, Mapping):
        raise weights.wrong(f"found a {type(parsed).__name__}, expected name -> tensor: save the module's state_dict()")
    foreign = sorted(str(name) for name, value in parsed.items() if not isinstance(value, Tensor))
    if foreign or not parsed:
        found = _listed(foreign) if foreign else "nothing"
        raise weights.wrong(f"found {found}, expected name -> tensor: give the state_dict() alone")
    tensors = {str(name): value.detach() for name, value in parsed.items()}
    broken = sorted(n for n, value in tensors.items() if value.is_floating_point() and not value.isfinite().all())
    if broken:
        raise weights.wrong(f"{_listed(broken)} holds numbers that are not finite: the file is damaged")
    return Weights(files, sha256, tensors, contents)


def _parsed(weights: Weights, raw: bytes) -> object:
    name = weights.files.tensors
    if name.endswith(SAFETENSORS):
        try:
            return load_safetensors(raw)
        except SafetensorError as error:
            raise weights.wrong(f"{name} is no safetensors file, or cut short ({error}): copy it again") from error
    try:
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = _FOREIGN.search(str(error))
        if foreign is None:
            raise weights.wrong(f"{name} is no PyTorch file, or a damaged one: copy it again") from error
        raise weights.wrong(
            f"{name} holds {foreign[1]}, expected tensors alone: objects and code out of a file are never loaded; save "
            "the state_dict() with safetensors"
        ) from error
    except Exception as error:  # on bytes that are no pickle its interpreter raises whatever comes
        raise weights.wrong(f"{name} is no PyTorch file, or cut short: copy it again") from error


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _looks_like(tensors: Mapping[str, Tensor], missing: Sequence[str]) -> str:
    if not missing:
        return ""
    for prefixes, what in _LOOKS_LIKE:
        if any(name.startswith(prefixes) for name in tensors):
            return f" (looks like {what})"
    return ""
