"""Finished run folders without training: as much as a comparison of runs reads, with figures that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from secure_fed.identity import Member, Roster, SigningKey

SITES = tuple(f"site{number:02d}" for number in range(1, 11))
RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
ALWAYS: dict[str, Any] = {
    "schema": "secure_fed.summary/1",
    "status": "finished",
    "data": "synthetic_cxr",
    "auroc_per_label": {},
    "auprc_per_label": {},
    "prevalence": {},
    "auprc_chance": 0.1,
    "labels_left_out": [],
    "evaluation": {"name": "holdout"},
    "holdout": {"records": 1250, "patients": 480},
    "accountant": "pld",
    "unit": "record",
    "relation": "add_or_remove_one",
    "rounds_burned": 0,
    "rounds_charged_again": 0,
    "resumed": 0,
    "sites": 10,
    "members": {},
    "statistics": {},
    "server_step": "verified",
    "engine": "in_process",
    "wall_s": 36.0,
    "insecure_reproducible": False,
    "warnings": [],
    "data_notes": {},
    "versions": {},
}
"""What summary.json says alike of every run and cell that the examples write."""


def run(
    folder: Path,
    method: str = "fin",
    seed: int = 0,
    *,
    auroc: float = 0.82,
    missing: Mapping[str, float] | None = None,
    epsilon: float | None = 8.0,
    ownership: object = "4:4:2",
    config: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run. epsilon None: privacy is off. config: more of config.yaml; changes: of summary.json."""
    folder.mkdir(parents=True)
    without = {"image": auroc - 0.07, "text": auroc - 0.05} if missing is None else dict(missing)
    privacy = {"mode": "off" if epsilon is None else "dp", "epsilon": epsilon or 8.0, "delta": 1e-5}
    tree = {
        "name": method,
        "seed": seed,
        "run_dir": str(folder),
        "data": {"name": "synthetic_cxr", "patients": 2500},
        "method": {"name": method, "classify": {"steps": 2}},
        "privacy": privacy,
        "federation": {"sites": 10, "rounds": 18, "ownership": ownership, "public_set": f"{seed:064d}"},
    }
    tree |= config or {}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    summary = _summary(method, seed, auroc, without, epsilon) | dict(changes or {})
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    step = {"step": 0, "round": 0, "participants": 10, "survivors": 10}
    (folder / "metrics.jsonl").write_text(json.dumps(step) + "\n", encoding="utf-8")
    members = {
        site: Member(public_key=SigningKey.generate().public_bytes.hex(), owns=("image", "text"), declared_n=250)
        for site in SITES
    }
    Roster.create(members, SigningKey.generate(), coordinator=SigningKey.generate().public_bytes).save(
        folder / "roster.json"
    )
    return folder


def cost(components: Mapping[str, Mapping[str, Any]], flops_imputation: Mapping[str, int]) -> dict[str, Any]:
    """The cost of a run with these components."""
    sizes = {name: facts["parameters"] for name, facts in components.items()}
    return {
        "parameters": sizes,
        "parameters_total": sum(sizes.values()),
        "flops_inference": 123_456,
        "flops_imputation": dict(flops_imputation),
        "bytes_up_per_site_round": 153_400.0,
        "bytes_down_per_site_round": 211_000.0,
        "seconds_per_round": 2.31,
    }


def _summary(
    method: str, seed: int, auroc: float, missing: Mapping[str, float], epsilon: float | None
) -> dict[str, Any]:
    def around(value: float) -> list[float]:
        return [value - 0.02, value + 0.02]

    likeness = {"cosine": 0.91, "mse": 0.21, "mse_over_variance": 0.43, "rank": 0.18, "recall_at_10": 0.12}
    constant = {"cosine": 0.78, "mse": 0.49, "mse_over_variance": 1.0, "rank": 0.5, "recall_at_10": 0.008}
    imputation = {"records": 1250, **likeness, "calibration": None, "constant_mean": constant}
    components = {
        name: {"parameters": size, "owners": list(owners), "floor": 2, "dp_only": False, "kept": 0}
        for name, size, owners in (
            ("encoder.image", 17_328, SITES[:6]),
            ("fusion", 910, SITES),
            *((("translator.image_to_text", 1056, SITES[-2:]),) if method == "fin" else ()),
        )
    }
    return {
        **ALWAYS,
        "run": f"{seed:032d}",
        "name": method,
        "method": method,
        "seed": seed,
        "auroc_macro": auroc,
        "auroc_macro_missing": dict(missing),
        "auprc_macro": auroc - 0.4,
        "auprc_macro_missing": {name: value - 0.4 for name, value in missing.items()},
        "missing_rates": [
            {"modality": name, "rate": rate, "auroc_macro": auroc - 0.07 * rate, "auprc_macro": 0.4}
            for name in (*missing, "any")
            for rate in RATES
        ],
        "imputation": dict.fromkeys(missing, imputation) if method == "fin" else {},
        "intervals": {
            "level": 0.95,
            "draws": 1000,
            "patients": 480,
            "auroc_macro": around(auroc),
            "auprc_macro": around(auroc - 0.4),
            "auroc_macro_missing": {name: around(value) for name, value in missing.items()},
            "auprc_macro_missing": {name: around(value - 0.4) for name, value in missing.items()},
            "auroc_per_label": {},
            "auprc_per_label": {},
        },
        "cost": cost(components, dict.fromkeys(missing, 2048 if method == "fin" else 0)),
        "epsilon": {} if epsilon is None else dict.fromkeys(SITES, 0.98 * epsilon),
        "epsilon_max": None if epsilon is None else 0.98 * epsilon,
        "epsilon_target": epsilon,
        "delta": None if epsilon is None else 1e-5,
        "privacy": "off" if epsilon is None else "dp",
        "rounds": 18,
        "components": components,
        "secagg": {"mode": "on", "corrupt": 0, "bytes_up_per_parameter": 3.0, "bytes_down_per_parameter": 3.0},
    }
