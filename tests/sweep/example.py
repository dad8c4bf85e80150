"""A finished sweep without training: `example_sweep` writes its folder with plausible numbers that never change.

The charges are real mechanisms, calibrated to their epsilon; everything else follows from a formula and the seed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import yaml

from secure_fed.accounting import Mechanism, epsilon
from secure_fed.sweep.config import PageConfig, RepeatSelectConfig
from secure_fed.sweep.record import (
    BROKEN,
    CELLS,
    GRID,
    MANIFEST,
    RESULT,
    AxisRecord,
    CellError,
    CellResult,
    CellRow,
    Charges,
    Manifest,
    PhaseCost,
)

EPSILON, METHOD, OWNERSHIP, SEED = "privacy.epsilon", "method", "federation.ownership", "seed"
NON_PRIVATE, SINGLE_SITE = "non_private", "single_site"
METHODS = ("zero_fill", "modality_dropout", "fin")
LABELS = ("Cardiomegaly", "Edema", "Pleural Effusion", "Fracture")
ROUNDS, TRANSLATOR_ROUNDS, STEPS, SPARE = 18, 3, 2, 1


@dataclass(frozen=True)
class Example:
    """What an example can be told to be. `broken` and `missing` count grid cells, from the end.

    gain: method -> AUROC above zero filling at a generous epsilon. noise: deviation over seeds. alike: the seeds'
    noise is the same for all methods, so that paired differences are nearly exact. shift: added to every AUROC.
    draws: indices of grid cells, in the order in which repeat_select drew them; a cell drawn again gets a repeat.
    """

    name: str = "privacy_utility"
    epsilons: tuple[float, ...] = (0.5, 1.0, 3.0, 8.0)
    methods: tuple[str, ...] = METHODS
    ownerships: tuple[str, ...] = ("5:1:4", "2:2:6")
    seeds: tuple[int, ...] = (0, 1, 2)
    references: tuple[str, ...] = (NON_PRIVATE, SINGLE_SITE)
    broken: int = 1
    missing: int = 1
    gain: Mapping[str, float] = field(default_factory=lambda: {"modality_dropout": 0.004, "fin": 0.02})
    noise: float = 0.004
    alike: bool = False
    shift: float = 0.0
    delta: float = 1e-5
    code: str = "0.1.0+0123456789abcdef"
    data: str = "synthetic_cxr"
    base: tuple[str, ...] = ("experiment=small",)
    arguments: tuple[str, ...] = ("sweep=privacy_utility",)
    secagg: str = "on"
    insecure_reproducible: bool = False
    tuning: str = "public"
    draws: tuple[int, ...] = ()
    confidence: float = 0.95
    objective: str = "auroc_macro"
    search_trials: int | None = None
    max_grad_norm: float = 2.0
    versions: Mapping[str, str] = field(default_factory=lambda: {"python": "3.11.7", "torch": "2.14.1"})


def example_sweep(folder: Path, **changes: Any) -> Path:
    """Write `sweep.json` and `cells/<id>/` with cell.json or error.json; returns `folder`.

    Finished cells have the least of a config.yaml and a stub of report.html, too.

    changes: fields of `Example`.
    """
    example = Example(**changes)
    rows = _rows(example)
    grid = [row for row in rows if row.kind == GRID]
    unfinished = example.broken + example.missing
    broken = {row.id for row in grid[len(grid) - unfinished : len(grid) - example.missing]}
    missing = {row.id for row in grid[len(grid) - example.missing :]}
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / MANIFEST, _manifest(example, rows))
    for row in rows:
        if row.id in missing:
            continue
        cell = folder / CELLS / row.id
        cell.mkdir(parents=True)
        if row.id in broken:
            _write(cell / BROKEN, _error(row))
            continue
        _write(cell / RESULT, _result(example, row))
        (cell / "config.yaml").write_text(_config(example, row, cell), encoding="utf-8")
        (cell / "report.html").write_text(f"<!doctype html><title>{row.id}</title>\n", encoding="utf-8")
    return folder


def _write(path: Path, record: Any) -> None:
    path.write_text(record.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")


def _rows(example: Example) -> list[CellRow]:
    axes = (example.epsilons, example.methods, example.ownerships, example.seeds)
    rows = [
        _row(example, GRID, {EPSILON: epsilon_, METHOD: method, OWNERSHIP: ownership, SEED: seed})
        for epsilon_, method, ownership, seed in product(*axes)
    ]
    if example.draws:
        drawn = [rows[index] for index in example.draws]
        counts = [sum(row == earlier for earlier in drawn[:at]) for at, row in enumerate(drawn)]
        rows = [_row(example, GRID, row.factors, count) for row, count in zip(drawn, counts, strict=True)]
    if NON_PRIVATE in example.references:
        rows += [
            _row(example, NON_PRIVATE, {METHOD: method, OWNERSHIP: ownership, SEED: seed})
            for method, ownership, seed in product(*axes[1:])
        ]
    if SINGLE_SITE in example.references:
        rows += [
            _row(example, SINGLE_SITE, {EPSILON: epsilon_, SEED: seed})
            for epsilon_, seed in product(example.epsilons, example.seeds)
        ]
    return rows


def _row(example: Example, kind: str, factors: Mapping[str, Any], repeat: int = 0) -> CellRow:
    private = kind != NON_PRIVATE
    identity = json.dumps([kind, dict(factors), example.code, repeat], sort_keys=True)
    return CellRow(
        id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        kind=kind,
        factors=dict(factors),
        method=str(factors.get(METHOD, "zero_fill")),
        ownership=str(factors.get(OWNERSHIP, "0:0:10")),
        seed=int(factors[SEED]),
        privacy="dp" if private else "off",
        secagg="off" if kind == SINGLE_SITE else example.secagg,
        epsilon_target=float(factors[EPSILON]) if private else None,
        delta=example.delta if private else None,
        repeat=repeat,
    )


def _config(example: Example, row: CellRow, cell: Path) -> str:
    private = {"epsilon": row.epsilon_target, "delta": row.delta, "max_grad_norm": example.max_grad_norm}
    tree = {
        "name": row.method,
        "seed": row.seed,
        "run_dir": str(cell),
        "insecure_reproducible": example.insecure_reproducible,
        "data": {"name": example.data, "patients": 2500},
        "method": {"name": row.method},
        "privacy": {"mode": row.privacy, **(private if row.privacy == "dp" else {})},
        "secagg": {"mode": row.secagg},
        "federation": {"sites": 10, "rounds": ROUNDS, "ownership": row.ownership},
    }
    return yaml.safe_dump(tree, sort_keys=False)


def _manifest(example: Example, rows: Sequence[CellRow]) -> Manifest:
    axes = {
        EPSILON: example.epsilons,
        METHOD: example.methods,
        OWNERSHIP: example.ownerships,
        SEED: example.seeds,
    }
    return Manifest(
        name=example.name,
        code=example.code,
        arguments=example.arguments,
        base=example.base,
        axes=tuple(AxisRecord(name=name, values=values) for name, values in axes.items()),
        references=example.references,
        objective=example.objective,
        tuning=example.tuning,
        repeat_select=RepeatSelectConfig(mean=10, shape=1),
        page=PageConfig(x=EPSILON, log_x=True, series=METHOD, panels=OWNERSHIP),
        confidence=example.confidence,
        search_trials=example.search_trials,
        data=example.data,
        cells=tuple(rows),
        draws=tuple(row.id for row in rows if row.kind == GRID) if example.draws else (),
        versions=dict(example.versions),
    )


def _error(row: CellRow) -> CellError:
    message = "1 of 10 sites have budget and policy for this run, and 4 are needed"
    return CellError(
        **row.model_dump(),
        error="BudgetExhausted",
        message=message,
        traceback=f'Traceback (most recent call last):\n  File "runner.py", line 101\nBudgetExhausted: {message}\n',
    )


def _result(example: Example, row: CellRow) -> CellResult:
    charges = _charges(row)
    upload = 3_200_000 if row.kind != SINGLE_SITE else 250_000
    return CellResult(
        **row.model_dump(),
        metrics=_metrics(example, row),
        epsilon_spent=max(charge.epsilon for charge in charges) if charges else None,
        charges=charges,
        phases=_phases(row, upload),
        rounds=ROUNDS,
        rounds_burned=0,
        wall_s=15.0 + row.seed,
        cpu_s=14.5 + row.seed,
        peak_mib=612.5,
        bytes_up=upload,
        bytes_down=int(1.25 * upload),
        insecure_reproducible=example.insecure_reproducible,
        model_sha256=hashlib.sha256(f"{row.id} model".encode()).hexdigest(),
        data=example.data,
        run=hashlib.sha256(f"{row.id} run".encode()).hexdigest()[:32],
    )


def _metrics(example: Example, row: CellRow) -> dict[str, float | None]:
    shown = math.inf if row.epsilon_target is None else row.epsilon_target
    noise = _noise(example, row)
    trust = 1 - math.exp(-shown / 1.5)  # how much of a method's gain the privacy noise leaves
    gain = example.gain.get(row.method, 0.0)
    score = 0.80 + example.shift - 0.10 / (1 + shown) + gain * (1.25 * trust - 0.25) + example.noise * noise
    if row.ownership == example.ownerships[-1] and len(example.ownerships) > 1:
        score -= 0.015
    if row.kind == SINGLE_SITE:
        score -= 0.05
    metrics: dict[str, float | None] = {
        "auroc_macro": round(score, 6),
        "auroc_macro_missing.image": round(score - 0.12, 6),
        "auroc_macro_missing.text": round(score - 0.05, 6),
    }
    for place, label in enumerate(LABELS):
        metrics[f"auroc.{label}"] = round(score + 0.03 * (place - 1.5), 6)
    metrics[f"auroc.{LABELS[-1]}"] = None  # one class only in the hold-out
    return metrics


def _noise(example: Example, row: CellRow) -> float:
    """A standard normal number of this cell's own, or of its seed's with `alike`; the same on every machine."""
    key = [row.seed] if example.alike else [row.seed, int(row.id[:8], 16)]
    return float(np.random.default_rng(key).standard_normal())


@cache
def _one_release(target: float, delta: float) -> float:
    """The noise multiplier at which one Gaussian release costs `target` (Balle and Wang 2018, Theorem 8)."""
    low, high = 1e-2, 1e4
    for _ in range(60):
        middle = math.sqrt(low * high)
        above = 1 / (2 * middle) - target * middle
        below = -1 / (2 * middle) - target * middle
        spent = NormalDist().cdf(above) - math.exp(target) * NormalDist().cdf(below)
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


def _schedule(row: CellRow) -> dict[str, int]:
    """Phase -> its rounds."""
    if row.method != "fin":
        return {"classify": ROUNDS}
    return {"classify": ROUNDS - TRANSLATOR_ROUNDS, "translate": TRANSLATOR_ROUNDS}


def _noise_multiplier(row: CellRow, phases: Sequence[str]) -> float:
    """What keeps a site with these phases, spare rounds included, within the cell's epsilon."""
    rounds = sum(count + SPARE for phase, count in _schedule(row).items() if phase in phases)
    assert row.epsilon_target is not None
    assert row.delta is not None
    return round(_one_release(row.epsilon_target, row.delta) * math.sqrt(rounds * STEPS), 6)


def _charged(row: CellRow, phases: Sequence[str]) -> tuple[Mechanism, ...]:
    steps = STEPS * sum(count for phase, count in _schedule(row).items() if phase in phases)
    noise = _noise_multiplier(row, phases)
    return (Mechanism(kind="gaussian", noise_multiplier=noise, sample_rate=1.0, steps=steps),)


def _charges(row: CellRow) -> tuple[Charges, ...]:
    """One group of sites, or two where only those that own both modalities train the translators."""
    if row.privacy == "off":
        return ()
    every = tuple(f"site{number:02d}" for number in range(1, 11))
    if row.kind == SINGLE_SITE:
        groups = {("site10",): ("classify",)}
    elif row.method == "fin":
        both = int(row.ownership.rsplit(":", 1)[-1])
        groups = {every[: 10 - both]: ("classify",), every[10 - both :]: ("classify", "translate")}
    else:
        groups = {every: ("classify",)}
    found = []
    for sites, phases in groups.items():
        charged = _charged(row, phases)
        found.append(Charges(sites=sites, epsilon=_epsilon(charged, row.delta), mechanisms=charged))
    return tuple(found)


def _epsilon(charged: Sequence[Mechanism], delta: float | None) -> float:
    assert delta is not None
    return epsilon(charged, delta)


def _phases(row: CellRow, upload: int) -> tuple[PhaseCost, ...]:
    schedule = _schedule(row)
    found = []
    for phase, rounds in schedule.items():
        alone = share = None
        if row.privacy == "dp":
            noise = _noise_multiplier(row, tuple(schedule))
            charged = Mechanism(kind="gaussian", noise_multiplier=noise, sample_rate=1.0, steps=STEPS * rounds)
            alone, share = _epsilon([charged], row.delta), rounds / sum(schedule.values())
        bytes_up = round(upload * (0.02 if phase == "translate" else 0.98 if len(schedule) > 1 else 1.0))
        found.append(
            PhaseCost(
                phase=phase,
                artefact="update",
                rounds=rounds,
                epsilon=alone,
                share=share,
                seconds=0.8 * rounds,
                bytes_up=bytes_up,
            )
        )
    return tuple(found)
