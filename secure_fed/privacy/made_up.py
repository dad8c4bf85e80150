"""Records that belong to nobody: what a preflight looks at in place of a site's own, outliers and broken ones included.

Shapes, kinds and units are those of the data set's public schema; the values come from a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from secure_fed.data.records import BoolArray, FloatArray, ModalitySpec, Records, Schema, ValueArray
from secure_fed.data.vocabulary import vocabulary
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.models.units import Unit

MAGNITUDES = (1.0, 1e3, 1e6)  # the clip bound must hold for a value typed in the wrong unit, and for a hostile one


def made_up_batch(
    model: MultimodalModel, count: int, seed: int, unit: Unit = "record", max_records_per_unit: int = 1
) -> Batch:
    """`count` units with 1, 2, ... up to `max_records_per_unit` records each, prepared.

    The first record has all modalities, others miss some; labels are partly unknown.
    """
    rng = np.random.default_rng(seed)
    schema = model.schema
    unit_ids = np.repeat([f"made-up-{i}" for i in range(count)], [1 + i % max_records_per_unit for i in range(count)])
    presence = {name: rng.random(len(unit_ids)) < 0.8 for name in schema.names}
    for present in presence.values():
        present[:1] = True
    records = Records(
        schema=schema,
        values={spec.name: _values(spec, presence[spec.name], rng) for spec in schema.modalities},
        presence=presence,
        labels=_labels(schema, len(unit_ids), rng),
        unit_ids=unit_ids,
    )
    return model.prepare(records, unit)


def made_up_public_set(model: MultimodalModel, count: int = 12, seed: int = 1) -> Batch:
    """A public set that belongs to nobody: `count` records with every modality and every label known."""
    rng = np.random.default_rng(seed)
    schema = model.schema
    everywhere = np.ones(count, dtype=bool)
    records = Records(
        schema=schema,
        values={spec.name: _values(spec, everywhere, rng) for spec in schema.modalities},
        presence=dict.fromkeys(schema.names, everywhere),
        labels=(rng.random((count, len(schema.labels))) < 0.5).astype(np.float32),
        unit_ids=np.array([f"public-{i}" for i in range(count)]),
    )
    return model.prepare(records)


def with_outliers(batch: Batch) -> Batch:
    """`batch` with the numbers of its units times 1, 1e3, 1e6, in turn."""
    factors = torch.tensor(MAGNITUDES)[batch.units % len(MAGNITUDES)]
    return _changed(batch, lambda rows: rows * factors.view(-1, *[1] * (rows.ndim - 1)))


def with_non_finite(batch: Batch) -> Batch:
    """`batch` with one infinite number in each modality of its first record."""

    def spoil(rows: Tensor) -> Tensor:
        spoilt = rows.clone()
        spoilt[0].view(-1)[0] = float("inf")
        return spoilt

    return _changed(batch, spoil)


def _changed(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """`change` applied to all inputs that are numbers; token ids stay."""
    rows = {name: batch.input(name) for name in batch.inputs}
    inputs = {name: change(of) if of.is_floating_point() else of for name, of in rows.items()}
    return replace(batch, inputs=inputs)


def _values(spec: ModalitySpec, present: BoolArray, rng: np.random.Generator) -> ValueArray:
    if spec.kind == "text":
        words = np.array([word for column in vocabulary() for word in column.split("_")[-1].split()])
        texts = [" ".join(rng.choice(words, size=12)) if there else "" for there in present]
        return np.array(texts, dtype=object)
    if spec.kind == "image":
        values = rng.random((len(present), *spec.shape))
    else:
        values = rng.standard_normal((len(present), *spec.shape))
    blanked: ValueArray = (values * present.reshape(-1, *[1] * len(spec.shape))).astype(np.float32)
    return blanked


def _labels(schema: Schema, count: int, rng: np.random.Generator) -> FloatArray:
    labels = (rng.random((count, len(schema.labels))) < 0.5).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    return labels
