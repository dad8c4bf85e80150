"""Dealing secrets to the members and checking who is to blame when one does not come back.

The dealer signs the hashes of all shares of one holder and of the note beside them, so a holder can prove a released
share without the rest, and a wrong secret over correctly signed shares is the dealer's doing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from secure_fed.secagg import keys, shamir
from secure_fed.secagg.encoding import digest, encode
from secure_fed.secagg.messages import Dealt, ReleasedShares
from secure_fed.secagg.notes import pad
from secure_fed.secagg.session import SessionContext

Sign = Callable[[bytes], bytes]


def share_hash(kid: bytes, dealer: str, holder: str, name: str, share: bytes) -> bytes:
    """What stands for a share in the dealer's signature; hides it, since a share has 256 random bits."""
    return digest("share", [kid, dealer, holder, name, share])


def note_hash(kid: bytes, dealer: str, holder: str, padded_note: bytes) -> bytes:
    """What stands for a note in the dealer's signature; hides it, since 32 bytes of the padding are random."""
    return digest("note", [kid, dealer, holder, padded_note])


def shares_statement(kid: bytes, dealer: str, holder: str, hashes: Mapping[str, bytes], note: bytes) -> bytes:
    """What the dealer signs for one holder: secret name -> hash of the share, and the hash of the padded note."""
    return encode("sign/shares", [kid, dealer, holder, hashes, note])


def deal(
    context: SessionContext,
    dealer: str,
    secrets: Mapping[str, bytes],
    holders: Iterable[str],
    notes: Mapping[str, bytes],
    sign: Sign,
) -> dict[str, Dealt]:
    """Share the secrets (name -> 32 bytes) among the holders and the dealer: holder -> signed shares and note."""
    points = {holder: context.point(holder) for holder in holders}
    split = {
        name: shamir.split(secret, context.params.share_threshold, points.values()) for name, secret in secrets.items()
    }
    dealt = {}
    for holder, point in points.items():
        shares = {name: split[name][point].to_bytes(shamir.SHARE_BYTES, "big") for name in secrets}
        draft = Dealt(shares, pad(notes.get(holder, b"")), b"")
        shown = release(context.kid, dealer, holder, draft, shares)
        dealt[holder] = replace(draft, signature=sign(_statement(context.kid, dealer, holder, shown)))
    return dealt


def release(kid: bytes, dealer: str, holder: str, dealt: Dealt, names: Iterable[str]) -> ReleasedShares:
    """The holder's shares of the named secrets; the other shares and the note only as hashes."""
    opened = {name: dealt.shares[name] for name in names}
    hidden = {
        name: share_hash(kid, dealer, holder, name, share) for name, share in dealt.shares.items() if name not in opened
    }
    return ReleasedShares(opened, hidden, note_hash(kid, dealer, holder, dealt.padded_note), dealt.signature)


def is_signed(context: SessionContext, dealer: str, holder: str, shown: ReleasedShares) -> bool:
    """Whether the dealer signed these shares and hashes for this holder in this session."""
    statement = _statement(context.kid, dealer, holder, shown)
    return keys.verify(context.public_keys[dealer], shown.signature, statement)


def _statement(kid: bytes, dealer: str, holder: str, shown: ReleasedShares) -> bytes:
    hashes = {name: share_hash(kid, dealer, holder, name, share) for name, share in shown.shares.items()}
    return shares_statement(kid, dealer, holder, {**hashes, **shown.hidden}, shown.note_hash)
