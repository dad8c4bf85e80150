"""A BERT report encoder (transformers): from a small configuration, or from public weights at a local path.

From scratch it needs far more records than a hospital has under DP; start it from weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertModel, BertTokenizer

from secure_fed.data.vocabulary import vocabulary
from secure_fed.errors import ConfigError
from secure_fed.models.config import BertConfig
from secure_fed.models.encoders import Encoder, RawValues

PAD, CLS, SEP = 0, 1, 2
_FIRST_WORD = 3
_WORD = re.compile(r"[a-z]+|[0-9]+|[.,;:]")
_HEADS = ("cls.", "bert.pooler.", "pooler.", "classifier.")


class BertEncoder(Encoder):
    """Tokens -> BERT -> the first token's last state -> linear."""

    def __init__(self, config: BertConfig, out_features: int, scale: float) -> None:
        super().__init__(out_features, scale)
        self.max_tokens = config.max_tokens
        if config.weights is None:
            self.tokenise: Callable[[str], list[int]] = HashedTokeniser(config.hash_buckets)
            self.bert = _new_bert(
                vocab_size=self.tokenise.size,
                hidden_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=4 * config.hidden,
                max_position_embeddings=config.max_tokens,
                pad_token_id=PAD,
            )
        else:
            self.bert, self.tokenise = _load_bert(config.weights, config.max_tokens)
        self.linear = nn.Linear(self.bert.config.hidden_size, out_features)

    def prepare(self, raw: RawValues) -> Tensor:
        """Object array of str [n] -> token ids int64 [n, max_tokens], padded with 0."""
        ids = torch.full((len(raw), self.max_tokens), PAD, dtype=torch.int64)
        for row, text in zip(ids, raw, strict=True):
            tokens = self.tokenise(str(text))
            if len(tokens) > self.max_tokens:
                tokens = [*tokens[: self.max_tokens - 1], tokens[-1]]
            row[: len(tokens)] = torch.tensor(tokens)
        return ids

    def embed(self, prepared: Tensor) -> Tensor:
        """int64 [B, S] -> [B, F]."""
        # Explicit [B, S] positions and types: the defaults are [1, S], which has no per-record gradient.
        positions = torch.arange(prepared.shape[1], device=prepared.device).expand_as(prepared).contiguous()
        states = self.bert(
            input_ids=prepared,
            attention_mask=(prepared != PAD).long(),
            position_ids=positions,
            token_type_ids=torch.zeros_like(prepared),
        ).last_hidden_state
        result: Tensor = self.linear(states[:, 0])
        return result


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


def _new_bert(**sizes: int) -> BertModel:
    # No dropout: its noise would stand beside that of DP-SGD and help nothing at this size.
    config = transformers.BertConfig(
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager", **sizes
    )
    return BertModel(config, add_pooling_layer=False)


def _load_bert(folder: Path, max_tokens: int) -> tuple[BertModel, Callable[[str], list[int]]]:
    """BERT and its tokeniser from a local folder. Raises ConfigError naming the file that is wrong."""
    for name in ("config.json", "model.safetensors", "vocab.txt"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"model.text.weights={folder}: {name} is missing: give a local folder with config.json, "
                "model.safetensors and vocab.txt, or null"
            )
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"model.text.weights={folder}: unreadable ({error}): fetch the folder again") from error
    keys = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
        "max_position_embeddings", "type_vocab_size", "pad_token_id",
    )  # fmt: skip
    bert = _new_bert(**{key: int(settings[key]) for key in keys if key in settings})
    if bert.config.max_position_embeddings < max_tokens:
        raise ConfigError(
            f"model.text.max_tokens={max_tokens}: the weights at {folder} know "
            f"{bert.config.max_position_embeddings} positions: lower max_tokens"
        )
    given = {
        key.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight").replace(
            "LayerNorm.beta", "LayerNorm.bias"
        ): value
        for key, value in tensors.items()
        if not key.startswith(_HEADS) and not key.endswith("position_ids")
    }  # fmt: skip
    wanted = bert.state_dict()
    wrong = sorted(set(given) ^ set(wanted)) or sorted(key for key in given if given[key].shape != wanted[key].shape)
    if wrong:
        raise ConfigError(
            f"model.text.weights={folder}: model.safetensors does not fit its config.json, first at {wrong[0]!r}: "
            "fetch the folder again"
        )
    bert.load_state_dict(given)
    wordpiece = BertTokenizer(vocab=str(folder / "vocab.txt"))

    def tokenise(text: str) -> list[int]:
        return [int(token) for token in wordpiece(text)["input_ids"]]

    if wordpiece.pad_token_id != PAD:
        raise ConfigError(f"model.text.weights={folder}: [PAD] is not the first line of vocab.txt")
    return bert, tokenise
