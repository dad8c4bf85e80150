"""Prepared images that are made when a batch of them is looked at: a site's films never lie in memory at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from secure_fed.data.images import PART, LazyImages


class LazyInput:
    """n prepared rows that stay in their files. Indexed like a tensor, it gives fewer rows and reads nothing."""

    def __init__(self, raw: LazyImages, prepare: Callable[[npt.NDArray[np.float32]], Tensor]) -> None:
        self._raw = raw
        self._prepare = prepare
        self._made: Tensor | None = None

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: Tensor) -> LazyInput:
        """The rows at `index`, int64 [k] or bool [n]."""
        return LazyInput(self._raw[index.numpy()], self._prepare)

    def blanked(self) -> LazyInput:
        """As many rows, all absent: prepared zeros, without a file."""
        return LazyInput(self._raw.blanked(), self._prepare)

    def tensor(self) -> Tensor:
        """The rows, read and prepared. A batch's worth is kept while somebody holds this object: losses look twice.

        Raises DataError, naming the file, where one cannot be read.
        """
        if self._made is not None:
            return self._made
        made = self._prepare(np.asarray(self._raw))
        if len(self) <= PART:
            self._made = made
        return made
