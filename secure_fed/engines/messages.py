"""Parcels as Flower messages and back: one RecordDict with a ConfigRecord and an ArrayRecord."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from secure_fed.federation.wire import Parcel

MESSAGE_TYPES = {
    "hello": "query.hello",
    "advertise": "query.advertise",
    "share": "query.share",
    "mask": "train.mask",
    "plain": "train.plain",
    "confirm": "query.confirm",
    "unmask": "query.unmask",
    "finish": "query.finish",
}
"""Action -> Flower message type; the ClientApp registers each."""

_TEXTS = ("action", "site", "code")
_BYTES = ("header", "body", "announcement", "next_header", "next_body", "signature")
_PARCEL = "parcel"
_ARRAYS = "arrays"


def to_record(parcel: Parcel) -> RecordDict:
    """The content of a Flower message."""
    record = RecordDict()
    record[_PARCEL] = ConfigRecord({name: getattr(parcel, name) for name in (*_TEXTS, *_BYTES)})
    record[_ARRAYS] = ArrayRecord({name: Array(np.ascontiguousarray(a)) for name, a in parcel.arrays.items()})
    return record


def from_record(record: RecordDict) -> Parcel:
    """Read a message's content; one of another shape is a parcel with the code `malformed_message`."""
    try:
        config = record.config_records[_PARCEL]
        values: dict[str, Any] = {name: config[name] for name in (*_TEXTS, *_BYTES)}
        arrays = {name: array.numpy() for name, array in record.array_records[_ARRAYS].items()}
    except (KeyError, ValueError, TypeError):
        return Parcel(code="malformed_message")
    texts = all(isinstance(values[name], str) for name in _TEXTS)
    if not texts or not all(isinstance(values[name], bytes) for name in _BYTES):
        return Parcel(code="malformed_message")
    return Parcel(**values, arrays=arrays)
