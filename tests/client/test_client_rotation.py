"""A site changes its signing key: what its home keeps, what is void, and what a crash at any write leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from example_policy import STRICT
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.client.books import open_ledger
from secure_fed.client.home import Home
from secure_fed.client.rotation import require_named, rotate_key
from secure_fed.errors import ConfigError, LedgerError, SecAggError
from secure_fed.identity import Member, Roster, SigningKey, fingerprint
from secure_fed.ledger import Ledger, Note, read_ledger, rotations, signing_keys, verify

KEPT = {"journal": b"journal", "track": b"track", "pending": b"noised and charged", "halt": b"{}"}
POLICY = STRICT.model_copy(update={"site": "site02", "allowed_methods": ("any",), "lifetime_claim": True})


def furnish(root: Path) -> Home:
    """A home in the middle of a run, without a ledger."""
    home = Home.create(root, POLICY)
    for name, content in {**KEPT, "session-7": b"the round's", "session-8": b"the next one's"}.items():
        home.put(name, content)
    return home


def note(home: Home, text: str = "here") -> None:
    with open_ledger(home, home.policy()) as ledger:
        ledger.append(Note(code="remark", text=text))


def sessions(home: Home) -> list[str]:
    return sorted(path.stem for path in home.private.glob("session-*"))


def key_in_force(home: Home) -> str:
    return signing_keys(read_ledger(home.ledger_path))[-1]


@pytest.fixture
def home(tmp_path) -> Home:
    """A home whose ledger has begun."""
    home = furnish(tmp_path / "site02")
    note(home)
    return home


# -- the home --------------------------------------------------------------------------------------------------


def test_rotation_hands_the_ledger_over_voids_sessions_and_keeps_everything_else(home) -> None:
    old = home.signing_key()
    found = rotate_key(home)
    new = home.signing_key()
    assert (found.site, found.public, found.record) == ("site02", new.public_bytes, 2)
    assert signing_keys(read_ledger(home.ledger_path)) == (old.public_bytes.hex(), new.public_bytes.hex())
    assert sessions(home) == []
    assert {name: home.get(name) for name in KEPT} == KEPT
    assert stat.S_IMODE((home.private / "identity.pem").stat().st_mode) == 0o600
    assert not home.next_key_path.exists()
    note(home, "goes on")
    assert verify([home.root]).ok
    with pytest.raises(LedgerError, match="which it replaced"):
        Ledger.open(home.ledger_path, "site02", old)


def test_two_rotations_in_a_row_leave_one_key_and_a_ledger_that_verifies(home) -> None:
    keys = [home.signing_key().public_bytes.hex(), rotate_key(home).public.hex(), rotate_key(home).public.hex()]
    note(home)
    assert list(signing_keys(read_ledger(home.ledger_path))) == keys
    assert verify([home.root]).ok


def test_home_without_a_ledger_gets_a_new_key_and_begins_its_ledger_with_it(tmp_path) -> None:
    home = furnish(tmp_path / "site02")
    old = home.signing_key().public_bytes
    found = rotate_key(home)
    assert found.record is None
    assert home.signing_key().public_bytes == found.public != old
    assert not home.ledger_path.exists()
    assert sessions(home) == []
    note(home)
    assert signing_keys(read_ledger(home.ledger_path)) == (found.public.hex(),)


def test_lost_key_cannot_be_rotated_away_and_the_error_says_what_is_left_to_do(home) -> None:
    (home.private / "identity.pem").unlink()
    before = home.ledger_path.read_bytes()
    with pytest.raises(ConfigError) as refused:
        rotate_key(home)
    for words in ("Only the old key can sign", "begin a new home", "lifetime_claim: false", "by hand"):
        assert words in str(refused.value)
    assert home.ledger_path.read_bytes() == before
    assert not home.next_key_path.exists()


def test_key_that_is_not_the_ledgers_cannot_rotate_it(home) -> None:
    (home.private / "identity.pem").unlink()
    SigningKey.generate().save(home.private / "identity.pem")
    before = home.ledger_path.read_bytes()
    with pytest.raises(LedgerError, match="which it never had"):
        rotate_key(home)
    assert home.ledger_path.read_bytes() == before


def test_ledger_that_is_open_elsewhere_is_not_rotated_under_its_users_feet(home) -> None:
    old = home.signing_key().public_bytes
    with open_ledger(home, home.policy()), pytest.raises(LedgerError, match="open in another process"):
        rotate_key(home)
    assert home.signing_key().public_bytes == old
    assert sessions(home) == ["session-7", "session-8"]


def test_new_key_that_never_reached_the_ledger_is_never_used(home) -> None:
    old = home.signing_key().public_bytes
    SigningKey.generate().save(home.next_key_path)
    left = SigningKey.load(home.next_key_path).public_bytes
    assert home.signing_key().public_bytes == old
    note(home)
    found = rotate_key(home)
    assert found.public not in {old, left}
    assert left.hex() not in signing_keys(read_ledger(home.ledger_path))


def test_another_process_leaves_a_rotation_under_way_alone(home, monkeypatch) -> None:
    """A site's own process looks at its key between the record and the rename: the ledger is locked, so it waits."""
    old, seen = home.signing_key().public_bytes, []
    real = Home.take_next_key

    def look_first(self: Home) -> None:
        seen.append(Home(home.root).signing_key().public_bytes)
        real(self)

    monkeypatch.setattr(Home, "take_next_key", look_first)
    found = rotate_key(home)
    assert seen == [old]
    assert home.signing_key().public_bytes == found.public


# -- crashes ---------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is dead."""


class Disk:
    """The calls that change the disk, counted; at number `fatal` the process dies before it, or in the middle of it.

    Once dead it changes nothing any more, whatever its handlers try. `power`: what was not synced is lost too.
    """

    CALLS = ("open", "write", "fsync", "link", "replace", "unlink", "ftruncate")

    def __init__(self, fatal: int, *, torn: bool = False, power: bool = False) -> None:
        self.count, self.fatal, self.torn, self.power = 0, fatal, torn, power
        self.dead = False
        self.real = {name: getattr(os, name) for name in self.CALLS}
        self.unsynced: list[tuple[Path, Callable[[], object]]] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in self.CALLS:
            patch.setattr(os, name, lambda *args, name=name, **options: self.call(name, args, options))

    def call(self, name: str, args: tuple, options: dict):
        if name == "open" and not args[1] & os.O_CREAT:
            return self.real["open"](*args, **options)
        if self.dead or self.count == self.fatal:
            if not self.dead and self.torn and name == "write":
                self.real["write"](args[0], bytes(args[1])[: len(args[1]) // 2])
            self.dead = True
            raise Crash
        self.count += 1
        self.remember(name, args)
        return self.real[name](*args, **options)

    def remember(self, name: str, args: tuple) -> None:
        """How to take back a change that is not on disk yet, by the file or folder whose sync puts it there."""
        if name == "fsync":
            synced = Path(f"/proc/self/fd/{args[0]}").resolve()
            self.unsynced = [(place, undo) for place, undo in self.unsynced if place != synced]
        elif name == "write":
            path = Path(f"/proc/self/fd/{args[0]}").resolve()
            length = path.stat().st_size
            self.unsynced.append((path, lambda: os.truncate(path, length)))
        elif name in {"link", "replace", "unlink"}:
            for path in (Path(arg) for arg in args):
                content = path.read_bytes() if path.exists() else None
                self.unsynced.append((path.parent.resolve(), lambda path=path, content=content: restore(path, content)))

    def after(self) -> None:
        """What the next process finds."""
        for _, undo in reversed(self.unsynced if self.power else []):
            undo()


def restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content)
        path.chmod(0o600)


def crashed(origin: Home, fatal: int, manner: str) -> tuple[Home, bool]:
    """A copy of the home after a rotation that died at its write number `fatal`; and whether it died at all."""
    root = origin.root.with_name(f"{manner}-{fatal}")
    shutil.copytree(origin.root, root)
    disk = Disk(fatal, torn=manner == "torn", power=manner == "power")
    with pytest.MonkeyPatch.context() as patch:
        disk.install(patch)
        with contextlib.suppress(Crash):
            rotate_key(Home(root))
    disk.after()
    return Home(root), disk.dead


@pytest.mark.parametrize("manner", ["killed", "torn", "power"])
def test_crash_at_any_write_leaves_a_home_that_goes_on_with_the_old_key_or_with_the_new_one(home, manner) -> None:
    old = home.signing_key().public_bytes.hex()
    outcomes, fatal, died = [], 0, True
    while died:
        left, died = crashed(home, fatal, manner)
        key = left.signing_key().public_bytes.hex()
        rotated = key != old
        note(left, "whoever comes next")
        assert key_in_force(left) == key, f"write {fatal}"
        assert sessions(left) == ([] if rotated else ["session-7", "session-8"]), f"write {fatal}"
        assert {name: left.get(name) for name in KEPT} == KEPT
        assert verify([left.root]).ok
        again = rotate_key(left)
        note(left)
        assert key_in_force(left) == left.signing_key().public_bytes.hex() == again.public.hex()
        assert len(rotations(read_ledger(left.ledger_path))) == 1 + rotated
        assert not left.next_key_path.exists()
        assert verify([left.root]).ok
        outcomes.append(rotated)
        fatal += 1
    assert outcomes == sorted(outcomes), "once rotated, a later crash does not take it back"
    assert outcomes.count(False) > 5
    assert outcomes.count(True) > 3


@pytest.mark.parametrize("manner", ["killed", "power"])
def test_crash_at_any_write_leaves_a_home_without_a_ledger_with_one_of_the_two_keys(tmp_path, manner) -> None:
    origin = furnish(tmp_path / "site02")
    old = origin.signing_key().public_bytes
    outcomes, fatal, died = [], 0, True
    while died:
        left, died = crashed(origin, fatal, manner)
        key = left.signing_key().public_bytes
        note(left)
        assert key_in_force(left) == key.hex() == left.signing_key().public_bytes.hex()
        outcomes.append(key != old)
        fatal += 1
    assert set(outcomes) == {False, True}


def test_old_key_is_not_destroyed_before_the_record_that_replaces_it_is_synced(home, monkeypatch) -> None:
    """A process dies between the record's write and its sync, the next one finishes the rename, the power fails."""
    fatal = next(n for n in range(99) if b"rekey" in crashed(home, n, "killed")[0].ledger_path.read_bytes())
    left = Home(home.root.with_name(f"killed-{fatal}"))
    order: list[str] = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (order.append(Path(f"/proc/self/fd/{fd}").resolve().name), real_sync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(f"-> {Path(b).name}"), real_replace(a, b)))
    left.signing_key()
    assert order.index("ledger.jsonl") < order.index("-> identity.pem")


# -- the command -----------------------------------------------------------------------------------------------


def test_command_prints_the_new_key_and_what_the_consortium_has_to_do(home) -> None:
    result = CliRunner().invoke(app, ["site", "rotate-key", str(home.root)])
    assert result.exit_code == 0, result.output
    public = home.signing_key().public_bytes
    for words in (fingerprint(public), public.hex(), "record 2", "roster of a higher version", "cannot take part"):
        assert words in result.output


def test_command_speaks_json(home) -> None:
    result = CliRunner().invoke(app, ["site", "rotate-key", str(home.root), "--json"])
    public = home.signing_key().public_bytes
    assert json.loads(result.output) == {
        "site": "site02",
        "fingerprint": fingerprint(public),
        "public_key": public.hex(),
        "record": 2,
    }


def test_command_without_the_old_key_or_without_a_home_is_refused_plainly(home, tmp_path) -> None:
    (home.private / "identity.pem").unlink()
    for place, words in ((home.root, "Only the old key can sign"), (tmp_path, "is not a site's home")):
        result = CliRunner().invoke(app, ["site", "rotate-key", str(place)])
        assert result.exit_code == 2
        assert words in result.output


# -- the roster ------------------------------------------------------------------------------------------------


def test_a_site_signs_for_no_roster_that_gives_it_another_key_or_no_place() -> None:
    mine, other = SigningKey.generate(), SigningKey.generate()
    members = {"site02": Member(public_key=mine.public_bytes.hex(), owns=("image",))}
    roster = Roster.create(members, SigningKey.generate(), coordinator=SigningKey.generate().public_bytes)
    require_named("site02", mine.public_bytes, roster)
    for site, public in (("site02", other.public_bytes), ("site03", mine.public_bytes)):
        with pytest.raises(SecAggError, match="key_not_on_roster"):
            require_named(site, public, roster)
