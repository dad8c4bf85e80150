"""What client and server both know about one attempt, and the rules that both must compute alike.

Session ids, the signed statements, and the plan of which secret may be opened for whom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from secure_fed.errors import ConfigError
from secure_fed.secagg import keys
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.encoding import Value, digest, encode
from secure_fed.secagg.graph import Graph, masking_degree, random_graph
from secure_fed.secagg.messages import VERSION, Advertise, Transcript
from secure_fed.secagg.params import ComponentSpec, SecAggParams, VectorSchema

MASK_KEY = "mask-key"
_SEED = "seed/"


class Stage(StrEnum):
    """For the server the stage whose answers it collects, for a client the message it makes next."""

    ADVERTISE = "advertise"
    SHARE = "share"
    MASK = "mask"
    CONFIRM = "confirm"
    UNMASK = "unmask"
    DONE = "done"
    FAILED = "failed"


def seed_name(component: str) -> str:
    """The name under which the self-mask seed of a component is shared and released."""
    return _SEED + component


@dataclass(frozen=True)
class SessionContext:
    """One attempt at one round, as everybody sees it; nothing in it comes from the server alone.

    Attributes:
        run, round, attempt: which attempt this is; the caller never starts one twice.
        roster_hash, policy_hash: SHA-256 of the consortium's roster and of the common policy, 32 bytes each.
        public_keys: member -> pinned Ed25519 public key (32 bytes), from the roster.

    Raises:
        ConfigError: the members do not fit the parameters, a component's owners are not members or are fewer
            than its floor, or a hash or key has the wrong length.
    """

    params: SecAggParams
    schema: VectorSchema
    run: str
    round: int
    attempt: int
    roster_hash: bytes
    policy_hash: bytes
    public_keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        if len(self.public_keys) != self.params.members:
            raise ConfigError(
                f"the roster has {len(self.public_keys)} members and secagg members={self.params.members}; "
                "they must be the same"
            )
        for name, value in (("roster_hash", self.roster_hash), ("policy_hash", self.policy_hash)):
            if len(value) != keys.HASH_BYTES:
                raise ConfigError(f"{name} has {len(value)} bytes, a SHA-256 hash has {keys.HASH_BYTES}")
        for member, key in self.public_keys.items():
            if len(key) != keys.KEY_BYTES:
                raise ConfigError(f"the key of {member!r} has {len(key)} bytes, Ed25519 has {keys.KEY_BYTES}")
        unknown = sorted(set(self.params.floors) - set(self.schema.by_name))
        if unknown:
            raise ConfigError(f"secagg floors name {unknown}; the components are {list(self.schema.by_name)}")
        for spec in self.schema.components:
            self._check_owners(spec)

    def _check_owners(self, spec: ComponentSpec) -> None:
        strangers = sorted(spec.owners - set(self.public_keys))
        if strangers:
            raise ConfigError(f"owners {strangers} of component {spec.name!r} are not on the roster")
        floor = self.params.floor(spec.name)
        if len(spec.owners) < floor:
            raise ConfigError(
                f"component {spec.name!r} has {len(spec.owners)} owners and its floor is {floor}: its sum "
                "could never be opened. More owners, a smaller max_corrupt (now "
                f"{self.params.max_corrupt}), or the owners' consent to a lower floor (floors "
                "and dp_only) are the ways out"
            )

    @cached_property
    def members(self) -> tuple[str, ...]:
        """All members, sorted; a member's place in it, from 1, is its Shamir point."""
        return tuple(sorted(self.public_keys))

    def point(self, member: str) -> int:
        """The member's public Shamir evaluation point."""
        return self._points[member]

    @cached_property
    def _points(self) -> dict[str, int]:
        return {member: place + 1 for place, member in enumerate(self.members)}

    @cached_property
    def kid(self) -> bytes:
        """The id that binds stages 1 and 2: everything but the model, which may not exist yet."""
        roster: list[Value] = [
            self.roster_hash,
            self.policy_hash,
            self.params.digest(),
            dict(self.public_keys),
        ]
        return digest("kid", [VERSION, self.run, self.round, self.attempt, roster])

    def sid(self, u1_hash: bytes, u2: Iterable[str], model_hash: bytes) -> bytes:
        """The id that binds stages 3 to 5: kid, who advertised what, who shared, the model and the layout."""
        return digest("sid", [self.kid, u1_hash, sorted(u2), model_hash, self.schema.digest()])

    def share_graph(self, u1_hash: bytes) -> Graph:
        """Who holds shares of whom: complete, or k-regular over the whole roster in an order that H(U1) gives.

        All members enter it, also those outside of U1, which are then nothing but drop-outs, so that the
        probabilities are those of n members. No client alone fixes the order, and an honest one makes it
        random; a server that tries many U1 may choose among many orders, hence "semi-malicious".
        """
        degree = len(self.members) - 1 if self.params.graph is None else self.params.graph.degree
        return random_graph(u1_hash, ("shares",), self.members, degree)

    def holders(self, u1_hash: bytes, dealer: str) -> frozenset[str]:
        """Whom a member deals shares of its secrets to: its neighbours and itself."""
        return self.share_graph(u1_hash).neighbours(dealer) | {dealer}

    def mask_graph(self, u1_hash: bytes, spec: ComponentSpec) -> Graph:
        """Who masks a component against whom: all of its owners, or a k-regular graph over them.

        A graph of its own, because in the share graph an owner could have no other owner for a neighbour,
        and then only its self-mask would stand between its slice and the server. All corrupt members may
        be owners of one component, so in small ones the degree grows until it is safe, up to complete.
        """
        degree = len(spec.owners) - 1
        if self.params.graph is not None:
            dropped = min(self.params.max_dropped, len(spec.owners) - self.params.floor(spec.name))
            degree = masking_degree(len(spec.owners), self.params.max_corrupt, dropped, self.params.graph.degree)
        return random_graph(u1_hash, ("masks", spec.name), spec.owners, degree)

    def check_advertisement(self, advertisement: Advertise) -> None:
        """Whether a member's keys may enter the session.

        Raises:
            SecAggError: unknown_member, wrong_session, wrong_components, bad_signature or bad_key.
        """
        sender = advertisement.sender
        require(sender in self.public_keys, Code.UNKNOWN_MEMBER, sender)
        require(advertisement.kid == self.kid, Code.WRONG_SESSION, f"advertisement of {sender}")
        owned = {spec.name for spec in self.schema.owned_by(sender)}
        require(set(advertisement.commitments) == owned, Code.WRONG_COMPONENTS, f"advertisement of {sender}")
        self.check_signature(sender, advertisement.signature, advertisement.statement())
        for key in (advertisement.cipher_key, advertisement.mask_key):
            require(keys.is_usable(key), Code.BAD_KEY, f"advertisement of {sender}")

    def check_cohort(self, members: Sequence[str]) -> None:
        """Whether a list of members is in order and long enough for a client to go on.

        Raises:
            SecAggError: duplicate_member, malformed_message if it is not sorted, cohort_too_small below the quorum.
        """
        require(len(set(members)) == len(members), Code.DUPLICATE_MEMBER, "a member is listed twice")
        require(list(members) == sorted(members), Code.MALFORMED_MESSAGE, "members are not sorted")
        quorum = self.params.quorum
        require(len(members) >= quorum, Code.COHORT_TOO_SMALL, f"{len(members)} members of {quorum}")

    def check_signature(self, member: str, signature: bytes, statement: bytes) -> None:
        """Raise `bad_signature` unless the member's pinned key signed the statement."""
        valid = keys.verify(self.public_keys[member], signature, statement)
        require(valid, Code.BAD_SIGNATURE, f"signature of {member}")

    def check_confirmations(self, sid: bytes, survivors: Iterable[str], signatures: Mapping[str, bytes]) -> None:
        """Whether t distinct survivors signed exactly this list of survivors.

        Raises:
            SecAggError: survivor_unknown, bad_signature or too_few_signatures.
        """
        listed = tuple(survivors)
        known = set(listed) & set(self.public_keys)
        statement = survivors_statement(sid, listed)
        for member, signature in signatures.items():
            require(member in known, Code.SURVIVOR_UNKNOWN, member)
            self.check_signature(member, signature, statement)
        enough = len(signatures) >= self.params.threshold
        require(enough, Code.TOO_FEW_SIGNATURES, f"{len(signatures)} of {self.params.threshold}")

    def check_transcript(self, transcript: Transcript, model_hash: bytes) -> None:
        """Whether the members signed these survivors in this session over this model; for the next round.

        It stands alone: at least t members say over a sid that binds `model_hash` who survived. That attests
        the model behind the hash and makes a claimed sum attributable. It cannot show that the sum is that of
        the masked vectors.

        Raises:
            SecAggError: wrong_session, malformed_message, duplicate_member, cohort_too_small, unknown_member or
                survivor_unknown for lists that no honest client would have signed; or as `check_confirmations`.
        """
        same = transcript.kid == self.kid and transcript.model_hash == model_hash
        require(same, Code.WRONG_SESSION, "transcript of another session or model")
        self.check_cohort(transcript.u2)
        self.check_cohort(transcript.survivors)
        require(set(transcript.u2) <= set(self.public_keys), Code.UNKNOWN_MEMBER, "U2 beyond the roster")
        require(set(transcript.survivors) <= set(transcript.u2), Code.SURVIVOR_UNKNOWN, "survivors beyond U2")
        sid = self.sid(transcript.u1_hash, transcript.u2, model_hash)
        self.check_confirmations(sid, transcript.survivors, transcript.signatures)

    def is_open(self, component: ComponentSpec, survivors: Iterable[str]) -> bool:
        """Whether enough of the component's owners survived for its sum to be opened."""
        return len(component.owners & set(survivors)) >= self.params.floor(component.name)

    def release_plan(self, u2: Iterable[str], u3: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Dealer -> the secrets of which its holders may release shares; never both kinds for one dealer.

        A survivor's seeds are opened for components above their floor. The masking key of a member that sent
        shares but no vector is opened only where a component above its floor needs it.
        """
        survivors = set(u3)
        open_ones = {spec.name for spec in self.schema.components if self.is_open(spec, survivors)}
        plan: dict[str, tuple[str, ...]] = {}
        for dealer in sorted(u2):
            opened = [spec for spec in self.schema.owned_by(dealer) if spec.name in open_ones]
            if dealer in survivors:
                names = tuple(seed_name(spec.name) for spec in opened)
            else:
                names = (MASK_KEY,) if opened else ()
            if names:
                plan[dealer] = names
        return plan


def survivors_statement(sid: bytes, survivors: Iterable[str]) -> bytes:
    """What a client signs about the survivors (stage 4); the same bytes for everybody."""
    return encode("sign/survivors", [sid, list(survivors)])


def advertisements_hash(advertisements: Iterable[bytes]) -> bytes:
    """H(U1): over the signed advertisements themselves, so equivocation by a member splits the session."""
    return digest("u1", list(advertisements))
