"""Ridge: linear translators solved from securely summed, noised sufficient statistics.

One release per site instead of many gradient steps; it shows that a method may be a statistic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from secure_fed.data.records import Schema
from secure_fed.errors import ConfigError
from secure_fed.methods.base import FloatArray, Pair, Phase, PublicContext, StatisticPhase, has_both, translator_name
from secure_fed.methods.config import MethodConfig
from secure_fed.methods.exact_linalg import project_psd, solve_positive_definite, trace
from secure_fed.methods.fin import TranslatorImputation
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import MultimodalModel


class RidgeConfig(MethodConfig):
    """Options of ridge.

    `penalty` is relative to the mean eigenvalue of the (noised, projected) Gram matrix; its smallest value keeps
    the sum of both positive definite whatever is rounded off. `noise_penalty` comes on top, times the largest
    eigenvalue that noise alone would have: the louder the release, the smaller the translators. `bound` is the L2 norm
    that a record's statistic is clipped to: it is the sensitivity of the release.
    """

    name: Literal["ridge"]
    penalty: float = Field(ge=1e-9)
    noise_penalty: float = Field(ge=0)
    bound: float = Field(gt=0)


class Ridge(TranslatorImputation):
    """Trains the classifier as zero-filling does; the last round releases the statistics."""

    name: ClassVar[str] = "ridge"

    def __init__(self, config: RidgeConfig) -> None:
        super().__init__(config)
        self.options = config

    def check_model(self, config: ModelConfig) -> None:
        """Only plain linear translators can be solved from second moments."""
        translator = config.translator
        if translator.name != "linear" or translator.normalise_output:
            raise ConfigError(
                f"model/translator={translator.name} cannot be solved from statistics: method=ridge needs "
                "model/translator=linear with normalise_output=false"
            )

    def phases(self, schema: Schema, pairs: Sequence[Pair], rounds: int, width: int) -> tuple[Phase, ...]:
        """The classifier in all rounds but the last; there, a statistic for each unordered pair."""
        if rounds < 2:
            raise ConfigError(
                f"federation.rounds={rounds} leaves method=ridge no round for its statistics; give at least 2"
            )
        unordered = sorted({tuple(sorted(pair)) for pair in pairs})
        return (
            self.classify_phase(schema, 0, rounds - 1),
            *(self._statistic((left, right), rounds, width) for left, right in unordered),
        )

    def _statistic(self, pair: Pair, rounds: int, width: int) -> StatisticPhase:
        left, right = pair
        return StatisticPhase(
            name=f"{left}_to_{right}",
            components=(translator_name((left, right)), translator_name((right, left))),
            map=partial(moments, pair=pair),
            solve=partial(
                solve_translators,
                pair=pair,
                penalty=self.options.penalty,
                noise_penalty=self.options.noise_penalty,
            ),
            size=(1 + 2 * width) * (2 + 2 * width) // 2,
            bound=self.options.bound,
            at=(rounds - 1,),
        )


def moments(model: MultimodalModel, batch: Batch, _context: PublicContext | None, pair: Pair) -> Tensor:
    """Second moments of z = [1, f_left, f_right] a paired record: the upper triangle of z z^T, [B, P].

    Off-diagonal entries are scaled by sqrt(2), so that the L2 norm of the row is the Frobenius norm of z z^T
    and the noise is the symmetric Gaussian mechanism (Dwork et al. 2014, "Analyze Gauss").
    """
    left, right = pair
    with torch.no_grad():
        features = model.encode(batch)
        ones = torch.ones(len(batch), 1)
        z = torch.cat([ones, features[left], features[right]], dim=1)
        rows, columns = torch.triu_indices(z.shape[1], z.shape[1]).unbind()
        scale = torch.where(rows == columns, 1.0, 2.0**0.5)
        return has_both(batch, pair).unsqueeze(1) * scale * z[:, rows] * z[:, columns]


def unpack_moments(packed: FloatArray) -> FloatArray:
    """The symmetric matrix [D, D] of a packed upper triangle [D (D + 1) / 2] with sqrt(2) off the diagonal."""
    size = int((np.sqrt(8 * len(packed) + 1) - 1) / 2)
    rows, columns = np.triu_indices(size)
    matrix = np.zeros((size, size))
    matrix[rows, columns] = packed / np.where(rows == columns, 1.0, np.sqrt(2.0))
    return matrix + np.triu(matrix, 1).T


def noise_radius(matrix: FloatArray, projected: FloatArray) -> float:
    """The largest eigenvalue that noise alone would have, told by what projecting a noised moment matrix took off.

    Moments have no negative eigenvalue, so the negative part is noise. Symmetric Gaussian noise [D, D] has eigenvalues
    by Wigner's semicircle of radius R, half of them negative, with mean square R^2 / 4: the negative part's squared
    Frobenius norm is D R^2 / 8, and less where moments stand above the noise. Zero without noise.
    """
    energy = math.fsum(value * value for value in (projected - matrix).ravel().tolist())
    return math.sqrt(8 * energy / len(matrix))


def solve_translators(
    model: MultimodalModel, packed: FloatArray, pair: Pair, penalty: float, noise_penalty: float
) -> None:
    """Set both linear translators of a pair from the noised moments: W = (X^T X + lambda I)^-1 X^T Y.

    The whole moment matrix is projected onto the PSD cone first: private ridge diverges without. lambda grows with the
    noise, else what is left of it makes translators that do harm. The bits are the same on every machine
    (exact_linalg): each site solves again what the server has solved.
    """
    noised = unpack_moments(packed)
    matrix = project_psd(noised)
    loudness = noise_penalty * noise_radius(noised, matrix)
    width = (len(matrix) - 1) // 2
    blocks = {pair[0]: np.arange(1, 1 + width), pair[1]: np.arange(1 + width, 1 + 2 * width)}
    for source, target in (pair, pair[::-1]):
        inputs = np.concatenate([[0], blocks[source]])
        gram = matrix[np.ix_(inputs, inputs)]
        ridge = (penalty * max(trace(gram) / len(gram), 1e-12) + loudness) * np.eye(len(gram))
        weights = solve_positive_definite(gram + ridge, matrix[np.ix_(inputs, blocks[target])])
        flat = np.concatenate([weights[1:].T.ravel(), weights[0]]).astype(np.float32)
        model.set_component(translator_name((source, target)), flat)
