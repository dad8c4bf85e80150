"""The generative baseline: a missing report is written by a generator that looks at the film, and then encoded.

The baseline of the FIN paper (arXiv 2505.20232) with a generator after R2Gen (arXiv 2010.16056), trained by the sites
that own both. The other direction, a film from its report, is not built: an absent image is zeros, as in that
paper's comparison, where no site lacks it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from secure_fed.data.records import ModalitySpec, Schema
from secure_fed.data.report_tokens import report_texts
from secure_fed.errors import ConfigError
from secure_fed.methods.base import Imputation, Pair, Phase, PublicContext, has_both
from secure_fed.methods.config import MethodConfig, PhaseConfig, Schedule, turns
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig, ResNetConfig, SmallCnnConfig
from secure_fed.models.multimodal import MultimodalModel, PartMaker
from secure_fed.models.report_generator import GeneratorConfig, ReportGenerator

_MOST_REPORTS = 20_000
_AT_ONCE = 128
"""Reports that are written side by side: their images are held in memory at one time."""


class GenerativeConfig(MethodConfig):
    """Options of the generative baseline; schedule and share as FIN has them.

    schedule `last` trains the generator in the last `generator_share` of the rounds, on an image encoder that no longer
    moves. Under `every_round` each step of the classifier at a site without reports writes one for each of its records:
    dear, for their films' features have moved since the step before.
    """

    name: Literal["generative"]
    generator: GeneratorConfig
    generate: PhaseConfig
    schedule: Schedule
    generator_share: float = Field(gt=0, lt=1)


class Generative(ZeroFill):
    """Zero-filling, but for reports: these are generated, and read by the text encoder as any report is."""

    name: ClassVar[str] = "generative"

    def __init__(self, config: GenerativeConfig) -> None:
        super().__init__(config)
        self.options = config
        self._written = _WrittenReports()

    def pairs(self, schema: Schema, owned: Sequence[frozenset[str]]) -> tuple[Pair, ...]:
        """From the one image modality to the one text modality, which some site owns together."""
        image, text = self._only(schema, "image"), self._only(schema, "text")
        if not any({image, text} <= modalities for modalities in owned):
            raise ConfigError(
                f"method={self.name} needs a site that owns both {image} and {text}, and federation.ownership gives "
                f"none of the {len(owned)} sites both; use method=zero_fill, or let some sites own both"
            )
        return ((image, text),)

    def parts(self, schema: Schema, pairs: Sequence[Pair], config: ModelConfig) -> dict[str, PartMaker]:
        """The generator. Raises ConfigError where it shall look at images and the encoder keeps none."""
        makers: dict[str, PartMaker] = {}
        for image, text in pairs:
            self._require_images(schema.modality(image), config)
            makers[generator_name((image, text))] = partial(
                ReportGenerator, self.options.generator, config.feature_width, text
            )
        return makers

    def phases(self, schema: Schema, pairs: Sequence[Pair], rounds: int, width: int) -> tuple[Phase, ...]:
        """The classifier's phase and the generator's, in the order that the schedule gives."""
        options = self.options
        classify_stop, start = turns(rounds, options.schedule, options.generator_share, "generator")
        (pair,) = pairs
        loss = partial(generation_loss, pair=pair)
        generate = options.generate.phase("generate", (generator_name(pair),), loss, start, rounds)
        return (self.classify_phase(schema, 0, classify_stop), generate)

    def impute(
        self,
        model: MultimodalModel,
        batch: Batch,
        features: Mapping[str, Tensor],
        context: PublicContext | None = None,
    ) -> dict[str, Imputation]:
        """The encoded generated report where a film has none, without a gradient; zeros for all else, [B, F] each.

        An untrained generator writes nothing, at no cost: zeros.
        """
        imputed = super().impute(model, batch, features, context)
        image, text = self._only(model.schema, "image"), self._only(model.schema, "text")
        generator = generator_of(model, (image, text))
        lacking = batch.presence[image] & ~batch.presence[text]
        if generator.trained and lacking.any():
            filled = imputed[text].mean.clone()
            with torch.no_grad():
                source = _source(generator, batch.select(lacking), features[image][lacking], image)
                encoder = model.encoder(text)
                reports = report_texts(self._written.of(generator, source).numpy())
                filled[lacking] = encoder(encoder.prepare(reports))
            imputed[text] = Imputation(filled)
        return imputed

    def _only(self, schema: Schema, kind: str) -> str:
        found = [spec.name for spec in schema.modalities if spec.kind == kind]
        if len(found) != 1:
            raise ConfigError(
                f"method={self.name} writes the report of a film: it needs one image and one text modality, and this "
                f"data set has {', '.join(found) or 'none'} of kind {kind}; use another method"
            )
        return found[0]

    def _require_images(self, spec: ModalitySpec, config: ModelConfig) -> None:
        chosen = config.encoder_for(spec)
        keeps = isinstance(chosen, SmallCnnConfig) or (isinstance(chosen, ResNetConfig) and chosen.train == "all")
        if self.options.generator.visual == "resnet101" and not keeps:
            raise ConfigError(
                f"method.generator.visual=resnet101 looks at the image itself, of which model.image.name={chosen.name} "
                "keeps only features: give model/image=small_cnn, or a ResNet with train=all, or "
                "method.generator.visual=features"
            )


class _WrittenReports:
    """What a generator has written, by its weights and what it looked at: several views of evaluation share it.

    A row at a time, since each record's report is its own. It holds nothing that its process does not hold anyway.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._guard = threading.Lock()

    def of(self, generator: ReportGenerator, source: Tensor) -> Tensor:
        """Token ids int64 [B, T] of the reports of `source` [B, ...], written or remembered."""
        weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in generator.parameters())).digest()
        keys = [hashlib.sha256(weights + np.ascontiguousarray(row).tobytes()).digest() for row in source.numpy()]
        with self._guard:
            known = {key: self._kept[key] for key in keys if key in self._kept}
        new = [i for i, key in enumerate(keys) if key not in known]
        for start in range(0, len(new), _AT_ONCE):
            rows = new[start : start + _AT_ONCE]
            known |= zip([keys[i] for i in rows], generator.generate(source[rows]), strict=True)
        with self._guard:
            for i in new:
                self._kept[keys[i]] = known[keys[i]]
            while len(self._kept) > _MOST_REPORTS:
                self._kept.popitem(last=False)
        return torch.stack([known[key] for key in keys])


def generation_loss(model: MultimodalModel, batch: Batch, _context: PublicContext | None, pair: Pair) -> Tensor:
    """Negative log likelihood of each record's report given its film, summed over its tokens: [B].

    The image encoder is frozen. Records without both count zero.
    """
    image, text = pair
    generator = generator_of(model, pair)
    with torch.no_grad():
        source = _source(generator, batch, model.encode_one(batch, image), image)
    return has_both(batch, pair) * generator.losses(source, batch.extras[text][generator_name(pair)])


def generator_name(pair: Pair) -> str:
    """The component name of a pair's generator."""
    return f"generator.{pair[0]}_to_{pair[1]}"


def generator_of(model: MultimodalModel, pair: Pair) -> ReportGenerator:
    """The generator of a pair. Raises ConfigError where the model has none."""
    return model.part(generator_name(pair), ReportGenerator)


def _source(generator: ReportGenerator, batch: Batch, feature: Tensor, image: str) -> Tensor:
    """What the generator looks at: the image encoder's feature [B, F], or the prepared image [B, 1 or 3, H, W]."""
    return feature if generator.config.visual == "features" else batch.input(image)
