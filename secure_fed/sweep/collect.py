"""A cell's run folder to its row: scores from the run's summary, traffic from its rounds, epsilon from its ledgers.

Nothing about privacy is copied: ledgers that do not verify, or a run that is not the cell's, make the cell broken.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secure_fed.accounting import Mechanism, epsilon, merge
from secure_fed.config import load_config
from secure_fed.errors import DataError, LedgerError
from secure_fed.federation.facts import Federation
from secure_fed.federation.members import sites_of
from secure_fed.ledger import Genesis, Record, Reserve, read_ledger, spent, verify
from secure_fed.methods.base import GradientPhase, HistogramPhase, Phase
from secure_fed.report.run_folder import RunFolder, Step, Summary, read_run
from secure_fed.sweep.metrics import metrics_of
from secure_fed.sweep.record import CellResult, CellRow, Charges, PhaseCost


@dataclass(frozen=True)
class _Book:
    """What one site's ledger, checked, holds of the cell's run. `reserves`: phase -> its mechanisms, merged."""

    site: str
    genesis: Genesis
    charged: tuple[Mechanism, ...]
    reserves: Mapping[str, tuple[Mechanism, ...]]

    @property
    def epsilon(self) -> float:
        return self.cost(self.charged)

    def cost(self, mechanisms: Sequence[Mechanism]) -> float:
        """PLD epsilon at the site's delta, under its relation."""
        return epsilon(mechanisms, self.genesis.delta, relation=self.genesis.relation)


def collect(folder: Path, row: CellRow, *, wall_s: float, cpu_s: float, peak_mib: float) -> CellResult:
    """What came out of the finished run in `folder`; wall_s and cpu_s in seconds, peak_mib in MiB, as measured.

    Raises DataError naming a file that is missing, damaged or of another configuration than `row`, LedgerError where
    the ledgers do not verify against the run's roster or where nothing bounds epsilon.
    """
    run = read_run(folder)
    summary = run.summary
    _check_configuration(run, row)
    verdict = verify([folder])
    if not verdict.ok:
        raise LedgerError(f"{folder}: its ledgers do not verify, so nobody knows its epsilon: {verdict.first_problem}.")
    books = [_book(site, read_ledger(path), summary.run) for site, path in sorted(run.ledgers.items())]
    charges = _charges(books)
    if summary.model_sha256 is None:
        raise DataError(
            f"{folder / 'summary.json'} names no model_sha256: it is of an older version. Run the cell anew."
        )
    return CellResult(
        **row.model_dump(include=set(CellRow.model_fields)),
        metrics=metrics_of(summary),
        epsilon_spent=_spent(folder, summary, charges),
        charges=charges,
        phases=_phases(folder, run, books),
        rounds=summary.rounds,
        rounds_burned=summary.rounds_burned,
        wall_s=wall_s,
        cpu_s=cpu_s,
        peak_mib=peak_mib,
        bytes_up=sum(step.bytes_up for step in run.steps),
        bytes_down=sum(step.bytes_down for step in run.steps),
        insecure_reproducible=summary.insecure_reproducible,
        model_sha256=summary.model_sha256,
        data=summary.data,
        run=summary.run,
    )


def _check_configuration(run: RunFolder, row: CellRow) -> None:
    """Raise DataError where the run is not the one that the row describes."""
    summary = run.summary
    for name, found, wanted in (
        ("method", summary.method, row.method),
        ("seed", summary.seed, row.seed),
        ("privacy", summary.privacy, row.privacy),
        ("secagg", summary.secagg.mode, row.secagg),
        ("epsilon_target", summary.epsilon_target, row.epsilon_target),
        ("delta", summary.delta, row.delta),
    ):
        if found != wanted:
            raise DataError(
                f"{run.path} is another configuration's run: its {name} is {found!r}, cell {row.id} has {wanted!r}. "
                "Resume the sweep: the cell runs again."
            )


def _book(site: str, records: Sequence[Record], run: str) -> _Book:
    """Raises LedgerError where the ledger holds other runs' charges: then this run's epsilon is not the site's."""
    reserves = [record.body for record in records if isinstance(record.body, Reserve)]
    others = sorted({reserve.run for reserve in reserves} - {run})
    if others:
        raise LedgerError(f"{site}'s ledger was charged for other runs than the cell's: {', '.join(others)}.")
    phases: defaultdict[str, list[Mechanism]] = defaultdict(list)
    for reserve in reserves:
        phases[reserve.phase].append(reserve.mechanism)
    genesis = records[0].body
    assert isinstance(genesis, Genesis)  # noqa: S101 - no other ledger is read
    return _Book(site, genesis, spent(records, run), {phase: merge(found) for phase, found in phases.items()})


def _charges(books: Sequence[_Book]) -> tuple[Charges, ...]:
    """Sites that were charged alike together, the most spent first; sites that were charged nothing are left out."""
    groups: defaultdict[tuple[Mechanism, ...], list[_Book]] = defaultdict(list)
    for book in books:
        if book.charged:
            groups[book.charged].append(book)
    found = [
        Charges(
            sites=tuple(book.site for book in alike),
            epsilon=max(book.epsilon for book in alike),
            mechanisms=charged,
        )
        for charged, alike in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: (-group.epsilon, group.sites)))


def _spent(folder: Path, summary: Summary, charges: Sequence[Charges]) -> float | None:
    """The largest epsilon of a site; None where the run gives no guarantee, whatever its ledgers add up to."""
    if summary.privacy == "off" or summary.insecure_reproducible:
        return None
    largest = max((group.epsilon for group in charges), default=0.0)
    if not math.isfinite(largest):
        raise LedgerError(f"{folder}: a site was charged for a release without noise, and nothing bounds its epsilon.")
    return largest


def _phases(folder: Path, run: RunFolder, books: Sequence[_Book]) -> tuple[PhaseCost, ...]:
    """Every phase that ran, in the order of the schedule."""
    federation = Federation(load_config(folder), sites_of(run.roster))
    book = _most_involved(books)
    weights = {phase: sum(map(_weight, mechanisms)) for phase, mechanisms in book.reserves.items()} if book else {}
    whole = sum(weights.values())
    found = []
    for phase in federation.phases:
        steps = [step for step in run.steps if phase.name in step.phases]
        charged = book.reserves.get(phase.name) if book else None
        if not steps and not charged:
            continue
        found.append(
            PhaseCost(
                phase=phase.name,
                artefact=_artefact(phase),
                rounds=len(steps),
                epsilon=book.cost(charged) if book and charged else None,
                share=weights[phase.name] / whole if charged and whole > 0 and math.isfinite(whole) else None,
                seconds=round(math.fsum(_part(step, step.wall_s) for step in steps), 4),
                bytes_up=round(math.fsum(_part(step, step.bytes_up) for step in steps)),
            )
        )
    return tuple(found)


def _most_involved(books: Sequence[_Book]) -> _Book | None:
    """Of the sites in the most phases the one that spent most: only there do the phases' shares tell all of them."""
    charged = [book for book in books if book.charged]
    return max(charged, key=lambda book: (len(book.reserves), book.epsilon), default=None)


def _weight(mechanism: Mechanism) -> float:
    """steps (q / sigma)^2: what small steps of a subsampled Gaussian add up to (Dong, Roth, Su 2022, Corollary 5.4)."""
    if mechanism.noise_multiplier == 0:
        return math.inf
    return mechanism.steps * (mechanism.sample_rate / mechanism.noise_multiplier) ** 2


def _artefact(phase: Phase) -> str:
    if isinstance(phase, GradientPhase):
        return "update"
    return "evaluation" if isinstance(phase, HistogramPhase) else "statistic"


def _part(step: Step, amount: float) -> float:
    """What one phase had of a round: phases that ran together cannot be told apart, so each gets the same."""
    return amount / len(step.phases)
