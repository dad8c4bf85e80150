"""A site's records in two parts: what it trains on, and what it only evaluates on.

A keyed hash of the patient decides, so the parts are the same in every run on a home and nobody else can tell them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC

from secure_fed.data.records import BoolArray, IndexArray, Records, StringArray
from secure_fed.federation.config import EvaluationConfig, PrivacyConfig
from secure_fed.models.batch import Batch, bounded
from secure_fed.models.multimodal import MultimodalModel

KEY_PURPOSE = "held-out patients"
_BYTES = 8


@dataclass(frozen=True)
class SiteRecords:
    """What is trained on, and what is held out; no patient is in both. Without a federated evaluation none is held out.

    How many are in each is private: rates and denominators stand on the declared number for both.
    """

    training: Batch
    held_out: Batch

    @classmethod
    def split(
        cls, records: Records, model: MultimodalModel, privacy: PrivacyConfig, evaluation: EvaluationConfig, key: bytes
    ) -> SiteRecords:
        """The site's records, prepared for the model, with at most `max_records_per_unit` of each unit to train on.

        Raises DataError where an image cannot be read: here nothing is charged yet.
        """
        training, held_out = records, records.select([])
        if evaluation.name == "federated":
            apart = is_held_out(records.unit_ids, evaluation.fraction, key)
            training = records.select(~apart)
            held_out = records.select(in_keyed_order(records.unit_ids, np.flatnonzero(apart), key))
        prepared = bounded(model.prepare(training, privacy.unit), privacy.max_records_per_unit)
        return cls(prepared.require_readable(), model.prepare(held_out, privacy.unit).require_readable())


def is_held_out(unit_ids: StringArray, fraction: float, key: bytes) -> BoolArray:
    """bool [n]: HMAC-SHA256(key, patient) as a number in [0, 1) lies below `fraction`; alike for all of a patient.

    It depends on no other patient. A larger fraction holds out the same patients and more.
    """
    limit = int(fraction * 256**_BYTES)
    return np.array([_number(key, "patient", str(unit)) < limit for unit in unit_ids], dtype=bool)


def in_keyed_order(unit_ids: StringArray, positions: IndexArray, key: bytes) -> IndexArray:
    """`positions` in an order that nobody else can tell: which record of a patient comes first, and counts."""
    seen: Counter[str] = Counter()
    ranks = []
    for position in positions:
        unit = str(unit_ids[position])
        ranks.append(_number(key, "record", f"{seen[unit]}/{unit}"))
        seen[unit] += 1
    return positions[np.argsort(np.array(ranks, dtype=np.uint64), kind="stable")]


def _number(key: bytes, what: str, of: str) -> int:
    code = HMAC(key, hashes.SHA256())
    code.update(f"{what}/{of}".encode())
    return int.from_bytes(code.finalize()[:_BYTES], "big")
