"""Checkpoints as public ones lie on disk, with random numbers in them: torchvision's ResNets, BERT's folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

IMAGENET_MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
IMAGENET_STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "small", "effusion", "##s", "no", "or", "edema", "with"]


def resnet_state(name: str = "resnet18", seed: int = 0) -> dict[str, Tensor]:
    """torchvision's own state, its batch norms away from their initial values."""
    network = random_resnet(name, seed)
    return {key: value.contiguous() for key, value in network.state_dict().items()}


def random_resnet(name: str = "resnet18", seed: int = 0) -> nn.Module:
    """torchvision's network in evaluation mode, its batch norms with the statistics of made-up grey images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = getattr(torchvision.models, name)(weights=None)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics of the last batch
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
        with torch.no_grad():
            network.train()((torch.rand(8, 1, 64, 64) - IMAGENET_MEAN) / IMAGENET_STD)
    return network.eval()


def bert_folder(
    folder: Path,
    *,
    layers: int = 2,
    hidden: int = 16,
    heads: int = 2,
    positions: int = 16,
    vocabulary: int = len(WORDS),
    pickled: bool = False,
) -> Path:
    """A folder as public BERT weights come: keys with a prefix, a pooler and a head that are not wanted."""
    settings = {
        "model_type": "bert", "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": 4 * hidden, "max_position_embeddings": positions,
        "pad_token_id": 0,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.BertConfig(**settings, initializer_range=0.3 if hidden < 100 else 0.02)
        state = transformers.BertForMaskedLM(config).state_dict() | {
            f"bert.pooler.{name}": value for name, value in nn.Linear(hidden, hidden).state_dict().items()
        }
    state = {name: value.clone() for name, value in state.items()}
    if pickled:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return folder
