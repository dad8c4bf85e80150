"""The generative baseline: who trains the generator, what fills a missing report, and losses a record."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from secure_fed.config import compose_config, freeze
from secure_fed.data.config import SyntheticCxrConfig
from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.data.report_tokens import SPECIAL, report_texts, vocabulary_size
from secure_fed.data.synthetic_cxr import generate_synthetic_cxr
from secure_fed.errors import ConfigError, PrivacyError
from secure_fed.methods import build
from secure_fed.methods.base import GradientPhase, in_context, owns
from secure_fed.methods.generative import Generative, GenerativeConfig, generation_loss, generator_of
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import MultimodalModel, build_model
from secure_fed.models.report_generator import ReportGenerator
from secure_fed.privacy.dpsgd import clipped_gradient_sum, dp_sgd
from secure_fed.privacy.noise import OsNoise
from secure_fed.privacy.plan import GaussianPlan, TrainingOptions
from secure_fed.privacy.preflight import preflight

STEPS = {"steps": 2, "learning_rate": 1.0, "unclipped_steps": 3, "unclipped_learning_rate": 0.5}
TINY = {"d_model": 8, "heads": 2, "layers": 2, "feed_forward": 12, "max_tokens": 6, "visual_tokens": 2}
PAIR = ("image", "report")
COMPONENT = "generator.image_to_report"
BOTH = frozenset(PAIR)
REPORTS = ("cardiomegaly with small effusion", "no effusion or pneumothorax.", "zzz edema", "FINDINGS: clear.")
SCHEMA = Schema(
    modalities=(
        ModalitySpec("image", "image", (1, 32, 32)),
        ModalitySpec("report", "text", ()),
        ModalitySpec("vitals", "tabular", (3,), ("a", "b", "c")),
    ),
    labels=("x", "y"),
)


def make_method(schedule: str = "every_round", **generator: object) -> Generative:
    config = GenerativeConfig.model_validate(
        {"name": "generative", "generator": {**TINY, **generator}, "classify": STEPS, "generate": STEPS,
         "schedule": schedule, "generator_share": 0.25}
    )  # fmt: skip
    method = build(config)
    assert isinstance(method, Generative)
    return method


def shipped_config(name: str, folder: Path) -> GenerativeConfig:
    config = freeze(compose_config([f"method={name}"]), folder).method
    assert isinstance(config, GenerativeConfig)
    return config


def make_model(method: Generative, asleep: bool = False, **config: object) -> MultimodalModel:
    """A model away from its zero initialisation, unless it shall be `asleep`."""
    settings = ModelConfig.model_validate({"feature_width": 8, **config})
    model = build_model(SCHEMA, settings, method.parts(SCHEMA, [PAIR], settings), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in () if asleep else model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def make_records(n: int = 6, patients: int | None = None) -> Records:
    """Of each four records one lacks the image, one the report, and two have both; vitals are everywhere."""
    rng = np.random.default_rng(0)
    image, report = np.arange(n) % 4 != 1, np.arange(n) % 4 != 2
    texts = np.array([REPORTS[i % 4] if there else "" for i, there in enumerate(report)], dtype=object)
    return Records(
        schema=SCHEMA,
        values={
            "image": rng.random((n, 1, 32, 32), dtype=np.float32) * image[:, None, None, None],
            "report": texts,
            "vitals": rng.standard_normal((n, 3)).astype(np.float32),
        },
        presence={"image": image, "report": report, "vitals": np.ones(n, dtype=bool)},
        labels=(rng.random((n, 2)) < 0.5).astype(np.float32),
        unit_ids=np.array([f"p{i % (patients or n)}" for i in range(n)]),
    )


def loss_of(method: Generative, name: str):
    (phase,) = (p for p in method.phases(SCHEMA, [PAIR], 4, 8) if p.name == name)
    assert isinstance(phase, GradientPhase)
    return phase.components, in_context(phase.loss, None)


# -- what is filled in ------------------------------------------------------------------------------------------


def filled_and_expected(method: Generative, model: MultimodalModel, batch: Batch) -> tuple[Tensor, Tensor]:
    features = model.encode(batch)
    ids = generator_of(model, PAIR).generate(features["image"].detach())
    encoder = model.encoders["report"]
    return method.impute(model, batch, features)["report"].mean, encoder(encoder.prepare(report_texts(ids.numpy())))


def test_a_missing_report_is_the_encoding_of_what_the_generator_writes_of_the_film():
    method = make_method()
    model = make_model(method)
    batch = model.prepare(make_records(8))
    found, expected = filled_and_expected(method, model, batch)
    lacking = batch.presence["image"] & ~batch.presence["report"]
    assert lacking.sum() == 2
    assert expected[lacking].any(dim=1).all()
    torch.testing.assert_close(found[lacking], expected[lacking])
    assert not found[~lacking].any()


def test_everything_else_is_zero_filled():
    method = make_method()
    model = make_model(method)
    batch = model.prepare(make_records(8)).without({"vitals", "image"})
    imputed = method.impute(model, batch, model.encode(batch))
    assert not any(imputation.mean.any() for imputation in imputed.values())


def test_an_untrained_generator_is_zero_filling_and_writes_nothing(monkeypatch):
    method = make_method()
    model = make_model(method, asleep=True)
    monkeypatch.setattr(ReportGenerator, "generate", None)
    batch = model.prepare(make_records())
    assert not method.impute(model, batch, model.encode(batch))["report"].mean.any()


def test_a_report_that_is_missing_cannot_be_looked_at():
    method = make_method()
    model = make_model(method)
    batch = model.prepare(make_records(8)).without({"report"}).unlabelled()
    features = model.encode(batch)
    found = method.impute(model, batch, features)["report"].mean
    tokens = batch.extras["report"][COMPONENT]
    assert not tokens.any(), "its words went with it"
    garbled = replace(batch, extras={"report": {COMPONENT: torch.full_like(tokens, SPECIAL)}})
    assert found.any()
    assert torch.equal(make_method().impute(model, garbled, features)["report"].mean, found)


def test_no_gradient_passes_through_what_was_written():
    method = make_method()
    model = make_model(method)
    batch = model.prepare(make_records(8)).without({"report"})
    logits = method.logits(model, batch)
    gradients = torch.autograd.grad(logits.sum(), list(model.parameters()), allow_unused=True)
    reached = {
        name.split(".")[1] for (name, _), g in zip(model.named_parameters(), gradients, strict=True) if g is not None
    }
    assert "report" not in reached
    assert "generator" not in reached
    assert "image" in reached


def test_a_film_is_written_about_once_for_all_views_until_the_generator_changes(monkeypatch):
    method = make_method()
    model = make_model(method)
    written: list[int] = []
    generate = ReportGenerator.generate

    def counted(self: ReportGenerator, source: Tensor) -> Tensor:
        written.append(len(source))
        return generate(self, source)

    monkeypatch.setattr(ReportGenerator, "generate", counted)
    batch = model.prepare(make_records(8)).without({"report"})
    features = model.encode(batch)
    first = method.impute(model, batch, features)["report"].mean
    some = torch.tensor([0, 3, 4])
    again = method.impute(model, batch.select(some), {name: value[some] for name, value in features.items()})
    assert torch.equal(again["report"].mean, first[some])
    assert written == [6]
    with torch.no_grad():
        generator_of(model, PAIR).out.bias[SPECIAL] = 50.0
    changed = method.impute(model, batch, features)["report"].mean
    assert written == [6, 6]
    assert not torch.equal(changed, first)


# -- who trains it, and when ------------------------------------------------------------------------------------


def test_sites_with_both_train_the_generator():
    method = make_method()
    assert method.pairs(SCHEMA, [frozenset({"image"}), BOTH]) == (PAIR,)
    assert list(method.parts(SCHEMA, [PAIR], ModelConfig())) == [COMPONENT]
    assert owns(COMPONENT, BOTH)
    assert not owns(COMPONENT, frozenset({"image", "vitals"}))


@pytest.mark.parametrize(
    ("schema", "owned", "named"),
    [
        (SCHEMA, [frozenset({"image"}), frozenset({"report"})], "owns both image and report"),
        (Schema(SCHEMA.modalities[1:], ("x",)), [BOTH], "none of kind image"),
        (Schema((*SCHEMA.modalities, ModalitySpec("note", "text", ())), ("x",)), [BOTH], "report, note of kind text"),
    ],
)
def test_what_it_cannot_work_with_is_refused_by_name(schema, owned, named):
    with pytest.raises(ConfigError, match=named):
        make_method().pairs(schema, owned)


@pytest.mark.parametrize("config", [{}, {"image": {"name": "filterbank"}}])
def test_an_extractor_of_its_own_needs_an_encoder_that_keeps_images(config):
    method = make_method(visual="resnet101")
    with pytest.raises(ConfigError, match=r"resnet101.*filterbank.*small_cnn"):
        method.parts(SCHEMA, [PAIR], ModelConfig.model_validate(config))
    assert method.parts(SCHEMA, [PAIR], ModelConfig.model_validate({"image": {"name": "small_cnn"}}))


def test_the_schedule_trains_the_generator_last_or_in_every_round():
    last = {phase.name: (phase.start, phase.stop) for phase in make_method("last").phases(SCHEMA, [PAIR], 8, 8)}
    assert last == {"classify": (0, 6), "generate": (6, 8)}
    every = {phase.name: (phase.start, phase.stop) for phase in make_method().phases(SCHEMA, [PAIR], 8, 8)}
    assert every == {"classify": (0, 8), "generate": (0, 8)}
    with pytest.raises(ConfigError, match=r"federation\.rounds=1"):
        make_method("last").phases(SCHEMA, [PAIR], 1, 8)


def test_the_shipped_configurations_are_this_method_and_the_papers_has_its_sizes(tmp_path):
    small, paper = (shipped_config(name, tmp_path) for name in ("generative", "generative_paper"))
    assert small.generator.visual == "features"
    sizes = paper.generator
    assert (sizes.visual, sizes.d_model, sizes.layers, sizes.heads) == ("resnet101", 512, 3, 8)
    assert (sizes.memory_slots, sizes.beam, sizes.max_tokens) == (3, 3, 60)


# -- losses a record --------------------------------------------------------------------------------------------


def reference_rows(model: MultimodalModel, components: tuple[str, ...], loss, batch: Batch) -> Tensor:
    """Gradients by unit [U, P] by plain autograd, one unit after another."""
    parameters = [p for component in components for p in model.component_parameters(component)]
    rows = []
    for unit in range(batch.unit_count):
        value = loss(model, batch.select_units(torch.tensor([unit]))).sum()
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        rows.append(
            torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, gradients)])  # noqa: B905
        )
    return torch.stack(rows)


@pytest.mark.parametrize("patients", [None, 3], ids=["record", "patient"])
@pytest.mark.parametrize("phase", ["generate", "classify"])
def test_the_clipped_sum_of_each_phase_equals_a_per_record_loop(phase, patients):
    method = make_method()
    model = make_model(method)
    batch = model.prepare(make_records(6, patients), "record" if patients is None else "patient")
    components, loss = loss_of(method, phase)
    rows = reference_rows(model, components, loss, batch)
    norms = rows.norm(dim=1, keepdim=True)
    bound = float(norms[norms > 0].median())
    expected = (rows * (bound / norms.clamp(min=bound))).sum(dim=0)
    found = clipped_gradient_sum(model, components, loss, batch, bound)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * bound)


@pytest.mark.parametrize("phase", ["generate", "classify"])
def test_the_preflight_passes_both_phases(phase):
    method = make_method()
    model = make_model(method, asleep=True)
    components, loss = loss_of(method, phase)
    plan = GaussianPlan(phase=phase, max_grad_norm=1.0, noise_multiplier=1.0, sample_rate=1.0, steps=1, declared_n=6)
    preflight(model, components, loss, plan, OsNoise())


def test_ghost_norms_are_refused_for_layers_that_a_report_calls_once_a_token():
    method = make_method()
    model = make_model(method)
    components, loss = loss_of(method, "generate")
    with pytest.raises(PrivacyError, match="back_end='hooks'"):
        clipped_gradient_sum(model, components, loss, model.prepare(make_records()), 1.0, "ghost")


def test_records_without_both_teach_the_generator_nothing_and_the_encoders_stand_still():
    method = make_method()
    model = make_model(method)
    batch = model.prepare(make_records(8))
    losses = generation_loss(model, batch, None, PAIR)
    both = batch.presence["image"] & batch.presence["report"]
    assert (losses[both] > 0).all()
    assert not losses[~both].any()
    losses.sum().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"parts"}
    assert not generation_loss(model, batch.without({"report"}), None, PAIR).any()


# -- it learns --------------------------------------------------------------------------------------------------


def test_trained_on_pairs_it_tells_reports_better_than_their_words_frequencies_do():
    records = generate_synthetic_cxr(SyntheticCxrConfig(name="synthetic_cxr", patients=250, image_size=32), 0)
    method = make_method(d_model=16, layers=1, max_tokens=12, feed_forward=32)
    settings = ModelConfig()
    pair = ("image", "text")
    model = build_model(records.schema, settings, method.parts(records.schema, [pair], settings), seed=0)
    generator = generator_of(model, pair)
    batch = model.prepare(records)
    train, test = batch.select(torch.arange(len(batch) - 100)), batch.select(torch.arange(len(batch) - 100, len(batch)))
    optimizer = torch.optim.Adam(generator.parameters(), lr=0.01)
    for step in range(50):
        part = train.select(torch.arange(step % 4, len(train), 4))
        optimizer.zero_grad()
        generation_loss(model, part, None, pair).mean().backward()
        optimizer.step()
    ids = test.extras["text"]["generator.image_to_text"]
    learnt = train.extras["text"]["generator.image_to_text"].flatten()
    counts = torch.bincount(learnt, minlength=vocabulary_size()) + 0.1
    counts[0] = 0.0
    unigram = -(counts / counts.sum()).log()[ids].where(ids > 0, 0.0).sum(dim=1).mean()
    with torch.no_grad():
        learned = generation_loss(model, test, None, pair).mean()
    assert learned < 0.7 * unigram
    written = report_texts(generator.generate(model.encode_one(test, "image")).numpy())
    assert all(text for text in written)


@pytest.mark.slow
def test_reports_written_of_films_alone_tell_the_findings_better_than_chance():
    records = generate_synthetic_cxr(SyntheticCxrConfig(patients=1200), 0)
    method = make_method(d_model=32, heads=4, layers=1, feed_forward=64, max_tokens=32, visual_tokens=4)
    settings, pair = ModelConfig(), ("image", "text")
    model = build_model(records.schema, settings, method.parts(records.schema, [pair], settings), seed=0)
    batch = model.prepare(records)
    train, test = batch.select(torch.arange(1500)), batch.select(torch.arange(1500, len(batch)))
    draw = torch.Generator().manual_seed(0)

    def descend(components: tuple[str, ...], loss, steps: int) -> None:
        parameters = [p for component in components for p in model.component_parameters(component)]
        optimizer = torch.optim.Adam(parameters, lr=5e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model, train.select(torch.randperm(len(train), generator=draw)[:128]), None).mean().backward()
            optimizer.step()

    descend(("encoder.image", "encoder.text", "fusion"), method.classification_loss, 300)
    descend(("generator.image_to_text",), partial(generation_loss, pair=pair), 360)
    with torch.no_grad():
        lacking = test.without({"text"})
        features = method.fill(model, lacking, model.encode(lacking))
        from_report = model.classify({**features, "image": torch.zeros_like(features["image"])})
    found = roc_auc_score(test.labels.numpy(), from_report.numpy(), average="macro")
    print(f"macro AUROC of generated reports alone: {found:.3f}")  # noqa: T201
    assert found > 0.55


@pytest.mark.slow
def test_a_noisy_step_at_the_papers_sizes_moves_the_generator_and_nothing_else(tmp_path):
    method = build(shipped_config("generative_paper", tmp_path))
    settings = ModelConfig.model_validate({"feature_width": 8, "image": {"name": "small_cnn"}})
    model = build_model(SCHEMA, settings, method.parts(SCHEMA, [PAIR], settings), seed=0)
    before = {name: model.get_component(name) for name in model.components()}
    plan = GaussianPlan(
        phase="generate", max_grad_norm=1.0, noise_multiplier=1e-3, sample_rate=1.0, steps=1, declared_n=2
    )
    batch = model.prepare(make_records(4)).select(torch.tensor([0, 3]))
    loss = in_context(partial(generation_loss, pair=PAIR), None)
    dp_sgd(model, [COMPONENT], loss, batch, plan, TrainingOptions(learning_rate=1.0), OsNoise())
    moved = {name for name, values in before.items() if not np.array_equal(values, model.get_component(name))}
    assert moved == {COMPONENT}
    # Two clipped gradients over two records: at most the clip, and noise far below it.
    assert 0.1 < np.linalg.norm(model.get_component(COMPONENT) - before[COMPONENT]) < 10.0
    assert np.isfinite(model.get_component(COMPONENT)).all()
    assert generator_of(model, PAIR).generate(batch.inputs["image"][:1], full_length=True).shape == (1, 60)
