"""A small federation for the tests: real keys, and a driver that plays rounds with drop-outs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_fed.errors import SecAggError
from secure_fed.secagg import (
    ClientSession,
    Code,
    ComponentSpec,
    SecAggParams,
    ServerSession,
    SessionContext,
    Stage,
    VectorSchema,
    default_threshold,
)
from secure_fed.secagg.messages import Survivors

MODEL = hashlib.sha256(b"model").digest()
STAGES = (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK)


def identities(count: int) -> dict[str, Ed25519PrivateKey]:
    return {
        f"site{number + 1:02d}": Ed25519PrivateKey.from_private_bytes(
            hashlib.sha256(f"identity {number}".encode()).digest()
        )
        for number in range(count)
    }


def make_context(
    count: int = 5,
    corrupt: int = 0,
    components: Mapping[str, tuple[int, set[int]]] | None = None,
    *,
    run: str = "run",
    round_: int = 1,
    attempt: int = 0,
    value_bits: int = 16,
    min_cohort: int = 1,
    floors: Mapping[str, int] | None = None,
    dp_only: frozenset[str] = frozenset(),
) -> SessionContext:
    """Components map a name to (size, owners as positions from 0); by default one that everybody owns."""
    names = sorted(identities(count))
    layout = components or {"fusion": (8, set(range(count)))}
    specs = tuple(
        ComponentSpec(name, size, frozenset(names[owner] for owner in owners))
        for name, (size, owners) in layout.items()
    )
    params = SecAggParams(
        members=count,
        threshold=default_threshold(count, corrupt),
        max_corrupt=corrupt,
        min_cohort=min_cohort,
        value_bits=value_bits,
        clip=1.0,
        floors=floors or {},
        dp_only=dp_only,
    )
    public = {name: key.public_key().public_bytes_raw() for name, key in identities(count).items()}
    roster = hashlib.sha256(b"roster").digest()
    return SessionContext(
        params, VectorSchema(specs), run, round_, attempt, roster, hashlib.sha256(b"policy").digest(), public
    )


def random_vectors(context: SessionContext, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Member -> component -> uint32 levels within the range of one contribution."""
    rng = np.random.default_rng(seed)
    level = 2 ** (context.params.value_bits - 1) - 1
    return {
        member: {
            spec.name: rng.integers(-level, level + 1, spec.size).astype(np.int32).view(np.uint32)
            for spec in context.schema.owned_by(member)
        }
        for member in context.members
    }


@dataclass
class Federation:
    """All members and a server; between any two messages a client lives only as stored bytes."""

    context: SessionContext
    vectors: dict[str, dict[str, np.ndarray]]
    models: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.signers = {name: key.sign for name, key in identities(self.context.params.members).items()}
        self.server = ServerSession(self.context)
        self.stored = {
            name: ClientSession(self.context, name, self.signers[name]).to_bytes() for name in self.context.members
        }
        self.received: list[tuple[Stage, str, bytes]] = []

    def client(self, name: str) -> ClientSession:
        """The client as a new process would restore it."""
        return ClientSession.from_bytes(self.stored[name], self.context, name, self.signers[name])

    def answer(self, name: str, stage: Stage, request: bytes) -> bytes:
        """Let the client make its message for the stage; its new state is stored only if it succeeds."""
        session = self.client(name)
        steps: dict[Stage, Callable[[], bytes]] = {
            Stage.ADVERTISE: session.advertise,
            Stage.SHARE: lambda: session.share(request),
            Stage.MASK: lambda: session.mask(request, self.vectors[name], self.models.get(name, MODEL)),
            Stage.CONFIRM: lambda: session.confirm(request),
            Stage.UNMASK: lambda: session.unmask(request),
        }
        reply = steps[stage]()
        self.stored[name] = session.to_bytes()
        return reply

    def collect(
        self,
        absent: set[str] = frozenset(),
        tamper: Callable[[str, bytes], bytes] | None = None,
        tolerate: set[str] = frozenset(),
    ) -> None:
        """Play one stage up to `advance`; a client that fails with a tolerated code is silent."""
        stage = self.server.stage
        for name in self.server.participants:
            if name in absent:
                continue
            try:
                reply = self.answer(name, stage, self.server.request(name))
            except SecAggError as error:
                if error.code in tolerate:
                    continue
                raise
            if tamper is not None:
                reply = tamper(name, reply)
            self.received.append((stage, name, reply))
            self.server.receive(name, reply)

    def play(
        self,
        until: Stage = Stage.DONE,
        drops: Mapping[Stage, set[str]] | None = None,
        tolerate: set[str] = frozenset(),
    ) -> None:
        """Play stages until `until` is the current one; `drops` says who is silent from which stage on."""
        while self.server.stage is not until:
            if self.server.stage is Stage.MASK:
                self.server.bind_model(MODEL)
            self.collect(absent=(drops or {}).get(self.server.stage, set()), tolerate=tolerate)
            self.server.advance()

    def plain_sum(self, component: str, contributors: tuple[str, ...]) -> np.ndarray:
        """The sum of the contributors' vectors in plain int64."""
        return sum(self.vectors[name][component].view(np.int32).astype(np.int64) for name in contributors)


def make_federation(*args, seed: int = 7, **kwargs) -> Federation:
    context = make_context(*args, **kwargs)
    return Federation(context, random_vectors(context, seed))


def refused(code: Code):
    return pytest.raises(SecAggError, match=f"^{code}")


def at(stage: Stage, *args, **kwargs) -> Federation:
    federation = make_federation(*args, **kwargs)
    federation.play(until=stage)
    if stage is Stage.MASK:
        federation.server.bind_model(MODEL)
    return federation


def survivors_of(federation: Federation) -> Survivors:
    return Survivors.from_bytes(federation.server.request("site01"))
