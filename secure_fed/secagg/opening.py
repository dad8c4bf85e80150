"""The server's last step: secrets back from released shares, checked, and masks out of the sum.

Nothing is used that does not fit its public key or its commitment, and whoever spoiled it is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_fed.errors import SecAggError
from secure_fed.secagg import keys, masking, shamir, shares
from secure_fed.secagg.accumulator import Accumulator
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.messages import Advertise, ReleasedShares
from secure_fed.secagg.params import ComponentSpec
from secure_fed.secagg.session import MASK_KEY, SessionContext, seed_name


@dataclass(frozen=True)
class ComponentSum:
    """The opened sum of one component: int32 [size], centred, and who contributed, sorted."""

    values: NDArray[np.int32]
    contributors: tuple[str, ...]


class Opener:
    """Opens components of one session.

    Args:
        context: the attempt.
        u1_hash: H(U1), from which its graphs follow.
        sid: its session id from stage 3 on.
        advertised: member -> its advertisement.
        released: holder -> dealer -> the shares it released.

    Attributes:
        faults: member -> code, for forged shares and wrong secrets found on the way.
    """

    def __init__(
        self,
        context: SessionContext,
        u1_hash: bytes,
        sid: bytes,
        advertised: Mapping[str, Advertise],
        released: Mapping[str, Mapping[str, ReleasedShares]],
    ) -> None:
        self._context = context
        self._u1_hash = u1_hash
        self._sid = sid
        self._advertised = advertised
        self._released = released
        self._secrets: dict[tuple[str, str], bytes] = {}
        self.faults: dict[str, Code] = {}

    def open(self, spec: ComponentSpec, total: Accumulator, u2: frozenset[str], u3: frozenset[str]) -> ComponentSum:
        """Take every mask out of the sum of a component; `total` holds the slices of its owners in U3.

        Raises:
            SecAggError: below_threshold, wrong_secret, or contributor_mismatch if the count in the ring is
                not that of the owners among the survivors.
        """
        contributors = tuple(sorted(spec.owners & u3))
        masks = [
            masking.self_mask(self._secret(owner, seed_name(spec.name)), self._sid, owner, spec.name)
            for owner in contributors
        ]
        graph = self._context.mask_graph(self._u1_hash, spec)
        for dropped in sorted(spec.owners & (u2 - u3)):
            joined = sorted(graph.neighbours(dropped) & u3)
            masks += [
                masking.pair_mask(self._agreed(dropped, owner), self._sid, owner, dropped, spec.name)
                for owner in joined
            ]
        total.remove(masks)
        values, counted = total.finish()
        require(
            counted == len(contributors),
            Code.CONTRIBUTOR_MISMATCH,
            f"{spec.name}: the ring counts {counted}, the survivors {len(contributors)}",
        )
        return ComponentSum(values, contributors)

    def _agreed(self, dropped: str, owner: str) -> bytes:
        return keys.agree(self._secret(dropped, MASK_KEY), self._advertised[owner].mask_key)

    def _secret(self, dealer: str, name: str) -> bytes:
        if (dealer, name) not in self._secrets:
            self._secrets[dealer, name] = self._recover(dealer, name)
        return self._secrets[dealer, name]

    def _recover(self, dealer: str, name: str) -> bytes:
        holders = self._context.holders(self._u1_hash, dealer)
        held = {holder: self._released[holder][dealer] for holder in sorted(holders & self._released.keys())}
        secret = self._combine(dealer, name, held)
        if secret is not None:
            return secret
        # Signatures are checked only now: in an honest round nobody needs them.
        sound = {holder: item for holder, item in held.items() if shares.is_signed(self._context, dealer, holder, item)}
        for holder in held.keys() - sound.keys():
            self.faults[holder] = Code.SHARE_FORGED
        secret = self._combine(dealer, name, sound)
        if secret is None:
            self.faults[dealer] = Code.WRONG_SECRET
            raise SecAggError(Code.WRONG_SECRET, f"{dealer} dealt shares that do not give its {name}")
        return secret

    def _combine(self, dealer: str, name: str, held: Mapping[str, ReleasedShares]) -> bytes | None:
        """The secret that the shares give, or None if it is not the one the dealer advertised."""
        points = {
            self._context.point(holder): int.from_bytes(item.shares[name], "big") for holder, item in held.items()
        }
        try:
            secret = shamir.combine(points, self._context.params.share_threshold)
        except SecAggError as error:
            if error.code == Code.WRONG_SECRET:
                return None
            raise
        return secret if self._fits(dealer, name, secret) else None

    def _fits(self, dealer: str, name: str, secret: bytes) -> bool:
        advertisement = self._advertised[dealer]
        if name == MASK_KEY:
            return keys.public_of(secret) == advertisement.mask_key
        return any(
            seed_name(component) == name and keys.commit(self._context.kid, dealer, component, secret) == commitment
            for component, commitment in advertisement.commitments.items()
        )
