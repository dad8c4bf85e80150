"""Canonical JSON, signing keys and the roster."""

from __future__ import annotations

import json
import math
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed import identity
from secure_fed.errors import ConfigError, LedgerError
from secure_fed.identity import Member, Roster, SigningKey, canonical_json, domain_separated, verify_signature

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
).filter(lambda value: _encodable(value))


def _encodable(value):
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_canonical_json_is_read_back_and_encoded_the_same(value):
    encoded = canonical_json(value)
    assert canonical_json(json.loads(encoded)) == encoded


def test_canonical_json_does_not_depend_on_insertion_order_and_holds_no_spaces():
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'.encode()
    assert canonical_json({"a": "é", "b": (1, 2.5)}) == canonical_json({"b": [1, 2.5], "a": "é"})


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}, {1: 2}, {"a": b"x"}, "\ud800", {1}])
def test_canonical_json_refuses_what_has_no_single_encoding(value):
    with pytest.raises(ConfigError):
        canonical_json(value)


def test_signature_of_one_domain_is_none_in_another():
    key = SigningKey.generate()
    signature = key.sign(domain_separated("ledger/1", b"x"))
    assert verify_signature(key.public_bytes, domain_separated("ledger/1", b"x"), signature)
    assert not verify_signature(key.public_bytes, domain_separated("roster/1", b"x"), signature)
    assert not verify_signature(SigningKey.generate().public_bytes, domain_separated("ledger/1", b"x"), signature)


@pytest.mark.parametrize(("public", "signature"), [(b"", b""), (b"\0" * 31, b"\0" * 64), (b"\xff" * 32, b"\0")])
def test_malformed_key_or_signature_is_false_and_no_crash(public, signature):
    assert verify_signature(public, b"message", signature) is False


def test_key_is_saved_for_its_owner_only_and_read_back(tmp_path):
    key = SigningKey.generate()
    path = tmp_path / "private" / "signing.pem"
    path.parent.mkdir(mode=0o755)
    key.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == ["signing.pem"]
    assert SigningKey.load(path).public_bytes == key.public_bytes
    assert key.public_bytes.hex() not in repr(key)


def test_key_is_never_overwritten(tmp_path):
    path = tmp_path / "k" / "signing.pem"
    key = SigningKey.generate()
    key.save(path)
    with pytest.raises(ConfigError, match="exists already"):
        SigningKey.generate().save(path)
    assert SigningKey.load(path).public_bytes == key.public_bytes


def test_key_that_others_may_read_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "k" / "signing.pem"
    SigningKey.generate().save(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        SigningKey.load(path)


def test_foreign_or_missing_key_file_names_itself(tmp_path):
    path = tmp_path / "signing.pem"
    with pytest.raises(ConfigError, match=r"signing\.pem"):
        SigningKey.load(path)
    path.write_text("not a key")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not an unencrypted PEM"):
        SigningKey.load(path)


def _roster(consortium=None):
    members = {
        name: Member(public_key=SigningKey.generate().public_bytes.hex(), owns=owns, declared_n=200)
        for name, owns in (("site01", ("image",)), ("site02", ("image", "text")))
    }
    return Roster.create(members, consortium or SigningKey.generate(), coordinator=SigningKey.generate().public_bytes)


def test_roster_survives_the_disk(tmp_path):
    roster = _roster()
    roster.save(tmp_path / "roster.json")
    again = Roster.load(tmp_path / "roster.json")
    assert again == roster
    assert again.digest() == roster.digest()
    assert len(roster.digest()) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"consortium": SigningKey.generate().public_bytes.hex()},
        {"signature": "0" * 128},
    ],
)
def test_roster_changed_after_signing_is_refused(change):
    with pytest.raises(LedgerError, match="not by its consortium key"):
        _roster().model_copy(update=change).check()


def test_roster_whose_member_was_swapped_after_signing_is_refused(tmp_path):
    path = tmp_path / "roster.json"
    _roster().save(path)
    value = json.loads(path.read_text())
    value["members"]["site01"]["public_key"] = SigningKey.generate().public_bytes.hex()
    path.write_text(json.dumps(value))
    with pytest.raises(LedgerError):
        Roster.load(path)


def test_roster_with_one_key_for_two_sites_names_both():
    key = SigningKey.generate().public_bytes.hex()
    members = {
        "site01": Member(public_key=key, owns=("image",)),
        "site02": Member(public_key=key, owns=("text",)),
    }
    with pytest.raises(ConfigError, match="site01 and site02"):
        Roster.create(members, SigningKey.generate(), coordinator=SigningKey.generate().public_bytes)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version":1}', "\x00"])
def test_malformed_roster_file_names_itself(tmp_path, text):
    path = tmp_path / "roster.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"roster\.json is malformed"):
        Roster.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Roster.load(tmp_path / "absent.json")


def test_full_disk_leaves_no_half_key(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        SigningKey.generate().save(tmp_path / "k" / "signing.pem")
    assert list((tmp_path / "k").iterdir()) == []


def test_fingerprint_is_short_grouped_and_differs_between_keys():
    prints = {identity.fingerprint(SigningKey.generate().public_bytes) for _ in range(5)}
    assert len(prints) == 5
    assert all(len(p.split(" ")) == 8 for p in prints)
