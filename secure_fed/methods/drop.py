"""Drop: whoever lacks a modality stays out of training; the lower reference.

What the other methods gain, they gain from the sites and records that this one leaves aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.errors import ConfigError
from secure_fed.methods.base import Pair, PublicContext
from secure_fed.methods.config import MethodConfig
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel


class DropConfig(MethodConfig):
    """Options of drop: only the classifier's."""

    name: Literal["drop"]


class Drop(ZeroFill):
    """Zero-filling at test; sites without every modality train nothing, records without it teach nothing."""

    name: ClassVar[str] = "drop"

    def pairs(self, schema: Schema, owned: Sequence[frozenset[str]]) -> tuple[Pair, ...]:
        """None; raises ConfigError where no site owns every modality, since then nobody would train."""
        if not any(modalities >= set(schema.names) for modalities in owned):
            raise ConfigError(
                f"method={self.name} trains at sites that own {', '.join(schema.names)} together, and "
                f"federation.ownership gives none of the {len(owned)} sites all of them; use method=zero_fill, or let "
                "some sites own all"
            )
        return ()

    def contributes(self, component: str, owned: frozenset[str], schema: Schema) -> bool:
        """Whether a site owns every modality, whatever the component."""
        return owned >= set(schema.names)

    def classification_loss(self, model: MultimodalModel, batch: Batch, context: PublicContext | None) -> Tensor:
        """Binary cross entropy of a complete record, zero of any other, [B]."""
        complete = torch.stack(list(batch.presence.values()), dim=1).all(dim=1)
        return complete * super().classification_loss(model, batch, context)
