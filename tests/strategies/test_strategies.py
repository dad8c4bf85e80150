"""Server steps are pure, elementwise and what their papers say."""

from __future__ import annotations

import numpy as np

from secure_fed.strategies import FedAdamConfig, FedAvgConfig, State, step

ADAM = FedAdamConfig(name="fedadam", learning_rate=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3)


def test_fedavg_adds_the_scaled_mean() -> None:
    parameters, mean = np.float32([1, 2]), np.float32([0.5, -1])
    moved, state = step(FedAvgConfig(name="fedavg", learning_rate=0.5), parameters, State(), mean)
    np.testing.assert_array_equal(moved, np.float32([1.25, 1.5]))
    assert state.steps == 1


def test_fedadam_agrees_with_torch_adam_over_several_steps() -> None:
    import torch

    rng = np.random.default_rng(0)
    parameters = rng.normal(size=50).astype(np.float32)
    reference = torch.nn.Parameter(torch.from_numpy(parameters.copy()))
    adam = torch.optim.Adam([reference], lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    state = State()
    for _ in range(20):
        mean = rng.normal(size=50).astype(np.float32)
        reference.grad = torch.from_numpy(-mean)
        adam.step()
        parameters, state = step(ADAM, parameters, state, mean)
    # float32 against float32 with another order of operations: a few units in the last place a step.
    np.testing.assert_allclose(parameters, reference.detach().numpy(), rtol=0, atol=20 * 4 * 2**-23)


def test_a_step_changes_neither_its_inputs_nor_depends_on_anything_else() -> None:
    parameters, mean = np.float32([1, 2, 3]), np.float32([1, 0, -1])
    before = parameters.copy()
    first = step(ADAM, parameters, State(), mean)
    second = step(ADAM, parameters, State(), mean)
    np.testing.assert_array_equal(parameters, before)
    np.testing.assert_array_equal(first[0], second[0])


def test_everything_stays_float32() -> None:
    for config in (ADAM, FedAvgConfig(name="fedavg", learning_rate=0.3)):
        moved, state = step(config, np.ones(3, np.float32), State(), np.ones(3, np.float32))
        assert moved.dtype == np.float32
        assert all(moment.dtype == np.float32 for moment in state.moments.values())
