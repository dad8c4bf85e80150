"""The evaluation as a phase: when, over which views, at which sites, with which noise; and what it cannot be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from secure_fed.data.records import ModalitySpec, Schema
from secure_fed.engines.simulated_sites import simulate
from secure_fed.errors import ConfigError
from secure_fed.federation.evaluation import candidates, steps_of, view_of
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import plan_for
from secure_fed.methods.base import HistogramPhase
from secure_fed.privacy.histograms import HistogramPlan, exact_counts

BOTH, IMAGE, TEXT = frozenset({"image", "text"}), frozenset({"image"}), frozenset({"text"})
LABELS = 14


def sites(*owned: frozenset[str], n: int = 600) -> list[Site]:
    return [Site(f"site{i:02d}", modalities, n) for i, modalities in enumerate(owned, start=1)]


def phase_of(federation: Federation) -> HistogramPhase:
    return next(phase for phase in federation.phases if isinstance(phase, HistogramPhase))


@pytest.mark.parametrize(
    ("evaluations", "rounds", "steps"), [(1, 3, (3,)), (2, 9, (4, 9)), (3, 9, (3, 6, 9)), (4, 4, (1, 2, 3, 4))]
)
def test_evaluations_are_spread_evenly_and_the_last_is_of_the_final_model(make_config, evaluations, rounds, steps):
    config = make_config("evaluation=federated", f"evaluation.evaluations={evaluations}", f"federation.rounds={rounds}")
    assert steps_of(config.evaluation, rounds) == steps
    federation = Federation(config, sites(*[BOTH] * 5))
    assert federation.total_steps == rounds + 1
    evaluated = [
        step
        for step in range(federation.total_steps)
        if any(isinstance(phase, HistogramPhase) for phase in federation.phases_at(step))
    ]
    assert tuple(evaluated) == steps
    assert [federation.trains_at(step) for step in range(rounds + 1)] == [True] * rounds + [False]


def test_a_run_on_the_public_hold_out_alone_has_no_such_phase_and_no_further_step(make_config):
    federation = Federation(make_config(), sites(*[BOTH] * 5))
    assert not any(isinstance(phase, HistogramPhase) for phase in federation.phases)
    assert federation.total_steps == federation.config.federation.rounds


def test_a_site_counts_for_the_views_that_it_has_the_modalities_of(make_config):
    federation = Federation(make_config("evaluation=federated"), sites(IMAGE, IMAGE, TEXT, BOTH, BOTH, BOTH))
    last = {part.name: part for part in federation.slices_at(federation.total_steps - 1)}
    assert {view_of(name): part.owners for name, part in last.items()} == {
        "image+text": {"site04", "site05", "site06"},
        "image": {"site01", "site02", "site04", "site05", "site06"},
        "text": {"site03", "site04", "site05", "site06"},
    }
    assert all(part.counts and part.size == LABELS * 2 * 16 for part in last.values())


def test_views_that_too_few_sites_own_are_left_out(make_config):
    config = make_config("evaluation=federated", "method=zero_fill")
    federation = Federation(config, sites(IMAGE, IMAGE, IMAGE, TEXT, TEXT, TEXT, BOTH))
    assert phase_of(federation).slices == ("evaluation.image", "evaluation.text")


def test_each_site_is_charged_for_the_views_that_it_has_and_for_no_more(make_config):
    federation = Federation(make_config("evaluation=federated"), sites(IMAGE, IMAGE, TEXT, BOTH, BOTH, BOTH))
    for name, views in (("site01", 1), ("site03", 1), ("site04", 3)):
        plan = plan_for(federation, federation.site(name))
        assert plan is not None
        planned = plan.phase("evaluation")
        assert isinstance(planned.release, HistogramPlan)
        assert planned.artefact == "evaluation"
        assert planned.sensitivity == pytest.approx(math.sqrt(LABELS * views))
        assert len(planned.components) == views
        assert planned.rounds == 1 + federation.config.federation.spare_rounds
        training = plan.phase("classify").per_round.noise_multiplier
        assert planned.per_round.noise_multiplier == pytest.approx(0.5 * training)
        assert planned.per_round.kind == "gaussian"
        assert plan.epsilon <= federation.config.privacy.epsilon


def test_with_views_full_a_site_without_everything_counts_nothing_and_is_charged_nothing(make_config):
    config = make_config("evaluation=federated", "evaluation.views=full")
    federation = Federation(config, sites(IMAGE, IMAGE, TEXT, BOTH, BOTH, BOTH))
    assert phase_of(federation).slices == ("evaluation.image+text",)
    plan = plan_for(federation, federation.site("site01"))
    assert plan is not None
    assert [planned.phase.name for planned in plan.phases] == ["classify"]


def test_with_three_modalities_everything_each_one_missing_and_what_sites_have_are_the_views(make_config):
    config = make_config("evaluation=federated").evaluation
    schema = Schema(tuple(ModalitySpec(name, "text", ()) for name in "abc"), ("label",))
    found = candidates(config, schema, [frozenset("a"), frozenset("ab"), frozenset("ab")])
    assert found == tuple(f"evaluation.{view}" for view in ("a+b+c", "a+b", "a+c", "b+c", "a"))
    assert [view_of(name) for name in found][:2] == ["a+b+c", "a+b"]


@pytest.fixture
def counted(make_config):
    """Cells of a model away from zero on a both-site's records, of which some lack a modality."""
    config = make_config("evaluation=federated")
    simulated = simulate(config)
    federation = Federation(config, simulated.members)
    model = federation.new_model()
    rng = np.random.default_rng(0)
    for name, size in model.component_sizes().items():
        model.set_component(name, rng.normal(0, 0.3, size).astype(np.float32))
    batch = model.prepare(simulated.holdout.select(np.arange(60)))
    lacking = torch.zeros(60, dtype=torch.bool)
    lacking[:20] = True
    presence = {**batch.presence, "image": batch.presence["image"] & ~lacking}
    inputs = {**batch.inputs, "image": batch.inputs["image"] * presence["image"].unsqueeze(1)}
    batch = type(batch)(inputs, presence, batch.labels, batch.label_mask)
    return federation, model, batch, phase_of(federation)


def test_a_record_touches_one_cell_for_each_known_label_in_the_views_that_it_has(counted):
    _, model, batch, phase = counted
    has_image = batch.presence["image"].unsqueeze(1) & (batch.label_mask > 0)
    has_text = batch.presence["text"].unsqueeze(1) & (batch.label_mask > 0)
    for view, counts in (("image+text", has_image & has_text), ("image", has_image), ("text", has_text)):
        touched = phase.cells(model, f"evaluation.{view}", batch, None)
        assert touched.shape == (60, LABELS)
        np.testing.assert_array_equal((touched >= 0).numpy(), counts.numpy())
        assert int(touched.max()) < phase.width
        # The upper half of a label's cells holds its positives.
        np.testing.assert_array_equal((touched >= 16)[counts].numpy(), (batch.labels > 0)[counts].numpy())


def test_what_a_view_takes_away_cannot_change_its_counts(counted):
    _, model, batch, phase = counted
    spoiled = {**batch.inputs, "image": torch.randn_like(batch.inputs["image"])}
    other = type(batch)(spoiled, batch.presence, batch.labels, batch.label_mask)
    for view, changes in (("text", False), ("image", True)):
        one, two = (phase.cells(model, f"evaluation.{view}", each, None) for each in (batch, other))
        assert bool((one != two).any()) == changes


def test_a_score_that_is_no_number_counts_nowhere_and_is_no_error(counted):
    _, model, batch, phase = counted
    model.set_component("fusion", np.full(model.component_sizes()["fusion"], np.nan, np.float32))
    assert (phase.cells(model, "evaluation.text", batch, None) == -1).all()


@pytest.mark.parametrize(
    ("overrides", "owned", "words"),
    [
        (
            ("evaluation.evaluations=4",),
            (BOTH,) * 5,
            ("evaluation.evaluations=4", "federation.rounds=3", "at most one"),
        ),
        (
            ("method=zero_fill", "evaluation.views=full"),
            (IMAGE, IMAGE, IMAGE, TEXT, TEXT, TEXT),
            ("views=full", "image+text at 0 sites", "evaluation.views=all"),
        ),
    ],
)
def test_an_evaluation_that_cannot_be_opened_is_refused_beforehand(make_config, overrides, owned, words):
    with pytest.raises(ConfigError) as caught:
        Federation(make_config("evaluation=federated", *overrides), sites(*owned))
    assert all(word in str(caught.value) for word in words)


def test_counts_that_the_ring_could_not_hold_are_refused_beforehand(make_config):
    config = make_config("evaluation=federated", "secagg.value_bits=10", "secagg.clip=4")
    federation = Federation(config, sites(*[BOTH] * 5))
    with pytest.raises(ConfigError, match=r"secagg\.value_bits=10 holds counts up to 511.*give more value_bits"):
        plan_for(federation, federation.sites[0])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluation.fraction=1", "evaluation.fraction=1"),
        ("evaluation.fraction=0", "evaluation.fraction=0:"),
        ("evaluation.bins=1", "evaluation.bins=1"),
        ("evaluation.noise=0", "evaluation.noise=0"),
        ("evaluation.views=some", "evaluation.views='some'"),
        ("evaluation.min_count=0", "evaluation.min_count=0"),
        ("+evaluation.labels=2", "unknown key 'evaluation.labels'"),
    ],
)
def test_a_value_that_means_nothing_is_named(make_config, override, words):
    with pytest.raises(ConfigError) as caught:
        make_config("evaluation=federated", override)
    assert words in str(caught.value)


def test_the_hold_out_alone_takes_none_of_these(make_config):
    with pytest.raises(ConfigError, match=r"evaluation\.fraction"):
        make_config("evaluation.fraction=0.2")


def test_one_record_more_moves_no_other_records_cells_where_the_method_draws_what_it_fills_in(make_config):
    """uniform_fill draws for each record: what one gets must not depend on how many were scored before it."""
    config = make_config("evaluation=federated", "method=uniform_fill")
    federation = Federation(config, sites(*[BOTH] * 5))
    phase, model = phase_of(federation), federation.new_model()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # away from zero, where every score is the same
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    records = simulate(config).records["site01"]
    batch = model.prepare(records.select(np.arange(20)))

    def counts(of: slice) -> np.ndarray:
        rows = batch.select(torch.arange(20)[of])
        cell_map = {"evaluation.text": lambda one: phase.cells(model, "evaluation.text", one, None)}
        return exact_counts(cell_map, phase.groups, phase.width, rows)["evaluation.text"]

    changed = counts(slice(0, 20)) - counts(slice(1, 20))
    assert changed.min() >= 0
    assert changed.reshape(phase.groups, phase.width).sum(axis=1).max() <= 1
