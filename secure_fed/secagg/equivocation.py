"""Whether a message contradicts what a client has seen before: the marks of a server, or a member, with two faces.

A late duplicate contradicts nothing; bytes that are no message, or of another session, contradict nothing either.
"""

from __future__ import annotations

from collections.abc import Mapping

from secure_fed.errors import SecAggError
from secure_fed.secagg.messages import Advertise, Advertisements, Survivors
from secure_fed.secagg.session import SessionContext


def signed_twice(context: SessionContext, seen: Mapping[str, bytes], message: bytes) -> str | None:
    """The first member in an `Advertisements` message that signed another advertisement than the one seen.

    `seen` maps the members of U1 to the bytes of their advertisements; both count only for the same kid.
    """
    try:
        listed = Advertisements.from_bytes(message).advertisements
    except SecAggError:
        return None
    known = frozenset(seen.values())
    for raw in listed:
        if raw in known:
            continue
        try:
            item = Advertise.from_bytes(raw)
            context.check_advertisement(item)
        except SecAggError:
            continue
        if item.sender in seen:
            return item.sender
    return None


def is_other_list(sid: bytes, signed: tuple[str, ...], message: bytes) -> bool:
    """Whether a `Survivors` message names others than the list `signed` for the same session id."""
    try:
        listed = Survivors.from_bytes(message)
    except SecAggError:
        return False
    return listed.sid == sid and listed.survivors != signed
