"""What counts against an owner's limit: charges of runs that are over, whole plans of runs that are open.

The site's gate, the auditor's verification and the reports all ask here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from secure_fed.accounting import Mechanism, MechanismShape, calibrate, epsilon, filter_epsilon, merge
from secure_fed.errors import AccountingError
from secure_fed.ledger.record import Body, Close, Genesis, Off, Plan, Record, Reserve

_PROBE = MechanismShape("gaussian", 1.0, 1)


@dataclass(frozen=True)
class RunBooks:
    """One run on a ledger: its plan (None where it fixed none), what it charged, and whether it may charge more."""

    run: str
    plan: Plan | None
    charged: tuple[Mechanism, ...]
    rounds: tuple[int, ...]
    closed: bool
    off: bool

    @property
    def in_full(self) -> tuple[Mechanism, ...]:
        """All that the run was ever allowed to charge; what it did charge where it fixed no plan."""
        return self.charged if self.plan is None else planned_mechanisms(self.plan)

    @property
    def committed(self) -> tuple[Mechanism, ...]:
        """What must be counted: all of the plan while the run is open, afterwards what it charged."""
        return self.charged if self.closed else self.in_full


@dataclass(frozen=True)
class Standing:
    """Where a ledger stands: its runs in the order of their first records."""

    genesis: Genesis
    runs: tuple[RunBooks, ...]

    def run(self, name: str) -> RunBooks | None:
        """The books of one run, None where it never wrote any."""
        return next((books for books in self.runs if books.run == name), None)

    @property
    def is_off(self) -> bool:
        """Whether anything ever left without privacy."""
        return any(books.off for books in self.runs)

    @property
    def several(self) -> bool:
        """Whether more than one run charged: then the later plans were chosen after results were seen."""
        return len([books for books in self.runs if books.charged]) > 1

    def commitments(self, without: str | None = None) -> tuple[Mechanism, ...]:
        """All that counts against the limit, merged; `without` leaves one run out."""
        return merge(m for books in self.runs if books.run != without for m in books.committed)

    def charged(self, run: str | None = None) -> tuple[Mechanism, ...]:
        """What was charged, merged, in all runs or in one."""
        return merge(m for books in self.runs if run in (None, books.run) for m in books.charged)

    def admission(self, plan: Sequence[Mechanism], run: str) -> float:
        """The epsilon that is compared with the owner's limit, if `plan` (of all rounds) counts in full under `run`.

        The first run's plan is fixed before anything was seen: PLD. A further one is chosen after results were
        seen: the Renyi filter over everything that counts (Feldman and Zrnic, arXiv 2008.11193), at the one order
        that the ledger's first record fixes; runs may be open side by side (Haney et al., arXiv 2309.05901).

        A further plan also needs the first one to pass the filter in full, not only with what it charged. Else
        the site would choose between two proofs after seeing results: PLD where the first run goes on, the filter
        where it stops and another begins. Each bounds its own outcomes by delta, so both together by 2 delta.
        Now a first plan that only PLD admits stays the only one, and where several are admitted the filter
        covers every outcome.

        Infinite where anything left without privacy. Raises AccountingError for a further plan on a ledger that
        sets no limit, and so no filter.
        """
        if self.is_off:
            return math.inf
        others = self.commitments(without=run)
        if not others:
            return epsilon(plan, self.genesis.delta, relation=self.genesis.relation)
        return max(self._filtered(self._first_in_full(run)), self._filtered((*others, *plan)))

    def is_filled_by_the_first(self, limit: float) -> bool:
        """Whether the first run's plan passes by PLD alone, so that no further run can ever be admitted."""
        return self.genesis.filter_order is not None and self._filtered(self._first_in_full("")) > limit

    def _first_in_full(self, run: str) -> tuple[Mechanism, ...]:
        """All of the first plan on the ledger, nothing where that is the plan of `run` itself."""
        first = next((books for books in self.runs if books.run == run or books.committed), None)
        return () if first is None or first.run == run else first.in_full

    def further(self, limit: float) -> float:
        """The largest epsilon that a further run can have by itself within `limit`; 0.0 where none can.

        Solved for the plainest run there is, one Gaussian release, so that one number says what is left: epsilons do
        not simply subtract.
        """
        if self.is_off:
            return 0.0
        taken, order = self.commitments(), self.genesis.filter_order
        if not taken:
            return limit
        if order is None:
            return 0.0
        delta, relation = self.genesis.delta, self.genesis.relation
        try:
            noise = calibrate([_PROBE], limit, delta, past=taken, relation=relation, order=order)
        except AccountingError:
            return 0.0
        plan = (_PROBE.at(noise),)
        return 0.0 if self.admission(plan, "") > limit else epsilon(plan, delta, relation=relation)

    def spent(self) -> float:
        """Epsilon of everything that was charged: PLD for one run, the filter's figure for several."""
        return self._figure(self.charged(), self.several)

    def committed(self) -> float:
        """Epsilon of everything that counts, open plans in full: what a new run finds taken."""
        return self._figure(self.commitments(), len([books for books in self.runs if books.committed]) > 1)

    def _figure(self, mechanisms: tuple[Mechanism, ...], several: bool) -> float:
        if self.is_off:
            return math.inf
        if not several:
            return epsilon(mechanisms, self.genesis.delta, relation=self.genesis.relation)
        # Without a limit there is no filter, and PLD is not proven for plans that were chosen on the way.
        return math.inf if self.genesis.filter_order is None else self._filtered(mechanisms)

    def _filtered(self, mechanisms: Iterable[Mechanism]) -> float:
        order = self.genesis.filter_order
        if order is None:
            raise AccountingError("The ledger's first record sets no limit and so no filter: nothing can be admitted.")
        return filter_epsilon(mechanisms, self.genesis.delta, order, relation=self.genesis.relation)


@dataclass
class _Run:
    """A run's books while its records are read."""

    plan: Plan | None = None
    charges: Counter[Mechanism] = field(default_factory=Counter)
    rounds: set[int] = field(default_factory=set)
    closed: bool = False
    off: bool = False

    def books(self, run: str) -> RunBooks:
        charged = merge(m.repeated(times) for m, times in self.charges.items())
        return RunBooks(run, self.plan, charged, tuple(sorted(self.rounds)), self.closed, self.off)


class Bookkeeper:
    """Reads a ledger's bodies in order, one by one, and can say after each where the ledger stands."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._runs: dict[str, _Run] = {}

    def add(self, body: Body) -> None:
        """Take the next record's body. Only plan, reserve, off and close change anything."""
        if isinstance(body, Close):
            if body.run in self._runs:
                self._runs[body.run].closed = True
            return
        if not isinstance(body, Plan | Reserve | Off):
            return
        books = self._runs.setdefault(body.run, _Run())
        if isinstance(body, Plan):
            books.plan = books.plan or body
        elif isinstance(body, Reserve):
            books.charges[body.mechanism] += 1
            books.rounds.add(body.round)
        else:
            books.off = True

    def standing(self) -> Standing:
        """Where the ledger stands after what was added so far."""
        return Standing(self._genesis, tuple(books.books(run) for run, books in self._runs.items()))


def standing(records: Sequence[Record]) -> Standing:
    """Read a checked chain (with its genesis record) into the books of its runs."""
    genesis = records[0].body
    assert isinstance(genesis, Genesis)  # noqa: S101 - a checked chain begins with it
    bookkeeper = Bookkeeper(genesis)
    for record in records:
        bookkeeper.add(record.body)
    return bookkeeper.standing()


def planned_mechanisms(plan: Plan) -> tuple[Mechanism, ...]:
    """All that a plan with privacy may release, spare rounds included, merged."""
    return merge(m.repeated(phase.rounds) for phase in plan.phases if (m := phase.mechanism) is not None)
