"""summary.json and the reports name what weakens a run: lower floors, graphs, unverified steps, labels left out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secure_fed.engines.runner import start
from secure_fed.engines.simulated_sites import simulate
from secure_fed.engines.summary import secagg_facts, warnings_of
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.masking import secagg_params

BOTH, IMAGE = frozenset({"image", "text"}), frozenset({"image"})
ALONE = "+secagg.floors={encoder.text:2,translator.image_to_text:1,translator.text_to_image:2}"


def federation_of(config, *owned: frozenset[str]) -> Federation:
    return Federation(config, [Site(f"site{i:03d}", modalities, 600) for i, modalities in enumerate(owned, start=1)])


def line(federation: Federation, step: int = 0, gone: tuple[str, ...] = (), **changes: object) -> dict:
    """What the coordinator writes down of a round."""
    parts = federation.slices_at(step)
    alive = {part.name: sorted(part.owners - set(gone)) for part in parts}
    opened = {name: sites for name, sites in alive.items() if len(sites) >= federation.floor(name)}
    return {
        "step": step,
        "round": step,
        "participants": len(federation.sites),
        "survivors": len(federation.sites) - len(gone),
        "contributors": opened,
        "kept": [name for name in alive if name not in opened],
        "bytes_up": 3 * sum(part.size * len(part.owners) for part in parts),
        "bytes_down": 6 * sum(part.size for part in parts) * len(federation.sites),
        **changes,
    }


def test_every_caution_of_the_masks_is_among_the_warnings(make_config) -> None:
    overrides = ("federation.corrupt=1", ALONE)
    for federation in (
        federation_of(make_config(*overrides), *[IMAGE] * 8, *[BOTH] * 2),
        federation_of(make_config("federation.corrupt=0"), *[BOTH] * 3),
        federation_of(make_config("secagg=k_regular", "federation.corrupt=5"), *[BOTH] * 120),
    ):
        cautions = secagg_params(federation).cautions()
        assert cautions
        assert set(cautions) <= set(warnings_of(federation, {}))
        assert secagg_facts(federation, [])["cautions"] == list(cautions)


def test_a_floor_of_one_is_called_what_it_is(make_config) -> None:
    federation = federation_of(make_config("federation.corrupt=1", ALONE), *[IMAGE] * 8, *[BOTH] * 2)
    said = [text for text in warnings_of(federation, {}) if "one single site's update" in text]
    assert len(said) == 1
    assert said[0].startswith("component translator.image_to_text: floor 1")
    assert said[0].endswith("DP alone protects it")
    off = federation_of(make_config("privacy=off", "federation.corrupt=1", ALONE), *[IMAGE] * 8, *[BOTH] * 2)
    assert any(text.endswith("privacy=off, so nothing protects it") for text in warnings_of(off, {}))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("strategy=flower",), "server_step: unverified"),
        (("secagg=off",), "secagg=off"),
        (("privacy=off",), "privacy=off"),
        (("insecure_reproducible=true",), "insecure_reproducible=true"),
        (("federation.corrupt=0",), "federation.corrupt=0"),
    ],
)
def test_each_switch_that_weakens_a_run_is_warned_of(make_config, overrides, said) -> None:
    members = [BOTH] * 5
    assert not any(said in text for text in warnings_of(federation_of(make_config(), *members), {}))
    assert any(said in text for text in warnings_of(federation_of(make_config(*overrides), *members), {}))


def test_a_resumed_run_says_that_a_flower_strategy_began_anew(make_config) -> None:
    flower = federation_of(make_config("strategy=flower"), *[BOTH] * 5)
    said = "began anew each time"
    assert any(said in text for text in warnings_of(flower, {}, resumed=2))
    assert not any(said in text for text in warnings_of(flower, {}))
    assert not any(said in text for text in warnings_of(federation_of(make_config(), *[BOTH] * 5), {}, resumed=2))


def test_labels_that_no_score_counts_are_warned_of(make_config) -> None:
    warnings = warnings_of(federation_of(make_config(), *[BOTH] * 5), {}, ("Fracture", "Pleural Other"))
    assert warnings[-1].endswith("one class only: Fracture, Pleural Other")


def test_a_k_regular_graph_is_described_with_its_numbers(make_config) -> None:
    federation = federation_of(make_config("secagg=k_regular", "federation.corrupt=5"), *[BOTH] * 120)
    facts = secagg_facts(federation, [])
    graph = secagg_params(federation).graph
    assert graph is not None
    assert facts["graph"] == {"name": "k_regular", "degree": graph.degree, "threshold": graph.threshold}
    assert (facts["min_cohort"], facts["threshold"], facts["wire_bits"]) == (96, 63, 32)
    assert facts["bytes_up_per_parameter"] is None, "no round, no figure"


def test_bytes_are_counted_by_parameter_that_was_contributed_and_by_parameter_and_site(make_config) -> None:
    federation = federation_of(make_config(), *[IMAGE] * 2, *[BOTH] * 4)
    facts = secagg_facts(federation, [line(federation, step) for step in range(3)])
    assert (facts["bytes_up_per_parameter"], facts["bytes_down_per_parameter"]) == (3.0, 6.0)
    with_losses = secagg_facts(federation, [line(federation, 0, gone=("site001",))])
    assert with_losses["bytes_up_per_parameter"] > 3.0, "what was sent in vain is not divided away"


# -- a whole run -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sites, two of them with reports; they opted for lower floors, and sites drop out."""
    from secure_fed.config import compose_config, freeze

    folder = tmp_path_factory.mktemp("runs") / "opted"
    overrides = (
        *("data.patients=240", "federation.sites=6", "federation.ownership='4:0:2'", "federation.rounds=6"),
        *("federation.corrupt=1", "federation.dropout=0.2", "method.classify.steps=1", "evaluation.every=6"),
        *("method.classify.learning_rate=1", "seed=3", ALONE),
    )
    return start(freeze(compose_config(overrides), folder))


def plain(text: str) -> str:
    """The words of a page or a card, without tags and escapes."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>|\\", " ", text.replace("\\", "")))


def test_the_summary_says_of_each_component_what_protects_it_and_how_often_it_stayed_masked(opted: Path) -> None:
    summary = json.loads((opted / "summary.json").read_text())
    metrics = [json.loads(text) for text in (opted / "metrics.jsonl").read_text().splitlines()]
    components = summary["components"]
    assert {name: facts["floor"] for name, facts in components.items()} == {
        "encoder.image": 3,
        "fusion": 3,
        "encoder.text": 2,
        "translator.image_to_text": 1,
        "translator.text_to_image": 2,
    }
    lowered = {name for name, facts in components.items() if facts["dp_only"]}
    assert lowered == {"encoder.text", "translator.image_to_text", "translator.text_to_image"}
    for name, facts in components.items():
        assert facts["kept"] == sum(name in row["kept"] for row in metrics)
        assert len(facts["owners"]) == (2 if name in lowered else 6)
    assert components["encoder.text"]["kept"] > 0, "an owner dropped out, and the other's update stayed masked"
    assert summary["server_step"] == "verified"
    assert summary["statistics"] == {}
    secagg = summary["secagg"]
    assert (secagg["graph"], secagg["threshold"], secagg["floor"]) == ({"name": "complete"}, 4, 3)
    assert 3.0 < secagg["bytes_up_per_parameter"] < 12
    assert secagg["bytes_down_per_parameter"] > 0


def test_the_summary_says_what_the_model_and_a_round_cost_a_site(opted: Path) -> None:
    summary = json.loads((opted / "summary.json").read_text())
    metrics = [json.loads(text) for text in (opted / "metrics.jsonl").read_text().splitlines()]
    cost = summary["cost"]
    assert cost["parameters"] == {name: facts["parameters"] for name, facts in summary["components"].items()}
    assert cost["parameters_total"] == sum(cost["parameters"].values())
    turns = sum(line["participants"] for line in metrics)
    assert cost["bytes_up_per_site_round"] == round(sum(line["bytes_up"] for line in metrics) / turns, 1)
    assert cost["bytes_down_per_site_round"] == round(sum(line["bytes_down"] for line in metrics) / turns, 1)
    # No site sends less than its own share of the model, three bytes a parameter, in a round that trains it.
    assert cost["bytes_up_per_site_round"] > 3 * min(cost["parameters"].values())
    assert cost["seconds_per_round"] == pytest.approx(sum(line["wall_s"] for line in metrics) / len(metrics), abs=1e-4)
    assert cost["flops_inference"] > max(cost["flops_imputation"].values()) > 0
    assert set(cost["flops_imputation"]) == set(summary["imputation"]) == {"image", "text"}


def test_the_final_scores_are_those_of_the_last_round(opted: Path) -> None:
    summary = json.loads((opted / "summary.json").read_text())
    last = json.loads((opted / "metrics.jsonl").read_text().splitlines()[-1])
    assert summary["auroc_macro"] == last["auroc_macro"]
    assert summary["auroc_macro_missing"] == last["auroc_macro_missing"]


def test_a_run_whose_hold_out_has_no_label_of_both_classes_ends_without_scores(
    make_config, tmp_path, monkeypatch
) -> None:
    def simulated(config):
        made = simulate(config)
        labels = np.zeros_like(made.holdout.labels)
        return replace(made, holdout=replace(made.holdout, labels=labels))

    monkeypatch.setattr("secure_fed.engines.runner.simulate", simulated)
    folder = start(make_config("federation.rounds=2", "method.schedule=every_round", folder=tmp_path / "blank"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["auroc_macro"] is summary["auprc_macro"] is None
    assert len(summary["labels_left_out"]) == 14
    assert "auroc_macro" not in json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert "labels left out of every score" in plain((folder / "report.html").read_text())


def test_page_and_card_say_dp_only_and_that_a_single_sites_update_can_be_seen(opted: Path) -> None:
    page = plain((opted / "report.html").read_text())
    card = plain((opted / "model_card.md").read_text())
    for text in (page, card):
        assert "DP only" in text
        assert "the coordinator then sees that one site's own update, unmasked" in text.replace("&#39;", "'")
        assert "server step" in text.lower()
        assert "encoder.text (floor 2)" in text
    assert "Of translator.image_to_text, a single site's own update too" in page.replace("&#39;", "'")


def test_a_statistic_has_its_floor_and_the_component_solved_from_it_has_none(make_config, tmp_path) -> None:
    folder = start(make_config("method=ridge", "federation.rounds=2", "evaluation.every=2", folder=tmp_path / "ridge"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["components"]["translator.image_to_text"]["floor"] is None
    statistic = summary["statistics"]["statistic.image_to_text"]
    assert (statistic["floor"], statistic["dp_only"], len(statistic["owners"])) == (3, False, 3)
    assert "statistic.image_to_text" in (folder / "report.html").read_text()


def test_a_flower_strategy_is_unverified_in_every_output(make_config, tmp_path) -> None:
    folder = start(make_config("strategy=flower", "federation.rounds=2", "evaluation.every=2", folder=tmp_path / "f"))
    assert json.loads((folder / "summary.json").read_text())["server_step"] == "unverified"
    for name in ("report.html", "model_card.md"):
        text = plain((folder / name).read_text())
        assert "Server step: unverified" in text, name
        assert "nothing ties the model that sites were sent" in text, name


@pytest.mark.slow
def test_more_than_a_hundred_sites_train_over_a_k_regular_graph_and_every_output_says_semi_malicious(
    make_config, tmp_path
) -> None:
    overrides = (
        *("secagg=k_regular", "federation.sites=104", "federation.corrupt=2", "federation.ownership='40:20:44'"),
        *("data.patients=2000", "data.image_size=32", "federation.rounds=2", "evaluation.every=2"),
        *("federation.dropout=0.02", "method.classify.steps=1", "method.translate.steps=1", "secagg.clip=40"),
        *("privacy.delta=1e-4", "method.classify.learning_rate=0.2"),
    )
    folder = start(make_config(*overrides, folder=tmp_path / "large"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["secagg"]["graph"]["name"] == "k_regular"
    assert summary["secagg"]["graph"]["degree"] < 103
    assert summary["secagg"]["min_cohort"] == 84
    for name in ("report.html", "model_card.md"):
        assert "semi-malicious server only" in plain((folder / name).read_text()), name
