"""Schema 1 byte for byte: a change of format needs a new schema name, not another content of a golden file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bookkeeping import N, close, forge, genesis, plan, reserve, settle
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_fed.accounting import Mechanism, joint_noise_multiplier
from secure_fed.identity import SigningKey
from secure_fed.ledger import Note, Off, PlannedPhase, Refusal, read_ledger, signing_keys, verify
from secure_fed.ledger.record import BODIES

GOLDEN = Path(__file__).with_name("golden_ledger.jsonl")
REKEYED = Path(__file__).with_name("golden_ledger_rekeyed.jsonl")
DOCUMENT = Path(__file__).parents[2] / "docs" / "ledger.md"


CAPPED = Mechanism("truncated_poisson_gaussian", 1.5, 0.0625, 16, batch_cap=50, population=N)
JOINT = Mechanism("poisson_gaussian", joint_noise_multiplier((2.0, 3.0)), 0.1, 8, component_noise=(2.0, 3.0))


def all_kinds(key):
    """Every kind of record, and every form of a mechanism."""
    off = PlannedPhase(name="encoders", mechanism=None, max_grad_norm=None, rounds=1, components=("fusion",))
    first, second = plan().phases
    phases = (first.model_copy(update={"mechanism": CAPPED}), second.model_copy(update={"mechanism": JOINT}))
    return [
        genesis(key, epsilon_limit=None),
        plan(phases=phases, epsilon=20.0, filter_epsilon=None),
        reserve(0, mechanism=CAPPED, sampler="truncated_poisson"),
        reserve(0, "translators", mechanism=JOINT),
        settle(0),
        close(),
        Refusal(code="budget_exhausted", run="run-1", round=1),
        Note(code="remark", text="Ärger im Rechenzentrum"),
        plan(run="run-2", phases=(off,), epsilon=None, rng="insecure_reproducible"),
        Off(run="run-2", step=0, round=0, phase="encoders"),
    ]


def fixed_key(first: int) -> SigningKey:
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(first, first + 32))))


def rekeyed():
    """A charge under each of three keys."""
    key = fixed_key(0)
    # Rounded, so that another machine's last digits do not change the golden bytes.
    fixed = plan(filter_epsilon=round(plan().filter_epsilon, 9))
    items = [fixed, reserve(0), fixed_key(1), reserve(1), settle(1), fixed_key(2), reserve(2)]
    return key, [genesis(key), *items]


def test_every_kind_is_written_byte_for_byte_as_in_schema_1(tmp_path):
    key = fixed_key(0)
    path = forge(tmp_path / "ledger.jsonl", "site01", key, all_kinds(key))
    assert path.read_bytes() == GOLDEN.read_bytes()
    path = forge(tmp_path / "rekeyed.jsonl", "site01", *rekeyed())
    assert path.read_bytes() == REKEYED.read_bytes()


def test_golden_ledger_is_read_and_verifies():
    assert {r.kind for r in read_ledger(GOLDEN)} == {
        "genesis",
        "plan",
        "reserve",
        "settle",
        "refusal",
        "note",
        "off",
        "close",
    }
    assert verify([GOLDEN]).ok


def test_golden_ledger_of_three_keys_is_read_and_verifies():
    records = read_ledger(REKEYED)
    assert signing_keys(records) == tuple(fixed_key(n).public_bytes.hex() for n in range(3))
    assert [record.seq for record in records if record.kind == "rekey"] == [3, 6]
    assert verify([REKEYED]).ok


@pytest.mark.parametrize(("golden", "number"), [(GOLDEN, 0), (GOLDEN, 2), (REKEYED, 3)])
def test_documentation_shows_the_golden_records(golden, number):
    assert golden.read_text(encoding="utf-8").splitlines()[number] in DOCUMENT.read_text(encoding="utf-8")


def test_documentation_names_every_field_of_every_body_in_its_place():
    text = DOCUMENT.read_text(encoding="utf-8")
    text = text[text.index("## The bodies") : text.index("## What a new plan must pass")]
    for kind, body in BODIES.items():
        section = text[text.index(f"**{kind}**") :]
        section = section[: section.find("\n**", 2)]
        missing = [name for name in body.model_fields if not re.search(rf"\b{name}\b", section)]
        assert not missing, f"{kind}: {missing}"
