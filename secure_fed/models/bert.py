"""A BERT report encoder (transformers): from a small configuration, or from public weights at a local path.

From scratch it needs far more records than a hospital has under DP; start it from weights.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import BertModel

from secure_fed.data.vocabulary import vocabulary
from secure_fed.models.adapters import adapt, frozen_as_buffers
from secure_fed.models.bert_weights import PAD, BertWeights, bert_config, load_bert
from secure_fed.models.config import BertConfig
from secure_fed.models.encoders import Encoder, RawValues, called
from secure_fed.models.frozen import FrozenBackbone, FrozenEncoder, shared_backbone

CLS, SEP = 1, 2
_FIRST_WORD = 3
_WORD = re.compile(r"[a-z]+|[0-9]+|[.,;:]")


class BertEncoder(Encoder):
    """Tokens -> BERT -> the first token's last state -> linear. It trains all of it, or adapters and the linear."""

    def __init__(self, config: BertConfig, out_features: int, scale: float) -> None:
        super().__init__(out_features, scale)
        self.max_tokens = config.max_tokens
        if config.weights is None:
            self.tokenise: Callable[[str], list[int]] = HashedTokeniser(config.hash_buckets)
            self.bert = _new_bert(config, self.tokenise.size)
        else:
            loaded = load_bert(config)
            self.tokenise, self.notes = loaded.tokenise, loaded.notes
            self.bert = loaded.network(shared=config.train == "adapters")
        if config.train == "adapters":
            self.public_parameters = frozen_as_buffers(self.bert)
            adapt(self.bert, config.adapters)
            rank, alpha = config.adapters.rank, config.adapters.alpha
            self.notes += (f"frozen but for adapters of rank {rank} and alpha {alpha:g} beside query and value",)
        self.linear = nn.Linear(self.bert.config.hidden_size, out_features)

    def prepare(self, raw: RawValues) -> Tensor:
        """Object array of str [n] -> token ids int64 [n, max_tokens], padded with 0."""
        return _token_ids(raw, self.tokenise, self.max_tokens)

    def embed(self, prepared: Tensor) -> Tensor:
        """int64 [B, S] -> [B, F]."""
        return called(self.linear, _first_state(self.bert, prepared))


class FrozenBertEncoder(FrozenEncoder):
    """A linear layer on the first token's last state of a public BERT, which is computed once a record."""

    def __init__(self, config: BertConfig, out_features: int, scale: float) -> None:
        loaded = load_bert(config)
        name = f"bert/{config.max_tokens}/{loaded.sha256}"
        backbone = shared_backbone(name, lambda name: _frozen(loaded, config.max_tokens, name))
        super().__init__(backbone, out_features, scale)


def bert_encoder(config: BertConfig, out_features: int, scale: float) -> Encoder:
    """The encoder that `config.train` asks for."""
    encoder = FrozenBertEncoder if config.train == "head" else BertEncoder
    return encoder(config, out_features, scale)


class HashedTokeniser:
    """Words of the shipped vocabulary get their own id, every other word one of `buckets` by SHA-256."""

    def __init__(self, buckets: int) -> None:
        words = sorted({word for column in vocabulary() for word in _WORD.findall(column)})
        self._ids = {word: _FIRST_WORD + i for i, word in enumerate(words)}
        self._first_bucket = _FIRST_WORD + len(words)
        self._buckets = buckets
        self.size = self._first_bucket + buckets

    def __call__(self, text: str) -> list[int]:
        """[CLS], a token for each word, number or mark, [SEP]."""
        return [CLS, *(self._id(word) for word in _WORD.findall(text.lower())), SEP]

    def _id(self, word: str) -> int:
        known = self._ids.get(word)
        if known is None:
            digest = hashlib.sha256(word.encode()).digest()
            known = self._ids[word] = self._first_bucket + int.from_bytes(digest[:4], "big") % self._buckets
        return known


def _new_bert(config: BertConfig, vocab_size: int) -> BertModel:
    sizes = bert_config(
        vocab_size=vocab_size,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.hidden,
        max_position_embeddings=config.max_tokens,
        pad_token_id=PAD,
    )
    return BertModel(sizes, add_pooling_layer=False)


def _frozen(loaded: BertWeights, max_tokens: int, name: str) -> FrozenBackbone:
    bert = loaded.network(shared=True)

    def pooled(raw: RawValues) -> Tensor:
        return _first_state(bert, _token_ids(raw, loaded.tokenise, max_tokens))

    return FrozenBackbone(bert, pooled, bert.config.hidden_size, name, (*loaded.notes, "frozen"))


def _token_ids(raw: RawValues, tokenise: Callable[[str], list[int]], max_tokens: int) -> Tensor:
    """int64 [n, max_tokens], padded with 0; what is too long is cut and keeps its last token, the separator."""
    ids = torch.full((len(raw), max_tokens), PAD, dtype=torch.int64)
    for row, text in zip(ids, raw, strict=True):
        tokens = tokenise(str(text))
        if len(tokens) > max_tokens:
            tokens = [*tokens[: max_tokens - 1], tokens[-1]]
        row[: len(tokens)] = torch.tensor(tokens)
    return ids


def _first_state(bert: BertModel, tokens: Tensor) -> Tensor:
    """int64 [B, S] -> [B, hidden]."""
    # Explicit [B, S] positions and types: the defaults are [1, S], which has no per-record gradient.
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens).contiguous()
    states: Tensor = bert(
        input_ids=tokens,
        attention_mask=(tokens != PAD).long(),
        position_ids=positions,
        token_type_ids=torch.zeros_like(tokens),
    ).last_hidden_state
    return states[:, 0]
