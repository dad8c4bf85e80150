"""Ridge knows how loud its release is, and makes small translators of a loud one rather than wild ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fin_example import model_of, records_of, schema_of
from shipped_methods import RIDGE

from secure_fed.methods import build
from secure_fed.methods.base import StatisticPhase
from secure_fed.methods.exact_linalg import project_psd
from secure_fed.methods.ridge import noise_radius, unpack_moments

SCHEMA = schema_of(2)
PAIR = ("vitals", "labs")
N, WIDTH = 400, 6


def symmetric_noise(size: int, deviation: float, seed: int) -> np.ndarray:
    """As the release noises a packed matrix [size, size]."""
    return unpack_moments(np.random.default_rng(seed).normal(scale=deviation, size=size * (size + 1) // 2))


@pytest.mark.parametrize("deviation", [0.01, 3.0])
def test_the_radius_of_noise_alone_is_its_largest_eigenvalue(deviation) -> None:
    for seed in range(5):
        noise = symmetric_noise(65, deviation, seed)
        # At 65 the edge of the semicircle is blurred by several hundredths.
        assert noise_radius(noise, project_psd(noise)) == pytest.approx(np.linalg.eigvalsh(noise).max(), rel=0.15)


def test_moments_that_stand_above_the_noise_do_not_count_as_noise() -> None:
    noise = symmetric_noise(65, 0.1, 0)
    signal = np.zeros((65, 65))
    signal[:8, :8] = 50 * np.eye(8)
    alone = noise_radius(noise, project_psd(noise))
    assert noise_radius(signal + noise, project_psd(signal + noise)) == pytest.approx(alone, rel=0.15)
    assert noise_radius(signal, project_psd(signal)) < 1e-10


def error_over_that_of_zeros(deviation: float, noise_penalty: float, seed: int) -> float:
    """Mean squared error of the labs imputed from vitals that they do not follow from, over that of zeros."""
    method = build(RIDGE.model_copy(update={"noise_penalty": noise_penalty}))
    model = model_of(method, SCHEMA, [frozenset(SCHEMA.names)])
    batch = model.prepare(records_of(SCHEMA, {name: [True] * N for name in SCHEMA.names}))
    (phase,) = [
        p
        for p in method.phases(SCHEMA, method.pairs(SCHEMA, [frozenset(SCHEMA.names)]), 4, WIDTH)
        if isinstance(p, StatisticPhase)
    ]
    noise = np.random.default_rng(seed).normal(scale=deviation, size=phase.size)
    phase.solve(model, phase.map(model, batch, None).double().mean(dim=0).numpy() + noise)
    with torch.no_grad():
        features = model.encode(batch)
        imputed = model.translate(*PAIR, features["vitals"])
        return float((imputed - features["labs"]).square().mean() / features["labs"].square().mean())


@pytest.mark.parametrize("deviation", [0.0, 0.1, 1.0, 10.0, 1000.0])
def test_whatever_the_noise_imputing_is_hardly_worse_than_zeros(deviation) -> None:
    assert max(error_over_that_of_zeros(deviation, 2.0, seed) for seed in range(4)) < 1.1


def test_without_the_noise_penalty_a_loud_release_makes_wild_translators() -> None:
    assert max(error_over_that_of_zeros(10.0, 0.0, seed) for seed in range(4)) > 2
