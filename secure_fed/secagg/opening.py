"""The server's last step: secrets back from released shares, checked, and masks out of the sum.

Nothing is used that does not fit its public key or its commitment, and whoever spoiled it is named.
"""

from __future__ import annotations

from collections.abc import Mapping

from secure_fed.errors import SecAggError
from secure_fed.secagg import keys, masking, shamir, shares
from secure_fed.secagg.codes import Code, require
from secure_fed.secagg.messages import Advertise, ReleasedShares
from secure_fed.secagg.params import ComponentSpec
from secure_fed.secagg.prg import Ring
from secure_fed.secagg.session import MASK_KEY, SessionContext, seed_name


class Opener:
    """Opens components of one session.

    Args:
        context: the attempt.
        sid: its session id from stage 3 on.
        advertised: member -> its advertisement.
        released: holder -> dealer -> the shares it released.

    Attributes:
        faults: member -> code, for forged shares and wrong secrets found on the way.
    """

    def __init__(
        self,
        context: SessionContext,
        sid: bytes,
        advertised: Mapping[str, Advertise],
        released: Mapping[str, Mapping[str, ReleasedShares]],
    ) -> None:
        self._context = context
        self._sid = sid
        self._advertised = advertised
        self._released = released
        self.faults: dict[str, Code] = {}

    def open(self, spec: ComponentSpec, total: Ring, u2: frozenset[str], u3: frozenset[str]) -> None:
        """Take every mask out of the sum of a component, in place; `total` is uint32 [size + 1].

        Raises:
            SecAggError: below_threshold, wrong_secret, or contributor_mismatch if the count in the ring is
                not that of the owners among the survivors.
        """
        contributors = sorted(spec.owners & u3)
        for owner in contributors:
            seed = self._secret(owner, seed_name(spec.name))
            masking.remove_self_mask(total, seed, self._sid, owner, spec.name)
        for dropped in sorted(spec.owners & (u2 - u3)):
            private = self._secret(dropped, MASK_KEY)
            for owner in contributors:
                shared = keys.agree(private, self._advertised[owner].mask_key)
                masking.remove_pair_mask(total, shared, self._sid, owner, dropped, spec.name)
        counted = int(total[-1])
        require(
            counted == len(contributors),
            Code.CONTRIBUTOR_MISMATCH,
            f"{spec.name}: the ring counts {counted}, the survivors {len(contributors)}",
        )

    def _secret(self, dealer: str, name: str) -> bytes:
        held = {holder: by_dealer[dealer] for holder, by_dealer in self._released.items() if dealer in by_dealer}
        secret = self._combine(dealer, name, held)
        if secret is not None:
            return secret
        # Signatures are checked only now: in an honest round nobody needs them.
        sound = {holder: item for holder, item in held.items() if self._is_signed(dealer, holder, item)}
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
            secret = shamir.combine(points, self._context.params.threshold)
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

    def _is_signed(self, dealer: str, holder: str, item: ReleasedShares) -> bool:
        return shares.is_signed(self._context, dealer, holder, item.shares, item.hidden, item.signature)
