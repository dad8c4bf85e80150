"""Ridge's linear algebra is numpy's to rounding, and the same to the last bit wherever it is done."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.errors import ConfigError, RunAborted
from secure_fed.methods.exact_linalg import Matrix, product, project_psd, solve_positive_definite, trace


def symmetric(kind: str, size: int, seed: int = 0) -> Matrix:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(size, size))
    if kind == "noise":
        return noise + noise.T
    if kind == "moments under noise":  # eigenvalues over twelve decades, and some that noise makes negative
        rows = rng.normal(size=(4 * size, size)) * np.logspace(0, -6, size)
        moments = rows.T @ rows + 1e-4 * (noise + noise.T)
        return (moments + moments.T) / 2
    if kind == "few records":
        rows = rng.normal(size=(size // 3, size))
        return rows.T @ rows
    if kind == "diagonal":
        return np.diag(rng.choice([1.0, -1.0, 0.0, 1e-9, -1e-13, 3e-17], size=size))
    return np.full((size, size), -0.5)


KINDS = ("noise", "moments under noise", "few records", "diagonal", "all alike")


def by_lapack(matrix: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.clip(values, 0.0, None)) @ vectors.T)


# -- what it computes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 13, 65])
@pytest.mark.parametrize("kind", KINDS)
def test_the_projection_is_lapacks_up_to_rounding(kind: str, size: int) -> None:
    matrix = symmetric(kind, size)
    found, norm = project_psd(matrix), np.linalg.norm(matrix, 2) + 1e-300
    # Both have errors of some units in the last place of the norm; 64 of them leave room for neither to be wrong.
    np.testing.assert_allclose(found / norm, by_lapack(matrix) / norm, rtol=0, atol=64 * 2**-52)
    np.testing.assert_array_equal(found, found.T)
    assert np.linalg.eigvalsh(found).min() / norm > -64 * 2**-52


def test_the_projection_of_nothing_is_nothing() -> None:
    np.testing.assert_array_equal(project_psd(np.zeros((4, 4))), np.zeros((4, 4)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 8), shift=st.floats(-3, 3))
def test_a_projection_again_changes_nothing_and_the_parts_add_up(seed: int, size: int, shift: float) -> None:
    matrix = symmetric("noise", size, seed) + shift * np.eye(size)
    positive, negative, scale = project_psd(matrix), project_psd(-matrix), np.abs(matrix).max()
    np.testing.assert_allclose(project_psd(positive), positive, rtol=0, atol=1e-13 * scale)
    np.testing.assert_allclose(positive - negative, matrix, rtol=0, atol=1e-13 * scale)  # Moreau's decomposition


@pytest.mark.parametrize("size", [1, 7, 65])
def test_the_solution_is_lapacks_up_to_rounding(size: int) -> None:
    rng = np.random.default_rng(size)
    rows, right = rng.normal(size=(3 * size, size)), rng.normal(size=(size, 4))
    matrix, before = rows.T @ rows + np.eye(size), right.copy()
    expected = np.linalg.solve(matrix, right)
    found = solve_positive_definite(matrix, right)
    # The condition number is below 100, so both are within some hundred units in the last place.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    np.testing.assert_array_equal(right, before)


def test_product_and_trace_are_numpys_up_to_rounding() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.normal(size=(5, 30)), rng.normal(size=(30, 4))
    np.testing.assert_allclose(product(left, right), left @ right, rtol=0, atol=1e-13)
    square = rng.normal(size=(9, 9))
    assert trace(square) == pytest.approx(np.trace(square), abs=1e-13)


def test_a_matrix_that_is_not_positive_definite_is_refused() -> None:
    for matrix in (np.diag([1.0, -1.0]), np.zeros((2, 2)), np.full((2, 2), np.nan), np.ones((2, 2))):
        with pytest.raises(ConfigError, match=r"not positive definite.*method\.penalty"):
            solve_positive_definite(matrix, np.ones((2, 1)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1.0 + 2**-52], ids=["nan", "infinite", "not symmetric"])
def test_only_finite_symmetric_matrices_are_projected(wrong: float) -> None:
    matrix = np.ones((3, 3))
    matrix[0, 1] = wrong
    with pytest.raises(ConfigError, match="not a finite symmetric matrix"):
        project_psd(matrix)


# -- the bits -------------------------------------------------------------------------------------------------


def by_hand(matrix: list[list[float]], right: list[list[float]]) -> tuple[list[list[float]], list[list[float]]]:
    """Projection and solution a number at a time, in Python's floats and the documented order."""
    n = range(len(matrix))

    def times(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
        total = [[0.0] * len(b[0]) for _ in a]
        for i, row in enumerate(total):
            for j in range(len(row)):
                for k in range(len(b)):
                    row[j] += a[i][k] * b[k][j]
        return total

    def even(a: list[list[float]]) -> list[list[float]]:
        return [[0.5 * (a[i][j] + a[j][i]) for j in n] for i in n]

    bound = 0.0
    for row in matrix:
        total = 0.0
        for value in row:
            total += abs(value)
        bound = max(bound, total)
    scale, lowest = 2.0 ** -math.frexp(bound)[1], 2.0**-53
    sign = [[value * scale for value in row] for row in matrix]
    while lowest < 1 - 2.0**-52:
        factor = min(1.69, math.sqrt(3 / (1 + lowest + lowest * lowest)))
        lowest = min(1.0, *(x * (3 - x * x) / 2 for x in (factor * lowest, factor)))
        sign = [[value * factor for value in row] for row in sign]
        squared = times(sign, sign)
        sign = even(times(sign, [[1.5 * (i == j) - 0.5 * squared[i][j] for j in n] for i in n]))
    absolute = even(times(matrix, sign))
    projected = [[0.5 * (matrix[i][j] + absolute[i][j]) for j in n] for i in n]

    lower = [[value + (i == j) for j, value in enumerate(row)] for i, row in enumerate(projected)]
    x = [list(row) for row in right]
    for k in n:
        lower[k][k] = math.sqrt(lower[k][k])
        for i in n[k + 1 :]:
            lower[i][k] /= lower[k][k]
        for i in n[k + 1 :]:
            for j in n[k + 1 :]:
                lower[i][j] -= lower[i][k] * lower[j][k]
    for k in n:
        x[k] = [value / lower[k][k] for value in x[k]]
        for i in n[k + 1 :]:
            x[i] = [value - lower[i][k] * known for value, known in zip(x[i], x[k], strict=True)]
    for k in reversed(n):
        x[k] = [value / lower[k][k] for value in x[k]]
        for i in n[:k]:
            x[i] = [value - lower[k][i] * known for value, known in zip(x[i], x[k], strict=True)]
    return projected, x


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_is_that_of_the_documented_order(kind: str) -> None:
    matrix, right = symmetric(kind, 11), np.random.default_rng(8).normal(size=(11, 3))
    projected, solution = by_hand(matrix.tolist(), right.tolist())
    found = project_psd(matrix)
    assert found.tobytes() == np.array(projected).tobytes()
    assert solve_positive_definite(found + np.eye(11), right).tobytes() == np.array(solution).tobytes()


def test_a_power_of_two_passes_through_exactly() -> None:
    matrix = symmetric("moments under noise", 13)
    np.testing.assert_array_equal(project_psd(2.0**-30 * matrix), 2.0**-30 * project_psd(matrix))


def digest() -> str:
    rng = np.random.default_rng(9)
    values = rng.integers(-(2**20), 2**20, size=(65, 65)) * 2.0**-10
    matrix = project_psd(values + values.T)
    solution = solve_positive_definite(matrix + np.eye(65), values[:, :16])
    return hashlib.sha256(matrix.tobytes() + solution.tobytes()).hexdigest()


def features_of_this_processor() -> str:
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return " ".join(feature for feature in __cpu_dispatch__ if __cpu_features__[feature])


def test_a_processor_without_wide_registers_computes_the_same_bits() -> None:
    """In a process of its own that uses none of the instructions that numpy chooses by processor, and more threads."""
    program = (
        "import json, test_methods_exact_linalg as t; print(json.dumps([t.features_of_this_processor(), t.digest()]))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
        "NPY_DISABLE_CPU_FEATURES": features_of_this_processor(),
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True)
    assert json.loads(done.stdout) == ["", digest()]


def test_the_bits_are_known() -> None:
    """Of integers times a power of two, so that no machine's random numbers differ; changed only on purpose."""
    assert digest() == "0c1ec10a479981b775bd05168ec613a2cd3252201f7d2c1dcde9e1c4a44d0cfe"


def test_a_process_that_flushes_subnormal_numbers_refuses_to_solve() -> None:
    import torch

    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        with pytest.raises(RunAborted, match="IEEE 754"):
            project_psd(np.eye(2))
        with pytest.raises(RunAborted, match="IEEE 754"):
            solve_positive_definite(np.eye(2), np.eye(2))
    finally:
        torch.set_flush_denormal(False)
