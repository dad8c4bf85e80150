"""FIN with a variance beside each imputed feature, and a gate that shrinks what is unsure (P-FIN, arXiv 2604.12970).

Its weighting of sites by how sure their imputations are is left out: those weights are statistics of private records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.errors import ConfigError
from secure_fed.methods.base import Imputation, Loss, Pair, PublicContext, has_both, translator_name
from secure_fed.methods.fin import Source, TranslatorMethod, TranslatorTraining, read, sources_of
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import MultimodalModel, PartMaker
from secure_fed.models.translators import GaussianTranslator, build_gaussian_translator, translator_parts


class FinUncertaintyConfig(TranslatorTraining):
    """Options of FIN with uncertainty: FIN's, but for the loss, which is a likelihood here."""

    name: Literal["fin_uncertainty"]


class FinUncertainty(TranslatorMethod):
    """FIN whose translators give a mean and a variance; sources count by their precision, and a gate shrinks the rest.

    From K present sources with means m_k and variances v_k, for each number of the feature apart:
        precision  P = sum_k 1 / v_k
        combined   m = sum_k m_k / v_k / P,  v = 1 / P        (inverse variance; sources' errors taken as independent)
        gate       g = sigmoid(log v0 - log v) = v0 / (v0 + v)
        imputed    g m, with variance v + (1 - g)^2 m^2
    v0 = scale^2 / F is what a number of a feature varies by about zero, for a feature's norm is fixed. So the gate is
    the weight of an observation m of noise v under the prior N(0, v0), and P-FIN's sigmoid with nothing in it to train.
    Where v grows without bound the imputation is zero-filling's zeros; at v = 0 it is the translation. The variance is
    the squared error to expect of g m where the feature is distributed as N(m, v).
    """

    name: ClassVar[str] = "fin_uncertainty"

    def check_model(self, config: ModelConfig) -> None:
        """A normalised output has one length, and the likelihood's mean must be free to shrink."""
        if config.translator.normalise_output:
            raise ConfigError(
                "model.translator.normalise_output=true gives every translation one length, and with "
                f"method={self.name} one that is unsure must be able to shrink; give normalise_output=false"
            )

    def parts(self, schema: Schema, pairs: Sequence[Pair], config: ModelConfig) -> dict[str, PartMaker]:
        """A translator with two heads for each pair, as wide as what it reads."""
        widths = self.widths(schema, pairs, config)
        return dict(translator_parts(config, pairs, widths, build_gaussian_translator))

    def translation_loss(self, pairs: Sequence[Pair]) -> Loss:
        """The negative log likelihood of every pair's real feature."""
        return lambda model, batch, _context: likelihood_loss(model, batch, pairs, self.source)

    def impute(
        self,
        model: MultimodalModel,
        batch: Batch,
        features: Mapping[str, Tensor],
        context: PublicContext | None = None,
    ) -> dict[str, Imputation]:
        """Gated means and their variances, [B, F] each; zeros and the prior's variance where no source is present."""
        imputed: dict[str, Imputation] = {}
        for target, value in features.items():
            precision, weighted = torch.zeros_like(value), torch.zeros_like(value)
            prior = 1.0
            for source in sources_of(model, target):
                translator = gaussian_translator(model, (source, target))
                mean, variance = translator.distribution(read(self.source, batch, features, source))
                there = batch.presence[source].to(value.dtype).unsqueeze(1)
                precision, weighted = precision + there / variance, weighted + there * mean / variance
                prior = translator.prior_variance
            imputed[target] = gated(precision, weighted, prior)
        return imputed


def gated(precision: Tensor, weighted: Tensor, prior_variance: float) -> Imputation:
    """The gated imputation of FinUncertainty's docstring from P and sum_k m_k / v_k, [B, F] each; P may be zero."""
    gate = prior_variance * precision / (1 + prior_variance * precision)
    mean = prior_variance * weighted / (1 + prior_variance * precision)
    none = precision == 0
    known = torch.where(none, torch.ones_like(precision), precision)
    variance = 1 / known + ((1 - gate) * weighted / known).square()
    return Imputation(mean, torch.where(none, torch.full_like(variance, prior_variance), variance))


def likelihood_loss(model: MultimodalModel, batch: Batch, pairs: Sequence[Pair], source: Source = "features") -> Tensor:
    """-log N(real | m, v) of each translation, summed over features and pairs: [B].

    ((real - m)^2 / v + log 2 pi v) / 2 for each number. Encoders are frozen: features carry no gradient. Records
    without both sides count zero.
    """
    with torch.no_grad():
        features = model.encode(batch)
    total = torch.zeros(len(batch))
    for of, to in pairs:
        mean, variance = gaussian_translator(model, (of, to)).distribution(read(source, batch, features, of))
        terms = (features[to] - mean).square() / variance + torch.log(2 * math.pi * variance)
        total = total + has_both(batch, (of, to)) * terms.sum(dim=1) / 2
    return total


def gaussian_translator(model: MultimodalModel, pair: Pair) -> GaussianTranslator:
    """The translator of a pair. Raises ConfigError where the model has none that gives a variance."""
    found = model.translator(*pair)
    if not isinstance(found, GaussianTranslator):
        raise ConfigError(f"{translator_name(pair)} gives no variance: build it with FinUncertainty.parts")
    return found
