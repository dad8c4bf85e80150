"""The two kinds of masks, as client and server both derive them: one a member's own, one between two owners.

y_u = q_u + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv) mod 2^32, a component at a
time (Bonawitz et al. 2017, section 4).
"""

from __future__ import annotations

from secure_fed.secagg import keys
from secure_fed.secagg.prg import KeyStream, Ring


def apply_self_mask(target: Ring, seed: bytes, sid: bytes, owner: str, component: str) -> None:
    """target += the owner's self-mask of the component, in place; `target` is uint32 [size + 1]."""
    _self_stream(seed, sid, owner, component).add_to(target)


def remove_self_mask(target: Ring, seed: bytes, sid: bytes, owner: str, component: str) -> None:
    """Take away from a sum what `apply_self_mask` added."""
    _self_stream(seed, sid, owner, component).subtract_from(target)


def apply_pair_mask(target: Ring, shared: bytes, sid: bytes, owner: str, peer: str, component: str) -> None:
    """Mask `owner`'s slice against `peer`: the lower id adds, the higher subtracts, so that the two cancel.

    `shared` is the X25519 secret of the two masking keys; `target` is uint32 [size + 1], changed in place.
    """
    stream = _pair_stream(shared, sid, owner, peer, component)
    if owner < peer:
        stream.add_to(target)
    else:
        stream.subtract_from(target)


def remove_pair_mask(target: Ring, shared: bytes, sid: bytes, owner: str, peer: str, component: str) -> None:
    """Take away from a sum what `owner` applied against a `peer` whose own slice is not in it."""
    apply_pair_mask(target, shared, sid, owner=peer, peer=owner, component=component)


def _self_stream(seed: bytes, sid: bytes, owner: str, component: str) -> KeyStream:
    return KeyStream(keys.derive(seed, "self-mask", sid, [component, owner]))


def _pair_stream(shared: bytes, sid: bytes, first: str, second: str, component: str) -> KeyStream:
    return KeyStream(keys.derive(shared, "pair-mask", sid, [component, *sorted((first, second))]))
