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
from secure_fed.privacy.noise import OsNoise, ReproducibleNoise, refuse_shared_streams

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
    for lag in (1, 2, 4096, 8192):  # 4096 apart lie the cosine and the sine of one angle
        assert abs(np.corrcoef(draws[:-lag], draws[lag:])[0, 1]) < 4 / np.sqrt(N)
        assert abs(np.corrcoef(draws[:-lag] ** 2, draws[lag:] ** 2)[0, 1]) < 4 / np.sqrt(N)


def test_each_normal_is_made_of_four_and_so_costs_four_words_of_the_keystream():
    source, twin = ReproducibleNoise(4), ReproducibleNoise(4)
    source.normal((100,), 1.0)
    twin.uniform(4 * 100)
    assert source.seed() == twin.seed()


def test_no_two_normals_of_a_large_draw_coincide():
    draws = ReproducibleNoise(8).normal((N,), 1.0, dtype=torch.float64)
    assert len(torch.unique(draws)) == N


def test_shapes_scalars_odd_counts_and_empties():
    source = ReproducibleNoise(5)
    assert source.normal((), 1.0).shape == ()
    assert source.normal((3, 5), 1.0).shape == (3, 5)
    assert source.normal((8193,), 1.0).shape == (8193,)
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


def test_poisson_samples_are_binomial_and_pairs_of_records_independent_by_chi_square():
    n, rate, steps = 12, 0.3, 20_000
    masks = ReproducibleNoise(9).poisson_mask(n * steps, rate).reshape(steps, n)
    sizes = np.bincount(masks.sum(axis=1), minlength=n + 1)
    expected = stats.binom.pmf(np.arange(n + 1), n, rate) * steps
    tail = 9  # sizes of 9 and more together: no cell below 30
    observed = np.append(sizes[:tail], sizes[tail:].sum())
    assert stats.chisquare(observed, np.append(expected[:tail], expected[tail:].sum())).pvalue > 0.01
    # Who is in together, over all 66 pairs and their four outcomes; the smallest p-value of 66.
    cells = np.outer([1 - rate, rate], [1 - rate, rate]).ravel() * steps
    pairs = [np.bincount(2 * masks[:, i] + masks[:, j], minlength=4) for i in range(n) for j in range(i)]
    assert min(stats.chisquare(pair, cells).pvalue for pair in pairs) > 0.01 / len(pairs)
    # And from one step to the next.
    following = [np.bincount(2 * masks[:-1, i] + masks[1:, i], minlength=4) for i in range(n)]
    assert min(stats.chisquare(pair, cells * (steps - 1) / steps).pvalue for pair in following) > 0.01 / n


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


def test_a_check_for_shared_streams_names_both_holders_and_leaves_the_global_generators_alone():
    one = OsNoise()
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    with pytest.raises(PrivacyError, match=r"'site01' and of 'site03'.*give each its own"):
        refuse_shared_streams({"site01": one, "site02": OsNoise(), "site03": one})
    root = ReproducibleNoise(0)
    with pytest.raises(PrivacyError, match="'round1' and of 'round2'"):
        refuse_shared_streams({"round1": root.derive("encode"), "round2": root.derive("encode")})
    refuse_shared_streams({"round1": root.derive("1/encode"), "round2": root.derive("2/encode")})
    assert (torch.rand(1), np.random.rand()) == expected


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


def test_forked_processes_down_to_the_grandchild_draw_noise_of_their_own():
    source, derived = OsNoise(), OsNoise().derive("a phase")
    source.normal((5,), 1.0)  # in the middle of its stream

    def draw():
        return source._words(2).tobytes() + derived._words(2).tobytes()

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        os.write(writer, draw())
        if grandchild:
            os.waitpid(grandchild, 0)
        os._exit(0)
    os.waitpid(child, 0)
    drawn = os.read(reader, 64) + draw()
    os.close(reader)
    os.close(writer)
    assert len({drawn[start : start + 16] for start in range(0, 96, 16)}) == 6


def test_a_process_that_got_the_number_of_its_grandparent_draws_other_noise(monkeypatch):
    source = OsNoise()
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "getpid", lambda: parent)  # numbers come round again
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
