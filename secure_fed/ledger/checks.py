"""What a ledger's records must say to each other: charges within the plan, the plan within the limit.

Takes a chain whose hashes and signatures hold, and gives the first contradiction.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

from secure_fed.accounting import Mechanism, epsilon, filter_order
from secure_fed.ledger.budget import Bookkeeper, planned_mechanisms, standing
from secure_fed.ledger.record import (
    RNG_CLASSES,
    Close,
    Genesis,
    Off,
    Plan,
    PlannedPhase,
    Record,
    Reserve,
    Settle,
)

# Two computations of one epsilon agree to the last digits; this only forgives another platform's rounding.
RELATIVE = 1e-6
SAMPLERS = {"poisson_gaussian": "poisson", "truncated_poisson_gaussian": "truncated_poisson", "gaussian": "none"}


def agrees(left: float, right: float) -> bool:
    """Whether two figures for the same epsilon are the same, infinities included."""
    return math.isclose(left, right, rel_tol=RELATIVE, abs_tol=1e-9)


def exceeds(value: float, limit: float) -> bool:
    """Whether an epsilon is above a limit by more than rounding."""
    return value > limit and not agrees(value, limit)


class Contradictions:
    """Walks through one ledger's records in order; `find` names the first that contradicts the others."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self._books = Bookkeeper(genesis)
        self._plans: dict[str, Plan] = {}
        self._closed: dict[str, int] = {}
        self._used: Counter[tuple[str, str]] = Counter()
        self._charged: set[tuple[str, int]] = set()

    def find(self, records: Sequence[Record]) -> str | None:
        """The first contradiction as 'record <seq> ...', or None."""
        for record in records:
            problem = self._look(record)
            if problem is not None:
                return f"record {record.seq} {problem}"
            self._books.add(record.body)
        return None

    def _look(self, record: Record) -> str | None:
        body = record.body
        if isinstance(body, Genesis):
            return _order(body)
        if isinstance(body, Plan | Reserve | Off) and body.run in self._closed:
            return f"belongs to run {body.run}, which record {self._closed[body.run]} had closed"
        if isinstance(body, Plan):
            return self._plan(body)
        if isinstance(body, Reserve):
            return self._reserve(body)
        if isinstance(body, Off):
            return self._off(body)
        if isinstance(body, Close):
            return self._close(body, record.seq)
        if isinstance(body, Settle) and (body.run, body.round) not in self._charged:
            return f"settles round {body.round} of run {body.run}, which was never charged"
        return None

    def _close(self, close: Close, seq: int) -> str | None:
        if close.run in self._closed:
            return f"closes run {close.run}, which record {self._closed[close.run]} had closed"
        if close.run not in self._plans:
            return f"closes run {close.run}, which has no plan"
        self._closed[close.run] = seq
        return None

    def _plan(self, plan: Plan) -> str | None:
        known = self._plans.get(plan.run)
        if known is not None:
            same = known.model_copy(update={"versions": plan.versions}) == plan
            return None if same else f"changes the plan of run {plan.run} after it was fixed"
        self._plans[plan.run] = plan
        return self._plan_alone(plan) or self._admission(plan)

    def _plan_alone(self, plan: Plan) -> str | None:
        if len({phase.name for phase in plan.phases}) != len(plan.phases):
            return f"plans two phases of one name in run {plan.run}"
        if plan.delta != self._genesis.delta:
            return f"plans with delta={plan.delta:g}, the ledger counts at delta={self._genesis.delta:g}"
        if plan.rng not in RNG_CLASSES:
            return f"plans noise from rng={plan.rng!r}; known are {', '.join(RNG_CLASSES)}"
        without = [phase.name for phase in plan.phases if phase.mechanism is None]
        if bool(without) != (plan.epsilon is None):
            return f"claims epsilon={plan.epsilon} with these phases without privacy: {without or 'none'}"
        if plan.epsilon is None:
            return None
        planned = epsilon(planned_mechanisms(plan), plan.delta, relation=self._genesis.relation)
        if exceeds(planned, plan.epsilon):
            return f"claims epsilon={plan.epsilon:.6g} for a plan that costs {planned:.6g}"
        return None

    def _admission(self, plan: Plan) -> str | None:
        """Whether the owner's limit had room for the plan, by the rule that the site's gate goes by."""
        limit = self._genesis.epsilon_limit
        if limit is None or plan.epsilon is None:
            if plan.filter_epsilon is not None:
                return f"claims filter_epsilon={plan.filter_epsilon:.6g} where nothing limits what it may cost"
            return None
        reached = self._books.standing().admission(planned_mechanisms(plan), plan.run)
        if plan.filter_epsilon is None or not agrees(plan.filter_epsilon, reached):
            return f"claims filter_epsilon={plan.filter_epsilon}, with all that counts before it is {reached:.9g}"
        if exceeds(reached, limit):
            return f"plans run {plan.run}, which brings epsilon to {reached:.6g}: the owner's limit is {limit:g}"
        return None

    def _reserve(self, charge: Reserve) -> str | None:
        phase = self._planned_phase(charge.run, charge.phase)
        if isinstance(phase, str):
            return phase
        problem = self._against_genesis(charge) or _against_plan(charge, self._plans[charge.run], phase)
        return problem or self._count(charge.run, charge.round, phase)

    def _off(self, release: Off) -> str | None:
        if release.run not in self._plans:  # a run without privacy fixes nothing beforehand
            self._charged.add((release.run, release.round))
            return None
        phase = self._planned_phase(release.run, release.phase)
        if isinstance(phase, str):
            return phase
        if phase.mechanism is not None:
            return f"releases phase {release.phase} without privacy, but it was planned with privacy"
        return self._count(release.run, release.round, phase)

    def _planned_phase(self, run: str, name: str) -> PlannedPhase | str:
        plan = self._plans.get(run)
        if plan is None:
            return f"uses run {run}, which has no plan"
        for phase in plan.phases:
            if phase.name == name:
                return phase
        return f"uses phase {name}, which the plan of run {run} does not hold"

    def _against_genesis(self, charge: Reserve) -> str | None:
        for field in ("unit", "max_records_per_unit", "declared_n", "relation"):
            found, declared = getattr(charge, field), getattr(self._genesis, field)
            if found != declared:
                return f"charges with {field}={found!r}, the ledger declares {declared!r}"
        mechanism = charge.mechanism
        if charge.sampler != SAMPLERS[mechanism.kind]:
            return f"charges a {mechanism.kind} mechanism with sampler={charge.sampler!r}"
        if mechanism.population not in (None, charge.declared_n):
            return f"cuts batches out of {mechanism.population} units, the ledger declares {charge.declared_n}"
        batch = mechanism.sample_rate * charge.declared_n
        if not math.isclose(charge.expected_batch, batch, rel_tol=RELATIVE):
            return f"expects batches of {charge.expected_batch:g}, sample_rate * declared_n is {batch:g}"
        if charge.physical_batch < charge.max_records_per_unit:
            return (
                f"holds {charge.physical_batch} records at one time, and one unit may have "
                f"{charge.max_records_per_unit}: it would be clipped in parts"
            )
        return None

    def _count(self, run: str, round_: int, phase: PlannedPhase) -> str | None:
        self._charged.add((run, round_))
        self._used[run, phase.name] += 1
        if self._used[run, phase.name] > phase.rounds:
            return f"is round {self._used[run, phase.name]} of phase {phase.name}; {phase.rounds} were planned"
        return None


def _order(genesis: Genesis) -> str | None:
    """Whether the order of the filter is the one that limit and delta give: it is no free choice."""
    if genesis.epsilon_limit is None:
        return None
    order = filter_order(genesis.epsilon_limit, genesis.delta)
    if genesis.filter_order == order:
        return None
    return f"fixes filter_order={genesis.filter_order}, its limit and delta give {order:g}"


def _against_plan(charge: Reserve, plan: Plan, phase: PlannedPhase) -> str | None:
    if phase.mechanism is None:
        return f"charges phase {phase.name}, which was planned without privacy"
    for field in (item.name for item in fields(Mechanism) if item.name != "steps"):
        found, planned = getattr(charge.mechanism, field), getattr(phase.mechanism, field)
        if found != planned:
            return f"charges {field}={found!r} in phase {phase.name}, the plan has {planned!r}"
    if charge.mechanism.steps > phase.mechanism.steps:
        return f"charges {charge.mechanism.steps} steps, the plan has {phase.mechanism.steps} a round"
    for name, said, fixed in (
        ("max_grad_norm", charge.max_grad_norm, phase.max_grad_norm),
        ("rng", charge.rng, plan.rng),
    ):
        if said != fixed:
            return f"charges {name}={said!r}, the plan has {fixed!r}"
    strange = sorted(set(charge.components) - set(phase.components))
    if strange:
        return f"trains {', '.join(strange)}, which phase {phase.name} does not hold"
    return None


def beyond_limit(records: Sequence[Record], genesis: Genesis) -> str | None:
    """The first record whose charge passes the owner's limit, or None."""
    limit = genesis.epsilon_limit
    if limit is None or not exceeds(standing(records).spent(), limit):
        return None
    first = bisect_left(
        range(len(records)),
        True,
        key=lambda i: exceeds(standing(records[: i + 1]).spent(), limit),
    )
    value = standing(records[: first + 1]).spent()
    return f"record {records[first].seq} brings epsilon to {value:.6g}, the owner's limit is {limit:g}"
