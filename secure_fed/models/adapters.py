"""Low-rank adapters (LoRA; Hu et al. 2022, arXiv 2106.09685): a few trained numbers beside a public, frozen network.

Under DP the noise grows with the number of trained parameters; adapters keep it small (Yu et al. 2022, arXiv
2110.06500). The network's own weights become buffers: in no component, so neither noised nor uploaded.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import BertModel

from secure_fed.models.config import AdaptersConfig
from secure_fed.models.encoders import called

ADAPTED = ("query", "value")


class AdaptedLinear(nn.Module):
    """frozen(x) + alpha / rank * up(down(x)), equation 3 of the paper; `up` is zero at first, so it begins as `frozen`.

    `down` and `up` are plain linear layers, whose per-record gradients every back end knows.
    """

    def __init__(self, frozen: nn.Linear, config: AdaptersConfig) -> None:
        super().__init__()
        self.frozen = frozen
        self.scaling = config.alpha / config.rank
        self.down = nn.Linear(frozen.in_features, config.rank, bias=False)
        self.up = nn.Linear(config.rank, frozen.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=frozen.in_features**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, in_features] -> [B, S, out_features]."""
        return called(self.frozen, x) + self.scaling * called(self.up, called(self.down, x))

    def extra_repr(self) -> str:
        """The one number that no submodule shows: the preflight tells structures by their text."""
        return f"scaling={self.scaling:g}"


def frozen_as_buffers(network: nn.Module) -> int:
    """Make every parameter of `network` a buffer that no state is saved with; returns how many numbers they are.

    The tensors are kept, not copied: networks built on the same ones share their memory.
    """
    count = 0
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
            count += parameter.numel()
    return count


def adapt(bert: BertModel, config: AdaptersConfig) -> None:
    """Put adapters beside the query and value maps of every layer, the pair that the paper recommends (section 7.1)."""
    for layer in bert.encoder.layer:
        attention = layer.attention.self
        for name in ADAPTED:
            setattr(attention, name, AdaptedLinear(getattr(attention, name), config))
