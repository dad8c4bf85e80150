"""Opening a ledger again in one process verifies only what is new, and gives what a first reading gives."""

from __future__ import annotations

import os
import time

import pytest
from bookkeeping import bodies, forge, genesis, plan, reserve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secure_fed.identity import SigningKey
from secure_fed.ledger import chain as chain_module
from secure_fed.ledger.chain import read_chain
from secure_fed.ledger.prefixes import NOTHING, Prefix, VerifiedPrefixes

KEY = SigningKey.generate()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "ledger.jsonl"
    items = [genesis(KEY), *bodies(), SigningKey.generate(), reserve(2)]
    return forge(path, "site01", KEY, items).read_bytes()


def _cold(tmp_path, data):
    path = tmp_path / f"{os.urandom(8).hex()}.jsonl"  # a path that this process has never read
    path.write_bytes(data)
    chain = read_chain(path)
    path.unlink()
    return chain


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_a_file_that_was_read_before_reads_as_if_it_were_new(tmp_path, good, data):
    known = data.draw(st.integers(0, len(good)), label="bytes read before")
    changed = bytearray(data.draw(st.sampled_from([good, good[:known]]), label="then"))
    for _ in range(data.draw(st.integers(0, 3))):
        match data.draw(st.sampled_from(["byte", "cut", "drop", "add"])):
            case "byte" if changed:
                changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
            case "cut":
                del changed[data.draw(st.integers(0, len(changed))) :]
            case "drop":
                lines = bytes(changed).splitlines(keepends=True)
                at = data.draw(st.integers(0, max(len(lines) - 1, 0)))
                changed = bytearray(b"".join(lines[:at] + lines[at + 1 :]))
            case _:
                changed += data.draw(st.sampled_from([b"{}\n", b"\n", good.splitlines(keepends=True)[1], b'{"a']))
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(good[:known])
    read_chain(path)
    path.write_bytes(changed)
    assert read_chain(path) == _cold(tmp_path, bytes(changed))
    assert read_chain(path) == _cold(tmp_path, bytes(changed))  # the second reading has a beginning of its own


def test_change_that_keeps_size_and_time_is_found(tmp_path, good):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(good)
    assert read_chain(path).problem is None
    stamp = path.stat()
    path.write_bytes(good.replace(b'"steps":16', b'"steps":61', 2))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    assert read_chain(path).problem.startswith("was changed")
    assert len(read_chain(path).records) == 1


def test_what_was_verified_is_not_verified_again_and_what_is_new_is(tmp_path, good, monkeypatch):
    parsed = []
    real = chain_module.parse_line
    monkeypatch.setattr(chain_module, "parse_line", lambda line: parsed.append(line) or real(line))
    lines = good.splitlines(keepends=True)
    path = tmp_path / "ledger.jsonl"
    for upto, expected in ((5, 5), (5, 0), (7, 2), (len(lines), len(lines) - 7)):
        parsed.clear()
        path.write_bytes(b"".join(lines[:upto]))
        assert len(read_chain(path).records) == upto
        assert len(parsed) == expected


def test_memory_is_bounded_and_the_least_used_goes_first(tmp_path, good):
    kept = VerifiedPrefixes(most_records=20)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(good)
    chain = read_chain(path)
    prefix = Prefix(chain.whole_bytes, chain.records, ())
    names = [tmp_path / str(number) for number in range(3)]
    kept.keep(names[0], good, prefix)
    kept.keep(names[1], good, prefix)
    assert kept.of(names[0], good) == prefix  # used again: the other one is the older now
    kept.keep(names[2], good, prefix)
    assert [kept.of(name, good) is NOTHING for name in names] == [False, True, False]
    assert len(chain.records) * 3 > 20 >= len(chain.records) * 2


@pytest.mark.slow
def test_opening_a_long_ledger_again_takes_a_twentieth_of_the_first_time(tmp_path):
    items = [genesis(KEY), plan(rounds=999), *(reserve(number) for number in range(998))]
    times = [f"2025-06-01T12:00:00.{i:06d}Z" for i in range(len(items))]
    path = forge(tmp_path / "ledger.jsonl", "site01", KEY, items, times)

    def reading():
        began = time.process_time()
        assert len(read_chain(path).records) == 1000
        return time.process_time() - began

    assert reading() > 20 * min(reading() for _ in range(3))  # measured: a thousand times
