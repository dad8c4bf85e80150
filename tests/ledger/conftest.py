"""Fixtures: a fresh key, and a run folder with the books of three sites."""

from __future__ import annotations

import pytest
from bookkeeping import Books, N, bodies, write

from secure_fed.identity import Member, Roster, SigningKey


@pytest.fixture
def key():
    return SigningKey.generate()


@pytest.fixture
def books(tmp_path) -> Books:
    keys = {f"site0{i}": SigningKey.generate() for i in (1, 2, 3)}
    members = {
        name: Member(public_key=key.public_bytes.hex(), owns=("image",), declared_n=N) for name, key in keys.items()
    }
    result = Books(
        tmp_path / "run",
        keys,
        Roster.create(members, SigningKey.generate(), coordinator=SigningKey.generate().public_bytes),
    )
    for name, signing in keys.items():
        write(result.ledger(name), name, signing, bodies())
    result.roster.save(result.folder / "roster.json")
    result.summary()
    return result
