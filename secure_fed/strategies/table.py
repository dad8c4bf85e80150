"""The float32 scalars of each step: a table that everybody derives from the configuration.

The configuration's hash is in every signature of a run, and so this table is signed with it.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import astuple, dataclass
from functools import cache, lru_cache

import numpy as np

from secure_fed.strategies.config import FedAvgConfig, StepConfig

_ZERO, _ONE = np.float32(0), np.float32(1)
_NO_DIFFERENCE = np.float32(2.0**-25)
"""1 - x is 1 in float32 from here on down: powers are not followed into the subnormal numbers."""


@dataclass(frozen=True)
class Scalars:
    """All scalars of one step, float32; what a strategy does not use is zero."""

    learning_rate: np.float32
    beta_1: np.float32 = _ZERO
    one_minus_beta_1: np.float32 = _ZERO
    correction_1: np.float32 = _ZERO
    beta_2: np.float32 = _ZERO
    one_minus_beta_2: np.float32 = _ZERO
    correction_2: np.float32 = _ZERO
    tau: np.float32 = _ZERO

    def to_bytes(self) -> bytes:
        """The scalars in the order of the fields, float32 little-endian, 4 bytes each."""
        return np.array(astuple(self), dtype="<f4").tobytes()

    def digest(self) -> bytes:
        """SHA-256 of `to_bytes` under a domain of its own, 32 bytes."""
        return hashlib.sha256(b"secure_fed step scalars/1\0" + self.to_bytes()).digest()


@lru_cache(maxsize=64)
def scalars(config: StepConfig, steps: int) -> Scalars:
    """The scalars of step number `steps` + 1, where `steps` have been taken.

    A bias correction is 1 - beta^(steps + 1), the power by a running product in float32: `pow` is not the same on
    every machine. The table of products grows by one a step and is shared by all components.
    """
    learning_rate = np.float32(config.learning_rate)
    if isinstance(config, FedAvgConfig):
        return Scalars(learning_rate)
    beta_1, beta_2 = np.float32(config.beta_1), np.float32(config.beta_2)
    return Scalars(
        learning_rate=learning_rate,
        beta_1=beta_1,
        one_minus_beta_1=_ONE - beta_1,
        correction_1=_ONE - _powers(config.beta_1).at(steps + 1),
        beta_2=beta_2,
        one_minus_beta_2=_ONE - beta_2,
        correction_2=_ONE - _powers(config.beta_2).at(steps + 1),
        tau=np.float32(config.tau),
    )


class _Powers:
    """beta^0, beta^1, ... in float32, each from the one before; zero as soon as 1 minus it is 1."""

    def __init__(self, beta: float) -> None:
        self._beta = np.float32(beta)
        self._known = [_ONE]
        self._growing = threading.Lock()

    def at(self, exponent: int) -> np.float32:
        with self._growing:
            while len(self._known) <= exponent and self._known[-1] > 0:
                power = self._known[-1] * self._beta
                self._known.append(power if power > _NO_DIFFERENCE else _ZERO)
            return self._known[min(exponent, len(self._known) - 1)]


@cache
def _powers(beta: float) -> _Powers:
    return _Powers(beta)
