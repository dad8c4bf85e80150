"""What secure noise costs: a million normals from each sampler, and the share of a default DP-SGD step that is noise.

    OMP_NUM_THREADS=1 python benchmarks/noise.py [--repetitions 15]
Every sampler in every repetition, in turn; medians, with the lower and upper quartile. One thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secure_fed.config import compose_config, freeze
from secure_fed.data import schema_of
from secure_fed.methods import build
from secure_fed.methods.base import GradientPhase, in_context
from secure_fed.models.multimodal import build_model
from secure_fed.privacy.dpsgd import dp_sgd
from secure_fed.privacy.made_up import made_up_batch
from secure_fed.privacy.noise import NoiseSource, OsNoise
from secure_fed.privacy.plan import GaussianPlan, TrainingOptions

MILLION = 1_000_000
BLOCK = 8192


class Single(OsNoise):
    """One Box-Muller normal from the same keystream, in blocks as ours: for comparison only."""

    def normal(self, shape: Sequence[int], std: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """As NoiseSource."""
        count = math.prod(shape)
        values = np.empty(count + count % 2)
        for start in range(0, count, BLOCK):
            block = values[start : start + BLOCK]
            half = len(block) // 2
            radius, angle = (((self._words(2 * half) >> np.uint64(12)) + 0.5) * 2.0**-52).reshape(2, half)
            radius = std * np.sqrt(-2.0 * np.log(radius))
            turned = torch.from_numpy(2.0 * math.pi * angle)
            np.multiply(radius, torch.cos(turned).numpy(), out=block[:half])
            np.multiply(radius, torch.sin(turned).numpy(), out=block[half:])
        return torch.from_numpy(values[:count]).reshape(tuple(shape)).to(dtype)


class Silent(OsNoise):
    """No noise, the same samples: what is left of a step."""

    def noised(self, total: Tensor, std: float) -> Tensor:
        """`total` as it is."""
        return total


def timed(function: Callable[[], object]) -> float:
    """Milliseconds of processor time of one call: what else runs on the machine disturbs it less."""
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def keystream(source: OsNoise) -> None:
    """What a million normals take of it."""
    for _ in range(MILLION // BLOCK):
        source._words(4 * BLOCK)


def samplers() -> dict[str, Callable[[], object]]:
    """Name -> a call that makes a million normals, float64 unless it says otherwise."""
    ours, single, total = OsNoise(), Single(), torch.zeros(MILLION, dtype=torch.float64)
    shape = (MILLION,)
    return {
        "ours: noised (half sum of four, added, on the grid)": lambda: ours.noised(total, 1.5),
        "ours: normal (half sum of four)": lambda: ours.normal(shape, 1.5, torch.float64),
        "single Box-Muller on AES-256-CTR": lambda: single.normal(shape, 1.5, torch.float64),
        "the keystream of four words a normal, alone": lambda: keystream(ours),
        "torch.normal, float64": lambda: torch.normal(0.0, 1.5, shape, dtype=torch.float64),
        "torch.normal, float32": lambda: torch.normal(0.0, 1.5, shape),
    }


def steps(units: int, count: int = 10) -> tuple[int, dict[str, Callable[[], object]]]:
    """How many numbers the default run's classifier trains; and calls for `count` of its steps, noised and not."""
    config = freeze(compose_config([]), Path())
    schema, method = schema_of(config.data), build(config.method)
    pairs = method.pairs(schema, [frozenset(schema.names)] * config.federation.sites)
    model = build_model(schema, config.model, method.parts(schema, pairs, config.model), config.seed)
    phases = method.phases(schema, pairs, config.federation.rounds, config.model.feature_width)
    phase = next(phase for phase in phases if isinstance(phase, GradientPhase))
    plan = GaussianPlan(
        phase=phase.name,
        sample_rate=config.privacy.sample_rate,
        steps=count,
        declared_n=units,
        max_grad_norm=config.privacy.max_grad_norm,
        noise_multiplier=1.0,
    )
    training = TrainingOptions(learning_rate=1e-6, max_physical_batch=config.training.max_physical_batch)
    batch = made_up_batch(model, units, seed=0)

    def train(noise: NoiseSource) -> Callable[[], object]:
        return lambda: dp_sgd(model, phase.components, in_context(phase.loss, None), batch, plan, training, noise)

    trained = sum(model.component_sizes()[name] for name in phase.components)
    return trained, {"a default DP-SGD step": train(OsNoise()), "the same without noise": train(Silent())}


def measured(calls: dict[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each repetition, after one call that is not counted."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            times[name].append(timed(call))
    return times


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--units", type=int, default=250, help="records of the site whose step is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"milliseconds per million normals, median of {arguments.repetitions} (quartiles), one thread")
    for name, times in measured(samplers(), arguments.repetitions).items():
        low, middle, high = statistics.quantiles(times, n=4)
        print(f"  {middle:7.1f}  ({low:.1f} to {high:.1f})  {name}")
    trained, calls = steps(arguments.units)
    per_step = {name: [t / 10 for t in ten] for name, ten in measured(calls, arguments.repetitions).items()}
    noised, silent = (statistics.median(values) for values in per_step.values())
    print(f"milliseconds per step, {trained:,} numbers, {arguments.units} records")
    for name, values in per_step.items():
        print(f"  {statistics.median(values):7.2f}  {name}")
    print(f"  {100 * (noised - silent) / noised:6.1f} % of the step is noise")


if __name__ == "__main__":
    main()
