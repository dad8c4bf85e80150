"""Which rows belong to one privacy unit: a record of its own, or a patient with several records.

Grouping is a matter of indices alone; what is clipped and sampled by unit is decided in `privacy/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Unit = Literal["record", "patient"]
"""What one addition or removal in a neighbouring data set changes: one record, or all records of a patient."""


@dataclass(frozen=True)
class UnitRows:
    """The rows of each of U units, which are numbered 0 to U - 1 here.

    of_row: int64 [B], the unit of each row. sizes: int64 [U], all at least 1.
    order: int64 [B], the rows sorted by unit and, within a unit, as the data has them.
    """

    of_row: Tensor
    sizes: Tensor
    order: Tensor

    @classmethod
    def of(cls, units: Tensor) -> UnitRows:
        """The grouping of rows by their numbers `units` (int64 [B]), which these follow in ascending order."""
        _, of_row, sizes = torch.unique(units, return_inverse=True, return_counts=True)
        return cls(of_row, sizes, torch.argsort(of_row, stable=True))

    @classmethod
    def single(cls, count: int) -> UnitRows:
        """`count` rows, each a unit of its own."""
        rows = torch.arange(count)
        return cls(rows, torch.ones_like(rows), rows)

    def __len__(self) -> int:
        return len(self.sizes)

    def rows(self, units: Tensor) -> Tensor:
        """int64 indices of all rows of `units` (int64 positions or bool [U]), as the data has them."""
        chosen = torch.zeros(len(self), dtype=torch.bool)
        chosen[units] = True
        return chosen[self.of_row].nonzero().flatten()

    def first(self, count: int) -> Tensor:
        """int64 indices of the first `count` rows of every unit, as the data has them."""
        rank = torch.empty_like(self.order)
        rank[self.order] = torch.arange(len(self.order)) - torch.repeat_interleave(self._starts(), self.sizes)
        return (rank < count).nonzero().flatten()

    def by_size(self) -> list[tuple[Tensor, Tensor]]:
        """For each size k that occurs: the units that have it, int64 [U_k], and their rows, int64 [U_k, k]."""
        starts = self._starts()
        found = []
        for size in torch.unique(self.sizes).tolist():
            units = (self.sizes == size).nonzero().flatten()
            found.append((units, self.order[starts[units].unsqueeze(1) + torch.arange(size)]))
        return found

    def _starts(self) -> Tensor:
        return torch.cumsum(self.sizes, dim=0) - self.sizes
