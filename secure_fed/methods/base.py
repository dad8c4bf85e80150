"""What a method is: phases that train something, and a way to fill in a missing modality's feature.

A method knows neither privacy nor the network; sites and server ask it for phases and imputations.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import MultimodalModel, PartMaker
from secure_fed.models.translators import translator_parts

Pair = tuple[str, str]
"""An ordered pair of modalities: the source of an imputation, and what it imputes."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PublicContext:
    """What a method made of the public set with the model that a round begins from.

    The coordinator and every site compute it alike; it holds nothing of a site's records.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)


Loss = Callable[[MultimodalModel, Batch, PublicContext | None], Tensor]
"""(model, B records, public context) -> one value a record [B], or for a statistic one row [B, P]."""


def in_context(loss: Loss, context: PublicContext | None) -> Callable[[MultimodalModel, Batch], Tensor]:
    """`loss` for one round, whose public context is fixed."""
    return lambda model, batch: loss(model, batch, context)


@dataclass(frozen=True)
class GradientPhase:
    """Train `components` by gradient steps in the schedule's steps [start, stop).

    `loss` gives one value a record [B], without coupling records: the per-record gradient, and with it the
    sensitivity, would be meaningless otherwise. `steps` is the number of optimizer steps in one round;
    the `unclipped_` values are for privacy=off.
    `still_loss` is the loss without its random draws, where it has any: a site's preflight compares calls.
    `noise` is its noise multiplier over that of other phases, where `privacy.budget_shares` does not say otherwise.
    """

    name: str
    components: tuple[str, ...]
    loss: Loss
    steps: int
    learning_rate: float
    unclipped_steps: int
    unclipped_learning_rate: float
    start: int
    stop: int
    still_loss: Loss | None = None
    noise: float = 1.0

    @property
    def rounds(self) -> int:
        """How many rounds of the schedule run this phase."""
        return self.stop - self.start

    def runs_at(self, step: int) -> bool:
        """Whether it runs at a step of the schedule."""
        return self.start <= step < self.stop

    def uploads(self) -> tuple[str, ...]:
        """Names of the slices that a site uploads for this phase."""
        return self.components


@dataclass(frozen=True)
class StatisticPhase:
    """Release one bounded, noised sum over records, from which the server solves `components`.

    `map` gives [B, size] values a record, clipped to L2 norm `bound` before they are summed; `solve` takes
    the model and the noised mean over all contributing sites' declared counts, divided by `bound` ([size],
    float64), and sets the components. It must not depend on that positive scale.
    It runs at each step in `at`, and sees the model that the round began from. `noise` is its noise multiplier over
    that of a gradient phase, where `privacy.budget_shares` does not say otherwise: a sum that bears more noise may
    leave more of the budget to the rest.
    """

    name: str
    components: tuple[str, ...]
    map: Loss
    solve: Callable[[MultimodalModel, FloatArray], None]
    size: int
    bound: float
    at: tuple[int, ...]
    noise: float = 1.0

    @property
    def rounds(self) -> int:
        """How many rounds of the schedule run this phase."""
        return len(self.at)

    def runs_at(self, step: int) -> bool:
        """Whether it runs at a step of the schedule."""
        return step in self.at

    @property
    def slice_name(self) -> str:
        """The statistic's own slice in the vector; the solved component itself is never uploaded."""
        return f"statistic.{self.name}"

    def uploads(self) -> tuple[str, ...]:
        """Names of the slices that a site uploads for this phase."""
        return (self.slice_name,)


@dataclass(frozen=True)
class HistogramPhase:
    """Release bounded, noised counts over a site's held-out records; nothing is trained or solved from them.

    `cells` gives, for one of `slices`, the cells that each record touches: int64 [B, groups], at most one of `width`
    in each group, -1 where it touches none. It sees the model that the round began from, at each step in `at`.
    """

    name: str
    slices: tuple[str, ...]
    cells: Callable[[MultimodalModel, str, Batch, PublicContext | None], Tensor]
    groups: int
    width: int
    at: tuple[int, ...]

    @property
    def rounds(self) -> int:
        """How many rounds of the schedule run this phase."""
        return len(self.at)

    @property
    def size(self) -> int:
        """Counts in one slice."""
        return self.groups * self.width

    def runs_at(self, step: int) -> bool:
        """Whether it runs at a step of the schedule."""
        return step in self.at

    def uploads(self) -> tuple[str, ...]:
        """Names of the slices; a site uploads those that it owns."""
        return self.slices


Phase = GradientPhase | StatisticPhase | HistogramPhase


@dataclass(frozen=True)
class Imputation:
    """An imputed feature [B, F] and, where the method has one, its variance [B, F]."""

    mean: Tensor
    variance: Tensor | None = None


class Method(ABC):
    """Base of all methods; every hook but `phases` has a safe default that does nothing.

    `needs_public_set`: it works with records that the coordinator holds and may show to everybody.
    `ideal`: an upper reference, for which simulated sites get every modality whatever `federation.ownership` says.
    """

    name: ClassVar[str]
    needs_public_set: ClassVar[bool] = False
    ideal: ClassVar[bool] = False

    def pairs(self, schema: Schema, owned: Sequence[frozenset[str]]) -> tuple[Pair, ...]:
        """Ordered pairs that the method imputes along, given what each site owns; none by default."""
        return ()

    def check_model(self, config: ModelConfig) -> None:  # noqa: B027 - a hook that may do nothing
        """Raise ConfigError where this method cannot work with the configured model; all work by default."""

    def parts(self, schema: Schema, pairs: Sequence[Pair], config: ModelConfig) -> dict[str, PartMaker]:
        """Component -> maker of its module, for all that the model has beside encoders and fusion.

        By default a translator for each pair, as `model.translator` describes it. A component is named
        `kind.modality` or `kind.source_to_target`: sites that own all modalities in the name contribute to it.
        """
        return dict(translator_parts(config, pairs))

    def contributes(self, component: str, owned: frozenset[str], schema: Schema) -> bool:
        """Whether a site that owns `owned` trains a component or gives to a statistic: where it `owns` it."""
        return owns(component, owned)

    @abstractmethod
    def phases(self, schema: Schema, pairs: Sequence[Pair], rounds: int, width: int) -> tuple[Phase, ...]:
        """The phases of a run of `rounds` scheduled rounds, in the order in which a round runs them.

        `width` is the number of features F of every encoder, which a statistic's size depends on.
        """

    def public_context(self, model: MultimodalModel, public: Batch) -> PublicContext | None:
        """What the method makes of the public set with the model that a round begins from; nothing by default."""
        return None

    def complete_inputs(self, model: MultimodalModel, batch: Batch, context: PublicContext | None) -> Batch:
        """Fill in what is missing inside a modality (CondI); the identity by default."""
        return batch

    def impute(
        self,
        model: MultimodalModel,
        batch: Batch,
        features: Mapping[str, Tensor],
        context: PublicContext | None = None,
    ) -> dict[str, Imputation]:
        """Features for absent modalities, from the present ones; zeros by default.

        features: modality -> [B, F], zeros where `batch.presence` says that it is absent. The batch has labels in
        training only: `Batch.unlabelled` blanks them wherever a record is scored.
        """
        return {name: Imputation(torch.zeros_like(value)) for name, value in features.items()}

    def fill(
        self,
        model: MultimodalModel,
        batch: Batch,
        features: Mapping[str, Tensor],
        context: PublicContext | None = None,
    ) -> dict[str, Tensor]:
        """Keep each observed feature and put the imputation in the place of each absent one; [B, F] each.

        Where nothing is absent nothing is imputed: a complete record costs no more than under zero-filling.
        """
        if all(bool(present.all()) for present in batch.presence.values()):
            return dict(features)
        imputed = self.impute(model, batch, features, context)
        return {
            name: torch.where(batch.presence[name].unsqueeze(1), value, imputed[name].mean)
            for name, value in features.items()
        }

    def logits(self, model: MultimodalModel, batch: Batch, context: PublicContext | None = None) -> Tensor:
        """Logits [B, L] with everything missing filled in: the one forward pass of training and inference."""
        batch = self.complete_inputs(model, batch, context)
        return model.classify(self.fill(model, batch, model.encode(batch), context))


def masked_bce(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy, summed over a record's known labels: [B, L] x 3 -> [B].

    Summed, not averaged: clipping sets the scale, and small gradients would drown in the noise.
    """
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (loss * mask).sum(dim=1)


def has_both(batch: Batch, pair: Pair) -> Tensor:
    """1 for a record with both modalities of a pair, else 0: float32 [B]."""
    return (batch.presence[pair[0]] & batch.presence[pair[1]]).to(torch.float32)


def component_modalities(component: str) -> frozenset[str]:
    """The modalities that a site must own to contribute to a component or statistic.

    `encoder.image` needs image, `translator.image_to_text`, `statistic.image_to_text` and `evaluation.image+text` need
    both, `fusion` needs none: whatever the kind before the dot. Modality names contain neither `_to_` nor `+` (the
    schema refuses them), so the name is unambiguous.
    """
    _, _, rest = component.partition(".")
    return frozenset(re.split(r"_to_|\+", rest)) if rest else frozenset()


def owns(component: str, owned: frozenset[str]) -> bool:
    """Whether a site with the modalities `owned` contributes to a component."""
    return bool(owned) and component_modalities(component) <= owned


def shared_pairs(schema: Schema, owned: Sequence[frozenset[str]]) -> tuple[Pair, ...]:
    """Every ordered pair of modalities that at least one site owns together, in the schema's order."""
    names = schema.names
    return tuple(
        (source, target)
        for source in names
        for target in names
        if source != target and any({source, target} <= modalities for modalities in owned)
    )


def translator_name(pair: Pair) -> str:
    """The component name of a pair's translator."""
    return f"translator.{pair[0]}_to_{pair[1]}"


def classifier_components(schema: Schema) -> tuple[str, ...]:
    """Encoders of every modality and the fusion head."""
    return (*(f"encoder.{name}" for name in schema.names), "fusion")
