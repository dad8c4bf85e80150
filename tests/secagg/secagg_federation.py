"""A small federation for the tests: real keys, and a driver that plays rounds with drop-outs."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st

from secure_fed.errors import SecAggError
from secure_fed.secagg import (
    ClientSession,
    Code,
    ComponentSpec,
    KRegular,
    Levels,
    SecAggParams,
    ServerSession,
    SessionContext,
    Stage,
    VectorSchema,
    default_threshold,
)
from secure_fed.secagg.messages import Survivors

MODEL = hashlib.sha256(b"model").digest()
BASIS = hashlib.sha256(b"model and optimizer state").digest()
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
    graph: KRegular | None = None,
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
        graph=graph,
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


@dataclass(frozen=True)
class Reply:
    """What a client sends: the message, and in stage 3 the packed slices beside it."""

    message: bytes
    slices: Mapping[str, np.ndarray] | None = None

    def __bytes__(self) -> bytes:
        """Everything that travels, for tests that look for what must not be in it."""
        return self.message + b"".join(data.tobytes() for data in (self.slices or {}).values())


@dataclass
class Federation:
    """All members and a server; between any two messages a client lives only as stored bytes.

    Attributes:
        vectors: member -> component -> uint32 levels.
        bases, models: member -> what it starts from and trains on, where that is not BASIS and MODEL.
        basis: what the server compares advertisements with; None for a server that does not.
        notices: member -> what it says to all.
        notes: dealer -> holder -> what it says to that one.
    """

    context: SessionContext
    vectors: dict[str, dict[str, np.ndarray]]
    models: Mapping[str, bytes] = field(default_factory=dict)
    bases: Mapping[str, bytes] = field(default_factory=dict)
    basis: bytes | None = BASIS
    notices: Mapping[str, bytes] = field(default_factory=dict)
    notes: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    threads: int = 1

    def __post_init__(self) -> None:
        self.signers = {name: key.sign for name, key in identities(self.context.params.members).items()}
        self.server = ServerSession(self.context, self.basis, self.threads)
        self.stored = {
            name: ClientSession(self.context, name, self.signers[name]).to_bytes() for name in self.context.members
        }
        self.received: list[tuple[Stage, str, Reply]] = []

    def fork(self) -> Federation:
        """A copy that goes its own way from here on, with the same session, keys and stored states."""
        twin = copy.copy(self)
        twin.server = copy.deepcopy(self.server, {id(self.context): self.context})
        twin.stored, twin.received = dict(self.stored), list(self.received)
        return twin

    def client(self, name: str) -> ClientSession:
        """The client as a new process would restore it."""
        return ClientSession.from_bytes(self.stored[name], self.context, name, self.signers[name])

    def sources(self, name: str) -> dict[str, Levels]:
        bits = self.context.params.value_bits
        return {component: Levels(values, bits) for component, values in self.vectors[name].items()}

    def step(self, session: ClientSession, stage: Stage, request: bytes) -> Reply:
        """Let a session make its message for the stage."""
        name = session.name
        if stage is Stage.ADVERTISE:
            return Reply(session.advertise(self.bases.get(name, BASIS), self.notices.get(name, b"")))
        if stage is Stage.SHARE:
            return Reply(session.share(request, lambda notices: self.notes.get(name, {})))
        if stage is Stage.MASK:
            masked = session.mask(request, self.sources(name), self.models.get(name, MODEL), self.threads)
            return Reply(masked.message, masked.slices)
        steps = {Stage.CONFIRM: session.confirm, Stage.UNMASK: session.unmask}
        return Reply(steps[stage](request))

    def reply(self, name: str, stage: Stage, request: bytes) -> Reply:
        """Let the client make its message for the stage; its new state is stored only if it succeeds."""
        session = self.client(name)
        reply = self.step(session, stage, request)
        self.stored[name] = session.to_bytes()
        return reply

    def answer(self, name: str, stage: Stage, request: bytes) -> bytes:
        """The message of `reply`, without what travels beside it."""
        return self.reply(name, stage, request).message

    def deliver(self, name: str, reply: Reply) -> bool:
        """What `ServerSession.receive` says to it."""
        return self.server.receive(name, reply.message, reply.slices)

    def collect(
        self,
        absent: Collection[str] = frozenset(),
        tamper: Callable[[str, bytes], bytes] | None = None,
        tolerate: Collection[str] = frozenset(),
    ) -> None:
        """Play one stage up to `advance`; a client that fails with a tolerated code is silent."""
        stage = self.server.stage
        for name in self.server.participants:
            if name in absent:
                continue
            try:
                reply = self.reply(name, stage, self.server.request(name))
            except SecAggError as error:
                if error.code in tolerate:
                    continue
                raise
            if tamper is not None:
                reply = Reply(tamper(name, reply.message), reply.slices)
            self.received.append((stage, name, reply))
            self.deliver(name, reply)

    def play(
        self,
        until: Stage = Stage.DONE,
        drops: Mapping[Stage, Collection[str]] | None = None,
        tolerate: Collection[str] = frozenset(),
    ) -> None:
        """Play stages until `until` is the current one; `drops` says who is silent from which stage on."""
        while self.server.stage is not until:
            bind(self)
            self.collect(absent=(drops or {}).get(self.server.stage, set()), tolerate=tolerate)
            self.server.advance()

    def plain_sum(self, component: str, contributors: tuple[str, ...]) -> np.ndarray:
        """The sum of the contributors' vectors in plain int64."""
        return sum(self.vectors[name][component].view(np.int32).astype(np.int64) for name in contributors)


def make_federation(*args, seed: int = 7, **kwargs) -> Federation:
    context = make_context(*args, **kwargs)
    return Federation(context, random_vectors(context, seed))


def bind(federation: Federation) -> None:
    """Name the model to the server where that is due."""
    if federation.server.stage is Stage.MASK and not federation.server._model_hash:
        federation.server.bind_model(MODEL)


def refused(code: Code):
    return pytest.raises(SecAggError, match=f"^{code}")


def at(stage: Stage, *args, **kwargs) -> Federation:
    federation = make_federation(*args, **kwargs)
    federation.play(until=stage)
    bind(federation)
    return federation


def survivors_of(federation: Federation) -> Survivors:
    return Survivors.from_bytes(federation.server.request("site01"))


@st.composite
def disturbances(draw):
    """Flip, cut, extend or replace bytes of a message of any length; never leaves it as it was."""
    how = draw(st.sampled_from(["flip", "cut", "extend", "replace"]))
    where = draw(st.floats(0, 1, exclude_max=True))
    flip, junk = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=40))

    def disturb(data: bytes) -> bytes:
        position = int(where * len(data))
        if how == "flip":
            return data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :]
        return {"cut": data[:position], "extend": data + junk, "replace": junk}[how]

    return disturb


def from_plain(value):
    """JSON has no bytes: {"hex": ...} stands for them."""
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: from_plain(item) for key, item in value.items()}
    return [from_plain(item) for item in value] if isinstance(value, list) else value
