"""One vector of a modality's mean feature: a model's part that is set from a statistic and never trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureMean(nn.Module):
    """The mean feature [F] of one modality; zeros, which is zero-filling, until it is set."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(features), requires_grad=False)

    def forward(self, like: Tensor) -> Tensor:
        """The mean in the place of each row of `like`: [B, F] -> [B, F]."""
        return self.value.expand_as(like)
