"""The client's side as a pure state machine: bytes in, bytes out, and every check before anything leaves.

A step that fails raises `SecAggError` with a fixed code, erases the secrets and ends the session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

from secure_fed.errors import SecAggError
from secure_fed.secagg import equivocation, keys, masking, shares
from secure_fed.secagg.client_state import ClientState
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.encoding import encode
from secure_fed.secagg.masking import Mask
from secure_fed.secagg.messages import (
    Advertise,
    Advertisements,
    Confirm,
    Confirmations,
    Dealt,
    Masked,
    Release,
    ShareBundle,
    ShareDelivery,
    Survivors,
)
from secure_fed.secagg.notes import check_length
from secure_fed.secagg.packing import Packed
from secure_fed.secagg.params import ComponentSpec
from secure_fed.secagg.ring import Source
from secure_fed.secagg.session import (
    MASK_KEY,
    SessionContext,
    Stage,
    advertisements_hash,
    seed_name,
    survivors_statement,
)
from secure_fed.secagg.shares import Sign

Answer = Callable[[Mapping[str, bytes]], Mapping[str, bytes]]
"""Given the others' notices, by member: the notes to go to them, by member; none to whoever is left out."""

_AFTER_SHARE = (Stage.MASK, Stage.CONFIRM, Stage.UNMASK, Stage.DONE)
_AFTER_CONFIRM = (Stage.UNMASK, Stage.DONE)


@dataclass(frozen=True)
class MaskedVector:
    """Stage 3, client to server: the signed message, and beside it component -> packed masked slice."""

    message: bytes
    slices: Mapping[str, Packed]


class ClientSession:
    """One client in one attempt: advertise, share, mask, confirm, unmask, each once and in this order.

    Args:
        context: the attempt, as the client itself knows it from roster and policy.
        me: this client's name on the roster.
        sign: makes the Ed25519 signature (64 bytes) of a message with the key pinned for `me`.

    To go on in another process, store `to_bytes()` before a message is sent and give it to `from_bytes`.
    A stored state used twice is beyond what this class can see: the caller keeps each state for one step.
    """

    def __init__(self, context: SessionContext, me: str, sign: Sign) -> None:
        require(me in context.public_keys, Code.UNKNOWN_MEMBER, me)
        self._context = context
        self._sign = sign
        self._state = ClientState(context.kid, me)

    @classmethod
    def from_bytes(cls, data: bytes, context: SessionContext, me: str, sign: Sign) -> ClientSession:
        """The session whose `to_bytes()` is `data`.

        Raises:
            SecAggError: `wrong_session` if the state is of another attempt or another client.
        """
        session = cls(context, me, sign)
        state = ClientState.from_bytes(data)
        require((state.kid, state.me) == (context.kid, me), Code.WRONG_SESSION, "state of another session")
        session._state = state
        return session

    def to_bytes(self) -> bytes:
        """The state between two messages. It holds secrets: store it wrapped, with one writer."""
        return self._state.to_bytes()

    @property
    def name(self) -> str:
        """This client's name on the roster."""
        return self._state.me

    @property
    def stage(self) -> Stage:
        """The message that comes next, or done, or failed."""
        return self._state.stage

    @property
    def survivors(self) -> tuple[str, ...]:
        """U3 as this client signed it; empty before."""
        return self._state.u3

    @property
    def advertisements(self) -> Mapping[str, bytes]:
        """Member of U1 -> its signed advertisement as this client took it, for evidence; empty before stage 2."""
        return dict(self._state.peers)

    @property
    def notices(self) -> Mapping[str, bytes]:
        """Other member of U1 -> its notice, under its signature; empty before stage 2 is done."""
        return {
            name: Advertise.from_bytes(raw).notice for name, raw in self._state.peers.items() if name != self._state.me
        }

    def advertise(self, basis: bytes, notice: bytes = b"") -> bytes:
        """Stage 1: fresh keys, commitments to fresh self-mask seeds, signed.

        Args:
            basis: SHA-256 of what this client starts from, by its own computation (the caller's model and optimizer
                state): `share` goes on only if every member advertised the same.
            notice: the caller's word to all members and the server, at most 128 bytes; signed, and not read here.
        """
        with self._step(Stage.ADVERTISE, Stage.SHARE) as state:
            require(len(basis) == keys.HASH_BYTES, Code.MODEL_NOT_BOUND, "basis is no SHA-256")
            state.cipher_private, state.mask_private = keys.fresh_secret(), keys.fresh_secret()
            owned = self._context.schema.owned_by(state.me)
            state.seeds = {spec.name: keys.fresh_secret() for spec in owned}
            commitments = {name: keys.commit(state.kid, state.me, name, seed) for name, seed in state.seeds.items()}
            public = keys.public_of(state.cipher_private), keys.public_of(state.mask_private)
            check_length(notice)
            draft = Advertise(state.me, state.kid, basis, *public, commitments, notice, b"")
            state.own = replace(draft, signature=self._sign(draft.statement())).to_bytes()
            return state.own

    def share(self, message: bytes, answer: Answer | None = None) -> bytes:
        """Stage 2: check everybody's advertisement, then deal sealed shares of every secret to the neighbours.

        Args:
            message: the server's `Advertisements`.
            answer: is told the others' notices and says what note each is to get, at most 128 bytes; a note goes
                sealed, beside the share, and only to neighbours.

        Raises:
            SecAggError: see docs/secagg.md; among them own_key_changed, bad_signature, cohort_too_small, and
                model_mismatch if somebody starts from another basis. Called again: wrong_stage, or
                equivocation if a member has now signed another advertisement.
        """
        self._refuse_second_advertisement(message)
        with self._step(Stage.SHARE, Stage.MASK) as state:
            raw = Advertisements.from_bytes(message).advertisements
            listed = [Advertise.from_bytes(item) for item in raw]
            self._check_advertised(listed)
            advertised = {item.sender: item for item in listed}
            state.peers = dict(zip(advertised, raw, strict=True))
            state.u1_hash = advertisements_hash(raw)
            neighbours = sorted(self._neighbours())
            needed = self._context.params.share_threshold
            require(len(neighbours) + 1 >= needed, Code.COHORT_TOO_SMALL, f"{len(neighbours)} neighbours")
            secrets = {seed_name(name): seed for name, seed in state.seeds.items()}
            secrets[MASK_KEY] = state.mask_private
            notes = {} if answer is None else answer(self.notices)
            holders = [state.me, *neighbours]
            dealt = shares.deal(self._context, state.me, secrets, holders, notes, self._sign)
            state.held = {state.me: dealt[state.me].to_bytes()}
            sealed = {
                holder: keys.seal(
                    self._cipher_key(advertised[holder], state.me, holder),
                    dealt[holder].to_bytes(),
                    self._associated(state.me, holder),
                )
                for holder in neighbours
            }
            return ShareBundle(state.me, state.kid, state.u1_hash, sealed).to_bytes()

    def notes(self, message: bytes) -> dict[str, bytes]:
        """The notes in the `ShareDelivery` that `mask` takes next: dealer -> note, empty where it has none to say.

        For a caller that must know them before it puts anything into its slices. Nothing is kept or leaves, and
        `mask` opens the delivery for itself. One that does not open ends the session, as it would in `mask`.

        Raises:
            SecAggError: wrong_session, share_unreadable, share_forged and others, as `mask` does.
        """
        with self._step(Stage.MASK, Stage.MASK):
            opened = self._opened(ShareDelivery.from_bytes(message))
        return {dealer: dealt.note for dealer, dealt in opened.items()}

    def mask(self, message: bytes, slices: Mapping[str, Source], model_hash: bytes, threads: int = 1) -> MaskedVector:
        """Stage 3: open the shares, then mask the slices of the components that this client owns.

        Args:
            message: the server's `ShareDelivery`.
            slices: component -> the source of its levels, for exactly the owned components.
            model_hash: SHA-256 of the model that this client trained on, by its own computation.
            threads: how many to mask with; the result does not depend on it.

        Raises:
            SecAggError: share_unreadable, share_forged, vector_mismatch, what a source raises, and others.
        """
        with self._step(Stage.MASK, Stage.CONFIRM) as state:
            delivery = ShareDelivery.from_bytes(message)
            opened = {dealer: dealt.to_bytes() for dealer, dealt in self._opened(delivery).items()}
            state.u2, state.held = delivery.u2, {**state.held, **opened}
            require(len(model_hash) == keys.HASH_BYTES, Code.MODEL_NOT_BOUND, "model_hash is no SHA-256")
            state.sid = self._context.sid(state.u1_hash, state.u2, model_hash)
            owned = self._context.schema.owned_by(state.me)
            sizes = {name: source.size for name, source in slices.items()}
            require(sizes == {spec.name: spec.size for spec in owned}, Code.VECTOR_MISMATCH, f"slices {sizes}")
            in_range = {source.value_bits for source in slices.values()} <= {self._context.params.value_bits}
            require(in_range, Code.OUT_OF_RANGE, "a source of other value_bits")
            masks = self._masks(owned)
            wire_bits = self._context.params.wire_bits
            packed = {name: masking.masked_slice(slices[name], masks[name], wire_bits, threads) for name in masks}
            draft = Masked(state.me, state.sid, {name: item.digest for name, item in packed.items()}, b"")
            signature = self._sign(draft.statement())
            state.erase_masking_secrets()
            return MaskedVector(
                replace(draft, signature=signature).to_bytes(), {name: item.data for name, item in packed.items()}
            )

    def confirm(self, message: bytes) -> bytes:
        """Stage 4: sign the survivors, if this client is one and they are enough.

        Raises:
            SecAggError: wrong_session, not_a_survivor, survivor_unknown, cohort_too_small, duplicate_member.
                Called again: wrong_stage, or equivocation if the survivors are now others.
        """
        self._refuse_other_survivors(message)
        with self._step(Stage.CONFIRM, Stage.UNMASK) as state:
            listed = Survivors.from_bytes(message)
            require(listed.sid == state.sid, Code.WRONG_SESSION, "survivors of another session")
            self._context.check_cohort(listed.survivors)
            require(state.me in listed.survivors, Code.NOT_A_SURVIVOR, state.me)
            require(set(listed.survivors) <= set(state.u2), Code.SURVIVOR_UNKNOWN, "survivors beyond U2")
            state.u3 = listed.survivors
            signature = self._sign(survivors_statement(state.sid, state.u3))
            return Confirm(state.me, state.sid, signature).to_bytes()

    def unmask(self, message: bytes) -> bytes:
        """Stage 5: release shares for what may be opened, once, if t members signed the same survivors.

        Raises:
            SecAggError: wrong_session, bad_signature, survivor_unknown, too_few_signatures.
        """
        with self._step(Stage.UNMASK, Stage.DONE) as state:
            confirmed = Confirmations.from_bytes(message)
            require(confirmed.sid == state.sid, Code.WRONG_SESSION, "confirmations of another session")
            self._context.check_confirmations(state.sid, state.u3, confirmed.signatures)
            released = {
                dealer: shares.release(
                    state.kid, dealer, state.me, Dealt.from_bytes(state.held[dealer]), names
                ).to_bytes()
                for dealer, names in self._context.release_plan(state.u2, state.u3).items()
                if dealer in state.held
            }
            state.erase_all()
            return Release(state.me, state.sid, released).to_bytes()

    @contextmanager
    def _step(self, expected: Stage, following: Stage) -> Iterator[ClientState]:
        state = self._state
        require(state.stage is expected, Code.WRONG_STAGE, f"{expected} asked for, {state.stage} is next")
        # Whatever ends the step early ends the session: nothing is tried twice with the same secrets.
        state.stage = Stage.FAILED
        try:
            yield state
            state.stage = following
        finally:
            if state.stage is Stage.FAILED:
                state.erase_all()

    def _refuse_second_advertisement(self, message: bytes) -> None:
        if self._state.stage in _AFTER_SHARE:
            twice = equivocation.signed_twice(self._context, self._state.peers, message)
            if twice is not None:
                self._fail(Code.EQUIVOCATION, f"{twice} signed two advertisements")

    def _refuse_other_survivors(self, message: bytes) -> None:
        state = self._state
        if state.stage in _AFTER_CONFIRM and equivocation.is_other_list(state.sid, state.u3, message):
            self._fail(Code.EQUIVOCATION, "two lists of survivors")

    def _fail(self, code: Code, detail: str) -> NoReturn:
        self._state.stage = Stage.FAILED
        self._state.erase_all()
        raise SecAggError(code, detail)

    def _check_advertised(self, advertised: Sequence[Advertise]) -> None:
        """Everybody is who it says it is and starts from the basis of this client."""
        self._context.check_cohort([item.sender for item in advertised])
        own = next((item for item in advertised if item.sender == self._state.me), None)
        # A stray message of another session, or one without this client, proves no lie: these codes do not halt.
        if own is None:
            raise SecAggError(Code.UNKNOWN_MEMBER, "the own advertisement is missing")
        require(own.kid == self._state.kid, Code.WRONG_SESSION, "advertisements of another session")
        require(own.to_bytes() == self._state.own, Code.OWN_KEY_CHANGED, "own advertisement")
        for item in advertised:
            self._context.check_advertisement(item)
        # Only now, so that whoever names another basis has signed that.
        others = [item.sender for item in advertised if item.basis != own.basis]
        require(not others, Code.MODEL_MISMATCH, f"{others} start from another basis")

    def _neighbours(self) -> frozenset[str]:
        """The members of U1 that this client deals to and holds shares of."""
        state = self._state
        return self._context.share_graph(state.u1_hash).neighbours(state.me) & state.peers.keys()

    def _cipher_key(self, peer: Advertise, dealer: str, holder: str) -> bytes:
        shared = keys.agree(self._state.cipher_private, peer.cipher_key)
        return keys.derive(shared, "share", self._state.kid, [dealer, holder])

    def _associated(self, dealer: str, holder: str) -> bytes:
        return encode("sealed-share", [self._state.kid, dealer, holder, self._state.u1_hash])

    def _opened(self, delivery: ShareDelivery) -> dict[str, Dealt]:
        """Dealer -> what it dealt to this client: everything opens, is complete and is signed by its dealer."""
        state = self._state
        require(delivery.kid == state.kid, Code.WRONG_SESSION, "shares of another session")
        u2 = set(delivery.u2)
        require(state.me in u2 and u2 <= state.peers.keys(), Code.UNKNOWN_MEMBER, "U2")
        self._context.check_cohort(delivery.u2)
        require(delivery.sealed.keys() == self._neighbours() & u2, Code.WRONG_SHARES, "dealers")
        opened = {}
        for dealer, sealed in delivery.sealed.items():
            peer = Advertise.from_bytes(state.peers[dealer])
            key = self._cipher_key(peer, dealer, state.me)
            dealt = Dealt.from_bytes(keys.unseal(key, sealed, self._associated(dealer, state.me)))
            expected = {seed_name(name) for name in peer.commitments} | {MASK_KEY}
            require(set(dealt.shares) == expected, Code.WRONG_SHARES, f"shares of {dealer}")
            shown = shares.release(state.kid, dealer, state.me, dealt, dealt.shares)
            require(shares.is_signed(self._context, dealer, state.me, shown), Code.SHARE_FORGED, f"shares of {dealer}")
            opened[dealer] = dealt
        return opened

    def _masks(self, owned: Iterable[ComponentSpec]) -> dict[str, list[Mask]]:
        """Component -> this client's own mask and one for every owner in U2 that it is joined with."""
        state = self._state
        agreed: dict[str, bytes] = {}
        masks = {}
        for spec in owned:
            joined = sorted(self._context.mask_graph(state.u1_hash, spec).neighbours(state.me) & set(state.u2))
            for peer in joined:
                if peer not in agreed:
                    agreed[peer] = keys.agree(state.mask_private, Advertise.from_bytes(state.peers[peer]).mask_key)
            own = masking.self_mask(state.seeds[spec.name], state.sid, state.me, spec.name)
            pairs = [masking.pair_mask(agreed[peer], state.sid, state.me, peer, spec.name) for peer in joined]
            masks[spec.name] = [own, *pairs]
        return masks
