"""What a step of DP-SGD costs by unit of privacy and by back end: CPU milliseconds, medians of interleaved repeats.

    python benchmarks/per_unit_gradients.py [--records 1000] [--repeats 7]

One site's records of the synthetic chest films, all in every step (sample_rate=1, the default): the shipped phases
of method=fin with the default model, and its classifier with a small CNN or BERT in it. One thread. `noise alone` is
part of every other figure but `no privacy`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from secure_fed.config import compose_config, freeze
from secure_fed.data import load
from secure_fed.data.config import SyntheticCxrConfig
from secure_fed.methods import build
from secure_fed.methods.base import GradientPhase, in_context
from secure_fed.models.batch import Batch, bounded
from secure_fed.models.multimodal import MultimodalModel, build_model
from secure_fed.models.translators import translator_parts
from secure_fed.privacy.dpsgd import dp_sgd, plain_sgd
from secure_fed.privacy.noise import OsNoise
from secure_fed.privacy.plan import GaussianPlan, TrainingOptions

PAIRS = (("image", "text"), ("text", "image"))
MOST = 4  # records of a patient, the default


def measured(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of each run; one of each in turn, so that a busy machine is busy for all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if repeat:  # the first one warms up
                times[name].append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def runs_of(
    model: MultimodalModel, phase: GradientPhase, by_patient: Batch, part: int
) -> dict[str, Callable[[], None]]:
    """One step over all records: by record with hooks and ghost, by patient with hooks, and without privacy."""
    by_record = replace(by_patient, units=torch.arange(len(by_patient)), unit="record")
    plan = GaussianPlan(
        phase=phase.name, sample_rate=1.0, steps=1, declared_n=1000, max_grad_norm=2.0, noise_multiplier=1.0
    )
    patients = replace(plan, unit="patient", max_records_per_unit=MOST)
    noise, loss = OsNoise(), in_context(phase.loss, None)

    def step(batch: Batch, settings: GaussianPlan, training: TrainingOptions) -> Callable[[], None]:
        trained = copy.deepcopy(model)
        return lambda: dp_sgd(trained, phase.components, loss, batch, settings, training, noise)

    def noise_alone() -> None:
        noise.noised(torch.zeros(size, dtype=torch.float64), 1.0)

    hooks = TrainingOptions(learning_rate=1e-3, max_physical_batch=part)
    plain = copy.deepcopy(model)
    size = sum(model.component_sizes()[name] for name in phase.components)
    return {
        "no privacy": lambda: plain_sgd(plain, phase.components, loss, by_record, plan, hooks, noise),
        "noise alone": noise_alone,
        "record, hooks": step(by_record, plan, hooks),
        "record, ghost": step(by_record, plan, hooks.model_copy(update={"back_end": "ghost"})),
        "patient, hooks": step(by_patient, patients, hooks),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns: dict[str, dict[str, float]] = {}
    sizes = {
        "image=filterbank": (options.records, 256),
        "image=small_cnn": (options.records // 8, 64),
        "text=bert_small": (options.records // 16, 32),
    }
    for encoder, (records, part) in sizes.items():
        config = freeze(compose_config([f"model/{encoder}"]), Path.cwd())
        data = load(SyntheticCxrConfig(patients=options.records), config.seed).records
        model = build_model(data.schema, config.model, translator_parts(config.model, PAIRS), config.seed)
        batch = bounded(model.prepare(data.select(range(records)), "patient"), MOST)
        print(f"{encoder}: {len(batch)} records of {batch.unit_count} patients, parts of {part}")
        for phase in build(config.method).phases(data.schema, PAIRS, rounds=12, width=config.model.feature_width):
            assert isinstance(phase, GradientPhase)
            if phase.name == "translate" and encoder != "image=filterbank":
                continue  # the same translators on the same features
            columns[f"{encoder}, {phase.name}"] = measured(runs_of(model, phase, batch, part), options.repeats)
    print(f"\n{'CPU ms a step':16}" + "".join(f"{name:>28}" for name in columns))
    for run in next(iter(columns.values())):
        print(f"{run:16}" + "".join(f"{column[run]:28.1f}" for column in columns.values()))


if __name__ == "__main__":
    main()
