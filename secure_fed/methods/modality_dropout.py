"""Zero-filling with modalities dropped at random in training, so that the classifier learns to do without.

Simple and strong: where every site has both modalities it beats imputation on the real data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.methods.base import GradientPhase, PublicContext, masked_bce
from secure_fed.methods.config import MethodConfig
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel


class ModalityDropoutConfig(MethodConfig):
    """Options of modality dropout: the probability with which a present modality is hidden in a step."""

    name: Literal["modality_dropout"]
    probability: float = Field(gt=0, lt=1)


class ModalityDropout(ZeroFill):
    """Zero-filling whose training hides each present modality with a fixed probability, never all of them."""

    name: ClassVar[str] = "modality_dropout"

    def __init__(self, config: ModalityDropoutConfig) -> None:
        super().__init__(config)
        self.probability = config.probability

    def classify_phase(self, schema: Schema, start: int, stop: int) -> GradientPhase:
        """Zero-filling's phase with this method's loss; without its draws it is zero-filling's."""
        return replace(super().classify_phase(schema, start, stop), still_loss=super().classification_loss)

    def classification_loss(self, model: MultimodalModel, batch: Batch, context: PublicContext | None) -> Tensor:
        """Binary cross entropy of the record with modalities hidden at random, [B].

        Each record's draw is its own, so records stay uncoupled and clipping bounds each one's influence.
        """
        hidden = replace(batch, presence=hide_some(batch.presence, self.probability))
        return masked_bce(self.logits(model, hidden, context), batch.labels, batch.label_mask)


def hide_some(presence: Mapping[str, Tensor], probability: float) -> dict[str, Tensor]:
    """`presence` (modality -> bool [B]) with each present modality hidden with `probability`, never all of a record's.

    A record that would lose everything keeps what it has: an empty record teaches only the prevalence.
    """
    present = torch.stack(list(presence.values()), dim=1)
    kept = present & (torch.rand(present.shape) >= probability)
    kept = torch.where(kept.any(dim=1, keepdim=True), kept, present)
    return {name: kept[:, column] for column, name in enumerate(presence)}
