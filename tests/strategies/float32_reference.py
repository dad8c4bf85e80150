"""The server steps once more, a number at a time in rational arithmetic rounded to float32: no floating-point unit.

`python tests/strategies/float32_reference.py` writes vectors/*.json, for other implementations to check against.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

VECTORS = Path(__file__).parent / "vectors"
OPTIONS: dict[str, dict[str, float]] = {
    "fedavg": {"learning_rate": 0.7},
    "fedadam": {"learning_rate": 0.02, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "fedyogi": {"learning_rate": 0.02, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
}

# -- float32, as Python floats that hold float32 values -------------------------------------------------------


def single(exact: Fraction, zero: float = 0.0) -> float:
    """The nearest float32, ties to even, subnormal numbers included; `zero` gives a zero its sign."""
    if exact == 0:
        return math.copysign(0.0, zero)
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    exponent += abs(exact) >= Fraction(2) ** (exponent + 1)
    exponent -= abs(exact) < Fraction(2) ** exponent
    unit = Fraction(2) ** (max(exponent, -126) - 23)
    rounded = round(exact / unit) * unit  # of a Fraction: half to even
    if abs(rounded) >= Fraction(2) ** 128:
        raise OverflowError("beyond float32")
    return float(rounded) if rounded else math.copysign(0.0, exact)


def add(a: float, b: float) -> float:
    return single(Fraction(a) + Fraction(b), a + b)


def sub(a: float, b: float) -> float:
    return single(Fraction(a) - Fraction(b), a - b)


def mul(a: float, b: float) -> float:
    return single(Fraction(a) * Fraction(b), math.copysign(1, a) * math.copysign(1, b))


def div(a: float, b: float) -> float:
    return single(Fraction(a) / Fraction(b), math.copysign(1, a) * math.copysign(1, b))


def sqrt(a: float) -> float:
    scaled = Fraction(a) * 4**220  # an integer of so many bits that no root is near a tie by accident
    assert scaled.denominator == 1
    root = math.isqrt(scaled.numerator)
    inexact = root * root != scaled.numerator
    return single(Fraction(2 * root + inexact, 2) / 2**220, a)


def bits(value: float) -> str:
    return struct.pack(">f", value).hex()


# -- the steps ------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """One component's parameters and moments through steps of one strategy."""

    strategy: str
    options: dict[str, float]
    parameters: list[float]
    steps: int = 0
    first: list[float] = field(default_factory=list)
    second: list[float] = field(default_factory=list)

    def scalars(self) -> list[float]:
        """Learning rate; for each moment beta, 1 - beta, 1 - beta^t; tau."""
        options = {name: single(Fraction(value)) for name, value in self.options.items()}
        if self.strategy == "fedavg":
            return [options["learning_rate"], *[0.0] * 7]
        moments: list[float] = []
        for beta in (options["beta_1"], options["beta_2"]):
            power = 1.0
            for _ in range(self.steps + 1):
                power = mul(power, beta)
            moments += [beta, sub(1.0, beta), sub(1.0, power)]
        return [options["learning_rate"], *moments, options["tau"]]

    def step(self, mean: list[float]) -> None:
        rate, beta_1, rest_1, correction_1, beta_2, rest_2, correction_2, tau = self.scalars()
        self.steps += 1
        if self.strategy == "fedavg":
            self.parameters = [add(p, mul(rate, x)) for p, x in zip(self.parameters, mean, strict=True)]
            return
        self.first = self.first or [0.0] * len(mean)
        self.second = self.second or [0.0] * len(mean)
        for i, x in enumerate(mean):
            square = mul(x, x)
            self.first[i] = add(mul(beta_1, self.first[i]), mul(rest_1, x))
            if self.strategy == "fedyogi":
                difference = sub(self.second[i], square)
                sign = float((difference > 0) - (difference < 0))
                self.second[i] = sub(self.second[i], mul(mul(rest_2, square), sign))
            else:
                self.second[i] = add(mul(beta_2, self.second[i]), mul(rest_2, square))
            root = sqrt(div(self.second[i], correction_2))
            update = div(div(self.first[i], correction_1), add(root, tau))
            self.parameters[i] = add(self.parameters[i], mul(rate, update))


# -- the vectors ----------------------------------------------------------------------------------------------

_PARAMETERS = (0.0, -0.0, 1.0, -1.0, 0.1, 3.14159, 1e-3, -2.5e-41, 1e20, 7e-39, 123.456, -1e-7)
_SCALES = (1.0, 0.03, 1e-3, 2.0, 1e-20, 1e-23, 3e-39, 1e-44, 1e15, 1e-12, 0.25, 17.0)
"""Squares of the small ones are subnormal or vanish, and some means are subnormal themselves."""
_STEPS = 6


def means() -> list[list[float]]:
    """The mean updates of each step: scales times a small pseudo-random integer, zeros and minus zeros among them."""
    state, found = 1, []
    for _ in range(_STEPS):
        row = []
        for scale in _SCALES:
            state = (1103515245 * state + 12345) % 2**31
            row.append(single(Fraction(scale) * ((state >> 16) % 9 - 4), -1.0))
        found.append(row)
    return found


def vector(strategy: str) -> dict[str, object]:
    """One strategy's known answers: bit patterns as eight hexadecimal digits, most significant first."""
    reference = Reference(strategy, OPTIONS[strategy], [single(Fraction(p), p) for p in _PARAMETERS])
    steps: list[dict[str, object]] = []
    start = [bits(p) for p in reference.parameters]
    for mean in means():
        scalars = [bits(value) for value in reference.scalars()]
        reference.step(mean)
        steps.append(
            {
                "scalars": scalars,
                "mean": [bits(value) for value in mean],
                "parameters": [bits(value) for value in reference.parameters],
                "first": [bits(value) for value in reference.first],
                "second": [bits(value) for value in reference.second],
            }
        )
    return {"strategy": strategy, "options": OPTIONS[strategy], "parameters": start, "steps": steps}


if __name__ == "__main__":
    for name in OPTIONS:
        (VECTORS / f"{name}.json").write_text(json.dumps(vector(name), indent=1) + "\n", encoding="utf-8")
