"""Sites of different sets: who holds what follows from the configuration, and no patient is on two sides."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from radiology_trees import films, write_chexpert, write_mimic_cxr, write_open_i_csv, write_open_i_xml

from secure_fed.config import compose_config, freeze
from secure_fed.data import CompositeConfig, SyntheticCxrConfig, layout_of, load, schema_of
from secure_fed.data.config import files_of
from secure_fed.data.images import LazyImages
from secure_fed.data.partition import SitesOf, ownership
from secure_fed.engines.simulated_sites import made_up_members, simulate
from secure_fed.errors import ConfigError, DataError

FILM, BOTH = frozenset({"image"}), frozenset({"image", "text"})
STAND_IN = {"name": "synthetic_cxr", "patients": 40, "image_size": 32}
SMALL = (
    "experiment=fin_heterogeneous",
    *(f"data.{part}.stand_in.patients=120" for part in ("parts.open_i", "parts.chexpert", "holdout")),
    *(f"data.{part}.stand_in.image_size=32" for part in ("parts.open_i", "parts.chexpert", "holdout")),
)


def composite(**parts):
    return CompositeConfig.model_validate({"parts": parts, "holdout": {"data": {**STAND_IN, "prevalence_shift": 0.2}}})


def two_parts():
    return composite(a={"data": STAND_IN, "sites": 2}, b={"data": STAND_IN, "sites": 3, "modalities": ["image"]})


def config_of(tmp_path, *overrides):
    return freeze(compose_config([*SMALL, *overrides]), tmp_path / "run")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """A small tree of each set, and broken ones."""
    at, source = tmp_path_factory.mktemp("trees"), films(patients=6)
    found = {
        "parts.open_i": write_open_i_csv(source, at / "open_i"),
        "parts.chexpert": write_chexpert(source, at / "chexpert"),
        "holdout": write_mimic_cxr(source, at / "mimic"),
        "xml": write_open_i_xml(source, at / "xml"),
        "unsplit": write_mimic_cxr(source, at / "unsplit"),
        "bare": write_chexpert(source, at / "bare"),
        "empty": at / "empty",
    }
    found["empty"].mkdir()
    next(found["unsplit"].glob("*-split.csv*")).unlink()
    next(found["bare"].rglob("*.jpg")).unlink()
    return found


def test_parts_follow_one_another_and_share_no_patient():
    loaded = load(two_parts(), 3)
    records = loaded.records
    assert loaded.layout == (SitesOf("a", 2, BOTH), SitesOf("b", 3, FILM)) == layout_of(two_parts())
    of_a = records.groups == "a"
    assert 0 < of_a.sum() < len(records)
    assert of_a.argmin() == of_a.sum()  # all of a, then all of b
    assert {unit.partition("/")[0] for unit in records.unit_ids} == {"a", "b"}
    assert {unit.partition("/")[0] for unit in loaded.holdout.unit_ids} == {"holdout"}
    # The same configuration twice: drawn apart nevertheless, and alike each time.
    first, second = (records.values["image"][np.flatnonzero(mask)[0]] for mask in (of_a, ~of_a))
    assert not np.array_equal(first, second)
    again = load(two_parts(), 3).records
    assert np.array_equal(again.values["image"], records.values["image"])


def test_a_stand_in_is_another_population():
    sick = load(SyntheticCxrConfig(patients=400, image_size=32, prevalence_shift=0.5, exposure=-0.1), 0).records
    usual = load(SyntheticCxrConfig(patients=400, image_size=32), 0).records
    assert np.all(sick.labels[:, 1:].mean(axis=0) > usual.labels[:, 1:].mean(axis=0))
    assert sick.values["image"].mean() == pytest.approx(usual.values["image"].mean() - 0.1, abs=0.03)


def test_sets_of_different_shape_are_refused_before_anything_is_read():
    wrong = composite(a={"data": {**STAND_IN, "image_size": 48}, "sites": 2})
    with pytest.raises(
        ConfigError, match=r"data.parts.a has image \[1, 48, 48\].*data.holdout has image \[1, 32, 32\]"
    ):
        schema_of(wrong)


def test_a_part_that_owns_an_unknown_modality_is_refused():
    with pytest.raises(ConfigError, match="unknown modality 'film'"):
        layout_of(composite(a={"data": STAND_IN, "sites": 2, "modalities": ["film"]}))


@pytest.mark.parametrize("given", [{"open_i"}, {"chexpert", "holdout"}])
def test_real_and_made_up_patients_are_never_mixed(tmp_path, given):
    keys = {"open_i": "data.parts.open_i", "chexpert": "data.parts.chexpert", "holdout": "data.holdout"}
    roots = [f"{keys[name]}.data.root={tmp_path}" for name in given]
    with pytest.raises(ConfigError, match="give every root, or none for the stand-ins"):
        config_of(tmp_path, *roots)


def test_a_folder_that_would_put_a_patient_on_two_sides_is_refused():
    part = {"data": {"name": "mimic_cxr", "root": "/set"}, "sites": 3}
    with pytest.raises(ValueError, match=r"data.parts.a and data.holdout both read /set"):
        CompositeConfig.model_validate({"parts": {"a": part}, "holdout": {"data": part["data"]}})
    official = {**part["data"], "split": "official"}
    CompositeConfig.model_validate({"parts": {"a": {**part, "data": official}}, "holdout": {"data": official}})
    with pytest.raises(ValueError, match=r"data.parts.a and data.parts.b both read /set"):
        CompositeConfig.model_validate({"parts": {"a": part, "b": part}, "holdout": {"data": STAND_IN}})


@pytest.mark.parametrize("way", ["through a link", "with dots", "by its parent"])
def test_one_folder_under_two_names_is_the_same_folder(tmp_path, way):
    folder = tmp_path / "archives" / "CheXpert-v1.0-small"
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    ways = {
        "through a link": tmp_path / "link",
        "with dots": folder / ".." / folder.name,
        "by its parent": folder.parent,
    }
    parts = {"a": {"data": {"name": "chexpert", "root": str(folder)}, "sites": 3}}
    for name, refused in (("chexpert", True), ("open_i", way != "by its parent")):
        tree = {"parts": parts, "holdout": {"data": {"name": name, "root": str(ways[way])}}}
        if refused:
            with pytest.raises(ValueError, match=r"data.parts.a and data.holdout both read"):
                CompositeConfig.model_validate(tree)
        else:
            CompositeConfig.model_validate(tree)


def test_a_wrong_value_of_a_part_is_named_as_it_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"^data.parts.open_i.data.image_size=5: input should be"):
        config_of(tmp_path, "data.parts.open_i.data.image_size=5")


@pytest.mark.parametrize(
    ("key", "overrides", "said"),
    [
        ("parts.open_i", ["root={empty}"], "{key}.root={empty} holds neither"),
        ("parts.chexpert", ["root={empty}"], "{key}.root={empty} holds no train.csv"),
        ("holdout", ["root={empty}"], "{key}.root={empty} holds no mimic-cxr-2.0.0-metadata.csv"),
        ("holdout", ["split=official", "root={unsplit}"], "fetch it, or give {key}.split=patient"),
        ("parts.open_i", ["views=[pa]"], "{key}.views=['pa'], {key}.split=patient and {key}.max_records=None"),
        (
            "holdout",
            ["reports={empty}"],
            "({key}.reports of mimic_cxr) or other sections, or {key}.sections=[] to use the films alone",
        ),
        ("parts.open_i", ["views=[frontal]", "root={xml}"], "as in {key}.views=[frontal,unknown]"),
        ("parts.chexpert", ["root={bare}"], "{key}.missing_files=skip"),
        ("parts.open_i", ["views=[pa,pa]"], "{key}.views=['pa', 'pa']: one is named twice"),
    ],
)
def test_what_is_wrong_with_a_part_is_said_with_the_key_that_sets_it(trees, tmp_path, key, overrides, said):
    roots = [f"data.{place}.data.root={trees[place]}" for place in ("parts.open_i", "parts.chexpert", "holdout")]
    changed = [f"data.{key}.data.{one.format_map(trees)}" for one in overrides]
    with pytest.raises((ConfigError, DataError), match=re.escape(said.format(key=f"data.{key}.data", **trees))):
        load(config_of(tmp_path, *roots, *changed).data, 0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"name": "physionet2012", "root": "/no/such"}, "data.parts.a.data.root should be the folder"),
        (
            {
                "name": "manifest",
                "path": "/no.csv",
                "modalities": {"t": {"kind": "text", "column": "t"}},
                "labels": ["l"],
            },
            "data.parts.a.data.path should be a CSV file",
        ),
    ],
)
def test_every_reader_of_a_part_knows_its_key(data, said):
    part = {"data": data, "sites": 3}
    tree = {"parts": {"a": part}, "holdout": {"data": {**data, "root" if "root" in data else "path": "/none/either"}}}
    with pytest.raises(DataError, match=re.escape(said)):
        load(CompositeConfig.model_validate(tree), 0)


def test_every_folder_that_is_read_is_known_by_its_key():
    assert files_of(two_parts()) == {}
    one = composite(a={"data": {"name": "open_i", "root": "/set"}, "sites": 3})
    assert files_of(one) == {"data.parts.a.data.root": Path("/set")}


# -- ownership and sites -----------------------------------------------------------------------------


def test_ownership_is_what_the_parts_say():
    layout = (SitesOf("a", 1, BOTH), SitesOf("b", 2, FILM))
    assert ownership("data", ("image", "text"), 3, layout) == [BOTH, FILM, FILM]
    with pytest.raises(ConfigError, match=r"1 of a \+ 2 of b sites, but federation.sites=4"):
        ownership("data", ("image", "text"), 4, layout)
    with pytest.raises(ConfigError, match=r"give federation.ownership=data"):
        ownership("2:0:1", ("image", "text"), 3, layout)
    with pytest.raises(ConfigError, match="only data=composite says so"):
        ownership("data", ("image", "text"), 3)


def test_the_preset_has_two_sites_with_both_modalities_and_eight_with_films(tmp_path):
    config = config_of(tmp_path)
    members = made_up_members(config)
    assert [member.owned for member in members] == [BOTH] * 2 + [FILM] * 8
    simulated = simulate(config)
    assert [(member.name, member.owned) for member in simulated.members] == [(m.name, m.owned) for m in members]
    parts = {name: {unit.partition("/")[0] for unit in records.unit_ids} for name, records in simulated.records.items()}
    assert [parts[member.name] for member in members] == [{"open_i"}] * 2 + [{"chexpert"}] * 8
    assert {unit.partition("/")[0] for unit in simulated.holdout.unit_ids} == {"holdout"}
    seen: set[str] = set()
    for records in simulated.records.values():
        units = set(records.unit_ids.tolist())
        assert not units & seen
        seen |= units
    assert all(not simulated.records[m.name].presence["text"].any() for m in members[2:])


def test_members_are_told_without_reading_data(tmp_path):
    roots = [
        f"data.{key}.data.root={tmp_path / 'nothing'}-{i}"
        for i, key in enumerate(("parts.open_i", "parts.chexpert", "holdout"))
    ]
    config = config_of(tmp_path, *roots)
    assert len(made_up_members(config)) == 10
    with pytest.raises(DataError, match="nothing-0 holds neither"):
        simulate(config)


def test_one_site_alone_keeps_its_own_records(tmp_path):
    config = config_of(tmp_path, "federation.alone=site03", "secagg=off")
    assert list(simulate(config).records) == ["site03"]
    assert set(simulate(config).records["site03"].groups.tolist()) == {"chexpert"}


def test_real_trees_take_the_place_of_the_stand_ins_and_stay_in_their_files(tmp_path):
    source = films(patients=40)
    roots = {
        "parts.open_i": write_open_i_csv(source, tmp_path / "open_i"),
        "parts.chexpert": write_chexpert(source, tmp_path / "chexpert"),
        "holdout": write_mimic_cxr(source, tmp_path / "mimic"),
    }
    overrides = [f"data.{key}.data.root={root}" for key, root in roots.items()]
    config = config_of(tmp_path, *overrides, *(f"data.{key}.data.image_size=32" for key in roots))
    simulated = simulate(config)
    assert isinstance(simulated.records["site01"].values["image"], LazyImages)
    assert simulated.records["site01"].presence["text"].all()
    assert not simulated.records["site05"].presence["text"].any()
    assert len(simulated.holdout) == len(source)
    assert simulated.notes["chexpert: studies of splits that are not used"] > 0


def test_the_official_split_of_a_set_is_the_hold_out_of_a_run(tmp_path):
    root = write_mimic_cxr(films(patients=60), tmp_path / "mimic")
    overrides = ["data=mimic_cxr", f"data.root={root}", "data.image_size=32", "data.split=official"]
    config = freeze(
        compose_config([*overrides, "federation.sites=4", "federation.ownership='1:0:3'"]), tmp_path / "run"
    )
    simulated = simulate(config)
    assert all(unit.endswith("0") for unit in simulated.holdout.unit_ids)
    assert not any(unit[-1] in "01" for records in simulated.records.values() for unit in records.unit_ids)
