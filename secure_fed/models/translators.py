"""From one modality's feature to another's: what imputes a missing modality (FIN, arXiv 2505.20232).

Outputs start at exactly zero unless they are normalised, so an untrained translator is zero-filling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secure_fed.models.config import LinearTranslatorConfig, MlpTranslatorConfig, TransformerTranslatorConfig
from secure_fed.models.encoders import scaled_to_norm, small_linear


class Translator(nn.Module):
    """feature [B, F] of the source -> feature [B, F] of the target; `body` does it, `last` ends it."""

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

    def forward(self, feature: Tensor) -> Tensor:
        """float32 [B, F] -> float32 [B, F]."""
        translated: Tensor = self.last(self.body(feature))
        return translated if self.output_norm is None else scaled_to_norm(translated, self.output_norm)


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
    """The source feature as the one query token of a decoder over learnable memory tokens."""

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


def build_translator(
    config: MlpTranslatorConfig | LinearTranslatorConfig | TransformerTranslatorConfig,
    features: int,
    scale: float,
) -> Translator:
    """The translator that `config` describes, between features of width `features`."""
    if isinstance(config, LinearTranslatorConfig):
        return Translator(nn.Identity(), small_linear(features, features), scale, config.normalise_output)
    if isinstance(config, MlpTranslatorConfig):
        body = nn.Sequential(nn.Linear(features, config.hidden), nn.Tanh())
        return Translator(body, small_linear(config.hidden, features), scale, config.normalise_output)
    return Translator(
        MemoryDecoder(features, config), small_linear(config.width, features), scale, config.normalise_output
    )
