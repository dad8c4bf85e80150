"""Public weights under DP-SGD: adapters, frozen networks and converted ones are what the mechanism takes them for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dp_fixtures import (
    SilentNoise,
    classification_loss,
    clipped,
    make_batch,
    make_model,
    plan,
    reference_gradients,
    sensitivity,
)
from public_checkpoints import bert_folder, resnet_state
from safetensors.torch import save_file

from secure_fed.models import frozen
from secure_fed.models.prepared import PreparedCache
from secure_fed.privacy.dpsgd import clipped_gradient_sum, dp_sgd
from secure_fed.privacy.made_up import made_up_batch
from secure_fed.privacy.noise import OsNoise
from secure_fed.privacy.plan import TrainingOptions
from secure_fed.privacy.preflight import preflight
from secure_fed.privacy.sensitivity import TOLERANCE

BACK_ENDS = ("hooks", "ghost")
TRAINED = {
    "bert, adapters": ("encoder.report", "fusion"),
    "bert, head": ("encoder.report", "fusion"),
    "bert, all": ("encoder.report", "fusion"),
    "resnet18, head": ("encoder.image", "fusion"),
    "resnet18, all": ("encoder.image", "fusion"),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    save_file(resnet_state(), root / "resnet18.safetensors")
    return {"resnet18": root / "resnet18.safetensors", "bert": bert_folder(root / "bert")}


def model_of(name, checkpoints, **changes):
    network, train = name.split(", ")
    kind, encoder = ("text", "bert_small") if network == "bert" else ("image", network)
    own = {"max_tokens": 8, "adapters": {"rank": 2}} if network == "bert" else {}
    config = {"name": encoder, "weights": checkpoints[network], "train": train, **own, **changes}
    return make_model(side=32, **{kind: config})


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("name", TRAINED)
def test_the_clipped_sum_equals_a_per_record_loop(name, back_end, checkpoints):
    model = model_of(name, checkpoints)
    batch = make_batch(model, n=5)
    rows = reference_gradients(model, TRAINED[name], classification_loss, batch)
    bound = float(rows.norm(dim=1).median())
    found = clipped_gradient_sum(model, TRAINED[name], classification_loss, batch, bound, back_end)
    torch.testing.assert_close(found, clipped(rows, bound), rtol=1e-4, atol=1e-4 * bound)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_every_adapter_has_a_gradient_once_it_is_away_from_its_start(back_end, checkpoints):
    model = model_of("bert, adapters", checkpoints)
    total = clipped_gradient_sum(model, ("encoder.report",), classification_loss, make_batch(model), 1e3, back_end)
    parts = torch.split(total, [p.numel() for p in model.component_parameters("encoder.report")])
    assert all(part.any() for part in parts)


@pytest.mark.parametrize("name", ["bert, adapters", "bert, head", "resnet18, head"])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_leaving_one_record_out_moves_the_clipped_sum_by_at_most_the_bound(name, back_end, checkpoints):
    model = model_of(name, checkpoints)
    batch = make_batch(model, n=4)
    for bound in (0.01, 1.0):
        assert sensitivity(model, TRAINED[name], classification_loss, batch, bound, back_end) <= 1 + TOLERANCE


@pytest.mark.parametrize("name", ["bert, head", "resnet18, head"])
def test_a_site_without_one_record_prepares_the_others_to_the_same_bits(name, checkpoints, monkeypatch):
    model = model_of(name, checkpoints)
    batches = []
    for n in (6, 5):  # the fixture's first records are the same for every n
        monkeypatch.setattr(frozen, "_PREPARED", PreparedCache())
        rng = np.random.default_rng(7)
        raw = {"image": rng.random((6, 1, 32, 32), dtype=np.float32), "report": np.array([*"abcdef"], dtype=object)}
        modality = "report" if name.startswith("bert") else "image"
        batches.append(model.encoders[modality].prepare(raw[modality][6 - n :]))
    assert torch.equal(batches[0][1:], batches[1])


@pytest.mark.parametrize("name", ["bert, adapters", "bert, head", "resnet18, head"])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_the_preflight_accepts_adapters_and_frozen_networks(name, back_end, checkpoints):
    model = model_of(name, checkpoints)
    preflight(model, TRAINED[name], classification_loss, plan(noise_multiplier=1.1), OsNoise(), back_end=back_end)


@pytest.mark.slow
def test_the_preflight_accepts_a_converted_resnet(checkpoints):
    model = model_of("resnet18, all", checkpoints)
    preflight(model, TRAINED["resnet18, all"], classification_loss, plan(noise_multiplier=1.1), OsNoise())


@pytest.mark.parametrize("name", TRAINED)
def test_made_up_records_suit_an_encoder_from_weights_at_another_size_too(name, checkpoints):
    model = model_of(name, checkpoints, **({"side": 64} if "resnet" in name else {}))
    batch = made_up_batch(model, 3, seed=0)
    assert torch.isfinite(model.classify(model.encode(batch))).all()


@pytest.mark.parametrize("name", ["bert, adapters", "resnet18, head"])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_training_moves_the_components_and_nothing_public(name, back_end, checkpoints):
    model = model_of(name, checkpoints)
    batch = make_batch(model)
    before, frozen_before = model.digest(), {name: b.clone() for name, b in model.named_buffers()}
    training = TrainingOptions(learning_rate=0.5, back_end=back_end)
    dp_sgd(model, TRAINED[name], classification_loss, batch, plan(steps=2), training, SilentNoise(0))
    assert model.digest() != before
    for buffer_name, buffer in model.named_buffers():
        assert torch.equal(buffer, frozen_before[buffer_name])
    again = model_of(name, checkpoints)
    modality = TRAINED[name][0].removeprefix("encoder.")
    assert torch.equal(make_batch(again).inputs[modality], batch.inputs[modality])


@pytest.mark.slow
@pytest.mark.parametrize("train", ["all", "head"])
def test_resnet50_takes_private_steps_on_the_papers_images(tmp_path, train):
    save_file(resnet_state("resnet50"), tmp_path / "resnet50.safetensors")
    image = {"name": "resnet50", "weights": tmp_path / "resnet50.safetensors", "side": 224, "train": train}
    _takes_a_step(make_model(side=224, feature_width=256, image=image), ("encoder.image", "fusion"))


@pytest.mark.slow
@pytest.mark.parametrize("train", ["all", "head", "adapters"])
def test_bert_base_takes_private_steps(tmp_path, train):
    folder = bert_folder(tmp_path / "bert", layers=12, hidden=768, heads=12, vocabulary=30522, positions=512)
    sizes = {"layers": 12, "hidden": 768, "heads": 12, "max_tokens": 128}
    text = {"name": "bert_base", "weights": folder, "train": train, **sizes}
    _takes_a_step(make_model(feature_width=256, text=text), ("encoder.report", "fusion"))


def _takes_a_step(model, components):
    batch = make_batch(model, n=2)
    before = model.digest()
    for back_end in BACK_ENDS:
        training = TrainingOptions(learning_rate=1e-3, back_end=back_end)
        dp_sgd(model, components, classification_loss, batch, plan(declared_n=2), training, OsNoise())
    assert model.digest() != before
    assert np.isfinite(model.get_component(components[0])).all()
