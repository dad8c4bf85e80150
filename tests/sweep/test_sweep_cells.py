"""From arguments to cells: which there are, when two are one, and what is found wrong before anything runs."""

from __future__ import annotations

import re
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from secure_fed.config import compose_config, freeze
from secure_fed.errors import ConfigError
from secure_fed.federation.config import RunConfig
from secure_fed.sweep import identity
from secure_fed.sweep.cells import Cell, Sweep, cell_of, code_version, described, read_sweep, repeated
from secure_fed.sweep.composing import Composer
from secure_fed.sweep.identity import cell_id, what_counts
from secure_fed.sweep.record import GRID

FEW = ("privacy.epsilon=1,8", "method=zero_fill,fin", 'federation.ownership="5:1:4"', "seed=0,1")


@pytest.fixture(scope="module")
def few() -> Sweep:
    return read_sweep(FEW)


def of_kind(sweep: Sweep, kind: str) -> list[Cell]:
    return [cell for cell in sweep.cells if cell.row.kind == kind]


@cache
def configured(*overrides: str) -> RunConfig:
    return freeze(compose_config(overrides), Path("run"))


# -- what there is ---------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_once_and_references_come_along_their_own_axes(few) -> None:
    grid = [(c.row.factors["privacy.epsilon"], c.row.method, c.row.seed) for c in of_kind(few, GRID)]
    assert grid == [(e, m, s) for e in (1, 8) for m in ("zero_fill", "fin") for s in (0, 1)]
    assert [(c.row.method, c.row.seed) for c in of_kind(few, "non_private")] == [
        (m, s) for m in ("zero_fill", "fin") for s in (0, 1)
    ]
    assert [c.row.factors for c in of_kind(few, "single_site")] == [
        {"privacy.epsilon": e, "seed": s} for e in (1, 8) for s in (0, 1)
    ]
    assert len(few.cells) == 8 + 4 + 4


def test_a_cells_row_says_what_its_configuration_says(few) -> None:
    for cell in few.cells:
        config, row = cell.config, cell.row
        assert (row.method, row.seed, row.privacy, row.secagg) == (
            config.method.name,
            config.seed,
            config.privacy.mode,
            config.secagg.mode,
        )
        private = config.privacy.mode == "dp"
        assert (row.epsilon_target, row.delta) == ((config.privacy.epsilon, 1e-5) if private else (None, None))
        assert row.ownership == ("all" if row.kind == "single_site" else "5:1:4")
        assert config.run_dir == ""


def test_a_cells_overrides_compose_to_its_configuration(few) -> None:
    for cell in few.cells[:: len(few.cells) // 5]:
        assert configured(*cell.overrides).model_copy(update={"run_dir": ""}) == cell.config


def test_the_manifest_holds_what_the_sweep_is(few) -> None:
    manifest = few.manifest
    assert manifest.cells == tuple(cell.row for cell in few.cells)
    assert manifest.code == code_version()
    assert manifest.arguments == FEW
    assert {axis.name: axis.values for axis in manifest.axes} == {
        "privacy.epsilon": (1, 8),
        "method": ("zero_fill", "fin"),
        "federation.ownership": ("5:1:4",),
        "seed": (0, 1),
    }
    assert (manifest.tuning, manifest.data, manifest.references) == (
        "public",
        "synthetic_cxr",
        ("non_private", "single_site"),
    )


def test_the_arguments_of_the_manifest_make_the_same_cells_again_from_anywhere(tmp_path, monkeypatch) -> None:
    (tmp_path / "o'set a").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ["experiment=physionet2012", 'data.root="o\'set a"', "method=fin", "seed=0", "sweep.dir=here"]
    first = read_sweep([*given, "launcher.workers=1"])
    assert first.manifest.tuning == "composed", "real data"
    monkeypatch.chdir("/")
    again = read_sweep(first.manifest.arguments)
    assert again.manifest.cells == first.manifest.cells
    assert not [item for item in again.manifest.arguments if item.startswith(("sweep.dir", "launcher"))]


def test_several_data_folders_as_an_axis_all_stay_in_the_manifest(tmp_path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    roots = ",".join(f"'{folder}'" for folder in folders)
    alone = ["~sweep.references.non_private", "~sweep.references.single_site", "method=fin", "privacy.epsilon=1"]
    first = read_sweep(["experiment=physionet2012", f"data.root={roots}", "seed=0", *alone])
    assert {cell.config.data.root for cell in first.cells} == set(folders)
    assert read_sweep(first.manifest.arguments).manifest.cells == first.manifest.cells


def test_a_cell_can_be_made_from_its_values(few) -> None:
    for cell in few.cells:
        assert cell_of(few, cell.row.factors, cell.row.kind) == cell


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"seed": 0}, GRID, ("has the axes privacy.epsilon, method", "values for seed")),
        ({"seed": 0, "privacy.epsilon": 5}, "single_site", ("privacy.epsilon=5 is no value", "1, 8")),
        ({"seed": 0}, "upper_bound", ("upper_bound is no kind", "grid, non_private, single_site")),
    ],
)
def test_a_cell_cannot_be_made_from_values_that_no_axis_has(few, values, kind, words) -> None:
    with pytest.raises(ConfigError) as error:
        cell_of(few, values, kind)
    for word in words:
        assert word in str(error.value)


def test_a_search_has_its_references_and_makes_its_cells_as_it_goes() -> None:
    clip = "privacy.max_grad_norm=tag(log,interval(0.5,8))"
    sweep = read_sweep([*FEW[:-1], "sweep/search=random", "sweep.search.seeds=[3,4]", clip])
    assert {cell.row.kind for cell in sweep.cells} == {"non_private", "single_site"}
    assert sweep.manifest.search_trials == 40
    values = {"privacy.epsilon": 8, "method": "fin", "federation.ownership": "5:1:4", "seed": 4}
    cell = cell_of(sweep, {**values, "privacy.max_grad_norm": 1.5})
    assert (cell.config.privacy.max_grad_norm, cell.row.factors["privacy.max_grad_norm"], cell.row.seed) == (
        1.5,
        1.5,
        4,
    )
    with pytest.raises(ConfigError, match=r"within \[0\.5, 8\]"):
        cell_of(sweep, {**values, "privacy.max_grad_norm": 9.0})


def test_the_candidates_of_repeat_select_come_without_references() -> None:
    sweep = read_sweep([*FEW, "sweep.tuning=repeat_select"])
    assert {cell.row.kind for cell in sweep.cells} == {GRID}
    assert sweep.manifest.references == ()


def test_a_sweeps_own_configuration_is_shown_as_it_can_be_given() -> None:
    text = described(["sweep=trust", "launcher.workers=2", "seed=0"])
    assert "name: trust" in text
    assert "workers: 2" in text


# -- identity --------------------------------------------------------------------------------------------

BASE = ("experiment=small", "method=fin")


@pytest.mark.parametrize(
    "override",
    [
        "run_dir=elsewhere",
        "name=other",
        "engine.timeout_s=5",
        "engine.workers=4",
        "secagg.threads=3",
        "method.classify.unclipped_steps=9",
        "method.translate.unclipped_learning_rate=9",
    ],
)
def test_what_no_result_depends_on_makes_no_other_cell(override) -> None:
    assert cell_id(configured(*BASE, override)) == cell_id(configured(*BASE))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "privacy.epsilon=3",
        "privacy.max_grad_norm=1",
        "+privacy.budget_shares.translate=0.3",
        "method=zero_fill",
        "method.classify.steps=3",
        "federation.rounds=17",
        "federation.ownership='2:2:6'",
        "federation.spare_rounds=0",
        "data.patients=2499",
        "secagg=off",
        "privacy=off",
        "insecure_reproducible=true",
        "evaluation.every=2",
        "training.back_end=ghost",
    ],
)
def test_what_a_result_depends_on_makes_another_cell(override) -> None:
    assert cell_id(configured(*BASE, override)) != cell_id(configured(*BASE))


@pytest.mark.parametrize(
    "override",
    [
        "privacy.epsilon=3",
        "privacy.delta=1e-6",
        "privacy.max_grad_norm=1",
        "privacy.max_noise_ratio=3",
        "+privacy.budget_shares.translate=0.3",
        "method.classify.steps=3",
        "method.translate.learning_rate=3",
    ],
)
def test_without_privacy_what_only_privacy_reads_makes_no_other_cell(override) -> None:
    bare = (*BASE, "privacy=off")
    assert cell_id(configured(*bare, override)) == cell_id(configured(*bare))


@pytest.mark.parametrize(
    "override", ["privacy.sample_rate=0.5", "privacy.unit=patient", "method.classify.unclipped_steps=9"]
)
def test_without_privacy_what_plain_training_reads_makes_another_cell(override) -> None:
    bare = (*BASE, "privacy=off")
    assert cell_id(configured(*bare, override)) != cell_id(configured(*bare))


def test_a_repetition_and_another_version_of_the_code_are_other_cells(few, monkeypatch) -> None:
    cell = few.cells[0]
    again = repeated(cell, 1)
    assert (again.config, again.overrides, again.row.repeat) == (cell.config, cell.overrides, 1)
    assert again.row.id != cell.row.id
    assert repeated(again, 0) == cell
    monkeypatch.setattr(identity, "code_version", lambda: "0.0.0+0123456789abcdef")
    assert cell_id(cell.config) != cell.row.id


def test_the_code_version_names_the_release_and_the_digest_of_its_sources(monkeypatch, tmp_path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{16}", code_version())
    (tmp_path / "config.yaml").write_text("other: configs\n")
    monkeypatch.setattr(identity, "config_dir", lambda: tmp_path)
    assert code_version.__wrapped__() != code_version(), "configuration files count as well"


def test_an_identity_is_16_hex_digits_of_canonical_json_without_what_a_person_would_call_a_place() -> None:
    assert re.fullmatch("[0-9a-f]{16}", cell_id(configured(*BASE)))
    assert not {"run_dir", "name", "engine"} & set(what_counts(configured(*BASE)))


# -- composing -------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 9),
            "method": st.sampled_from(["fin", "ridge", "zero_fill"]),
            "experiment": st.just("small"),
            "privacy": st.sampled_from(["dp", "'off'"]),
            "privacy.epsilon": st.floats(0.1, 100),
            "federation.ownership": st.sampled_from(["5:1:4", "'2:2:6'", "{image:4,image+text:6}", "all"]),
            "federation.rounds": st.integers(2, 40),
            "training.momentum": st.sampled_from(["0.5", "0.9"]),
            "+secagg.floors": st.just("{fusion:2}"),
            "evaluation": st.just("federated"),
        },
    )
)
def test_composing_once_a_group_gives_what_composing_anew_gives(values: dict[str, object]) -> None:
    overrides = [f"{key}={value}" for key, value in values.items()]
    assert COMPOSER(overrides) == configured(*overrides).model_copy(update={"run_dir": ""})


COMPOSER = Composer()


def test_a_value_that_refers_to_another_is_left_to_hydra() -> None:
    config = COMPOSER(["federation.spare_rounds=${method.classify.steps}", "method.classify.steps=3"])
    assert config.federation.spare_rounds == 3


def test_one_cell_leaves_no_trace_in_the_next() -> None:
    first = COMPOSER(["method=fin", "privacy.epsilon=3", "federation.rounds=5"])
    second = COMPOSER(["method=fin"])
    assert (first.privacy.epsilon, second.privacy.epsilon, second.federation.rounds) == (3.0, 8.0, 30)


def test_a_large_grid_takes_seconds(few) -> None:
    rates = ",".join(str(1 + number / 100) for number in range(100))
    began = time.monotonic()
    sweep = read_sweep([*FEW, f"method.classify.learning_rate={rates}"])
    assert len(sweep.cells) == 8 * 100 + 8
    # About 2 ms a cell where composing takes 90; a busy machine gets ten times that.
    assert time.monotonic() - began < 20


# -- what is found wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["privacy.epsilonn=1,2"], ("unknown key 'privacy.epsilonn'", "did you mean privacy.epsilon")),
        (["privacy.epsilon=0,1"], ("privacy.epsilon=0:", "all with privacy.epsilon=0")),
        (
            ["privacy.epsilon=1e-9,1"],
            ("epsilon=1e-09 at delta=1e-05 cannot be reached", "all with privacy.epsilon=1e-09"),
        ),
        (["method=fin,fil"], ("method=fil is unknown", "known: car_mfl, complete, drop, fin", "all with method=fil")),
        (['federation.ownership="5:1:4","8:0:2"'], ("8:0:2", "floor of 3", "and federation.ownership=8:0:2)")),
        (["federation.sites=20"], ("describes 10 sites", "federation.sites=20")),
        (["federation.ownership={image:5,sound:5}"], ("'sound'", "image, text")),
        (["federation.corrupt=1,9"], ("federation.corrupt=9", "and federation.corrupt=9)")),
        (["privacy.delta=0.2"], ("privacy.delta=0.2", "below 1/N")),
        (["engine=simulation"], ("engine=simulation", "launcher=ray")),
        (["experiment=physionet2012", "data.root=/nowhere"], ("data.root=/nowhere does not exist", "16 of 16 cells")),
        (["experiment=physionet2012"], ("data.root has no value", "data.root=...")),
        (
            ["data=physionet2012", "data.root=/nowhere"],
            ("unknown key 'data.patients'", "experiment=small", "~experiment"),
        ),
        (["~experiment", "data=physionet2012", "data.root=/nowhere"], ("data.root=/nowhere does not exist",)),
        (["strategy=flower", "strategy.target=flwr.serverapp.strategy.Krum"], ("Krum",)),
        (["federation.compliance=true"], ("privacy=off is refused", "~sweep.references.non_private", "single_site")),
        (["privacy=off"], ("same configuration", "privacy.epsilon=1,", "privacy.epsilon=8,", "one value each")),
        (["privacy=off", "privacy.epsilon=1"], ("same configuration", "non_private(", "~sweep.references.non_private")),
        (["privacy.epsilon=1,1.0"], ("same configuration", "one value is named twice")),
        (["sweep.page.x=epsilon"], ("sweep.page.x=epsilon is no axis", "privacy.epsilon, method")),
        (["sweep.confidence=2"], ("sweep.confidence=2", "less than 1")),
        (["sweep.objective=3"], ("sweep.objective=3",)),
        (
            ["sweep.objective=auroc_macr"],
            ("no score of data=synthetic_cxr", "did you mean auroc_macro", "auroc_macro_missing.text"),
        ),
        (["launcher.workers=0"], ("launcher.workers=0",)),
        (["sweep.repeat_select.mean=0.5"], ("sweep.repeat_select.mean=0.5",)),
        (["+sweep.references.mine={overrides:['seed=4'],axes:[seed]}"], ("mine sets seed", "goes along seed")),
        (["+sweep.references.mine={overrides:[],axes:[rounds]}"], ("mine goes along rounds, which is no axis",)),
        (["+sweep.references.grid={overrides:[],axes:[]}"], ("'grid' cannot name a reference",)),
        (["~seed"], ("non_private goes along seed, which is no axis", "~sweep.references.non_private")),
        (["~method"], ("sweep.page.series=method is no axis", "or null")),
    ],
)
def test_what_cannot_work_is_said_before_the_first_cell(arguments, words) -> None:
    keys = {item.partition("=")[0].lstrip("~") for item in arguments}
    with pytest.raises(ConfigError) as error:
        read_sweep([*(item for item in FEW if item.partition("=")[0] not in keys), *arguments])
    for word in words:
        assert word in str(error.value)


def test_a_figure_over_all_cells_needs_one_unit_of_privacy() -> None:
    units = [*FEW, "privacy.unit=record,patient"]
    assert read_sweep(units).manifest.tuning == "public"
    for tuning in ("composed", "repeat_select"):
        with pytest.raises(ConfigError, match="per patient and per record have no common epsilon"):
            read_sweep([*units, "~sweep.references.non_private", f"sweep.tuning={tuning}"])


def test_repeat_select_and_a_search_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.tuning=repeat_select draws.*composed"):
        read_sweep([*FEW[:-1], "sweep.tuning=repeat_select", "sweep/search=tpe"])


def test_every_distinct_cause_is_named_once_with_its_number_of_cells() -> None:
    with pytest.raises(ConfigError) as error:
        read_sweep(["privacy.epsilon=-1,8", *FEW[1:3], "seed=0,-5", "~sweep.references.single_site"])
    first, *lines = str(error.value).splitlines()
    assert first == "8 of 12 cells cannot run:"
    assert [re.sub(r".*\(", "(", line) for line in lines] == [
        "(2 of 12 cells, all with privacy.epsilon=-1 and seed=0)",
        "(2 of 12 cells, all with privacy.epsilon=-1 and seed=-5)",
        "(4 of 12 cells, all with seed=-5)",
    ]


def test_nothing_is_written_by_reading(tmp_path, monkeypatch, few) -> None:
    monkeypatch.chdir(tmp_path)
    read_sweep(FEW)
    assert list(tmp_path.iterdir()) == []
