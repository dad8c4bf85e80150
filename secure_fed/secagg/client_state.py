"""What a client must remember between two messages, with one byte form; it holds secrets until they are used.

The caller stores it wrapped under a local key, before it sends the message that the step gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from secure_fed.errors import SecAggError
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.encoding import Value, decode, encode
from secure_fed.secagg.session import Stage

_DOMAIN = "client-state"
_LAYOUT = 1


@dataclass
class ClientState:
    """The fields fill up stage by stage; `erase` empties those that are not needed any more.

    Attributes:
        kid, me: whose state in which session.
        stage: the message that comes next.
        cipher_private, mask_private, seeds: this client's secrets (seeds by component).
        own: the bytes of its own advertisement.
        peers: member of U1 -> the bytes of its advertisement.
        u1_hash: H(U1).
        held: dealer -> the bytes of the `Dealt` that this client holds of it, its own included.
        u2, sid, u3: as soon as they are known.
    """

    kid: bytes
    me: str
    stage: Stage = Stage.ADVERTISE
    cipher_private: bytes = b""
    mask_private: bytes = b""
    seeds: Mapping[str, bytes] = field(default_factory=dict)
    own: bytes = b""
    peers: Mapping[str, bytes] = field(default_factory=dict)
    u1_hash: bytes = b""
    held: Mapping[str, bytes] = field(default_factory=dict)
    u2: tuple[str, ...] = ()
    sid: bytes = b""
    u3: tuple[str, ...] = ()

    def erase_masking_secrets(self) -> None:
        """After the vector is masked only the shares are needed."""
        self.cipher_private = b""
        self.mask_private = b""
        self.seeds = {}

    def erase_all(self) -> None:
        """After the release, or after a failure, nothing is needed."""
        self.erase_masking_secrets()
        self.held = {}

    def to_bytes(self) -> bytes:
        """Canonical bytes; they contain secrets."""
        values = [getattr(self, item.name) for item in fields(self)]
        return encode(_DOMAIN, [_LAYOUT, *values])

    @classmethod
    def from_bytes(cls, data: bytes) -> ClientState:
        """The state in `data`, as `to_bytes` of this version wrote it.

        Raises:
            SecAggError: `malformed_message`, or `unsupported_version` for another layout.
        """
        content = decode(_DOMAIN, data)
        names = [item.name for item in fields(cls)]
        if not isinstance(content, list) or len(content) != 1 + len(names):
            raise SecAggError(Code.MALFORMED_MESSAGE, "not a client state")
        require(content[0] == _LAYOUT, Code.UNSUPPORTED_VERSION, "client state of another layout")
        values = dict(zip(names, content[1:], strict=True))
        return cls(**{name: _restore(name, value) for name, value in values.items()})  # type: ignore[arg-type]


def _restore(name: str, value: Value) -> Value:
    if name == "stage" and isinstance(value, str):
        return Stage(value)
    return tuple(value) if isinstance(value, list) else value
