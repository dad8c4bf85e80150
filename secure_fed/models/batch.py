"""Prepared records as tensors: what a loss sees, one row per record in every field.

A batch is cached by its site after the parameter-free `prepare`, then indexed at every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secure_fed.data.records import Records
from secure_fed.errors import DataError


@dataclass(frozen=True)
class Batch:
    """B records. inputs: modality -> [B, ...]; presence: modality -> bool [B].

    labels: float32 [B, L] without NaN (unknown is 0); label_mask: float32 [B, L], 1 where the label is known.
    Raises DataError where the fields disagree about B.
    """

    inputs: dict[str, Tensor]
    presence: dict[str, Tensor]
    labels: Tensor
    label_mask: Tensor

    def __post_init__(self) -> None:
        n = len(self.labels)
        fields = {f"inputs[{name!r}]": value for name, value in self.inputs.items()}
        fields |= {f"presence[{name!r}]": value for name, value in self.presence.items()}
        fields["label_mask"] = self.label_mask
        for what, value in fields.items():
            if len(value) != n:
                raise DataError(f"{what} has {len(value)} rows, labels have {n}: one row per record is expected")

    @classmethod
    def from_records(cls, records: Records, inputs: dict[str, Tensor]) -> Batch:
        """The batch of all `records`, given their prepared inputs by modality."""
        known = ~np.isnan(records.labels)
        return cls(
            inputs=inputs,
            presence={name: torch.from_numpy(present.copy()) for name, present in records.presence.items()},
            labels=torch.from_numpy(np.where(known, records.labels, 0.0).astype(np.float32)),
            label_mask=torch.from_numpy(known.astype(np.float32)),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> Batch:
        """The records at `index` (int64 [k] or bool [B]), copied."""
        return Batch(
            inputs={name: value[index] for name, value in self.inputs.items()},
            presence={name: value[index] for name, value in self.presence.items()},
            labels=self.labels[index],
            label_mask=self.label_mask[index],
        )
