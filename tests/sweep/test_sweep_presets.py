"""Each preset is a sweep that can run: its cells prepare, its page finds its axes, it takes other data."""

from __future__ import annotations

from collections import Counter

import pytest

from secure_fed.config import config_dir
from secure_fed.engines.runner import federation_of, prepare
from secure_fed.engines.simulated_sites import made_up_members
from secure_fed.federation.plan import plan_for
from secure_fed.sweep.cells import Sweep, read_sweep
from secure_fed.sweep.record import GRID

COUNTS = {
    "privacy_utility": {GRID: 72, "non_private": 18, "single_site": 12},
    "clipping": {GRID: 135},
    "budget_split": {GRID: 36, "non_private": 3, "zero_fill": 9},
    "sites": {GRID: 54, "non_private": 18},
    "missingness": {GRID: 36, "non_private": 36},
    "trust": {GRID: 24},
}
_READ: dict[str, Sweep] = {}


def preset(name: str) -> Sweep:
    if name not in _READ:
        _READ[name] = read_sweep([f"sweep={name}"])
    return _READ[name]


def test_the_presets_are_those_that_are_shipped_and_privacy_utility_is_the_default() -> None:
    assert sorted(path.stem for path in (config_dir() / "sweep").glob("*.yaml")) == sorted(COUNTS)
    default = read_sweep(["seed=0"])
    assert (default.config.name, default.launcher.name) == ("privacy_utility", "processes")


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_has_so_many_cells_of_each_kind_and_no_two_alike(name: str) -> None:
    cells = preset(name).cells
    assert Counter(cell.row.kind for cell in cells) == COUNTS[name]
    assert len({cell.row.id for cell in cells}) == len(cells)
    assert preset(name).config.name == name


@pytest.mark.parametrize("name", COUNTS)
def test_every_cell_of_a_preset_makes_a_federation_with_masks_and_plans(name: str) -> None:
    planned = set()
    for cell in preset(name).cells:
        federation = federation_of(cell.config, made_up_members(cell.config))
        for site in {site.owned: site for site in federation.sites}.values():
            plan = plan_for(federation, site)
            assert (plan is None) == (cell.row.privacy == "off")
            assert plan is None or 0 < plan.epsilon <= cell.config.privacy.epsilon
            planned.add(cell.row.kind)
    assert planned == set(COUNTS[name])


@pytest.mark.parametrize("name", COUNTS)
def test_the_first_cell_of_each_kind_prepares_with_its_data(name: str) -> None:
    smaller = () if name == "sites" else ("data.patients=400",)
    cells = read_sweep([f"sweep={name}", "seed=0", *smaller]).cells
    for cell in {cell.row.kind: cell for cell in cells}.values():
        prepared = prepare(cell.config)
        assert len(prepared.simulated.members) == cell.config.federation.members
        assert len(prepared.plans) == len(prepared.simulated.members)


@pytest.mark.parametrize("name", COUNTS)
def test_the_page_of_a_preset_shows_axes_that_it_has_and_references_repeat_along_them(name: str) -> None:
    manifest = preset(name).manifest
    axes = {axis.name for axis in manifest.axes}
    assert {manifest.page.x, manifest.page.series, manifest.page.panels} - {None} <= axes
    for cell in preset(name).cells:
        assert set(cell.row.factors) <= axes
    if manifest.page.log_x:
        values = next(axis.values for axis in manifest.axes if axis.name == manifest.page.x)
        assert all(isinstance(value, int | float) and value > 0 for value in values)


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_takes_other_data(name: str, tmp_path) -> None:
    sites = ("~data.patients", "~sweep.references.non_private", "sweep.page.panels=null") if name == "sites" else ()
    sweep = read_sweep([f"sweep={name}", "experiment=physionet2012", f"data.root={tmp_path}", "seed=0", *sites])
    assert sweep.manifest.data == "physionet2012"
    assert sweep.manifest.tuning == "composed"


def test_a_single_site_holds_both_modalities_sends_one_update_and_has_the_same_epsilons() -> None:
    cells = [cell for cell in preset("privacy_utility").cells if cell.row.kind == "single_site"]
    assert sorted({cell.row.epsilon_target for cell in cells}) == [0.5, 1, 3, 8]
    for cell in cells:
        members = made_up_members(cell.config)
        assert [(site.name, site.owned) for site in members] == [("site01", frozenset({"image", "text"}))]
        assert cell.row.secagg == "off"


def test_non_private_references_differ_from_the_grid_in_privacy_alone() -> None:
    for cell in preset("privacy_utility").cells:
        if cell.row.kind == "non_private":
            other = next(
                twin
                for twin in preset("privacy_utility").cells
                if twin.row.kind == GRID and cell.row.factors.items() <= twin.row.factors.items()
            )
            private = {"privacy": other.config.privacy}
            assert cell.config.model_copy(update=private) == other.config


@pytest.mark.parametrize("launcher", ["processes", "ray"])
def test_a_launcher_is_chosen_like_any_group(launcher: str) -> None:
    chosen = read_sweep(["sweep=trust", f"launcher={launcher}", "launcher.workers=3", "seed=0"]).launcher
    assert (chosen.name, chosen.workers) == (launcher, 3)
