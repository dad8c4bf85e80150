"""FIN: feature imputation by translators between modalities (arXiv 2505.20232).

A site with several modalities trains translators on frozen encoders; every site imputes with them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from secure_fed.data.records import ModalitySpec, Schema
from secure_fed.data.vocabulary import vocabulary
from secure_fed.errors import ConfigError
from secure_fed.methods.base import (
    GradientPhase,
    Imputation,
    Loss,
    Pair,
    Phase,
    PublicContext,
    has_both,
    masked_bce,
    shared_pairs,
    translator_name,
)
from secure_fed.methods.config import MethodConfig, PhaseConfig, Schedule, turns
from secure_fed.methods.modality_dropout import hide_some
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.models.batch import Batch
from secure_fed.models.config import FilterbankConfig, ModelConfig, NgramsConfig, TabularConfig
from secure_fed.models.encoders import scaled_to_norm
from secure_fed.models.filterbank import filterbank_width
from secure_fed.models.multimodal import FUSION, MultimodalModel, PartMaker
from secure_fed.models.translators import translator_parts

Source = Literal["features", "inputs"]
"""What a translator reads: the source encoder's feature, or what that encoder reads itself."""


TranslationError = Literal["mse", "logits", "cosine", "labels"]
"""What a translation is held against: the real feature, what the head makes of it, its direction, or the labels."""


class TranslatorTraining(MethodConfig):
    """How translators are trained, and what the classifier sees of it.

    schedule `last` trains them in the last `translator_share` of the rounds, on encoders that no longer move: encoders
    trained after their translators make these stale. `every_round` is the paper's order: classification, then
    translators, in each round.
    source `inputs` feeds them what the source's encoder reads, where that is a flat row of numbers: they then find
    what this encoder has thrown away, at the price of wider layers, which bear more noise.
    train_with_modality_dropout: the probability with which the classifier's training hides a present modality, so that
    a head which has learned from paired records alone has also met their imputations (or zeros, while there are none).
    refit_share: of the rounds, at the very end, in which the fusion head alone goes on training, on real and imputed
    features, because under `last` it has never seen the latter.
    """

    translate: PhaseConfig
    schedule: Schedule
    translator_share: float = Field(gt=0, lt=1)
    source: Source = "features"
    train_with_modality_dropout: float = Field(default=0.0, ge=0, lt=1)
    refit_share: float = Field(default=0.0, ge=0, lt=1)


class FinConfig(TranslatorTraining):
    """Options of FIN.

    loss `mse` is the paper's, the squared error, summed over features. `logits` is the squared error of what the
    fusion head makes of a translation: under noise it pays to spend the few steps on what the classifier looks at.
    `labels` is the cross entropy of the frozen head with the translation in the real feature's place. A head that has
    met zeros there already counts the present modality for the absent one; a faithful translation counts it twice, and
    this loss alone sees it. What it learns is what the head lacks, not a likeness of the feature.
    `cosine` leaves a translation's length open; features have one length, so with a normalised output it is `mse`.
    """

    name: Literal["fin"]
    loss: TranslationError = "mse"


class TranslatorImputation(ZeroFill):
    """Imputes an absent feature as the mean of what the translators from the present ones say."""

    source: Source = "features"

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
        batch: Batch,
        features: Mapping[str, Tensor],
        context: PublicContext | None = None,
    ) -> dict[str, Imputation]:
        """Mean over the present sources' translations, [B, F] each; zeros where no source is present."""
        imputed: dict[str, Imputation] = {}
        for target, value in features.items():
            total = torch.zeros_like(value)
            sources = torch.zeros(len(value), 1, dtype=value.dtype)
            for source in sources_of(model, target):
                weight = batch.presence[source].to(value.dtype).unsqueeze(1)
                total = total + weight * model.translate(source, target, read(self.source, batch, features, source))
                sources = sources + weight
            imputed[target] = Imputation(total / sources.clamp(min=1.0))
        return imputed


class TranslatorMethod(TranslatorImputation):
    """A classifier and translators, each trained by gradient steps in its turn; subclasses say by which loss."""

    def __init__(self, config: TranslatorTraining) -> None:
        super().__init__(config)
        self.training = config
        self.source = config.source

    @abstractmethod
    def translation_loss(self, pairs: Sequence[Pair]) -> Loss:
        """The loss that the translators of `pairs` are trained by, one value a record."""

    def parts(self, schema: Schema, pairs: Sequence[Pair], config: ModelConfig) -> dict[str, PartMaker]:
        """A translator for each pair, as wide as what it reads."""
        return dict(translator_parts(config, pairs, self.widths(schema, pairs, config)))

    def widths(self, schema: Schema, pairs: Sequence[Pair], config: ModelConfig) -> dict[str, int] | None:
        """Source -> how many numbers the translators from it read; None where these are its feature's."""
        return input_widths(schema, config, pairs) if self.source == "inputs" else None

    def phases(self, schema: Schema, pairs: Sequence[Pair], rounds: int, width: int) -> tuple[Phase, ...]:
        """The classifier's phase and the translators', in the order that the schedule gives, then the refit if any."""
        options = self.training
        refit_rounds = min(max(1, round(rounds * options.refit_share)), rounds) if options.refit_share else 0
        if refit_rounds and rounds - refit_rounds < 2:
            raise ConfigError(
                f"federation.rounds={rounds} with method.refit_share={options.refit_share:g} leaves no round for both "
                "classifier and translators; give more rounds or method.refit_share=0"
            )
        stop = rounds - refit_rounds
        classify_stop, start = turns(stop, options.schedule, options.translator_share, "translators")
        translators = tuple(translator_name(pair) for pair in pairs)
        phases: tuple[Phase, ...] = (
            self.classify_phase(schema, 0, classify_stop),
            options.translate.phase("translate", translators, self.translation_loss(pairs), start, stop),
        )
        if not refit_rounds:
            return phases
        refit = options.classify.phase(
            "refit", (FUSION,), self.classification_loss, stop, rounds, self.still_classification_loss
        )
        return (*phases, refit)

    def classify_phase(self, schema: Schema, start: int, stop: int) -> GradientPhase:
        """Zero-filling's phase with this method's loss."""
        return replace(super().classify_phase(schema, start, stop), still_loss=self.still_classification_loss)

    def classification_loss(self, model: MultimodalModel, batch: Batch, context: PublicContext | None) -> Tensor:
        """Binary cross entropy of the filled-in record, [B], with modalities hidden at random where the options say so.

        Each record's draw is its own, so records stay uncoupled and clipping bounds each one's influence.
        """
        if self.training.train_with_modality_dropout:
            presence = hide_some(batch.presence, self.training.train_with_modality_dropout)
            batch = replace(batch, presence=presence)
        return self.still_classification_loss(model, batch, context)

    def still_classification_loss(self, model: MultimodalModel, batch: Batch, context: PublicContext | None) -> Tensor:
        """`classification_loss` without its random draws, [B]."""
        return masked_bce(self.logits(model, batch, context), batch.labels, batch.label_mask)


class Fin(TranslatorMethod):
    """FIN with translators trained by gradient descent, each pair's on the records that have both."""

    name: ClassVar[str] = "fin"

    def __init__(self, config: FinConfig) -> None:
        super().__init__(config)
        self.options = config

    def translation_loss(self, pairs: Sequence[Pair]) -> Loss:
        """What every pair's translations are held against, summed."""
        loss, source = self.options.loss, self.source
        return lambda model, batch, _context: translation_loss(model, batch, pairs, loss, source)


def translation_loss(
    model: MultimodalModel,
    batch: Batch,
    pairs: Sequence[Pair],
    loss: TranslationError = "mse",
    source: Source = "features",
) -> Tensor:
    """Error of each translation, summed over pairs: [B]; `FinConfig` says of what kinds.

    MSE(I -> T) + MSE(T -> I) of FIN, summed over features rather than averaged so that the gradients stand
    above the noise. Encoders are frozen: features carry no gradient. Records without both sides count zero.
    """
    with torch.no_grad():
        features = model.encode(batch)
    total = torch.zeros(len(batch))
    for of, to in pairs:
        translated, real = model.translate(of, to, read(source, batch, features, of)), features[to]
        match loss:
            case "mse":
                error = squared_error(translated, real)
            case "logits":
                head = head_of(model, to)
                error = squared_error(translated @ head.T, real @ head.T)
            case "labels":
                logits = model.classify({**features, to: translated})
                error = masked_bce(logits, batch.labels, batch.label_mask)
            case "cosine":
                error = cosine_error(translated, real)
        total = total + has_both(batch, (of, to)) * error
    return total


def head_of(model: MultimodalModel, modality: str) -> Tensor:
    """The part of the fusion head that reads `modality`, [L, F], without a gradient."""
    names = model.schema.names
    return model.fusion.weight.detach().chunk(len(names), dim=1)[names.index(modality)]


def squared_error(translated: Tensor, real: Tensor) -> Tensor:
    """|translated - real|^2: [B, F] x 2 -> [B]."""
    return (translated - real).square().sum(dim=1)


def cosine_error(translated: Tensor, real: Tensor) -> Tensor:
    """The squared error of `translated` at the length of `real`, 2 |real|^2 (1 - cos): [B, F] x 2 -> [B].

    A translation of length zero is not divided by it (`scaled_to_norm`).
    """
    lengths = real.square().sum(dim=1).sqrt()
    direction = (scaled_to_norm(translated, 1.0) * real).sum(dim=1)
    return 2 * lengths * (lengths - direction)


def read(source: Source, batch: Batch, features: Mapping[str, Tensor], modality: str) -> Tensor:
    """What a translator from `modality` reads: float32 [B, I]."""
    return batch.input(modality) if source == "inputs" else features[modality]


def sources_of(model: MultimodalModel, target: str) -> tuple[str, ...]:
    """The modalities that the model has translators from to `target`."""
    components = model.components()
    return tuple(name for name in model.schema.names if translator_name((name, target)) in components)


def input_widths(schema: Schema, config: ModelConfig, pairs: Sequence[Pair]) -> dict[str, int]:
    """Source -> how many numbers its encoder reads; raises ConfigError where these are not a flat row."""
    return {source: _input_width(schema.modality(source), config) for source, _ in pairs}


def _input_width(spec: ModalitySpec, config: ModelConfig) -> int:
    match chosen := config.encoder_for(spec):
        case FilterbankConfig():
            return filterbank_width()
        case NgramsConfig():
            return len(vocabulary())
        case TabularConfig():
            return spec.shape[0]
    raise ConfigError(
        f"method.source=inputs feeds translators what an encoder reads, and {chosen.name} of {spec.name} reads no flat "
        f"row of numbers; give method.source=features, or model/{spec.kind}="
        + {"image": "filterbank", "text": "ngrams"}[spec.kind]
    )
