"""What the accountants can compose at all: absurd mechanisms, validly signed, must not take an auditor's machine.

dp-accounting answers them with arrays of hundreds of gigabytes. Nothing that trains a model comes near the bounds.
"""

from __future__ import annotations

from collections.abc import Sequence

from secure_fed.accounting import Mechanism, epsilon, merge
from secure_fed.ledger.budget import planned_mechanisms
from secure_fed.ledger.record import Genesis, Plan, Record, Reserve

LEAST_NOISE = 0.05
MOST_NOISE = 1e6
MOST_STEPS = 1_000_000
MOST_EPSILON = 1e5
# Below this sum of steps / (2 sigma^2) no composition comes near MOST_EPSILON.
_HARMLESS = 1e4


def unaccountable(records: Sequence[Record], genesis: Genesis) -> str | None:
    """The first record whose plan or charge is out of all bounds as 'record <seq> ...', or None.

    Records are held against the bounds one by one and all charges together at the last.
    """
    charged: list[Mechanism] = []
    for record in records:
        if isinstance(record.body, Plan):
            released = planned_mechanisms(record.body)
        elif isinstance(record.body, Reserve):
            released = (record.body.mechanism,)
            charged += released
        else:
            continue
        problem = absurd(released, genesis)
        if problem is not None:
            return f"record {record.seq} {problem}"
    problem = absurd(merge(charged), genesis)
    return None if problem is None else f"record {records[-1].seq} ends charges that together {problem}"


def absurd(mechanisms: Sequence[Mechanism], genesis: Genesis) -> str | None:
    """Why these mechanisms together are out of what is accounted, or None. The site's gate asks it too."""
    noisy = [m for m in mechanisms if m.noise_multiplier]
    for m in noisy:
        if not LEAST_NOISE <= m.noise_multiplier <= MOST_NOISE:
            return f"holds noise_multiplier={m.noise_multiplier:g}: only {LEAST_NOISE:g} to {MOST_NOISE:g} is accounted"
    steps = sum(m.steps for m in noisy)
    if steps > MOST_STEPS:
        return f"holds {steps} steps: up to {MOST_STEPS} are accounted"
    crude = sum(m.steps / (2 * m.noise_multiplier**2) for m in noisy)
    if crude <= _HARMLESS:
        return None
    bound = min(crude, epsilon(noisy, genesis.delta, accountant="rdp", relation=genesis.relation))
    return f"holds an epsilon near {bound:.3g}: nothing protects there" if bound > MOST_EPSILON else None
