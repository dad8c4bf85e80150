"""The figures of each ledger, recomputed by the accountant from what was charged; no summary is asked.

A ledger that the verification does not trust has no figures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from secure_fed.accounting import Mechanism, epsilon, epsilon_curve, patient_epsilon
from secure_fed.identity import fingerprint
from secure_fed.ledger import (
    Genesis,
    Note,
    Off,
    Plan,
    Record,
    Refusal,
    Rekey,
    Reserve,
    Row,
    Settle,
    Standing,
    signing_keys,
    standing,
)
from secure_fed.report import formats
from secure_fed.report.epsilon_sources import Book, Sources
from secure_fed.report.run_folder import RunFolder

RECORDS_OF_A_PATIENT = (1, 2, 5, 10)
CURVE_DELTAS = tuple(10.0 ** (-half / 2) for half in range(24, 3, -1))
"""From 1e-12 to 1e-2 in half decades."""
MOST_DETAILED = 3
INSECURE = "insecure_reproducible"

Basis = Literal["pld", "filter", "none"]


@dataclass(frozen=True)
class RunFigures:
    """One run at one site: what was planned, what it cost, whether it may still charge."""

    run: str
    method: str | None
    plan_hash: str | None
    planned_epsilon: float | None
    rounds: int
    epsilon: float
    closed: bool
    off: bool


@dataclass(frozen=True)
class Charge:
    """Equal charges of one run and phase: one round's mechanism, its clip norm and how often it was charged."""

    run: str
    phase: str
    artefact: str
    mechanism: Mechanism
    sampler: str
    max_grad_norm: float
    components: tuple[str, ...]
    rounds: int


@dataclass(frozen=True)
class Figures:
    """What a trusted ledger's charges cost at its delta; infinite where something left without privacy.

    `epsilon` is what is reported; `basis` says by what: PLD for one run, the filter for several, `none` where no
    bound is proven. `pld` is the figure had all plans been fixed beforehand. `committed` counts open plans in full.
    `further`: what a further run can have by itself within the limit that the ledger promised; None without one.
    `replace_one` is None where it cannot be bounded; `patient` and `curve` are empty there, and where a report does
    not need them.
    """

    epsilon: float
    basis: Basis
    pld: float
    rdp: float
    committed: float
    further: float | None
    replace_one: float | None
    patient: tuple[tuple[int, float], ...]
    curve: tuple[float, ...]


@dataclass(frozen=True)
class SiteFacts:
    """One ledger. `genesis` and `figures` are None where it is not to be trusted; `problem` then says why."""

    site: str
    records: int
    problem: str | None
    flags: tuple[str, ...]
    genesis: Genesis | None
    figures: Figures | None
    runs: tuple[RunFigures, ...]
    charges: tuple[Charge, ...]
    head: str | None
    first_time: str | None
    last_time: str | None
    key: str | None
    tail: str
    rngs: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]
    releases_without_privacy: int
    refusals: tuple[tuple[str, int], ...]
    notes: tuple[tuple[str, int], ...]
    settled: tuple[tuple[str, int], ...]
    charged_again: int

    @property
    def insecure(self) -> bool:
        """Whether any noise or sample on this ledger came from a seed."""
        return INSECURE in self.rngs

    @property
    def epsilon(self) -> float | None:
        """The reported lifetime epsilon: infinite where nothing protects, None where the ledger does not say."""
        if self.insecure or self.releases_without_privacy:
            return math.inf
        return None if self.figures is None else self.figures.epsilon


def site_facts(book: Book, detailed: bool) -> SiteFacts:
    """Recompute one ledger; `detailed` adds curve and patient figures, which cost about two seconds.

    Equal charges elsewhere cost nothing: the accountant remembers.
    """
    records, row = book.chain.records, book.row
    bodies = [record.body for record in records]
    trusted = bool(records) and row.epsilon is not None
    books = standing(records) if records else None
    return SiteFacts(
        site=row.site,
        records=len(records),
        problem=row.problem,
        flags=row.flags,
        genesis=book.chain.genesis if records else None,
        figures=_figures(books, row, detailed) if books is not None and trusted else None,
        runs=_runs(books) if books is not None and trusted else (),
        charges=_charges(body for body in bodies if isinstance(body, Reserve)),
        head=records[-1].hash if records else None,
        first_time=records[0].time if records else None,
        last_time=records[-1].time if records else None,
        key=fingerprint(bytes.fromhex(signing_keys(records)[-1])) if records else None,
        tail=row.tail,
        rngs=tuple(dict.fromkeys(body.rng for body in bodies if isinstance(body, Plan | Reserve))),
        versions=_versions(records),
        releases_without_privacy=sum(isinstance(body, Off) for body in bodies),
        refusals=_counted(body.code for body in bodies if isinstance(body, Refusal)),
        notes=_counted("new_key" if isinstance(b, Rekey) else b.code for b in bodies if isinstance(b, Note | Rekey)),
        settled=_counted(body.outcome for body in bodies if isinstance(body, Settle)),
        charged_again=_charged_again(body for body in bodies if isinstance(body, Reserve)),
    )


def _figures(books: Standing, row: Row, detailed: bool) -> Figures:
    """The verification's own recomputation, and what a report adds to it."""
    assert row.epsilon is not None and row.rdp_epsilon is not None  # noqa: S101, PT018 - a trusted row has both
    genesis, charged = books.genesis, books.charged()
    detailed = detailed and math.isfinite(row.epsilon)
    return Figures(
        epsilon=row.epsilon,
        basis="none" if math.isinf(row.epsilon) else "filter" if books.several else "pld",
        pld=row.epsilon if row.pld_epsilon is None else row.pld_epsilon,
        rdp=row.rdp_epsilon,
        committed=books.committed(),
        further=None if genesis.epsilon_limit is None else books.further(genesis.epsilon_limit),
        replace_one=row.replace_one_epsilon,
        patient=_patient(charged, genesis) if detailed else (),
        curve=epsilon_curve(charged, CURVE_DELTAS, relation=genesis.relation) if detailed else (),
    )


def _patient(charged: Sequence[Mechanism], genesis: Genesis) -> tuple[tuple[int, float], ...]:
    """(records of a patient, epsilon) where the ledger's unit is one record under add-or-remove-one."""
    if genesis.unit != "record" or genesis.relation != "add_or_remove_one":
        return ()
    return tuple((k, patient_epsilon(charged, genesis.delta, k)) for k in RECORDS_OF_A_PATIENT)


def _runs(books: Standing) -> tuple[RunFigures, ...]:
    genesis = books.genesis
    return tuple(
        RunFigures(
            run=run.run,
            method=run.plan.method if run.plan else None,
            plan_hash=run.plan.plan_hash if run.plan else None,
            planned_epsilon=run.plan.epsilon if run.plan else None,
            rounds=len(run.rounds),
            epsilon=math.inf if run.off else epsilon(run.charged, genesis.delta, relation=genesis.relation),
            closed=run.closed,
            off=run.off,
        )
        for run in books.runs
    )


def _charges(reserves: Iterable[Reserve]) -> tuple[Charge, ...]:
    counted: Counter[Charge] = Counter()
    for r in reserves:
        counted[Charge(r.run, r.phase, r.artefact, r.mechanism, r.sampler, r.max_grad_norm, r.components, 0)] += 1
    return tuple(replace(charge, rounds=count) for charge, count in counted.items())


def _charged_again(reserves: Iterable[Reserve]) -> int:
    steps = Counter((body.run, body.step, body.phase) for body in reserves)
    return sum(steps.values()) - len(steps)


def _counted(words: Iterable[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(Counter(words).items()))


def _versions(records: Iterable[Record]) -> tuple[tuple[str, str], ...]:
    """Package and version, every pair that a plan of this ledger names."""
    pairs = [pair for r in records if isinstance(r.body, Plan) for pair in r.body.versions.items()]
    return tuple(dict.fromkeys(pairs))


@dataclass(frozen=True)
class Facts:
    """All ledgers of a report together, and what they stand in."""

    sources: Sources
    sites: tuple[SiteFacts, ...]

    @property
    def run(self) -> RunFolder | None:
        """The run folder that is reported on, None where only ledgers were given."""
        return self.sources.run

    @property
    def void(self) -> tuple[str, ...]:
        """Why nothing is guaranteed; empty where something is."""
        summary = self.run.summary if self.run is not None else None
        off = [site.site for site in self.sites if site.releases_without_privacy]
        insecure = [site.site for site in self.sites if site.insecure]
        found = []
        if off or (summary is not None and summary.privacy == "off"):
            where = f" at {formats.ranges(off)}" if off else ""
            found.append(f"Privacy was off{where}: updates left without clipping and without noise.")
        if insecure or (summary is not None and summary.insecure_reproducible):
            where = f" at {formats.ranges(insecure)}" if insecure else ""
            found.append(f"The noise came from a seed{where}: whoever knows the seed can take it away.")
        return tuple(found)

    @property
    def missing(self) -> tuple[str, ...]:
        """Members of the run whose ledgers are not there."""
        members = self.run.summary.members if self.run is not None else {}
        return tuple(sorted(set(members) - {site.site for site in self.sites}))

    @property
    def guarantees(self) -> tuple[tuple[str, str], ...]:
        """(unit, neighbouring relation) of the ledgers; more than one pair cannot be compared."""
        return tuple(dict.fromkeys((s.genesis.unit, s.genesis.relation) for s in self.sites if s.genesis is not None))

    @property
    def epsilon(self) -> float | None:
        """The largest over the sites; infinite where void, None where the ledgers do not establish it."""
        if self.void:
            return math.inf
        found = [site.epsilon for site in self.sites]
        known = [value for value in found if value is not None]
        if not known or len(known) < len(found) or self.missing or len(self.guarantees) > 1:
            return None
        return max(known)

    @property
    def delta(self) -> float | None:
        """The largest delta of any ledger."""
        return max((site.genesis.delta for site in self.sites if site.genesis is not None), default=None)

    @property
    def largest(self) -> SiteFacts | None:
        """The site that spent most, of those whose figures are established and bounded."""
        known = [site for site in self.sites if site.figures is not None and math.isfinite(site.figures.epsilon)]
        return max(known, key=lambda site: site.figures.epsilon if site.figures else 0.0, default=None)

    @property
    def established(self) -> tuple[SiteFacts, ...]:
        """The sites whose ledgers have figures."""
        return tuple(site for site in self.sites if site.figures is not None)

    @property
    def not_established(self) -> str:
        """Why there is no largest epsilon, in words."""
        untrusted = [site.site for site in self.sites if site.figures is None]
        if untrusted or self.missing:
            return (
                f"the ledgers of {formats.ranges(sorted({*untrusted, *self.missing}))} are missing or not to be trusted"
            )
        return "the ledgers count in different units or relations"


def gather(sources: Sources) -> Facts:
    """Recompute every ledger of `sources`; in detail those that spent most, MOST_DETAILED different ones at most."""
    figures = {book.row.epsilon for book in sources.books if book.row.epsilon is not None}
    detailed = sorted((value for value in figures if math.isfinite(value)), reverse=True)[:MOST_DETAILED]
    return Facts(sources, tuple(site_facts(book, book.row.epsilon in detailed) for book in sources.books))
