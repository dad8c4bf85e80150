"""Secure aggregation against Flower's SecAgg+ and against the physical floor, in one run on one machine.

    OMP_NUM_THREADS=1 python benchmarks/secagg.py            # a quarter of an hour, most of it Flower's
    OMP_NUM_THREADS=1 python benchmarks/secagg.py --quick    # under a minute: small vectors, 10 neighbours
    OMP_NUM_THREADS=1 python benchmarks/secagg.py --case client_mask --params 10000000 --json

k neighbours are k + 1 clients, all of them owners of one component: 11, 51 and 101 clients stand for 10, 50 and 100
neighbours. Flower runs at 11 and 51, both with the same threshold. Cases:
  mask_kernel    keystream and additions alone: one self-mask and k pair masks over a ring vector in memory
  client_mask    the client's masking step, from float32 to what is sent: shares opened, keys agreed, dither, quantise,
                 mask, pack, hash, sign. Flower: _collect_masked_vectors of its mod
  server_unmask  the server's last step, from the released shares to float64 sums and to what is broadcast.
                 Flower: unmask_stage of its workflow
Levels have 16 bits: with up to 32 clients three of them travel in a 64-bit word (column bits: 21), with more each in 3
bytes (24). Further rows of client_mask at 11 clients take levels of 18 and 22 bits, which need 24 and 32.

Floor: raw AES-256-CTR of the same bytes and uint32 additions over as many, each in the block size that is best here, on
one thread. Repetitions of ours, Flower's and the floor take turns; a figure is the median. peak_mb is what tracemalloc
sees of Python and numpy in a repetition of its own: for the client beyond its float32 input, for the server from the
accumulators to the opened int32 sums (Flower's without Shamir, which tracing slows nine times). bytes_per_param is
everything a client sends in all five stages (client_mask), or receives, with the packed sums (server_unmask); the first
model is not in it, and neither is Flower's framing in Flower's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from secagg_flower import FlowerCohort
from secagg_ours import CLIP, MOST_DROPOUTS, THREADS, Cohort, Unmasking, corrupt, rehearsed_bytes

from secure_fed.secagg import Levels, Quantiser, default_threshold, packed_bytes, wire_bits
from secure_fed.secagg.accumulator import Accumulator
from secure_fed.secagg.masking import Mask
from secure_fed.secagg.packing import LANE_BITS

CASES = ("mask_kernel", "client_mask", "server_unmask")
PARAMS, QUICK_PARAMS = (100_000, 1_000_000, 10_000_000), (100_000, 1_000_000)
CLIENTS, QUICK_CLIENTS, FLOWER_CLIENTS = (11, 51, 101), (11,), (11, 51)
DROPOUTS = (0, 1, MOST_DROPOUTS)
VALUE_BITS, WIDER_VALUE_BITS = 16, (18, 22)
"""Of a level; the wider ones need 24 and 32 bits on the wire at 11 clients."""
WIDE_FROM = 1_000_000
FLOOR_BLOCKS = tuple(kib * 1024 for kib in (32, 64, 128, 256, 512, 1024))
FLOOR_STREAMS = 12
MANY_CLIENTS, SLOW_REPEATS = 51, 3
"""From so many clients on server_unmask is repeated less often: Flower takes half a minute each time."""


@dataclass(frozen=True)
class Row:
    """One case as measured; seconds are medians, None is what does not apply or was not run."""

    case: str
    threads: int
    params: int
    clients: int
    neighbours: int
    dropouts: int
    wire_bits: int
    ours_s: float
    floor_s: float
    peak_mb: float
    repeats: int
    peer_s: float | None = None
    bytes_per_param: float | None = None
    peer_bytes_per_param: float | None = None
    peer_peak_mb: float | None = None

    @property
    def over_floor(self) -> float:
        """Ours as a multiple of the floor, which has one thread."""
        return self.ours_s / self.floor_s

    @property
    def faster(self) -> float | None:
        """How many times faster than Flower."""
        return None if self.peer_s is None else self.peer_s / self.ours_s


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def medians(timed: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Name -> median seconds; every repetition goes through all of them, so that noise meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, run in timed.items():
            seconds[name].append(run())
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_mb(work: Callable[[], object]) -> float:
    """Peak of what Python and numpy allocate meanwhile, in MB, beyond what there was before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


class Floor:
    """Raw AES-256-CTR and uint32 additions, each in its best block size, with nothing around them."""

    def __init__(self) -> None:
        def best(measure: Callable[[int, int], float]) -> int:
            timed = {str(size): partial(measure, 4_000_000, size) for size in FLOOR_BLOCKS}
            seconds = medians(timed, repeats=5)
            return int(min(seconds, key=lambda size: seconds[size]))

        self._keystream_block, self._addition_block = best(self._keystream), best(self._additions)

    def __str__(self) -> str:
        return f"keystream in {self._keystream_block // 1024} KiB, additions in {self._addition_block // 1024} KiB"

    def seconds(self, params: int, wire_bits: int, streams: int) -> float:
        """For so many streams over so many values; of many streams a dozen are timed and scaled."""
        timed = min(streams, FLOOR_STREAMS)
        words = -(-packed_bytes(params, wire_bits) // 4) if wire_bits == LANE_BITS else params
        once = (
            self._keystream(words, self._keystream_block) + self._additions(words, self._addition_block)
            for _ in range(timed)
        )
        return sum(once) * streams / timed

    @staticmethod
    def _keystream(words: int, block: int) -> float:
        zeros, target = memoryview(bytes(block)), np.empty(block, dtype=np.uint8).data
        cipher = Cipher(AES256(os.urandom(32)), CTR(bytes(16))).encryptor()
        whole, rest = divmod(4 * words, block)
        start = time.perf_counter()
        for _ in range(whole):
            cipher.update_into(zeros, target)
        cipher.update_into(zeros[:rest], target)
        return time.perf_counter() - start

    @staticmethod
    def _additions(words: int, block: int) -> float:
        target, other = np.zeros(block // 4, dtype=np.uint32), np.ones(block // 4, dtype=np.uint32)
        whole, rest = divmod(words, block // 4)
        start = time.perf_counter()
        for _ in range(whole):
            np.add(target, other, target)
        np.add(target[:rest], other[:rest], target[:rest])
        return time.perf_counter() - start


class Benchmark:
    """Measures cases as chosen on the command line."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._repeats: int = arguments.repeats
        self._dropouts: Sequence[int] = arguments.dropouts
        self._flower_runs: bool = not arguments.no_flower
        self._floor = Floor()
        say(f"the floor is best with {self._floor}")

    def rows(self, cases: Sequence[str], params: Sequence[int], clients: Sequence[int]) -> Iterator[Row]:
        """All rows, as they come."""
        measures = {"mask_kernel": self._kernel, "client_mask": self._client, "server_unmask": self._server}
        for case in cases:
            for size in params:
                for count in clients:
                    say(f"{case}: {size:,} parameters, {count} clients")
                    yield from measures[case](size, count)

    @cache  # noqa: B019 - one object for the run
    def _flower(self, clients: int) -> FlowerCohort | None:
        if not self._flower_runs or clients not in FLOWER_CLIENTS:
            return None
        say(f"Flower deals its shares among {clients} clients")
        return FlowerCohort(clients, default_threshold(clients, corrupt(clients)))

    def _kernel(self, params: int, clients: int) -> Iterator[Row]:
        masks, bits = (
            [Mask(os.urandom(32), bool(number % 2)) for number in range(clients)],
            wire_bits(clients, VALUE_BITS),
        )
        work = {threads: partial(Accumulator(params - 1, bits, threads).remove, masks) for threads in THREADS}
        peaks = {threads: peak_mb(run) for threads, run in work.items()}
        timed = {str(threads): partial(seconds_of, run) for threads, run in work.items()}
        found = medians(timed | {"floor": partial(self._floor.seconds, params, bits, clients)}, self._repeats)
        for threads in THREADS:
            yield Row(
                case="mask_kernel",
                threads=threads,
                params=params,
                clients=clients,
                neighbours=clients - 1,
                dropouts=0,
                wire_bits=bits,
                ours_s=found[str(threads)],
                floor_s=found["floor"],
                peak_mb=peaks[threads],
                repeats=self._repeats,
            )

    def _client(self, params: int, clients: int) -> Iterator[Row]:
        update = np.random.default_rng(0).normal(0, CLIP / 3, params).astype(np.float32)
        yield from self._client_at(VALUE_BITS, update, clients, THREADS, self._flower(clients))
        if params >= WIDE_FROM and clients == CLIENTS[0]:
            for bits in WIDER_VALUE_BITS:
                yield from self._client_at(bits, update, clients, THREADS[:1], None)

    def _client_at(
        self,
        bits: int,
        update: NDArray[np.float32],
        clients: int,
        all_threads: Sequence[int],
        flower: FlowerCohort | None,
    ) -> Iterator[Row]:
        params, cohort = len(update), Cohort(len(update), clients, bits)

        def mask(threads: int) -> float:
            return cohort.mask(Quantiser(update, CLIP, bits, os.urandom(32)), threads)

        timed: dict[str, Callable[[], float]] = {str(threads): partial(mask, threads) for threads in all_threads}
        timed["floor"] = partial(self._floor.seconds, params, cohort.context.params.wire_bits, clients)
        if flower is not None:
            timed["flower"] = partial(flower.mask, update)
        peaks = {name: peak_mb(run) for name, run in timed.items()}
        found = medians(timed, self._repeats)
        for threads in all_threads:
            yield Row(
                case="client_mask",
                threads=threads,
                params=params,
                clients=clients,
                neighbours=clients - 1,
                dropouts=0,
                wire_bits=cohort.context.params.wire_bits,
                ours_s=found[str(threads)],
                peer_s=found.get("flower"),
                floor_s=found["floor"],
                bytes_per_param=(rehearsed_bytes(clients)["up"] + cohort.slice_bytes) / params,
                peer_bytes_per_param=None if flower is None else flower.up_bytes / params,
                peak_mb=peaks[str(threads)],
                peer_peak_mb=peaks.get("flower"),
                repeats=self._repeats,
            )

    def _server(self, params: int, clients: int) -> Iterator[Row]:
        flower, cohort = self._flower(clients), Cohort(params, clients, VALUE_BITS)
        levels = Levels(np.zeros(params, dtype=np.uint32), VALUE_BITS)
        for dropouts, unmasking in cohort.unmaskings(lambda _: levels, self._dropouts):
            yield from self._server_at(dropouts, unmasking, flower)

    def _server_at(self, dropouts: int, unmasking: Unmasking, flower: FlowerCohort | None) -> Iterator[Row]:
        settings, params = unmasking.context.params, unmasking.context.schema.components[0].size
        say(f"server_unmask: {dropouts} drop-outs, {unmasking.streams} keystreams")
        repeats = min(self._repeats, SLOW_REPEATS) if settings.members >= MANY_CLIENTS else self._repeats
        timed: dict[str, Callable[[], float]] = {
            str(threads): partial(unmasking.seconds, threads) for threads in THREADS
        }
        timed["floor"] = partial(self._floor.seconds, params, settings.wire_bits, unmasking.streams)
        peaks = {threads: peak_mb(partial(unmasking.traced, threads)) for threads in THREADS}
        peer_peak = None
        if flower is not None:
            timed["flower"] = partial(flower.unmask, params, dropouts)
            peer_peak = peak_mb(partial(flower.unmask_without_shamir, params, dropouts))
        found = medians(timed, repeats)
        for threads in THREADS:
            yield Row(
                case="server_unmask",
                threads=threads,
                params=params,
                clients=settings.members,
                neighbours=settings.members - 1,
                dropouts=dropouts,
                wire_bits=settings.wire_bits,
                ours_s=found[str(threads)],
                peer_s=found.get("flower"),
                floor_s=found["floor"],
                bytes_per_param=(rehearsed_bytes(settings.members)["down"] + unmasking.broadcast_bytes) / params,
                peer_bytes_per_param=None if flower is None else flower.down_bytes / params,
                peak_mb=peaks[threads],
                peer_peak_mb=peer_peak,
                repeats=repeats,
            )


def check_targets(rows: Sequence[Row]) -> list[tuple[str, float, str, bool]]:
    """What was to be reached: text, value, bound, whether it is met; only what these rows can tell."""
    found: list[tuple[str, float, str, bool]] = []

    def at_most(text: str, bound: float, values: Sequence[float]) -> None:
        if values:
            found.append((text, max(values), f"<= {bound:g}", max(values) <= bound))

    def at_least(text: str, bound: float, values: Sequence[float | None]) -> None:
        known = [value for value in values if value is not None]
        if known:
            found.append((text, min(known), f">= {bound:g}", min(known) >= bound))

    def pick(case: str, **facts: int) -> list[Row]:
        return [row for row in rows if row.case == case and all(getattr(row, k) == v for k, v in facts.items())]

    large = PARAMS[-1]
    for clients, floors, flowers in ((11, 2.0, 10.0), (51, 1.5, 8.0)):
        near, one = (
            f"{clients - 1} neighbours, {large:.0e} parameters",
            {"params": large, "clients": clients, "threads": 1},
        )
        at_most(f"mask_kernel / floor, {near}, 1 thread", 1.4, [row.over_floor for row in pick("mask_kernel", **one)])
        client = pick("client_mask", **one, wire_bits=wire_bits(clients, VALUE_BITS))
        at_most(f"client_mask / floor, {near}, 1 thread", floors, [row.over_floor for row in client])
        at_least(f"Flower / client_mask, {near}, 1 thread", flowers, [row.faster for row in client])
        two = pick("client_mask", **one | {"threads": 2})
        at_least(f"Flower / client_mask, {near}, 2 threads", 12.0, [row.faster for row in two])
    server = pick("server_unmask", params=large, clients=51, dropouts=MOST_DROPOUTS, threads=1)
    at_least(
        f"Flower / server_unmask, 51 clients, {large:.0e}, 5 drop-outs, 1 thread", 15.0, [r.faster for r in server]
    )
    short = [row.ours_s for row in pick("server_unmask", params=PARAMS[0])]
    at_most(f"seconds of server_unmask, {PARAMS[0]:.0e} parameters: all of Shamir is in it", 1.0, short)
    beyond = [row.peak_mb - 4e-6 * row.params for row in pick("server_unmask", clients=51)]
    at_most("MB of server_unmask beyond one accumulator, 51 clients, with all their released shares", 4.0, beyond)
    for bits, bound in ((LANE_BITS, 3.1), (24, 3.1), (32, 4.1)):
        sent = [row.bytes_per_param or 0.0 for row in pick("client_mask", wire_bits=bits) if row.params >= WIDE_FROM]
        at_most(f"bytes up a parameter, {bits} bits on the wire, from {WIDE_FROM:.0e} parameters on", bound, sent)
    return found


def print_tables(rows: Sequence[Row]) -> None:
    """All rows, then the targets."""

    def show(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    print("\n| case | parameters | clients | drop-outs | threads | bits | ours s | Flower s | floor s ", end="")
    print("| Flower/ours | ours/floor | B/param | Flower's | peak MB | Flower's |")
    print("|---|" + "---:|" * 14)
    for row in rows:
        cells = [
            f"{row.case} | {row.params:.0e} | {row.clients} | {row.dropouts} | {row.threads} | {row.wire_bits}",
            f"{row.ours_s:.4f} | {show(row.peer_s, '.3f')} | {row.floor_s:.4f}",
            f"{show(row.faster, '.1f')} | {row.over_floor:.2f}",
            f"{show(row.bytes_per_param, '.3f')} | {show(row.peer_bytes_per_param, '.3f')}",
            f"{row.peak_mb:.1f} | {show(row.peer_peak_mb, '.1f')}",
        ]
        print(f"| {' | '.join(cells)} |")
    print("\n| target | reached | asked | |\n|---|---:|---:|---|")
    for text, value, bound, met in check_targets(rows):
        print(f"| {text} | {value:.2f} | {bound} | {'met' if met else 'MISSED'} |")
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"\n{os.cpu_count()} cores; load over the last 1, 5, 15 minutes {loads}: two threads want two free cores")


def main() -> None:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--params", nargs="+", type=int, help="lengths of the vector, at least 100")
    parser.add_argument("--clients", nargs="+", type=int, help="odd numbers from 11 on; one more than the neighbours")
    parser.add_argument("--dropouts", nargs="+", type=int, default=list(DROPOUTS), help="of server_unmask, at most 5")
    parser.add_argument("--repeats", type=int, default=5, help="server_unmask from 51 clients on: at most 3")
    parser.add_argument("--quick", action="store_true", help="small vectors, 11 clients, 3 repetitions")
    parser.add_argument("--no-flower", action="store_true", help="ours and the floor only")
    parser.add_argument("--json", action="store_true", help="one line a case instead of the tables")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats = min(arguments.repeats, 3)
    params = arguments.params or (QUICK_PARAMS if arguments.quick else PARAMS)
    clients = arguments.clients or (QUICK_CLIENTS if arguments.quick else CLIENTS)
    if any(count < CLIENTS[0] or count % 2 == 0 for count in clients) or min(params) < 100:
        parser.error(f"clients {clients} are odd numbers from {CLIENTS[0]} on, params {params} at least 100")
    rows = []
    for row in Benchmark(arguments).rows(arguments.case, params, clients):
        rows.append(row)
        if arguments.json:
            print(json.dumps(asdict(row)), flush=True)
    if not arguments.json:
        print_tables(rows)


if __name__ == "__main__":
    main()
