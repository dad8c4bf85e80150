"""What a record is: named modalities with a presence mask, labels, and the id of the privacy unit.

Readers make `Records`, partitions split them, models turn them into tensors; nothing here knows a data set.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from secure_fed.data.images import LazyImages
from secure_fed.errors import ConfigError, DataError

MODALITY_NAME = re.compile(r"[a-z][a-z0-9_]*")

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]
ValueArray = npt.NDArray[Any]  # float32 for images and tables, objects (str) for text
Values = ValueArray | LazyImages  # images may stay in their files
StringArray = npt.NDArray[np.str_]


@dataclass(frozen=True)
class ModalitySpec:
    """One modality: image shape (1, H, W), tabular shape (F,) with F feature names, text shape ()."""

    name: str
    kind: Literal["image", "text", "tabular"]
    shape: tuple[int, ...]
    features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not MODALITY_NAME.fullmatch(self.name):
            raise ConfigError(
                f"modality name {self.name!r} is not of the form [a-z][a-z0-9_]*: use lower-case letters, "
                "digits and underscores, starting with a letter"
            )
        if "_to_" in self.name:
            raise ConfigError(
                f"modality name {self.name!r} contains '_to_', which separates the two modalities of a translator's "
                "name: choose another"
            )
        rank = {"image": 3, "text": 0, "tabular": 1}[self.kind]
        if len(self.shape) != rank or any(size < 1 for size in self.shape):
            raise ConfigError(
                f"modality {self.name!r} of kind {self.kind} has shape {self.shape}: expected {rank} sizes above 0"
            )
        if self.kind == "tabular" and len(self.features) != self.shape[0]:
            raise ConfigError(
                f"modality {self.name!r} names {len(self.features)} features for shape {self.shape}: "
                "a tabular modality needs one name for each of its features"
            )
        if len(set(self.features)) != len(self.features):
            twice = sorted({f for f in self.features if self.features.count(f) > 1})
            raise ConfigError(f"modality {self.name!r} has features named twice: {', '.join(twice)}")


@dataclass(frozen=True)
class Schema:
    """The modalities and labels of a data set, in their fixed public order."""

    modalities: tuple[ModalitySpec, ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.modalities:
            raise ConfigError("a schema needs at least one modality")
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"modalities named twice in {list(self.names)}: give each its own name")
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"labels {list(self.labels)}: expected at least one, and none of them twice")

    @property
    def names(self) -> tuple[str, ...]:
        """Modality names in order."""
        return tuple(spec.name for spec in self.modalities)

    def modality(self, name: str) -> ModalitySpec:
        """The modality called `name`. Raises ConfigError, naming the known ones."""
        for spec in self.modalities:
            if spec.name == name:
                return spec
        raise ConfigError(f"unknown modality {name!r}: this data set has {', '.join(self.names)}")


@dataclass(frozen=True)
class Records:
    """`n` records: values and presence by modality, labels, the privacy unit's id, a natural site column.

    values: images float32 [n, 1, H, W] in [0, 1], an array or LazyImages; tabular float32 [n, F], scaled by public
    ranges, missing 0; text object array of str [n]. Rows of an absent modality hold zeros or "". presence: bool [n]
    by modality.
    labels: float32 [n, L] of 0, 1 or NaN (unknown). unit_ids: str [n]. groups: str [n], or None.
    Raises DataError where an array does not fit the schema.
    """

    schema: Schema
    values: Mapping[str, Values]
    presence: Mapping[str, BoolArray]
    labels: FloatArray
    unit_ids: StringArray
    groups: StringArray | None = None

    def __post_init__(self) -> None:
        for what, mapping in (("values", self.values), ("presence", self.presence)):
            if set(mapping) != set(self.schema.names):
                raise DataError(
                    f"records have {what} for {sorted(mapping)}, the schema has {sorted(self.schema.names)}: "
                    "give exactly one array for each modality"
                )
        n = len(self.unit_ids)
        for spec in self.schema.modalities:
            value, present = self.values[spec.name], self.presence[spec.name]
            dtype = np.dtype(object) if spec.kind == "text" else np.dtype(np.float32)
            _require(f"values[{spec.name!r}]", value, (n, *spec.shape), dtype)
            _require(f"presence[{spec.name!r}]", present, (n,), np.dtype(bool))
            _require_blank_where_absent(spec, value, present)
        _require("labels", self.labels, (n, len(self.schema.labels)), np.dtype(np.float32))
        known = self.labels[~np.isnan(self.labels)]
        if not np.isin(known, (0.0, 1.0)).all():
            raise DataError(f"labels hold {known[~np.isin(known, (0.0, 1.0))][0]}: expected 0, 1 or NaN (unknown)")
        for what, ids in (("unit_ids", self.unit_ids), ("groups", self.groups)):
            if ids is not None and (ids.shape != (n,) or ids.dtype.kind != "U"):
                raise DataError(f"{what} is {ids.dtype} of shape {ids.shape}: expected str of shape ({n},)")

    def __len__(self) -> int:
        return len(self.unit_ids)

    def select(self, indices: IndexArray | BoolArray | Sequence[int]) -> Records:
        """The records at `indices` (positions or a mask), in that order."""
        index = np.asarray(indices)
        if index.size == 0:
            index = index.astype(np.int64)
        return replace(
            self,
            values={name: value[index] for name, value in self.values.items()},
            presence={name: present[index] for name, present in self.presence.items()},
            labels=self.labels[index],
            unit_ids=self.unit_ids[index],
            groups=None if self.groups is None else self.groups[index],
        )

    def without(self, modalities: Collection[str]) -> Records:
        """The same records with `modalities` absent everywhere. Raises ConfigError for an unknown one."""
        values: dict[str, Values] = dict(self.values)
        presence = dict(self.presence)
        for name in modalities:
            spec = self.schema.modality(name)
            value = values[name]
            values[name] = value.blanked() if isinstance(value, LazyImages) else blank_values(spec, len(self))
            presence[name] = np.zeros(len(self), dtype=bool)
        return replace(self, values=values, presence=presence)


def concatenated(parts: Sequence[Records]) -> Records:
    """The records of all parts, in order. Raises DataError where schemas differ, or only some parts have groups."""
    first = parts[0]
    if any(part.schema != first.schema for part in parts):
        raise DataError("records of different schemas cannot be put together: give parts of one schema")
    groups = [part.groups for part in parts if part.groups is not None]
    if groups and len(groups) < len(parts):
        raise DataError("some parts have groups and some have none: give all of them groups")
    return Records(
        schema=first.schema,
        values={name: _joined([part.values[name] for part in parts]) for name in first.schema.names},
        presence={name: np.concatenate([part.presence[name] for part in parts]) for name in first.schema.names},
        labels=np.concatenate([part.labels for part in parts]),
        unit_ids=np.concatenate([part.unit_ids for part in parts]),
        groups=np.concatenate(groups) if groups else None,
    )


def _joined(values: Sequence[Values]) -> Values:
    """One after the other; files stay files where all are."""
    lazy = [value for value in values if isinstance(value, LazyImages)]
    if len(lazy) == len(values):
        return LazyImages(np.concatenate([value.files for value in lazy]), lazy[0].size)
    return np.concatenate([np.asarray(value) for value in values])


def blank_values(spec: ModalitySpec, n: int) -> ValueArray:
    """What `n` absent rows of a modality hold: zeros, or "" for text."""
    if spec.kind == "text":
        return np.full(n, "", dtype=object)
    return np.zeros((n, *spec.shape), dtype=np.float32)


def _require(what: str, array: Values, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise DataError(f"{what} is {array.dtype} of shape {array.shape}: expected {dtype} of shape {shape}")


def _require_blank_where_absent(spec: ModalitySpec, value: Values, present: BoolArray) -> None:
    """A value behind an absent row would be a leak that masking was meant to close. Files are not read for it."""
    if isinstance(value, LazyImages):
        if not np.array_equal(value.is_blank, ~present):
            raise DataError(f"values[{spec.name!r}] must have a file where the modality is present, and nowhere else")
        return
    absent = value[~present]
    if spec.kind == "text":
        if any(text != "" for text in absent) or not all(isinstance(text, str) for text in value):
            raise DataError(f"values[{spec.name!r}] must be str, and '' where the modality is absent")
    elif absent.any():
        raise DataError(f"values[{spec.name!r}] is not zero where the modality is absent: blank those rows")
    elif not np.isfinite(value).all():
        raise DataError(f"values[{spec.name!r}] holds NaN or infinity: write 0 and an observed-indicator feature")
