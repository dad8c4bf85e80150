"""What a ledger's records must say to each other: charges within the plan, the plan within the limit.

Takes a chain whose hashes and signatures hold, and gives the first contradiction and everything that weakens
it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from secure_fed.accounting import Mechanism, epsilon, merge
from secure_fed.ledger.chain import spent
from secure_fed.ledger.record import Genesis, Note, Off, Plan, PlannedPhase, Record, Reserve, Settle

# Two computations of one epsilon agree to the last digits; this only forgives another platform's rounding.
RELATIVE = 1e-6


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
        self._plans: dict[str, Plan] = {}
        self._used: Counter[tuple[str, str]] = Counter()
        self._charged: set[tuple[str, int]] = set()

    def find(self, records: Sequence[Record]) -> str | None:
        """The first contradiction as 'record <seq> ...', or None."""
        for record in records:
            problem = self._look(record)
            if problem is not None:
                return f"record {record.seq} {problem}"
        return None

    def _look(self, record: Record) -> str | None:
        body = record.body
        if isinstance(body, Plan):
            return self._plan(body)
        if isinstance(body, Reserve):
            return self._reserve(body)
        if isinstance(body, Off):
            return self._off(body)
        if isinstance(body, Settle) and (body.run, body.round) not in self._charged:
            return f"settles round {body.round} of run {body.run}, which was never charged"
        return None

    def _plan(self, plan: Plan) -> str | None:
        known = self._plans.setdefault(plan.run, plan)
        if known.model_copy(update={"versions": plan.versions}) != plan:
            return f"changes the plan of run {plan.run} after it was fixed"
        if len({phase.name for phase in plan.phases}) != len(plan.phases):
            return f"plans two phases of one name in run {plan.run}"
        if plan.delta != self._genesis.delta:
            return f"plans with delta={plan.delta:g}, the ledger counts at delta={self._genesis.delta:g}"
        without = [phase.name for phase in plan.phases if phase.mechanism is None]
        if bool(without) != (plan.epsilon is None):
            return f"claims epsilon={plan.epsilon} with these phases without privacy: {without or 'none'}"
        if plan.epsilon is None:
            return None
        planned = epsilon(planned_mechanisms(plan), plan.delta, relation=self._genesis.relation)
        if exceeds(planned, plan.epsilon):
            return f"claims epsilon={plan.epsilon:.6g} for a plan that costs {planned:.6g}"
        return None

    def _reserve(self, charge: Reserve) -> str | None:
        phase = self._planned_phase(charge.run, charge.phase)
        if isinstance(phase, str):
            return phase
        problem = self._against_genesis(charge) or _against_plan(charge, phase)
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
        for field in ("unit", "declared_n", "relation"):
            found, declared = getattr(charge, field), getattr(self._genesis, field)
            if found != declared:
                return f"charges with {field}={found!r}, the ledger declares {declared!r}"
        sampled = charge.mechanism.kind == "poisson_gaussian"
        if sampled != (charge.sampler == "poisson"):
            return f"charges a {charge.mechanism.kind} mechanism with sampler={charge.sampler!r}"
        batch = charge.mechanism.sample_rate * charge.declared_n
        if not math.isclose(charge.expected_batch, batch, rel_tol=RELATIVE):
            return f"expects batches of {charge.expected_batch:g}, sample_rate * declared_n is {batch:g}"
        return None

    def _count(self, run: str, round_: int, phase: PlannedPhase) -> str | None:
        self._charged.add((run, round_))
        self._used[run, phase.name] += 1
        if self._used[run, phase.name] > phase.rounds:
            return f"is round {self._used[run, phase.name]} of phase {phase.name}; {phase.rounds} were planned"
        return None


def _against_plan(charge: Reserve, phase: PlannedPhase) -> str | None:
    if phase.mechanism is None:
        return f"charges phase {phase.name}, which was planned without privacy"
    for field in ("kind", "noise_multiplier", "sample_rate"):
        found, planned = getattr(charge.mechanism, field), getattr(phase.mechanism, field)
        if found != planned:
            return f"charges {field}={found!r} in phase {phase.name}, the plan has {planned!r}"
    if charge.mechanism.steps > phase.mechanism.steps:
        return f"charges {charge.mechanism.steps} steps, the plan has {phase.mechanism.steps} a round"
    if charge.max_grad_norm != phase.max_grad_norm:
        return f"charges max_grad_norm={charge.max_grad_norm!r}, the plan has {phase.max_grad_norm!r}"
    strange = sorted(set(charge.components) - set(phase.components))
    if strange:
        return f"trains {', '.join(strange)}, which phase {phase.name} does not hold"
    return None


def planned_mechanisms(plan: Plan) -> tuple[Mechanism, ...]:
    """All that a plan with privacy may release, spare rounds included, merged."""
    return merge(
        Mechanism(m.kind, m.noise_multiplier, m.sample_rate, m.steps * phase.rounds)
        for phase in plan.phases
        if (m := phase.mechanism) is not None
    )


def total_epsilon(records: Sequence[Record], genesis: Genesis, run: str | None = None) -> float:
    """PLD epsilon of every charge (or of one run's) at the ledger's delta; inf with a release without
    privacy.
    """
    if any(isinstance(r.body, Off) and run in (None, r.body.run) for r in records):
        return math.inf
    return epsilon(spent(records, run), genesis.delta, relation=genesis.relation)


def beyond_limit(records: Sequence[Record], genesis: Genesis) -> str | None:
    """The first record whose charge passes the owner's limit, or None."""
    limit = genesis.epsilon_limit
    if limit is None or not exceeds(total_epsilon(records, genesis), limit):
        return None
    first = bisect_left(
        range(len(records)),
        True,
        key=lambda i: exceeds(total_epsilon(records[: i + 1], genesis), limit),
    )
    value = total_epsilon(records[: first + 1], genesis)
    return f"record {records[first].seq} brings epsilon to {value:.6g}, the owner's limit is {limit:g}"


def weaknesses(records: Sequence[Record], genesis: Genesis, torn: bool) -> tuple[str, ...]:
    """What holds but weakens the guarantee or its evidence, in words for a table."""
    flags = []
    off = sum(isinstance(r.body, Off) for r in records)
    if off:
        flags.append(f"PRIVACY OFF in {off} releases")
    if any(isinstance(r.body, Plan) and r.body.rng == "insecure_reproducible" for r in records):
        flags.append("INSECURE RANDOMNESS (reproducible noise)")
    if not genesis.lifetime_claim:
        flags.append("no lifetime claim")
    charges = Counter((b.run, b.step, b.phase) for r in records if isinstance(b := r.body, Reserve))
    again = sum(charges.values()) - len(charges)
    if again:
        flags.append(f"{again} charged again after an interrupted round")
    repaired = sum(isinstance(r.body, Note) and r.body.code == "torn_line_removed" for r in records)
    if repaired:
        flags.append(f"{repaired} torn last line repaired" if repaired == 1 else f"{repaired} torn lines repaired")
    if torn:
        flags.append("torn last line, not yet repaired")
    return tuple(flags)
