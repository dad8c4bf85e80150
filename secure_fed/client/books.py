"""A site's ledger, opened or begun with what its owner's policy says."""

from __future__ import annotations

from secure_fed.client.home import Home
from secure_fed.client.policy import Policy
from secure_fed.ledger import Genesis, Ledger


def open_ledger(home: Home, policy: Policy, *, limited: bool = True) -> Ledger:
    """The home's ledger; begun where there is none yet. `limited` is false for runs with privacy=off."""
    key = home.signing_key()
    genesis = Genesis(
        public_key=key.public_bytes.hex(),
        unit=policy.unit,
        relation=policy.relation,
        delta=policy.delta,
        epsilon_limit=policy.epsilon if limited else None,
        declared_n=policy.declared_n,
        lifetime_claim=policy.lifetime_claim,
    )
    return Ledger.open_or_create(home.ledger_path, policy.site, key, genesis)
