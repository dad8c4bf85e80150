"""Our side of benchmarks/secagg.py: real client and server sessions, stopped before the steps that are timed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from secure_fed import signatures
from secure_fed.secagg import (
    ClientSession,
    ComponentSpec,
    Levels,
    SecAggParams,
    ServerSession,
    SessionContext,
    Source,
    VectorSchema,
    default_threshold,
    dequantise,
)
from secure_fed.secagg.packing import pack, packed_bytes

CLIP = 1.0
COMPONENT = "model"
THREADS = (1, 2)
MOST_DROPOUTS = 5
MODEL, BASIS = sha256(b"model").digest(), sha256(b"basis").digest()

Servers = dict[int, ServerSession]
Slices = Mapping[str, NDArray[np.uint8]]


def corrupt(clients: int) -> int:
    """The largest C up to a fifth of the clients that still lets the largest number of drop-outs go."""
    return max(c for c in range(clients // 5 + 1) if clients - default_threshold(clients, c) >= MOST_DROPOUTS)


class Cohort:
    """Our clients and servers (one for each number of threads) after stage 2, over one component owned by everybody."""

    def __init__(self, params: int, clients: int, value_bits: int = 16) -> None:
        names = [f"site{number:03d}" for number in range(1, clients + 1)]
        self.keys = {name: Ed25519PrivateKey.generate() for name in names}
        public = {name: key.public_key().public_bytes_raw() for name, key in self.keys.items()}
        threshold, c = default_threshold(clients, corrupt(clients)), corrupt(clients)
        settings = SecAggParams(clients, threshold, c, min_cohort=threshold, value_bits=value_bits, clip=CLIP)
        schema = VectorSchema((ComponentSpec(COMPONENT, params, frozenset(names)),))
        self.context = SessionContext(settings, schema, "benchmark", 1, 0, MODEL, BASIS, public)
        self.servers = {threads: ServerSession(self.context, BASIS, threads) for threads in THREADS}
        self.states = {name: ClientSession(self.context, name, key.sign).to_bytes() for name, key in self.keys.items()}
        self.control_bytes = {"up": 0, "down": 0}
        self.slice_bytes = 0
        self._stage(self.servers, names, lambda session, _: session.advertise(BASIS))
        self._stage(self.servers, names, lambda session, request: session.share(request))
        for server in self.servers.values():
            server.bind_model(MODEL)

    def session(self, name: str) -> ClientSession:
        """The client from its stored state."""
        return ClientSession.from_bytes(self.states[name], self.context, name, self.keys[name].sign)

    def mask(self, source: Source, threads: int) -> float:
        """Seconds of the first client's masking step."""
        name = self.context.members[0]
        session, request = self.session(name), self.servers[1].request(name)
        signatures.forget()  # as at a site of its own, which sees these for the first time
        start = time.perf_counter()
        masked = session.mask(request, {COMPONENT: source}, MODEL, threads)
        seconds = time.perf_counter() - start
        self.slice_bytes = masked.slices[COMPONENT].nbytes
        return seconds

    def unmaskings(self, sources: Callable[[str], Source], dropouts: Sequence[int]) -> Iterator[tuple[int, Unmasking]]:
        """Everybody masks once; for each number of drop-outs, most first, the servers before the released shares."""
        sent, members = 0, self.context.members
        for dropped in sorted(dropouts, reverse=True):
            for name in members[sent : len(members) - dropped]:
                session, request = self.session(name), self.servers[1].request(name)
                masked = session.mask(request, {COMPONENT: sources(name)}, MODEL, max(THREADS))
                self._deliver(self.servers, session, request, masked.message, masked.slices)
            sent = len(members) - dropped
            yield dropped, self._released(members[:sent])

    def _released(self, present: Sequence[str]) -> Unmasking:
        servers, stored = copy.deepcopy(self.servers), dict(self.states)
        for server in servers.values():
            server.advance()
        self._stage(servers, present, lambda session, request: session.confirm(request))
        releases = {}
        for name in present:
            request = servers[1].request(name)
            releases[name] = self.session(name).unmask(request)
            self._count(name, len(releases[name]), len(request))
        self.states = stored
        return Unmasking(self.context, servers, releases)

    def _stage(self, servers: Servers, names: Sequence[str], answer: Callable[[ClientSession, bytes], bytes]) -> None:
        for name in names:
            request, session = servers[1].request(name), self.session(name)
            self._deliver(servers, session, request, answer(session, request))
        for server in servers.values():
            server.advance()

    def _deliver(
        self, servers: Servers, session: ClientSession, request: bytes, message: bytes, slices: Slices | None = None
    ) -> None:
        self.states[session.name] = session.to_bytes()
        self._count(session.name, len(message), len(request))
        for server in servers.values():
            if not server.receive(session.name, message, slices):
                raise RuntimeError(f"{session.name} is refused: {server.faults}")

    def _count(self, name: str, up: int, down: int) -> None:
        if name == self.context.members[0]:
            self.control_bytes["up"] += up
            self.control_bytes["down"] += down


@dataclass(frozen=True)
class Unmasking:
    """Servers that have everything but the released shares, and these."""

    context: SessionContext
    servers: Servers
    releases: dict[str, bytes]

    @property
    def streams(self) -> int:
        """Keystreams to take out: a self-mask of each survivor, and for each drop-out a mask with every survivor."""
        survivors = len(self.releases)
        return survivors * (1 + self.context.params.members - survivors)

    def open(self, server: ServerSession) -> NDArray[np.int32]:
        """Receive the shares and open the sum, int32 [params]."""
        for name, data in self.releases.items():
            if not server.receive(name, data):
                raise RuntimeError(f"{name} is refused: {server.faults}")
        server.advance()
        opened = server.sums()[COMPONENT]
        if opened is None:
            raise RuntimeError("the sum stayed masked")
        return opened.values

    def traced(self, threads: int) -> None:
        """From the accumulators as they are before to the opened sums, for tracing memory."""
        self.open(copy.deepcopy(self.servers[threads]))

    @property
    def broadcast_bytes(self) -> int:
        """What the sums take when they go down, packed as the slices are."""
        return packed_bytes(self.context.schema.components[0].size, self.context.params.wire_bits)

    def seconds(self, threads: int) -> float:
        """Of `open`, with the sum in float64 and packed for the broadcast, as Flower's stage ends."""
        server, params = copy.deepcopy(self.servers[threads]), self.context.params
        signatures.forget()
        start = time.perf_counter()
        opened = self.open(server)
        dequantise(opened, params.clip, params.value_bits)
        pack(opened.view(np.uint32), params.wire_bits)
        return time.perf_counter() - start


@cache
def rehearsed_bytes(clients: int) -> dict[str, int]:
    """Bytes up and down of all messages of a client in one round without its slice, and that our sum is the sum."""
    cohort, rng, total = Cohort(64, clients), np.random.default_rng(clients), np.zeros(64, dtype=np.int64)

    def levels(_: str) -> Levels:
        drawn = rng.integers(-32767, 32768, 64, dtype=np.int32)
        np.add(total, drawn, out=total)
        return Levels(drawn.view(np.uint32), 16)

    for _, unmasking in cohort.unmaskings(levels, [0]):
        if not np.array_equal(unmasking.open(unmasking.servers[1]), total):
            raise RuntimeError("the opened sum is not the sum")
    return cohort.control_bytes
