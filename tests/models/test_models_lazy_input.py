"""Images in files make the same features and gradients as images in memory, and are read no sooner than needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from radiology_trees import films, write_open_i_csv

from secure_fed.data import load
from secure_fed.data.config import OpenIConfig
from secure_fed.data.images import PART, LazyImages, ReadImages, parts
from secure_fed.errors import DataError
from secure_fed.models.config import FilterbankConfig, ModelConfig, SmallCnnConfig
from secure_fed.models.lazy_input import LazyInput
from secure_fed.models.multimodal import build_model
from secure_fed.models.prepared import PreparedCache

ENCODERS = {"filterbank": FilterbankConfig(), "small_cnn": SmallCnnConfig(channels=2)}


@pytest.fixture
def lazy(tmp_path):
    """Records whose images lie in files."""
    root = write_open_i_csv(films(patients=6), tmp_path / "tree")
    return load(OpenIConfig(root=root, image_size=32), 0).records


@pytest.fixture
def eager(lazy):
    """The same records, their images in memory."""
    return replace(lazy, values={**lazy.values, "image": np.asarray(lazy.values["image"])})


def model_for(records, encoder):
    return build_model(records.schema, ModelConfig(image=ENCODERS[encoder]), {}, 0)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_features_and_gradients_are_those_of_images_in_memory(lazy, eager, encoder):
    model = model_for(lazy, encoder)
    found = []
    for records in (lazy, eager):
        batch = model.prepare(records).select(torch.tensor([3, 0, 5]))
        model.zero_grad()
        feature = model.encode_one(batch, "image")
        feature.square().sum().backward()
        gradients = [p.grad.clone() for p in model.component_parameters("encoder.image")]
        found.append([feature.detach(), *gradients])
    for of_files, of_memory in zip(*found, strict=True):
        torch.testing.assert_close(of_files, of_memory, rtol=0, atol=0)


def test_a_batch_reads_its_own_images_and_no_others(lazy):
    model = model_for(lazy, "small_cnn")
    batch = model.prepare(lazy)
    assert isinstance(batch.inputs["image"], LazyInput)
    files = lazy.values["image"].files
    for file in np.delete(files, [1, 4]):
        Path(file).unlink()
    chosen = batch.select(torch.tensor([4, 1]))
    assert model.encode_one(chosen, "image").shape == (2, 32)
    assert not model.encode_one(batch.without({"image"}), "image").any()
    with pytest.raises(DataError, match=Path(files[0]).name):
        model.encode_one(batch.select(torch.tensor([0])), "image")


def test_an_absent_image_is_a_row_of_zeros_and_reads_nothing(lazy):
    model = model_for(lazy, "small_cnn")
    files = lazy.values["image"].files.copy()
    files[0] = ""
    presence = {**lazy.presence, "image": files != ""}
    records = replace(lazy, values={**lazy.values, "image": LazyImages(files, 32)}, presence=presence)
    feature = model.encode_one(model.prepare(records), "image")
    assert not feature[0].any()
    assert feature[1:].any()
    with pytest.raises(DataError, match="must have a file where the modality is present"):
        replace(records, presence=lazy.presence)


def test_a_batch_is_read_once_though_losses_look_twice(lazy):
    batch = model_for(lazy, "small_cnn").prepare(lazy).select(torch.arange(3))
    first = batch.input("image")
    for file in lazy.values["image"].files:
        Path(file).unlink()
    assert batch.input("image") is first


def test_a_large_batch_goes_through_the_encoder_in_parts_where_nothing_is_trained(lazy):
    model = model_for(lazy, "small_cnn")
    many = lazy.select(np.arange(PART + 7) % len(lazy))
    with torch.no_grad():
        whole = model.encode_one(model.prepare(many), "image")
    few = model.encode_one(model.prepare(lazy), "image").detach()
    torch.testing.assert_close(whole, few[torch.arange(PART + 7) % len(lazy)], rtol=1e-5, atol=1e-6)


def test_every_image_is_looked_at_once_before_anything_is_charged(lazy):
    batch = model_for(lazy, "small_cnn").prepare(lazy)
    assert batch.require_readable() is batch
    last = Path(lazy.values["image"].files[-1])
    last.write_bytes(last.read_bytes()[:150])
    with pytest.raises(DataError, match=last.name):
        batch.require_readable()


def test_read_images_are_kept_within_their_bound_and_only_while_the_file_is_the_same(lazy):
    files = lazy.values["image"].files
    size = 32 * 32 * 4
    kept = ReadImages(most_bytes=2 * size)
    first = kept.of(files[0], 32)
    assert kept.of(files[0], 32) is first
    kept.of(files[1], 32)
    kept.of(files[2], 32)  # the bound is two images: the first goes
    assert kept.of(files[0], 32) is not first
    before = kept.of(files[0], 32)
    Path(files[0]).write_bytes(Path(files[1]).read_bytes() + b"\0")
    assert not np.array_equal(kept.of(files[0], 32), before)


def test_parts_are_the_rows_in_order():
    rows = np.arange(10).reshape(5, 2)
    assert [part.tolist() for part in parts(rows, 2)] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]]]
    assert [part.shape for part in parts(rows[:0], 2)] == [(0, 2)]


def test_what_was_prepared_is_kept_without_reading_the_files_again(lazy):
    cache, raw = PreparedCache(), lazy.values["image"]
    calls = []

    def prepare(images):
        calls.append(len(images))
        return torch.from_numpy(np.asarray(images).sum(axis=(1, 2, 3)))

    first = cache.of(raw, prepare)
    assert cache.of(LazyImages(raw.files.copy(), 32), prepare) is first
    assert calls == [len(raw)]
    Path(raw.files[2]).write_bytes(Path(raw.files[3]).read_bytes() + b"\0")
    assert cache.of(raw, prepare) is not first
