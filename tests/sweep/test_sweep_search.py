"""A search over trials: what it suggests, how it scores, and that it goes on where it was."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from secure_fed.errors import ConfigError
from secure_fed.sweep.cells import Cell, Sweep, cell_of, read_sweep
from secure_fed.sweep.pool import Slot
from secure_fed.sweep.record import CellResult
from secure_fed.sweep.search import STUDY, Search, require_optuna

CLIP = "privacy.max_grad_norm"
SPACE = (
    "sweep/search=tpe",
    "sweep.search.trials=4",
    "sweep.search.seeds=[0,1]",
    "method=zero_fill",
    "privacy.epsilon=1,8",
    'federation.ownership="5:1:4"',
    f"{CLIP}=tag(log,interval(0.5,4.0))",
    "~sweep.references.single_site",
    "~sweep.references.non_private",
)
Score = Callable[[Cell], float | None]


def swept(*changes: str) -> Sweep:
    """The space, each change in the place of the argument with its key."""
    keys = {change.partition("=")[0] for change in changes}
    return read_sweep([*(item for item in SPACE if item.partition("=")[0] not in keys), *changes])


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return swept()


def result_of(cell: Cell, score: float | None) -> CellResult:
    return CellResult(
        **cell.row.model_dump(),
        metrics={"auroc_macro": score},
        epsilon_spent=1.0,
        charges=(),
        phases=(),
        rounds=1,
        rounds_burned=0,
        wall_s=1.0,
        cpu_s=1.0,
        peak_mib=1.0,
        bytes_up=0,
        bytes_down=0,
        insecure_reproducible=False,
        model_sha256="0" * 64,
        data="synthetic_cxr",
        run="run",
    )


def by_clip(cell: Cell) -> float:
    """The best clip is 1; seed 1 is worse by 0.1."""
    return 0.8 - abs(math.log(float(cell.row.factors[CLIP]))) / 10 - cell.row.seed / 10


def run(search: Search, score: Score = by_clip, most: int = 1000) -> list[Cell]:
    """Run one cell after the other; a score of None: it broke. Returns what was given."""
    given: list[Cell] = []
    while len(given) < most and (cell := search.next(Slot(0))) is not None:
        given.append(cell)
        value = score(cell)
        search.finished(cell, None if value is None else result_of(cell, value))
    return given


def trials(folder: Path, sweep: Sweep) -> list[FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(folder / STUDY)))
    return optuna.load_study(study_name=sweep.manifest.name, storage=storage).get_trials()


def test_a_trial_is_a_cell_for_each_seed_scored_by_their_mean(sweep: Sweep, tmp_path: Path) -> None:
    search = Search(tmp_path, sweep)
    given = run(search)
    assert search.exhausted()
    assert len(given) == 8
    found = trials(tmp_path, sweep)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 4
    for trial, first, second in zip(found, given[::2], given[1::2], strict=True):
        assert (first.row.seed, second.row.seed) == (0, 1)
        assert first.row.factors == {**trial.params, "seed": 0}
        assert trial.value == pytest.approx((by_clip(first) + by_clip(second)) / 2)


def test_values_stay_within_the_space_and_reach_the_configuration(sweep: Sweep, tmp_path: Path) -> None:
    for cell in run(Search(tmp_path, sweep)):
        assert cell.row.factors["privacy.epsilon"] in (1, 8)
        assert 0.5 <= cell.config.privacy.max_grad_norm <= 4.0
        assert cell.config.privacy.max_grad_norm == cell.row.factors[CLIP]


def test_whole_numbers_are_searched_as_whole_numbers(tmp_path: Path) -> None:
    sweep = swept(f"{CLIP}=2", "federation.rounds=int(interval(3,9))")
    rounds = {cell.config.federation.rounds for cell in run(Search(tmp_path, sweep), lambda cell: 0.5)}
    assert rounds <= set(range(3, 10))
    assert len(rounds) > 1


def test_tpe_goes_where_the_scores_are(tmp_path: Path) -> None:
    """Of 40 trials the last 20 lie closer to the best clip than evenly drawn ones, whose mean distance is 0.56."""
    sweep = swept("sweep.search.trials=40", "sweep.search.seeds=[0]", "privacy.epsilon=1")
    given = run(Search(tmp_path, sweep))
    assert sum(abs(math.log(float(cell.row.factors[CLIP]))) for cell in given[20:]) / 20 < 0.35


def test_a_search_goes_on_where_it_was(sweep: Sweep, tmp_path: Path) -> None:
    """Stopped in the middle of its second trial: that one is finished first, and no trial is lost or added."""
    first = run(Search(tmp_path, sweep), most=3)
    search = Search(tmp_path, sweep)
    second = run(search)
    assert [cell.row.id for cell in second[:3]] == [cell.row.id for cell in first]  # found finished, and not run again
    assert len({cell.row.id for cell in [*first, *second]}) == 8
    assert [trial.state for trial in trials(tmp_path, sweep)] == [TrialState.COMPLETE] * 4
    assert search.exhausted()
    third = Search(tmp_path, sweep)
    assert {cell.row.id for cell in run(third)} == {cell.row.id for cell in second}
    assert len(trials(tmp_path, sweep)) == 4


def test_a_search_that_goes_on_does_not_suggest_the_same_again(sweep: Sweep, tmp_path: Path) -> None:
    first = run(Search(tmp_path, sweep), most=2)
    second = run(Search(tmp_path, sweep))
    clips = {cell.row.factors[CLIP] for cell in [*first, *second]}
    assert len(clips) == 4


def test_a_trial_with_a_broken_cell_has_failed_and_its_other_cells_are_not_run(sweep: Sweep, tmp_path: Path) -> None:
    broken: list[Cell] = []

    def breaks_once(cell: Cell) -> float | None:
        if not broken:
            broken.append(cell)
            return None
        return by_clip(cell)

    given = run(Search(tmp_path, sweep), breaks_once)
    assert len(given) == 7
    states = [trial.state for trial in trials(tmp_path, sweep)]
    assert states == [TrialState.FAIL, *[TrialState.COMPLETE] * 3]
    # Resumed, the failed one is tried again with the same values, and the others are not.
    again = run(Search(tmp_path, sweep))
    found = trials(tmp_path, sweep)
    assert found[-1].state == TrialState.COMPLETE
    assert found[-1].params == found[0].params
    assert len(found) == 5
    assert broken[0].row.id in {cell.row.id for cell in again}
    assert len(run(Search(tmp_path, sweep))) == 8
    assert len(trials(tmp_path, sweep)) == 5


@pytest.mark.parametrize("score", [None, math.nan])
def test_a_cell_without_a_score_fails_its_trial(sweep: Sweep, tmp_path: Path, score: float | None) -> None:
    search = Search(tmp_path, sweep)
    cell = search.next(Slot(0))
    assert cell is not None
    search.finished(cell, result_of(cell, score))
    assert trials(tmp_path, sweep)[0].state == TrialState.FAIL


def test_trials_with_equal_values_share_their_cells(tmp_path: Path) -> None:
    """Two values and four trials: no more than four cells run, and every trial has its score."""
    sweep = swept(f"{CLIP}=2", "privacy.epsilon=1,8")
    given = run(Search(tmp_path, sweep), lambda cell: float(cell.row.factors["privacy.epsilon"]))
    assert len(given) == len({cell.row.id for cell in given}) <= 4
    found = trials(tmp_path, sweep)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 4
    assert [trial.value for trial in found] == [trial.params["privacy.epsilon"] for trial in found]


def test_workers_that_ask_at_once_get_different_cells(sweep: Sweep, tmp_path: Path) -> None:
    search = Search(tmp_path, sweep)
    cells = [search.next(Slot(number)) for number in range(5)]
    assert len({cell.row.id for cell in cells if cell is not None}) == 5
    assert not search.exhausted()
    for cell in cells:
        assert cell is not None
        search.finished(cell, result_of(cell, by_clip(cell)))
    assert len(run(search)) == 3
    assert search.exhausted()


def test_references_come_after_the_trials(tmp_path: Path) -> None:
    references = [item for item in SPACE if not item.endswith("non_private")]
    sweep = read_sweep(references)
    given = run(Search(tmp_path, sweep), lambda cell: 0.5)
    kinds = [cell.row.kind for cell in given]
    assert kinds == ["grid"] * 8 + ["non_private"] * kinds.count("non_private")
    assert kinds.count("non_private") == len(sweep.cells) > 0


def test_values_that_do_not_work_together_fail_their_trial_with_the_reason(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses_small(swept: Sweep, values: dict[str, float]) -> Cell:
        if values["privacy.epsilon"] == 1:
            raise ConfigError("no noise reaches it")
        return cell_of(swept, values)

    monkeypatch.setattr("secure_fed.sweep.search.cell_of", refuses_small)
    search = Search(tmp_path, sweep)
    run(search)
    assert search.exhausted()
    for trial in trials(tmp_path, sweep):
        refused = trial.params["privacy.epsilon"] == 1
        assert trial.state == (TrialState.FAIL if refused else TrialState.COMPLETE)
        assert trial.user_attrs == ({"reason": "no noise reaches it"} if refused else {})
    assert len(trials(tmp_path, sweep)) == 4


def test_a_search_without_a_single_trial_that_works_says_why(tmp_path: Path) -> None:
    """Both ends of the interval are whole numbers of rounds; nothing in between is."""
    search = Search(tmp_path, swept(f"{CLIP}=2", "federation.rounds=interval(3,9)"))
    with pytest.raises(ConfigError, match=r"no trial of the search could run.*federation\.rounds"):
        run(search)


def test_a_journal_that_a_crash_left_torn_or_locked_is_read(sweep: Sweep, tmp_path: Path) -> None:
    run(Search(tmp_path, sweep), most=2)
    with (tmp_path / STUDY).open("ab") as file:
        file.write(b'{"op_code":5,"wor')
    (tmp_path / f"{STUDY}.lock").symlink_to(STUDY)
    assert len({cell.row.id for cell in run(Search(tmp_path, sweep))}) == 8
    assert [trial.state for trial in trials(tmp_path, sweep)] == [TrialState.COMPLETE] * 4


def test_without_the_extra_a_search_is_refused_with_the_way_out(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'secure-fed\[optuna\]'"):
        require_optuna()
    with pytest.raises(ConfigError, match="Optuna"):
        Search(tmp_path, sweep)
    assert not list(tmp_path.iterdir())
