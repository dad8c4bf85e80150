"""What each unit adds to a gradient sum: its norm, and the clipped sum over all units.

Two representations, because most of a small model's time goes into writing per-record gradients down.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secure_fed.models.units import UnitRows

# The dot products of a Gram matrix in float64 are off by at most a few 1e-12 of the factors' lengths (Higham 2002,
# 3.5, for 1e4 summands). Where a unit's records cancel, that error is all that is left of the norm.
_ROUNDING = 1e-11
_TINY = 1e-6  # as in Opacus: keeps a zero gradient's factor finite
_COLUMNS = 2**16  # that are summed at a time: a copy of 23 million numbers in float64 would double the memory


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """min(1, C / |g|) for each norm, 0 where it is not finite (Abadi et al., arXiv 1607.00133, algorithm 1)."""
    return torch.where(torch.isfinite(norms), (max_grad_norm / (norms + _TINY)).clamp(max=1.0), 0.0)


def row_norms(rows: Tensor) -> Tensor:
    """L2 norm of each row of [U, P], in the rows' dtype, summed in float64.

    torch sums the squares of a float32 row in float32, one lane after another: over the 11 million numbers of a
    ResNet-18 its norm comes out up to 6e-4 too small, over BERT-base's 1 %, and each record would count for that much
    more than the clip bound.
    """
    squared = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, _COLUMNS, dim=1):
        squared += part.double().square().sum(dim=1)
    return squared.sqrt().to(rows.dtype)


@dataclass(frozen=True)
class Rows:
    """The gradients of one parameter, a row per unit: [U, P]."""

    rows: Tensor
    parameter: nn.Parameter

    def by_unit(self, units: UnitRows) -> Rows:
        """The sum over each unit's rows, given a row per record."""
        summed = torch.zeros(len(units), self.rows.shape[1], dtype=self.rows.dtype)
        return Rows(summed.index_add_(0, units.of_row, self.rows), self.parameter)

    def norms(self) -> Tensor:
        """L2 norm of each unit's part [U]."""
        return row_norms(self.rows)

    def without(self, units: Tensor) -> Rows:
        """The same with `units` (bool [U]) at zero."""
        return Rows(self.rows.masked_fill(units.unsqueeze(1), 0.0), self.parameter)

    def weighted_sums(self, weights: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its sum over units, weighted by `weights` [U]."""
        summed: Tensor = weights @ self.rows
        return [(self.parameter, summed.view_as(self.parameter))]


@dataclass(frozen=True)
class Factors:
    """Gradients of a linear layer, a record a unit: outer products of `outputs` [B, O] and `inputs` [B, I].

    A record's weight gradient b a^T has norm |b| |a| (Goodfellow, arXiv 1510.01799), and the clipped sum is one
    matrix product (Bu et al., arXiv 2210.00038). The bias is an input that is always 1.
    """

    inputs: Tensor
    outputs: Tensor
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def by_unit(self, units: UnitRows) -> UnitFactors:
        """The same gradients, summed over each unit's records."""
        return UnitFactors(self, units)

    def norms(self) -> Tensor:
        """L2 norm of each record's weight and bias gradient together [B]."""
        # float64, for the factors may be far smaller and larger than their product.
        squared = torch.zeros(len(self.inputs), dtype=torch.float64)
        if self.weight is not None:
            squared += self.inputs.double().square().sum(dim=1)
        if self.bias is not None:
            squared += 1.0
        squared = squared * self.outputs.double().square().sum(dim=1)
        return squared.sqrt().to(self.outputs.dtype)

    def without(self, records: Tensor) -> Factors:
        """The same with `records` (bool [B]) at zero."""
        drop = records.unsqueeze(1)
        return Factors(self.inputs.masked_fill(drop, 0.0), self.outputs.masked_fill(drop, 0.0), self.weight, self.bias)

    def weighted_sums(self, weights: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its sum over records, weighted by `weights` [B]."""
        outputs = weights.unsqueeze(1) * self.outputs
        sums = [] if self.weight is None else [(self.weight, outputs.T @ self.inputs)]
        return sums if self.bias is None else [*sums, (self.bias, outputs.sum(dim=0))]


@dataclass(frozen=True)
class UnitFactors:
    """Gradients of a linear layer by unit: the sum of b_i a_i^T over the unit's records i.

    Its squared norm is sum_ij (b_i . b_j) (a_i . a_j), for <b a^T, d c^T> = (b . d) (a . c): two Gram matrices of
    the unit's records, no [U, O, I] gradient. All in float64: norm and sum come from different formulas, and a
    unit whose records cancel must not slip through between their roundings.
    """

    factors: Factors
    units: UnitRows

    def norms(self) -> Tensor:
        """L2 norm of each unit's weight and bias gradient together [U], never too small by rounding."""
        squared = torch.zeros(len(self.units), dtype=torch.float64)
        inputs, outputs = self.factors.inputs.double(), self.factors.outputs.double()
        for units, rows in self.units.by_size():
            grams = torch.zeros(*rows.shape, rows.shape[1], dtype=torch.float64)
            if self.factors.weight is not None:
                grams += _gram(inputs[rows])
            if self.factors.bias is not None:
                grams += 1.0
            grams = grams * _gram(outputs[rows])
            summed = grams.sum(dim=(1, 2)).clamp(min=0.0)
            lengths = grams.diagonal(dim1=1, dim2=2).sqrt().sum(dim=1)
            squared[units] = summed + _ROUNDING * lengths.square()
        return squared.sqrt().to(self.factors.outputs.dtype)

    def without(self, units: Tensor) -> UnitFactors:
        """The same with `units` (bool [U]) at zero."""
        return UnitFactors(self.factors.without(units[self.units.of_row]), self.units)

    def weighted_sums(self, weights: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its sum over units, weighted by `weights` [U]."""
        exact = Factors(
            self.factors.inputs.double(), self.factors.outputs.double(), self.factors.weight, self.factors.bias
        )
        by_record = exact.weighted_sums(weights.double()[self.units.of_row])
        return [(parameter, summed.to(parameter.dtype)) for parameter, summed in by_record]


Contribution = Rows | Factors | UnitFactors
"""The part that some parameters have in every unit's gradient."""


def _gram(rows: Tensor) -> Tensor:
    """[U, K, D] -> [U, K, K], the dot products of a unit's rows."""
    return rows @ rows.transpose(1, 2)
