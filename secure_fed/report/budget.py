"""What the ledgers say was spent: recomputed by the accountant, never copied from the summary.

Sites that released the same sequence of mechanisms are computed once; long runs are drawn at fewer rounds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secure_fed.accounting import Mechanism, Relation, epsilon, epsilon_by_round
from secure_fed.errors import DataError, LedgerError
from secure_fed.identity import fingerprint
from secure_fed.ledger import Genesis, Note, Plan, Record, Rekey, Reserve, read_ledger, signing_keys
from secure_fed.report.run_folder import RunFolder

# A point of a curve costs about 20 ms, a total about 100 ms: together they keep a report below some seconds.
MOST_POINTS = 100
MOST_CURVES = 10
TOLERANCE = 2e-3
"""How far the summary's epsilon may lie from the recomputed one, relative above 1: both are upper bounds."""


@dataclass(frozen=True)
class SiteLedger:
    """One site's charges in this run: per round (rising) the mechanisms that were reserved."""

    site: str
    charges: tuple[tuple[int, tuple[Mechanism, ...]], ...]
    reserves: tuple[Reserve, ...]
    records: int
    other_runs: int
    lifetime_claim: bool
    rng: str | None
    events: tuple[str, ...]  # halts, their ends, replaced keys, repairs: in the ledger's words


@dataclass(frozen=True)
class Curve:
    """Epsilon after each of `rounds` (protocol rounds, 0-based) at every one of `sites`.

    `composed` of the values are the accountant's; those between are interpolated.
    """

    sites: tuple[str, ...]
    rounds: tuple[int, ...]
    epsilon: tuple[float, ...]
    composed: int

    @property
    def total(self) -> float:
        """Epsilon at the end of the run."""
        return self.epsilon[-1]


@dataclass(frozen=True)
class ChargedMechanism:
    """A row of what was released: one phase's mechanism, how many rounds it was charged, and where."""

    phase: str
    mechanism: Mechanism
    max_grad_norm: float
    artefact: str
    rounds: int
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Budget:
    """The curves (largest spending first), and what was checked or left out on the way."""

    curves: tuple[Curve, ...]
    uncharted: tuple[str, ...]
    mechanisms: tuple[ChargedMechanism, ...]
    discrepancies: Mapping[str, tuple[float, float]]
    ledgers: tuple[SiteLedger, ...]
    replace_one: float | None
    renyi: float | None

    @property
    def recomputed(self) -> dict[str, float]:
        """Site -> epsilon recomputed from its ledger."""
        return {site: curve.total for curve in self.curves for site in curve.sites}


def read_budget(run: RunFolder) -> Budget:
    """Read every ledger of a run and compose what it charged.

    Raises DataError where a ledger is missing, LedgerError on one that is damaged or not signed by the roster's key for
    its site.
    """
    _none_is_missing(run)
    ledgers = tuple(_read(run, site, path) for site, path in run.ledgers.items())
    delta = run.summary.delta
    if run.summary.privacy == "off" or delta is None:
        return Budget((), (), (), {}, ledgers, None, None)
    groups: dict[tuple[tuple[int, tuple[Mechanism, ...]], ...], list[str]] = {}
    for ledger in ledgers:
        groups.setdefault(ledger.charges, []).append(ledger.site)
    ordered = sorted(groups, key=_weight, reverse=True)
    points = max(4, MOST_POINTS // max(1, min(len(ordered), MOST_CURVES)))
    relation = run.summary.relation
    curves = [_curve(charges, groups[charges], delta, relation, points) for charges in ordered[:MOST_CURVES]]
    curves.sort(key=lambda curve: -curve.total)
    largest = next((key for key in ordered if curves and groups[key][0] == curves[0].sites[0]), ())
    return Budget(
        curves=tuple(curves),
        uncharted=tuple(site for charges in ordered[MOST_CURVES:] for site in groups[charges]),
        mechanisms=_mechanisms(ledgers),
        discrepancies=_discrepancies(curves, run.summary.epsilon),
        ledgers=ledgers,
        replace_one=epsilon(_all(largest), delta, relation="replace_one") if largest else None,
        renyi=epsilon(_all(largest), delta, accountant="rdp", relation=relation) if largest else None,
    )


def _none_is_missing(run: RunFolder) -> None:
    for site in run.summary.members:
        if site not in run.ledgers and run.summary.privacy == "dp":
            raise DataError(
                f"{run.path / 'sites' / site / 'ledger.jsonl'} is missing: the budget of {site} cannot be shown "
                "without its ledger. Restore the file from the site's home."
            )


def _read(run: RunFolder, site: str, path: Path) -> SiteLedger:
    records = read_ledger(path)
    first = records[0].body
    if not isinstance(first, Genesis) or signing_keys(records)[-1] != run.roster.known[site].public_key:
        raise LedgerError(
            f"The ledger {path} is signed by another key than the roster gives {site}: it is not that "
            f"site's. See: secure-fed verify {run.path}"
        )
    reserves = [body for record in records if isinstance(body := record.body, Reserve)]
    own = tuple(body for body in reserves if body.run == run.summary.run)
    charges: dict[int, list[Mechanism]] = {}
    for body in own:
        charges.setdefault(body.round, []).append(body.mechanism)
    plans = [body for record in records if isinstance(body := record.body, Plan) and body.run == run.summary.run]
    return SiteLedger(
        site=site,
        charges=tuple((number, tuple(charges[number])) for number in sorted(charges)),
        reserves=own,
        records=len(records),
        other_runs=len({body.run for body in reserves} - {run.summary.run}),
        lifetime_claim=first.lifetime_claim,
        rng=plans[-1].rng if plans else None,
        events=tuple(text for record in records if (text := _event(record))),
    )


def _event(record: Record) -> str | None:
    """What a reader should know of a record that charges nothing."""
    body = record.body
    when = f"record {record.seq}, {record.time[:10]}"
    if isinstance(body, Note):
        return f"{when}, {body.code}: {body.text}"
    if isinstance(body, Rekey):
        return f"{when}: the key was replaced by {fingerprint(bytes.fromhex(body.public_key))}"
    return None


def _curve(
    charges: Sequence[tuple[int, tuple[Mechanism, ...]]],
    sites: Sequence[str],
    delta: float,
    relation: Relation,
    points: int,
) -> Curve:
    """The curve, composed at `points` of the rounds: the last is always among them."""
    if not charges:
        return Curve(tuple(sites), (0,), (0.0,), 1)
    wanted = sorted({math.ceil((i + 1) * len(charges) / points) - 1 for i in range(points)} & {*range(len(charges))})
    chunks: list[list[Mechanism]] = []
    begin = 0
    for index in wanted:
        chunks.append([m for _, released in charges[begin : index + 1] for m in released])
        begin = index + 1
    spent = epsilon_by_round(chunks, delta, relation=relation)
    between = np.interp(np.arange(-1, len(charges)), [-1, *wanted], [0.0, *spent])[1:]
    rounds = tuple(number for number, _ in charges)
    return Curve(tuple(sites), rounds, (*map(float, between[:-1]), spent[-1]), len(wanted))


def _mechanisms(ledgers: Iterable[SiteLedger]) -> tuple[ChargedMechanism, ...]:
    """Rows of equal phase, mechanism, clip and number of rounds, in the order of their first charge."""
    rows: dict[tuple[str, Mechanism, float, str, int], list[str]] = {}
    for ledger in ledgers:
        counted = Counter((r.phase, r.mechanism, r.max_grad_norm, r.artefact) for r in ledger.reserves)
        for key, rounds in counted.items():
            rows.setdefault((*key, rounds), []).append(ledger.site)
    return tuple(
        ChargedMechanism(phase, mechanism, clip, artefact, rounds, tuple(sites))
        for (phase, mechanism, clip, artefact, rounds), sites in rows.items()
    )


def _discrepancies(curves: Iterable[Curve], stated: Mapping[str, float | None]) -> dict[str, tuple[float, float]]:
    """Site -> (stated, recomputed) where the summary and the ledger disagree."""
    found: dict[str, tuple[float, float]] = {}
    for curve in curves:
        for site in curve.sites:
            value = stated.get(site)
            value = 0.0 if value is None and curve.total == 0 else value
            if value is None or not math.isclose(value, curve.total, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
                found[site] = (math.nan if value is None else value, curve.total)
    return found


def _weight(charges: Iterable[tuple[int, tuple[Mechanism, ...]]]) -> float:
    """Grows with epsilon, cheaply: the central limit of composition is governed by the sum of q^2 / sigma^2.

    It only decides which curves are drawn where there are too many (Dong, Roth and Su 2022, section 4).
    """
    ratios = (
        m.steps * (m.sample_rate / m.noise_multiplier) ** 2 if m.noise_multiplier else math.inf for m in _all(charges)
    )
    return sum(ratios)


def _all(charges: Iterable[tuple[int, tuple[Mechanism, ...]]]) -> list[Mechanism]:
    return [m for _, released in charges for m in released]
