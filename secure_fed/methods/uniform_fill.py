"""Uniform-filling: a missing modality's feature is drawn at random, anew at each step and for each record.

A baseline of the FIN paper (arXiv 2505.20232): uniform numbers, scaled to the norm that the encoder gives its features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.methods.base import GradientPhase, Imputation, PublicContext
from secure_fed.methods.config import MethodConfig
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.models.batch import Batch
from secure_fed.models.encoders import scaled_to_norm
from secure_fed.models.multimodal import MultimodalModel


class UniformFillConfig(MethodConfig):
    """Options of uniform-filling: only the classifier's."""

    name: Literal["uniform_fill"]


class UniformFill(ZeroFill):
    """Absent features are uniform draws from [0, 1), scaled to the encoder's norm; all else is zero-filling's.

    `draw` gives the numbers for a feature [B, F]. Whoever scores a model seeds torch's generator first.
    """

    name: ClassVar[str] = "uniform_fill"

    def __init__(self, config: UniformFillConfig, draw: Callable[[Tensor], Tensor] = torch.rand_like) -> None:
        super().__init__(config)
        self.options = config
        self.draw = draw

    def classify_phase(self, schema: Schema, start: int, stop: int) -> GradientPhase:
        """Zero-filling's phase with this method's loss; without its draws every number is their mean."""
        still = UniformFill(self.options, draw=lambda feature: torch.full_like(feature, 0.5))
        return replace(super().classify_phase(schema, start, stop), still_loss=still.classification_loss)

    def impute(
        self,
        model: MultimodalModel,
        batch: Batch,
        features: Mapping[str, Tensor],
        context: PublicContext | None = None,
    ) -> dict[str, Imputation]:
        """A draw for each record and modality, [B, F] each; it knows nothing of the record."""
        return {
            name: Imputation(scaled_to_norm(self.draw(feature), model.encoder(name).scale))
            for name, feature in features.items()
        }
