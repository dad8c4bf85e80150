"""CAR-MFL: a record without a modality borrows that of a public record that is like it (Poudel et al., MICCAI 2024).

The coordinator holds a public paired set and shows it to every site. A site looks for neighbours among its features,
and in training takes the one whose labels are most like the record's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from secure_fed.errors import ConfigError
from secure_fed.methods.base import Imputation, PublicContext
from secure_fed.methods.config import MethodConfig
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel

_LABELS, _KNOWN = "labels", "label_mask"


class CarMflConfig(MethodConfig):
    """Options of CAR-MFL: how many public records count as neighbours."""

    name: Literal["car_mfl"]
    neighbours: int = Field(ge=1)


class CarMfl(ZeroFill):
    """Absent features are borrowed from the public set, whose features are those of the model that a round begins from.

    A record's own labels choose among its neighbours at its own site, in training only. Where it has none, and so
    wherever a model is scored, the mean of the neighbours' features is borrowed: without labels to choose by, the
    nearest alone is one draw where the mean is the expectation.
    """

    name: ClassVar[str] = "car_mfl"
    needs_public_set: ClassVar[bool] = True

    def __init__(self, config: CarMflConfig) -> None:
        super().__init__(config)
        self.options = config

    def public_context(self, model: MultimodalModel, public: Batch) -> PublicContext:
        """Features [P, F] of every modality, labels and which of them are known [P, L]."""
        features = {_feature(name): value for name, value in model.encode(public).items()}
        return PublicContext({**features, _LABELS: public.labels, _KNOWN: public.label_mask})

    def impute(
        self,
        model: MultimodalModel,
        batch: Batch,
        features: Mapping[str, Tensor],
        context: PublicContext | None = None,
    ) -> dict[str, Imputation]:
        """Borrowed features, [B, F] each, constants without a gradient; raises ConfigError without a context.

        A record's neighbours depend on that record and the context alone.
        """
        if context is None:
            raise ConfigError(
                f"method={self.name} borrows from a public set and was called without its context: compute it with "
                "public_context from that set and the model"
            )
        return {target: Imputation(self._borrowed(batch, features, context, target)) for target in features}

    def _borrowed(self, batch: Batch, features: Mapping[str, Tensor], context: PublicContext, target: str) -> Tensor:
        borrowed = torch.zeros_like(features[target])
        lacking = ~batch.presence[target]
        if not lacking.any():
            return borrowed
        with torch.no_grad():
            sources = {name: value[lacking] for name, value in features.items() if name != target}
            presence = {name: batch.presence[name][lacking] for name in sources}
            labels, known = batch.labels[lacking], batch.label_mask[lacking]
            distance = distances(presence, sources, context)
            near = nearest(distance, self.options.neighbours)
            public = context.tensors[_feature(target)]
            mean = near.to(public.dtype) @ public / near.sum(dim=1, keepdim=True)
            likeness = label_jaccard(labels, known, context)
            chosen = public[most_like(likeness, distance, near)]
            labelled = (known > 0).any(dim=1, keepdim=True)
            borrowed[lacking] = torch.where(labelled, chosen, mean)
        return borrowed


def distances(presence: Mapping[str, Tensor], sources: Mapping[str, Tensor], context: PublicContext) -> Tensor:
    """Squared distance of each record to each public one, averaged over the sources that it has: [B, P].

    Zero to all where it has none. Term by term and not by a matrix product, whose last bits depend on the company that
    a record is in: two public records that are equal must be equally far.
    """
    total = torch.zeros(())
    count = torch.zeros(())
    for name, feature in sources.items():
        present = presence[name].to(feature.dtype).unsqueeze(1)
        apart = torch.cdist(feature, context.tensors[_feature(name)], compute_mode="donot_use_mm_for_euclid_dist")
        total = total + present * apart.square()
        count = count + present
    return total / count.clamp(min=1.0)


def nearest(distance: Tensor, count: int) -> Tensor:
    """Which public records are a record's `count` nearest, with all that are as near as the last: bool [B, P]."""
    bound = distance.kthvalue(min(count, distance.shape[1]), dim=1, keepdim=True).values
    return distance <= bound


def label_jaccard(labels: Tensor, known: Tensor, context: PublicContext) -> Tensor:
    """Shared positive labels over all positive ones, of each record [B, L] with each public one: [B, P] in [0, 1].

    Labels that either does not know are left out; two records without a positive label are alike: 1.
    """
    theirs, told = context.tensors[_LABELS], context.tensors[_KNOWN]
    own, other = labels * known, theirs * told
    both = own @ other.T
    either = own @ told.T + known @ other.T - both
    return torch.where(either > 0, both / either.clamp(min=1.0), 1.0)


def most_like(likeness: Tensor, distance: Tensor, near: Tensor) -> Tensor:
    """Of each record's neighbours the one of greatest likeness, of these the nearest, of these the first: int64 [B]."""
    best = torch.where(near, likeness, -1.0)
    alike = near & (best == best.amax(dim=1, keepdim=True))
    return torch.where(alike, distance, torch.inf).argmin(dim=1)


def _feature(modality: str) -> str:
    return f"feature.{modality}"
