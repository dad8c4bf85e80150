"""The patches of an image as tokens: a ResNet-101's last map, as R2Gen's visual extractor gives it (arXiv 2010.16056).

From scratch, with group normalisation: batch normalisation would couple records.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import ResNet

from secure_fed.models.convolutional import OutOfPlaceBottleneck
from secure_fed.models.group_norm import group_norm

CHANNELS = 2048
"""Of the last map."""


class PatchTokens(nn.Module):
    """An image's patches: 49 tokens for a film of 224 x 224."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnet = ResNet(OutOfPlaceBottleneck, [3, 4, 23, 3], norm_layer=group_norm)
        del self.resnet.fc, self.resnet.avgpool
        for module in self.resnet.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        self.linear = nn.Linear(CHANNELS, width)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [B, 1 or 3, H, W] of any scale -> [B, ceil(H / 32) * ceil(W / 32), width], row by row."""
        resnet = self.resnet
        x = F.layer_norm(image, image.shape[1:]).expand(-1, 3, -1, -1)
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
        for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
            x = stage(x)
        return torch.relu(self.linear(x.flatten(start_dim=2).transpose(1, 2)))
