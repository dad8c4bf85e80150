"""Convolutional image encoders that DP-SGD can train: group normalisation, no in-place operation, no buffers.

Batch normalisation couples the records of a batch and keeps un-noised statistics, so none is used.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from secure_fed.errors import ConfigError
from secure_fed.models.encoders import Encoder, RawValues, called

# The grey mean and deviation of ImageNet, the public data that local weights are usually trained on.
_GREY_MEAN, _GREY_STD = 0.449, 0.226
_IGNORED = ("fc.", "running_mean", "running_var", "num_batches_tracked")


class SmallCnnEncoder(Encoder):
    """Three strided 3 x 3 convolutions, pooled to 2 x 2, then a linear layer; images of at least 8 x 8."""

    def __init__(self, channels: int, out_features: int, scale: float) -> None:
        super().__init__(out_features, scale)
        widths = (1, channels, 2 * channels, 4 * channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1),
                _group_norm(after, largest_group_count=4),
                nn.ReLU(),
            ]
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.linear = nn.Linear(4 * widths[-1], out_features)

    def prepare(self, raw: RawValues) -> Tensor:
        """float32 [n, 1, H, W] in [0, 1] -> float32 [n, 1, H, W], roughly standardised."""
        return _standardised(raw)

    def embed(self, prepared: Tensor) -> Tensor:
        """float32 [B, 1, H, W] -> [B, F]."""
        return called(self.linear, called(self.convolutions, prepared))


class ResNetEncoder(Encoder):
    """torchvision's ResNet with group normalisation, and its last layer to the feature width."""

    def __init__(self, name: str, weights: Path | None, out_features: int, scale: float) -> None:
        super().__init__(out_features, scale)
        block, depths = _RESNETS[name]
        self.resnet = ResNet(block, list(depths), norm_layer=partial(_group_norm, largest_group_count=32))
        for module in self.resnet.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        if weights is not None:
            _load_resnet(self.resnet, weights, name)
        self.resnet.fc = nn.Linear(self.resnet.fc.in_features, out_features)

    def prepare(self, raw: RawValues) -> Tensor:
        """float32 [n, 1, H, W] in [0, 1] -> float32 [n, 3, H, W]; the three channels share their memory."""
        return _standardised(raw).expand(-1, 3, -1, -1)

    def embed(self, prepared: Tensor) -> Tensor:
        """float32 [B, 3, H, W] -> [B, F]."""
        return called(self.resnet, prepared)


class OutOfPlaceBasicBlock(BasicBlock):  # type: ignore[misc]  # torchvision is untyped
    """BasicBlock whose residual is added out of place: hooks keep the summands for per-record gradients."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + identity)


class OutOfPlaceBottleneck(Bottleneck):  # type: ignore[misc]  # torchvision is untyped
    """Bottleneck whose residual is added out of place."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', h', w']."""
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + identity)


_RESNETS = {
    "resnet18": (OutOfPlaceBasicBlock, (2, 2, 2, 2)),
    "resnet50": (OutOfPlaceBottleneck, (3, 4, 6, 3)),
}


def _group_norm(channels: int, largest_group_count: int) -> nn.GroupNorm:
    return nn.GroupNorm(int(np.gcd(largest_group_count, channels)), channels)


def _standardised(raw: RawValues) -> Tensor:
    return (torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32)) - _GREY_MEAN) / _GREY_STD


def _load_resnet(resnet: ResNet, path: Path, name: str) -> None:
    """Load public weights; a batch-normalised checkpoint gives its scales and shifts to the group norms."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"model.image.weights={path}: not a readable safetensors file ({error}): give the path of a "
            f"local torchvision {name} state saved with safetensors, or null"
        ) from error
    given = {key: value for key, value in tensors.items() if not any(part in key for part in _IGNORED)}
    wanted = {key: value for key, value in resnet.state_dict().items() if not key.startswith("fc.")}
    wrong = sorted(set(given) ^ set(wanted)) or sorted(key for key in given if given[key].shape != wanted[key].shape)
    if wrong:
        raise ConfigError(
            f"model.image.weights={path}: does not fit {name}, first at {wrong[0]!r}: give weights of that very model"
        )
    resnet.load_state_dict(given, strict=False)
