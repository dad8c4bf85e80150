"""The server's side as a pure state machine: it collects answers, tolerates drop-outs, and opens sums only.

An answer that is wrong makes its sender a drop-out with a code; too few answers end the attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from secure_fed.errors import SecAggError
from secure_fed.secagg import keys, ring
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.messages import (
    Advertise,
    Advertisements,
    Confirm,
    Confirmations,
    Masked,
    Release,
    ReleasedShares,
    ShareBundle,
    ShareDelivery,
    Survivors,
    Transcript,
)
from secure_fed.secagg.opening import Opener
from secure_fed.secagg.prg import Ring
from secure_fed.secagg.session import (
    MASK_KEY,
    SessionContext,
    Stage,
    advertisements_hash,
    masked_statement,
    seed_name,
    survivors_statement,
)


@dataclass(frozen=True)
class ComponentSum:
    """The opened sum of one component: int64 [size], centred, and who contributed, sorted."""

    values: NDArray[np.int64]
    contributors: tuple[str, ...]


class ServerSession:
    """One attempt at one sum. For each stage: `request` each participant, `receive` answers, `advance`.

    Attributes:
        stage: the stage whose answers are being collected; done or failed at the end.
        released: whether a request for shares has gone out. If the attempt fails before, it may be repeated
            over the same updates; if it fails after, the round is burned.
        faults: member -> the code of the first thing that was wrong with it.
    """

    def __init__(self, context: SessionContext) -> None:
        self._context = context
        self.stage = Stage.ADVERTISE
        self.released = False
        self.faults: dict[str, str] = {}
        self._participants = context.members
        self._answered: set[str] = set()
        self._dropped: set[str] = set()
        self._advertised: dict[str, Advertise] = {}
        self._advertisements: dict[str, bytes] = {}
        self._u1_hash = b""
        self._sealed: dict[str, Mapping[str, bytes]] = {}
        self._u2: tuple[str, ...] = ()
        self._model_hash = b""
        self._totals: dict[str, Ring] = {}
        self._u3: tuple[str, ...] = ()
        self._signatures: dict[str, bytes] = {}
        self._shares: dict[str, dict[str, ReleasedShares]] = {}
        self._sums: dict[str, ComponentSum | None] = {}

    @property
    def participants(self) -> tuple[str, ...]:
        """Whose answers this stage waits for, sorted."""
        return self._participants

    @property
    def answered(self) -> frozenset[str]:
        """Whose valid answers of this stage are in."""
        return frozenset(self._answered)

    def bind_model(self, model_hash: bytes) -> None:
        """Name the model (SHA-256, 32 bytes) that the clients trained on; once, before stage 3 begins."""
        if self._model_hash or len(model_hash) != keys.HASH_BYTES:
            raise SecAggError(Code.MODEL_NOT_BOUND, "the model is bound once, by its SHA-256")
        self._model_hash = model_hash

    def request(self, client: str) -> bytes:
        """What the client is sent in this stage; empty in stage 1, which needs no word from the server.

        Raises:
            SecAggError: unknown_member for one that does not take part any more, wrong_stage after the end,
                model_not_bound in stage 3 without `bind_model`.
        """
        require(client in self._participants, Code.UNKNOWN_MEMBER, client)
        if self.stage is Stage.ADVERTISE:
            return b""
        if self.stage is Stage.SHARE:
            return Advertisements(tuple(self._advertisements.values())).to_bytes()
        if self.stage is Stage.MASK:
            require(bool(self._model_hash), Code.MODEL_NOT_BOUND, "bind_model comes before stage 3")
            sealed = {dealer: self._sealed[dealer][client] for dealer in self._u2 if dealer != client}
            return ShareDelivery(self._context.kid, sealed).to_bytes()
        if self.stage is Stage.CONFIRM:
            return Survivors(self._sid, self._u3).to_bytes()
        if self.stage is Stage.UNMASK:
            self.released = True
            return Confirmations(self._sid, self._signatures).to_bytes()
        raise SecAggError(Code.WRONG_STAGE, f"nothing is requested when {self.stage}")

    def receive(self, client: str, data: bytes) -> bool:
        """Take a client's answer to this stage's request; False, and a fault, if it is not acceptable.

        `client` is who the transport says it is. A second answer is ignored; a wrong one drops the client.

        Raises:
            SecAggError: wrong_stage after the end of the session.
        """
        handlers: dict[Stage, Callable[[str, bytes], None]] = {
            Stage.ADVERTISE: self._receive_advertise,
            Stage.SHARE: self._receive_shares,
            Stage.MASK: self._receive_masked,
            Stage.CONFIRM: self._receive_confirm,
            Stage.UNMASK: self._receive_release,
        }
        require(self.stage in handlers, Code.WRONG_STAGE, f"nothing is received when {self.stage}")
        if client in self._answered:
            self.faults.setdefault(client, Code.DUPLICATE_MESSAGE)
            return False
        if client not in self._participants or client in self._dropped:
            self.faults.setdefault(client, Code.UNKNOWN_MEMBER)
            return False
        try:
            handlers[self.stage](client, data)
        except SecAggError as error:
            self.faults.setdefault(client, error.code)
            self._dropped.add(client)
            return False
        self._answered.add(client)
        return True

    def advance(self) -> None:
        """Close the stage: whoever has not answered is out. After stage 5 the sums are open.

        Raises:
            SecAggError: below_threshold with too few answers; wrong_secret and contributor_mismatch in stage
                5; the session has failed then, and `released` says what that means.
        """
        steps: dict[Stage, tuple[Callable[[], None], Stage, int]] = {
            Stage.ADVERTISE: (self._close_advertise, Stage.SHARE, self._context.params.quorum),
            Stage.SHARE: (self._close_shares, Stage.MASK, self._context.params.quorum),
            Stage.MASK: (self._close_masked, Stage.CONFIRM, self._context.params.quorum),
            Stage.CONFIRM: (lambda: None, Stage.UNMASK, self._context.params.threshold),
            Stage.UNMASK: (self._open, Stage.DONE, self._context.params.threshold),
        }
        require(self.stage in steps, Code.WRONG_STAGE, f"nothing comes after {self.stage}")
        close, following, needed = steps[self.stage]
        current, self.stage = self.stage, Stage.FAILED
        if len(self._answered) < needed:
            text = f"{len(self._answered)} of {len(self._participants)} answered {current}, {needed} are needed"
            raise SecAggError(Code.BELOW_THRESHOLD, text)
        close()
        self._participants = tuple(sorted(self._answered))
        self._answered = set()
        self.stage = following

    def sums(self) -> dict[str, ComponentSum | None]:
        """Component -> its opened sum, in the schema's order; None for one below its floor, masked for ever.

        Raises:
            SecAggError: `wrong_stage` before stage 5 is closed.
        """
        require(self.stage is Stage.DONE, Code.WRONG_STAGE, f"no sums when {self.stage}")
        return dict(self._sums)

    def transcript(self) -> Transcript:
        """Survivors and their signatures, for the header of the next round.

        Raises:
            SecAggError: `wrong_stage` before stage 5 is closed.
        """
        require(self.stage is Stage.DONE, Code.WRONG_STAGE, f"no transcript when {self.stage}")
        bound = self._context.kid, self._model_hash, self._u1_hash
        return Transcript(*bound, self._u2, self._u3, dict(self._signatures))

    @property
    def _sid(self) -> bytes:
        return self._context.sid(self._u1_hash, self._u2, self._model_hash)

    def _receive_advertise(self, client: str, data: bytes) -> None:
        advertisement = Advertise.from_bytes(data)
        require(advertisement.sender == client, Code.UNKNOWN_MEMBER, "advertisement of another")
        self._context.check_advertisement(advertisement)
        self._advertised[client] = advertisement
        self._advertisements[client] = data

    def _close_advertise(self) -> None:
        self._advertisements = {name: self._advertisements[name] for name in sorted(self._advertisements)}
        self._u1_hash = advertisements_hash(self._advertisements.values())

    def _receive_shares(self, client: str, data: bytes) -> None:
        bundle = ShareBundle.from_bytes(data)
        bound = bundle.sender, bundle.kid, bundle.u1_hash
        require(bound == (client, self._context.kid, self._u1_hash), Code.WRONG_SESSION, "shares")
        require(set(bundle.sealed) == set(self._advertised) - {client}, Code.WRONG_SHARES, "holders")
        self._sealed[client] = bundle.sealed

    def _close_shares(self) -> None:
        self._u2 = tuple(sorted(self._answered))
        self._totals = {spec.name: np.zeros(spec.size + 1, dtype=np.uint32) for spec in self._context.schema.components}

    def _receive_masked(self, client: str, data: bytes) -> None:
        masked = Masked.from_bytes(data)
        require((masked.sender, masked.sid) == (client, self._sid), Code.WRONG_SESSION, "masked vector")
        sizes = {name: len(content) for name, content in masked.slices.items()}
        owned = {spec.name: 4 * (spec.size + 1) for spec in self._context.schema.owned_by(client)}
        require(sizes == owned, Code.VECTOR_MISMATCH, "slices")
        hashes = {name: sha256(content).digest() for name, content in masked.slices.items()}
        statement = masked_statement(masked.sid, client, hashes)
        self._context.check_signature(client, masked.signature, statement)
        for name, content in masked.slices.items():
            total = self._totals[name]
            np.add(total, np.frombuffer(content, dtype="<u4"), out=total)

    def _close_masked(self) -> None:
        self._u3 = tuple(sorted(self._answered))
        self._sealed.clear()

    def _receive_confirm(self, client: str, data: bytes) -> None:
        confirm = Confirm.from_bytes(data)
        require((confirm.sender, confirm.sid) == (client, self._sid), Code.WRONG_SESSION, "confirmation")
        statement = survivors_statement(self._sid, self._u3)
        self._context.check_signature(client, confirm.signature, statement)
        self._signatures[client] = confirm.signature

    def _receive_release(self, client: str, data: bytes) -> None:
        release = Release.from_bytes(data)
        require((release.sender, release.sid) == (client, self._sid), Code.WRONG_SESSION, "shares")
        plan = self._context.release_plan(self._u2, self._u3)
        require(set(release.released) == set(plan), Code.WRONG_SHARES, "dealers")
        opened = {dealer: ReleasedShares.from_bytes(raw) for dealer, raw in release.released.items()}
        for dealer, item in opened.items():
            dealt = {seed_name(name) for name in self._advertised[dealer].commitments} | {MASK_KEY}
            complete = set(item.shares) == set(plan[dealer]) and set(item.hidden) == dealt - set(plan[dealer])
            require(complete, Code.WRONG_SHARES, f"shares of {dealer}")
        self._shares[client] = opened

    def _open(self) -> None:
        opener = Opener(self._context, self._sid, self._advertised, self._shares)
        u2, u3 = frozenset(self._u2), frozenset(self._u3)
        try:
            for spec in self._context.schema.components:
                total = self._totals.pop(spec.name)
                if not self._context.is_open(spec, u3):
                    self._sums[spec.name] = None
                    continue
                opener.open(spec, total, u2, u3)
                contributors = tuple(sorted(spec.owners & u3))
                self._sums[spec.name] = ComponentSum(ring.centre(total[:-1]), contributors)
        finally:
            for member, code in opener.faults.items():
                self.faults.setdefault(member, code)
