"""The client's side as a pure state machine: bytes in, bytes out, and every check before anything leaves.

A step that fails raises `SecAggError` with a fixed code, erases the secrets and ends the session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256

import numpy as np

from secure_fed.secagg import keys, masking, ring, shares
from secure_fed.secagg.client_state import ClientState
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.encoding import encode
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
from secure_fed.secagg.params import ComponentSpec
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
from secure_fed.secagg.shares import Sign


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
    def stage(self) -> Stage:
        """The message that comes next, or done, or failed."""
        return self._state.stage

    @property
    def survivors(self) -> tuple[str, ...]:
        """U3 as this client signed it; empty before."""
        return self._state.u3

    def advertise(self) -> bytes:
        """Stage 1: fresh keys, commitments to fresh self-mask seeds, signed."""
        with self._step(Stage.ADVERTISE, Stage.SHARE) as state:
            state.cipher_private, state.mask_private = keys.fresh_secret(), keys.fresh_secret()
            owned = self._context.schema.owned_by(state.me)
            state.seeds = {spec.name: keys.fresh_secret() for spec in owned}
            commitments = {name: keys.commit(state.kid, state.me, name, seed) for name, seed in state.seeds.items()}
            public = keys.public_of(state.cipher_private), keys.public_of(state.mask_private)
            draft = Advertise(state.me, state.kid, *public, commitments, b"")
            signature = self._sign(draft.statement())
            state.own = Advertise(state.me, state.kid, *public, commitments, signature).to_bytes()
            return state.own

    def share(self, message: bytes) -> bytes:
        """Stage 2: check everybody's advertisement, then deal sealed shares of every secret.

        Raises:
            SecAggError: see docs/secagg.md; among them own_key_changed, bad_signature, cohort_too_small.
        """
        with self._step(Stage.SHARE, Stage.MASK) as state:
            raw = Advertisements.from_bytes(message).advertisements
            advertised = [Advertise.from_bytes(item) for item in raw]
            self._check_cohort([item.sender for item in advertised])
            state.peers = {item.sender: data for item, data in zip(advertised, raw, strict=True)}
            require(state.peers.get(state.me) == state.own, Code.OWN_KEY_CHANGED, "own advertisement")
            for item in advertised:
                self._context.check_advertisement(item)
            state.u1_hash = advertisements_hash(raw)
            secrets = {seed_name(name): seed for name, seed in state.seeds.items()}
            secrets[MASK_KEY] = state.mask_private
            dealt = shares.deal(self._context, state.me, secrets, state.peers, self._sign)
            state.held = {state.me: dealt[state.me].to_bytes()}
            sealed = {
                item.sender: keys.seal(
                    self._cipher_key(item, state.me, item.sender),
                    dealt[item.sender].to_bytes(),
                    self._associated(state.me, item.sender),
                )
                for item in advertised
                if item.sender != state.me
            }
            return ShareBundle(state.me, state.kid, state.u1_hash, sealed).to_bytes()

    def mask(self, message: bytes, vector: Mapping[str, Ring], model_hash: bytes) -> bytes:
        """Stage 3: open the shares, then mask the slices of the components that this client owns.

        Args:
            message: the server's `ShareDelivery`.
            vector: component -> uint32 [size] from `ring.quantise`, for exactly the owned components.
            model_hash: SHA-256 of the model that this client trained on, by its own computation.

        Raises:
            SecAggError: share_unreadable, share_forged, vector_mismatch, out_of_range and others.
        """
        with self._step(Stage.MASK, Stage.CONFIRM) as state:
            self._open_shares(ShareDelivery.from_bytes(message))
            require(len(model_hash) == keys.HASH_BYTES, Code.MODEL_NOT_BOUND, "model_hash is no SHA-256")
            state.sid = self._context.sid(state.u1_hash, state.u2, model_hash)
            owned = self._context.schema.owned_by(state.me)
            require(set(vector) == {spec.name for spec in owned}, Code.VECTOR_MISMATCH, "components")
            agreed = self._agree_with_owners(owned)
            slices = {spec.name: self._masked_slice(spec, vector[spec.name], agreed) for spec in owned}
            hashes = {name: sha256(content).digest() for name, content in slices.items()}
            signature = self._sign(masked_statement(state.sid, state.me, hashes))
            state.erase_masking_secrets()
            return Masked(state.me, state.sid, slices, signature).to_bytes()

    def confirm(self, message: bytes) -> bytes:
        """Stage 4: sign the survivors, if this client is one and they are enough.

        Raises:
            SecAggError: wrong_session, not_a_survivor, survivor_unknown, cohort_too_small, duplicate_member.
        """
        with self._step(Stage.CONFIRM, Stage.UNMASK) as state:
            listed = Survivors.from_bytes(message)
            require(listed.sid == state.sid, Code.WRONG_SESSION, "survivors of another session")
            self._check_cohort(list(listed.survivors))
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

    def _check_cohort(self, members: list[str]) -> None:
        """Distinct, in order, and at least max(t, min_cohort)."""
        require(len(set(members)) == len(members), Code.DUPLICATE_MEMBER, "a member is listed twice")
        require(members == sorted(members), Code.MALFORMED_MESSAGE, "members are not sorted")
        quorum = self._context.params.quorum
        require(len(members) >= quorum, Code.COHORT_TOO_SMALL, f"{len(members)} members of {quorum}")

    def _cipher_key(self, peer: Advertise, dealer: str, holder: str) -> bytes:
        shared = keys.agree(self._state.cipher_private, peer.cipher_key)
        return keys.derive(shared, "share", self._state.kid, [dealer, holder])

    def _associated(self, dealer: str, holder: str) -> bytes:
        return encode("sealed-share", [self._state.kid, dealer, holder, self._state.u1_hash])

    def _open_shares(self, delivery: ShareDelivery) -> None:
        """Everything that was dealt to this client opens, is complete and is signed by its dealer."""
        state = self._state
        require(delivery.kid == state.kid, Code.WRONG_SESSION, "shares of another session")
        dealers = set(delivery.sealed)
        require(state.me not in dealers and dealers <= set(state.peers), Code.UNKNOWN_MEMBER, "a dealer")
        state.u2 = tuple(sorted(dealers | {state.me}))
        self._check_cohort(list(state.u2))
        held = dict(state.held)
        for dealer, sealed in delivery.sealed.items():
            peer = Advertise.from_bytes(state.peers[dealer])
            key = self._cipher_key(peer, dealer, state.me)
            content = keys.unseal(key, sealed, self._associated(dealer, state.me))
            dealt = Dealt.from_bytes(content)
            expected = {seed_name(name) for name in peer.commitments} | {MASK_KEY}
            require(set(dealt.shares) == expected, Code.WRONG_SHARES, f"shares of {dealer}")
            signed = shares.is_signed(self._context, dealer, state.me, dealt.shares, {}, dealt.signature)
            require(signed, Code.SHARE_FORGED, f"shares of {dealer}")
            held[dealer] = content
        state.held = held

    def _agree_with_owners(self, owned: tuple[ComponentSpec, ...]) -> dict[str, bytes]:
        """The masking secrets with everybody in U2 who owns a component in common with this client."""
        state = self._state
        peers = {peer for spec in owned for peer in spec.owners} & set(state.u2) - {state.me}
        return {
            peer: keys.agree(state.mask_private, Advertise.from_bytes(state.peers[peer]).mask_key)
            for peer in sorted(peers)
        }

    def _masked_slice(self, spec: ComponentSpec, values: Ring, agreed: Mapping[str, bytes]) -> bytes:
        state = self._state
        self._check_slice(spec, values)
        target = np.empty(spec.size + 1, dtype="<u4")
        target[:-1] = values
        target[-1] = 1
        masking.apply_self_mask(target, state.seeds[spec.name], state.sid, state.me, spec.name)
        for peer, shared in agreed.items():
            if peer in spec.owners:
                masking.apply_pair_mask(target, shared, state.sid, state.me, peer, spec.name)
        return target.tobytes()

    def _check_slice(self, spec: ComponentSpec, values: Ring) -> None:
        fits = values.dtype == np.uint32 and values.shape == (spec.size,)
        require(fits, Code.VECTOR_MISMATCH, f"{spec.name}: {values.dtype} {values.shape}, size {spec.size}")
        signed = values.view(np.int32)
        level = ring.max_level(self._context.params.value_bits)
        in_range = -level <= int(signed.min()) and int(signed.max()) <= level
        require(in_range, Code.OUT_OF_RANGE, f"{spec.name} exceeds {level}")
