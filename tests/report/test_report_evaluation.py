"""Noised figures in words: never without their interval, never confused with the hold-out's, silent where left out."""

from __future__ import annotations

import pytest

from secure_fed.report.evaluation import EvaluationFacts, headline_rows, rules, sentence, view_rows

SCORE = {"auroc": 0.7312, "low": 0.61, "high": 0.852}


def view(macro: dict[str, float] | None, suppressed: tuple[str, ...] = ()) -> dict[str, object]:
    labels = {} if macro is None else {"death": {**SCORE, "positives": 71.0, "negatives": 300.0}}
    return {
        "macro": macro,
        "labels": labels,
        "suppressed": suppressed,
        "contributors": ("site01", "site02", "site03"),
        "noise_deviation": 7.81,
        "binning": None if macro is None else 0.05,
    }


def facts(**views: dict[str, object]) -> EvaluationFacts:
    charged = {"site01": {"noise_multiplier": 2.33, "bound": 1.0}, "site02": {"noise_multiplier": 2.55, "bound": 1.7}}
    fixed = {"name": "federated", "planned": 1, "done": 1, "after_rounds": 3, "fraction": 0.2, "bins": 16}
    return EvaluationFacts.model_validate({**fixed, "logit_range": 8.0, "views": views, "charged": charged})


def test_a_figure_stands_with_its_interval_and_says_that_it_is_noised():
    found = facts(**{"vitals+labs": view(SCORE, ("rare",)), "labs": view(SCORE)})
    assert headline_rows(found) == [
        ("AUROC at the sites", "0.731", "0.61 to 0.85, federated, noised; from vitals and labs; 1 label left out"),
        ("AUROC at the sites", "0.731", "0.61 to 0.85, federated, noised; from labs alone"),
    ]
    assert "0.731 (0.61 to 0.85) from vitals and labs" in sentence(found)
    assert "by noised counts" in sentence(found)
    assert [(row.score, row.interval, row.suppressed) for row in view_rows(found)] == [
        ("0.731", "0.61 to 0.85", "rare"),
        ("0.731", "0.61 to 0.85", "none"),
    ]
    assert "noise multiplier 2.33 to 2.55" in rules(found)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (facts(labs=view(None, ("death",))), "too few positives or negatives for the noise"),
        (facts(), "no such sum was opened"),
    ],
)
def test_where_nothing_can_be_told_no_figure_is_shown(found, words):
    assert words in sentence(found)
    assert [figure for _, figure, _ in headline_rows(found)] == ["–"]


def test_a_run_on_the_hold_out_alone_says_nothing_of_sites():
    alone = EvaluationFacts(name="holdout")
    assert (headline_rows(alone), sentence(alone), rules(alone), view_rows(alone)) == ([], "", "", [])
