"""The public paired set: which patients are public, and their records as named arrays and back, without loss.

What is not needed is not in them: no patient's id, no site, and no mask of presence, as everything is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_fed.data.partition import SitesOf
from secure_fed.data.records import FloatArray, IndexArray, ModalitySpec, Records, Schema, ValueArray
from secure_fed.errors import ConfigError, DataError

Array = npt.NDArray[Any]
LABELS = "labels"
_UNKNOWN = -1


def split_public(
    training: Records, fraction: float, seed: int, layout: Sequence[SitesOf] = ()
) -> tuple[IndexArray, IndexArray]:
    """Positions of the records that stay with the sites, and of those in the public set.

    `fraction` of the patients who have a record with every modality are public, at least one where there is one; the
    set holds such records of theirs, and what else they have is left out: no patient is on both sides. Which patients
    depends on `seed` and the data only; a part of `layout` whose sites lack a modality has no such record, whatever its
    stand-in holds. Raises ConfigError for a fraction outside [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ConfigError(f"federation.public_fraction={fraction}: expected a number from 0 up to, but not, 1")
    everyone = np.arange(len(training))
    complete = np.logical_and.reduce([training.presence[name] for name in training.schema.names])
    for part in layout:
        if not part.owned.issuperset(training.schema.names):
            complete &= training.groups != part.part
    candidates = np.unique(training.unit_ids[complete])
    if fraction == 0.0 or not len(candidates):
        return everyone, everyone[:0]
    count = max(1, round(fraction * len(candidates)))
    chosen = np.random.default_rng([seed, 3]).permutation(len(candidates))[:count]
    public = np.isin(training.unit_ids, candidates[chosen])
    return np.flatnonzero(~public), np.flatnonzero(public & complete)


def encode_public(records: Records) -> dict[str, Array]:
    """`n` complete records as arrays; equal records give equal bytes.

    `labels` int8 [n, L]: 0, 1, or -1 where unknown. For an image or a table `values/<modality>` float32 [n, ...]; for
    text `text/<modality>` uint8 [bytes], the UTF-8 of all of them, and `offsets/<modality>` int64 [n + 1], where each
    begins and the last one ends. Raises DataError where a modality is missing or a text has no UTF-8.
    """
    if not len(records):
        raise DataError("a public set without a record: nothing could be learnt from it")
    arrays: dict[str, Array] = {LABELS: np.where(np.isnan(records.labels), _UNKNOWN, records.labels).astype(np.int8)}
    for spec in records.schema.modalities:
        if not records.presence[spec.name].all():
            raise DataError(f"a record of the public set has no {spec.name}: it takes records with every modality")
        values = np.asarray(records.values[spec.name])
        if spec.kind == "text":
            arrays |= _encode_text(spec.name, values)
        else:
            arrays[f"values/{spec.name}"] = np.ascontiguousarray(values, dtype=np.float32)
    return arrays


def decode_public(schema: Schema, arrays: Mapping[str, Array]) -> Records:
    """The records that `encode_public` made these of, under numbers in the place of patients' ids.

    Nothing about the arrays is believed: raises DataError, naming the array, for a wrong name, type or shape, a label
    that is none, offsets out of order, bytes that are not UTF-8, and values that are not finite.
    """
    expected = {LABELS, *(name for spec in schema.modalities for name in _names(spec))}
    if set(arrays) != expected:
        strange = sorted(set(arrays) ^ expected)[0]
        raise DataError(f"the public set's arrays are not those of this schema: {strange!r} is missing or too much")
    labels = _typed(arrays, LABELS, np.int8, 2)
    n, width = labels.shape
    if n < 1 or width != len(schema.labels) or not np.isin(labels, (0, 1, _UNKNOWN)).all():
        raise DataError(
            f"the public set's labels have shape {labels.shape}: expected one row or more of {len(schema.labels)} "
            "values, each 0, 1 or -1"
        )
    return Records(
        schema=schema,
        values={spec.name: _decode_one(spec, arrays, n) for spec in schema.modalities},
        presence={name: np.ones(n, dtype=bool) for name in schema.names},
        labels=_as_floats(labels),
        unit_ids=np.array([f"public-{number:06d}" for number in range(n)]),
    )


def _names(spec: ModalitySpec) -> tuple[str, ...]:
    return (f"text/{spec.name}", f"offsets/{spec.name}") if spec.kind == "text" else (f"values/{spec.name}",)


def _encode_text(name: str, texts: ValueArray) -> dict[str, Array]:
    try:
        encoded = [str(text).encode("utf-8") for text in texts]
    except UnicodeEncodeError as error:
        raise DataError(f"a text of {name} in the public set has no UTF-8: {error.reason}; mend it") from error
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {f"text/{name}": np.frombuffer(b"".join(encoded), dtype=np.uint8), f"offsets/{name}": ends}


def _decode_one(spec: ModalitySpec, arrays: Mapping[str, Array], n: int) -> ValueArray:
    if spec.kind != "text":
        (name,) = _names(spec)
        values = _typed(arrays, name, np.float32, 1 + len(spec.shape))
        if values.shape != (n, *spec.shape):
            raise DataError(f"the public set's {name} has shape {values.shape}: expected {(n, *spec.shape)}")
        return values  # Records refuses what is not finite
    text, offsets = _names(spec)
    raw, ends = _typed(arrays, text, np.uint8, 1), _typed(arrays, offsets, np.int64, 1)
    if len(ends) != n + 1 or ends[0] != 0 or ends[-1] != len(raw) or (ends[1:] < ends[:-1]).any():
        raise DataError(f"the public set's {offsets} do not cut {len(raw)} bytes into {n} texts, one after the other")
    joined = raw.tobytes()
    values = np.empty(n, dtype=object)
    try:
        values[:] = [joined[start:end].decode("utf-8") for start, end in pairwise(ends)]
    except UnicodeDecodeError as error:
        raise DataError(f"the public set's {text} is not UTF-8: {error.reason}") from error
    return values


def _typed(arrays: Mapping[str, Array], name: str, dtype: type[np.generic], rank: int) -> Array:
    array = arrays[name]
    if array.dtype != dtype or array.ndim != rank:
        raise DataError(
            f"the public set's {name} is {array.dtype} of rank {array.ndim}: expected {np.dtype(dtype)} of rank {rank}"
        )
    return array


def _as_floats(labels: Array) -> FloatArray:
    return np.where(labels == _UNKNOWN, np.float32("nan"), labels.astype(np.float32)).astype(np.float32)
