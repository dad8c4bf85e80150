"""From batch to group normalisation: what of a public checkpoint can be kept, and what is said about it.

Batch normalisation couples the records of a batch and keeps un-noised statistics; DP-SGD cannot train it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

GROUPS = 32
_MOST = 10.0
STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Conversion:
    """What was made of a batch-normalised state: how many norms, and in how many groups each channel count lies."""

    norms: int
    groups: Mapping[int, int]

    def notes(self) -> tuple[str, ...]:
        """Sentences for people."""
        sizes = ", ".join(f"{channels} in {groups}" for channels, groups in sorted(self.groups.items()))
        return (
            f"{self.norms} batch norms became group norms (channels in groups: {sizes})",
            f"running means and variances are folded into scale and shift, then dropped with {COUNTER}: each record's "
            "own statistics take their place, so outputs are near the checkpoint's, not equal to them",
        )


def group_norm(channels: int, largest_group_count: int = GROUPS) -> nn.GroupNorm:
    """Group normalisation of `channels` in the most groups that divide both it and `largest_group_count`."""
    return nn.GroupNorm(math.gcd(largest_group_count, channels), channels)


def folded(scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift, float32 [C], with which `norm` does what the batch norm of these statistics, [C] each, did.

    The batch norm gives scale (x - mean_c) / sqrt(var_c + eps) + shift. A group norm subtracts m and divides by
    sqrt(v + eps), a record's own over all channels of a group. The statistics say what to expect of those: m the
    average of mean_c, v that of var_c + mean_c^2, less m^2. With scale' = scale r, r = sqrt((v + eps) / (var_c + eps)),
    and shift' = shift - scale' (mean_c - m) / sqrt(v + eps), a record whose statistics are just these gets the batch
    norm's output; keeping scale and shift as they are would mistake a channel's deviation for its group's.
    r is cut at 10: a channel that never varied would be blown up for every record unlike the expected one.
    """
    scale, shift, mean, variance = (tensor.double() for tensor in (scale, shift, mean, variance))
    by_group = (norm.num_groups, -1)
    m = mean.view(by_group).mean(dim=1, keepdim=True)
    v = (variance + mean.square()).view(by_group).mean(dim=1, keepdim=True) - m.square()
    deviation = (v + norm.eps).sqrt()
    ratio = (deviation / (variance.view(by_group) + norm.eps).sqrt()).clamp(max=_MOST)
    new_scale = scale.view(by_group) * ratio
    new_shift = shift.view(by_group) - new_scale * (mean.view(by_group) - m) / deviation
    return new_scale.flatten().float(), new_shift.flatten().float()


def with_group_norms(state: Mapping[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], Conversion]:
    """The state of `network`, whose norms are group norms, from `state` of the same network with batch norms.

    Raises KeyError where `state` lacks a tensor of a norm: it is checked beforehand.
    """
    converted = {name: value for name, value in state.items() if not name.endswith(STATISTICS)}
    groups: dict[int, int] = {}
    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)]
    for name, norm in norms:
        weight, bias = f"{name}.weight", f"{name}.bias"
        mean, variance = (state[f"{name}.{statistic}"] for statistic in STATISTICS)
        converted[weight], converted[bias] = folded(state[weight], state[bias], mean, variance, norm)
        groups[norm.num_channels] = norm.num_groups
    return converted, Conversion(len(norms), groups)
