"""What client and server both know about one attempt, and the rules that both must compute alike.

Session ids, the signed statements, and the plan of which secret may be opened for whom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from secure_fed.errors import ConfigError
from secure_fed.secagg import keys
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.encoding import Value, digest, encode
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
        return self.members.index(member) + 1

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
        statement = survivors_statement(sid, listed)
        for member, signature in signatures.items():
            require(member in listed and member in self.public_keys, Code.SURVIVOR_UNKNOWN, member)
            self.check_signature(member, signature, statement)
        enough = len(signatures) >= self.params.threshold
        require(enough, Code.TOO_FEW_SIGNATURES, f"{len(signatures)} of {self.params.threshold}")

    def check_transcript(self, transcript: Transcript, model_hash: bytes) -> None:
        """Whether the members signed these survivors in this session over this model; for the next round.

        It makes a claimed sum attributable. It cannot show that the sum is that of the masked vectors.

        Raises:
            SecAggError: wrong_session, or as `check_confirmations`.
        """
        same = transcript.kid == self.kid and transcript.model_hash == model_hash
        require(same, Code.WRONG_SESSION, "transcript of another session or model")
        sid = self.sid(transcript.u1_hash, transcript.u2, model_hash)
        self.check_confirmations(sid, transcript.survivors, transcript.signatures)

    def is_open(self, component: ComponentSpec, survivors: Iterable[str]) -> bool:
        """Whether enough of the component's owners survived for its sum to be opened."""
        return len(component.owners & set(survivors)) >= self.params.floor(component.name)

    def release_plan(self, u2: Iterable[str], u3: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Dealer -> the secrets of which shares may be released; never both kinds for one dealer.

        A survivor's seeds are opened for components above their floor. The masking key of a member that sent
        shares but no vector is opened only where a component above its floor needs it.
        """
        survivors = set(u3)
        plan: dict[str, tuple[str, ...]] = {}
        for dealer in sorted(u2):
            opened = [spec for spec in self.schema.owned_by(dealer) if self.is_open(spec, survivors)]
            if dealer in survivors:
                names = tuple(seed_name(spec.name) for spec in opened)
            else:
                names = (MASK_KEY,) if opened else ()
            if names:
                plan[dealer] = names
        return plan


def masked_statement(sid: bytes, sender: str, slice_hashes: Mapping[str, bytes]) -> bytes:
    """What a client signs about its masked vector (stage 3): the SHA-256 of every slice."""
    return encode("sign/masked", [sid, sender, slice_hashes])


def survivors_statement(sid: bytes, survivors: Iterable[str]) -> bytes:
    """What a client signs about the survivors (stage 4); the same bytes for everybody."""
    return encode("sign/survivors", [sid, list(survivors)])


def advertisements_hash(advertisements: Iterable[bytes]) -> bytes:
    """H(U1): over the signed advertisements themselves, so equivocation by a member splits the session."""
    return digest("u1", list(advertisements))
