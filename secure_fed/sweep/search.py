"""A search by Optuna instead of the whole grid: each trial is a set of values, scored by its mean over the seeds.

The study lies in the sweep's folder and goes on where it was; a cell that has finished is never run again.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secure_fed.errors import ConfigError
from secure_fed.sweep.cells import Cell, Sweep, cell_of
from secure_fed.sweep.config import SearchConfig
from secure_fed.sweep.loop import Listed
from secure_fed.sweep.pool import Slot
from secure_fed.sweep.record import CellResult, Scalar

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

STUDY = "study.journal"
_SEED = "seed"
_RETRY_OF, _REASON = "retry_of", "reason"


def require_optuna() -> None:
    """Raise ConfigError where the extra is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "sweep/search needs Optuna, which is not installed: install the extra with pip install "
            "'secure-fed[optuna]', or leave sweep/search out and sweep the whole grid"
        )


class Search:
    """The source of a search's cells: its references, and trial by trial a cell for each seed.

    A new trial is asked for as soon as no cell of the earlier ones waits. Two trials with the same values share
    their cells. A trial with a broken cell has failed; when the search is resumed it is tried once more.
    """

    def __init__(self, folder: Path, sweep: Sweep) -> None:
        """Open or begin the study in `folder`, whose lock the caller holds; raises ConfigError without Optuna."""
        require_optuna()
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        assert sweep.config.search is not None  # noqa: S101 - nothing else is searched
        self._sweep, self._search = sweep, sweep.config.search
        self._objective = sweep.manifest.objective
        self._distributions = _distributions(sweep)
        self._references = Listed(sweep.cells)
        path = folder / STUDY
        _mend(path)
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(path))),
            study_name=sweep.manifest.name,
            direction="maximize",
            load_if_exists=True,
        )
        before = self._study.get_trials(deepcopy=False)
        self._study.sampler = _sampler(self._search, len(before))
        self._waiting: deque[Cell] = deque()
        self._trials_of: defaultdict[str, set[int]] = defaultdict(set)
        self._open: dict[int, dict[str, float]] = {}
        self._known: dict[str, CellResult | None] = {}
        self._queued: set[str] = set()
        self._left = self._search.trials - self._go_on(before)

    def next(self, slot: Slot) -> Cell | None:
        """A cell of a trial, of a new one where none waits; at the end the references.

        Raises ConfigError where not a single trial had values that work together.
        """
        while not self._waiting and self._left > 0:
            self._left -= 1
            trial = self._study.ask(self._distributions)
            try:
                self._begin(trial.number, trial.params)
            except ConfigError as error:  # each value works, but not these together
                trial.set_user_attr(_REASON, str(error))
                self._fail(trial.number)
                if self._left == 0 and not self._queued:
                    raise ConfigError(f"no trial of the search could run; the last one: {error}") from error
        return self._waiting.popleft() if self._waiting else self._references.next(slot)

    def finished(self, cell: Cell, result: CellResult | None) -> None:
        """Score the trials that this cell belongs to, where it was their last; None: it broke, and they have failed."""
        self._known[cell.row.id] = result
        for number in sorted(self._trials_of.pop(cell.row.id, ())):
            self._take(number, cell.row.id)

    def exhausted(self) -> bool:
        """Whether all trials were asked for and all their cells, and the references, given."""
        return self._left <= 0 and not self._waiting and self._references.exhausted()

    def _go_on(self, before: list[FrozenTrial]) -> int:
        """Take up what an earlier session left, and say how many trials count: failed ones are tried again instead."""
        from optuna.trial import TrialState

        retried = {trial.user_attrs.get(_RETRY_OF) for trial in before}
        counted = 0
        for trial in before:
            is_whole = set(trial.params) == set(self._distributions)
            if trial.state == TrialState.FAIL and is_whole and trial.number not in retried:
                self._study.enqueue_trial(trial.params, user_attrs={_RETRY_OF: trial.number})
            elif trial.state == TrialState.RUNNING and not is_whole:  # the process ended while it drew the values
                self._fail(trial.number)
            elif trial.state == TrialState.RUNNING:
                counted += 1
                self._begin(trial.number, trial.params)
            elif trial.state == TrialState.COMPLETE:
                counted += 1
                self._queue(self._cells(trial.params))  # they are found finished, and count
        return counted

    def _cells(self, values: Mapping[str, Scalar]) -> list[Cell]:
        return [cell_of(self._sweep, {**values, _SEED: seed}) for seed in self._search.seeds]

    def _queue(self, cells: Sequence[Cell]) -> None:
        """Let cells wait that no other trial has queued and whose end is not known yet."""
        for cell in cells:
            if cell.row.id not in self._queued:
                self._queued.add(cell.row.id)
                self._waiting.append(cell)

    def _begin(self, number: int, values: Mapping[str, Scalar]) -> None:
        cells = self._cells(values)
        self._open[number] = {}
        self._queue(cells)
        known = [cell.row.id for cell in cells if cell.row.id in self._known]
        for cell in cells:
            if cell.row.id not in known:
                self._trials_of[cell.row.id].add(number)
        for cell_id in known:
            self._take(number, cell_id)

    def _take(self, number: int, cell: str) -> None:
        """Enter a cell's score for a trial, which is told with its last one, and fails with a cell that has none."""
        scores, result = self._open.get(number), self._known[cell]
        if scores is None:  # it failed by another of its cells
            return
        score = None if result is None else result.metrics.get(self._objective)
        if score is None or not math.isfinite(score):
            del self._open[number]
            self._fail(number)
            self._drop_unwanted()
            return
        scores[cell] = score
        if len(scores) == len(self._search.seeds):
            del self._open[number]
            self._study.tell(number, math.fsum(scores.values()) / len(scores))

    def _drop_unwanted(self) -> None:
        """Forget waiting cells that only failed trials wanted: they would spend epsilon for nothing."""
        for cell in list(self._waiting):
            wanted = self._trials_of.get(cell.row.id)
            if wanted and not wanted & self._open.keys():
                self._waiting.remove(cell)
                self._queued.discard(cell.row.id)
                del self._trials_of[cell.row.id]

    def _fail(self, number: int) -> None:
        from optuna.trial import TrialState

        self._study.tell(number, state=TrialState.FAIL)


def _distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """The search space in Optuna's terms; the seeds are no part of it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {
        axis.name: CategoricalDistribution([choice.label for choice in axis.choices])
        for axis in sweep.space.axes
        if axis.name != _SEED
    }
    for interval in sweep.space.intervals:
        found[interval.name] = (
            IntDistribution(int(interval.low), int(interval.high), log=interval.log)
            if interval.integer
            else FloatDistribution(interval.low, interval.high, log=interval.log)
        )
    if not found:
        raise ConfigError("there is nothing to search but seeds: give at least one axis or interval(...)")
    return found


def _sampler(search: SearchConfig, past: int) -> BaseSampler:
    """A sampler that does not suggest again what an earlier session's suggested: its seed counts on."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import RandomSampler, TPESampler

    seed = (search.sampler_seed + past) % 2**32
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # constant_liar, for years now
        # Several trials run at once: those under way count as bad, so that the next looks elsewhere.
        return TPESampler(seed=seed, constant_liar=True)


def _mend(path: Path) -> None:
    """Cut off a line that a power cut tore, and a lock that a killed process left: the sweep's own lock is held."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("rb+") as file:
            file.truncate(whole)
