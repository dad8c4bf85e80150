"""A report generator after R2Gen: from a film to the tokens of its report, by a decoder with a relational memory.

Chen, Song, Chang, Wan, "Generating Radiology Reports via Memory-driven Transformer", EMNLP 2020 (arXiv 2010.16056);
equations below are that paper's. Every trained layer is one whose per-record gradient is known when it is called
several times over the tokens of a report.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from secure_fed.data.report_tokens import BEGIN, END, PAD, UNKNOWN, report_ids, vocabulary_size
from secure_fed.models.beam_search import beam_search
from secure_fed.models.prepared import PreparedCache

_PREPARED = PreparedCache()
KeysValues = tuple[Tensor, Tensor]
"""Keys and values [B, heads, T, width / heads] each."""


class GeneratorConfig(BaseModel):
    """Sizes of a report generator. R2Gen: resnet101, d_model 512, 3 layers, 8 heads, feed-forward 512, 60 tokens.

    visual `features` looks at the image encoder's feature, as `visual_tokens` tokens; `resnet101` has an extractor
    of its own, over the patches of the image. `layers` are those of the encoder of visual tokens and of the decoder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    visual: Literal["features", "resnet101"] = "features"
    visual_tokens: PositiveInt = 4
    d_model: Annotated[int, Field(ge=2, multiple_of=2)] = 32
    layers: PositiveInt = 1
    heads: PositiveInt = 4
    feed_forward: PositiveInt = 64
    memory_slots: PositiveInt = 3
    beam: PositiveInt = 3
    max_tokens: PositiveInt = 32
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _sizes_fit(self) -> GeneratorConfig:
        if self.d_model % self.heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of heads={self.heads}")
        if self.memory_slots > self.d_model:
            raise ValueError(f"memory_slots={self.memory_slots} is more than d_model={self.d_model}")
        return self


class MultiHeadAttention(nn.Module):
    """Attention of plain linear layers; keys and values are made once and kept (Vaswani et al. 2017, 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def keys_values(self, memory: Tensor) -> KeysValues:
        """What [B, M, W] offers to those who attend to it."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def forward(self, x: Tensor, memory: KeysValues, mask: Tensor | None = None) -> Tensor:
        """x [B, T, W] attends to `memory`; `mask` is bool [T, M], True where it may look -> [B, T, W]."""
        keys, values = memory
        query = self._split(self.query(x))
        logits = query @ keys.transpose(-2, -1) / math.sqrt(query.shape[-1])
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        merged: Tensor = self.out((torch.softmax(logits, dim=-1) @ values).transpose(1, 2).reshape(x.shape))
        return merged

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU between them; its output begins at zero where it shall."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, from_zero: bool = False) -> None:
        last = nn.Linear(hidden, outputs)
        if from_zero:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        super().__init__(nn.Linear(inputs, hidden), nn.ReLU(), last)


class RelationalMemory(nn.Module):
    """What the report has said so far, as S slots of width W; it begins as the first S unit vectors."""

    def __init__(self, slots: int, width: int, heads: int) -> None:
        super().__init__()
        self.slots = slots
        self.width = width
        self.attention = MultiHeadAttention(width, heads)
        self.mlp = FeedForward(width, width, width)
        self.token_gates = nn.Linear(width, 2 * width)
        self.memory_gates = nn.Linear(width, 2 * width, bias=False)

    def start(self, records: int) -> Tensor:
        """M_0 [B, S, W]."""
        return torch.eye(self.slots, self.width).expand(records, -1, -1)

    def step(self, memory: Tensor, token: Tensor, token_gates: Tensor) -> Tensor:
        """M_t [B, S, W] from M_(t-1) and y_(t-1) [B, 1, W], with `token_gates` of the latter [B, 1, 2 W].

        Z attends from M_(t-1) to [M_(t-1); y_(t-1)] (eq. 5 and 6); M~ = MLP(Z + M) + Z + M (eq. 7); forget and
        input gates from token and tanh(M) (eq. 8 and 9); M_t = sigmoid(G_f) M_(t-1) + sigmoid(G_i) tanh(M~) (eq. 10).
        """
        looked: Tensor = memory + self.attention(memory, self.attention.keys_values(torch.cat([memory, token], dim=1)))
        proposed = self.mlp(looked) + looked
        forget, admit = (token_gates + self.memory_gates(torch.tanh(memory))).chunk(2, dim=-1)
        return torch.sigmoid(forget) * memory + torch.sigmoid(admit) * torch.tanh(proposed)

    def forward(self, tokens: Tensor) -> Tensor:
        """y_0 ... y_(T-1) [B, T, W] -> m_1 ... m_T [B, T, S * W], the slots beside each other."""
        gates = self.token_gates(tokens)
        memory, states = self.start(len(tokens)), []
        for t in range(tokens.shape[1]):
            memory = self.step(memory, tokens[:, t : t + 1], gates[:, t : t + 1])
            states.append(memory.flatten(start_dim=1))
        return torch.stack(states, dim=1)


class MemoryDrivenNorm(nn.Module):
    """Layer normalisation whose scale and shift the memory moves; it begins as a plain one."""

    def __init__(self, width: int, memory: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scale = FeedForward(memory, width, width, from_zero=True)
        self.shift = FeedForward(memory, width, width, from_zero=True)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x [B, T, W], memory [B, T, M] -> (gamma + MLP(m)) x^ + beta + MLP(m), eq. 11 to 15."""
        standard = F.layer_norm(x, x.shape[-1:], eps=self.norm.eps)
        moved: Tensor = self.norm(x) + self.scale(memory) * standard + self.shift(memory)
        return moved


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward over visual tokens, normalised before each."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width = config.d_model
        self.attention = MultiHeadAttention(width, config.heads)
        self.feed_forward = FeedForward(width, config.feed_forward, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M, W] -> [B, M, W]."""
        normed = self.norms[0](x)
        x = x + self.dropout(self.attention(normed, self.attention.keys_values(normed)))
        out: Tensor = x + self.dropout(self.feed_forward(self.norms[1](x)))
        return out


class DecoderLayer(nn.Module):
    """Self-attention, attention to the visual tokens, feed-forward, with a memory-driven norm before each."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        width = config.d_model
        self.self_attention = MultiHeadAttention(width, config.heads)
        self.visual_attention = MultiHeadAttention(width, config.heads)
        self.feed_forward = FeedForward(width, config.feed_forward, width)
        self.norms = nn.ModuleList(MemoryDrivenNorm(width, config.memory_slots * width) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, memory: Tensor, visual: KeysValues, past: KeysValues | None, mask: Tensor | None
    ) -> tuple[Tensor, KeysValues]:
        """x [B, T, W] after the tokens of `past` -> [B, T, W], and past and present for the tokens to come."""
        normed = self.norms[0](x, memory)
        keys, values = self.self_attention.keys_values(normed)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        x = x + self.dropout(self.self_attention(normed, (keys, values), mask))
        x = x + self.dropout(self.visual_attention(self.norms[1](x, memory), visual))
        x = x + self.dropout(self.feed_forward(self.norms[2](x, memory)))
        return x, (keys, values)


class FeatureTokens(nn.Module):
    """The image encoder's feature as a few tokens."""

    def __init__(self, features: int, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.linear = nn.Linear(features, tokens * width)

    def forward(self, feature: Tensor) -> Tensor:
        """float32 [B, F] -> [B, tokens, W]."""
        projected: Tensor = self.linear(feature)
        return projected.reshape(len(feature), self.tokens, -1)


class ReportGenerator(nn.Module):
    """From a film, or its feature, to the logits of the next token of its report; it writes by beam search.

    The output layer begins at zero, by which an untrained generator is told (`trained`).
    """

    def __init__(self, config: GeneratorConfig, features: int, text: str) -> None:
        super().__init__()
        self.config = config
        self.prepares = text
        width = config.d_model
        self.look = _visual_extractor(config, features)
        self.encoder = nn.Sequential(*(EncoderLayer(config) for _ in range(config.layers)), nn.LayerNorm(width))
        self.embedding = nn.Embedding(vocabulary_size(), width)
        self.memory = RelationalMemory(config.memory_slots, width, config.heads)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary_size())
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def prepare(self, raw: npt.NDArray[Any]) -> Tensor:
        """Reports (object array of str [n]) -> token ids int64 [n, max_tokens]; nothing but PAD for an absent one."""
        longest = self.config.max_tokens
        return _PREPARED.of(raw, lambda texts: torch.from_numpy(report_ids(texts, longest)), str(longest).encode())

    def forward(self, source: Tensor, tokens: Tensor) -> Tensor:
        """The logits [B, T, V] of what follows each of `tokens` (int64 [B, T]), given those before it.

        source: the image's feature [B, F], or with visual=resnet101 the image [B, 1 or 3, H, W].
        """
        visual = self.encoder(self.look(source))
        x = self._embedded(tokens, 0)
        memory = self.memory(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        for layer in self.layers():
            x, _ = layer(x, memory, layer.visual_attention.keys_values(visual), None, mask)
        logits: Tensor = self.out(self.norm(x))
        return logits

    def losses(self, source: Tensor, reports: Tensor) -> Tensor:
        """Negative log likelihood of each of `reports` (int64 [B, T], as `prepare` gives them) in nats: [B]."""
        before = F.pad(reports[:, :-1], (1, 0), value=BEGIN)
        logits = self(source, before).flatten(end_dim=1)
        each = F.cross_entropy(logits, reports.flatten(), ignore_index=PAD, reduction="none")
        return each.view_as(reports).sum(dim=1)

    def layers(self) -> list[DecoderLayer]:
        """The decoder's layers, from the tokens on."""
        return [layer for layer in self.decoder if isinstance(layer, DecoderLayer)]

    @property
    def trained(self) -> bool:
        """Whether the output layer has left zero: before that every token is as likely as any other."""
        return bool(self.out.weight.any()) or bool(self.out.bias.any())

    @torch.no_grad()
    def generate(self, source: Tensor, *, full_length: bool = False) -> Tensor:
        """The report of each source, int64 [B, max_tokens] with PAD after END, by beam search.

        full_length: END is never written, which is what a report costs at the most.
        """
        beam, longest = self.config.beam, self.config.max_tokens
        if not len(source):
            return torch.zeros(0, longest, dtype=torch.int64)
        writing = _Writing(self, self.encoder(self.look(source)), beam, full_length)
        return beam_search(writing, len(source), beam, longest, begin=BEGIN, end=END, pad=PAD)

    def _embedded(self, tokens: Tensor, first: int) -> Tensor:
        """Tokens [B, T] at the positions from `first` on -> [B, T, W]."""
        embedded: Tensor = self.embedding(tokens)
        return embedded + positions(first, tokens.shape[1], self.config.d_model)


class _Writing:
    """A generator in the midst of writing: memory, and the keys and values of all tokens so far, a row a sequence."""

    def __init__(self, generator: ReportGenerator, visual: Tensor, beam: int, full_length: bool) -> None:
        self._generator = generator
        self._memory = generator.memory.start(len(visual) * beam)
        self._visual: list[KeysValues] = []
        for layer in generator.layers():
            keys, values = layer.visual_attention.keys_values(visual)
            self._visual.append((keys.repeat_interleave(beam, dim=0), values.repeat_interleave(beam, dim=0)))
        self._past: list[KeysValues | None] = [None for _ in generator.layers()]
        self._length = 0
        self._banned = [PAD, BEGIN, UNKNOWN, *([END] if full_length else [])]

    def advance(self, tokens: Tensor) -> Tensor:
        """As `beam_search.Decoding`."""
        generator = self._generator
        x = generator._embedded(tokens.unsqueeze(1), self._length)
        self._memory = generator.memory.step(self._memory, x, generator.memory.token_gates(x))
        state = self._memory.flatten(start_dim=1).unsqueeze(1)
        for i, layer in enumerate(generator.layers()):
            x, self._past[i] = layer(x, state, self._visual[i], self._past[i], None)
        self._length += 1
        logits = generator.out(generator.norm(x)).squeeze(1)
        logits[:, self._banned] = -torch.inf
        return torch.log_softmax(logits, dim=1)

    def keep(self, rows: Tensor) -> None:
        """As `beam_search.Decoding`."""
        self._memory = self._memory[rows]
        self._visual = [(keys[rows], values[rows]) for keys, values in self._visual]
        self._past = [None if past is None else (past[0][rows], past[1][rows]) for past in self._past]


def positions(first: int, count: int, width: int) -> Tensor:
    """Sines and cosines [count, width] of the positions from `first` on (Vaswani et al. 2017, 3.5)."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(first, first + count).unsqueeze(1) * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(start_dim=1)


def _visual_extractor(config: GeneratorConfig, features: int) -> nn.Module:
    if config.visual == "features":
        return FeatureTokens(features, config.visual_tokens, config.d_model)
    # torchvision takes seconds to import: only those wait who use it.
    from secure_fed.models.patches import PatchTokens

    return PatchTokens(config.d_model)
