"""Schema 1 byte for byte: a change of format needs a new schema name, not a new golden file."""

from __future__ import annotations

from pathlib import Path

import pytest
from bookkeeping import forge, genesis, plan, reserve, settle
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_fed.identity import SigningKey
from secure_fed.ledger import Note, Off, PlannedPhase, Refusal, read_ledger, verify

GOLDEN = Path(__file__).with_name("golden_ledger.jsonl")
DOCUMENT = Path(__file__).parents[2] / "docs" / "ledger.md"


def all_kinds(key):
    off = PlannedPhase(name="encoders", mechanism=None, max_grad_norm=None, rounds=1, components=("fusion",))
    return [
        genesis(key, epsilon_limit=None),
        plan(),
        reserve(0),
        reserve(0, "translators"),
        settle(0),
        Refusal(code="budget_exhausted", run="run-1", round=1),
        Note(code="remark", text="Ärger im Rechenzentrum"),
        plan(run="run-2", phases=(off,), epsilon=None, rng="insecure_reproducible"),
        Off(run="run-2", step=0, round=0, phase="encoders"),
    ]


def test_every_kind_is_written_byte_for_byte_as_in_schema_1(tmp_path):
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    path = forge(tmp_path / "ledger.jsonl", "site01", key, all_kinds(key))
    assert path.read_bytes() == GOLDEN.read_bytes()


def test_golden_ledger_is_read_and_verifies():
    assert {r.kind for r in read_ledger(GOLDEN)} == {
        "genesis",
        "plan",
        "reserve",
        "settle",
        "refusal",
        "note",
        "off",
    }
    assert verify([GOLDEN]).ok


@pytest.mark.parametrize("number", [0, 2])
def test_documentation_shows_the_golden_records(number):
    assert GOLDEN.read_text(encoding="utf-8").splitlines()[number] in DOCUMENT.read_text(encoding="utf-8")
