"""What a sweep as a whole spent, which figure a chosen model carries, and what of it must not be told."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example import EPSILON, SEED, example_sweep

from secure_fed.accounting import Mechanism, composed_epsilon, covers, epsilon, repeat_select_epsilon
from secure_fed.errors import DataError
from secure_fed.report import formats
from secure_fed.report.tuning import read_tuning
from secure_fed.sweep.choice import chosen, tuning_of, write_tuning
from secure_fed.sweep.price import Price, price_of
from secure_fed.sweep.record import (
    ABANDONED,
    BROKEN,
    CANDIDATES,
    CELLS,
    GRID,
    MANIFEST,
    RESULT,
    CandidatePlan,
    Candidates,
    CellError,
    CellResult,
    CellRow,
    Charges,
    Manifest,
    RepeatSelectConfig,
)
from secure_fed.sweep.spent import abandon, spent_in, unfinished
from secure_fed.sweep.table import Results, read_results

WHOLE: dict[str, Any] = {"broken": 0, "missing": 0}
PRIVATE: dict[str, Any] = {**WHOLE, "references": ()}
SMALL: dict[str, Any] = {**PRIVATE, "epsilons": (1.0, 8.0), "ownerships": ("5:1:4",), "seeds": (0, 1)}
DELTA = 1e-5


def priced(folder: Path, **changes: Any) -> tuple[Results, Price]:
    results = read_results(example_sweep(folder, **changes))
    return results, price_of(results)


def loudness(charges: Charges) -> float:
    return math.fsum(m.steps / m.noise_multiplier**2 for m in charges.mechanisms)


def one_release(cells: list[CellResult]) -> float:
    """Epsilon of all cells as one Gaussian release, the site that spent most counting in each."""
    total = math.fsum(max(map(loudness, cell.charges)) for cell in cells)
    return epsilon([Mechanism("gaussian", 1 / math.sqrt(total), 1.0, 1)], DELTA)


def said(price: Price) -> str:
    return " ".join(price.statement)


# -- composition ---------------------------------------------------------------------------------------------------


def test_the_whole_sweep_is_the_composition_of_what_its_ledgers_were_charged(tmp_path: Path) -> None:
    results, price = priced(tmp_path / "s", **PRIVATE)
    assert price.runs == price.runs_private == 72
    assert price.composed == price.composed_private == pytest.approx(one_release(list(results.finished)))
    assert price.composed_basis == "pld"
    assert price.single == max(cell.epsilon_spent for cell in results.finished)
    assert price.delta == DELTA


def test_private_references_count_too(tmp_path: Path) -> None:
    results, price = priced(tmp_path / "s", **WHOLE, references=("single_site",))
    assert price.runs == 84
    assert price.composed == pytest.approx(one_release(list(results.finished)))


def test_runs_without_privacy_make_the_whole_infinite_and_the_others_stand_beside_it(tmp_path: Path) -> None:
    results, price = priced(tmp_path / "s", **WHOLE, tuning="composed")
    assert price.composed == price.carried == math.inf
    assert price.carried_basis == "none"
    private = [cell for cell in results.finished if cell.privacy == "dp"]
    assert price.runs_private == len(private) == 84
    assert price.composed_private == pytest.approx(one_release(private))
    assert "18 runs ran without privacy" in price.composed_note
    assert "~sweep.references.non_private" in said(price)


def test_reproducible_noise_is_no_privacy(tmp_path: Path) -> None:
    _, price = priced(tmp_path / "s", **SMALL, insecure_reproducible=True, tuning="composed")
    assert price.composed == price.composed_private == price.carried == math.inf
    assert "reproducible noise" in price.composed_note
    assert price.repeat_select == math.inf


def test_without_a_finished_cell_nothing_is_established(tmp_path: Path) -> None:
    folder = example_sweep(tmp_path / "s", **SMALL)
    shutil.rmtree(folder / CELLS)
    price = price_of(read_results(folder))
    assert price.runs == 0
    assert price.composed is price.single is price.repeat_select is price.carried is None


def test_a_sweep_that_was_stopped_carries_no_figure(tmp_path: Path) -> None:
    """Who stops because of what the sweep showed has used what the other cells might have shown."""
    _, price = priced(tmp_path / "s", **{**SMALL, "missing": 2}, tuning="composed")
    assert price.composed is not None
    assert math.isfinite(price.composed)
    assert price.carried is None
    assert price.carried_basis == "none"
    assert "2 cells did not run to an end" in said(price)
    _, price = priced(tmp_path / "t", **SMALL, tuning="composed")
    assert price.carried == price.composed
    assert price.carried_basis == "pld"


def test_on_public_data_choosing_costs_nothing_and_the_page_still_says_what_it_would(tmp_path: Path) -> None:
    _, price = priced(tmp_path / "s", **SMALL)
    assert price.mode == "public"
    assert price.carried is None
    assert price.carried_basis == "own"
    assert "costs nothing" in price.statement[0]
    assert f"ε = {formats.epsilon(price.composed)}" in said(price)


def as_search(folder: Path, key: str) -> Path:
    """The example as if its values of `key` had been a search's trials: the others have one value."""
    alone = {"epsilons": (1.0,), "methods": ("zero_fill",), "ownerships": ("5:1:4",), "seeds": (0, 1)}
    several = {EPSILON: ("epsilons", (1.0, 8.0)), "gain": ("methods", ("zero_fill", "modality_dropout"))}[key]
    return example_sweep(folder, **PRIVATE, **{**alone, several[0]: several[1]}, search_trials=2, tuning="composed")


def test_a_search_that_chose_its_noise_by_earlier_scores_has_no_figure(tmp_path: Path) -> None:
    """PLD and RDP composition hold for mechanisms that are fixed beforehand; the next trial's noise was not."""
    price = price_of(read_results(as_search(tmp_path / "s", EPSILON)))
    assert price.composed is price.carried is None
    assert "by the scores of earlier ones" in said(price)


def test_a_search_whose_trials_all_release_alike_composes(tmp_path: Path) -> None:
    results = read_results(as_search(tmp_path / "s", "gain"))
    price = price_of(results)
    assert price.composed == price.carried == pytest.approx(one_release(list(results.finished)))


def test_a_broken_trial_that_spent_more_than_any_finished_one_leaves_no_figure(
    tmp_path: Path, finished_run: Path
) -> None:
    folder = as_search(tmp_path / "s", "gain")
    trial = "0" * 16
    shutil.copytree(finished_run, folder / CELLS / trial)
    row = read_results(folder).finished[0].model_dump(include=set(CellRow.model_fields))
    error = CellError(**{**row, "id": trial}, error="Broken", message="", traceback="")
    (folder / CELLS / trial / BROKEN).write_text(error.model_dump_json(by_alias=True), encoding="utf-8")
    (folder / CELLS / trial / RESULT).unlink(missing_ok=True)
    spent = spent_in(folder / CELLS / trial)
    assert spent is not None
    plans = [candidates_of(cell) for cell in read_results(folder).finished]
    assert not any(covers(plan, candidates_of(spent)) for plan in plans), "else the example shows nothing"
    price = price_of(read_results(folder))
    assert price.composed is price.carried is None
    assert "by the scores of earlier ones" in said(price)


# -- repeat_select -------------------------------------------------------------------------------------------------

DRAWS = (0, 5, 5, 9, 11)


def drawn_sweep(folder: Path, factor: float = 1.0, **changes: Any) -> Path:
    """A sweep of five draws out of twelve candidates, whose plans have `factor` times the noise that was charged."""
    grid = read_results(example_sweep(folder.with_name("grid"), **SMALL)).finished
    plans = tuple(CandidatePlan(factors=cell.factors, charges=quieter(cell.charges, factor)) for cell in grid)
    example_sweep(folder, **{**SMALL, "tuning": "repeat_select", "draws": DRAWS, **changes})
    (folder / CANDIDATES).write_text(Candidates(plans=plans).model_dump_json(by_alias=True), encoding="utf-8")
    return folder


def quieter(charges: tuple[Charges, ...], factor: float) -> tuple[Charges, ...]:
    return tuple(
        group.model_copy(
            update={
                "mechanisms": tuple(replace(m, noise_multiplier=factor * m.noise_multiplier) for m in group.mechanisms)
            }
        )
        for group in charges
    )


def test_the_best_of_the_draws_carries_the_figure_over_all_candidates(tmp_path: Path) -> None:
    results = read_results(drawn_sweep(tmp_path / "s", 0.99))
    price = price_of(results)
    plans = Candidates.model_validate_json((tmp_path / "s" / CANDIDATES).read_bytes()).plans
    candidates = [
        [[Mechanism("gaussian", m.noise_multiplier, 1.0, m.steps) for m in g.mechanisms] for g in plan.charges]
        for plan in plans
    ]
    assert len(candidates) == 12
    assert price.repeat_select == pytest.approx(repeat_select_epsilon(candidates, DELTA, 10, 1))
    assert price.repeat_select_holds
    assert price.carried == price.repeat_select
    assert price.carried_basis == "rdp_repeat_and_select"
    assert price.repeat_select_mean == 10
    assert "The coordinator and the sites saw every run" in price.statement[0]
    assert price.composed == pytest.approx(
        composed_epsilon([candidates_of(cell) for cell in results.finished], DELTA).epsilon
    )


def candidates_of(cell: CellResult) -> list[list[Mechanism]]:
    return [[Mechanism("gaussian", m.noise_multiplier, 1.0, m.steps) for m in g.mechanisms] for g in cell.charges]


def test_candidates_that_were_not_drawn_count(tmp_path: Path) -> None:
    """The draw might have been theirs: the figure is the same whichever were drawn."""
    cheap = price_of(read_results(drawn_sweep(tmp_path / "a" / "s", draws=(0, 1, 2))))
    dear = price_of(read_results(drawn_sweep(tmp_path / "b" / "s", draws=(6, 7, 8))))
    assert cheap.carried == dear.carried
    assert cheap.composed < dear.composed


@pytest.mark.parametrize("unfinished_draw", ["missing", "broken"])
def test_before_every_draw_has_finished_nothing_is_established_and_nothing_chosen(
    tmp_path: Path, unfinished_draw: str
) -> None:
    """The law of the number of runs is part of the guarantee: stopping early is another law."""
    results = read_results(drawn_sweep(tmp_path / "s", **{unfinished_draw: 1}))
    price = price_of(results)
    assert price.repeat_select is price.carried is None
    assert not price.repeat_select_holds
    assert "1 draw did not run to an end" in said(price)
    assert chosen(results) == ()


def test_without_the_plans_of_the_candidates_nothing_is_established(tmp_path: Path) -> None:
    folder = drawn_sweep(tmp_path / "s")
    (folder / CANDIDATES).unlink()
    price = price_of(read_results(folder))
    assert price.carried is None
    assert CANDIDATES in said(price)
    (folder / CANDIDATES).write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=CANDIDATES):
        price_of(read_results(folder))


def test_a_draw_that_was_charged_more_than_its_plan_voids_the_figure(tmp_path: Path) -> None:
    price = price_of(read_results(drawn_sweep(tmp_path / "s", 1.01)))
    assert price.carried is None
    assert "charged more than its plan" in said(price)


def test_no_draw_releases_nothing(tmp_path: Path) -> None:
    folder = drawn_sweep(tmp_path / "s")
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    law = RepeatSelectConfig(mean=1, shape=math.inf)
    empty = manifest.model_copy(update={"cells": (), "draws": (), "repeat_select": law})
    (folder / MANIFEST).write_text(empty.model_dump_json(by_alias=True), encoding="utf-8")
    shutil.rmtree(folder / CELLS)
    results = read_results(folder)
    price = price_of(results)
    assert price.carried is None
    assert "nothing is released" in price.statement[0]
    assert chosen(results) == ()
    assert write_tuning(results, price) == ()


def test_a_fixed_grid_is_told_what_selection_would_have_cost_and_that_it_does_not_hold(tmp_path: Path) -> None:
    results, price = priced(tmp_path / "s", **SMALL)
    assert price.repeat_select == pytest.approx(
        repeat_select_epsilon([candidates_of(cell) for cell in results.finished], DELTA, 12, 1)
    )
    assert not price.repeat_select_holds
    assert "does not hold for this sweep" in price.repeat_select_note
    assert "would cost" in said(price)


# -- runs that did not finish --------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path: Path, finished_run: Path) -> tuple[Path, str]:
    """A sweep one of whose cells was interrupted: its folder has real ledgers and no cell.json; and that cell's id."""
    folder = example_sweep(tmp_path / "sweep", **{**SMALL, "missing": 1})
    cell = read_results(folder).missing[0].id
    shutil.copytree(finished_run, folder / CELLS / cell)
    return folder, cell


def test_what_an_interrupted_cell_charged_counts(stopped: tuple[Path, str]) -> None:
    folder, cell = stopped
    results = read_results(folder)
    spent = spent_in(folder / CELLS / cell)
    assert spent is not None
    assert spent.unbounded is None
    price = price_of(results)
    assert price.runs == len(results.finished) + 1
    runs = [*map(candidates_of, results.finished)]
    runs.append([list(g.mechanisms) for g in spent.charges])
    assert price.composed == pytest.approx(composed_epsilon(runs, DELTA).epsilon)
    assert price.composed > composed_epsilon(runs[:-1], DELTA).epsilon


def test_what_a_removed_cell_charged_still_counts_and_only_once(stopped: tuple[Path, str]) -> None:
    folder, cell = stopped
    before = price_of(read_results(folder))
    abandon(folder, folder / CELLS / cell)
    assert price_of(read_results(folder)).composed == before.composed  # noted, and still there
    shutil.rmtree(folder / CELLS / cell)
    after = price_of(read_results(folder))
    assert after.composed == pytest.approx(before.composed)
    assert after.runs == before.runs


def test_a_cell_that_was_noted_and_removed_twice_counts_twice(stopped: tuple[Path, str], finished_run: Path) -> None:
    folder, cell = stopped
    abandon(folder, folder / CELLS / cell)
    abandon(folder, folder / CELLS / cell)  # the same run: the process died before it was removed
    assert len(unfinished(folder, ())) == 1
    text = (folder / ABANDONED).read_text(encoding="utf-8").splitlines()[0]
    other = json.loads(text) | {"run": "another"}
    with (folder / ABANDONED).open("a", encoding="utf-8") as file:
        file.write(json.dumps(other) + "\n")
    assert len(unfinished(folder, ())) == 2


def test_a_cell_that_failed_before_any_charge_costs_nothing(tmp_path: Path) -> None:
    folder = example_sweep(tmp_path / "s", **{**SMALL, "broken": 1})
    results = read_results(folder)
    cell = folder / CELLS / results.broken[0].id
    (cell / "sites" / "site01").mkdir(parents=True)
    assert spent_in(cell) is None
    abandon(folder, cell)
    assert not (folder / ABANDONED).exists()
    assert price_of(results).runs == len(results.finished)


def test_a_ledger_that_cannot_be_read_bounds_nothing(stopped: tuple[Path, str]) -> None:
    folder, cell = stopped
    ledger = next(path for path in sorted((folder / CELLS / cell / "sites").glob("*/ledger.jsonl")))
    lines = ledger.read_bytes().split(b"\n")
    ledger.write_bytes(b"\n".join([*lines[:3], lines[3].replace(b'"', b"'", 1), *lines[4:]]))
    price = price_of(read_results(folder))
    assert price.composed == price.composed_private == math.inf
    assert "a ledger that cannot be read" in price.composed_note


def test_a_last_record_that_was_torn_was_not_charged(stopped: tuple[Path, str]) -> None:
    """A site draws its noise only when the charge is whole and on the disk."""
    folder, cell = stopped
    ledger = folder / CELLS / cell / "sites" / "site01" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes() + b'{"body":{"artefact":"upda')
    assert math.isfinite(price_of(read_results(folder)).composed or math.inf)


def test_a_torn_note_is_replaced_and_a_damaged_one_refused(stopped: tuple[Path, str]) -> None:
    folder, cell = stopped
    path = folder / ABANDONED
    path.write_bytes(b'{"cell":"a25')
    assert len(unfinished(folder, ())) == 0  # the folder stands still: it was not removed before the line was whole
    abandon(folder, folder / CELLS / cell)
    assert len(unfinished(folder, ())) == 1
    path.write_bytes(b'{"cell":"a25\n' + path.read_bytes())
    with pytest.raises(DataError, match=r"abandoned\.jsonl, line 1 is damaged"):
        price_of(read_results(folder))


def test_an_interrupted_draw_is_named_with_what_it_assumes(tmp_path: Path, finished_run: Path) -> None:
    folder = drawn_sweep(tmp_path / "s")
    abandon(folder, finished_run)
    price = price_of(read_results(folder))
    assert price.carried is not None
    assert "ran anew" in price.repeat_select_note
    assert not any(character.isdigit() for character in price.repeat_select_note)


# -- what the chosen model's report says -----------------------------------------------------------------------------


def test_the_best_cell_of_each_epsilon_is_chosen_on_the_grid(tmp_path: Path) -> None:
    results, price = priced(tmp_path / "s", **WHOLE, tuning="composed")
    picked = chosen(results)
    assert [cell.factors[EPSILON] for cell in picked] == [0.5, 1.0, 3.0, 8.0]
    for cell in picked:
        others = [c for c in results.finished if c.kind == GRID and c.factors[EPSILON] == cell.factors[EPSILON]]
        assert cell.metrics["auroc_macro"] == max(c.metrics["auroc_macro"] for c in others)
        assert cell.privacy == "dp"
    paths = write_tuning(results, price)
    assert [path.parent.name for path in paths] == [cell.id for cell in picked]
    assert {read_tuning(path) for path in paths} == {tuning_of(results, price)}


def test_one_model_is_chosen_from_a_search(tmp_path: Path) -> None:
    """Its trials may each have an x of their own, and each would be the best there."""
    results = read_results(as_search(tmp_path / "s", EPSILON))
    (cell,) = chosen(results)
    assert cell.metrics["auroc_macro"] == max(other.metrics["auroc_macro"] for other in results.finished)


def test_one_model_is_chosen_from_the_draws_and_its_statement_tells_no_number(tmp_path: Path) -> None:
    results = read_results(drawn_sweep(tmp_path / "s"))
    price = price_of(results)
    (path,) = write_tuning(results, price)
    best = max(results.finished, key=lambda cell: cell.metrics["auroc_macro"])
    assert path.parent.name == best.id
    tuning = read_tuning(path)
    assert tuning.runs is None
    assert (tuning.mean, tuning.shape) == (10, 1)
    assert tuning.epsilon == price.carried
    # The statement is the same whatever was drawn.
    other = read_results(drawn_sweep(tmp_path / "o" / "s", draws=(0, 1, 2, 3, 4, 5, 6)))
    assert tuning_of(other, price_of(other)) == tuning


def test_an_earlier_choice_is_taken_back(tmp_path: Path) -> None:
    results, price = priced(tmp_path / "s", **SMALL)
    stale = next(cell.id for cell in results.finished if cell not in chosen(results))
    first = write_tuning(results, price)
    shutil.copy(first[0], tmp_path / "s" / CELLS / stale)
    again = write_tuning(results, price)
    assert again == first
    assert sorted((tmp_path / "s" / CELLS).glob("*/tuning.json")) == sorted(first)


def test_the_reports_and_the_card_of_a_chosen_run_say_it_and_forget_it_when_another_is_chosen(
    tmp_path: Path, finished_run: Path
) -> None:
    folder = example_sweep(tmp_path / "s", **SMALL, tuning="composed")
    results = read_results(folder)
    cell = chosen(results)[0]
    where = folder / CELLS / cell.id
    result = (where / RESULT).read_bytes()
    shutil.rmtree(where)
    shutil.copytree(finished_run, where, symlinks=True)
    (where / RESULT).write_bytes(result)
    price = price_of(read_results(folder))
    write_tuning(read_results(folder), price)
    tree = json.loads((where / "epsilon_report.json").read_text(encoding="utf-8"))
    assert tree["tuning"]["epsilon"] == price.carried
    assert tree["warnings"][0]["title"] == "Tuning counts"
    for name in ("report.html", "model_card.md"):  # what leaves with the model, and what the page links to
        assert "Tuning counts" in (where / name).read_text(encoding="utf-8"), name
    result = result.replace(b'"auroc_macro": ', b'"auroc_macro": -', 1)
    (where / RESULT).write_bytes(result)
    write_tuning(read_results(folder), price)
    tree = json.loads((where / "epsilon_report.json").read_text(encoding="utf-8"))
    assert tree["tuning"] is None
    for name in ("report.html", "model_card.md"):
        assert "Tuning counts" not in (where / name).read_text(encoding="utf-8"), name
    assert not (where / "tuning.json").exists()


def test_seeds_are_summed_as_an_upper_bound(tmp_path: Path) -> None:
    results, price = priced(tmp_path / "s", **SMALL)
    assert len({cell.factors[SEED] for cell in results.finished}) == 2
    assert "over seeds the sum is an upper bound" in said(price)
