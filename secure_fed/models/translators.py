"""From one modality's feature to another's: what imputes a missing modality (FIN, arXiv 2505.20232).

Outputs start at exactly zero unless they are normalised, so an untrained translator is zero-filling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secure_fed.errors import ConfigError
from secure_fed.models.config import (
    LinearTranslatorConfig,
    MlpTranslatorConfig,
    ModelConfig,
    TransformerTranslatorConfig,
)
from secure_fed.models.encoders import scaled_to_norm, small_linear

LOG_VARIANCE_REACH = 3.0
"""A translated feature's variance stays within e^3 = 20 times of what the feature varies by, up and down."""


class Translator(nn.Module):
    """Feature (or prepared input) [B, I] of the source -> feature [B, F] of the target; `body`, then `last`."""

    def __init__(self, body: nn.Module, last: nn.Linear, scale: float, normalise_output: bool) -> None:
        super().__init__()
        self.body = body
        self.last = last
        self.output_norm = scale if normalise_output else None
        if not normalise_output:
            # At zero the first updates shrink the error towards the mean; a normalised output cannot shrink,
            # and at zero it would have no direction.
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, source: Tensor) -> Tensor:
        """float32 [B, I] -> float32 [B, F]."""
        translated: Tensor = self.last(self.body(source))
        return translated if self.output_norm is None else scaled_to_norm(translated, self.output_norm)


class GaussianTranslator(Translator):
    """A translator that also says how sure it is: a second head gives each feature's log variance.

    The prior of a feature of norm `scale` is N(0, prior_variance) with prior_variance = scale^2 / F, and untrained the
    translator says just that. The log variance is bounded, log v = log prior + R tanh(z / R) with R =
    LOG_VARIANCE_REACH, and with it what one record can do to the likelihood's gradient.
    """

    def __init__(self, body: nn.Module, last: nn.Linear, log_variance: nn.Linear, scale: float) -> None:
        super().__init__(body, last, scale, normalise_output=False)
        self.log_variance = log_variance
        self.prior_variance = scale**2 / last.out_features
        nn.init.zeros_(log_variance.weight)
        nn.init.zeros_(log_variance.bias)

    def distribution(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [B, I] -> mean and variance, float32 [B, F] each."""
        hidden = self.body(source)
        bounded = LOG_VARIANCE_REACH * torch.tanh(self.log_variance(hidden) / LOG_VARIANCE_REACH)
        return self.last(hidden), self.prior_variance * torch.exp(bounded)


class Attention(nn.Module):
    """Multi-head attention of plain linear layers, which hooks can see (Vaswani et al. 2017, 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x [B, T, W] attends to memory [B, M, W] -> [B, T, W]."""
        query, key, value = (
            self._split(self.query(x)),
            self._split(self.key(memory)),
            self._split(self.value(memory)),
        )
        weights = torch.softmax(query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]), dim=-1)
        merged: Tensor = self.out((weights @ value).transpose(1, 2).reshape(x.shape))
        return merged

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Self-attention, attention to the memory, feed-forward; residual and normalised after each."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads)
        self.memory_attention = Attention(width, heads)
        self.expand = nn.Linear(width, feed_forward)
        self.contract = nn.Linear(feed_forward, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x [B, T, W], memory [B, M, W] -> [B, T, W]."""
        x = self.norms[0](x + self.dropout(self.self_attention(x, x)))
        x = self.norms[1](x + self.dropout(self.memory_attention(x, memory)))
        hidden = self.dropout(F.relu(self.expand(x)))
        out: Tensor = self.norms[2](x + self.dropout(self.contract(hidden)))
        return out


class MemoryDecoder(nn.Module):
    """The source feature as the one query token of a decoder over learnable memory tokens.

    At FIN's sizes (6 layers, width 256, feed-forward 1024, 10 tokens) the layers hold 6.32M numbers, as the paper's
    do; the projections in and out, which a width of its own needs, add 0.13M a direction.
    """

    def __init__(self, features: int, config: TransformerTranslatorConfig) -> None:
        super().__init__()
        self.project = nn.Linear(features, config.width)
        # An embedding, not a bare parameter: per-record gradients are known for the former.
        self.memory = nn.Embedding(config.memory_tokens, config.width)
        self.layers = nn.ModuleList(
            DecoderLayer(config.width, config.heads, config.feed_forward, config.dropout) for _ in range(config.depth)
        )

    def forward(self, feature: Tensor) -> Tensor:
        """float32 [B, F] -> [B, width]."""
        tokens = torch.arange(self.memory.num_embeddings, device=feature.device)
        memory = self.memory(tokens.expand(len(feature), -1).contiguous())
        x: Tensor = self.project(feature).unsqueeze(1)
        for layer in self.layers:
            x = layer(x, memory)
        return x.squeeze(1)


AnyTranslatorConfig = MlpTranslatorConfig | LinearTranslatorConfig | TransformerTranslatorConfig
TranslatorBuilder = Callable[[AnyTranslatorConfig, int, float, int], Translator]
"""(configuration, features F of the target, their norm, numbers I that it reads) -> translator."""


def translator_parts(
    config: ModelConfig,
    pairs: Iterable[tuple[str, str]],
    in_features: Mapping[str, int] | None = None,
    build: TranslatorBuilder | None = None,
) -> dict[str, Callable[[], Translator]]:
    """A translator for each (source, target) of `pairs` as `config.translator` describes it: component -> its maker.

    in_features: source -> I, where translators read something else than the source's feature. build: another kind of
    translator than `build_translator`'s. Raises ConfigError for a pair of one modality, or one that is named twice.
    """
    parts: dict[str, Callable[[], Translator]] = {}
    for source, target in pairs:
        component = f"translator.{source}_to_{target}"
        if source == target or component in parts:
            raise ConfigError(f"translator {source!r} to {target!r}: expected two modalities, and each pair once")
        width = config.feature_width if in_features is None else in_features[source]
        chosen = (config.translator, config.feature_width, config.feature_scale, width)
        parts[component] = partial(build or build_translator, *chosen)
    return parts


def build_translator(config: AnyTranslatorConfig, features: int, scale: float, in_features: int) -> Translator:
    """The translator that `config` describes, from `in_features` numbers to a feature of width `features`."""
    body, width = _body(config, in_features)
    return Translator(body, small_linear(width, features), scale, config.normalise_output)


def build_gaussian_translator(
    config: AnyTranslatorConfig, features: int, scale: float, in_features: int
) -> GaussianTranslator:
    """`build_translator` with a second head on the same body; the output is never normalised."""
    body, width = _body(config, in_features)
    return GaussianTranslator(body, small_linear(width, features), nn.Linear(width, features), scale)


def _body(config: AnyTranslatorConfig, in_features: int) -> tuple[nn.Module, int]:
    """All of a translator but its heads, and how many numbers it hands to these."""
    match config:
        case LinearTranslatorConfig():
            return nn.Identity(), in_features
        case MlpTranslatorConfig():
            return nn.Sequential(nn.Linear(in_features, config.hidden), nn.Tanh()), config.hidden
        case TransformerTranslatorConfig():
            return MemoryDecoder(in_features, config), config.width
