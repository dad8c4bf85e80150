"""The noise: its distribution, its independence, and that no two holders ever draw the same stream."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from secure_fed.errors import PrivacyError
from secure_fed.privacy.noise import OsNoise, ReproducibleNoise

N = 200_000


def test_normals_are_normal_by_moments_and_by_kolmogorov_smirnov():
    draws = ReproducibleNoise(1).normal((N,), 2.5, dtype=torch.float64).numpy() / 2.5
    # Standard errors of mean, variance, skewness, kurtosis of N normals; 4 of each, key fixed.
    assert abs(draws.mean()) < 4 / np.sqrt(N)
    assert abs(draws.var() - 1) < 4 * np.sqrt(2 / N)
    assert abs(stats.skew(draws)) < 4 * np.sqrt(6 / N)
    assert abs(stats.kurtosis(draws)) < 4 * np.sqrt(24 / N)
    assert stats.kstest(draws, "norm").pvalue > 0.01


def test_the_tails_are_there():
    draws = ReproducibleNoise(2).normal((N,), 1.0).numpy()
    for bound in (2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * N
        assert abs((np.abs(draws) > bound).sum() - expected) < 4 * np.sqrt(expected) + 1


def test_neighbouring_draws_and_both_halves_of_a_block_are_uncorrelated():
    draws = ReproducibleNoise(3).normal((N,), 1.0, dtype=torch.float64).numpy()
    for lag in (1, 2, 2048, 4096):  # 2048 apart lie the cosine and the sine of one angle
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 4 / np.sqrt(N)
        assert abs(np.corrcoef(draws[:-lag] ** 2, draws[lag:] ** 2)[0, 1]) < 4 / np.sqrt(N)


def test_each_normal_is_made_of_four_and_so_costs_four_words_of_the_keystream():
    source, twin = ReproducibleNoise(4), ReproducibleNoise(4)
    source.normal((100,), 1.0)
    twin.uniform(4 * 100)
    assert source.seed() == twin.seed()


def test_no_two_normals_of_a_large_draw_coincide():
    # The floating-point attack lives on how few values a textbook sampler can reach.
    draws = ReproducibleNoise(8).normal((N,), 1.0, dtype=torch.float64)
    assert len(torch.unique(draws)) == N


def test_shapes_scalars_odd_counts_and_empties():
    source = ReproducibleNoise(5)
    assert source.normal((), 1.0).shape == ()
    assert source.normal((3, 5), 1.0).shape == (3, 5)
    assert source.normal((4097,), 1.0).shape == (4097,)
    assert source.normal((0, 7), 1.0).shape == (0, 7)
    assert source.normal((2,), 1.0).dtype == torch.float32
    assert not source.normal((9,), 0.0).any()


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_a_deviation_that_means_nothing_is_refused(std):
    with pytest.raises(PrivacyError, match="std"):
        OsNoise().normal((1,), std)


def test_uniforms_are_uniform_and_below_one():
    draws = ReproducibleNoise(6).uniform(N)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 0.01


@pytest.mark.parametrize("rate", [0.003, 0.3, 0.97])
def test_poisson_samples_take_each_record_with_the_rate_and_independently(rate):
    source = ReproducibleNoise(7)
    masks = np.stack([source.poisson_mask(500, rate) for _ in range(400)])
    total, deviation = masks.sum(), np.sqrt(masks.size * rate * (1 - rate))
    assert abs(total - masks.size * rate) < 4 * deviation
    # The batch size varies as a binomial does: a sampler of fixed size would have no variance here.
    sizes = masks.sum(axis=1)
    expected = 500 * rate * (1 - rate)
    assert abs(sizes.var() / expected - 1) < 4 * np.sqrt(2 / 400 + 1 / (400 * expected))


def test_a_rate_of_one_takes_everyone_and_of_zero_nobody():
    assert OsNoise().poisson_mask(1000, 1.0).all()
    assert not OsNoise().poisson_mask(1000, 0.0).any()
    with pytest.raises(PrivacyError, match=r"sample_rate=1\.5"):
        OsNoise().poisson_mask(1, 1.5)


def test_two_operating_system_sources_differ_and_so_do_their_derived_streams():
    one, two = OsNoise(), OsNoise()
    streams = [one, two, one.derive("a"), one.derive("a")]
    draws = [tuple(stream.normal((4,), 1.0).tolist()) for stream in streams]
    assert len(set(draws)) == 4


def test_reproducible_streams_repeat_and_differ_by_seed_site_round_and_phase():
    def draw(seed, *labels):
        source = ReproducibleNoise(seed)
        for label in labels:
            source = source.derive(label)
        return tuple(source.normal((4,), 1.0).tolist())

    paths = [(0, s, r, p) for s in ("site01", "site02") for r in ("1", "2") for p in ("encoders", "translators")]
    draws = {draw(*path) for path in [*paths, (1, *paths[0][1:])]}
    assert len(draws) == len(paths) + 1
    assert draw(*paths[0]) == draw(*paths[0])


def test_noise_of_two_sites_does_not_cancel_in_their_difference():
    root = ReproducibleNoise(0)
    one, two = (root.derive(site).normal((N,), 1.0).double() for site in ("site01", "site02"))
    assert abs((one - two).var().item() / 2 - 1) < 4 * np.sqrt(2 / N)


def test_a_derived_stream_does_not_depend_on_what_was_drawn_before():
    root = ReproducibleNoise(0)
    before = root.derive("a").normal((3,), 1.0)
    root.normal((1000,), 1.0)
    assert torch.equal(before, root.derive("a").normal((3,), 1.0))


@pytest.mark.parametrize("source", [OsNoise(), ReproducibleNoise(0)], ids=["os", "reproducible"])
def test_a_source_can_be_neither_copied_nor_pickled(source):
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PrivacyError, match="derive"):
            copying(source)


def test_a_forked_process_draws_other_noise_than_its_parent():
    source = OsNoise()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, source._words(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 32) != source._words(4).tobytes()
    os.close(reader)
    os.close(writer)


def test_neither_torch_nor_numpy_seeds_reach_the_noise():
    def seeded():
        torch.manual_seed(0)
        np.random.seed(0)  # the legacy global state is the point
        return OsNoise().normal((8,), 1.0)

    assert not torch.equal(seeded(), seeded())


def test_each_source_names_its_class_for_the_ledger():
    assert ReproducibleNoise(0).rng_class == "insecure_reproducible"
    assert OsNoise().rng_class == "os_urandom_aes256ctr"
