"""What a site keeps of the others' ledgers, what it makes of its own anchors, and what nobody can make it believe."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from example_policy import STRICT

from secure_fed.client.books import open_ledger
from secure_fed.client.halt import halt, halted, resume
from secure_fed.client.home import Home
from secure_fed.client.rotation import rotate_key
from secure_fed.client.witness import LedgerBehind, Witnesses, own_anchor, packed, remembered, require_ahead, unpacked
from secure_fed.errors import LedgerError
from secure_fed.identity import SigningKey
from secure_fed.ledger import Anchor, Note, make_anchor, read_ledger
from secure_fed.secagg.notes import NOTE_BYTES

SITE = STRICT.site
KEYS = {name: SigningKey.generate() for name in ("site01", "site02", "site03")}
PUBLIC = {name: key.public_bytes for name, key in KEYS.items()}


def said(name: str, length: int, head: int = 0) -> Anchor:
    """An anchor of another site; `head` tells two ledgers of one length apart."""
    return make_anchor(name, length, bytes([head]) * 32, KEYS[name])


def note(home: Home, text: str = "here") -> None:
    with open_ledger(home, home.policy()) as ledger:
        ledger.append(Note(code="remark", text=text))


def anchored(home: Home, length: int, key: SigningKey | None = None) -> Anchor:
    """What the site said when its ledger had this length."""
    record = read_ledger(home.ledger_path)[length - 1]
    return make_anchor(SITE, length, bytes.fromhex(record.hash), key or home.signing_key())


def site_log(home: Home) -> str:
    path = home.private / "site.log"
    return path.read_text() if path.exists() else ""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home whose ledger has five records."""
    home = Home.create(tmp_path / SITE, STRICT)
    for number in range(4):
        note(home, f"remark {number}")
    return home


@pytest.fixture
def witnesses(home: Home) -> Witnesses:
    return Witnesses(home)


# -- the others' ledgers ---------------------------------------------------------------------------------------


def test_what_was_kept_is_read_back_in_order_and_nothing_is_written_twice(witnesses) -> None:
    assert witnesses.all() == ()
    assert witnesses.latest("site01") is None
    first, second, third = said("site01", 3), said("site02", 9), said("site01", 4)
    witnesses.keep([first, second, first])
    before = witnesses.path.read_bytes()
    witnesses.keep([second])
    assert witnesses.path.read_bytes() == before
    witnesses.keep([first, third])
    assert witnesses.path.read_bytes().startswith(before), "only ever appended to"
    assert witnesses.all() == (first, second, third)
    assert (witnesses.latest("site01"), witnesses.latest("site02")) == (third, second)
    assert witnesses.path.stat().st_mode & 0o777 == 0o600


def test_a_line_torn_at_any_byte_is_removed_and_a_whole_one_is_kept(witnesses) -> None:
    kept, last, more = said("site01", 3), said("site01", 4), said("site02", 1)
    line = last.to_line()
    for cut in range(len(line) + 1):
        witnesses.path.write_bytes(kept.to_line() + b"\n" + line[:cut])
        whole = (kept, last) if cut == len(line) else (kept,)
        assert witnesses.all() == whole
        witnesses.keep([more])
        expected = b"".join(anchor.to_line() + b"\n" for anchor in (*whole, more))
        assert witnesses.path.read_bytes() == expected, f"cut after {cut} bytes"


def test_a_line_that_is_no_anchor_stays_and_counts_for_nothing(witnesses) -> None:
    first, second = said("site01", 3), said("site01", 4)
    junk = first.to_line() + b"\nnot an anchor\n" + first.to_line().replace(b'"length":3', b'"length": 3') + b"\n"
    witnesses.path.write_bytes(junk)
    witnesses.keep([second])
    assert witnesses.all() == (first, second)
    assert witnesses.path.read_bytes() == junk + second.to_line() + b"\n"


def test_a_full_disk_is_an_error_and_what_was_kept_stays(witnesses, monkeypatch) -> None:
    witnesses.keep([said("site01", 3)])
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, data[:60])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(LedgerError, match="No space left on device"):
            witnesses.keep([said("site01", 4)])
    witnesses.keep([said("site01", 5)])
    assert witnesses.all() == (said("site01", 3), said("site01", 5))


def test_a_peer_gets_the_longest_other_anchor_that_it_said_before_and_its_new_one_is_kept(home, witnesses) -> None:
    assert witnesses.answer({"site01": packed(said("site01", 3))}, PUBLIC) == {}, "nothing was known of it"
    assert witnesses.answer({"site01": packed(said("site01", 5))}, PUBLIC) == {"site01": packed(said("site01", 3))}
    assert "said" not in site_log(home), "a ledger that grew is nothing to tell the operator"
    for notice in (said("site01", 4), said("site01", 5, head=1)):  # one that is behind, one that is another
        assert witnesses.answer({"site01": packed(notice)}, PUBLIC) == {"site01": packed(said("site01", 5))}
    assert "site01 says length 4, and said 5 before" in site_log(home)
    assert set(witnesses.all()) == {said("site01", 3), said("site01", 5), said("site01", 4), said("site01", 5, head=1)}


def test_a_peer_without_a_ledger_is_told_of_the_one_that_it_had(witnesses) -> None:
    witnesses.keep([said("site01", 3)])
    notices = {"site01": b"", "site02": b""}
    assert witnesses.answer(notices, PUBLIC) == {"site01": packed(said("site01", 3))}
    assert witnesses.all() == (said("site01", 3),)


NOT_ITS_OWN: dict[str, bytes] = {
    "rubbish": b"\xff\x00",
    "cut off": packed(said("site01", 7))[:-1],
    "longer": packed(said("site01", 7)) + b"\0",
    "of no records": bytes(8) + packed(said("site01", 7))[8:],
    "another member's": packed(said("site02", 7)),
    "signed by another": packed(make_anchor("site01", 7, bytes(32), KEYS["site02"])),
    "changed": packed(said("site01", 7)).replace(b"\x07", b"\x08", 1),
}


@pytest.mark.parametrize("notice", NOT_ITS_OWN.values(), ids=NOT_ITS_OWN.keys())
def test_a_notice_that_is_not_its_members_anchor_is_logged_and_stops_nobody(home, witnesses, notice) -> None:
    witnesses.keep([said("site01", 3)])
    answers = witnesses.answer({"site01": notice, "site02": packed(said("site02", 2))}, PUBLIC)
    assert answers == {"site01": packed(said("site01", 3))}
    assert witnesses.all() == (said("site01", 3), said("site02", 2))
    assert "the notice of site01 is no anchor that it signed" in site_log(home)


# -- its own ledger, by itself -------------------------------------------------------------------------------


def test_the_own_anchor_is_the_ledger_as_it_is_and_there_is_none_before_it_begins(home, tmp_path) -> None:
    records = read_ledger(home.ledger_path)
    anchor = own_anchor(home, SITE)
    assert anchor is not None
    assert (anchor.length, anchor.head) == (5, records[-1].hash)
    assert anchor.signed_by(home.signing_key().public_bytes)
    assert remembered(home) == anchor
    assert len(packed(anchor)) <= NOTE_BYTES
    assert unpacked(SITE, packed(anchor)) == anchor
    assert own_anchor(Home.create(tmp_path / "new", STRICT), SITE) is None


def test_what_is_appended_is_remembered_even_where_the_block_fails(home) -> None:
    with contextlib.suppress(ZeroDivisionError), open_ledger(home, home.policy()) as ledger:
        ledger.append(Note(code="remark", text="before the failure"))
        raise ZeroDivisionError
    assert remembered(home) == anchored(home, 6)


def cut(home: Home) -> None:
    """The last record off."""
    lines = home.ledger_path.read_bytes().splitlines(keepends=True)
    home.ledger_path.write_bytes(b"".join(lines[:-1]))


def replaced(home: Home) -> None:
    """Another ledger of the same key, and longer."""
    home.ledger_path.unlink()
    memory = (home.private / "ledger-head.bin").read_bytes()
    (home.private / "ledger-head.bin").unlink()
    for number in range(8):
        note(home, f"another remark {number}")
    (home.private / "ledger-head.bin").write_bytes(memory)


def removed(home: Home) -> None:
    home.ledger_path.unlink()


@pytest.mark.parametrize("harm", [cut, replaced, removed])
def test_a_ledger_that_was_cut_replaced_or_removed_alone_is_found_without_any_peer(home, harm) -> None:
    harm(home)
    before = home.ledger_path.read_bytes() if home.ledger_path.exists() else None
    for use in (lambda: own_anchor(home, SITE), lambda: note(home), lambda: rotate_key(home)):
        with pytest.raises(LedgerBehind, match="begin a new one with a new key") as caught:
            use()
        assert caught.value.anchors[SITE].length == 5
    assert (home.ledger_path.read_bytes() if home.ledger_path.exists() else None) == before, "nothing was added"


def test_a_ledger_that_a_crash_left_longer_than_remembered_is_no_lie(home) -> None:
    memory = (home.private / "ledger-head.bin").read_bytes()
    note(home, "the crash came before it was remembered")
    (home.private / "ledger-head.bin").write_bytes(memory)
    assert own_anchor(home, SITE) == anchored(home, 6)


# -- its own ledger, by its peers ------------------------------------------------------------------------------


def test_anchors_that_the_ledger_continues_stop_nothing(home) -> None:
    require_ahead(home, SITE, {"site01": b"", "site02": packed(anchored(home, 5)), "site03": packed(anchored(home, 1))})
    assert "witness" not in site_log(home)


BEHIND: dict[str, Callable[[Home], tuple[int, bytes]]] = {
    "longer": lambda home: (6, bytes(32)),
    "as long, another head": lambda home: (5, bytes(32)),
    "shorter, another head": lambda home: (2, bytes(32)),
}


@pytest.mark.parametrize("case", BEHIND)
def test_an_own_anchor_that_the_ledger_does_not_continue_stops_the_site_for_good(home, case) -> None:
    anchor = make_anchor(SITE, *BEHIND[case](home), home.signing_key())
    notes = {"site01": packed(anchored(home, 3)), "site02": packed(anchor), "site03": packed(anchor)}
    before = home.ledger_path.read_bytes()
    with pytest.raises(LedgerBehind) as caught:
        require_ahead(home, SITE, notes)
    assert caught.value.anchors == {"site02": anchor, "site03": anchor}, "who returned it"
    for use in (lambda: own_anchor(home, SITE), lambda: note(home), lambda: rotate_key(home)):
        with pytest.raises(LedgerBehind):
            use()
    assert home.ledger_path.read_bytes() == before


INVENTED: dict[str, Callable[[Home], bytes]] = {
    "rubbish": lambda home: b"\xff\x00",
    "of no records": lambda home: bytes(104),
    "another key's": lambda home: packed(make_anchor(SITE, 99, bytes(32), KEYS["site01"])),
    "another site's": lambda home: packed(make_anchor("site01", 99, bytes(32), home.signing_key())),
    "made longer": lambda home: packed(anchored(home, 5)).replace(b"\x05", b"\x06", 1),
}


@pytest.mark.parametrize("case", INVENTED)
def test_what_the_site_did_not_sign_stops_nothing_and_is_logged(home, case) -> None:
    require_ahead(home, SITE, {"site01": INVENTED[case](home)})
    assert "witness" in site_log(home)
    note(home, "goes on")


def test_an_anchor_by_a_key_that_was_replaced_since_still_counts(home) -> None:
    """The home was put back to an older copy and its key was rotated there: peers have what the old key signed."""
    old = home.signing_key()
    longer = make_anchor(SITE, 40, bytes(32), old)
    earlier = anchored(home, 5, old)
    rotate_key(home)
    note(home)
    require_ahead(home, SITE, {"site01": packed(earlier)})
    with pytest.raises(LedgerBehind):
        require_ahead(home, SITE, {"site01": packed(longer)})


def test_a_home_begun_anew_under_the_same_key_is_behind_before_its_ledger_begins(home, tmp_path) -> None:
    new = Home.create(tmp_path / "again", STRICT)
    (new.private / "identity.pem").write_bytes((home.private / "identity.pem").read_bytes())
    with pytest.raises(LedgerBehind):
        require_ahead(new, SITE, {"site01": packed(anchored(home, 5))})
    with pytest.raises(LedgerBehind):
        note(new)
    assert not new.ledger_path.exists()


def test_a_halted_site_resumes_only_once_the_records_are_back(home) -> None:
    whole = home.ledger_path.read_bytes()
    latest = anchored(home, 5)
    cut(home)
    (home.private / "ledger-head.bin").unlink()  # as in a home that was put back whole: only peers know
    with pytest.raises(LedgerBehind) as caught:
        require_ahead(home, SITE, {"site01": packed(latest)})
    halt(home, SITE, caught.value.code, caught.value.detail, [], caught.value.facts())
    with pytest.raises(LedgerBehind):
        resume(home, "let it go on")
    found = halted(home)
    assert found is not None
    assert found.code == "ledger_behind"
    home.ledger_path.write_bytes(whole)
    resume(home, "the newest copy of the ledger is back")
    assert halted(home) is None
    assert [record.body.code for record in read_ledger(home.ledger_path)[5:]] == ["site_resumed"]
