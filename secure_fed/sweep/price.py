"""The price of tuning: what a sweep as a whole spent, and what that means for the model that is chosen by it.

Choosing the best of many runs on private data is itself a release of all of them, unless only the best of a random
number of them leaves. No torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from secure_fed.accounting import Mechanism, composed_epsilon, covers, repeat_select_epsilon
from secure_fed.errors import DataError
from secure_fed.identity import describe
from secure_fed.report import formats
from secure_fed.report.tuning import Basis
from secure_fed.sweep.record import (
    CANDIDATES,
    GRID,
    CandidatePlan,
    Candidates,
    CellResult,
    Charges,
    Spent,
    Unbounded,
)
from secure_fed.sweep.spent import unfinished
from secure_fed.sweep.table import Results

_Alternatives = tuple[tuple[Mechanism, ...], ...]

_UNIT = "privacy.unit"
_UNITS = "Guarantees per record and per patient have no common ε."

_WHY: dict[Unbounded, str] = {
    "privacy_off": "ran without privacy",
    "insecure_reproducible": "drew reproducible noise",
    "no_noise": "released something without noise",
    "damaged_ledger": "left a ledger that cannot be read",
}


@dataclass(frozen=True)
class Price:
    """What a sweep spent at `delta`, the smallest of its private cells; None where it has none.

    runs: all that are counted, finished or not, and `runs_private` those with privacy. single: the largest epsilon of
    a finished private run by itself. composed: of all runs, and `composed_private` of those with privacy, references
    among them; infinite where nothing bounds it, None where none is established. repeat_select: by RDP, and where
    `repeat_select_holds` is false what it would have been for `repeat_select_mean` runs on average. carried: what
    the chosen model's report carries, by `carried_basis`; None where that is the model's own (`own`), or not
    established (`none`). statement: all of this in sentences.
    """

    mode: Literal["public", "composed", "repeat_select"]
    delta: float | None
    runs: int
    runs_private: int
    single: float | None
    composed: float | None
    composed_private: float | None
    composed_basis: Literal["pld", "rdp"] | None
    composed_note: str
    repeat_select: float | None
    repeat_select_holds: bool
    repeat_select_mean: float
    repeat_select_shape: float
    repeat_select_note: str
    carried: float | None
    carried_basis: Basis
    statement: tuple[str, ...]


@dataclass(frozen=True)
class _Run:
    """One run that counts: what its sites were charged, or why nothing bounds that."""

    alternatives: _Alternatives
    unbounded: Unbounded | None


@dataclass(frozen=True)
class _Figure:
    """An epsilon, or infinity, or None where none is established; and a sentence on what it stands on."""

    epsilon: float | None
    note: str
    basis: Literal["pld", "rdp"] | None = None
    holds: bool = False


def price_of(results: Results) -> Price:
    """What a sweep spent so far, recomputed from what its cells' ledgers were charged.

    Raises DataError where a file of the sweep is damaged, AccountingError where charges cannot be accounted.
    """
    manifest = results.manifest
    runs = [*map(_finished_run, results.finished), *map(_spent_run, _unfinished(results))]
    private = [run for run in runs if run.unbounded != "privacy_off"]
    delta = min((row.delta for row in manifest.cells if row.delta is not None), default=None)
    if manifest.search_trials is not None:
        delta = min((cell.delta for cell in results.finished if cell.delta is not None), default=delta)
    among = _composed(private, delta, results)
    whole = among if len(private) == len(runs) else _Figure(math.inf, _unbounded_note(runs))
    selected = _selection(results, delta)
    carried, basis = _carried(results, whole, selected)
    price = Price(
        mode=manifest.tuning,
        delta=delta,
        runs=len(runs),
        runs_private=len(private),
        single=max((c.epsilon_spent for c in results.finished if c.epsilon_spent is not None), default=None),
        composed=whole.epsilon,
        composed_private=among.epsilon,
        composed_basis=among.basis,
        composed_note=whole.note,
        repeat_select=selected.epsilon,
        repeat_select_holds=selected.holds,
        repeat_select_mean=_mean(results),
        repeat_select_shape=manifest.repeat_select.shape,
        repeat_select_note=selected.note,
        carried=carried,
        carried_basis=basis,
        statement=(),
    )
    return replace(price, statement=_sentences(price, results))


def is_complete(results: Results) -> bool:
    """Whether every cell of the sweep has finished."""
    return not results.missing and not results.broken


# -- what was spent ------------------------------------------------------------------------------------------------


def _unfinished(results: Results) -> tuple[Spent, ...]:
    """What other runs spent than those that finished: a cell that ran anew has both."""
    finished = {cell.run for cell in results.finished}
    found = unfinished(results.folder, [*results.broken, *results.missing])
    return tuple(spent for spent in found if spent.run not in finished)


def _finished_run(cell: CellResult) -> _Run:
    if cell.privacy == "off":
        return _Run((), "privacy_off")
    if cell.insecure_reproducible:
        return _Run((), "insecure_reproducible")
    # A private run charges every site; one without charges was not collected from ledgers.
    return _Run(_alternatives(cell.charges), None if cell.charges else "damaged_ledger")


def _spent_run(spent: Spent) -> _Run:
    return _Run(_alternatives(spent.charges), spent.unbounded)


def _alternatives(charges: Sequence[Charges]) -> _Alternatives:
    return tuple(group.mechanisms for group in charges)


def _composed(runs: Sequence[_Run], delta: float | None, results: Results) -> _Figure:
    """The composition of all runs with privacy."""
    if not runs or delta is None:
        return _Figure(None, "No run with privacy has been charged yet.")
    if any(run.unbounded for run in runs):
        return _Figure(math.inf, _unbounded_note(runs))
    if _units_differ(results):
        return _Figure(None, _UNITS)
    if _chose_its_noise(results):
        return _Figure(
            None,
            "The search chose what later trials release by the scores of earlier ones. Composition of plans that were "
            "fixed beforehand does not cover that: no figure is established.",
        )
    found = composed_epsilon([run.alternatives for run in runs], delta)
    by = {
        "pld": "PLD: in each run the site that spent most counts.",
        "rdp": "RDP with the largest divergence over each run's sites: no one site spent most whatever is composed.",
    }[found.basis]
    left = len(results.missing)
    open_ = (
        f" {formats.plural(left, 'cell')} did not run to an end yet: had the sweep been stopped because of what it "
        "showed, those would count too."
        if left
        else ""
    )
    return _Figure(found.epsilon, f"{by}{open_}", found.basis)


def _unbounded_note(runs: Sequence[_Run]) -> str:
    counts = [(sum(run.unbounded == name for run in runs), why) for name, why in _WHY.items()]
    told = formats.listed([f"{formats.plural(count, 'run')} {why}" for count, why in counts if count])
    return f"{told}: nothing bounds what all runs together released."


def _units_differ(results: Results) -> bool:
    """Whether the unit of privacy was swept; where a figure is carried, the sweep was refused before it began."""
    return len({cell.factors.get(_UNIT) for cell in results.manifest.cells} - {None}) > 1


def _chose_its_noise(results: Results) -> bool:
    """Whether a search's trials differ in what they released: then it depends on what was seen before.

    A trial that did not finish must have spent no more than one that did: of its plan nothing else is known.
    """
    if results.manifest.search_trials is None:
        return False
    plans: defaultdict[int, set[_Alternatives]] = defaultdict(set)
    for cell in results.finished:
        if cell.kind == GRID:
            plans[cell.seed].add(tuple(sorted(_alternatives(cell.charges))))
    if any(len(found) > 1 for found in plans.values()):
        return True
    known, references = set().union(*plans.values()), {row.id for row in results.manifest.cells}
    trials = [spent for spent in _unfinished(results) if spent.charges and spent.cell not in references]
    return any(not any(covers(plan, _alternatives(spent.charges)) for plan in known) for spent in trials)


# -- selection -----------------------------------------------------------------------------------------------------


def _selection(results: Results, delta: float | None) -> _Figure:
    return _drawn(results, delta) if results.manifest.tuning == "repeat_select" else _would_be(results, delta)


def _mean(results: Results) -> float:
    if results.manifest.tuning == "repeat_select":
        return results.manifest.repeat_select.mean
    return float(max(1, len(_private_grid(results))))


def _private_grid(results: Results) -> list[CellResult]:
    return [cell for cell in results.finished if cell.kind == GRID and cell.privacy == "dp"]


def _would_be(results: Results, delta: float | None) -> _Figure:
    """What the same grid would cost had a random number of its cells been drawn, and the best alone been shown."""
    grid = _private_grid(results)
    if delta is None or not grid:
        return _Figure(None, "No private cell of the grid has finished yet.")
    if _units_differ(results):
        return _Figure(None, _UNITS)
    if any(run.unbounded for run in map(_finished_run, grid)):
        return _Figure(math.inf, "A cell of the grid has no privacy guarantee.")
    figure = repeat_select_epsilon(
        [_alternatives(cell.charges) for cell in grid],
        delta,
        _mean(results),
        results.manifest.repeat_select.shape,
    )
    return _Figure(
        figure,
        "It does not hold for this sweep, whose number of runs was fixed: it is what sweep.tuning=repeat_select would "
        "state for as many runs on average, of which only the best leaves.",
    )


def _drawn(results: Results, delta: float | None) -> _Figure:
    """The figure of a sweep that did draw, from the plans of all that it might have drawn."""
    manifest = results.manifest
    plans = _candidates(results.folder)
    if plans is None:
        return _Figure(None, f"{CANDIDATES} is missing: the plans of the candidates that were not drawn are not known.")
    if not is_complete(results):
        return _Figure(
            None,
            f"Not established yet: the guarantee is of the best of all draws, and "
            f"{formats.plural(len(manifest.cells) - len(results.finished), 'draw')} did not run to an end. Go on with "
            "the sweep; whoever takes a model now has chosen in another way.",
        )
    if any(_finished_run(cell).unbounded for cell in results.finished):
        return _Figure(math.inf, "A draw has no privacy guarantee.")
    for cell in results.finished:
        plan = next((plan for plan in plans if plan.factors == cell.factors), None)
        if plan is None or not covers(_alternatives(plan.charges), _alternatives(cell.charges)):
            return _Figure(
                None, f"Cell {cell.id} was charged more than its plan in {CANDIDATES}: nothing is established."
            )
    if delta is None:
        return _Figure(None, "No run was drawn: nothing is released.", holds=True)
    figure = repeat_select_epsilon(
        [_alternatives(plan.charges) for plan in plans],
        delta,
        manifest.repeat_select.mean,
        manifest.repeat_select.shape,
    )
    note = "It stands on the plans of all candidates, drawn or not, spare rounds included."
    if _unfinished(results):  # how many would tell something of the number of draws
        note += (
            " Runs that broke or were interrupted ran anew: that is covered only if nothing that depends on the data "
            "was the reason."
        )
    return _Figure(figure, note, holds=True)


def _candidates(folder: Path) -> tuple[CandidatePlan, ...] | None:
    path = folder / CANDIDATES
    try:
        return Candidates.model_validate_json(path.read_bytes()).plans
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise DataError(f"{path} is damaged: {describe(error)}. Restore it: no other file has these plans.") from error


# -- what follows for the chosen model -----------------------------------------------------------------------------


def _carried(results: Results, whole: _Figure, selected: _Figure) -> tuple[float | None, Basis]:
    """The figure of the chosen model's report, and what it is by."""
    match results.manifest.tuning:
        case "public":
            return None, "own"
        case "composed":
            if whole.epsilon is None or math.isinf(whole.epsilon):
                return whole.epsilon, "none"
            # A sweep that was stopped early may have been stopped because of what it showed.
            return (None, "none") if results.missing else (whole.epsilon, whole.basis or "none")
        case "repeat_select":
            if not selected.holds or selected.epsilon is None:
                return None, "none"
            return selected.epsilon, "rdp_repeat_and_select" if math.isfinite(selected.epsilon) else "none"


def _sentences(price: Price, results: Results) -> tuple[str, ...]:
    """The price in words."""
    return (_carried_sentence(price, results), *_composed_sentences(price, results), _selection_sentence(price))


def _carried_sentence(price: Price, results: Results) -> str:
    begin = f"sweep.tuning={price.mode}: "
    if price.mode == "public":
        return (
            f"{begin}the data are generated or claimed to be public, so that choosing among the runs costs nothing, "
            "and a chosen model's report carries the ε of its own run. On private records it would cost what follows."
        )
    if price.mode == "repeat_select" and not results.manifest.cells:
        return f"{begin}the number that was drawn is 0: no run, no model, and nothing is released. The sweep is over."
    if price.carried is None:
        why = price.repeat_select_note if price.mode == "repeat_select" else price.composed_note
        return f"{begin}no ε is established for a model that is chosen here. {why}"
    if math.isinf(price.carried):
        return f"{begin}a chosen model's report carries an infinite ε. {price.composed_note} {_way_out(price)}".strip()
    figure = f"ε = {formats.epsilon(price.carried)} at δ = {formats.small(price.delta)}"
    if price.mode == "composed":
        return f"{begin}a chosen model's report carries {figure}, which all runs together have spent."
    return (
        f"{begin}the best model's report carries {figure}. That holds against whoever is given this one model: the "
        "other runs, their scores and their number must stay inside. The coordinator and the sites saw every run, and "
        "against them all of these compose."
    )


def _way_out(price: Price) -> str:
    if price.mode == "composed" and price.runs_private < price.runs:
        return (
            "Leave out the cells without privacy (for a preset's reference: ~sweep.references.non_private) to have the "
            "figure of the others."
        )
    return ""


def _composed_sentences(price: Price, results: Results) -> tuple[str, ...]:
    if not price.runs:
        return ()
    count = formats.plural(price.runs, "run")
    if price.composed is None:
        said = [f"What {count} spent together is not established. {price.composed_note}"]
    elif math.isinf(price.composed):
        said = [f"Together {count} spent an infinite ε: {price.composed_note}"]
        if price.composed_private is not None and math.isfinite(price.composed_private):
            said.append(
                f"The {formats.plural(price.runs_private, 'run')} with privacy spent ε = "
                f"{formats.epsilon(price.composed_private)} together."
            )
    else:
        said = [f"Together {count} spent ε = {formats.epsilon(price.composed)}. By {price.composed_note}"]
    if len({cell.seed for cell in results.finished}) > 1:
        said.append(
            "Other seeds split the data otherwise, and generated data have other patients under them: over seeds the "
            "sum is an upper bound."
        )
    return tuple(said)


def _selection_sentence(price: Price) -> str:
    law = (
        "Poisson"
        if math.isinf(price.repeat_select_shape)
        else f"truncated negative binomial of shape {price.repeat_select_shape:g}"
    )
    what = f"The best of a random number of runs ({law}, {price.repeat_select_mean:g} on average), alone"
    if price.repeat_select is None:
        return f"{what}: no ε is established. {price.repeat_select_note}"
    costs = "costs" if price.repeat_select_holds else "would cost"
    return (
        f"{what}, {costs} ε = {formats.epsilon(price.repeat_select)} by RDP (Papernot and Steinke 2022; there is no "
        f"PLD for it). {price.repeat_select_note}"
    )
