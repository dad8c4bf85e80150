"""The noise as it leaves: what dp_sgd releases, by coordinate, step, round and site; and the floating-point attack.

The sampler by itself is in test_privacy_noise.py. Keys are fixed, so a bound of k standard errors either always
holds or never does.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dp_fixtures import ENCODERS_AND_FUSION, classification_loss, flat, make_batch, make_model, plan
from scipy import stats

from secure_fed.errors import PrivacyError
from secure_fed.privacy.dpsgd import dp_sgd
from secure_fed.privacy.noise import NoiseSource, ReproducibleNoise, grid
from secure_fed.privacy.plan import StatisticPlan, TrainingOptions
from secure_fed.privacy.statistics import noisy_sum

STEPS, UNITS = 400, 20
SIGMA, CLIP = 1.5, 2.0


class Recording(ReproducibleNoise):
    """The real source, which also keeps what it noised, what came out, and whom it sampled."""

    def __init__(self, seed):
        super().__init__(seed)
        self.totals, self.released, self.masks = [], [], []

    def noised(self, total, std):
        self.totals.append(total.clone())
        self.released.append(super().noised(total, std))
        return self.released[-1]

    def poisson_mask(self, count, sample_rate):
        self.masks.append(super().poisson_mask(count, sample_rate))
        return self.masks[-1]


@pytest.fixture(scope="module")
def run():
    """One call of dp_sgd: noise [steps, P] in units of its planned deviation, and masks [steps, units]."""
    source = Recording(1)
    settings = plan(steps=STEPS, sample_rate=0.3, declared_n=UNITS, noise_multiplier=SIGMA, max_grad_norm=CLIP)
    model = make_model()
    options = TrainingOptions(learning_rate=1e-3)
    dp_sgd(model, ["fusion"], classification_loss, make_batch(model, n=UNITS), settings, options, source)
    noise = torch.stack(source.released) - torch.stack(source.totals)
    return noise.numpy() / (SIGMA * CLIP), np.stack(source.masks)


def largest_correlation(left, right):
    """max |r| over pairs of columns of [n, A] and [n, B], in standard errors 1 / sqrt(n)."""
    a, b = ((m - m.mean(axis=0)) / m.std(axis=0) for m in (left, right))
    return np.abs(a.T @ b / len(a)).max() * np.sqrt(len(a))


def test_every_coordinate_of_every_step_is_noised_with_the_planned_deviation(run):
    noise, _ = run
    assert noise.shape[0] == STEPS
    # 291 coordinates, 400 draws each: the worst of 291 lies within 4.5 standard errors with chance 0.998.
    assert np.abs(noise.mean(axis=0)).max() < 4.5 / np.sqrt(STEPS)
    assert np.abs(noise.var(axis=0) - 1).max() < 4.5 * np.sqrt(2 / STEPS)
    # And each step over its coordinates.
    assert np.abs(noise.var(axis=1) - 1).max() < 4.5 * np.sqrt(2 / noise.shape[1])


def test_what_is_released_is_normal_by_kolmogorov_smirnov_moments_and_tails(run):
    noise = run[0].ravel()
    n = len(noise)  # 116,400
    assert stats.kstest(noise, "norm").pvalue > 0.01
    assert abs(noise.mean()) < 4 / np.sqrt(n)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs(stats.skew(noise)) < 4 * np.sqrt(6 / n)
    assert abs(stats.kurtosis(noise)) < 4 * np.sqrt(24 / n)
    for bound in (2.0, 3.0, 4.0):
        expected = 2 * stats.norm.sf(bound) * n
        assert abs((np.abs(noise) > bound).sum() - expected) < 4 * np.sqrt(expected)
    # By coordinate: the smallest of 291 p-values.
    by_coordinate = [stats.kstest(column, "norm").pvalue for column in run[0].T]
    assert min(by_coordinate) > 0.01 / len(by_coordinate)


def test_no_two_steps_and_no_two_coordinates_share_noise(run):
    noise, _ = run
    for matrix in (noise, noise.T):
        correlations = np.corrcoef(matrix, rowvar=False)
        np.fill_diagonal(correlations, 0.0)
        # At most 80,000 pairs: beyond 5.5 standard errors with chance 0.003.
        assert np.abs(correlations).max() < 5.5 / np.sqrt(len(matrix))


def test_who_was_sampled_says_nothing_of_the_noise_before_in_or_after_that_step(run):
    noise, masks = run
    masks = masks.astype(float)
    sizes = masks.sum(axis=1, keepdims=True)
    for lag in (-1, 0, 1):
        steps = slice(max(lag, 0), STEPS + min(lag, 0)), slice(max(-lag, 0), STEPS + min(-lag, 0))
        # 20 units x 291 coordinates: beyond 5.2 standard errors with chance 0.001.
        assert largest_correlation(masks[steps[0]], noise[steps[1]]) < 5.2
        assert largest_correlation(sizes[steps[0]], noise[steps[1]] ** 2) < 4.5


def moved(source):
    """What three noisy steps on nobody's records move a model of 16,000 numbers by."""
    model = make_model()
    before = flat(model, ENCODERS_AND_FUSION)
    nobody = make_batch(model).select(torch.zeros(0, dtype=torch.int64))
    settings = plan(steps=3)
    dp_sgd(model, ENCODERS_AND_FUSION, classification_loss, nobody, settings, TrainingOptions(), source)
    return (flat(model, ENCODERS_AND_FUSION) - before).double().numpy()


def test_updates_of_two_rounds_and_of_two_sites_share_no_noise():
    root = ReproducibleNoise(0)
    labels = [f"{site}/{n}/{phase}" for site in ("site01", "site02") for n in (1, 2) for phase in ("encode", "fuse")]
    updates = np.stack([moved(root.derive(label)) for label in labels])
    correlations = np.corrcoef(updates) - np.eye(len(labels))
    assert np.abs(correlations).max() < 4.5 / np.sqrt(updates.shape[1])  # 28 pairs
    # In the difference of two the noise adds up: nothing of it cancels.
    difference = (updates[0] - updates[4]).var() / (updates[0].var() + updates[4].var())
    assert abs(difference - 1) < 4 * np.sqrt(2 / updates.shape[1])


# -- the floating-point attack ------------------------------------------------------------------------------------
# An observer knows the noise's deviation and two candidates for the true value, and asks of a released y whether
# y - candidate is a value that the sampler can give. A single "no" tells the candidates apart: epsilon is infinite.


def textbook(k1, k2):
    """Box-Muller on 24-bit uniforms (k + 1) 2^-24 and k 2^-24, the usual thing in float32."""
    radius = np.sqrt(-2 * np.log((k1 + 1) * 2.0**-24))
    angle = 2 * np.pi * k2 * 2.0**-24
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).astype(np.float32)


def could_be_textbook(pairs, candidate):
    """bool [n]: is there a pair of uniforms that turns `candidate` [2] into the released `pairs` float32 [n, 2]?"""
    noise = pairs.astype(np.float64) - candidate
    k1 = np.exp(-(noise**2).sum(axis=1) / 2) * 2**24 - 1
    k2 = np.arctan2(noise[:, 1], noise[:, 0]) / (2 * np.pi) % 1 * 2**24
    near = np.arange(-3, 4)
    first = np.clip(np.rint(k1)[:, None, None] + near[:, None], 0, 2**24 - 1)
    second = (np.rint(k2)[:, None, None] + near) % 2**24
    again = candidate.astype(np.float32) + textbook(*np.broadcast_arrays(first, second))
    return (again == pairs[:, None, None, :]).all(axis=-1).any(axis=(1, 2))


def test_the_attack_tells_candidates_apart_on_a_textbook_sampler():
    rng = np.random.default_rng(0)
    noise = textbook(rng.integers(0, 2**24, 3000), rng.integers(0, 2**24, 3000))
    noise = noise[np.hypot(*noise.T) > 0.3]  # near the centre the search would need a wider window
    true, wrong = np.array([0.0, 0.0]), np.array([0.7, 0.0])
    released = true.astype(np.float32) + noise
    assert could_be_textbook(released, true).all()
    # More than half of all pairs cannot have come from the wrong candidate.
    assert could_be_textbook(released, wrong).mean() < 0.5


def test_the_attack_tells_candidates_apart_on_a_half_sum_of_four_that_is_scaled_and_added_in_float64():
    # Why `noised` rounds to a grid. Scaling spreads the floats of one binade over the more of the next.
    std, wrong = 1.5, 2.0**-30
    released = ReproducibleNoise(3).normal((20_000,), std, dtype=torch.float64).numpy()  # the true value is 0

    def could_be(noise):
        nearest = noise / std
        tried = (nearest, np.nextafter(nearest, np.inf), np.nextafter(nearest, -np.inf))
        return np.any([candidate * std == noise for candidate in tried], axis=0)

    assert could_be(released).all()
    outside = ~could_be(released - wrong)
    assert outside.mean() > 0.02  # of a model's 20,000 numbers, hundreds convict the wrong candidate


class Scripted(NoiseSource):
    """A source whose keystream is written down."""

    rng_class = "scripted"

    def __init__(self, words):
        self._script = words

    def derive(self, label):
        raise NotImplementedError

    def _stream(self):
        raise NotImplementedError

    def _words(self, count):
        assert count == len(self._script)
        return self._script


def keystream_for(noise, rng):
    """Eight words from which our sampler makes about the standard normals `noise` [2]: three pairs free, one solved."""
    free = noise / 2 + rng.normal(0, 0.3, (3, 2))  # Box-Muller's four points; their sum is twice the noise
    points = np.concatenate([free, [2 * noise - free.sum(axis=0)]])
    radius, angle = np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0])
    uniforms = np.concatenate([np.exp(-(radius**2) / 2), angle / (2 * np.pi) % 1])
    return (uniforms * 2.0**52).astype(np.uint64) << np.uint64(12)


@pytest.mark.parametrize("std", [0.02, 1.0, 1.5, 47.0])
def test_against_ours_every_released_value_is_possible_under_every_candidate(std):
    rng = np.random.default_rng(1)
    true = torch.zeros(400, dtype=torch.float64)
    released = ReproducibleNoise(5).noised(true, std).reshape(-1, 2)
    for wrong in (1e-9, 0.7, 1.0, 4.0):  # in deviations: from a hair's breadth to a whole clip at sigma 1/4
        candidate = torch.full((2,), wrong * std, dtype=torch.float64)
        for value in released:
            words = keystream_for(((value - candidate) / std).numpy(), rng)
            assert torch.equal(Scripted(words).noised(candidate, std), value)


def test_every_release_lies_on_one_grid_whatever_is_noised():
    totals = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for std, scale in ((1.0, 0.0), (1.0, 1.0), (0.3, 1e-9), (6.0, 64.0)):
        multiples = ReproducibleNoise(1).noised(totals * scale, std) / grid(std)
        assert torch.equal(multiples, multiples.round())
    statistic = StatisticPlan(phase="ridge", bound=2.0, noise_multiplier=1.5)
    released = noisy_sum(totals[:600].reshape(6, 100), make_batch(make_model()), statistic, ReproducibleNoise(2))
    multiples = released / grid(3.0)
    assert np.array_equal(multiples, np.rint(multiples))


def test_dp_sgd_releases_on_the_grid_and_float32_loses_none_of_it():
    source = Recording(2)
    model = make_model()
    settings = plan(steps=2, noise_multiplier=SIGMA, max_grad_norm=CLIP)
    dp_sgd(model, ["fusion"], classification_loss, make_batch(model), settings, TrainingOptions(), source)
    for released in source.released:
        multiples = released / grid(SIGMA * CLIP)
        assert torch.equal(multiples, multiples.round())
        assert torch.equal(released.float().double(), released)


def test_the_grid_is_a_power_of_two_and_so_fine_that_rounding_costs_nothing():
    for std in (1e-6, 0.3, 1.0, 1.5, 2.0, 1e6):
        step = grid(std)
        assert math.frexp(step)[0] == 0.5
        assert 2.0**-17 < step / std <= 2.0**-16
    exact, rounded = ReproducibleNoise(4), ReproducibleNoise(4)
    error = rounded.noised(torch.zeros(10_000), 1.5) - exact.normal((10_000,), 1.5, dtype=torch.float64)
    assert error.abs().max() <= grid(1.5) / 2 < 1e-5 * 1.5


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_nothing_is_released_under_a_deviation_that_protects_nothing(std):
    with pytest.raises(PrivacyError, match="std"):
        ReproducibleNoise(0).noised(torch.zeros(3), std)
