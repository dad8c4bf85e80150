"""Small public records over an image, a text and a table: enough for every component of a model."""

from __future__ import annotations

import numpy as np
import pytest

from secure_fed.data.records import ModalitySpec, Records, Schema

REPORTS = ("cardiomegaly with small effusion", "no effusion or pneumothorax", "possible edema", "", "zzz qqq")


def make_records(n: int = 6, side: int = 64, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    schema = Schema(
        modalities=(
            ModalitySpec("image", "image", (1, side, side)),
            ModalitySpec("report", "text", ()),
            ModalitySpec("vitals", "tabular", (5,), tuple(f"v{i}" for i in range(5))),
        ),
        labels=("a", "b", "c"),
    )
    labels = (rng.random((n, 3)) < 0.4).astype(np.float32)
    labels[0, 1] = np.nan
    return Records(
        schema=schema,
        values={
            "image": rng.random((n, 1, side, side), dtype=np.float32),
            "report": np.array([REPORTS[i % len(REPORTS)] for i in range(n)], dtype=object),
            "vitals": rng.standard_normal((n, 5)).astype(np.float32),
        },
        presence={name: np.ones(n, dtype=bool) for name in schema.names},
        labels=labels,
        unit_ids=np.array([f"p{i}" for i in range(n)]),
    )


@pytest.fixture
def records() -> Records:
    return make_records()
