"""Runs on chest film sets in files: train, evaluate, predict; and an unreadable film stays inside its site."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from radiology_trees import films, write_chexpert, write_mimic_cxr

from secure_fed.config import compose_config, freeze
from secure_fed.data import load, write_manifest
from secure_fed.engines.runner import start
from secure_fed.errors import DataError, SecureFedError
from secure_fed.federation.members import sites_of
from secure_fed.identity import Roster
from secure_fed.prediction import predict_csv

QUICK = (
    "federation.sites=4",
    "federation.ownership='1:0:3'",
    "federation.rounds=2",
    "federation.corrupt=1",
    "method=zero_fill",
    "method.classify.steps=1",
    "method.classify.learning_rate=0.5",
    "data=mimic_cxr",
    "data.image_size=32",
    "data.split=official",
)


@pytest.fixture
def tree(tmp_path):
    return write_mimic_cxr(films(patients=80), tmp_path / "mimic")


def config_of(tmp_path, tree, *overrides):
    return freeze(compose_config([*QUICK, f"data.root={tree}", *overrides]), tmp_path / "run")


@pytest.mark.parametrize("image", ["filterbank", "small_cnn"])
def test_a_run_on_films_in_files_gives_what_the_same_films_in_memory_give(tmp_path, tree, image, monkeypatch):
    from secure_fed.engines import simulated_sites

    scores = []
    for name in ("files", "memory"):
        overrides = (f"model/image={image}", "insecure_reproducible=true", f"name={name}")
        config = config_of(tmp_path, tree, *overrides).model_copy(update={"run_dir": str(tmp_path / f"run-{name}")})
        if name == "memory":
            monkeypatch.setattr(simulated_sites, "load", _in_memory)
        simulated_sites._simulate.cache_clear()
        simulated_sites._loaded.cache_clear()
        summary = json.loads((start(config) / "summary.json").read_text())
        scores.append(summary["auroc_macro"])
    simulated_sites._simulate.cache_clear()
    simulated_sites._loaded.cache_clear()
    assert scores[0] == scores[1]


def test_a_run_on_a_film_set_predicts_for_a_manifest(tmp_path, tree):
    config = config_of(tmp_path, tree)
    run = start(config)
    new = films(patients=3, seed=9)
    write_manifest(new.without({"text"}), tmp_path / "new")
    rows = list(csv.reader(io.StringIO(predict_csv(run, tmp_path / "new" / "manifest.csv"))))
    assert rows[0] == ["id", *new.schema.labels]
    assert len(rows) == len(new) + 1


@pytest.mark.parametrize("image", ["filterbank", "small_cnn"])
def test_an_unreadable_film_stops_its_site_before_a_charge_and_its_name_does_not_travel(tmp_path, tree, image):
    config = config_of(tmp_path, tree, f"model/image={image}")
    broken = [file for file in sorted(tree.rglob("*.jpg")) if file.parts[-3][-1] not in "01"]
    for file in broken:
        file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(SecureFedError) as stopped:
        start(config)
    run = tmp_path / "run"
    for site in (run / "sites").iterdir():
        assert any(file.name in (site / "private" / "site.log").read_text() for file in broken)
        assert '"reserve' not in (site / "ledger.jsonl").read_text()
    shared = [file for file in run.rglob("*") if file.is_file() and "private" not in file.parts]
    for text in (str(stopped.value), *(file.read_bytes().decode("latin-1") for file in shared)):
        assert not any(file.name in text or file.parts[-3] in text for file in broken)


def test_an_unreadable_film_of_the_hold_out_is_named_before_a_round(tmp_path, tree):
    config = config_of(tmp_path, tree, "model/image=small_cnn")
    held_out = next(file for file in sorted(tree.rglob("*.jpg")) if file.parts[-3][-1] == "0")
    held_out.write_bytes(held_out.read_bytes()[:200])
    with pytest.raises(DataError, match=held_out.name):
        start(config)
    assert not list((tmp_path / "run" / "sites").glob("*/ledger.jsonl"))


def test_the_heterogeneous_preset_trains_on_one_population_and_is_scored_on_another(tmp_path):
    made = ("parts.open_i", "parts.chexpert", "holdout")
    overrides = [
        "experiment=fin_heterogeneous",
        "federation.rounds=3",
        "method.classify.steps=1",
        "method.classify.learning_rate=0.5",
        *(f"data.{key}.stand_in.{size}" for key in made for size in ("patients=120", "image_size=32")),
    ]
    config = freeze(compose_config(overrides), tmp_path / "run")
    run = start(config)
    owned = [sorted(site.owned) for site in sites_of(Roster.load(run / "roster.json"))]
    assert owned == [["image", "text"]] * 2 + [["image"]] * 8
    summary = json.loads((run / "summary.json").read_text())
    assert {key.partition(":")[0] for key in summary["data_notes"]} == {"open_i", "chexpert", "holdout"}
    assert 0.0 < summary["auroc_macro_missing"]["text"] < 1.0


def test_a_set_of_films_alone_is_refused_before_anybody_is_charged_for_reports_that_nobody_has(tmp_path):
    root = tmp_path / "films"
    write_chexpert(films(patients=60), root)
    config = freeze(compose_config(["data=chexpert", f"data.root={root}"]), tmp_path / "run")
    with pytest.raises(DataError, match=r"no record of the training side has text.*data=composite"):
        start(config)
    assert not list((tmp_path / "run").glob("sites/*/ledger.jsonl"))


def _in_memory(config, seed):
    loaded = load(config, seed)
    sides = [
        replace(r, values={**r.values, "image": np.asarray(r.values["image"])})
        for r in (loaded.records, loaded.holdout)
    ]
    return replace(loaded, records=sides[0], holdout=sides[1])
