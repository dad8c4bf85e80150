"""What the engine costs a round beside the gradient steps, against a bare torch loop and Flower's Ray simulation.

    OMP_NUM_THREADS=1 python benchmarks/engine.py                                # experiment=small, two minutes or so
    OMP_NUM_THREADS=1 python benchmarks/engine.py --no-ray method=fin            # in one process only
    OMP_NUM_THREADS=1 python benchmarks/engine.py method.classify.steps=40       # more gradient work a round

All do the same gradient steps at the same sites: the same DP-SGD over the same prepared records, one torch thread.
  bare     sites one after the other and a weighted mean: plain torch
  app      Flower's FedAvg in our in-process engine, a site does the gradient steps and nothing else: the engine alone
  plain    our in-process engine with secagg=off: messages, wire format, policy, journal, plan and synced ledger
  masked   the same with masked sums: five stages a round, signatures, and every site follows the model
  ray      masked, under engine=simulation: Flower's Ray simulation, so many worker processes as --workers says
  flower   the app of `app` under Flower's Ray simulation
A round's seconds outside of its gradient steps are timed within the same round, so that steps which happen to be slower
in one run than in another do not count as overhead: `overhead` is these seconds over those of the steps beside them.
No evaluation but the one at the end, and that outside the rounds. A round's seconds are the median over the rounds but
the first, which loads and prepares the data; repetitions take turns, and a figure is the median over them. whole_s is
a repetition from nothing to its end: starting processes, founding homes, preflights and reports. The breakdown comes
from repetitions of their own, sampled by a timer; its rows add up to a round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

from engine_flower import Work, bare_loop, flower_app

from secure_fed.config import compose_config, freeze
from secure_fed.engines.runner import start
from secure_fed.federation.config import RunConfig
from secure_fed.privacy.dpsgd import dp_sgd

IN_PROCESS, RAY = ("bare", "app", "plain", "masked"), ("ray", "flower")
BASE = ("experiment=small", "method=zero_fill", "evaluation.every=1000000")
SETTINGS = {"plain": ("secagg=off",), "masked": (), "ray": ("engine=simulation",)}
TARGET = 0.10
"""Of a round's gradient work: what the engine is to cost at most."""

SAMPLE_S = 0.001
# The innermost frame that fits says what a sample was spent on; "" stands for every function of a file.
PARTS: tuple[tuple[str, str, str], ...] = (
    ("privacy/dpsgd.py", "dp_sgd", "gradient steps"),
    ("secure_fed/files.py", "", "home, written and synced"),
    ("client/home.py", "", "home, written and synced"),
    ("secure_fed/ledger/", "", "ledger, written and synced"),
    ("client/witness.py", "", "ledger, written and synced"),
    ("client/charging.py", "", "ledger, written and synced"),
    ("client/books.py", "", "ledger, written and synced"),
    ("secure_fed/signatures.py", "", "signatures and key agreement"),
    ("secagg/keys.py", "", "signatures and key agreement"),
    ("secure_fed/identity.py", "sign", "signatures and key agreement"),
    ("secure_fed/identity.py", "load", "signatures and key agreement"),
    ("secagg/encoding.py", "", "canonical encoding"),
    ("secure_fed/identity.py", "", "canonical encoding"),
    ("secagg/masking.py", "", "masks, shares and sums"),
    ("secagg/", "", "protocol steps"),
    ("client/following.py", "", "following the model"),
    ("federation/track.py", "", "following the model"),
    ("server/training.py", "save_checkpoint", "checkpoint"),
    ("server/evaluation.py", "", "evaluation"),
    ("engines/messages.py", "", "Flower messages"),
    ("site-packages/flwr/", "", "Flower messages"),
)
MASKS = ("secagg/accumulator.py", "secagg/prg.py", "secagg/ring.py", "secagg/packing.py", "secagg/shamir.py")
PARTS = (*((name, "", "masks, shares and sums") for name in MASKS), *PARTS)
REST = "the rest"


@dataclass(frozen=True)
class Row:
    """One engine as measured; `over_bare` and `whole_over_bare` are ratios to the bare loop.

    overhead: a round's seconds outside of its gradient steps over those within; None where other processes do them.
    """

    engine: str
    round_s: float
    over_bare: float
    overhead: float | None
    whole_s: float
    whole_over_bare: float
    repeats: int


class Rounds:
    """An observer that notes when each round ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def begin(self, config: RunConfig, done: int, notes: Sequence[str] = ()) -> None:
        """Nothing."""

    def round(self, line: dict[str, Any]) -> None:
        """The round that `line` tells of is over."""
        del line
        self.ends.append(time.perf_counter())


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def ours(overrides: Sequence[str], rounds: Rounds | None = None) -> list[float]:
    """A whole run of ours; the time at the end of each round."""
    folder = Path(tempfile.mkdtemp(prefix="secure_fed-engine-"))
    rounds = rounds or Rounds()
    try:
        start(freeze(compose_config(list(overrides)), folder / "run"), rounds)
    finally:
        shutil.rmtree(folder)
    return rounds.ends


class SampledRounds(Rounds):
    """Shares the time of the rounds but the first among PARTS, by a timer that looks where the main thread is."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._sampled: dict[str, float] = defaultdict(float)
        self._last = 0.0

    def round(self, line: dict[str, Any]) -> None:
        """As Rounds."""
        super().round(line)
        if len(self.ends) == 1:
            self._sampled.clear()
            self._last = time.perf_counter()
        self.seconds = dict(self._sampled)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample in this block."""
        before = signal.signal(signal.SIGALRM, self._sample)
        signal.setitimer(signal.ITIMER_REAL, SAMPLE_S, SAMPLE_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _sample(self, _signal: int, frame: FrameType | None) -> None:
        # A long call into C lets signals wait: what passed since the last sample is its own.
        now = time.perf_counter()
        self._sampled[part_of(frame)] += now - self._last
        self._last = now


def part_of(frame: FrameType | None) -> str:
    """What a sample is spent on."""
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        for name, only, part in PARTS:
            if name in file and only in ("", function):
                return part
        frame = frame.f_back
    return REST


def breakdown(overrides: Sequence[str]) -> dict[str, float]:
    """Part -> seconds of a round, over the rounds but the first."""
    rounds = SampledRounds()
    with rounds.sampling():
        ends = ours(overrides, rounds)
    spent = sorted(rounds.seconds.items(), key=lambda item: -item[1])
    return {part: seconds / (len(ends) - 1) for part, seconds in spent}


def round_seconds(ends: Sequence[float]) -> float:
    """The median round, without the first."""
    return statistics.median(after - before for before, after in pairwise(ends))


def measured(run: Callable[[], list[float]]) -> tuple[float, float, float]:
    """Seconds of a round, of the gradient steps in a round, and of the whole."""
    began = time.perf_counter()
    with timed_steps() as steps:
        ends = run()
    whole = time.perf_counter() - began
    within = [sum(seconds for at, seconds in steps if before < at <= after) for before, after in pairwise(ends)]
    return round_seconds(ends), statistics.median(within), whole


@contextmanager
def timed_steps() -> Iterator[list[tuple[float, float]]]:
    """In this block, (when it ended, seconds) of each call of dp_sgd in this process."""
    calls: list[tuple[float, float]] = []

    def timed(*values: Any, **named: Any) -> None:
        began = time.perf_counter()
        dp_sgd(*values, **named)
        ended = time.perf_counter()
        calls.append((ended, ended - began))

    with patch("secure_fed.client.training.dp_sgd", timed), patch("engine_flower.dp_sgd", timed):
        yield calls


def measure(overrides: tuple[str, ...], engines: Sequence[str], repeats: int, workers: int) -> list[Row]:
    """Every engine in turn, so that noise meets all alike."""
    runs: dict[str, Callable[[], list[float]]] = {
        "bare": lambda: list(bare_loop(Work.of(overrides))),
        "app": lambda: flower_app(overrides, None),
        "flower": lambda: flower_app(overrides, workers),
    }
    for name, settings in SETTINGS.items():
        chosen = (*overrides, *settings, *((f"engine.workers={workers}",) if name == "ray" else ()))
        runs[name] = lambda chosen=chosen: ours(chosen)  # type: ignore[misc]
    say("once for warmth: data, accounting and preflights are kept by the process")
    for name in engines:
        if name in IN_PROCESS:
            runs[name]()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in engines}
    for number in range(repeats):
        for name in engines:
            say(f"{name}, {number + 1} of {repeats}")
            found[name].append(measured(runs[name]))
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in found.items()
    }
    bare_round, _, bare_whole = medians["bare"]
    return [
        Row(name, round_s, round_s / bare_round, overhead(found[name]), whole_s, whole_s / bare_whole, repeats)
        for name, (round_s, _, whole_s) in medians.items()
    ]


def overhead(runs: Sequence[tuple[float, float, float]]) -> float | None:
    """The median over runs of a round's seconds outside of its gradient steps over those within."""
    return statistics.median(round_s / steps - 1 for round_s, steps, _ in runs) if all(run[1] for run in runs) else None


def needed_work(rows: Sequence[Row]) -> dict[str, float]:
    """Engine -> the seconds of gradient work in a round of which its overhead is TARGET."""
    found = {}
    for row in rows:
        if row.overhead is not None and row.engine != "bare":
            found[row.engine] = row.round_s * row.overhead / (1 + row.overhead) / TARGET
    return found


def show(rows: Sequence[Row], parts: dict[str, dict[str, float]], sites: int) -> None:
    """The tables."""
    print(f"{'engine':8} {'s a round':>10} {'over bare':>10} {'overhead':>9} {'whole s':>9} {'over bare':>10}")
    for row in rows:
        beside = "" if row.overhead is None else f"{row.overhead:.0%}"
        print(
            f"{row.engine:8} {row.round_s:10.4f} {row.over_bare:9.2f}x {beside:>9} {row.whole_s:9.2f} "
            f"{row.whole_over_bare:9.2f}x"
        )
    for name, work in needed_work(rows).items():
        print(
            f"{name}: overhead of {TARGET:.0%} at {work:.2f} s of gradient work a round, {work / rows[0].round_s:.1f} "
            f"times what was measured ({1000 * work / sites:.0f} ms a site)"
        )
    for name, seconds in parts.items():
        total = sum(seconds.values())
        print(f"\n{name}: where a round of {total:.4f} s goes")
        for part, spent in seconds.items():
            print(f"  {part:30} {1000 * spent:9.1f} ms {spent / total:7.1%}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="Ray's worker processes; the other engines have one")
    parser.add_argument("--no-ray", action="store_true", help="leave out the two simulations under Ray")
    parser.add_argument("--json", action="store_true", help="one object instead of the tables")
    parser.add_argument("override", nargs="*", help="overrides of the configuration, for every engine alike")
    arguments = parser.parse_args()

    overrides = (*BASE, *arguments.override)
    engines = IN_PROCESS if arguments.no_ray else (*IN_PROCESS, *RAY)
    rows = measure(overrides, engines, arguments.repeats, arguments.workers)
    say("the breakdown")
    parts = {name: breakdown((*overrides, *SETTINGS[name])) for name in ("plain", "masked")}
    if arguments.json:
        work = {"work_s_for_target": needed_work(rows), "target": TARGET}
        print(json.dumps({"overrides": overrides, "rows": [asdict(row) for row in rows], "parts": parts, **work}))
    else:
        show(rows, parts, freeze(compose_config(list(overrides)), Path("unused")).federation.sites)


if __name__ == "__main__":
    main()
