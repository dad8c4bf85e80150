"""Secure aggregation: sums integer vectors for anyone against a malicious server, without Flower or models.

Two pure state machines over one session context; see docs/secagg.md for the protocol as built.
"""

from __future__ import annotations

from secure_fed.secagg.client import ClientSession, MaskedVector
from secure_fed.secagg.codes import HALTING, Code
from secure_fed.secagg.graph import KRegular, k_regular
from secure_fed.secagg.keys import fresh_secret
from secure_fed.secagg.messages import Transcript
from secure_fed.secagg.opening import ComponentSum
from secure_fed.secagg.packing import pack, packed_bytes, unpack
from secure_fed.secagg.params import ComponentSpec, SecAggParams, VectorSchema, default_threshold
from secure_fed.secagg.ring import (
    Levels,
    Quantiser,
    Source,
    check_no_overflow,
    dequantise,
    largest_value_bits,
    max_level,
    quantise,
    wire_bits,
)
from secure_fed.secagg.server import ServerSession
from secure_fed.secagg.session import SessionContext, Stage

__all__ = [
    "HALTING",
    "ClientSession",
    "Code",
    "ComponentSpec",
    "ComponentSum",
    "KRegular",
    "Levels",
    "MaskedVector",
    "Quantiser",
    "SecAggParams",
    "ServerSession",
    "SessionContext",
    "Source",
    "Stage",
    "Transcript",
    "VectorSchema",
    "check_no_overflow",
    "default_threshold",
    "dequantise",
    "fresh_secret",
    "k_regular",
    "largest_value_bits",
    "max_level",
    "pack",
    "packed_bytes",
    "quantise",
    "unpack",
    "wire_bits",
]
