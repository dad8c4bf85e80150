"""Image encoders by convolution: a small one, and torchvision's ResNets, trained by DP-SGD or kept as they are public.

Trained, they have group normalisation and no in-place operation: batch normalisation couples the records of a batch
and keeps un-noised statistics. Frozen, the public checkpoint's batch norms are constants and stay.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from secure_fed.models.config import ResNetConfig
from secure_fed.models.encoders import Encoder, RawValues, called
from secure_fed.models.frozen import FrozenBackbone, FrozenEncoder, shared_backbone
from secure_fed.models.group_norm import COUNTER, STATISTICS, group_norm, with_group_norms
from secure_fed.models.pinning import image_files
from secure_fed.models.weights import Weights, read_weights, require_fit

# The grey mean and deviation of ImageNet, for networks without weights.
_GREY_MEAN, _GREY_STD = 0.449, 0.226
# What torchvision's weights were trained on: ImageNet's red, green and blue.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LAST = "fc."


class SmallCnnEncoder(Encoder):
    """Three strided 3 x 3 convolutions, pooled to 2 x 2, then a linear layer; images of at least 8 x 8."""

    keeps_pixels: ClassVar[bool] = True

    def __init__(self, channels: int, out_features: int, scale: float) -> None:
        super().__init__(out_features, scale)
        widths = (1, channels, 2 * channels, 4 * channels)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1),
                group_norm(after, largest_group_count=4),
                nn.ReLU(),
            ]
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.linear = nn.Linear(4 * widths[-1], out_features)

    def prepare(self, raw: RawValues) -> Tensor:
        """float32 [n, 1, H, W] in [0, 1] -> float32 [n, 1, H, W], roughly standardised."""
        return (_pixels(raw) - _GREY_MEAN) / _GREY_STD

    def embed(self, prepared: Tensor) -> Tensor:
        """float32 [B, 1, H, W] -> [B, F]."""
        return called(self.linear, called(self.convolutions, prepared))


class ResNetEncoder(Encoder):
    """torchvision's ResNet with group normalisation, all of it trained, and its last layer to the feature width."""

    keeps_pixels: ClassVar[bool] = True

    def __init__(self, config: ResNetConfig, out_features: int, scale: float) -> None:
        super().__init__(out_features, scale)
        self.side = config.side
        if config.weights is None:
            self.resnet = _resnet(config.name, group_norm)
        else:
            weights = read_weights(image_files(config), config.weights_sha256)
            self.resnet, self.notes = _converted(weights, config.name)
        self.resnet.fc = nn.Linear(self.resnet.fc.in_features, out_features)

    def prepare(self, raw: RawValues) -> Tensor:
        """float32 [n, 1, H, W] in [0, 1] -> the same as a tensor."""
        return _pixels(raw)

    def embed(self, prepared: Tensor) -> Tensor:
        """float32 [B, 1, H, W] -> [B, F]."""
        return called(self.resnet, _coloured(prepared, self.side))


class FrozenResNetEncoder(FrozenEncoder):
    """A linear layer on the pooled features of a public ResNet, which is computed once a record and never changes."""

    def __init__(self, config: ResNetConfig, out_features: int, scale: float) -> None:
        weights = read_weights(image_files(config), config.weights_sha256)
        name = f"{config.name}/{config.side}/{weights.sha256}"
        backbone = shared_backbone(name, lambda name: _frozen(weights, config, name))
        super().__init__(backbone, out_features, scale)


def resnet_encoder(config: ResNetConfig, out_features: int, scale: float) -> Encoder:
    """The encoder that `config.train` asks for."""
    encoder = FrozenResNetEncoder if config.train == "head" else ResNetEncoder
    return encoder(config, out_features, scale)


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


def _resnet(name: str, norm: Callable[[int], nn.Module]) -> ResNet:
    block, depths = _RESNETS[name]
    resnet = ResNet(block, list(depths), norm_layer=norm)
    for module in resnet.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return resnet


def _converted(weights: Weights, name: str) -> tuple[ResNet, tuple[str, ...]]:
    """A group-normalised network from a batch-normalised state, or from one that was saved with group norms."""
    with torch.device("meta"):
        resnet = _resnet(name, group_norm)
    state, notes = _without_last(weights, name), tuple[str, ...]()
    if any(key.endswith(STATISTICS) for key in state):
        _require_names(weights, state, name, FrozenBatchNorm2d)
        state, conversion = with_group_norms(state, resnet)
        notes = conversion.notes()
    else:
        _require_names(weights, state, name, group_norm)
    resnet.load_state_dict({key: value.float().clone() for key, value in state.items()}, strict=False, assign=True)
    return resnet, _described(weights, notes)


def _frozen(weights: Weights, config: ResNetConfig, name: str) -> FrozenBackbone:
    """The network exactly as the checkpoint has it: a frozen batch norm is an affine map with public constants."""
    state = _without_last(weights, config.name)
    if not any(key.endswith(STATISTICS) for key in state):
        _require_names(weights, state, config.name, group_norm)
        raise weights.wrong(
            "has no running means and variances, so its batch norms cannot be kept as they are: train=head takes "
            f"torchvision's own {config.name} state"
        )
    _require_names(weights, state, config.name, FrozenBatchNorm2d)
    with torch.device("meta"):
        resnet = _resnet(config.name, FrozenBatchNorm2d)
    width = resnet.fc.in_features
    resnet.fc = nn.Identity()
    resnet.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    notes = _described(weights, ("frozen: batch norms keep the checkpoint's statistics as public constants",))
    return FrozenBackbone(
        resnet, lambda image: called(resnet, _coloured(_pixels(image), config.side)), width, name, notes
    )


def _without_last(weights: Weights, name: str) -> dict[str, Tensor]:
    return {
        key: value for key, value in weights.tensors.items() if not key.startswith(_LAST) and not key.endswith(COUNTER)
    }


def _require_names(weights: Weights, state: dict[str, Tensor], name: str, norm: Callable[[int], nn.Module]) -> None:
    with torch.device("meta"):
        wanted = _resnet(name, norm).state_dict()
    body = {key: value for key, value in wanted.items() if not key.startswith(_LAST)}
    require_fit(weights, state, body, f"torchvision's {name}")


def _described(weights: Weights, notes: tuple[str, ...]) -> tuple[str, ...]:
    dropped = sorted(key for key in weights.tensors if key.startswith(_LAST))
    last = (f"left out: {' and '.join(dropped)} (the classes that it was trained on)",) if dropped else ()
    return (f"weights {weights.files.given.name}, SHA-256 {weights.sha256}", *notes, *last)


def _pixels(raw: RawValues) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32))


def _coloured(grey: Tensor, side: int | None) -> Tensor:
    """[B, 1, H, W] in [0, 1] -> [B, 3, side, side], standardised as torchvision's weights expect it.

    Made anew for each batch: kept, it would take three times the memory, and at 224 x 224 fifty times that of 64 x 64.
    """
    if side is not None and grey.shape[-2:] != (side, side):
        grey = F.interpolate(grey, size=(side, side), mode="bilinear", antialias=True)
    mean, std = (grey.new_tensor(values).view(1, 3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (grey - mean) / std
