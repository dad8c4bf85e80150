"""What `secure-fed site budget` shows: what a home's data have been charged, what is left, and by which runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from secure_fed.accounting import epsilon
from secure_fed.client.books import close_run, open_ledger, own_records, require_no_less
from secure_fed.client.home import Home
from secure_fed.errors import ConfigError
from secure_fed.identity import canonical_json, fingerprint
from secure_fed.ledger import Genesis, Ledger, Record, standing
from secure_fed.ledger.budget import RunBooks


@dataclass(frozen=True)
class RunRow:
    """One run on the ledger. `planned` and `spent`: its own epsilon by PLD, all of its plan and what it charged.

    `state` is open (its whole plan counts), closed (what it charged counts) or off (nothing protects what left).
    """

    run: str
    method: str
    since: str
    rounds: int
    planned: float | None
    spent: float
    state: str
    plan_hash: str | None


@dataclass(frozen=True)
class BudgetView:
    """A home's budget. Figures are epsilons at `delta`, infinite where something left without privacy.

    limit: the owner's, over the whole life of the data. spent: of all charges. committed: with open plans in full.
    further: the largest epsilon that a further run can have by itself (as one Gaussian release); 0 where none can.
    proof: how `spent` is proven: PLD for one run, the Renyi filter for several. filled_by_the_first: whether the first
    run's plan passes by PLD alone, so that no further run is admitted.
    """

    site: str
    data_set: str
    unit: str
    max_records_per_unit: int
    declared_n: int
    delta: float
    limit: float
    spent: float
    committed: float
    further: float
    proof: str
    filled_by_the_first: bool
    lifetime_claim: bool
    runs: tuple[RunRow, ...]
    key: str
    policy: str
    ledger: str | None
    records: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinite epsilon is null."""
        tree: dict[str, Any] = _finite(asdict(self))
        return tree


def budget_of(home: Home) -> BudgetView:
    """Read a home's ledger and policy; nothing is written.

    Raises ConfigError for a damaged policy, PolicyRefusal where it promises less than the ledger, LedgerError where
    the ledger cannot be trusted.
    """
    policy = home.policy()
    records = own_records(home, policy)
    limit, books = policy.epsilon, None
    if records:
        books = standing(records)
        require_no_less(policy, books.genesis)
        limit = min(limit, books.genesis.epsilon_limit or limit)
    return BudgetView(
        site=policy.site,
        data_set=policy.data_set,
        unit=policy.unit,
        max_records_per_unit=policy.max_records_per_unit,
        declared_n=policy.declared_n,
        delta=policy.delta,
        limit=limit,
        spent=0.0 if books is None else books.spent(),
        committed=0.0 if books is None else books.committed(),
        further=limit if books is None else books.further(limit),
        proof="renyi filter" if books is not None and books.several else "pld",
        filled_by_the_first=books is not None and books.is_filled_by_the_first(limit),
        lifetime_claim=policy.lifetime_claim,
        runs=() if books is None else tuple(_row(run, books.genesis, records) for run in books.runs),
        key=fingerprint(home.signing_key().public_bytes),
        policy=fingerprint(canonical_json(policy.model_dump(mode="json"))),
        ledger=fingerprint(bytes.fromhex(records[-1].hash)) if records else None,
        records=len(records),
    )


def close_open_run(home: Home, run: str) -> str:
    """The operator ends a run that will not go on: what it planned and did not charge is free again.

    The home keeps nothing of it but ledger and journal: an update that was noised and not opened is deleted.
    `run` may be the beginning of its id; the whole id is returned. Raises ConfigError where it is not exactly one open
    run's.
    """
    with home.alone():
        policy = home.policy()
        if not Ledger.is_begun(home.ledger_path):
            raise ConfigError(f"{policy.site} has no ledger yet, and so no run to close")
        with open_ledger(home, policy) as ledger:
            known = [books.run for books in standing(ledger.records).runs if books.plan and not books.closed]
            meant = [name for name in known if name.startswith(run)]
            if len(meant) != 1:
                what = "is not open" if not meant else "is the beginning of several open runs"
                raise ConfigError(f"run {run!r} {what} at {policy.site}; open: {', '.join(known) or 'none'}")
            close_run(ledger, meant[0], "operator")
            home.forget_run(meant[0])
            return meant[0]


def _row(books: RunBooks, genesis: Genesis, records: Sequence[Record]) -> RunRow:
    first = next(record for record in records if getattr(record.body, "run", None) == books.run)
    plan = books.plan
    return RunRow(
        run=books.run,
        method=plan.method if plan is not None else "?",
        since=first.time,
        rounds=len(books.rounds),
        planned=None if plan is None else plan.epsilon,
        spent=math.inf if books.off else epsilon(books.charged, genesis.delta, relation=genesis.relation),
        state="off" if books.off else "closed" if books.closed else "open",
        plan_hash=None if plan is None else plan.plan_hash,
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
