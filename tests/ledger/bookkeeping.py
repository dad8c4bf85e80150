"""A small federation's books: ledgers of two phases over a few rounds, a roster and a summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secure_fed.accounting import Mechanism, epsilon, filter_order, merge
from secure_fed.identity import Roster, SigningKey, canonical_json
from secure_fed.ledger import Close, Genesis, Ledger, Plan, PlannedPhase, Reserve, Settle
from secure_fed.ledger.budget import Bookkeeper, planned_mechanisms
from secure_fed.ledger.record import NO_PREVIOUS, make_record, make_rekey

N = 400
DELTA = 1e-5
FIRST = Mechanism("poisson_gaussian", 1.5, 0.0625, 16)
SECOND = Mechanism("poisson_gaussian", 2.0, 0.1, 8)
RNG = "os_urandom_aes256ctr"


def genesis(key, **changes):
    limit, delta = changes.get("epsilon_limit", 8.0), changes.get("delta", DELTA)
    values = {
        "public_key": key.public_bytes.hex(),
        "unit": "record",
        "relation": "add_or_remove_one",
        "delta": DELTA,
        "epsilon_limit": limit,
        "filter_order": filter_order(limit, delta) if limit is not None and 0 < limit < 1e6 else None,
        "declared_n": N,
        "max_records_per_unit": 1,
        "data_set": "films-2025",
        "lifetime_claim": True,
    }
    return Genesis(**{**values, **changes})


def plan(rounds=3, **changes):
    """The plan of a ledger's first run: what is held against the limit is its PLD epsilon."""
    phases = (
        PlannedPhase(
            name="encoders",
            mechanism=FIRST,
            max_grad_norm=1.0,
            rounds=rounds,
            components=("encoder.image", "fusion"),
        ),
        PlannedPhase(
            name="translators",
            mechanism=SECOND,
            max_grad_norm=0.5,
            rounds=rounds,
            components=("translator.image_to_text",),
        ),
    )
    values = {
        "run": "run-1",
        "plan_hash": "cd" * 32,
        "method": "fin",
        "phases": phases,
        "epsilon": 8.0,
        "filter_epsilon": None,
        "delta": DELTA,
        "accountant": "pld",
        "versions": {"torch": "2.13.0", "opacus": "1.6.0"},
        "rng": RNG,
    }
    made = Plan(**{**values, **changes})
    if "filter_epsilon" in changes or made.epsilon is None or not planned_mechanisms(made):
        return made
    cost = epsilon(planned_mechanisms(made), DELTA)
    return made.model_copy(update={"filter_epsilon": cost})


def further(items, **changes):
    """The plan of a further run behind `items`, the first of which is a genesis body."""
    books = Bookkeeper(items[0])
    for item in items:
        books.add(item)
    made = plan(**{"run": "run-2", "filter_epsilon": None, **changes})
    reached = books.standing().admission(planned_mechanisms(made), made.run)
    return made.model_copy(update={"filter_epsilon": reached})


def close(run="run-1", reason="finished"):
    return Close(run=run, reason=reason)


def reserve(round_, phase="encoders", **changes):
    first = phase == "encoders"
    mechanism = changes.pop("mechanism", FIRST if first else SECOND)
    values = {
        "run": "run-1",
        "step": round_,
        "round": round_,
        "attempt": 0,
        "phase": phase,
        "mechanism": mechanism,
        "max_grad_norm": 1.0 if first else 0.5,
        "sampler": "poisson",
        "expected_batch": mechanism.sample_rate * N,
        "physical_batch": 16,
        "unit": "record",
        "max_records_per_unit": 1,
        "declared_n": N,
        "relation": "add_or_remove_one",
        "components": ("encoder.image", "fusion") if first else ("translator.image_to_text",),
        "model_hash": "ab" * 32,
        "rng": RNG,
        "artefact": "update",
    }
    return Reserve(**{**values, **changes})


def settle(round_, **changes):
    values = {"run": "run-1", "step": round_, "round": round_, "attempt": 0, "outcome": "masked"}
    return Settle(**{**values, **changes})


def bodies(rounds=2):
    """Plan, then both phases and the settlement of each round."""
    result = [plan()]
    for round_ in range(rounds):
        result += [reserve(round_), reserve(round_, "translators"), settle(round_)]
    return result


def write(path: Path, site: str, key: SigningKey, items) -> Path:
    """A ledger with the given bodies behind a genesis record, as the site itself writes it.

    A key among the items takes over from there on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = items if isinstance(items[0], Genesis) else [genesis(key), *items]
    with Ledger.create(path, site, key, first) as ledger:
        for item in rest:
            if isinstance(item, SigningKey):
                ledger.rekey(item)
            else:
                ledger.append(item)
    return path


def forge(path: Path, site: str, key: SigningKey, items, times=None) -> Path:
    """A ledger whose chain and signatures hold, but which the site's own software would never write so.

    A key among the items takes over from there on; a pair (body, key) is signed by that key.
    """
    prev, lines = NO_PREVIOUS, []
    for seq, item in enumerate(items):
        time = times[seq] if times else f"2025-06-01T12:00:{seq:02d}.000000Z"
        body, signing = item if isinstance(item, tuple) else (item, key)
        if isinstance(body, SigningKey):
            key = body
            body = make_rekey(site=site, old_key=signing.public_bytes.hex(), prev=prev, successor=key)
        record = make_record(body, seq=seq, time=time, site=site, prev=prev, key=signing)
        prev = record.hash
        lines.append(record.line() + b"\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(lines))
    return path


def expected_epsilon(rounds=2):
    return epsilon(merge([FIRST, SECOND] * rounds), DELTA)


@dataclass
class Books:
    """A run folder with three sites."""

    folder: Path
    keys: dict[str, SigningKey]
    roster: Roster

    def ledger(self, site: str) -> Path:
        return self.folder / "sites" / site / "ledger.jsonl"

    def rewrite(self, site: str, items) -> None:
        self.ledger(site).unlink()
        write(self.ledger(site), site, self.keys[site], items)

    def summary(self, **changes) -> None:
        value = expected_epsilon()
        summary = {
            "epsilon": dict.fromkeys(self.keys, value),
            "epsilon_max": value,
            "delta": DELTA,
            "accountant": "pld",
            "insecure_reproducible": False,
        }
        (self.folder / "summary.json").write_bytes(canonical_json({**summary, **changes}))
