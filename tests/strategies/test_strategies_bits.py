"""The server step's bits are known, and neither the machine nor how the work is split changes them."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from fractions import Fraction

import numpy as np
import pytest
from float32_reference import OPTIONS, VECTORS, Reference, bits, single, vector
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from secure_fed.errors import RunAborted
from secure_fed.strategies import State, StepConfig, StrategyConfig, Vector, scalars, step

NOTHING = np.zeros(0, np.float32)
every_strategy = pytest.mark.parametrize("name", list(OPTIONS))


def configured(name: str) -> StepConfig:
    return TypeAdapter(StrategyConfig).validate_python({"name": name, **OPTIONS[name]})


def from_bits(patterns: list[str]) -> Vector:
    return np.array([int(pattern, 16) for pattern in patterns], np.uint32).view(np.float32)


def to_bits(values: Vector) -> list[str]:
    return [f"{value:08x}" for value in values.view(np.uint32)]


# -- known answers --------------------------------------------------------------------------------------------


@every_strategy
def test_the_steps_have_the_known_bits(name: str) -> None:
    known = json.loads((VECTORS / f"{name}.json").read_text())
    parameters, state = from_bits(known["parameters"]), State()
    for expected in known["steps"]:
        found = scalars(configured(name), state.steps)
        assert found.to_bytes() == from_bits(expected["scalars"]).astype("<f4").tobytes()
        parameters, state = step(configured(name), parameters, state, from_bits(expected["mean"]))
        assert to_bits(parameters) == expected["parameters"]
        for moment in ("first", "second"):
            assert to_bits(state.moments.get(moment, NOTHING)) == expected[moment]


@every_strategy
def test_the_known_answers_are_those_of_rational_arithmetic(name: str) -> None:
    assert json.loads((VECTORS / f"{name}.json").read_text()) == vector(name)


def test_the_known_answers_meet_subnormal_numbers() -> None:
    """Else they could not tell a machine that flushes them."""
    known = json.loads((VECTORS / "fedadam.json").read_text())
    for place in ("mean", "parameters", "first", "second"):
        values = np.concatenate([from_bits(line[place]) for line in known["steps"]])
        assert ((values != 0) & (np.abs(values) < np.finfo(np.float32).tiny)).any()


# Small enough that a square is finite: what overflows is not compared but refused.
moderate = st.floats(-(2.0**62), 2.0**62, width=32)


@every_strategy
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(moderate, moderate, moderate), min_size=1, max_size=5))
def test_any_step_has_the_bits_of_rational_arithmetic(name: str, rows: list[tuple[float, float, float]]) -> None:
    parameters, *means = (list(column) for column in zip(*rows, strict=True))
    reference = Reference(name, OPTIONS[name], list(parameters))
    found, state = np.array(parameters, np.float32), State()
    for mean in means:
        reference.step(mean)
        found, state = step(configured(name), found, state, np.array(mean, np.float32))
    assert to_bits(found) == [bits(value) for value in reference.parameters]
    for moment, expected in (("first", reference.first), ("second", reference.second)):
        assert to_bits(state.moments.get(moment, NOTHING)) == [bits(value) for value in expected]


def test_the_scalars_follow_the_running_product_to_its_end() -> None:
    """The reference multiplies on, down into the subnormal numbers; 1 minus them is 1 in both."""
    config = configured("fedadam")
    beta_1, beta_2, power_1, power_2 = single(Fraction(0.9)), single(Fraction(0.99)), 1.0, 1.0
    for steps in range(2000):
        power_1, power_2 = single(Fraction(power_1) * Fraction(beta_1)), single(Fraction(power_2) * Fraction(beta_2))
        table = scalars(config, steps)
        assert float(table.correction_1) == single(1 - Fraction(power_1))
        assert float(table.correction_2) == single(1 - Fraction(power_2))


# -- how the work is split ------------------------------------------------------------------------------------

SIZE = 70_001  # more than two of the step's blocks, and no multiple of a register's width


def some_steps(name: str, parameters: Vector, means: list[Vector]) -> tuple[Vector, ...]:
    state = State()
    for mean in means:
        parameters, state = step(configured(name), parameters, state, mean)
    return parameters, *(state.moments[moment] for moment in sorted(state.moments))


def problem() -> tuple[Vector, list[Vector]]:
    rng = np.random.default_rng(5)
    draws = rng.normal(size=(4, SIZE)) * 10.0 ** rng.integers(-25, 3, size=(4, SIZE))
    parameters, *means = draws.astype(np.float32)
    return parameters, means


def digest(results: tuple[Vector, ...]) -> str:
    return hashlib.sha256(b"".join(values.tobytes() for values in results)).hexdigest()


@every_strategy
def test_the_order_of_the_values_does_not_matter(name: str) -> None:
    parameters, means = problem()
    order = np.random.default_rng(6).permutation(SIZE)
    straight = some_steps(name, parameters, means)
    shuffled = some_steps(name, parameters[order], [mean[order] for mean in means])
    for a, b in zip(straight, shuffled, strict=True):
        np.testing.assert_array_equal(a[order].view(np.uint32), b.view(np.uint32))


@every_strategy
@pytest.mark.parametrize("cut", [1, 12_345, 32_768])
def test_a_vector_in_two_parts_gives_the_same_bits(name: str, cut: int) -> None:
    parameters, means = problem()
    whole = some_steps(name, parameters, means)
    head = some_steps(name, parameters[:cut], [mean[:cut] for mean in means])
    tail = some_steps(name, parameters[cut:], [mean[cut:] for mean in means])
    for a, b, c in zip(whole, head, tail, strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), np.concatenate([b, c]).view(np.uint32))


@every_strategy
def test_how_a_vector_lies_in_memory_does_not_matter(name: str) -> None:
    parameters, means = problem()
    spread = np.empty(3 * SIZE + 1, np.float32)[1::3]
    spread[:] = parameters
    assert digest(some_steps(name, spread, means)) == digest(some_steps(name, parameters, means))


def test_threads_at_work_at_once_do_not_matter() -> None:
    parameters, means = problem()
    alone = [digest(some_steps(name, parameters, means)) for name in OPTIONS]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda name: digest(some_steps(name, parameters, means)), [*OPTIONS] * 4))
    assert together == alone * 4


def features_of_this_processor() -> str:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return " ".join(feature for feature in __cpu_dispatch__ if __cpu_features__[feature])


def test_a_processor_without_wide_registers_computes_the_same_bits() -> None:
    """In a process of its own that uses none of the instructions that numpy chooses by processor, and more threads."""
    here = {name: digest(some_steps(name, *problem())) for name in OPTIONS}
    program = "import json, test_strategies_bits as t; print(json.dumps([t.features_of_this_processor(), "
    program += "{name: t.digest(t.some_steps(name, *t.problem())) for name in t.OPTIONS}]))"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
        "NPY_DISABLE_CPU_FEATURES": features_of_this_processor(),
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True)
    features, there = json.loads(done.stdout)
    assert features == ""
    assert there == here


# -- machines that compute otherwise ---------------------------------------------------------------------------


def test_a_process_that_flushes_subnormal_numbers_refuses_to_step() -> None:
    import torch

    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        with pytest.raises(RunAborted, match=r"not compute as IEEE 754.*set_flush_denormal"):
            step(configured("fedavg"), np.ones(2, np.float32), State(), np.ones(2, np.float32))
    finally:
        torch.set_flush_denormal(False)
    step(configured("fedavg"), np.ones(2, np.float32), State(), np.ones(2, np.float32))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the modes' numbers are x86's")
@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00], ids=["down", "up", "towards zero"])
def test_a_process_that_rounds_otherwise_refuses_to_step(mode: int) -> None:
    libm = ctypes.CDLL(find_library("m"))
    assert libm.fesetround(mode) == 0
    try:
        with pytest.raises(RunAborted, match="not compute as IEEE 754"):
            step(configured("fedavg"), np.ones(2, np.float32), State(), np.ones(2, np.float32))
    finally:
        libm.fesetround(0)
