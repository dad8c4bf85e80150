"""The server step as a pure function of configuration, parameters, state and mean update.

Elementwise float32 in a fixed order, so that every site computes the same bits: no BLAS, no reduction, no `pow`.
"""

from __future__ import annotations

import numpy as np

from secure_fed.errors import SecAggError
from secure_fed.models.arithmetic import require_ieee_arithmetic
from secure_fed.models.digest import Vector
from secure_fed.strategies.config import FedAvgConfig, FedYogiConfig, StepConfig
from secure_fed.strategies.state import State
from secure_fed.strategies.table import Scalars, scalars

_FIRST, _SECOND = "first", "second"
_BLOCK = 1 << 15
"""Values worked on at a time, for the cache's sake; elementwise operations do not notice."""


def step(config: StepConfig, parameters: Vector, state: State, mean: Vector) -> tuple[Vector, State]:
    """New parameters [P] and state of one component from its mean update [P], all float32.

    FedAvg: theta + learning_rate * mean. FedAdam and FedYogi (Reddi et al. 2021, algorithm 2), t = state.steps + 1:

        m <- beta_1 * m + (1 - beta_1) * mean
        v <- beta_2 * v + (1 - beta_2) * mean^2                 FedAdam
        v <- v - (1 - beta_2) * mean^2 * sign(v - mean^2)       FedYogi
        theta + learning_rate * (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + tau)

    from m = v = 0. Both are corrected for that start as Adam is (Kingma & Ba 2015): a run has few rounds, and its
    first would be up to twice too long. Yogi's v grows at least as fast as Adam's, t (1 - beta_2) >= 1 - beta_2^t,
    so for it the same correction errs towards shorter steps. Its v stays >= 0 in float32 as well: rounding is
    monotone, so (1 - beta_2) * mean^2 never exceeds the v > mean^2 that it is taken from.

    An overflow gives non-finite parameters or moments, which are the caller's to refuse. Inputs are not changed.

    Raises:
        SecAggError: bad_model where sizes, types or moments do not fit each other or the strategy.
        RunAborted: where this process does not compute as IEEE 754 says.
    """
    require_ieee_arithmetic()
    _check(config, parameters, state, mean)
    table = scalars(config, state.steps)
    moved = np.empty_like(parameters)
    with np.errstate(all="ignore"):
        if isinstance(config, FedAvgConfig):
            for part in _blocks(len(mean)):
                moved[part] = parameters[part] + table.learning_rate * mean[part]
            return moved, State(state.steps + 1)
        zeros = np.zeros_like(mean)
        before = [state.moments.get(name, zeros) for name in (_FIRST, _SECOND)]
        first, second = np.empty_like(mean), np.empty_like(mean)
        for part in _blocks(len(mean)):
            first[part] = table.beta_1 * before[0][part] + table.one_minus_beta_1 * mean[part]
            second[part] = _second_moment(config, table, before[1][part], mean[part])
            root = np.sqrt(second[part] / table.correction_2)
            update = (first[part] / table.correction_1) / (root + table.tau)
            moved[part] = parameters[part] + table.learning_rate * update
    return moved, State(state.steps + 1, {_FIRST: first, _SECOND: second})


def _second_moment(config: StepConfig, table: Scalars, second: Vector, mean: Vector) -> Vector:
    square = mean * mean
    if isinstance(config, FedYogiConfig):
        return second - (table.one_minus_beta_2 * square) * np.sign(second - square)
    return table.beta_2 * second + table.one_minus_beta_2 * square


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, size, _BLOCK)]


def _check(config: StepConfig, parameters: Vector, state: State, mean: Vector) -> None:
    """Nothing may be broadcast or converted: sizes and types are what everybody's hash is over."""
    expected = set() if isinstance(config, FedAvgConfig) or state.steps == 0 else {_FIRST, _SECOND}
    if state.steps < 0 or set(state.moments) != expected:
        raise SecAggError(
            "bad_model",
            f"{config.name} after {state.steps} steps has the moments {sorted(expected)}, not {sorted(state.moments)}: "
            "the state is another strategy's",
        )
    vectors = {"parameters": parameters, "mean": mean, **state.moments}
    for name, values in vectors.items():
        if values.dtype != np.float32 or values.shape != (len(parameters),):
            raise SecAggError(
                "bad_model", f"{name}: expected float32 [{len(parameters)}], got {values.dtype} {list(values.shape)}"
            )
