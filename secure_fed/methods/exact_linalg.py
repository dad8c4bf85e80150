"""Linear algebra with the same bits on every machine: elementwise float64 in a fixed order, no BLAS, no LAPACK.

A BLAS sums in an order that depends on the processor and on threads; sites recompute the server's solution bit by bit.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from secure_fed.errors import ConfigError
from secure_fed.models.arithmetic import require_ieee_arithmetic

Matrix = npt.NDArray[np.float64]

_STRETCH = 1.69
"""Largest factor before an iteration: sqrt(3) would send the eigenvalue 1 to 0, where rounding decides its sign."""


def _stretches() -> tuple[float, ...]:
    """Factors that bring all of [2^-53, 1] to 1 by x -> a x (3 - (a x)^2) / 2 (Chen & Chow 2014, with a bounded)."""
    factors, lowest = [], 2.0**-53
    while lowest < 1 - 2.0**-52:
        factor = min(_STRETCH, math.sqrt(3 / (1 + lowest + lowest * lowest)))
        ends = (factor * lowest, factor)
        lowest = min(1.0, *(x * (3 - x * x) / 2 for x in ends))
        factors.append(factor)
    return tuple(factors)


_STRETCHES = _stretches()


def product(left: Matrix, right: Matrix) -> Matrix:
    """left [N, K] times right [K, M] as a sum of outer products in the order of K."""
    total = np.zeros((left.shape[0], right.shape[1]))
    outer = np.empty_like(total)
    columns = np.ascontiguousarray(left.T)
    for k in range(len(right)):
        np.multiply(columns[k][:, None], right[k], out=outer)
        total += outer
    return total


def trace(matrix: Matrix) -> float:
    """The sum of the diagonal, from the top."""
    total = 0.0
    for value in np.diagonal(matrix).tolist():
        total += value
    return total


def project_psd(matrix: Matrix) -> Matrix:
    """Nearest positive semidefinite matrix [D, D] in Frobenius norm: (A + |A|) / 2, where |A| = A sign(A).

    The matrix sign by a Newton-Schulz iteration (Higham 2008, "Functions of Matrices", 5.3) with a fixed number of
    steps, whatever the matrix: eigenvalues whose sign has not converged by then are below 2^-53 of the largest row
    sum, and so is the error. `matrix` must be symmetric and finite; raises ConfigError where it is not.
    """
    require_ieee_arithmetic()
    if not np.isfinite(matrix).all() or not np.array_equal(matrix, matrix.T):
        raise ConfigError(f"moments [{len(matrix)}, {len(matrix)}] are not a finite symmetric matrix")
    bound = _largest_row_sum(matrix)
    if bound == 0:
        return matrix.copy()
    # A power of two, so that scaling is exact: all eigenvalues are now in [-1, 1].
    sign = matrix * math.ldexp(1.0, -math.frexp(bound)[1])
    identity = np.eye(len(matrix))
    for factor in _STRETCHES:
        sign *= factor
        sign = _symmetric(product(sign, 1.5 * identity - 0.5 * product(sign, sign)))
    return 0.5 * (matrix + _symmetric(product(matrix, sign)))


def solve_positive_definite(matrix: Matrix, right: Matrix) -> Matrix:
    """x [N, M] with matrix [N, N] x = right [N, M], by Cholesky's decomposition.

    Only the lower triangle is read. Raises ConfigError where the matrix is not positive definite.
    """
    require_ieee_arithmetic()
    lower = _cholesky(matrix)
    x = right.copy()
    for k in range(len(lower)):
        x[k] /= lower[k, k]
        x[k + 1 :] -= lower[k + 1 :, k, None] * x[k]
    for k in reversed(range(len(lower))):
        x[k] /= lower[k, k]
        x[:k] -= lower[k, :k, None] * x[k]
    return x


def _cholesky(matrix: Matrix) -> Matrix:
    """The lower triangular factor [N, N]; what stands above the diagonal is of no meaning."""
    lower = matrix.copy()
    for k in range(len(lower)):
        pivot = float(lower[k, k])
        if not 0 < pivot < math.inf:
            raise ConfigError(
                f"a matrix of ridge is not positive definite (pivot {k} is {pivot}): raise method.penalty"
            )
        lower[k, k] = math.sqrt(pivot)
        lower[k + 1 :, k] /= lower[k, k]
        lower[k + 1 :, k + 1 :] -= lower[k + 1 :, k, None] * lower[k + 1 :, k]
    return lower


def _largest_row_sum(matrix: Matrix) -> float:
    """The maximum norm, which bounds every eigenvalue."""
    sums = np.zeros(len(matrix))
    for column in np.abs(matrix.T):
        sums += column
    return float(np.max(sums))


def _symmetric(matrix: Matrix) -> Matrix:
    """What rounding has made unequal becomes equal again."""
    return 0.5 * (matrix + matrix.T)
