"""Tabular records of several modalities, and a model with what a method adds to it: for the tests of translators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.methods.base import Method
from secure_fed.models.batch import Batch
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import MultimodalModel, build_model
from secure_fed.privacy.plan import GaussianPlan

NAMES = ("vitals", "labs", "notes", "genes")
COLUMNS = 4
STEPS = {"steps": 2, "learning_rate": 1.0, "unclipped_steps": 3, "unclipped_learning_rate": 0.5}
TRAINING: dict[str, Any] = {
    "classify": STEPS,
    "translate": {"steps": 3, "learning_rate": 0.5, "unclipped_steps": 4, "unclipped_learning_rate": 0.1},
    "schedule": "last",
    "translator_share": 1 / 6,
}

PLAN = GaussianPlan(
    phase="any",
    max_grad_norm=1.0,
    noise_multiplier=1.0,
    sample_rate=1.0,
    steps=1,
    declared_n=5,
    unit="record",
    max_records_per_unit=1,
)
"""One noisy step on any phase, for the preflight."""


def schema_of(modalities: int) -> Schema:
    """A schema of the first so many of NAMES, one label."""
    specs = (ModalitySpec(n, "tabular", (COLUMNS,), tuple(f"{n}{i}" for i in range(COLUMNS))) for n in NAMES)
    return Schema(tuple(specs)[:modalities], ("dead",))


def records_of(schema: Schema, presence: Mapping[str, Sequence[bool]], seed: int = 1) -> Records:
    """Random records with this presence; absent values are zero."""
    n = len(next(iter(presence.values())))
    rng = np.random.default_rng(seed)
    there = {name: np.array(presence[name], dtype=bool) for name in schema.names}
    return Records(
        schema=schema,
        values={
            name: (rng.normal(size=(n, COLUMNS)) * there[name][:, None]).astype(np.float32) for name in schema.names
        },
        presence=there,
        labels=rng.integers(0, 2, size=(n, 1)).astype(np.float32),
        unit_ids=np.array([f"p{i}" for i in range(n)]),
        groups=None,
    )


def model_of(
    method: Method, schema: Schema, owned: Sequence[frozenset[str]], config: Mapping[str, Any] | None = None
) -> MultimodalModel:
    """The model of a federation of sites that own this, its parts away from their zeros."""
    chosen = ModelConfig.model_validate({"feature_width": 6, "translator": {"name": "linear"}, **(config or {})})
    model = build_model(schema, chosen, method.parts(schema, method.pairs(schema, owned), chosen), seed=3)
    for component, size in model.component_sizes().items():
        if not component.startswith("encoder."):
            rng = np.random.default_rng(sum(component.encode()))
            model.set_component(component, rng.normal(size=size, scale=0.5).astype(np.float32))
    return model


def complete_batch(model: MultimodalModel, n: int = 12) -> Batch:
    """Prepared records that have everything."""
    return model.prepare(records_of(model.schema, {name: [True] * n for name in model.schema.names}))
