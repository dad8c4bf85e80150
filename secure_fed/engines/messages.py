"""Parcels as Flower messages and back: one RecordDict with a ConfigRecord and an ArrayRecord."""

from __future__ import annotations

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
}
"""Action -> Flower message type; the ClientApp registers each."""

_PARCEL = "parcel"
_ARRAYS = "arrays"


def to_record(parcel: Parcel) -> RecordDict:
    """The content of a Flower message."""
    record = RecordDict()
    record[_PARCEL] = ConfigRecord(
        {"code": parcel.code, "site": parcel.site, "header": parcel.header, "body": parcel.body}
    )
    record[_ARRAYS] = ArrayRecord({name: Array(np.ascontiguousarray(a)) for name, a in parcel.arrays.items()})
    return record


def from_record(record: RecordDict) -> Parcel:
    """Read a message's content; one of another shape is a parcel with the code `malformed_message`."""
    try:
        config = record.config_records[_PARCEL]
        code, site, header, body = (config[key] for key in ("code", "site", "header", "body"))
        arrays = {name: array.numpy() for name, array in record.array_records[_ARRAYS].items()}
    except (KeyError, ValueError, TypeError):
        return Parcel(code="malformed_message")
    if not (isinstance(code, str) and isinstance(site, str) and isinstance(header, bytes) and isinstance(body, bytes)):
        return Parcel(code="malformed_message")
    return Parcel(code, site, header, body, arrays)
