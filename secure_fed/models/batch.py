"""Prepared records as tensors: what a loss sees, one row per record in every field.

A batch is cached by its site after the parameter-free `prepare`, then indexed at every step. It knows which
privacy unit a row belongs to, so that sampling and clipping can treat a patient's records as one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from secure_fed.data.images import PART
from secure_fed.data.records import Records
from secure_fed.errors import DataError
from secure_fed.models.lazy_input import LazyInput
from secure_fed.models.units import Unit, UnitRows

Extras = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    """B records. inputs: modality -> [B, ...], images perhaps still in their files; presence: modality -> bool [B].

    labels: float32 [B, L] without NaN (unknown is 0); label_mask: float32 [B, L], 1 where the label is known.
    extras: what a method's parts prepared of a modality for themselves, modality -> component -> [B, ...].
    units: int64 [B], the number of the privacy unit that a row belongs to; each row is its own where none is given.
    unit: what those numbers stand for; with "record" no two rows share one.
    Raises DataError where the fields disagree about B.
    """

    inputs: Mapping[str, Tensor | LazyInput]
    presence: dict[str, Tensor]
    labels: Tensor
    label_mask: Tensor
    units: Tensor = None  # type: ignore[assignment]  # set in __post_init__ where it is not given
    unit: Unit = "record"
    extras: Extras = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.units is None:
            if self.unit != "record":  # type: ignore[unreachable]  # the field's default, which its type leaves out
                raise DataError(f"unit={self.unit!r} without units: give the number of each row's {self.unit}")
            object.__setattr__(self, "units", torch.arange(n))
        fields: dict[str, Tensor | LazyInput] = {f"inputs[{name!r}]": value for name, value in self.inputs.items()}
        fields |= {f"presence[{name!r}]": value for name, value in self.presence.items()}
        for name, made in self.extras.items():
            fields |= {f"extras[{name!r}][{part!r}]": value for part, value in made.items()}
        fields |= {"label_mask": self.label_mask, "units": self.units}
        for what, value in fields.items():
            if len(value) != n:
                raise DataError(f"{what} has {len(value)} rows, labels have {n}: one row per record is expected")

    @classmethod
    def from_records(
        cls,
        records: Records,
        inputs: Mapping[str, Tensor | LazyInput],
        unit: Unit = "record",
        extras: Extras | None = None,
    ) -> Batch:
        """The batch of all `records`, given their prepared inputs by modality, and parts' `extras`.

        With unit="patient" rows of one `unit_ids` share a number, patients numbered as the data first names them.
        """
        known = ~np.isnan(records.labels)
        return cls(
            inputs=inputs,
            presence={name: torch.from_numpy(present.copy()) for name, present in records.presence.items()},
            labels=torch.from_numpy(np.where(known, records.labels, 0.0).astype(np.float32)),
            label_mask=torch.from_numpy(known.astype(np.float32)),
            units=_patient_numbers(records) if unit == "patient" else torch.arange(len(records)),
            unit=unit,
            extras=extras or {},
        )

    def __len__(self) -> int:
        return len(self.labels)

    def input(self, modality: str) -> Tensor:
        """The prepared rows [B, ...] of one modality, read now where they lie in files."""
        value = self.inputs[modality]
        return value.tensor() if isinstance(value, LazyInput) else value

    def require_readable(self) -> Batch:
        """The same records, every image that lies in a file having been read once, a few at a time.

        Raises DataError, naming the first that cannot be read: better than in the middle of a round.
        """
        for name, value in self.inputs.items():
            if isinstance(value, LazyInput):
                for rows in torch.split(torch.arange(len(self)), PART):
                    self.select(rows).input(name)
        return self

    @property
    def unit_count(self) -> int:
        """How many units have a row here. PRIVATE for a site's records."""
        return len(self.unit_rows())

    def unit_rows(self) -> UnitRows:
        """The rows by unit. Records count in their order, patients in ascending order of their numbers in `units`."""
        return UnitRows.single(len(self)) if self.unit == "record" else UnitRows.of(self.units)

    def select(self, index: Tensor) -> Batch:
        """The records at `index` (int64 [k] or bool [B]), copied; each keeps its unit's number."""
        return Batch(
            inputs={name: value[index] for name, value in self.inputs.items()},
            presence={name: value[index] for name, value in self.presence.items()},
            labels=self.labels[index],
            label_mask=self.label_mask[index],
            units=self.units[index],
            unit=self.unit,
            extras=_changed(self.extras, self.extras, lambda value: value[index]),
        )

    def without(self, modalities: Collection[str]) -> Batch:
        """The same records with `modalities` absent everywhere, their inputs and extras zero."""
        presence = {name: torch.zeros_like(self.presence[name]) for name in modalities}
        inputs = {name: _blank(self.inputs[name]) for name in modalities}
        extras = _changed(self.extras, modalities, torch.zeros_like)
        return replace(self, inputs={**self.inputs, **inputs}, presence={**self.presence, **presence}, extras=extras)

    def unlabelled(self) -> Batch:
        """The same records with every label unknown: what is scored must not be able to look at the answer."""
        return replace(self, labels=torch.zeros_like(self.labels), label_mask=torch.zeros_like(self.label_mask))

    def select_units(self, units: Tensor) -> Batch:
        """All records of whole units: `units` are int64 positions or bool among the `unit_count` units."""
        return self.select(self.unit_rows().rows(units))


def bounded(batch: Batch, max_records_per_unit: int) -> Batch:
    """`batch` with at most `max_records_per_unit` (public, K_max) rows of every unit.

    The first K_max in the data's order stay, so the choice is deterministic and depends on no other unit: removing
    a unit changes nothing of what is kept of the rest. Raises DataError for a bound below 1.
    """
    if max_records_per_unit < 1:
        raise DataError(f"max_records_per_unit={max_records_per_unit}: expected at least 1")
    kept = batch.unit_rows().first(max_records_per_unit)
    return batch if len(kept) == len(batch) else batch.select(kept)


def _blank(rows: Tensor | LazyInput) -> Tensor | LazyInput:
    return rows.blanked() if isinstance(rows, LazyInput) else torch.zeros_like(rows)


def _changed(extras: Extras, modalities: Collection[str], change: Callable[[Tensor], Tensor]) -> Extras:
    """`extras` with `change` applied to those of `modalities`."""
    return {
        modality: {part: change(value) for part, value in made.items()} if modality in modalities else made
        for modality, made in extras.items()
    }


def _patient_numbers(records: Records) -> Tensor:
    """int64 [n]: the k-th patient that the data names gets number k."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(patient, len(numbers)) for patient in records.unit_ids.tolist()]).long()
