"""Server steps are pure, elementwise and what their papers say; what they are configured with fits float32."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from secure_fed.errors import SecAggError
from secure_fed.strategies import (
    FedAdamConfig,
    FedAvgConfig,
    FedYogiConfig,
    FlowerConfig,
    State,
    StepConfig,
    StrategyConfig,
    scalars,
    step,
)

AVG = FedAvgConfig(name="fedavg", learning_rate=0.5)
ADAM = FedAdamConfig(name="fedadam", learning_rate=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3)
YOGI = FedYogiConfig(name="fedyogi", learning_rate=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3)
ALL = (AVG, ADAM, YOGI)
every_strategy = pytest.mark.parametrize("config", ALL, ids=lambda config: config.name)


def read(**values: object) -> object:
    return TypeAdapter(StrategyConfig).validate_python(values)


# -- what a step is -------------------------------------------------------------------------------------------


def test_fedavg_adds_the_scaled_mean() -> None:
    parameters, mean = np.float32([1, 2]), np.float32([0.5, -1])
    moved, state = step(AVG, parameters, State(), mean)
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


def test_fedyogi_agrees_with_the_papers_formula_in_float64() -> None:
    rng = np.random.default_rng(1)
    parameters = rng.normal(size=200).astype(np.float32)
    theta, m, v, state = parameters.astype(np.float64), np.zeros(200), np.zeros(200), State()
    for t in range(1, 31):
        mean = (rng.normal(size=200) / t).astype(np.float32)  # shrinking, so that both signs of v - mean^2 occur
        square = mean.astype(np.float64) ** 2
        m = 0.9 * m + 0.1 * mean
        v = v - 0.01 * square * np.sign(v - square)
        theta = theta + 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-3)
        parameters, state = step(YOGI, parameters, state, mean)
    # 1 - 0.99 in float32 is off by 1e-6 of itself; so are some steps of at most a few tenths.
    np.testing.assert_allclose(parameters, theta, rtol=0, atol=30 * 0.3 * 2e-6)


def test_fedyogi_forgets_a_loud_round_more_slowly_than_fedadam() -> None:
    """Its v falls by at most (1 - beta_2) mean^2 a step, which is what Yogi is for (Zaheer et al. 2018)."""
    seconds = {}
    for config in (ADAM, YOGI):
        parameters, state = np.zeros(1, np.float32), State()
        for mean in (10.0, *[0.1] * 50):
            parameters, state = step(config, parameters, state, np.float32([mean]))
        seconds[config.name] = float(state.moments["second"][0])
    assert seconds["fedadam"] == pytest.approx(0.99**50, rel=0.01)
    assert seconds["fedyogi"] == pytest.approx(1 - 50 * 0.01 * 0.01, rel=0.01)


def test_yogis_second_moment_never_becomes_negative() -> None:
    rng = np.random.default_rng(2)
    config = YOGI.model_copy(update={"beta_2": 0.0})  # v falls by mean^2 itself, as fast as it can
    parameters, state = np.zeros(1000, np.float32), State()
    for _ in range(50):
        parameters, state = step(config, parameters, state, rng.normal(size=1000).astype(np.float32))
        assert (state.moments["second"] >= 0).all()
    assert np.isfinite(parameters).all()


@every_strategy
def test_a_step_changes_neither_its_inputs_nor_depends_on_anything_else(config: StepConfig) -> None:
    parameters, mean, state = np.float32([1, 2, 3]), np.float32([1, 0, -1]), State()
    parameters, state = step(config, parameters, state, mean)
    before = parameters.copy(), {name: values.copy() for name, values in state.moments.items()}, mean.copy()
    first = step(config, parameters, state, mean)
    second = step(config, parameters, state, mean)
    np.testing.assert_array_equal(parameters, before[0])
    np.testing.assert_array_equal(mean, before[2])
    for name, values in state.moments.items():
        np.testing.assert_array_equal(values, before[1][name])
        np.testing.assert_array_equal(first[1].moments[name], second[1].moments[name])
    np.testing.assert_array_equal(first[0], second[0])


@every_strategy
def test_everything_stays_float32(config: StepConfig) -> None:
    moved, state = step(config, np.ones(3, np.float32), State(), np.ones(3, np.float32))
    assert moved.dtype == np.float32
    assert all(moment.dtype == np.float32 for moment in state.moments.values())


@every_strategy
def test_an_overflow_shows_in_the_result_and_raises_nothing_whatever_numpy_is_told(config: StepConfig) -> None:
    loud = np.float32([3e38, -3e38])
    with np.errstate(all="raise"):
        parameters, state = step(config, loud, State(), loud)
        parameters, state = step(config, parameters, state, loud)
    assert not np.isfinite(np.concatenate([parameters, *state.moments.values()])).all()


# -- what fits together ---------------------------------------------------------------------------------------


@every_strategy
@pytest.mark.parametrize(
    "mean",
    [np.ones(1, np.float32), np.ones((1, 3), np.float32), np.ones(3), np.ones(4, np.float32)],
    ids=["one value for all", "two axes", "float64", "one too many"],
)
def test_nothing_is_broadcast_or_converted(config: StepConfig, mean: np.ndarray) -> None:
    with pytest.raises(SecAggError, match=r"bad_model: mean: expected float32 \[3\]"):
        step(config, np.zeros(3, np.float32), State(), mean)


@pytest.mark.parametrize(
    ("config", "state"),
    [
        (AVG, State(1, {"first": np.zeros(3, np.float32), "second": np.zeros(3, np.float32)})),
        (ADAM, State(1)),
        (ADAM, State(1, {"first": np.zeros(3, np.float32)})),
        (YOGI, State(0, {"first": np.zeros(3, np.float32), "second": np.zeros(3, np.float32)})),
        (AVG, State(-1)),
    ],
    ids=["adaptive state for fedavg", "no moments", "one moment", "moments before the first step", "negative steps"],
)
def test_a_state_of_another_strategy_is_refused(config: StepConfig, state: State) -> None:
    with pytest.raises(SecAggError, match="another strategy's"):
        step(config, np.zeros(3, np.float32), state, np.zeros(3, np.float32))


def test_a_moment_of_another_size_is_refused() -> None:
    moments = {"first": np.zeros(3, np.float32), "second": np.zeros(1, np.float32)}
    with pytest.raises(SecAggError, match="second: expected"):
        step(ADAM, np.zeros(3, np.float32), State(4, moments), np.zeros(3, np.float32))


# -- configuration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"learning_rate": 1e-46}, "normal numbers"),
        ({"learning_rate": 1e39}, "normal numbers"),
        ({"learning_rate": float("inf")}, "normal numbers"),
        ({"learning_rate": float("nan")}, "greater than 0"),
        ({"tau": 1e-40}, "normal numbers"),
        ({"beta_2": 1 - 1e-9}, "is 1 in float32"),
        ({"beta_1": 1e-42}, "normal numbers"),
    ],
    ids=str,
)
def test_a_scalar_that_float32_cannot_hold_is_refused(wrong: dict[str, float], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        read(**{**YOGI.model_dump(), **wrong})


def test_a_flower_strategy_is_a_dotted_path_and_plain_options() -> None:
    flower = FlowerConfig(name="flower", target="flwr.serverapp.strategy.FedAdagrad", options={"eta": 0.1})
    assert read(**flower.model_dump()) == flower
    for wrong in ("FedAdagrad", "flwr.serverapp:FedAvg", ".FedAvg", "a..b", "os.system('x')"):
        with pytest.raises(ValidationError, match="target"):
            read(name="flower", target=wrong, options={})
    with pytest.raises(ValidationError, match="options"):
        read(name="flower", target="a.B", options={"aggregate": print})


def test_the_scalars_of_the_first_step_undo_the_start_from_zero() -> None:
    table = scalars(ADAM, 0)
    assert (table.correction_1, table.correction_2) == (table.one_minus_beta_1, table.one_minus_beta_2)
    assert scalars(ADAM.model_copy(update={"beta_1": 0.0}), 0).correction_1 == 1
    assert scalars(ADAM, 10**9).correction_2 == 1  # at once: powers are not followed further than they matter


def test_the_scalars_hash_sees_the_step_and_every_option() -> None:
    found = {scalars(ADAM, steps).digest() for steps in range(100)}
    for name in ("learning_rate", "beta_1", "beta_2", "tau"):
        found.add(scalars(ADAM.model_copy(update={name: 0.5}), 3).digest())
    found.add(scalars(AVG, 0).digest())
    assert len(found) == 105
    assert scalars(AVG, 0).digest() == scalars(AVG, 7).digest()
