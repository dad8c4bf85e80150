"""VAE: a missing modality's feature is decoded from a latent that a present one's feature is encoded to.

A variational autoencoder in feature space for each ordered pair, trained and owned as FIN's translators are, so that
the two differ in nothing but what is between the features. (A product of experts over one autoencoder a modality would
need fewer parts, but sites with one modality would pull its latent away from the others'.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.methods.base import Imputation, Pair, Phase, PublicContext, has_both
from secure_fed.methods.config import MethodConfig, PhaseConfig, Schedule, turns
from secure_fed.methods.fin import TranslatorImputation
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.cross_modal_vae import CrossModalVae, divergence
from secure_fed.models.multimodal import MultimodalModel, PartMaker

Draw = Callable[[Tensor], Tensor]
"""Standard normal numbers in the shape and type of a tensor."""


class VaeConfig(MethodConfig):
    """Options of the autoencoders; schedule and share as FIN has them.

    `latent`, `hidden`: widths. `beta`: weight of the divergence beside the squared error, which is twice the variance
    of the decoder's Gaussian: about that of one feature given the source, or less. A larger one empties the latent.
    """

    name: Literal["vae"]
    autoencode: PhaseConfig
    schedule: Schedule
    vae_share: float = Field(gt=0, lt=1)
    latent: int = Field(ge=1)
    hidden: int = Field(ge=1)
    beta: float = Field(gt=0)


class Vae(TranslatorImputation):
    """FIN with variational autoencoders in the place of translators."""

    name: ClassVar[str] = "vae"

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        self.options = config

    def parts(self, schema: Schema, pairs: Sequence[Pair], config: ModelConfig) -> dict[str, PartMaker]:
        """An autoencoder for each pair."""
        make = partial(CrossModalVae, config.feature_width, self.options.hidden, self.options.latent)
        return dict.fromkeys(map(vae_name, pairs), make)

    def phases(self, schema: Schema, pairs: Sequence[Pair], rounds: int, width: int) -> tuple[Phase, ...]:
        """The classifier's phase and the autoencoders', in the order that the schedule gives."""
        stop, start = turns(rounds, self.options.schedule, self.options.vae_share, "autoencoders")
        loss = partial(negative_elbo, pairs=pairs, beta=self.options.beta)
        still = partial(loss, draw=torch.zeros_like)
        names = tuple(map(vae_name, pairs))
        autoencode = self.options.autoencode.phase("autoencode", names, loss, start, rounds, still)
        return (self.classify_phase(schema, 0, stop), autoencode)

    def impute(
        self,
        model: MultimodalModel,
        batch: Batch,
        features: Mapping[str, Tensor],
        context: PublicContext | None = None,
    ) -> dict[str, Imputation]:
        """Mean and variance of the equal mixture of what the present sources say, [B, F] each; zeros without a source.

        A source's variance is the spread of its fixed latent draws and the decoder's own variance.
        """
        return {target: self._imputed(model, batch, features, target) for target in features}

    def _imputed(self, model: MultimodalModel, batch: Batch, features: Mapping[str, Tensor], target: str) -> Imputation:
        total = torch.zeros_like(features[target])
        squares = torch.zeros_like(total)
        sources = torch.zeros(len(total), 1)
        for source, feature in features.items():
            if source != target and vae_name((source, target)) in model.part_names():
                present = batch.presence[source].to(total.dtype).unsqueeze(1)
                mean, variance = vae_of(model, (source, target)).imputed(feature)
                total = total + present * mean
                squares = squares + present * (variance + self.options.beta / 2 + mean.square())
                sources = sources + present
        count = sources.clamp(min=1.0)
        mean = total / count
        return Imputation(mean, (squares / count - mean.square()).clamp(min=0.0))


def negative_elbo(
    model: MultimodalModel,
    batch: Batch,
    _context: PublicContext | None,
    pairs: Sequence[Pair],
    beta: float,
    draw: Draw = torch.randn_like,
) -> Tensor:
    """beta times the negative evidence lower bound of each target given its source, summed over pairs: [B].

    |target - decode(z)|^2 + beta KL(q(z | source) || N(0, 1)) with one z ~ q(z | source) for each record and pair, but
    for a constant: a Gaussian decoder of variance beta / 2 (Kingma & Welling 2014, equation 10). Encoders are frozen.
    Records without both sides count zero.
    """
    with torch.no_grad():
        features = model.encode(batch)
    loss = torch.zeros(len(batch))
    for source, target in pairs:
        vae = vae_of(model, (source, target))
        mean, log_variance = vae.posterior(features[source])
        decoded = vae.decode(mean + torch.exp(log_variance / 2) * draw(mean))
        error = (decoded - features[target]).square().sum(dim=1)
        loss = loss + has_both(batch, (source, target)) * (error + beta * divergence(mean, log_variance))
    return loss


def vae_name(pair: Pair) -> str:
    """The component name of a pair's autoencoder."""
    return f"vae.{pair[0]}_to_{pair[1]}"


def vae_of(model: MultimodalModel, pair: Pair) -> CrossModalVae:
    """The autoencoder of a pair. Raises ConfigError where the model has none."""
    return model.part(vae_name(pair), CrossModalVae)
