"""FIN: feature imputation by translators between modalities (arXiv 2505.20232).

A site with several modalities trains translators on frozen encoders; every site imputes with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.errors import ConfigError
from secure_fed.methods.base import (
    Artifact,
    GradientPhase,
    Imputation,
    Pair,
    Phase,
    shared_pairs,
    translator_name,
)
from secure_fed.methods.config import MethodConfig, PhaseConfig
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel


class FinConfig(MethodConfig):
    """Options of FIN.

    schedule `last` trains the translators in the last `translator_share` of the rounds, on encoders that no
    longer move: encoders trained after their translators make these stale. `every_round` is the paper's order:
    classification, then translators, in each round.
    """

    name: Literal["fin"]
    translate: PhaseConfig
    schedule: Literal["last", "every_round"]
    translator_share: float = Field(gt=0, lt=1)


class TranslatorImputation(ZeroFill):
    """Imputes an absent feature as the mean of what the translators from the present ones say."""

    def pairs(self, schema: Schema, owned: Sequence[frozenset[str]]) -> tuple[Pair, ...]:
        """Every ordered pair that some site owns together; at least one is needed."""
        pairs = shared_pairs(schema, owned)
        if not pairs:
            raise ConfigError(
                f"method={self.name} needs a site that owns two modalities, and federation.ownership gives "
                f"none of the {len(owned)} sites more than one; use method=zero_fill, or let some sites own both"
            )
        return pairs

    def impute(
        self,
        model: MultimodalModel,
        features: Mapping[str, Tensor],
        presence: Mapping[str, Tensor],
        context: Artifact | None = None,
    ) -> dict[str, Imputation]:
        """Mean over the present sources' translations, [B, F] each; zeros where no source is present."""
        components = model.components()
        imputed: dict[str, Imputation] = {}
        for target, value in features.items():
            total = torch.zeros_like(value)
            sources = torch.zeros(len(value), 1, dtype=value.dtype)
            for source, feature in features.items():
                if source != target and translator_name((source, target)) in components:
                    weight = presence[source].to(value.dtype).unsqueeze(1)
                    total = total + weight * model.translate(source, target, feature)
                    sources = sources + weight
            imputed[target] = Imputation(total / sources.clamp(min=1.0))
        return imputed


class Fin(TranslatorImputation):
    """FIN with translators trained by gradient descent on the squared error in feature space."""

    name: ClassVar[str] = "fin"

    def __init__(self, config: FinConfig) -> None:
        super().__init__(config)
        self.options = config

    def phases(self, schema: Schema, pairs: Sequence[Pair], rounds: int, width: int) -> tuple[Phase, ...]:
        """The classifier's phase and the translators' phase, in the order that the schedule gives."""
        if self.options.schedule == "every_round":
            classify_stop, translate_start = rounds, 0
        else:
            if rounds < 2:
                raise ConfigError(
                    f"federation.rounds={rounds} leaves method.schedule=last no round for both classifier and "
                    "translators; give at least 2 rounds or method.schedule=every_round"
                )
            translator_rounds = min(rounds - 1, max(1, round(rounds * self.options.translator_share)))
            classify_stop = translate_start = rounds - translator_rounds

        translate = GradientPhase(
            name="translate",
            components=tuple(translator_name(pair) for pair in pairs),
            loss=lambda model, batch: translation_loss(model, batch, pairs),
            steps=self.options.translate.steps,
            learning_rate=self.options.translate.learning_rate,
            unclipped_steps=self.options.translate.unclipped_steps,
            unclipped_learning_rate=self.options.translate.unclipped_learning_rate,
            start=translate_start,
            stop=rounds,
        )
        return (self.classify_phase(schema, 0, classify_stop), translate)


def translation_loss(model: MultimodalModel, batch: Batch, pairs: Sequence[Pair]) -> Tensor:
    """Squared error of each translation against the real feature, summed over features and pairs: [B].

    MSE(I -> T) + MSE(T -> I) of FIN, summed over features rather than averaged so that the gradients stand
    above the noise. Encoders are frozen: features carry no gradient. Records without both sides count zero.
    """
    with torch.no_grad():
        features = model.encode(batch)
    loss = torch.zeros(len(batch))
    for source, target in pairs:
        paired = (batch.presence[source] & batch.presence[target]).to(loss.dtype)
        error = model.translate(source, target, features[source]) - features[target]
        loss = loss + paired * error.square().sum(dim=1)
    return loss
