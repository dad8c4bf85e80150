"""What a home was given in a block of its own survives a power cut before anything that depends on it can leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_policy import STRICT as POLICY

from secure_fed.client import home as homes
from secure_fed.client.books import open_ledger
from secure_fed.client.home import Home
from secure_fed.ledger import Ledger


@pytest.fixture
def home(tmp_path) -> Home:
    return Home.create(tmp_path / "site01", POLICY)


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """The folders whose names were synced, in order."""
    folders: list[Path] = []
    monkeypatch.setattr(homes, "sync_folder", folders.append)
    monkeypatch.setattr("secure_fed.files.sync_folder", folders.append)
    return folders


def test_outside_of_a_block_every_put_is_synced_at_once(home, synced) -> None:
    home.put("one", b"1")
    home.put("two", b"2")
    assert synced == [home.private, home.private]


def test_names_that_a_block_put_or_dropped_are_synced_when_it_is_left(home, synced) -> None:
    with home.alone():
        home.put("one", b"1")
        home.drop("one", synced=True)
        home.put("two", b"2")
        assert not synced
    assert synced == [home.private]
    with home.alone():
        assert home.get("two") == b"2"
    assert synced == [home.private], "nothing was put"


def test_a_block_that_fails_is_settled_too(home, synced) -> None:
    def put_and_fail() -> None:
        with home.alone():
            home.put("one", b"1")
            raise KeyError

    with pytest.raises(KeyError):
        put_and_fail()
    assert synced == [home.private]


def test_a_ledger_is_opened_only_over_a_settled_home(home, synced, monkeypatch) -> None:
    """A charge that survived a power cut without the journal before it would stop the site for good."""
    settled_before: list[int] = []
    opening = Ledger.open_or_create.__func__

    def opened(cls, *arguments):
        settled_before.append(len(synced))
        return opening(cls, *arguments)

    monkeypatch.setattr(Ledger, "open_or_create", classmethod(opened))
    with home.alone():
        home.put("journal", b"{}")
        with open_ledger(home, POLICY):
            pass
    assert settled_before == [1]


def test_the_signing_key_is_read_once_in_a_block_and_forgotten_with_it(home) -> None:
    with home.alone():
        assert home.signing_key() is home.signing_key()
    assert home._key is None
    assert home.signing_key() is not home.signing_key()


def test_a_key_that_was_replaced_in_a_block_is_not_the_one_that_was_read_before(home) -> None:
    with home.alone():
        before = home.signing_key().public_bytes
        homes.SigningKey.generate().save(home.next_key_path)
        home.take_next_key()
        assert home.signing_key().public_bytes != before
