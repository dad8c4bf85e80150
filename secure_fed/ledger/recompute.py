"""Every figure of one ledger, from its charges alone, by accountants that must not contradict each other.

PLD is what is reported; RDP bounds it from above, another make of accountant from both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from secure_fed.accounting import Accountant, Mechanism, epsilon, filter_epsilon
from secure_fed.errors import AccountingError
from secure_fed.ledger.accountable import unaccountable
from secure_fed.ledger.budget import Standing, standing
from secure_fed.ledger.chain import Chain
from secure_fed.ledger.checks import Contradictions, beyond_limit, exceeds
from secure_fed.ledger.record import Off, Reserve
from secure_fed.ledger.verdict import Row
from secure_fed.ledger.weaknesses import weaknesses

CrossCheck = Callable[[Sequence[Mechanism], float], float | None]

# Accountants discretise differently: so far apart two sound ones may be.
_APART = 0.01
_APART_ABSOLUTE = 0.005


def recompute(row: Row, chain: Chain, cross_check: CrossCheck | None) -> Row:
    """`row` with the figures of a whole chain, and its first problem where it contradicts itself or a limit.

    No figures where a mechanism cannot be accounted: whoever signed it, nobody can say what it costs.
    """
    absurd = unaccountable(chain.records, chain.genesis)
    if absurd is not None:
        return replace(row, problem=absurd)
    try:
        return _recompute(row, chain, cross_check)
    except AccountingError as error:
        return replace(row, problem=f"record {row.records - 1} ends charges that cannot be accounted: {error}")


def _recompute(row: Row, chain: Chain, cross_check: CrossCheck | None) -> Row:
    records, genesis = chain.records, chain.genesis
    problem = Contradictions(genesis).find(records) or beyond_limit(records, genesis)
    books = standing(records)
    pld, rdp = _composed(books), _composed(books, accountant="rdp")
    prv, remark = _cross_checked(books, pld, cross_check)
    apart = disagreement(pld, rdp, prv)
    if problem is None and apart is not None:
        problem = f"record {records[-1].seq} ends at {apart}"
    replaced, unreplaced = _replace_one(books)
    return replace(
        row,
        rounds=len({(b.run, b.round) for r in records if isinstance(b := r.body, Reserve | Off)}),
        epsilon=books.spent() if books.several else pld,
        pld_epsilon=pld if books.several else None,
        rdp_epsilon=rdp,
        prv_epsilon=prv,
        prv_remark=remark,
        replace_one_epsilon=replaced,
        delta=genesis.delta,
        unit=genesis.unit,
        relation=genesis.relation,
        epsilon_by_run={run.run: _composed(books, run.run) for run in books.runs},
        flags=(*weaknesses(records, books, bool(chain.torn)), *unreplaced, *row.flags),
        problem=problem,
    )


def _composed(books: Standing, run: str | None = None, accountant: Accountant = "pld") -> float:
    """Epsilon of what was charged, in all runs or in one, had all of it been planned beforehand."""
    if any(other.off for other in books.runs if run in (None, other.run)):
        return math.inf
    genesis = books.genesis
    return epsilon(books.charged(run), genesis.delta, accountant=accountant, relation=genesis.relation)


def disagreement(pld: float, rdp: float, prv: float | None) -> str | None:
    """Where accountants contradict each other: one of them is wrong, and no figure of theirs is to be believed."""
    if exceeds(pld, rdp * 1.001 + 1e-3):
        return f"a PLD epsilon of {pld:.6g}, above the RDP bound {rdp:.6g}"
    if prv is not None and abs(pld - prv) > _APART * max(pld, prv) + _APART_ABSOLUTE:
        return f"a PLD epsilon of {pld:.6g}, and PRV gives {prv:.6g}: more than 1 % + 0.005 apart"
    return None


def _cross_checked(books: Standing, pld: float, cross_check: CrossCheck | None) -> tuple[float | None, str | None]:
    """The other accountant's figure, or why there is none; neither where none was asked."""
    if cross_check is None:
        return None, None
    if not math.isfinite(pld):
        return None, "nothing bounds epsilon"
    if books.genesis.relation != "add_or_remove_one":
        return None, "it knows only adding or removing one unit"
    found = cross_check(books.charged(), books.genesis.delta)
    if found is None or not math.isfinite(found):
        return None, "outside the range where it is sound"
    return found, None


def _replace_one(books: Standing) -> tuple[float | None, tuple[str, ...]]:
    """Epsilon with one unit replaced instead of added or removed, and a flag where that cannot be bounded."""
    genesis, charged = books.genesis, books.charged()
    if books.is_off:
        return math.inf, ()
    try:
        if not books.several:
            found = epsilon(charged, genesis.delta, relation="replace_one")
        elif genesis.filter_order is not None:
            found = filter_epsilon(charged, genesis.delta, genesis.filter_order, relation="replace_one")
        else:
            found = math.inf
    except AccountingError as error:
        return None, (f"no replace-one epsilon: {error}",)
    return found, () if math.isfinite(found) else ("no replace-one epsilon: it cannot be bounded",)
