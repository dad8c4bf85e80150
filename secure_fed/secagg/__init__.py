"""Secure aggregation: sums integer vectors for anyone against a malicious server, without Flower or models.

Two pure state machines over one session context; see docs/secagg.md for the protocol as built.
"""

from __future__ import annotations

from secure_fed.secagg.client import ClientSession
from secure_fed.secagg.codes import Code
from secure_fed.secagg.messages import Transcript
from secure_fed.secagg.params import ComponentSpec, SecAggParams, VectorSchema, default_threshold
from secure_fed.secagg.prg import KeyStream
from secure_fed.secagg.ring import (
    check_no_overflow,
    dequantise,
    largest_value_bits,
    max_level,
    quantise,
    system_dither,
)
from secure_fed.secagg.server import ComponentSum, ServerSession
from secure_fed.secagg.session import SessionContext, Stage

__all__ = [
    "ClientSession",
    "Code",
    "ComponentSpec",
    "ComponentSum",
    "KeyStream",
    "SecAggParams",
    "ServerSession",
    "SessionContext",
    "Stage",
    "Transcript",
    "VectorSchema",
    "check_no_overflow",
    "default_threshold",
    "dequantise",
    "largest_value_bits",
    "max_level",
    "quantise",
    "system_dither",
]
