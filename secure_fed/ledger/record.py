"""What a ledger record is: its kinds and their bodies, its canonical line, its hash and its signature.

Pure values, no files. docs/ledger.md documents every field; a change of meaning needs a new schema name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from secure_fed.accounting import Mechanism, Relation
from secure_fed.accounting.mechanisms import KINDS
from secure_fed.errors import AccountingError, ConfigError, LedgerError
from secure_fed.identity import (
    KeyHex,
    SignatureHex,
    SigningKey,
    canonical_json,
    describe,
    domain_separated,
    verify_signature,
)

SCHEMA = "secure_fed.ledger/1"
DOMAIN = "ledger/1"
REKEY_DOMAIN = "rekey/1"
NO_PREVIOUS = "0" * 64
RNG_CLASSES = ("os_urandom_aes256ctr", "insecure_reproducible")
"""What the noise and the samples may come from; the second protects nothing."""
_FIELDS = frozenset(("schema", "seq", "time", "site", "kind", "body", "prev", "hash", "signature"))
TIME_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"


def _mechanism(value: object) -> Mechanism:
    try:
        return Mechanism.from_json(value)
    except AccountingError as error:
        raise ValueError(str(error)) from error


_MECHANISM_SCHEMA = {
    "type": "object",
    "title": "Mechanism",
    "properties": {
        "kind": {"enum": list(KINDS)},
        "noise_multiplier": {"type": "number", "minimum": 0},
        "sample_rate": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "steps": {"type": "integer", "minimum": 1},
        "batch_cap": {"type": "integer", "minimum": 1},
        "population": {"type": "integer", "minimum": 1},
        "component_noise": {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}, "minItems": 1},
    },
    "required": ["kind", "noise_multiplier", "sample_rate", "steps"],
    "additionalProperties": False,
}
MechanismField = Annotated[
    Mechanism,
    PlainValidator(_mechanism),
    PlainSerializer(Mechanism.to_json),
    WithJsonSchema(_MECHANISM_SCHEMA),  # pydantic cannot look into a validator
]
Code = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Name = Annotated[str, Field(min_length=1, max_length=128)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Counter = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Components = Annotated[tuple[Name, ...], Field(min_length=1)]
Unit = Literal["record", "patient"]


class Body(BaseModel):
    """The part of a record that depends on its kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Genesis(Body):
    """The first record: whose ledger this is and which guarantee it counts."""

    public_key: KeyHex
    unit: Unit
    relation: Relation
    delta: Annotated[float, Field(gt=0, lt=1)]
    epsilon_limit: Positive | None  # None: the owner set no limit (a comparison without privacy)
    filter_order: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None  # Renyi order of the filter over runs
    declared_n: Annotated[int, Field(ge=1)]  # units, not records
    max_records_per_unit: Annotated[int, Field(ge=1)]
    data_set: Name  # whose records these are: a home belongs to one data set
    lifetime_claim: bool  # whether every use of these data is on this ledger

    @model_validator(mode="after")
    def _guarantee_means_something(self) -> Genesis:
        if self.delta >= 1 / self.declared_n:
            raise ValueError(f"delta={self.delta!r} >= 1/{self.declared_n}: publishing one whole unit would satisfy it")
        if (self.epsilon_limit is None) != (self.filter_order is None):
            raise ValueError("epsilon_limit and filter_order are either both given or both null")
        if self.unit == "record" and self.max_records_per_unit != 1:
            raise ValueError(f"max_records_per_unit={self.max_records_per_unit} with unit='record': that is 1")
        return self


class PlannedPhase(Body):
    """A phase as fixed before the run: one round's mechanism, and the most rounds that may be charged."""

    name: Name
    mechanism: MechanismField | None  # None: a phase without privacy
    max_grad_norm: Positive | None
    rounds: Annotated[int, Field(ge=1)]  # spare attempts included
    components: Components

    @model_validator(mode="after")
    def _clip_belongs_to_noise(self) -> PlannedPhase:
        if (self.mechanism is None) != (self.max_grad_norm is None):
            raise ValueError("mechanism and max_grad_norm are either both given or both null")
        return self


class Plan(Body):
    """Everything that a run may release at this site, fixed beforehand: what PLD composition needs."""

    run: Name
    plan_hash: Hash  # of the run's public facts: what an owner approves
    method: Name
    phases: Annotated[tuple[PlannedPhase, ...], Field(min_length=1)]
    epsilon: Positive | None  # PLD, the most that all phases together cost; None without privacy
    filter_epsilon: Positive | None  # what was held against the limit: Standing.admission; None without a limit
    delta: Annotated[float, Field(gt=0, lt=1)]
    accountant: Literal["pld"]
    versions: dict[Name, Name]
    rng: Name  # the class of the noise source: RNG_CLASSES


class Reserve(Body):
    """One round of one phase, charged: on disk before anything is sampled, so a crash over-counts."""

    run: Name
    step: Counter
    round: Counter
    attempt: Counter
    phase: Name
    mechanism: MechanismField  # of this one round
    max_grad_norm: Positive  # the L2 norm that one unit's contribution is clipped to
    sampler: Literal["poisson", "truncated_poisson", "none"]
    expected_batch: Positive  # sample_rate * declared_n
    physical_batch: Annotated[int, Field(ge=1)]  # most records whose gradients are held at one time; splits, never caps
    unit: Unit
    max_records_per_unit: Annotated[int, Field(ge=1)]
    declared_n: Annotated[int, Field(ge=1)]
    relation: Relation
    components: Components
    model_hash: Hash
    rng: Name
    artefact: Literal["update", "statistic", "evaluation"]


class Settle(Body):
    """What became of a charged round. It never takes a charge back."""

    run: Name
    step: Counter
    round: Counter
    attempt: Counter
    outcome: Literal["masked", "released", "discarded"]


class Off(Body):
    """One round of one phase with privacy=off: nothing protects what left."""

    run: Name
    step: Counter
    round: Counter
    phase: Name


class Close(Body):
    """A run charges nothing any more: what it planned and did not charge is free for other runs."""

    run: Name
    reason: Literal["finished", "operator"]


class Refusal(Body):
    """The site refused a round; the full reason stays in the site's own log."""

    code: Code
    run: Name | None
    round: Counter | None


class Note(Body):
    """A remark that changes no figure. The only one written by the ledger itself: torn_line_removed."""

    code: Code
    text: Annotated[str, Field(max_length=1000)]


class Rekey(Body):
    """The site goes on with another key, which signs every record after this one; the old key signs this one."""

    public_key: KeyHex
    possession: SignatureHex  # by the new key, over `rekey_statement`: nobody adopts a key that is not its own


BODIES: dict[str, type[Body]] = {
    "genesis": Genesis,
    "plan": Plan,
    "reserve": Reserve,
    "settle": Settle,
    "off": Off,
    "close": Close,
    "refusal": Refusal,
    "note": Note,
    "rekey": Rekey,
}
KIND_OF = {body: kind for kind, body in BODIES.items()}


@dataclass(frozen=True)
class Record:
    """One line of a ledger. `hash` covers every field before it, `prev` is the hash of the line above."""

    seq: int
    time: str  # UTC, TIME_FORMAT
    site: str
    kind: str
    body: Body
    prev: str
    hash: str
    signature: str

    def line(self) -> bytes:
        """The canonical JSON of all nine fields, without the line feed that ends it on disk."""
        content = _content(self.seq, self.time, self.site, self.body, self.prev)
        return canonical_json({**content, "hash": self.hash, "signature": self.signature})


def _content(seq: int, time: str, site: str, body: Body, prev: str) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "seq": seq,
        "time": time,
        "site": site,
        "kind": KIND_OF[type(body)],
        "body": body.model_dump(mode="json"),
        "prev": prev,
    }


def make_record(body: Body, *, seq: int, time: str, site: str, prev: str, key: SigningKey) -> Record:
    """A signed record. Its hash is SHA-256 over the canonical JSON of schema, seq, time, site, kind, body,
    prev.
    """
    digest = hashlib.sha256(canonical_json(_content(seq, time, site, body, prev)))
    signature = key.sign(domain_separated(DOMAIN, digest.digest())).hex()
    return Record(seq, time, site, KIND_OF[type(body)], body, prev, digest.hexdigest(), signature)


def make_rekey(*, site: str, old_key: str, prev: str, successor: SigningKey) -> Rekey:
    """The body with which `successor` takes over from `old_key` (hex) behind the record whose hash is `prev`."""
    new_key = successor.public_bytes.hex()
    proof = successor.sign(rekey_statement(site=site, old_key=old_key, new_key=new_key, prev=prev))
    return Rekey(public_key=new_key, possession=proof.hex())


def rekey_statement(*, site: str, old_key: str, new_key: str, prev: str) -> bytes:
    """What the new key signs: that it follows the old one, for this site, at this place of this ledger."""
    content = {"site": site, "old_key": old_key, "new_key": new_key, "prev": prev}
    return domain_separated(REKEY_DOMAIN, canonical_json(content))


def proves_possession(record: Record, old_key: str) -> bool:
    """Whether the new key of a rekey record that follows `old_key` (hex) has signed for it."""
    body = record.body
    assert isinstance(body, Rekey)  # noqa: S101 - the caller looks at the kind
    statement = rekey_statement(site=record.site, old_key=old_key, new_key=body.public_key, prev=record.prev)
    return verify_signature(bytes.fromhex(body.public_key), statement, bytes.fromhex(body.possession))


def parse_line(line: bytes) -> Record:
    """Read one line (without its line feed) strictly. Raises LedgerError saying what is wrong with it.

    Refused: what is not the canonical encoding of itself (spaces, key order, repeated keys, other number
    forms), missing or unknown fields, a body that its kind does not allow, a hash that does not fit the
    content.
    """
    try:
        value = json.loads(line.decode("utf-8"))
        canonical = canonical_json(value)
    except (ValueError, RecursionError, ConfigError) as error:
        raise LedgerError(f"is no canonical JSON ({error})") from error
    if not isinstance(value, dict) or set(value) != _FIELDS:
        raise LedgerError(f"does not have exactly the fields {', '.join(sorted(_FIELDS))}")
    if canonical != line:
        raise LedgerError("is not in canonical form (spaces, key order, repeated keys or number forms)")
    fields = cast(dict[str, Any], value)
    if fields["schema"] != SCHEMA:
        raise LedgerError(f"has schema {fields['schema']!r}; this version reads {SCHEMA}")
    content = {name: fields[name] for name in _FIELDS - {"hash", "signature"}}
    if hashlib.sha256(canonical_json(content)).hexdigest() != fields["hash"]:
        raise LedgerError("was changed: its hash does not fit its content")
    body = _parse_body(fields["kind"], fields["body"])
    if type(fields["seq"]) is not int or not all(
        isinstance(fields[name], str) for name in ("time", "site", "prev", "signature")
    ):
        raise LedgerError("has a seq that is no number, or a time, site, prev or signature that is no text")
    return Record(
        fields["seq"],
        fields["time"],
        fields["site"],
        fields["kind"],
        body,
        fields["prev"],
        fields["hash"],
        fields["signature"],
    )


def _parse_body(kind: object, body: object) -> Body:
    if not isinstance(kind, str) or kind not in BODIES:
        raise LedgerError(f"has the unknown kind {kind!r}")
    try:
        parsed = BODIES[kind].model_validate_json(canonical_json(body))
    except ValidationError as error:
        raise LedgerError(f"has a malformed {kind} body: {describe(error)}") from error
    if canonical_json(parsed.model_dump(mode="json")) != canonical_json(body):
        raise LedgerError(f"has a {kind} body that writes numbers in another form than the schema's")
    return parsed


def signed_by(record: Record, public: bytes) -> bool:
    """Whether the record's signature is by `public`. The hash is trusted: `parse_line` has checked it."""
    try:
        signature = bytes.fromhex(record.signature)
    except ValueError:
        return False
    if signature.hex() != record.signature:  # fromhex also takes spaces and capitals
        return False
    return verify_signature(public, domain_separated(DOMAIN, bytes.fromhex(record.hash)), signature)
