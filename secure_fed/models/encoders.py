"""From one modality's raw values to a feature of fixed norm: the interface, and the small linear encoders.

`prepare` is public and parameter-free, so a site runs it once; `forward` is what DP-SGD trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from secure_fed.data.records import Values
from secure_fed.data.vocabulary import ngram_counts, vocabulary
from secure_fed.models.prepared import PreparedCache

RawValues = Values

# Under DP-SGD the clip bound caps what one record can move: inputs of moderate norm and a small first layer
# keep its gradient in the range where clipping loses little.
INPUT_SCALE = 0.3
INITIAL_STD = 0.1
NORM_FLOOR = 0.1
_PREPARED = PreparedCache()


def scaled_to_norm(feature: Tensor, scale: float) -> Tensor:
    """feature [B, F] on (nearly) the sphere of radius `scale`, smooth at zero.

    x * scale / sqrt(|x|^2 + NORM_FLOOR^2): a plain division would give a record without a known word a
    gradient of unbounded size in an arbitrary direction, which clipping then turns into pure disturbance.
    """
    return feature * (scale * torch.rsqrt(feature.square().sum(dim=1, keepdim=True) + NORM_FLOOR**2))


def small_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer with weights N(0, INITIAL_STD^2) and zero bias."""
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=INITIAL_STD)
    nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module, ABC):
    """One modality's encoder: raw -> prepared [n, ...] -> feature [B, out_features] of norm about `scale`.

    notes: what was made of public weights, in sentences for people. public_parameters: how many numbers of a public
    network it uses that are neither trained nor uploaded, and in no component. keeps_pixels: whether what `prepare`
    gives is as large as the images; images in files are then prepared batch by batch, and else all at once (where
    `prepare` goes through them in parts).
    """

    notes: tuple[str, ...] = ()
    public_parameters: int = 0
    keeps_pixels: ClassVar[bool] = False

    def __init__(self, out_features: int, scale: float) -> None:
        super().__init__()
        self.out_features = out_features
        self.scale = scale

    @abstractmethod
    def prepare(self, raw: RawValues) -> Tensor:
        """The public, parameter-free part: raw values of n records -> tensor [n, ...]."""

    @abstractmethod
    def embed(self, prepared: Tensor) -> Tensor:
        """The trained part: prepared [B, ...] -> [B, out_features], of any norm."""

    def forward(self, prepared: Tensor) -> Tensor:
        """prepared [B, ...] -> feature float32 [B, out_features]."""
        return scaled_to_norm(self.embed(prepared), self.scale)


class NgramEncoder(Encoder):
    """A linear bag of n-grams over the shipped vocabulary (negation is marked in the n-grams themselves)."""

    def __init__(self, out_features: int, scale: float) -> None:
        super().__init__(out_features, scale)
        self.linear = small_linear(len(vocabulary()), out_features)

    def prepare(self, raw: RawValues) -> Tensor:
        """Object array of str [n] -> float32 [n, V] of 0 and 1."""
        return _PREPARED.of(raw, lambda texts: torch.from_numpy(ngram_counts(texts)))

    def embed(self, prepared: Tensor) -> Tensor:
        """float32 [B, V] -> [B, F]."""
        return called(self.linear, prepared)


class TabularEncoder(Encoder):
    """A linear layer on scaled summaries, or one with a hidden tanh layer where `hidden` is given."""

    def __init__(self, in_features: int, out_features: int, scale: float, hidden: int | None) -> None:
        super().__init__(out_features, scale)
        widths = (in_features, out_features) if hidden is None else (in_features, hidden, out_features)
        layers: list[nn.Module] = [small_linear(widths[0], widths[1])]
        for before, after in pairwise(widths[1:]):
            # Tempered tanh bounds activations, which bounds gradients (Papernot et al. 2021).
            layers += [nn.Tanh(), small_linear(before, after)]
        self.layers = nn.Sequential(*layers)

    def prepare(self, raw: RawValues) -> Tensor:
        """float32 [n, F], already scaled by public ranges -> float32 [n, F] times INPUT_SCALE."""
        return torch.from_numpy(np.asarray(raw).astype(np.float32)) * INPUT_SCALE

    def embed(self, prepared: Tensor) -> Tensor:
        """float32 [B, F_in] -> [B, F]."""
        return called(self.layers, prepared)


def called(module: nn.Module, x: Tensor) -> Tensor:
    """nn.Module.__call__ is typed Any; hooks of DP-SGD need the call rather than .forward."""
    result: Tensor = module(x)
    return result
