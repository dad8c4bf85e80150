"""A site's ledger under its owner's policy: opened or begun, and asked what it still admits.

The ledger's first record fixes the guarantee; a policy that is edited later may tighten it, never loosen it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from secure_fed.accounting import filter_order
from secure_fed.client.home import Home
from secure_fed.client.policy import Policy, admit
from secure_fed.client.witness import records_of, require_whole, watched
from secure_fed.errors import BudgetExhausted, LedgerError, PolicyRefusal
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import Past, SitePlan, plan_for, plan_on_record
from secure_fed.identity import fingerprint
from secure_fed.ledger import Close, Genesis, Ledger, Record, Refusal, Reserve, Standing, signing_keys, standing
from secure_fed.ledger.accountable import absurd
from secure_fed.ledger.budget import RunBooks
from secure_fed.ledger.record import TIME_FORMAT

_DAY = timedelta(hours=24)
MOST_REFUSALS = 100
"""A ledger's, in 24 hours: runs that are refused are few, and their names are the server's to invent."""


@contextmanager
def open_ledger(home: Home, policy: Policy, *, limited: bool = True) -> Iterator[Ledger]:
    """The home's ledger, open in a block; begun where there is none yet. `limited` is false for runs with privacy=off.

    What the home was given to keep is settled first: a ledger that went on without it would tell of rounds that the
    journal never began.

    Raises PolicyRefusal where the policy promises less than the ledger's first record, LedgerBehind where the home
    remembers a longer ledger or another one, LedgerError as `Ledger`.
    """
    home.settle()
    if not Ledger.is_begun(home.ledger_path):
        require_whole(home, policy.site, ())
    key = home.signing_key()
    genesis = Genesis(
        public_key=key.public_bytes.hex(),
        unit=policy.unit,
        relation=policy.relation,
        delta=policy.delta,
        epsilon_limit=policy.epsilon if limited else None,
        filter_order=filter_order(policy.epsilon, policy.delta) if limited else None,
        declared_n=policy.declared_n,
        max_records_per_unit=policy.max_records_per_unit,
        data_set=policy.data_set,
        lifetime_claim=policy.lifetime_claim,
    )
    with Ledger.open_or_create(home.ledger_path, policy.site, key, genesis) as ledger:
        require_no_less(policy, ledger.genesis)
        with watched(home, policy.site, key, ledger):
            yield ledger


def require_no_less(policy: Policy, genesis: Genesis) -> None:
    """Raise PolicyRefusal where the policy promises less than the first record of the site's ledger does."""
    objections = [*_loosened(policy, genesis)]
    if objections:
        raise PolicyRefusal(f"{policy.site}: {'; '.join(objections)}")


def _loosened(policy: Policy, genesis: Genesis) -> Iterator[str]:
    for key in ("unit", "relation", "delta", "declared_n", "max_records_per_unit", "data_set"):
        own, first = getattr(policy, key), getattr(genesis, key)
        if own != first:
            yield (
                f"policy.yaml has {key}={own}, and the ledger counts with {key}={first} since its first record: put "
                "that back, or begin a new home with lifetime_claim: false and take off by hand what was spent here"
            )
    if genesis.epsilon_limit is not None and policy.epsilon > genesis.epsilon_limit:
        yield (
            f"policy.yaml has epsilon={policy.epsilon:g}, above the {genesis.epsilon_limit:g} that the ledger promised "
            "for the whole life of the data: the limit may be lowered, and never be raised"
        )


def past_of(books: Standing, policy: Policy, run: str | None) -> Past:
    """What runs but `run` hold of this home's budget, and what its owner allows over all of them.

    Raises BudgetExhausted where something left without privacy, or the ledger set no limit: nothing can be added.
    """
    genesis = books.genesis
    if books.is_off or genesis.epsilon_limit is None or genesis.filter_order is None:
        raise BudgetExhausted(
            f"{policy.site}: this home has served runs with privacy=off, so that no limit holds for it any more; a run "
            "with privacy needs a home of its own"
        )
    limit = min(policy.epsilon, genesis.epsilon_limit)
    return Past(books.commitments(without=run), limit, genesis.delta, genesis.filter_order, genesis.relation)


def unspent(policy: Policy) -> Past:
    """What a home finds that has given nothing away yet: its owner's limit alone."""
    order = filter_order(policy.epsilon, policy.delta)
    return Past((), policy.epsilon, policy.delta, order, policy.relation)


def require_admitted(books: Standing, policy: Policy, run: str, plan: SitePlan) -> float:
    """The epsilon that is held against the owner's limit, with this plan in full; raises BudgetExhausted beyond it."""
    limit = past_of(books, policy, run).limit
    beyond = absurd((*books.commitments(without=run), *plan.mechanisms), books.genesis)
    if beyond is not None:
        raise BudgetExhausted(
            f"{policy.site}: with this run the ledger {beyond}, so no auditor could verify it any more"
        )
    reached = books.admission(plan.mechanisms, run)
    if reached > limit and books.runs and books.runs[0].run != run and books.is_filled_by_the_first(limit):
        raise BudgetExhausted(f"{policy.site}: {filled_by_the_first(limit)}")
    if reached > limit:
        asked = f"run {run}" if run else "this run"
        raise BudgetExhausted(
            f"{policy.site}: with {asked} in full epsilon would be {reached:.4g}, and the owner allows {limit:g} "
            "over the whole life of the data; `secure-fed site budget` shows what was spent and what open runs hold"
        )
    return reached


def filled_by_the_first(limit: float) -> str:
    """Why a home whose first run was planned up to the limit serves no other, even where that run ended early."""
    return (
        f"the first run's plan fills the owner's epsilon {limit:g} by PLD, which holds for one run alone; no further "
        "run is admitted on this home. Where several are to come, plan the first with a smaller privacy.epsilon"
    )


def own_records(home: Home, policy: Policy) -> tuple[Record, ...]:
    """The home's ledger, read without a lock; none where it has not begun.

    Raises LedgerError where it cannot be trusted, or is another site's or goes by another key than the home's.
    """
    records = records_of(home)
    if not records:
        return ()
    if records[0].site != policy.site:
        raise LedgerError(f"The ledger {home.ledger_path} belongs to {records[0].site!r}, not to {policy.site!r}.")
    key, own = signing_keys(records)[-1], home.signing_key().public_bytes
    if key != own.hex():
        raise LedgerError(
            f"The ledger {home.ledger_path} goes by the key {fingerprint(bytes.fromhex(key))}, and this home has "
            f"{fingerprint(own)}: put its own ledger, or its own key, back."
        )
    return records


def plan_at(home: Home, federation: Federation, site: Site, run: str | None = None) -> SitePlan | None:
    """What a home's gate would make of a run, asked from outside and without writing; None where privacy is off.

    The plan of `run` if the ledger holds it, else the one that would be fixed now. Raises PolicyRefusal and
    BudgetExhausted where the gate would, ConfigError as `plan_for`.
    """
    if federation.config.privacy.mode == "off":
        return None
    policy = home.policy()
    records = own_records(home, policy)
    books = standing(records) if records else None
    known = None if books is None or run is None else books.run(run)
    if known is not None and known.plan is not None:
        return plan_on_record(federation, site, known.plan)
    admit(policy, federation)
    if books is None:
        return plan_for(federation, site, unspent(policy))
    require_no_less(policy, books.genesis)
    plan = plan_for(federation, site, past_of(books, policy, run))
    assert plan is not None  # noqa: S101 - privacy is on
    require_admitted(books, policy, run or "", plan)
    return plan


def require_open(books: RunBooks | None, site: str, run: str) -> None:
    """Raise BudgetExhausted where this run was closed: it gave back what it had not charged."""
    if books is not None and books.closed:
        raise BudgetExhausted(f"{site}: run {run} was closed on this home and charges nothing more; begin a new run")


def require_rate(ledger: Ledger, policy: Policy, run: str, number: int) -> None:
    """Raise PolicyRefusal where one more round would pass `max_rounds_a_day`, over all runs of the last 24 hours."""
    since = _a_day_ago()
    recent = [record.body for record in ledger.records if record.time > since]
    rounds = {(body.run, body.round) for body in recent if isinstance(body, Reserve)}
    if len(rounds | {(run, number)}) > policy.max_rounds_a_day:
        raise PolicyRefusal(
            f"{policy.site}: {len(rounds)} rounds were charged within 24 hours, and the policy allows "
            f"max_rounds_a_day={policy.max_rounds_a_day}; go on tomorrow, or its owner edits policy.yaml"
        )


def _a_day_ago() -> str:
    return (datetime.now(UTC) - _DAY).strftime(TIME_FORMAT)


def close_run(ledger: Ledger, run: str, reason: str) -> Record | None:
    """Note that a run charges nothing any more; None where it never planned anything or is closed already."""
    books = standing(ledger.records).run(run)
    if books is None or books.plan is None or books.closed:
        return None
    return ledger.append(Close(run=run, reason=reason))  # type: ignore[arg-type]  # the field checks it


def note_refusal(ledger: Ledger, code: str, run: str, number: int) -> None:
    """Put a refusal on the ledger: the first of its kind in a run, and no more than MOST_REFUSALS in 24 hours.

    A server could fill a disk with them, and name a run anew each time.
    """
    since = _a_day_ago()
    noted = [(body.code, body.run, r.time) for r in ledger.records if isinstance(body := r.body, Refusal)]
    known = {(known_code, known_run) for known_code, known_run, _ in noted}
    if (code, run) not in known and sum(time > since for _, _, time in noted) < MOST_REFUSALS:
        ledger.append(Refusal(code=code, run=run, round=number))
