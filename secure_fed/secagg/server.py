"""The server's side as a pure state machine: it collects answers, tolerates drop-outs, and opens sums only.

An answer that is wrong makes its sender a drop-out with a code; too few answers end the attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from secure_fed.errors import SecAggError
from secure_fed.secagg import keys, masking
from secure_fed.secagg.accumulator import Accumulator
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.messages import (
    Advertise,
    Advertisements,
    Confirm,
    Confirmations,
    Masked,
    Message,
    Release,
    ReleasedShares,
    ShareBundle,
    ShareDelivery,
    Survivors,
    Transcript,
)
from secure_fed.secagg.opening import ComponentSum, Opener
from secure_fed.secagg.packing import Packed, check_packed
from secure_fed.secagg.session import (
    MASK_KEY,
    SessionContext,
    Stage,
    advertisements_hash,
    seed_name,
    survivors_statement,
)


class ServerSession:
    """One attempt at one sum. For each stage: `request` each participant, `receive` answers, `advance`.

    Sessions share nothing: the next attempt may go through its first stages while this one ends.

    Args:
        context: the attempt.
        basis: SHA-256 of what all members must start from; one that advertises another is a drop-out with
            `model_mismatch`. None leaves that to the clients, all of whom then refuse.
        threads: how many to hash, add and unmask with; the sums do not depend on it.

    Attributes:
        stage: the stage whose answers are being collected; done or failed at the end.
        released: whether a request for shares has gone out. If the attempt fails before, it may be repeated
            over the same updates; if it fails after, the round is burned.
        faults: member -> the code of the first thing that was wrong with it.
    """

    def __init__(self, context: SessionContext, basis: bytes | None = None, threads: int = 1) -> None:
        self._context = context
        self._basis = basis
        self._threads = threads
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
        self._sid = b""
        self._totals: dict[str, Accumulator] = {}
        self._u3: tuple[str, ...] = ()
        self._plan: dict[str, tuple[str, ...]] = {}
        self._signatures: dict[str, bytes] = {}
        self._shares: dict[str, dict[str, ReleasedShares]] = {}
        self._sums: dict[str, ComponentSum | None] = {}
        self._broadcast = b""

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
        self._bind_session()

    def request(self, client: str) -> bytes:
        """What the client is sent in this stage; empty in stage 1, which needs no word from the server.

        Raises:
            SecAggError: unknown_member for one that does not take part any more, wrong_stage after the end,
                model_not_bound in stage 3 without `bind_model`.
        """
        require(client in self._participants, Code.UNKNOWN_MEMBER, client)
        if self.stage is Stage.ADVERTISE:
            return b""
        if self.stage is Stage.MASK:
            require(bool(self._model_hash), Code.MODEL_NOT_BOUND, "bind_model comes before stage 3")
            dealers = self._context.share_graph(self._u1_hash).neighbours(client) & self._sealed.keys()
            sealed = {dealer: self._sealed[dealer][client] for dealer in dealers}
            return ShareDelivery(self._context.kid, self._u2, sealed).to_bytes()
        require(self.stage in (Stage.SHARE, Stage.CONFIRM, Stage.UNMASK), Code.WRONG_STAGE, f"{self.stage}: no request")
        self.released = self.released or self.stage is Stage.UNMASK
        return self._broadcast

    def receive(self, client: str, data: bytes, slices: Mapping[str, Packed] | None = None) -> bool:
        """Take a client's answer to this stage's request; False, and a fault, if it is not acceptable.

        `client` is who the transport says it is. A second answer is ignored; a wrong one drops the client.

        Args:
            slices: in stage 3 component -> packed masked slice, uint8, for the components that it owns; they are
                read and not kept. In no other stage anything travels beside the message.

        Raises:
            SecAggError: wrong_stage after the end of the session.
        """
        handlers: dict[Stage, Callable[[str, bytes], None]] = {
            Stage.ADVERTISE: self._receive_advertise,
            Stage.SHARE: self._receive_shares,
            Stage.MASK: lambda name, message: self._receive_masked(name, message, slices or {}),
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
            require(self.stage is Stage.MASK or not slices, Code.MALFORMED_MESSAGE, "slices out of place")
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
            Stage.CONFIRM: (self._close_confirm, Stage.UNMASK, self._context.params.threshold),
            Stage.UNMASK: (self._open, Stage.DONE, self._context.params.share_threshold),
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

    def _announce(self, message: Message) -> None:
        self._broadcast = message.to_bytes()

    def _receive_advertise(self, client: str, data: bytes) -> None:
        advertisement = Advertise.from_bytes(data)
        require(advertisement.sender == client, Code.UNKNOWN_MEMBER, "advertisement of another")
        self._context.check_advertisement(advertisement)
        same = self._basis is None or advertisement.basis == self._basis
        require(same, Code.MODEL_MISMATCH, f"{client} starts from another basis")
        self._advertised[client] = advertisement
        self._advertisements[client] = data

    def _close_advertise(self) -> None:
        listed = tuple(self._advertisements[name] for name in sorted(self._advertisements))
        self._u1_hash = advertisements_hash(listed)
        self._announce(Advertisements(listed))

    def _receive_shares(self, client: str, data: bytes) -> None:
        bundle = ShareBundle.from_bytes(data)
        bound = bundle.sender, bundle.kid, bundle.u1_hash
        require(bound == (client, self._context.kid, self._u1_hash), Code.WRONG_SESSION, "shares")
        holders = self._context.share_graph(self._u1_hash).neighbours(client) & self._advertised.keys()
        require(bundle.sealed.keys() == holders, Code.WRONG_SHARES, "holders")
        self._sealed[client] = bundle.sealed

    def _close_shares(self) -> None:
        self._u2 = tuple(sorted(self._answered))
        wire_bits = self._context.params.wire_bits
        self._totals = {
            spec.name: Accumulator(spec.size, wire_bits, self._threads) for spec in self._context.schema.components
        }
        self._bind_session()

    def _bind_session(self) -> None:
        """The session id, as soon as both U2 and the model are known."""
        if self._u2 and self._model_hash:
            self._sid = self._context.sid(self._u1_hash, self._u2, self._model_hash)

    def _receive_masked(self, client: str, data: bytes, slices: Mapping[str, Packed]) -> None:
        masked = Masked.from_bytes(data)
        require((masked.sender, masked.sid) == (client, self._sid), Code.WRONG_SESSION, "masked vector")
        owned = self._context.schema.owned_by(client)
        same = {spec.name for spec in owned} == masked.digests.keys() == slices.keys()
        require(same, Code.VECTOR_MISMATCH, "components")
        for spec in owned:
            check_packed(slices[spec.name], spec.size + 1, self._context.params.wire_bits)
        self._context.check_signature(client, masked.signature, masked.statement())
        for name, data_of in slices.items():
            digest = masking.slice_digest(data_of, self._threads)
            require(digest == masked.digests[name], Code.VECTOR_MISMATCH, f"slice of {name} is not what was signed")
        for name, data_of in slices.items():
            self._totals[name].add(data_of)

    def _close_masked(self) -> None:
        self._u3 = tuple(sorted(self._answered))
        self._plan = self._context.release_plan(self._u2, self._u3)
        self._sealed.clear()
        self._announce(Survivors(self._sid, self._u3))

    def _receive_confirm(self, client: str, data: bytes) -> None:
        confirm = Confirm.from_bytes(data)
        require((confirm.sender, confirm.sid) == (client, self._sid), Code.WRONG_SESSION, "confirmation")
        statement = survivors_statement(self._sid, self._u3)
        self._context.check_signature(client, confirm.signature, statement)
        self._signatures[client] = confirm.signature

    def _close_confirm(self) -> None:
        # In a k-regular graph t members in all may still be too few around one dealer; now nothing is burned yet.
        for dealer in self._plan:
            left = len(self._context.holders(self._u1_hash, dealer) & self._answered)
            enough = left >= self._context.params.share_threshold
            require(enough, Code.BELOW_THRESHOLD, f"{left} members hold shares of {dealer}")
        self._announce(Confirmations(self._sid, self._signatures))

    def _receive_release(self, client: str, data: bytes) -> None:
        release = Release.from_bytes(data)
        require((release.sender, release.sid) == (client, self._sid), Code.WRONG_SESSION, "shares")
        dealers = self._context.holders(self._u1_hash, client) & self._plan.keys()
        require(release.released.keys() == dealers, Code.WRONG_SHARES, "dealers")
        opened = {dealer: ReleasedShares.from_bytes(raw) for dealer, raw in release.released.items()}
        for dealer, item in opened.items():
            dealt = {seed_name(name) for name in self._advertised[dealer].commitments} | {MASK_KEY}
            planned = set(self._plan[dealer])
            complete = item.shares.keys() == planned and item.hidden.keys() == dealt - planned
            require(complete, Code.WRONG_SHARES, f"shares of {dealer}")
        self._shares[client] = opened

    def _open(self) -> None:
        opener = Opener(self._context, self._u1_hash, self._sid, self._advertised, self._shares)
        u2, u3 = frozenset(self._u2), frozenset(self._u3)
        try:
            for spec in self._context.schema.components:
                total = self._totals.pop(spec.name)
                opens = self._context.is_open(spec, u3)
                self._sums[spec.name] = opener.open(spec, total, u2, u3) if opens else None
        finally:
            for member, code in opener.faults.items():
                self.faults.setdefault(member, code)
