"""Records refuse arrays that do not fit the schema, and hide what a site does not own."""

from __future__ import annotations

import numpy as np
import pytest

from secure_fed.data import ModalitySpec, Records, Schema
from secure_fed.errors import ConfigError, DataError

SCHEMA = Schema(
    modalities=(
        ModalitySpec("image", "image", (1, 4, 4)),
        ModalitySpec("report", "text", ()),
        ModalitySpec("vitals", "tabular", (2,), ("a", "b")),
    ),
    labels=("x", "y"),
)


def parts(n=3):
    return {
        "schema": SCHEMA,
        "values": {
            "image": np.full((n, 1, 4, 4), 0.5, dtype=np.float32),
            "report": np.array([f"text {i}" for i in range(n)], dtype=object),
            "vitals": np.ones((n, 2), dtype=np.float32),
        },
        "presence": {name: np.ones(n, dtype=bool) for name in SCHEMA.names},
        "labels": np.zeros((n, 2), dtype=np.float32),
        "unit_ids": np.array([f"p{i}" for i in range(n)]),
    }


def test_unknown_modality_is_named_together_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'ecg'.*image, report, vitals"):
        SCHEMA.modality("ecg")


@pytest.mark.parametrize("name", ["Image", "1st", "a-b", "", "a.b"])
def test_a_modality_name_that_could_not_be_a_component_is_refused(name):
    with pytest.raises(ConfigError, match="modality name"):
        ModalitySpec(name, "text", ())


def test_a_tabular_modality_names_each_of_its_features_once():
    with pytest.raises(ConfigError, match="1 features"):
        ModalitySpec("labs", "tabular", (2,), ("a",))
    with pytest.raises(ConfigError, match="twice: a"):
        ModalitySpec("labs", "tabular", (2,), ("a", "a"))


def corrupted():
    def change(key, name, value):
        def apply(p):
            p[key] = {**p[key], name: value}

        return apply

    def put(key, value):
        return lambda p: p.update({key: value})

    return {
        "image of another size": change("values", "image", np.zeros((3, 1, 5, 4), np.float32)),
        "image of another dtype": change("values", "image", np.zeros((3, 1, 4, 4), np.float64)),
        "text that is not an object array": change("values", "report", np.array(["a", "b", "c"])),
        "presence of another length": change("presence", "image", np.ones(2, bool)),
        "modality unknown to the schema": change("values", "ecg", np.zeros(3, np.float32)),
        "NaN among the features": change("values", "vitals", np.full((3, 2), np.nan, np.float32)),
        "label 2": put("labels", np.full((3, 2), 2.0, np.float32)),
        "units of another length": put("unit_ids", np.array(["p0"])),
        "units that are numbers": put("unit_ids", np.arange(3)),
        "groups of another length": put("groups", np.array(["g"])),
        "value behind an absent row": change("presence", "vitals", np.array([True, True, False])),
        "text behind an absent row": change("presence", "report", np.array([True, True, False])),
    }


@pytest.mark.parametrize("what", corrupted())
def test_records_refuse(what):
    given = parts()
    corrupted()[what](given)
    with pytest.raises(DataError):
        Records(**given)


def test_without_blanks_values_and_presence_and_leaves_the_rest():
    records = Records(**parts())
    less = records.without({"image", "report"})
    assert not less.values["image"].any()
    assert list(less.values["report"]) == ["", "", ""]
    assert not less.presence["image"].any()
    assert less.presence["vitals"].all()
    assert records.presence["image"].all()  # the original is untouched
    with pytest.raises(ConfigError, match="ecg"):
        records.without(["ecg"])


def test_select_takes_positions_masks_and_nothing():
    records = Records(**parts())
    assert list(records.select([2, 0]).unit_ids) == ["p2", "p0"]
    assert list(records.select(np.array([False, True, False])).values["report"]) == ["text 1"]
    assert len(records.select([])) == 0
