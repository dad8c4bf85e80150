"""The model card and the terminal's last lines say the same numbers, with the same warnings on top."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from secure_fed.errors import DataError
from secure_fed.report import formats, headline, write_model_card
from secure_fed.report.model_card import markdown


def printed(summary) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(headline(summary))
    return console.file.getvalue()


def test_card_states_guarantee_figures_and_limits(finished):
    text = write_model_card(finished).read_text(encoding="utf-8")
    summary = json.loads((finished / "summary.json").read_text())
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert sections == [
        "## Intended use",
        "## Data",
        "## Training",
        "## Privacy guarantee",
        "## Evaluation",
        "## Limits",
        "## How to load and predict",
        "## Versions",
    ]
    assert "not a medical device" in text
    assert "differentially private with respect to adding or removing one record of s" in text
    for site, value in summary["epsilon"].items():
        assert f"| {site} | {formats.epsilon(value)} |" in text
    assert f"| every modality | {formats.score(summary['auroc_macro'])} | 0.811 to 0.848 | 0.412 |" in text
    assert "secure-fed predict . --data" in text
    assert "Ownership of modalities: 5:1:4" in text


def test_card_says_what_protects_each_component_and_how_the_server_step_was_checked(tmp_path, example):
    example.floors, example.server_step = {"encoder.text": 1, "fusion": 2}, "unverified"
    text = write_model_card(example.write(tmp_path / "run")).read_text(encoding="utf-8")
    assert text.startswith("> **DP only, and a single site's update can be seen.**")
    assert "> **DP only.** The owners of fusion (floor 2)" in text
    assert "> **Server step: unverified.**" in text
    for line in (
        "| Component | Parameters | Owners | Floor | Protected by | Rounds kept masked |",
        "| encoder.image | 17\u202f328 | 9 | 3 | masks and DP | 0 |",
        "| encoder.text | 33\u202f280 | 5 | 1 | DP only | 0 |",
        "| translator.image\\_to\\_text | 1\u202f056 | 4 | 3 | masks and DP | 1 |",
        "- Bytes a parameter, up and down: 3.17, 3.42",
        "- Server step: unverified",
        "threshold 6 of 10, up to 1 corrupt; complete graph",
    ):
        assert line in text, line


def test_card_without_privacy_warns_first_and_guarantees_nothing(tmp_path, example):
    example.rounds, example.privacy = 3, "off"
    text = write_model_card(example.write(tmp_path / "run")).read_text(encoding="utf-8")
    assert text.startswith("> **Privacy is off.**")
    assert "Treat the model as if it contained the training records." in text
    assert "differentially private with respect to" not in text


def test_card_shows_hostile_text_as_text(tmp_path, example):
    example.rounds = 3
    example.labels = ("a|b", "<script>", "[x](javascript:1)", "line\nbreak `code` *bold*")
    text = write_model_card(example.write(tmp_path / "run")).read_text(encoding="utf-8")
    assert r"| a\|b |" in text
    assert r"\<script\>" in text
    assert r"\[x\](javascript:1)" in text
    assert r"| line break \`code\` \*bold\* |" in text


@pytest.mark.parametrize("text", ["a_b", "<b>", "| x |", "# h", "&amp;"])
def test_every_special_character_is_escaped(text):
    assert "".join(markdown(text).split("\\")) == text
    assert markdown(text) != text


def test_headline_prints_the_figures(example):
    summary = example.summary()
    text = printed(summary)
    assert formats.score(summary["auroc_macro"]) in text
    assert f"without image  {formats.score(summary['auroc_macro_missing']['image'])}" in text
    assert f"{formats.epsilon(summary['epsilon_max'])}  of 8 at δ = 10⁻⁵" in text
    assert "fewest in a round: 8" in text


def test_headline_warns_before_the_figures(example):
    example.privacy, example.reproducible, example.secagg = "off", True, "off"
    text = printed(example.summary())
    places = [text.index(word) for word in ("Privacy is off", "Insecure", "aggregation is off", "AUROC")]
    assert places == sorted(places)


def test_headline_says_what_dp_alone_protects(example):
    example.floors, example.server_step = {"encoder.text": 1, "fusion": 2}, "unverified"
    text = printed(example.summary())
    for said in ("a single site's update can be seen", "DP only", "fusion (floor 2)", "Server step: unverified"):
        assert said in text
    assert text.count("encoder.text") == 1, "what the writer says shorter is not repeated"


def test_headline_prints_markup_as_it_is(example):
    example.changes = {"engine": "[red]x[/red]", "warnings": ["[bold]y"]}
    text = printed(example.summary())
    assert "[red]x[/red]" in text
    assert "[bold]y" in text


def test_headline_of_a_malformed_summary_names_the_field(example):
    summary = example.summary()
    del summary["delta"]
    with pytest.raises(DataError, match="delta: Field required"):
        printed(summary)


# -- numbers as people read them -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(7.4951, "7.50"), (7.5001, "7.51"), (8.0, "8.00"), (0.1 + 0.2, "0.30"), (float("inf"), "∞"), (None, "–")],
)
def test_an_epsilon_never_looks_smaller_than_it_is(value, text):
    assert formats.epsilon(value) == text


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (formats.small, 1e-5, "10⁻⁵"),
        (formats.small, 3.2e-6, "3.2×10⁻⁶"),
        (formats.duration, 4.26, "4.3 s"),
        (formats.duration, 119.0, "119 s"),
        (formats.duration, 150.0, "2 min"),
        (formats.duration, 3 * 3600 + 61.0, "3 h 1 min"),
        (formats.size, 1_534_000, "1.5 MB"),
        (formats.size, 12, "12 B"),
        (formats.score, float("nan"), "–"),
        (formats.ranges, ["site01", "site02", "site03", "site09", "site10"], "site01–site03, site09, site10"),
        (formats.ranges, ["berlin", "bonn", "site9", "site10", "site11"], "berlin, bonn, site9–site11"),
        (formats.listed, ["a", "b", "c"], "a, b and c"),
        (formats.spans, [3, 5, 6, 7, 9], "3, 5–7, 9"),
        (formats.spans, list(range(0, 60, 2)), "30 of them"),
        (formats.spans, [], ""),
    ],
)
def test_numbers_and_names_are_written_for_people(function, value, text):
    assert function(value) == text
