"""What a chain cannot show and anchors in other hands can: an end cut off, books written anew, a home restored."""

from __future__ import annotations

import json
import shutil
from io import StringIO

import pytest
from bookkeeping import bodies, forge, genesis, plan, reserve, settle, write
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from secure_fed.errors import ConfigError, LedgerError
from secure_fed.identity import SigningKey
from secure_fed.ledger import Anchor, Note, make_anchor, read_anchors, read_ledger, render, verify

KEY = SigningKey.generate()


def _anchor(path, key=KEY, length=None, site="site01"):
    records = read_ledger(path)
    length = length or len(records)
    return make_anchor(site, length, bytes.fromhex(records[length - 1].hash), key)


def _keep(path, *anchors):
    path.write_bytes(b"".join(anchor.to_line() + b"\n" for anchor in anchors))
    return path


def _cut(path, records):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:records]))


@pytest.fixture
def ledger(tmp_path):
    return write(tmp_path / "home" / "ledger.jsonl", "site01", KEY, bodies())


@pytest.fixture
def anchors(tmp_path, ledger):
    return _keep(tmp_path / "anchors.jsonl", _anchor(ledger, length=4), _anchor(ledger, length=6))


# -- the anchor itself -------------------------------------------------------------------------------------------


def test_anchor_comes_back_from_its_line_and_is_signed_by_its_key_alone(ledger):
    anchor = _anchor(ledger)
    assert Anchor.from_line(anchor.to_line()) == anchor
    assert anchor.signed_by(KEY.public_bytes)
    assert not anchor.signed_by(SigningKey.generate().public_bytes)
    assert anchor.agrees(read_ledger(ledger))
    assert not anchor.agrees(read_ledger(ledger)[:-1])


@pytest.mark.parametrize("field", ["site", "length", "head"])
def test_signature_covers_every_field_of_an_anchor(ledger, field):
    anchor = _anchor(ledger)
    other = {"site": "site02", "length": anchor.length + 1, "head": "ab" * 32}[field]
    assert not anchor.model_copy(update={field: other}).signed_by(KEY.public_bytes)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_no_anchor(junk):
    with pytest.raises(LedgerError, match="is no anchor"):
        Anchor.from_line(junk)


def test_anchor_in_another_form_is_refused(ledger):
    line = _anchor(ledger).to_line()
    with pytest.raises(LedgerError, match="another form"):
        Anchor.from_line(json.dumps(json.loads(line)).encode())


# -- what a verification says of the tail --------------------------------------------------------------------------


def test_without_anchors_the_tail_is_unanchored(ledger):
    verdict = verify([ledger])
    assert verdict.rows[0].tail == "unanchored"
    assert verdict.to_json()["tail"].startswith("unanchored")


def test_ledger_that_continues_what_was_seen_is_anchored_up_to_the_longest_anchor(ledger, anchors):
    verdict = verify([ledger], anchors=[anchors])
    assert verdict.ok, verdict.first_problem
    assert verdict.rows[0].tail == "anchored up to record 6 of 8"
    site = verdict.to_json()["sites"][0]
    assert (site["anchored_records"], site["tail"]) == (6, "anchored up to record 6 of 8")
    assert verdict.tail.startswith("anchored in part")
    _keep(anchors, _anchor(ledger))
    assert verify([ledger], anchors=[anchors]).tail.startswith("anchored: others saw every ledger")


def test_records_cut_off_the_end_are_counted(ledger, anchors):
    _cut(ledger, 3)
    verdict = verify([ledger], anchors=[anchors])
    assert verdict.problems == ("site01: its last 3 records were cut off: an anchor kept by others saw 6 records",)
    assert verdict.rows[0].problem == verdict.problems[0].removeprefix("site01: ")
    assert verdict.rows[0].epsilon is not None  # what is there still counts
    assert verify([ledger]).ok  # without an anchor nobody could tell


def test_books_written_anew_with_the_same_key_are_found(ledger, anchors):
    ledger.unlink()
    write(ledger, "site01", KEY, bodies(3))
    verdict = verify([ledger], anchors=[anchors])
    assert "site01: was written anew: record 3 is not the one that an anchor kept by others saw" in verdict.problems
    assert verdict.rows[0].tail == "unanchored"


def test_home_restored_from_a_snapshot_that_went_on_is_found(ledger, anchors):
    _cut(ledger, 5)
    snapshot = ledger.read_bytes()
    ledger.unlink()
    ledger.write_bytes(snapshot)
    from secure_fed.ledger import Ledger

    with Ledger.open(ledger, "site01", KEY) as opened:
        for number in range(2):
            opened.append(Note(code="remark", text=str(number)))
    verdict = verify([ledger], anchors=[anchors])
    assert verdict.first_problem.startswith("site01: was written anew: record 5 is not the one")
    assert verdict.rows[0].tail == "anchored up to record 4 of 7"


def test_rewritten_and_shorter_books_are_told_both(ledger, anchors):
    ledger.unlink()
    write(ledger, "site01", KEY, bodies(1))
    _keep(anchors, *(item.anchor for item in read_anchors([anchors]).kept), make_anchor("site01", 9, b"x" * 32, KEY))
    told = verify([ledger], anchors=[anchors]).problems
    assert ["written anew" in told[0], "last 4 records were cut off" in told[1]] == [True, True]


def test_anchor_by_a_strangers_key_is_shown_and_not_believed(ledger, anchors):
    """Else anybody could accuse a site of having cut its books."""
    _keep(anchors, make_anchor("site01", 99, b"x" * 32, SigningKey.generate()))
    verdict = verify([ledger], anchors=[anchors])
    assert verdict.ok
    assert "1 anchors ignored: signed by a key that is not this ledger's" in verdict.rows[0].flags
    assert verdict.rows[0].tail == "unanchored"


def test_anchor_with_a_changed_length_is_not_believed(ledger, anchors):
    _keep(anchors, _anchor(ledger).model_copy(update={"length": 99}))
    verdict = verify([ledger], anchors=[anchors])
    assert verdict.ok
    assert any("anchors ignored" in flag for flag in verdict.rows[0].flags)


def test_anchor_that_the_site_kept_itself_vouches_for_nothing(ledger):
    """Whoever restores a home restores that file too, and can sign another."""
    _keep(ledger.parent / "witness.jsonl", _anchor(ledger))
    verdict = verify([ledger], anchors=[ledger.parent])
    assert verdict.rows[0].tail == "unanchored"
    assert "1 anchors ignored: the site kept them itself" in verdict.rows[0].flags


def test_every_key_that_the_ledger_had_counts(tmp_path):
    later = SigningKey.generate()
    path = write(tmp_path / "ledger.jsonl", "site01", KEY, [plan(), reserve(0), later, settle(0)])
    anchors = _keep(tmp_path / "anchors.jsonl", _anchor(path, length=3), _anchor(path, later))
    assert verify([path], anchors=[anchors]).rows[0].tail == "anchored up to record 5 of 5"


def test_cut_that_takes_the_change_of_the_key_with_it_is_found_by_the_rosters_key(books, tmp_path):
    """The ledger itself does not know the key that signed the anchor any more; the roster does."""
    site, key = "site01", books.keys["site01"]
    old = SigningKey.generate()
    path = books.ledger(site)
    path.unlink()
    write(path, site, old, [plan(), reserve(0), key, settle(0)])
    anchors = _keep(tmp_path / "anchors.jsonl", _anchor(path, key))
    assert verify([books.folder], anchors=[anchors]).rows[0].anchored == 5
    _cut(path, 3)
    told = verify([books.folder], anchors=[anchors]).problems
    assert any("its last 2 records were cut off" in problem for problem in told)


def test_anchors_of_other_sites_say_nothing_about_this_one(ledger, anchors):
    _keep(anchors, make_anchor("site02", 99, b"x" * 32, KEY))
    verdict = verify([ledger], anchors=[anchors])
    assert verdict.ok
    assert verdict.rows[0].flags == ()


# -- where anchors come from ---------------------------------------------------------------------------------------


def test_homes_of_a_run_folder_give_the_anchors_they_kept_and_are_named(books):
    seen = _anchor(books.ledger("site01"), books.keys["site01"])
    _keep(books.ledger("site02").with_name("witness.jsonl"), seen)
    verdict = verify([books.folder], anchors=[books.folder])
    assert [row.anchored for row in verdict.rows] == [8, 0, 0]
    _cut(books.ledger("site01"), 7)
    verdict = verify([books.folder], anchors=[books.folder])
    assert "site01: its last record was cut off: an anchor kept by site02 saw 8 records" in verdict.problems


def test_one_home_may_be_given_and_several_at_once(books, tmp_path):
    for keeper, length in (("site02", 3), ("site03", 5)):
        seen = _anchor(books.ledger("site01"), books.keys["site01"], length)
        _keep(books.ledger(keeper).with_name("witness.jsonl"), seen)
    homes = [books.ledger(keeper).parent for keeper in ("site02", "site03")]
    moved = tmp_path / "from-the-lawyer"
    shutil.copytree(homes[1], moved)
    assert verify([books.folder], anchors=[homes[0], moved]).rows[0].anchored == 5
    assert {item.keeper for item in read_anchors([homes[0], moved]).kept} == {"site02", "site03"}


def test_paths_without_anchors_and_lines_that_are_none_are_usage_errors(tmp_path, ledger, anchors):
    with pytest.raises(ConfigError, match="holds no anchors"):
        verify([ledger], anchors=[tmp_path / "absent"])
    with pytest.raises(ConfigError, match="holds no anchors"):
        verify([ledger], anchors=[ledger.parent])
    anchors.write_bytes(anchors.read_bytes() + b"{}\n")
    with pytest.raises(ConfigError, match="line 3 is no anchor"):
        verify([ledger], anchors=[anchors])


def test_torn_last_line_is_remarked_and_a_whole_one_without_its_line_feed_counts(ledger, anchors):
    whole = anchors.read_bytes()
    anchors.write_bytes(whole[:-1])
    assert verify([ledger], anchors=[anchors]).rows[0].anchored == 6
    anchors.write_bytes(whole[:-9])
    verdict = verify([ledger], anchors=[anchors])
    assert verdict.rows[0].anchored == 4
    assert verdict.remarks == ("the last line of the anchors given is torn",)
    assert verdict.to_json()["remarks"] == list(verdict.remarks)


def test_table_shows_how_far_each_ledger_is_anchored(ledger, anchors):
    out = StringIO()
    render(verify([ledger], anchors=[anchors]), Console(file=out, width=160, color_system=None))
    assert "6/8" in out.getvalue()


def test_damaged_ledger_is_not_held_against_anchors_as_well(tmp_path, anchors):
    path = forge(tmp_path / "ledger.jsonl", "site01", KEY, [genesis(KEY), plan(), genesis(KEY)])
    assert verify([path], anchors=[anchors]).problems == ("site01: record 2 is a second genesis record",)
