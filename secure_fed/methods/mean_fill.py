"""Mean-filling: a missing modality's feature is that modality's mean feature over all records that have it.

The means are securely summed and noised: a statistic for each modality, released a few times and charged as any is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.errors import ConfigError
from secure_fed.methods.base import FloatArray, Imputation, Pair, Phase, PublicContext, StatisticPhase
from secure_fed.methods.config import MethodConfig
from secure_fed.methods.zero_fill import ZeroFill
from secure_fed.models.arithmetic import require_ieee_arithmetic
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.feature_mean import FeatureMean
from secure_fed.models.multimodal import MultimodalModel, PartMaker


class MeanFillConfig(MethodConfig):
    """Options of mean-filling.

    `releases` of each mean, evenly spread, the last in the last round: encoders move, and leave a mean behind. `noise`
    is a release's noise multiplier over that of a gradient step. A mean of F numbers bears much more noise than a
    gradient of thousands: at 4 a release costs a sixteenth of a step over all records.
    """

    name: Literal["mean_fill"]
    releases: int = Field(ge=1)
    noise: float = Field(gt=0)


class MeanFill(ZeroFill):
    """Trains as zero-filling does, with means in the place of zeros once the first are released."""

    name: ClassVar[str] = "mean_fill"

    def __init__(self, config: MeanFillConfig) -> None:
        super().__init__(config)
        self.options = config

    def parts(self, schema: Schema, pairs: Sequence[Pair], config: ModelConfig) -> dict[str, PartMaker]:
        """A mean for each modality."""
        return {mean_name(name): partial(FeatureMean, config.feature_width) for name in schema.names}

    def phases(self, schema: Schema, pairs: Sequence[Pair], rounds: int, width: int) -> tuple[Phase, ...]:
        """The classifier in every round, and each modality's statistic; raises ConfigError for too many releases."""
        releases = self.options.releases
        if releases > rounds:
            raise ConfigError(f"method.releases={releases} in federation.rounds={rounds}: at most one for each round")
        at = tuple(number * rounds // releases - 1 for number in range(1, releases + 1))
        means = (self._statistic(name, at, width) for name in schema.names)
        return (self.classify_phase(schema, 0, rounds), *means)

    def impute(
        self,
        model: MultimodalModel,
        batch: Batch,
        features: Mapping[str, Tensor],
        context: PublicContext | None = None,
    ) -> dict[str, Imputation]:
        """The same mean for every record, [B, F] each."""
        return {name: Imputation(model.part(mean_name(name))(feature)) for name, feature in features.items()}

    def _statistic(self, modality: str, at: tuple[int, ...], width: int) -> StatisticPhase:
        count = count_entry(width)
        return StatisticPhase(
            name=modality,
            components=(mean_name(modality),),
            map=partial(counted_features, modality=modality, count=count),
            solve=partial(solve_mean, modality=modality, count=count),
            size=1 + width,
            bound=math.sqrt(1 + count**2),
            at=at,
            noise=self.options.noise,
        )


def mean_name(modality: str) -> str:
    """The component name of a modality's mean feature."""
    return f"mean.{modality}"


def count_entry(width: int) -> float:
    """What a record adds to the statistic's count, F^(-1/4), where its feature adds a vector of norm 1.

    The noise of all entries grows with sqrt(1 + c^2), and a count of c a record makes that of the count weigh 1 / c in
    the mean: the error (1 + c^2) (F + |mean|^2 / c^2) is least at c^4 = |mean|^2 / F, and the mean of vectors of norm
    1 has a norm of up to 1.
    """
    return math.sqrt(1 / math.sqrt(width))  # not a power, whose last bit is the C library's


def counted_features(
    model: MultimodalModel, batch: Batch, _context: PublicContext | None, modality: str, count: float
) -> Tensor:
    """[count, feature / its norm's bound] of each record that has the modality, zeros of the others: [B, 1 + F].

    Its norm is at most sqrt(1 + count^2), so that nothing is clipped.
    """
    with torch.no_grad():
        feature = model.encode_one(batch, modality) / model.encoder(modality).scale
        rows = torch.cat([torch.full((len(batch), 1), count), feature], dim=1)
        return rows * batch.presence[modality].unsqueeze(1)


def solve_mean(model: MultimodalModel, noised: FloatArray, modality: str, count: float) -> None:
    """Set a modality's mean from the noised sums [1 + F]: their ratio, drawn back to where a mean can lie.

    A mean of features lies within their ball; a noised count that is not positive says nothing, so the mean is then
    zero. Division, multiplication and an exact sum: every site that solves it again finds the server's bits.
    """
    require_ieee_arithmetic()
    scale = model.encoder(modality).scale
    mean = np.zeros(len(noised) - 1)
    total = noised[1:] * count
    largest = float(np.abs(total).max())
    if noised[0] > 0 and largest > 0:
        # Compared before dividing: by a count that noise has left next to nothing a division would overflow.
        direction = total / largest
        length = math.sqrt(math.fsum(value * value for value in direction.tolist()))
        inside = largest * length <= noised[0]
        mean = scale * (total / noised[0] if inside else direction / length)
    model.set_component(mean_name(modality), mean.astype(np.float32))
