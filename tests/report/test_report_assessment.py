"""The final model on the public hold-out, as page, card and terminal tell it: with intervals, chance and yardsticks."""

from __future__ import annotations

import html
import json
import re

import pytest
from rich.console import Console

from secure_fed.errors import DataError
from secure_fed.report import assessment, formats, write_model_card, write_report
from secure_fed.report.charts import rates_chart
from secure_fed.report.headline import headline
from secure_fed.report.run_folder import parse_summary, read_run


def words(text: str) -> str:
    """A page's text, tags and line ends as single spaces."""
    return re.sub(r"[ \n]+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))


def summary_of(example, **changes):
    example.changes = {**example.changes, **changes}
    return parse_summary(example.summary())


def test_auprc_and_intervals_stand_beside_auroc_and_say_what_they_stand_on(finished):
    text = words(write_report(finished).read_text(encoding="utf-8"))
    assert "every modality 0.830 0.811 to 0.848 0.412 0.387 to 0.441" in text
    assert "without text 0.690 – 0.334 0.308 to 0.361" in text, "no draw has that score"
    assert "On the coordinator's public hold-out" in text
    assert "95 %: of 1\u202f000 draws of its 480 patients with replacement" in text
    assert "chance is the prevalence, 0.165 on average" in text


def test_every_label_has_its_prevalence_beside_its_auprc(finished):
    text = words(write_report(finished).read_text(encoding="utf-8"))
    assert "Cardiomegaly 0.910 0.520 0.210" in text
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert 'title="0.871 to 0.943"' in page


def test_imputed_features_stand_above_what_a_constant_scores(finished):
    text = words(write_report(finished).read_text(encoding="utf-8"))
    assert "image imputed from all others 0.67 0.83 0.21 9.4 % constant mean 1.00 0.78 0.50 0.8 %" in text
    assert "On 1\u202f133 records of the public hold-out" in text
    assert "stated variance" not in text, "a column without a figure is clutter"


def test_a_method_that_states_a_variance_is_told_how_large_its_error_is_over_it(tmp_path, example):
    example.rounds = 3
    found = example.assessed()["imputation"]
    example.changes = {"imputation": {**found, "text": {**found["text"], "calibration": 1.37}}}
    text = words(write_report(example.write(tmp_path / "run")).read_text(encoding="utf-8"))
    assert "Error over stated variance" in text
    assert "text imputed from all others 0.67 0.83 0.21 9.4 % 1.37" in text


def test_zeros_have_no_cosine_and_a_run_without_imputations_has_no_table(tmp_path, example):
    example.rounds = 3
    found = example.assessed()["imputation"]["text"]
    summary = summary_of(example, imputation={"text": {**found, "cosine": None, "mse_over_variance": 1.62}})
    assert assessment.likeness_rows(summary)[0].cosine == formats.NOTHING
    example.changes = {"imputation": {}}
    run = example.write(tmp_path / "run")
    assert "Imputed features" not in write_report(run).read_text(encoding="utf-8")
    assert "constant mean" not in write_model_card(run).read_text(encoding="utf-8")


def test_the_cost_of_a_round_and_of_an_inference_is_on_the_page(finished):
    text = words(write_report(finished).read_text(encoding="utf-8"))
    assert "FLOPs of one inference, everything present 4.29 M" in text
    assert "FLOPs of imputing text 4.1 k" in text
    assert "A site and round, sent and received 153.4 kB, 211.0 kB" in text


def test_the_curves_over_missing_rates_begin_with_everything_and_end_where_everybody_lacks_it(finished):
    summary = read_run(finished).summary
    drawn = rates_chart(summary, "AUROC")
    assert drawn.count("<polyline") == 3
    assert "one of them" in drawn
    for said in ("0 %: 0.830", "25 %: 0.807", "100 %: 0.740"):
        assert said in drawn, said
    assert "100 %: 0.272" in rates_chart(summary, "AUPRC")


def test_without_scores_there_are_dashes_and_no_curves(tmp_path, example):
    example.rounds = 3
    nothing = {"auroc_macro": None, "auprc_macro": None, "auprc_chance": None, "auroc_per_label": {}}
    intervals = {**example.assessed()["intervals"], "auroc_macro": None, "auprc_macro": None}
    rates = [{**point, "auroc_macro": None, "auprc_macro": None} for point in example.assessed()["missing_rates"]]
    example.changes = {**nothing, "intervals": intervals, "missing_rates": rates}
    text = words(write_report(example.write(tmp_path / "run")).read_text(encoding="utf-8"))
    assert "every modality – – – –" in text
    assert "against what is missing at test" not in text
    assert "nan" not in text.lower().split()


def test_the_terminal_shows_each_interval_and_the_chance_level_in_80_columns(example):
    console = Console(width=80, record=True, force_terminal=False)
    console.print(headline(example.summary()))
    text = console.export_text()
    assert "0.811 to 0.848, every modality present" in text
    assert re.search(r"AUPRC, macro +0\.412 +average precision; chance 0\.165", text)
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_summary_of_an_older_version_is_refused_by_the_name_of_what_it_lacks(finished):
    values = json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    del values["intervals"]
    with pytest.raises(DataError, match="intervals: Field required"):
        parse_summary(values)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (4096, "4.1 k"), (4_289_344, "4.29 M"), (4.1e9, "4.1 G")]
)
def test_operations_are_counted_with_a_prefix(value, text):
    assert formats.large(value) == text
