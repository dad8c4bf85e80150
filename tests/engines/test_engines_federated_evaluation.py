"""evaluation=federated over real sites: exact sums of noised counts, nothing held out is learnt, all of it charged."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federation_bench import Bench

from secure_fed.client.held_out import KEY_PURPOSE, is_held_out
from secure_fed.client.home import Home
from secure_fed.config import compose_config, freeze
from secure_fed.data.records import Records
from secure_fed.engines.runner import resume, start
from secure_fed.federation.evaluation import binned
from secure_fed.federation.plan import plan_for
from secure_fed.federation.track import Track
from secure_fed.ledger import Plan, Reserve, read_ledger
from secure_fed.report.run_folder import read_run
from secure_fed.report.wording import paragraph
from secure_fed.server.federated_auroc import score_view

FEDERATED = ("evaluation=federated", "evaluation.fraction=0.4", "method=zero_fill", "data.patients=150")
ROUNDS = 3


@pytest.fixture
def same_split(monkeypatch):
    """Homes have keys of their own; here the split is to be alike in two federations."""
    monkeypatch.setattr(Home, "derived_key", lambda self, purpose: f"{self.root.name}/{purpose}".encode())


def held_out(bench: Bench, site: str) -> np.ndarray:
    records = bench.prepared.simulated.records[site]
    return is_held_out(records.unit_ids, 0.4, bench.home(site).derived_key(KEY_PURPOSE))


def counted_by_hand(bench: Bench, site: str, view: str, track: Track) -> np.ndarray:
    """[labels, truth, bin] of a site's held-out records, a record at a time, from the data's own arrays."""
    federation = bench.prepared.federation
    model = track.load_into(federation.new_model()).eval()
    needed = view.split("+")
    records: Records = bench.prepared.simulated.records[site].select(held_out(bench, site))
    seen = model.prepare(records.without([name for name in federation.schema.names if name not in needed]))
    counts = np.zeros((len(federation.schema.labels), 2, 16), dtype=np.int64)
    for row in np.flatnonzero(np.all([records.presence[name] for name in needed], axis=0)):
        with torch.no_grad():
            logits = federation.method.logits(model, seen.select(torch.tensor([row])))[0]
        for label, (truth, place) in enumerate(zip(records.labels[row], binned(logits, 16, 8.0), strict=True)):
            if not np.isnan(truth):
                counts[label, int(truth), int(place)] += 1
    return counts


@pytest.mark.parametrize("secagg", ["on", "off"])
def test_without_noise_the_opened_sum_is_exactly_what_counting_by_hand_gives(make_config, secagg) -> None:
    bench = Bench.make(make_config(*FEDERATED, "privacy=off", f"secagg={secagg}"))
    bench.round(0)
    result = bench.round(ROUNDS, 1)
    assert (set(result.counts), result.means) == ({"evaluation.image+text", "evaluation.image", "evaluation.text"}, {})
    for name, counts in result.counts.items():
        sites = result.contributors[name]
        assert set(sites) == bench.prepared.federation.owners(name)
        expected = sum(counted_by_hand(bench, site, name.partition(".")[2], bench.held.track) for site in sites)
        assert expected.sum() > 200
        np.testing.assert_array_equal(counts, expected.ravel())


def test_the_opened_sum_is_exactly_the_sum_of_the_sites_noised_counts(make_config, updates) -> None:
    bench = Bench.make(make_config(*FEDERATED))
    result = bench.round(ROUNDS)
    federation = bench.prepared.federation
    for name, counts in result.counts.items():
        sites = result.contributors[name]
        own = np.stack([updates[site][name] for site in sites])
        assert own.dtype == np.int32
        np.testing.assert_array_equal(counts, own.sum(axis=0, dtype=np.int64))
        view = name.partition(".")[2]
        noise = own - np.stack([counted_by_hand(bench, site, view, bench.held.track).ravel() for site in sites])
        plans = [plan_for(federation, federation.site(site)) for site in sites]
        deviations = [plan.phase("evaluation").release.deviation for plan in plans if plan is not None]
        # 448 values a site: the standard error of a deviation is 3.4 %, of a correlation 0.047.
        np.testing.assert_allclose(noise.std(axis=1), deviations, rtol=0.15)
        assert np.abs(np.corrcoef(noise)[np.triu_indices(len(own), 1)]).max() < 0.25


def flipped(records: Records, which: np.ndarray) -> Records:
    """The records with the labels of `which` turned around and their images blackened."""
    labels, image = records.labels.copy(), records.values["image"].copy()
    labels[which] = 1 - labels[which]
    image[which] = 0
    return replace(records, labels=labels, values={**records.values, "image": image})


def test_no_held_out_record_enters_a_gradient(tmp_path, make_config, updates, same_split) -> None:
    """Under the same random numbers, other held-out records give the same update to the last bit."""
    seen = {}
    for name, changed in (("as they are", None), ("other held-out", True), ("other trained on", False)):
        config = make_config(*FEDERATED, "insecure_reproducible=true", folder=tmp_path / name)
        bench = Bench.make(config)
        if changed is not None:
            records = dict(bench.prepared.simulated.records)
            for site, own in records.items():
                apart = held_out(bench, site)
                records[site] = flipped(own, apart if changed else ~apart)
            bench.prepared = replace(bench.prepared, simulated=replace(bench.prepared.simulated, records=records))
        for site in bench.sites:
            bench.restart(site)
        bench.round(0)
        trained = {site: {k: v.copy() for k, v in update.items()} for site, update in updates.items()}
        bench.round(ROUNDS, 1)
        seen[name] = trained, {site: dict(update) for site, update in updates.items()}
    (before, counts), (same, other_counts), (different, _) = seen.values()
    for site, update in before.items():
        for slice_name, values in update.items():
            np.testing.assert_array_equal(values, same[site][slice_name])
        assert any((values != different[site][slice_name]).any() for slice_name, values in update.items())
        assert any((values != other_counts[site][name]).any() for name, values in counts[site].items())


def test_in_a_round_that_also_trains_the_model_that_it_began_from_is_evaluated(make_config) -> None:
    bench = Bench.make(make_config(*FEDERATED, "evaluation.evaluations=3", "privacy=off"))
    bench.round(0)
    began_from = bench.held.track
    result = bench.round(1, 1)
    assert set(result.means) >= {"fusion", "encoder.image", "encoder.text"}
    assert bench.held.track.model_hash != began_from.model_hash
    expected = sum(counted_by_hand(bench, site, "text", began_from) for site in result.contributors["evaluation.text"])
    np.testing.assert_array_equal(result.counts["evaluation.text"], expected.ravel())


def test_an_evaluation_changes_no_weight_and_sites_agree_with_that(make_config) -> None:
    bench = Bench.make(make_config(*FEDERATED))
    bench.round(0)
    before = bench.held.track.model_hash
    bench.round(ROUNDS, 1)
    assert bench.held.track.model_hash == before
    assert bench.round(1, 2).survivors == 5  # nobody halted over it


@pytest.fixture(scope="module")
def evaluated_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    small = ("federation.sites=5", "federation.ownership=1:1:3", "federation.rounds=3")
    overrides = (*small, *FEDERATED, "evaluation.evaluations=2", "evaluation.min_count=1")
    return start(freeze(compose_config(overrides), folder))


def test_every_evaluation_is_charged_as_it_was_planned_and_nothing_beyond(evaluated_run) -> None:
    for path in sorted(evaluated_run.glob("sites/*/ledger.jsonl")):
        bodies = [record.body for record in read_ledger(path)]
        (plan,) = [body for body in bodies if isinstance(body, Plan)]
        (planned,) = [phase for phase in plan.phases if phase.name == "evaluation"]
        charges = [body for body in bodies if isinstance(body, Reserve) and body.phase == "evaluation"]
        assert [charge.step for charge in charges] == [1, 3]
        assert planned.rounds == 3  # both, and one to repeat
        for charge in charges:
            assert (charge.artefact, charge.sampler) == ("evaluation", "none")
            assert (charge.mechanism, charge.max_grad_norm) == (planned.mechanism, planned.max_grad_norm)
            assert charge.components == planned.components
        (training,) = [phase for phase in plan.phases if phase.name == "classify"]
        assert planned.mechanism is not None
        assert training.mechanism is not None
        assert planned.mechanism.noise_multiplier == pytest.approx(0.5 * training.mechanism.noise_multiplier)


def test_an_auditor_finds_the_run_sound_and_the_same_epsilon(evaluated_run) -> None:
    from secure_fed.ledger import verify

    verdict = verify([evaluated_run])
    assert verdict.ok, verdict
    summary = json.loads((evaluated_run / "summary.json").read_text())
    assert summary["epsilon_max"] <= 8
    line = json.loads((evaluated_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["epsilon_max"] == pytest.approx(summary["epsilon_max"], rel=1e-6)


def test_figures_follow_from_the_counts_that_stand_beside_them(evaluated_run) -> None:
    lines = [json.loads(line) for line in (evaluated_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "evaluation" in line] == [1, 3]
    assert [line["phases"] for line in lines] == [
        ["classify"],
        ["classify", "evaluation"],
        ["classify"],
        ["evaluation"],
    ]
    summary = json.loads((evaluated_run / "summary.json").read_text())
    views = summary["evaluation"]["views"]
    assert set(views) == {"image+text", "image", "text"}
    for view, figures in views.items():
        counts = np.array(lines[-1]["evaluation"][view]["counts"])
        charged = summary["evaluation"]["charged"]
        deviations = [charged[site]["noise_multiplier"] * charged[site]["bound"] for site in figures["contributors"]]
        labels = list(summary["auroc_per_label"]) + summary["labels_left_out"]
        again = score_view(counts, labels, figures["contributors"], deviations, 1).to_json()
        assert again["noise_deviation"] == figures["noise_deviation"]
        assert (again["macro"] is None) == (figures["macro"] is None)
    facts = summary["evaluation"]
    assert (facts["planned"], facts["done"], facts["after_rounds"]) == (2, 2, 3)
    assert (facts["fraction"], facts["bins"], facts["logit_range"]) == (0.4, 16, 8.0)


def test_what_is_shown_says_that_it_is_noised_and_keeps_the_public_hold_out_apart(evaluated_run) -> None:
    run = read_run(evaluated_run)
    text = paragraph(run.summary, run.steps)
    assert "On a public hold-out of" in text
    assert "On records that the sites hold out" in text
    page, card = ((evaluated_run / name).read_text() for name in ("report.html", "model_card.md"))
    assert "AUROC at the sites: federated, noised" in page
    for said in ("The model on the public hold-out", "Labels, on the public hold-out"):
        assert said in page
    for said in (page, card):
        assert "coordinator's public hold-out" in html.unescape(said)
    assert "At the sites, federated and noised" in card
    for view in ("image and text", "image alone", "text alone"):
        assert view in page
        assert view in card


def test_a_resumed_run_keeps_its_evaluations(make_config, tmp_path, monkeypatch) -> None:
    from secure_fed.server.training import Trainer

    original = Trainer._round

    def interrupted(self, held, progress):
        if progress.step == ROUNDS:
            raise KeyboardInterrupt
        return original(self, held, progress)

    folder = tmp_path / "run"
    config = make_config(*FEDERATED, "evaluation.evaluations=2", folder=folder)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start(config)
    resume(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["evaluation"]["done"], summary["evaluation"]["after_rounds"]) == (2, 3)
