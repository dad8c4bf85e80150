"""Each preset is a sweep that can run: its cells prepare, its page finds its axes, it takes other data."""

from __future__ import annotations

from collections import Counter

import pytest
import yaml

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
    # These are the studies of the results page, read with one seed alone, and `methods` with its least epsilon.
    "methods": {GRID: 26, "non_private": 26},
    "link": {GRID: 30, "non_private": 30},
    "paired_sites": {GRID: 27, "non_private": 27},
    "icu": {GRID: 33, "non_private": 33},
    "fin_ablation": {GRID: 22, "non_private": 22, "zero_fill": 1, "zero_fill_non_private": 1},
}
SEEDS = {"methods": 5, "link": 3, "paired_sites": 3, "icu": 4, "fin_ablation": 3}
"""How many seeds the studies have."""
_READ: dict[str, Sweep] = {}


def preset(name: str) -> Sweep:
    if name not in _READ:
        # The folder only has to be there, as no cell is run.
        own = {"icu": [f"data.root={config_dir()}"], "methods": ["privacy.epsilon=1"]}.get(name, [])
        _READ[name] = read_sweep([f"sweep={name}", *own, *(["seed=0"] if name in SEEDS else [])])
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
            # With method=drop the sites that lack a modality take no part.
            assert plan is None or 0 < plan.epsilon <= cell.config.privacy.epsilon or not plan.phases
            assert plan is None or plan.phases or cell.row.method == "drop"
            planned.add(cell.row.kind)
    assert planned == set(COUNTS[name])


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "icu"])  # whose data are real, and not here
def test_the_first_cell_of_each_kind_prepares_with_its_data(name: str) -> None:
    smaller = () if name == "sites" else ("data.patients=400",)
    methods = ("method=car_mfl,zero_fill",) if name == "methods" else ()
    cells = read_sweep([f"sweep={name}", "seed=0", *smaller, *methods]).cells
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
    no_reference = ("~sweep.references.non_private", "sweep.page.panels=null")
    others = {
        "sites": ("~data.patients", *no_reference),
        "paired_sites": ("~data.patients", *no_reference),
        "link": ("~data.link", "~sweep.references.non_private", "sweep.page.x=privacy.epsilon"),
        "methods": ("method=zero_fill,fin",),  # the generative one writes reports
        "icu": ("method=zero_fill,fin",),  # whose data they are; two methods say as much as all
    }.get(name, ())
    sweep = read_sweep([f"sweep={name}", "experiment=physionet2012", f"data.root={tmp_path}", "seed=0", *others])
    assert sweep.manifest.data == "physionet2012"
    assert sweep.manifest.tuning == "composed"


def test_a_single_site_holds_both_modalities_sends_one_update_and_has_the_same_epsilons() -> None:
    cells = [cell for cell in preset("privacy_utility").cells if cell.row.kind == "single_site"]
    assert sorted({cell.row.epsilon_target for cell in cells}) == [0.5, 1, 3, 8]
    for cell in cells:
        members = made_up_members(cell.config)
        assert [(site.name, site.owned) for site in members] == [("site01", frozenset({"image", "text"}))]
        assert cell.row.secagg == "off"


@pytest.mark.parametrize("name", SEEDS)
def test_the_studies_of_the_results_page_have_seeds_that_no_default_was_chosen_on(name: str) -> None:
    tree = yaml.safe_load((config_dir() / "sweep" / f"{name}.yaml").read_text(encoding="utf-8"))
    seeds = {int(seed) for seed in tree["axes"]["seed"].split(",")}
    assert len(seeds) == SEEDS[name]
    assert not seeds & {*range(4), *range(100, 104)}


def test_every_method_of_the_methods_preset_has_the_same_patients_at_its_sites() -> None:
    split = {cell.config.federation.public_fraction for cell in preset("methods").cells}
    assert split == {0.1}
    every = {path.stem for path in (config_dir() / "method").glob("*.yaml")} - {"generative_paper"}
    assert {cell.row.factors["method"] for cell in preset("methods").cells} == every
    assert {cell.row.factors["method"] for cell in preset("icu").cells} == every - {"generative", "fin_paper"}


def test_a_variant_of_the_ablation_changes_what_its_name_says_and_nothing_else() -> None:
    cells = {
        str(cell.row.factors["variant"]): cell.config for cell in preset("fin_ablation").cells if cell.row.kind == GRID
    }
    for name, config in cells.items():
        base = max((other for other in cells if name.startswith(f"{other}_")), key=len, default=None)
        if base is None:
            continue
        dumps = [found.model_dump(mode="json", include={"method", "model"}) for found in (cells[base], config)]
        before, after = ({**dump["method"], **dump["model"]["translator"]} for dump in dumps)
        changed = {key for key in before if before[key] != after[key]}
        word = name.removeprefix(f"{base}_").split("_")[0]
        known = {"width": {"width", "feed_forward"}, "memory": {"memory_tokens"}, "normalised": {"normalise_output"}}
        known |= {"cosine": {"loss"}, "mse": {"loss"}, "logits": {"loss"}}
        known |= {"every": {"schedule"}, "share": {"translator_share"}, "inputs": {"source"}}
        known |= {"dropout": {"train_with_modality_dropout"}, "refit": {"refit_share"}}
        assert changed == known.get(word, {word})


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
