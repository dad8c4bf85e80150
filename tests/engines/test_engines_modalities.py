"""Three modalities from a manifest of one's own: every method end to end, and predictions with any one missing."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.config import load_config
from secure_fed.data import ManifestConfig, read_manifest
from secure_fed.data.config import ImageColumn, TabularColumns, TextColumn
from secure_fed.data.manifest import write_manifest
from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.engines.runner import prepare
from secure_fed.engines.simulated_sites import simulate
from secure_fed.federation.facts import Federation
from secure_fed.federation.members import sites_of
from secure_fed.identity import Roster
from secure_fed.ledger import verify
from secure_fed.prediction import predict_csv
from secure_fed.server.evaluation import predict
from secure_fed.server.training import load_model

MODALITIES = ("image", "text", "vitals")
OWNERSHIP = "federation.ownership={image+text:2,text+vitals:2,image+text+vitals:3}"
PAIRS = {"image_to_text", "text_to_image", "text_to_vitals", "vitals_to_text", "image_to_vitals", "vitals_to_image"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """220 toy records of 150 patients: each modality shows the label in its own way, and some lack one."""
    folder = tmp_path_factory.mktemp("own data")
    rng = np.random.default_rng(7)
    n = 220
    ill, other = rng.random(n) < 0.4, rng.random(n) < 0.5
    image = rng.random((n, 1, 32, 32), dtype=np.float32) * 0.5
    image[ill, :, 20:28, 4:14] += 0.5
    said = np.where(rng.random(n) < 0.8, ill, ~ill)
    text = np.array(["Small left effusion." if x else "No effusion. The lungs are clear." for x in said], dtype=object)
    vitals = np.clip(rng.normal(0, 0.3, (n, 3)) + 0.5 * np.stack([ill, other, ill], axis=1), -1, 1).astype(np.float32)
    presence = {name: np.ones(n, dtype=bool) for name in MODALITIES}
    presence["vitals"][::9] = False
    presence["image"][4::17] = False
    vitals[::9], image[4::17] = 0, 0
    labels = np.stack([ill, other], axis=1).astype(np.float32)
    labels[::13, 1] = np.nan
    schema = Schema(
        (
            ModalitySpec("image", "image", (1, 32, 32)),
            ModalitySpec("text", "text", ()),
            ModalitySpec("vitals", "tabular", (3,), ("pulse", "pressure", "temperature")),
        ),
        ("effusion", "other"),
    )
    units = np.array([f"p{i % 150:03d}" for i in range(n)])
    records = Records(schema, {"image": image, "text": text, "vitals": vitals}, presence, labels, units, None)
    return write_manifest(records, folder).path


def overrides(manifest: Path) -> list[str]:
    """The data as a person declares it on the command line."""
    ranges = "pulse:[-1,1],pressure:[-1,1],temperature:[-1,1]"
    return [
        "data=manifest",
        f"data.path='{manifest}'",
        "data.modalities={image:{kind:image,column:image,height:32,width:32},text:{kind:text,column:text},"
        f"vitals:{{kind:tabular,columns:{{{ranges}}},observed_indicators:false}}}}",
        "data.labels=[effusion,other]",
        OWNERSHIP,
        "federation.sites=7",
        "federation.rounds=3",
        "method.classify.steps=2",
        "evaluation.every=3",
    ]


@pytest.fixture(scope="module", params=["fin", "ridge", "modality_dropout", "zero_fill"])
def run(request: pytest.FixtureRequest, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / request.param
    arguments = ["run", *overrides(manifest), f"method={request.param}", f"run_dir='{folder}'"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def rewritten(manifest: Path, folder: Path, keep, blank=()) -> Path:
    """The manifest with some columns only, and some cells blanked, beside its images."""
    header, *body = rows(manifest.read_text())
    columns = [i for i, name in enumerate(header) if keep(name)]
    path = manifest.parent / f"{folder.name}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([header[i] for i in columns])
        for row in body:
            writer.writerow(["" if header[i] in blank else row[i] for i in columns])
    return path


COLUMNS = {"image": {"image"}, "text": {"text"}, "vitals": {"pulse", "pressure", "temperature"}}


def test_three_modalities_run_through_every_method(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["auroc_macro_missing"]) == set(MODALITIES)
    assert summary["epsilon_max"] <= summary["epsilon_target"]
    assert verify([run]).ok
    encoders = {f"encoder.{name}" for name in MODALITIES}
    expected = encoders | {"fusion"}
    if summary["method"] in {"fin", "ridge"}:
        expected |= {f"translator.{pair}" for pair in PAIRS}
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        kind = "translator" if summary["method"] == "fin" else "statistic"
        pairs = PAIRS if kind == "translator" else {"image_to_text", "text_to_vitals", "image_to_vitals"}
        assert metrics[-1]["contributors"].keys() == {f"{kind}.{pair}" for pair in pairs}
        assert len(metrics[-1]["contributors"][f"{kind}.text_to_vitals"]) == 5, "two own just these, three own all"
        assert len(metrics[-1]["contributors"][f"{kind}.image_to_vitals"]) == 3
    assert set(summary["components"]) == expected


@pytest.mark.parametrize("missing", [(), ("image",), ("text",), ("vitals",), ("image", "vitals"), ("image", "text")])
def test_predictions_come_with_any_modality_missing_as_empty_cells_or_as_absent_columns(
    run: Path, manifest: Path, tmp_path: Path, missing
) -> None:
    gone = {column for name in missing for column in COLUMNS[name]}
    features = {column for names in COLUMNS.values() for column in names}
    empty = rewritten(manifest, tmp_path / f"empty-{run.name}-{'-'.join(missing)}", lambda _name: True, gone)
    wanted = ({"id"} | features) - gone
    absent = rewritten(manifest, tmp_path / f"absent-{run.name}-{'-'.join(missing)}", lambda name: name in wanted)
    header, *predicted = rows(predict_csv(run, empty))
    assert header == ["id", "effusion", "other"]
    assert [row[0] for row in predicted] == [row[0] for row in rows(manifest.read_text())[1:]]
    assert all(0 <= float(value) <= 1 for row in predicted for value in row[1:])
    assert rows(predict_csv(run, absent)) == [header, *predicted]


def test_a_prediction_of_the_hold_out_is_what_the_run_was_scored_on(run: Path, manifest: Path) -> None:
    config = load_config(run)
    federation = Federation(config, sites_of(Roster.load(run / "roster.json")))
    model = federation.new_model()
    load_model(run / "model.safetensors", model)
    records, _ = read_manifest(config.data, require_labels=False)
    ids = {row[0]: row[1] for row in rows(manifest.read_text())[1:]}
    holdout = simulate(config).holdout
    held_out = [i for i, record in enumerate(records.unit_ids) if ids[record] in set(holdout.unit_ids)]
    expected = predict(federation.method, model, model.prepare(holdout))
    predicted = np.array(rows(predict_csv(run, manifest))[1:])[held_out, 1:].astype(float)
    np.testing.assert_allclose(predicted, expected, atol=1e-6)


def test_absent_columns_that_look_misspelt_are_an_error_and_not_a_missing_modality(
    run: Path, manifest: Path, tmp_path: Path
) -> None:
    text = manifest.read_text()
    wrong = {
        text.replace("image,", "images,", 1): ["has no column 'image', but 'images'", "rename it"],
        text.replace("pulse,", "puls,", 1): ["has no column 'pulse'"],
        "id\nr1\n": ["has no column 'image'"],
        "film,report\na,b\n": ["has no column 'id'"],
        "id,text\nr1,a\nr1,b\n": ["'r1' was given before", "line 2"],
        "id,text\n": ["has a header and no records"],
        "": ["is empty"],
    }
    for content, expected in wrong.items():
        path = manifest.parent / "wrong.csv"
        path.write_text(content)
        result = CliRunner().invoke(app, ["predict", str(run), "--data", str(path)])
        assert result.exit_code == 2
        for part in ["error: ", str(path), *expected]:
            assert part in result.stderr


def test_predict_writes_a_file_or_standard_output(run: Path, manifest: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["predict", str(run), "--data", str(manifest)])
    assert result.exit_code == 0
    out = tmp_path / "predictions.csv"
    to_file = CliRunner().invoke(app, ["predict", str(run), "--data", str(manifest), "--output", str(out)])
    assert to_file.exit_code == 0
    assert to_file.stdout == ""
    assert out.read_text() == result.stdout
    for nowhere in (tmp_path / "no" / "folder.csv", tmp_path):
        refused = CliRunner().invoke(app, ["predict", str(run), "--data", str(manifest), "--output", str(nowhere)])
        assert refused.exit_code == 2
        assert f"{nowhere} cannot be written" in refused.stderr


def test_nothing_that_is_shown_names_the_folder_of_the_data(run: Path, manifest: Path) -> None:
    for name in ("report.html", "model_card.md", "summary.json", "metrics.jsonl"):
        assert str(manifest.parent) not in (run / name).read_text()


def test_the_shorthand_for_two_modalities_is_refused_with_an_example(manifest: Path, tmp_path: Path) -> None:
    arguments = [*overrides(manifest), "federation.ownership=3:1:3", f"run_dir={tmp_path / 'run'}"]
    result = CliRunner().invoke(app, ["run", *arguments])
    assert result.exit_code == 2
    assert "{image: 2, image+text+vitals: 3}" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_relative_path_to_data_is_kept_as_an_absolute_one(make_config, manifest: Path, monkeypatch) -> None:
    from secure_fed.config import compose_config, freeze

    monkeypatch.chdir(manifest.parent)
    arguments = [item for item in overrides(manifest) if not item.startswith("data.path")]
    config = freeze(compose_config([*arguments, "data.path=manifest.csv"]), Path("run"))
    assert isinstance(config.data, ManifestConfig)
    assert config.data.path == manifest
    monkeypatch.chdir(manifest.parent.parent)
    assert len(prepare(config).simulated.holdout) > 0


def test_the_declaration_on_the_command_line_is_that_of_the_written_manifest(manifest: Path) -> None:
    from secure_fed.config import compose_config, freeze

    config = freeze(compose_config(overrides(manifest)), Path("run"))
    assert isinstance(config.data, ManifestConfig)
    assert config.data.modalities == {
        "image": ImageColumn(column="image", height=32, width=32),
        "text": TextColumn(column="text"),
        "vitals": TabularColumns(
            columns=dict.fromkeys(("pulse", "pressure", "temperature"), (-1.0, 1.0)), observed_indicators=False
        ),
    }
