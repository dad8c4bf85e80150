"""Finished sweeps for the results page, without training: scores follow from a formula, summaries are small."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from example_runs import ALWAYS, cost

from secure_fed.sweep.config import PageConfig, RepeatSelectConfig
from secure_fed.sweep.record import (
    CELLS,
    GRID,
    MANIFEST,
    RESULT,
    AxisRecord,
    CellResult,
    CellRow,
    Manifest,
    PhaseCost,
    Scalar,
)

EPSILON, METHOD, OWNERSHIP, SEED = "privacy.epsilon", "method", "federation.ownership", "seed"
AXES: dict[str, tuple[Scalar, ...]] = {
    OWNERSHIP: ("8:0:2", "4:4:2"),
    METHOD: ("zero_fill", "modality_dropout", "fin"),
    EPSILON: (8.0, 1.0),
    SEED: (0, 1, 2),
}
NOISE = 0.002
"""Deviation over seeds of a cell's own noise; what a seed does to all cells alike is ten times as large."""

Gain = Callable[[Mapping[str, Scalar], str | None], float]
"""(factors, the missing modality) -> AUROC above zero filling."""


def no_gain(factors: Mapping[str, Scalar], missing: str | None) -> float:
    """All methods alike but for their noise."""
    return 0.0


def study(
    folder: Path,
    *,
    name: str = "methods",
    axes: Mapping[str, Sequence[Scalar]] = AXES,
    gain: Gain = no_gain,
    base: Sequence[str] = ("experiment=small", "federation.corrupt=0"),
    unfinished: int = 0,
    code: str = "0.1.0+0123456789abcdef",
    data: str = "synthetic_cxr",
) -> Path:
    """Write a grid over `axes` and its references without privacy; the last `unfinished` cells have not run."""
    rows = [_row(GRID, dict(zip(axes, values, strict=True)), code) for values in product(*axes.values())]
    others = [key for key in axes if key != EPSILON]
    rows += [
        _row("non_private", dict(zip(others, values, strict=True)), code)
        for values in product(*(axes[key] for key in others))
    ]
    folder.mkdir(parents=True)
    manifest = Manifest(
        name=name,
        code=code,
        arguments=(f"sweep={name}", "sweep.dir=/somewhere/else", "data.root='/somewhere/data'", "x.path=/somewhere"),
        base=tuple(base),
        axes=tuple(AxisRecord(name=key, values=tuple(values)) for key, values in axes.items()),
        references=("non_private",),
        objective="auroc_macro",
        tuning="public",
        repeat_select=RepeatSelectConfig(mean=10, shape=1),
        page=PageConfig(x=EPSILON, log_x=True, series=None, panels=None),
        confidence=0.95,
        search_trials=None,
        data=data,
        cells=tuple(rows),
        versions={"python": "3.11.7"},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True), encoding="utf-8")
    for row in rows[: len(rows) - unfinished]:
        cell = folder / CELLS / row.id
        cell.mkdir(parents=True)
        (cell / RESULT).write_text(_result(row, gain, data).model_dump_json(by_alias=True), encoding="utf-8")
        (cell / "summary.json").write_text(json.dumps(summary(row)), encoding="utf-8")
    return folder


def _row(kind: str, factors: dict[str, Scalar], code: str) -> CellRow:
    private = kind == GRID
    target = factors.get(EPSILON)
    return CellRow(
        id=hashlib.sha256(json.dumps([kind, factors, code]).encode()).hexdigest()[:16],
        kind=kind,
        factors=factors,
        method=str(factors.get(METHOD, "fin")).removesuffix("_paper"),
        ownership=str(factors.get(OWNERSHIP, "4:4:2")),
        seed=int(str(factors[SEED])),
        privacy="dp" if private else "off",
        secagg="on",
        epsilon_target=float(str(target)) if private else None,
        delta=1e-5 if private else None,
    )


def _result(row: CellRow, gain: Gain, data: str) -> CellResult:
    def score(missing: str | None) -> float:
        of_seed = np.random.default_rng([row.seed, 0 if missing is None else len(missing)]).standard_normal()
        own = np.random.default_rng([row.seed, int(row.id[:8], 16), 0 if missing is None else len(missing)])
        lost = 0.0 if missing is None else 0.07
        added = 0.0 if row.method == "zero_fill" else gain(row.factors, missing)
        noise = 10 * NOISE * of_seed + NOISE * own.standard_normal()
        return round(float(0.82 - lost + added + noise), 6)

    metrics: dict[str, float | None] = {"auroc_macro": score(None), "auprc_macro": score(None) - 0.4}
    for name in ("image", "text"):
        metrics[f"auroc_macro_missing.{name}"] = score(name)
        metrics[f"auprc_macro_missing.{name}"] = score(name) - 0.4
        if row.method == "fin":
            metrics |= {f"imputation_cosine.{name}": 0.9, f"imputation_mse_over_variance.{name}": 0.5}
            metrics[f"imputation_rank.{name}"] = 0.2
    for rate in (0, 0.25, 0.5, 0.75, 1):
        metrics[f"auroc_rate.any.{rate:g}"] = 0.82 - 0.07 * rate
    phase = {"rounds": 3, "seconds": 1.5, "bytes_up": 1000, "artefact": "update", "phase": "classify"}
    return CellResult(
        **row.model_dump(),
        metrics=metrics,
        epsilon_spent=None if row.epsilon_target is None else 0.98 * row.epsilon_target,
        charges=(),
        phases=(PhaseCost(**phase, epsilon=row.epsilon_target, share=None if row.epsilon_target is None else 1.0),),
        rounds=3,
        rounds_burned=0,
        wall_s=36.0,
        cpu_s=36.0,
        peak_mib=500.0,
        bytes_up=1000,
        bytes_down=1200,
        insecure_reproducible=False,
        model_sha256="00" * 32,
        data=data,
        run="00" * 16,
    )


def summary(row: CellRow) -> dict[str, Any]:
    """What the results page reads of a cell's summary.json, with all that the reader insists on."""
    both = [f"site{number:02d}" for number in (9, 10)]
    every = [f"site{number:02d}" for number in range(1, 11)]
    components = {
        "encoder.image": {"parameters": 17_328, "owners": every, "floor": 2, "dp_only": False, "kept": 0},
        "fusion": {"parameters": 910, "owners": every, "floor": 2, "dp_only": False, "kept": 0},
    }
    if row.method == "fin":
        components["translator.image_to_text"] = {
            "parameters": 1056, "owners": both, "floor": 2, "dp_only": False, "kept": 0,
        }  # fmt: skip
    return {
        **ALWAYS,
        "run": "00" * 16,
        "name": row.method,
        "method": row.method,
        "seed": row.seed,
        "auroc_macro": 0.82,
        "auroc_macro_missing": {"image": 0.75, "text": 0.75},
        "auprc_macro": 0.42,
        "auprc_macro_missing": {"image": 0.35, "text": 0.35},
        "missing_rates": [],
        "imputation": {},
        "intervals": {
            "level": 0.95, "draws": 1000, "patients": 480, "auroc_macro": [0.8, 0.84], "auprc_macro": [0.4, 0.44],
            "auroc_macro_missing": {}, "auprc_macro_missing": {}, "auroc_per_label": {}, "auprc_per_label": {},
        },
        "epsilon": {},
        "epsilon_max": None,
        "epsilon_target": row.epsilon_target,
        "delta": row.delta,
        "privacy": row.privacy,
        "rounds": 3,
        "components": components,
        "secagg": {
            "mode": "on", "corrupt": 0, "threshold": 6, "bytes_up_per_parameter": 3.0, "bytes_down_per_parameter": 3.0,
        },
        "cost": cost(components, {"image": 2048, "text": 2048}),
    }  # fmt: skip
