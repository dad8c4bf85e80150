"""Days on which a site's disk, clock, data or process fail it: no epsilon lost, no round half charged."""

from __future__ import annotations

import os
import resource
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from federation_bench import Bench
from two_phase_site import SITE, TWO_PHASES, bodies, edit, log_of

from secure_fed.client import books
from secure_fed.client.halt import halted
from secure_fed.client.home import Home
from secure_fed.client.policy import Policy
from secure_fed.engines.simulated_homes import found_homes, kept_home
from secure_fed.federation.config import RunConfig
from secure_fed.federation.wire import Header
from secure_fed.ledger import Ledger, Plan, Reserve, read_ledger, standing, verify
from secure_fed.ledger import ledger as ledger_module
from secure_fed.server.round import Place

# -- the disk ----------------------------------------------------------------------------------------------------


@contextmanager
def disk_that_takes(bytes_more: Callable[[int], int | None], monkeypatch: pytest.MonkeyPatch):
    """The kernel refuses the ledger of SITE more than `bytes_more(number of the write)` bytes; None is no limit."""
    real, writes = Ledger._write, []

    def limited(self: Ledger, handle: int, data: bytes) -> None:
        if self._site != SITE:
            return real(self, handle, data)
        writes.append(data)
        more = bytes_more(len(writes))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        if more is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._path.stat().st_size + more, hard))
        try:
            return real(self, handle, data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_write", limited)
        yield writes


def test_a_disk_that_is_full_after_the_first_of_two_charges_takes_neither_and_the_round_is_charged_once_later(
    bench, monkeypatch
) -> None:
    home = bench.home(SITE)
    # Writes of a first round: genesis, plan, the charges of both phases. One charge is some 900 bytes, two are not.
    with disk_that_takes(lambda number: 1200 if number == 3 else None, monkeypatch) as writes:
        result = bench.round(0, 0)
    assert len(writes) == 3
    assert writes[2].count(b"\n") == 2
    assert len(writes[2].split(b"\n")[0]) < 1200 < len(writes[2]), "the first charge alone would have fitted"
    assert result.survivors == 4
    assert result.traffic.codes == {SITE: "refused"}
    assert bodies(home, Reserve) == [], "half a round was charged"
    assert "File too large" in log_of(home)
    assert bench.pending(SITE) is None
    bench.restart(SITE)
    assert bench.round(1, 1).survivors == 5
    assert [(body.round, body.phase) for body in bodies(home, Reserve)] == [(1, "classify"), (1, "translate")]
    assert verify([home.ledger_path]).ok


@pytest.mark.parametrize("number", [1, 2, 3], ids=["genesis", "plan", "charges"])
def test_a_disk_that_refuses_a_write_costs_the_site_that_round_and_no_epsilon(bench, monkeypatch, number) -> None:
    home = bench.home(SITE)
    with disk_that_takes(lambda write: 100 if write == number else None, monkeypatch):
        assert bench.round(0, 0).survivors == 4
    assert not Ledger.is_begun(home.ledger_path) or bodies(home, Reserve) == []
    bench.restart(SITE)
    assert bench.round(1, 1).survivors == 5
    assert {body.round for body in bodies(home, Reserve)} == {1}
    assert len(bodies(home, Plan)) == 1
    assert verify([home.ledger_path]).ok


def test_a_log_that_cannot_be_written_changes_no_answer_and_keeps_no_site_from_halting(
    bench, monkeypatch, capsys
) -> None:
    home, real = bench.home(SITE), Path.open

    def full(self: Path, *arguments, **options):
        if self.name == "site.log":
            raise OSError(28, "No space left on device")
        return real(self, *arguments, **options)

    bench.round(0, 0)
    monkeypatch.setattr(Path, "open", full)
    assert bench.sites[SITE].handle(bench.request(SITE, "mask", Header("run", 1, 1, 99))).code == "no_session"
    assert "site.log could not be written (No space left on device)" in capsys.readouterr().err
    home.ledger_path.write_bytes(b"\n".join(home.ledger_path.read_bytes().split(b"\n")[:2]) + b"\n")
    lied = bench.sites[SITE].handle(bench.request(SITE, "finish", Header("run", 1, 1, 100)))
    assert lied.code == "ledger_behind"
    assert halted(home) is not None


# -- clock and data ----------------------------------------------------------------------------------------------


def test_a_clock_that_went_backwards_stops_the_site_before_it_charges_and_the_others_go_on(bench, monkeypatch) -> None:
    home = bench.home(SITE)
    bench.round(0, 0)
    before = home.ledger_path.read_bytes()
    real = ledger_module.datetime

    class Behind(real):
        @classmethod
        def now(cls, tz=None):
            shift = timedelta(hours=1) if bench.transport.sent[-1][0] == SITE else timedelta()
            return real.now(tz) - shift

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "datetime", Behind)
        result = bench.round(1, 1)
    assert result.traffic.codes == {SITE: "refused"}
    assert home.ledger_path.read_bytes() == before
    assert "The clock went backwards" in log_of(home)
    assert "Set the clock; nothing was written" in log_of(home)
    assert "site02" not in result.traffic.codes


def test_a_clock_set_forward_frees_no_epsilon(bench, monkeypatch) -> None:
    """It makes yesterday of today, and so frees rounds a day: those are the owner's patience, not his privacy."""
    home = bench.home(SITE)
    edit(home, max_rounds_a_day=1)
    bench.round(0, 0)
    assert bench.round(1, 1).traffic.codes[SITE] == "refused_by_policy"
    held = standing(read_ledger(home.ledger_path)).committed()
    real = books.datetime

    class Ahead(real):
        @classmethod
        def now(cls, tz=None):
            return real.now(tz) + timedelta(days=30)

    monkeypatch.setattr(books, "datetime", Ahead)
    assert bench.round(1, 2).survivors == 5
    assert standing(read_ledger(home.ledger_path)).committed() == held


def test_records_that_cannot_be_read_cost_no_epsilon_however_often_the_coordinator_asks(bench) -> None:
    home, site = bench.home(SITE), bench.sites[SITE]
    read = site._load_records

    def unreadable():
        raise OSError(5, "Input/output error", "/data/patient-4711.png")

    site._load_records = unreadable
    for number in range(2):
        result = bench.round(0, number)
        assert result.traffic.codes == {SITE: "internal_error"}
    assert bodies(home, Reserve) == []
    assert all("patient" not in str(parcel) for _, _, parcel in bench.transport.received)
    site._load_records = read
    assert bench.round(0, 2).survivors == 5
    assert {body.round for body in bodies(home, Reserve)} == {2}


def config_of(make_config, tmp_path, *overrides: str, run: str) -> RunConfig:
    return make_config(f"federation.homes={tmp_path / 'homes'}", *overrides, folder=tmp_path / run)


# -- homes that are half there -----------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


def test_a_crash_while_a_home_is_made_leaves_none_and_the_next_run_makes_it(make_config, tmp_path, monkeypatch) -> None:
    from secure_fed.client import home as homes
    from secure_fed.engines.runner import prepare

    config = config_of(make_config, tmp_path, "method=zero_fill", run="one")
    calls: list[Path] = []

    def die(path: Path, policy: Policy) -> None:
        calls.append(path)
        if len(calls) == 3:
            # What another process that only looks would meet now: keys, and no policy yet.
            assert kept_home(config, "site03") is None
            prepare(config)
            raise Killed
        save(path, policy)

    save = homes.save_policy
    prepared = prepare(config)
    with monkeypatch.context() as patch:
        patch.setattr(homes, "save_policy", die)
        with pytest.raises(Killed):
            found_homes(tmp_path / "one", prepared.federation)
    assert {path.name for path in (tmp_path / "homes").glob("site*")} == {"site01", "site02"}
    keys = {name: Home(tmp_path / "homes" / name).signing_key().public_bytes for name in ("site01", "site02")}
    bench = Bench.make(replace_folder(config, tmp_path / "two"))
    assert bench.round(run="a").survivors == 5
    assert {name: bench.home(name).signing_key().public_bytes for name in keys} == keys
    assert not list((tmp_path / "homes").glob(".site*"))


def replace_folder(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"run_dir": str(folder)})


@pytest.mark.parametrize(
    ("number", "torn"),
    [(2, False), (3, False), (3, True), (5, False), (5, True)],
    ids=["after the plan", "after the charges", "in the charges", "after the close", "in the close"],
)
def test_a_crash_at_any_write_of_the_ledger_only_over_counts(make_config, tmp_path, monkeypatch, number, torn) -> None:
    overrides = (TWO_PHASES, "federation.lifetime_epsilon=8", "privacy.epsilon=3")
    bench = Bench.make(config_of(make_config, tmp_path, *overrides, run="one"))
    real, writes = Ledger._write, []

    def mortal(self: Ledger, handle: int, data: bytes) -> None:
        if self._site == SITE:
            writes.append(data)
            if len(writes) == number:
                if torn:
                    os.write(handle, data[: len(data) - 20])
                else:
                    real(self, handle, data)
                raise Killed
        real(self, handle, data)

    def run() -> None:
        bench.round(0, 0, run="a")
        bench.coordinator.finish(Place("a", 1, 1))

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_write", mortal)
        with pytest.raises(Killed):
            run()
    bench.restart(SITE)
    home = bench.home(SITE)
    if number < 5:
        bench.round(0, 1, run="a")
    bench.coordinator.finish(Place("a", 1, 2))
    charged = Counter(body.phase for body in bodies(home, Reserve))
    # What was noised is on the ledger: one round or two of each phase, and a torn write may have kept the first.
    assert charged["classify"] in {1, 2}
    assert charged["translate"] in {1, 2}
    assert charged["classify"] >= charged["translate"]
    books_ = standing(read_ledger(home.ledger_path))
    assert books_.run("a").closed
    assert books_.spent() <= books_.committed() <= 3
    verdict = verify([home.ledger_path])
    assert verdict.ok, verdict.problems
    assert not [p for p in home.private.glob("*.bin") if p.stem.startswith(("pending-", "track-", "session-"))]
