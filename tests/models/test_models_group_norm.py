"""From batch to group norm: what is kept is what the checkpoint's statistics say, and it is said what was done."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from public_checkpoints import IMAGENET_MEAN, IMAGENET_STD, random_resnet, resnet_state
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from secure_fed.models.config import ResNetConfig
from secure_fed.models.convolutional import ResNetEncoder
from secure_fed.models.group_norm import folded, group_norm


def random_batch_norm(channels, seed):
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(channels).eval()
    norm.weight.data = torch.randn(channels, generator=generator)
    norm.bias.data = torch.randn(channels, generator=generator)
    norm.running_mean = 2 * torch.randn(channels, generator=generator)
    norm.running_var = 0.5 + 2 * torch.rand(channels, generator=generator)
    return norm, generator


def converted(norm, groups):
    found = group_norm(norm.num_features, groups)
    scale, shift = folded(norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var, found)
    found.weight.data, found.bias.data = scale, shift
    return found


@given(
    groups=st.sampled_from([1, 2, 4, 8]),
    width=st.sampled_from([1, 2, 4]),
    records=st.integers(1, 3),
    seed=st.integers(0),
)
def test_a_record_with_the_checkpoints_statistics_gets_the_batch_norms_output(groups, width, records, seed):
    channels = groups * width
    norm, generator = random_batch_norm(channels, seed % 2**32)
    x = torch.randn(records, channels, 6, 6, generator=generator)
    x = (x - x.mean(dim=(2, 3), keepdim=True)) / x.std(dim=(2, 3), keepdim=True, correction=0)
    x = x * norm.running_var.sqrt().view(1, -1, 1, 1) + norm.running_mean.view(1, -1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(converted(norm, groups)(x), norm(x), rtol=1e-3, atol=1e-3)


def test_scale_and_shift_of_two_channels_in_one_group_by_hand():
    # Means 1 and 3, variances 1 and 3: the group has mean 2 and variance (1 + 1 + 3 + 9) / 2 - 4 = 3.
    norm = nn.GroupNorm(1, 2, eps=0.0)
    scale, shift = folded(
        torch.tensor([2.0, 1.0]), torch.tensor([0.5, 0.0]), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0]), norm
    )
    torch.testing.assert_close(scale, torch.tensor([2.0 * math.sqrt(3), 1.0]))
    torch.testing.assert_close(shift, torch.tensor([0.5 + 2.0, -1.0 / math.sqrt(3)]))


def test_a_channel_that_never_varied_is_not_blown_up():
    norm = nn.GroupNorm(1, 2)
    ones, zeros = torch.ones(2), torch.zeros(2)
    scale, shift = folded(ones, zeros, torch.tensor([0.0, 0.0]), torch.tensor([0.0, 100.0]), norm)
    assert scale.tolist() == pytest.approx([10.0, math.sqrt(0.5)], rel=1e-3)
    assert torch.isfinite(shift).all()


def test_group_norms_have_thirty_two_groups_or_as_many_as_divide_the_channels():
    assert [group_norm(channels).num_groups for channels in (64, 48, 8, 7)] == [32, 16, 8, 1]


def test_a_converted_resnet_comes_nearer_to_the_checkpoint_than_one_that_keeps_scales_and_shifts(tmp_path):
    network = random_resnet()
    network.fc = nn.Identity()
    state = resnet_state()
    save_file(state, tmp_path / "weights.safetensors")
    kept = {name: value for name, value in state.items() if not name.endswith(("running_mean", "running_var"))}
    save_file(kept, tmp_path / "kept.safetensors")  # as a state with group norms of its own comes
    grey = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    distances = {}
    with torch.no_grad():
        expected = network((grey - IMAGENET_MEAN) / IMAGENET_STD)
        for name in ("weights", "kept"):
            encoder = ResNetEncoder(ResNetConfig(weights=tmp_path / f"{name}.safetensors"), 8, 3.0).eval()
            encoder.resnet.fc = nn.Identity()
            found = encoder.embed(encoder.prepare(grey.numpy()))
            distances[name] = float((found - expected).norm() / expected.norm())
    assert distances["weights"] < 0.5 * distances["kept"]


def test_a_conversion_says_how_many_norms_in_which_groups_and_what_was_dropped(tmp_path):
    save_file(resnet_state(), tmp_path / "weights.safetensors")
    notes = ResNetEncoder(ResNetConfig(weights=tmp_path / "weights.safetensors"), 8, 3.0).notes
    assert notes[0].startswith("weights weights.safetensors, SHA-256 ")
    assert notes[1] == (
        "20 batch norms became group norms (channels in groups: 64 in 32, 128 in 32, 256 in 32, 512 in 32)"
    )
    assert "running means and variances are folded" in notes[2]
    assert notes[3] == "left out: fc.bias and fc.weight (the classes that it was trained on)"


def test_a_state_that_was_saved_with_group_norms_is_taken_as_it_is(tmp_path):
    state = {n: v for n, v in resnet_state().items() if "running" not in n and "num_batches" not in n}
    save_file(state, tmp_path / "weights.safetensors")
    encoder = ResNetEncoder(ResNetConfig(weights=tmp_path / "weights.safetensors"), 8, 3.0)
    assert torch.equal(encoder.resnet.bn1.weight, state["bn1.weight"])
    assert "became group norms" not in " ".join(encoder.notes)


def test_images_are_standardised_and_resampled_for_the_network_but_kept_as_they_came(tmp_path):
    encoder = ResNetEncoder(ResNetConfig(side=96), 8, 3.0).eval()
    raw = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    prepared = encoder.prepare(raw.numpy())
    assert torch.equal(prepared, raw)
    larger = F.interpolate(raw, size=(96, 96), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = encoder.resnet((larger - IMAGENET_MEAN) / IMAGENET_STD)
        torch.testing.assert_close(encoder.embed(prepared), expected)
