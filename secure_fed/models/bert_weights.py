"""Public BERT weights from a local folder: the network and its word pieces, or what is wrong with the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import BertModel, BertTokenizer

from secure_fed.models.config import BertConfig
from secure_fed.models.pinning import CONFIG, TOKENIZER, VOCABULARY, text_files
from secure_fed.models.weights import Weights, read_weights, require_fit

PAD = 0
_LEFT_OUT = ("cls.", "pooler.", "classifier.")
_BEFORE_2020 = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "pad_token_id",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class BertWeights:
    """A checkpoint that was found to fit: its configuration, tensors by our names (shared), tokeniser and notes."""

    config: transformers.BertConfig
    state: Mapping[str, Tensor]
    tokenise: Callable[[str], list[int]]
    sha256: str
    notes: tuple[str, ...]

    def network(self, shared: bool) -> BertModel:
        """The network with these weights: the tensors themselves where they are `shared`, else a copy to train."""
        bert = _skeleton(self.config)
        state = dict(self.state) if shared else {name: value.clone() for name, value in self.state.items()}
        bert.load_state_dict(state, assign=True)
        for module in bert.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                if buffer.is_meta:  # positions and types, which every call of ours gives
                    delattr(module, name)
                    module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype), persistent=False)
        return bert


def bert_config(**settings: object) -> transformers.BertConfig:
    """BERT's configuration without dropout: its noise would stand beside that of DP-SGD and help nothing."""
    return transformers.BertConfig(
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager", **settings
    )


def load_bert(config: BertConfig) -> BertWeights:
    """The checkpoint at `config.weights`, read once in a process. Raises ConfigError naming the file that is wrong."""
    weights = read_weights(text_files(config), config.weights_sha256)
    found = _loaded(weights)
    positions = found.config.max_position_embeddings
    if positions < config.max_tokens:
        raise weights.wrong(
            f"knows {positions} positions, fewer than model.text.max_tokens={config.max_tokens}: lower that"
        )
    if config.name == "bert_base":
        sizes = (found.config.num_hidden_layers, found.config.hidden_size, found.config.num_attention_heads)
        wanted = (config.layers, config.hidden, config.heads)
        if sizes != wanted:
            raise weights.wrong(
                f"found {_sizes(sizes)}, expected {config.name}, {_sizes(wanted)}: give bert-base's folder, or "
                "model/text=bert_small, which takes any size from the folder"
            )
    return found


@lru_cache(maxsize=2)
def _loaded(weights: Weights) -> BertWeights:
    config = _configuration(weights)
    state = {_renamed(name): value.float() for name, value in weights.tensors.items() if _is_kept(name)}
    require_fit(weights, state, _skeleton(config).state_dict(), f"the BERT of its {CONFIG}")
    left_out = sorted({_renamed(name).split(".")[0] for name in weights.tensors if not _is_kept(name)})
    notes = (
        f"weights {weights.files.given.name}, SHA-256 {weights.sha256}",
        *((f"left out: {' and '.join(left_out)} (what it was trained for)",) if left_out else ()),
    )
    return BertWeights(config, state, _word_pieces(weights, config), weights.sha256, notes)


def _configuration(weights: Weights) -> transformers.BertConfig:
    try:
        settings = json.loads(weights.others[CONFIG])
        sizes = {key: int(settings[key]) for key in _SIZES if key in settings}
        if settings.get("model_type", "bert") != "bert":
            raise weights.wrong(
                f"{CONFIG} describes a {settings['model_type']!r}, expected 'bert': give BERT's weights"
            )
        positions = settings.get("position_embedding_type", "absolute")
        if positions != "absolute":
            raise weights.wrong(f"{CONFIG} has position_embedding_type={positions!r}, expected 'absolute'")
        return bert_config(
            **sizes,
            hidden_act=str(settings.get("hidden_act", "gelu")),
            layer_norm_eps=float(settings.get("layer_norm_eps", 1e-12)),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise weights.wrong(f"{CONFIG} cannot be read ({error}): copy the folder again") from error


def _word_pieces(weights: Weights, config: transformers.BertConfig) -> Callable[[str], list[int]]:
    path = Path(weights.files.folder, VOCABULARY)
    lines = weights.others[VOCABULARY].decode("utf-8", errors="replace").splitlines()
    lines = [line.strip() for line in lines]
    special = ("[UNK]", "[CLS]", "[SEP]")
    if lines[: PAD + 1] != ["[PAD]"] or not set(special) <= set(lines):
        raise weights.wrong(
            f"{VOCABULARY}: expected [PAD] in its first line, and {', '.join(special)}: give BERT's own"
        )
    if len(lines) > config.vocab_size:
        raise weights.wrong(
            f"{VOCABULARY} has {len(lines)} word pieces and {CONFIG} vocab_size={config.vocab_size}: they belong to "
            "different models"
        )
    try:
        lower = bool(json.loads(weights.others.get(TOKENIZER, b"{}")).get("do_lower_case", True))
    except (ValueError, AttributeError) as error:
        raise weights.wrong(f"{TOKENIZER} cannot be read ({error}): copy the folder again") from error
    wordpiece = BertTokenizer(vocab=str(path), do_lower_case=lower)

    def tokenise(text: str) -> list[int]:
        return [int(token) for token in wordpiece(text)["input_ids"]]

    return tokenise


def _skeleton(config: transformers.BertConfig) -> BertModel:
    with torch.device("meta"):  # weights drawn at random take seconds, and none of them would stay
        return BertModel(config, add_pooling_layer=False)


def _renamed(name: str) -> str:
    name = name.removeprefix("bert.")
    for before, now in _BEFORE_2020:
        name = name.replace(before, now)
    return name


def _is_kept(name: str) -> bool:
    return not name.removeprefix("bert.").startswith(_LEFT_OUT) and not name.endswith("position_ids")


def _sizes(sizes: tuple[int, int, int]) -> str:
    return f"{sizes[0]} layers of {sizes[1]} with {sizes[2]} heads"
