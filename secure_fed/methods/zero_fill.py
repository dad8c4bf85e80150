"""Zero-filling: a missing modality's feature is zeros, in training and at test.

The baseline of the FIN paper (arXiv 2505.20232), and the strongest simple one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.methods.base import (
    GradientPhase,
    Method,
    Pair,
    Phase,
    PublicContext,
    classifier_components,
    masked_bce,
)
from secure_fed.methods.config import MethodConfig
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel


class ZeroFillConfig(MethodConfig):
    """Options of zero-filling: only the classifier's."""

    name: Literal["zero_fill"]


class ZeroFill(Method):
    """Absent features are zeros; one phase trains encoders and fusion in every round."""

    name: ClassVar[str] = "zero_fill"

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def classify_phase(self, schema: Schema, start: int, stop: int) -> GradientPhase:
        """The phase that trains encoders and fusion in the schedule's steps [start, stop)."""
        components = classifier_components(schema)
        return self.config.classify.phase("classify", components, self.classification_loss, start, stop)

    def classification_loss(self, model: MultimodalModel, batch: Batch, context: PublicContext | None) -> Tensor:
        """Binary cross entropy of the filled-in record, [B]."""
        return masked_bce(self.logits(model, batch, context), batch.labels, batch.label_mask)

    def phases(self, schema: Schema, pairs: Sequence[Pair], rounds: int, width: int) -> tuple[Phase, ...]:
        """Encoders and fusion, in every round."""
        return (self.classify_phase(schema, 0, rounds),)
