"""Batches know which unit a row belongs to, keep it when rows are chosen, and choose whole units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from secure_fed.errors import DataError
from secure_fed.models.batch import Batch, bounded
from secure_fed.models.config import ModelConfig
from secure_fed.models.multimodal import build_model
from secure_fed.models.units import UnitRows


def batch_of(*units: int) -> Batch:
    """A row for each of `units`, whose input says which row it was."""
    rows = torch.arange(len(units), dtype=torch.float32).unsqueeze(1)
    present = torch.ones(len(units), dtype=torch.bool)
    return Batch({"a": rows}, {"a": present}, rows, rows, torch.tensor(units, dtype=torch.int64), "patient")


def rows_of(batch: Batch) -> list[int]:
    return [int(row) for row in batch.inputs["a"]]


def numbers(batch: Batch) -> list[int]:
    units: Tensor = batch.units
    return [int(unit) for unit in units]


def test_records_are_units_of_their_own_unless_patients_are_asked_for(records):
    patients = replace(records, unit_ids=np.array(["p7", "p2", "p7", "p0", "p2", "p7"]))
    model = build_model(records.schema, ModelConfig(), {}, seed=0)
    by_record, by_patient = model.prepare(patients), model.prepare(patients, "patient")
    assert (by_record.unit, numbers(by_record), by_record.unit_count) == ("record", [0, 1, 2, 3, 4, 5], 6)
    assert (by_patient.unit, numbers(by_patient), by_patient.unit_count) == ("patient", [0, 1, 0, 2, 1, 0], 3)
    assert model.prepare(patients.select([]), "patient").unit_count == 0


def test_selecting_rows_keeps_their_units():
    picked = batch_of(4, 4, 0, 9).select(torch.tensor([3, 1, 0]))
    assert (numbers(picked), picked.unit, picked.unit_count) == ([9, 4, 4], "patient", 2)
    assert numbers(replace(picked, presence={})) == [9, 4, 4]


@pytest.mark.parametrize("as_mask", [False, True])
def test_whole_units_are_selected_with_all_their_rows_in_the_datas_order(as_mask):
    batch = batch_of(4, 0, 4, 9, 0, 4)  # units 0, 4, 9 at positions 0, 1, 2
    chosen = torch.tensor([False, True, True]) if as_mask else torch.tensor([2, 1])
    assert rows_of(batch.select_units(chosen)) == [0, 2, 3, 5]


def test_a_bound_keeps_the_first_rows_of_every_unit():
    batch = batch_of(4, 0, 4, 9, 0, 4)
    assert rows_of(bounded(batch, 1)) == [0, 1, 3]
    assert rows_of(bounded(batch, 2)) == [0, 1, 2, 3, 4]
    assert bounded(batch, 3) is batch
    with pytest.raises(DataError, match="max_records_per_unit=0"):
        bounded(batch, 0)


def test_units_that_do_not_fit_the_rows_are_refused():
    rows = torch.zeros(2, 1)
    with pytest.raises(DataError, match="units has 3 rows"):
        Batch({}, {}, rows, rows, torch.arange(3))
    with pytest.raises(DataError, match="unit='patient' without units"):
        Batch({}, {}, rows, rows, unit="patient")


def test_rows_that_are_units_of_their_own_are_grouped_as_their_numbers_would_group_them():
    single, numbered = UnitRows.single(4), UnitRows.of(torch.arange(4))
    for name in ("of_row", "sizes", "order"):
        assert torch.equal(getattr(single, name), getattr(numbered, name)), name
