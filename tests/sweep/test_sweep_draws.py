"""The draws of repeat_select: from the system, kept in the manifest, over candidates whose plans are known."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_sweep import TINY

from secure_fed.config import compose_config, freeze
from secure_fed.engines.runner import federation_of
from secure_fed.engines.simulated_sites import simulate
from secure_fed.errors import ConfigError
from secure_fed.federation.plan import plan_for
from secure_fed.sweep import draws
from secure_fed.sweep.cells import Sweep, read_sweep
from secure_fed.sweep.choice import chosen
from secure_fed.sweep.config import RepeatSelectConfig
from secure_fed.sweep.draws import draw, drawn_before, planned, write_candidates
from secure_fed.sweep.price import price_of
from secure_fed.sweep.record import CANDIDATES, CELLS, Candidates, Manifest
from secure_fed.sweep.table import read_results
from secure_fed.sweeping import sweep_command

ARGUMENTS = ("sweep.tuning=repeat_select", "method=zero_fill,fin", "privacy.epsilon=1,8", "seed=0,1")


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return read_sweep([*ARGUMENTS, 'federation.ownership="5:1:4"'])


def lawful(sweep: Sweep, mean: float, shape: float) -> Sweep:
    return replace(
        sweep, config=sweep.config.model_copy(update={"repeat_select": RepeatSelectConfig(mean=mean, shape=shape)})
    )


def test_number_and_candidates_come_from_the_system_and_stand_in_the_manifest(sweep: Sweep) -> None:
    drawn = draw(sweep)
    assert drawn.cells
    assert drawn.manifest.cells == tuple(cell.row for cell in drawn.cells)
    assert drawn.manifest.draws == tuple(cell.row.id for cell in drawn.cells)
    assert drawn.manifest.references == ()
    grid = [cell.row.factors for cell in sweep.cells]
    assert all(cell.row.factors in grid for cell in drawn.cells)
    others = [draw(sweep).manifest.draws for _ in range(3)]
    assert len({drawn.manifest.draws, *others}) == 4


def test_every_candidate_is_drawn_as_often_as_another(sweep: Sweep) -> None:
    """2000 draws of 8 candidates: each within six deviations of 250; missed with probability below 1e-7."""
    counts = Counter(str(cell.row.factors) for _ in range(2) for cell in draw(lawful(sweep, 1000, math.inf)).cells)
    total = sum(counts.values())
    assert len(counts) == len(sweep.cells) == 8
    assert all(abs(count - total / 8) < 6 * math.sqrt(total * 7 / 64) for count in counts.values())


def test_a_candidate_that_comes_again_is_a_run_of_its_own(sweep: Sweep) -> None:
    drawn = draw(lawful(sweep, 200, math.inf))
    assert len({cell.row.id for cell in drawn.cells}) == len(drawn.cells) > 8


def test_a_cells_id_and_repeat_tell_nothing_of_the_number_of_draws(sweep: Sweep) -> None:
    """Counted repeats would: whoever sees 3 knows of at least three runs."""
    repeats = [cell.row.repeat for cell in draw(lawful(sweep, 50, math.inf)).cells]
    assert min(repeats) >= 1
    assert min(repeats) > len(repeats)  # 50 numbers below 2^31: fails with probability 2e-6


def test_poisson_may_draw_nothing(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "draw_repetitions", lambda mean, shape: 0)
    drawn = draw(lawful(sweep, 1, math.inf))
    assert drawn.cells == drawn.manifest.cells == drawn.manifest.draws == ()
    assert drawn_before(sweep, drawn.manifest).cells == ()


def test_resuming_keeps_the_draws(sweep: Sweep) -> None:
    drawn = draw(lawful(sweep, 30, math.inf))
    again = drawn_before(sweep, drawn.manifest)
    assert again.cells == drawn.cells
    assert again.manifest == drawn.manifest


def test_a_poisson_law_survives_the_manifests_json(sweep: Sweep) -> None:
    """JSON has no infinity, which is Poisson's shape."""
    drawn = draw(lawful(sweep, 3, math.inf))
    manifest = drawn.manifest.model_copy(update={"repeat_select": RepeatSelectConfig(mean=3, shape=math.inf)})
    assert Manifest.model_validate_json(manifest.model_dump_json(by_alias=True)) == manifest
    text = json.dumps(manifest.model_dump(mode="json", by_alias=True), allow_nan=False)
    assert Manifest.model_validate_json(text) == manifest


def test_draws_of_other_candidates_are_refused(sweep: Sweep) -> None:
    drawn = draw(lawful(sweep, 30, math.inf))
    gone = drawn.cells[0].row.factors
    other = replace(sweep, cells=tuple(cell for cell in sweep.cells if cell.row.factors != gone))
    with pytest.raises(ConfigError, match="none of its candidates now"):
        drawn_before(other, drawn.manifest)
    rows = tuple(row.model_copy(update={"repeat": row.repeat + 1}) for row in drawn.manifest.cells)
    with pytest.raises(ConfigError, match="none of its candidates now"):
        drawn_before(sweep, drawn.manifest.model_copy(update={"cells": rows}))


def test_candidates_without_a_guarantee_are_refused(sweep: Sweep) -> None:
    off = read_sweep(["sweep=trust"])
    assert any(cell.row.privacy == "off" for cell in off.cells)
    with pytest.raises(ConfigError, match="privacy=off"):
        draw(off)
    seeded = [
        replace(cell, config=cell.config.model_copy(update={"insecure_reproducible": True})) for cell in sweep.cells
    ]
    with pytest.raises(ConfigError, match="insecure_reproducible=true"):
        draw(replace(sweep, cells=tuple(seeded)))


def test_the_plan_of_every_candidate_is_written(sweep: Sweep, tmp_path) -> None:
    write_candidates(tmp_path, sweep.cells)
    found = Candidates.model_validate_json((tmp_path / CANDIDATES).read_bytes())
    assert [plan.factors for plan in found.plans] == [cell.row.factors for cell in sweep.cells]
    for plan, cell in zip(found.plans, sweep.cells, strict=True):
        assert len(plan.charges) == (2 if cell.row.method == "fin" else 1)
        for charges in plan.charges:
            assert charges.epsilon == pytest.approx(cell.row.epsilon_target, rel=2e-3)
            assert charges.epsilon <= cell.row.epsilon_target
    seeds = [plan for plan, cell in zip(found.plans, sweep.cells, strict=True) if cell.row.seed == 1]
    assert [plan.charges for plan in seeds] == [
        plan.charges for plan, cell in zip(found.plans, sweep.cells, strict=True) if cell.row.seed == 0
    ]


def test_a_plan_without_data_is_the_one_that_the_real_sites_get(small, tmp_path) -> None:
    """The guarantee stands on plans made beforehand: the records must not change them."""
    config = freeze(compose_config([*small, "method=fin"]), tmp_path / "run")
    federation = federation_of(config, simulate(config).members)
    real = {site.name: plan_for(federation, site) for site in federation.sites}
    beforehand = {site: charges for charges in planned(config) for site in charges.sites}
    assert set(beforehand) == set(real)
    for site, plan in real.items():
        assert [m.noise_multiplier for m in plan.mechanisms] == [
            m.noise_multiplier for m in beforehand[site].mechanisms
        ]
        assert [m.steps for m in plan.mechanisms] == [m.steps for m in beforehand[site].mechanisms]


DRAWN = (*TINY, "privacy.epsilon=1,8", "seed=0,1", "sweep.tuning=repeat_select", "launcher.workers=1")


def test_a_sweep_that_draws_nothing_ends_well_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(draws, "draw_repetitions", lambda mean, shape: 0)
    folder = tmp_path / "sweep"
    poisson = ("sweep.repeat_select.mean=1", "sweep.repeat_select.shape=inf")
    assert sweep_command([*DRAWN, *poisson, f"sweep.dir={folder}"], as_json=True) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["finished"] == 0
    assert "nothing is released" in (folder / "sweep.html").read_text(encoding="utf-8")
    assert sweep_command([f"resume={folder}"], as_json=True) == 0


@pytest.mark.slow
def test_drawn_cells_really_run_and_the_best_carries_the_selections_figure(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert sweep_command([*DRAWN, "sweep.repeat_select.mean=1.5", f"sweep.dir={folder}"], as_json=True) == 0
    results = read_results(folder)
    price = price_of(results)
    assert price.repeat_select_holds
    (cell,) = chosen(results)
    report = json.loads((folder / CELLS / cell.id / "epsilon_report.json").read_text(encoding="utf-8"))
    assert report["tuning"]["epsilon"] == price.carried > price.single
    assert report["federation"]["epsilon"] == cell.epsilon_spent
