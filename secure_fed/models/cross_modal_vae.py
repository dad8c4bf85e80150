"""A variational autoencoder between two modalities' features: the source is encoded, the target decoded.

After cross-modal VAEs (Spurr et al., CVPR 2018): q(z | source) is a posterior like any other for log p(target).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from secure_fed.models.encoders import small_linear

_DRAWS = 8
_LOG_VARIANCE = 4.0
"""Log variances of the latent stay within this of zero, whatever noise the weights have borne."""
_SEED = 1312


class CrossModalVae(nn.Module):
    """Source feature [B, F] -> q(z | source) = N(mean, diag(variance)), z [B, Z] -> target feature [B, F].

    Linear layers and tanh alone, each called once a pass. The decoder ends at zero: untrained it is zero-filling.
    """

    def __init__(self, features: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), small_linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Tanh())
        self.last = nn.Linear(hidden, features)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        half = torch.randn(_DRAWS // 2, latent, generator=torch.Generator().manual_seed(_SEED))
        # In opposite pairs, so that their mean is the posterior's; constants, so in no component.
        self.register_buffer("draws", torch.cat([half, -half]), persistent=False)

    def posterior(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | source), float32 [B, Z] each."""
        mean, raw = self.encoder(source).chunk(2, dim=1)
        return mean, _LOG_VARIANCE * torch.tanh(raw / _LOG_VARIANCE)

    def decode(self, z: Tensor) -> Tensor:
        """Latent float32 [..., Z] -> mean of p(target | z), float32 [..., F]."""
        decoded: Tensor = self.last(self.decoder(z))
        return decoded

    def imputed(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over a few fixed draws of the latent, float32 [B, F] each; no random numbers."""
        mean, log_variance = self.posterior(source)
        fixed = cast(Tensor, self.draws)
        z = mean.unsqueeze(1) + torch.exp(log_variance / 2).unsqueeze(1) * fixed
        decoded = self.decode(z)
        return decoded.mean(dim=1), decoded.var(dim=1, unbiased=False)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag(variance)) || N(0, 1)) of each row, nats: float32 [B, Z] x 2 -> [B].

    Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
