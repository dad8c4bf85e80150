"""The public paired set: whole patients of the training side, and arrays that give the records back or an error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from secure_fed.data.partition import SitesOf
from secure_fed.data.public_set import decode_public, encode_public, split_public
from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.errors import ConfigError, DataError

SCHEMA = Schema(
    (
        ModalitySpec("image", "image", (1, 2, 3)),
        ModalitySpec("text", "text", ()),
        ModalitySpec("values", "tabular", (2,), ("age", "weight")),
    ),
    ("a", "b"),
)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def complete_records(draw) -> Records:
    n = draw(st.integers(1, 5))
    texts = np.empty(n, dtype=object)
    texts[:] = draw(st.lists(TEXTS, min_size=n, max_size=n))
    labels = draw(arrays_of.arrays(np.float32, (n, 2), elements=st.sampled_from([0.0, 1.0, float("nan")])))
    return Records(
        schema=SCHEMA,
        values={
            "image": draw(arrays_of.arrays(np.float32, (n, 1, 2, 3), elements=FINITE)),
            "text": texts,
            "values": draw(arrays_of.arrays(np.float32, (n, 2), elements=FINITE)),
        },
        presence={name: np.ones(n, dtype=bool) for name in SCHEMA.names},
        labels=labels,
        unit_ids=np.array([f"patient {draw(st.integers(0, 2))}" for _ in range(n)]),
        groups=np.array(["ward"] * n),
    )


def some_records(n: int = 3) -> Records:
    rng = np.random.default_rng(4)
    texts = np.empty(n, dtype=object)
    texts[:] = [f"größer als {i}" for i in range(n)]
    return Records(
        schema=SCHEMA,
        values={
            "image": rng.random((n, 1, 2, 3), dtype=np.float32),
            "text": texts,
            "values": rng.random((n, 2), dtype=np.float32),
        },
        presence={name: np.ones(n, dtype=bool) for name in SCHEMA.names},
        labels=np.array([[0, 1], [np.nan, 0], [1, np.nan]] * n, dtype=np.float32)[:n],
        unit_ids=np.array([f"patient {i}" for i in range(n)]),
    )


# -- there and back --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(complete_records())
def test_records_come_back_bit_for_bit_and_no_patient_goes_with_them(records) -> None:
    arrays = encode_public(records)
    found = decode_public(SCHEMA, arrays)
    for name in ("image", "values"):
        assert found.values[name].tobytes() == records.values[name].tobytes()
    assert found.values["text"].tolist() == records.values["text"].tolist()
    np.testing.assert_array_equal(found.labels, records.labels)
    assert all(present.all() for present in found.presence.values())
    assert found.groups is None
    assert set(found.unit_ids).isdisjoint(records.unit_ids)
    assert set(arrays) == {"labels", "values/image", "text/text", "offsets/text", "values/values"}
    again = encode_public(found)
    assert all(again[name].tobytes() == array.tobytes() for name, array in arrays.items()), "one form only"
    assert not any(array.dtype == object for array in arrays.values())


def test_equal_records_give_equal_bytes_whatever_zero_and_nan_look_like_in_memory() -> None:
    records = some_records()
    other_nan = np.frombuffer(np.uint32(0xFFC00001).tobytes(), dtype=np.float32)[0]
    labels = np.where(np.isnan(records.labels), other_nan, np.where(records.labels == 0, -0.0, records.labels))
    spelt = replace(records, labels=labels.astype(np.float32))
    assert labels.astype(np.float32).tobytes() != records.labels.tobytes()
    assert encode_public(spelt)["labels"].tobytes() == encode_public(records)["labels"].tobytes()


def test_records_without_a_modality_no_records_and_half_a_character_are_not_encoded() -> None:
    records = some_records()
    with pytest.raises(DataError, match="no text"):
        encode_public(records.without({"text"}))
    with pytest.raises(DataError, match="without a record"):
        encode_public(records.select([]))
    broken = np.array(["\ud800", "", ""], dtype=object)
    with pytest.raises(DataError, match="UTF-8"):
        encode_public(replace(records, values={**records.values, "text": broken}))


# -- hostile arrays --------------------------------------------------------------------------------------------


def changed(**new: object):
    """The change of some arrays; `__` stands for the slash of a name, None takes the array away."""

    def change(arrays):
        named = {name.replace("__", "/"): value for name, value in new.items()}
        return {name: value for name, value in {**arrays, **named}.items() if value is not None}

    return change


def poked(name: str, position, value):
    def change(arrays):
        array = arrays[name].copy()
        array[position] = value
        return {**arrays, name: array}

    return change


OFFSETS = np.array([0, 14, 28, 42], dtype=np.int64)
HOSTILE = {
    "a missing array": changed(labels=None),
    "patients' ids": changed(unit_ids=np.array([1, 2, 3])),
    "a modality of another schema": changed(values__film=np.zeros((3, 2), dtype=np.float32)),
    "text as values": changed(text__text=None, offsets__text=None, values__text=np.zeros(3, dtype=np.float32)),
    "pickled objects": changed(values__image=np.array([None, None, None], dtype=object)),
    "images in double precision": lambda arrays: {**arrays, "values/image": arrays["values/image"].astype(np.float64)},
    "images in the other byte order": lambda arrays: {**arrays, "values/image": arrays["values/image"].astype(">f4")},
    "images of another size": lambda arrays: {**arrays, "values/image": arrays["values/image"][:, :, :, :2]},
    "too few images": lambda arrays: {**arrays, "values/image": arrays["values/image"][:2]},
    "a rank too many": lambda arrays: {**arrays, "values/values": arrays["values/values"][None]},
    "an image that is not a number": poked("values/image", (1, 0, 1, 1), np.nan),
    "a value that is infinite": poked("values/values", (0, 0), np.inf),
    "a label that is none": poked("labels", (0, 0), 2),
    "one label too many": changed(labels=np.zeros((3, 3), dtype=np.int8)),
    "labels as floats": changed(labels=np.zeros((3, 2), dtype=np.float32)),
    "no record": changed(labels=np.zeros((0, 2), dtype=np.int8)),
    "a scalar in the place of labels": changed(labels=np.int8(1).reshape(())),
    "offsets that go back": changed(offsets__text=OFFSETS[[0, 2, 1, 3]]),
    "offsets below zero": changed(offsets__text=np.array([-14, 14, 28, 42], dtype=np.int64)),
    "offsets past the end": changed(offsets__text=OFFSETS + np.array([0, 0, 0, 1])),
    "offsets that leave bytes over": changed(offsets__text=OFFSETS - np.array([0, 0, 0, 1])),
    "too few offsets": changed(offsets__text=OFFSETS[[0, 1, 3]]),
    "offsets that begin late": changed(offsets__text=OFFSETS + np.array([1, 0, 0, 0])),
    "offsets as small integers": changed(offsets__text=OFFSETS.astype(np.int32)),
    "offsets through a character": changed(offsets__text=np.array([0, 3, 28, 42], dtype=np.int64)),
    "bytes that are no text": poked("text/text", 0, 0xFF),
    "a surrogate in UTF-8": changed(
        text__text=np.frombuffer(b"\xed\xa0\x80", dtype=np.uint8), offsets__text=np.array([0, 3, 3, 3], dtype=np.int64)
    ),
    "text as characters": lambda arrays: {**arrays, "text/text": arrays["text/text"].astype(np.uint32)},
}


def test_the_arrays_that_are_changed_below_are_good_as_they_are() -> None:
    arrays = encode_public(some_records())
    assert arrays["offsets/text"].tolist() == OFFSETS.tolist()
    assert len(decode_public(SCHEMA, arrays)) == 3


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_arrays_are_a_data_error_and_no_other(change) -> None:
    with pytest.raises(DataError):
        decode_public(SCHEMA, change(encode_public(some_records())))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["labels", "values/image", "text/text", "offsets/text", "values/values"]),
        st.one_of(
            arrays_of.arrays(st.sampled_from([np.int8, np.uint8, np.float32, np.int64]), arrays_of.array_shapes())
        ),
    )
)
def test_any_arrays_are_records_or_a_data_error(strange) -> None:
    try:
        found = decode_public(SCHEMA, {**encode_public(some_records()), **strange})
    except DataError:
        return
    assert len(found) >= 1


# -- which patients --------------------------------------------------------------------------------------------


@st.composite
def training_sides(draw) -> Records:
    """Records of a few patients with several records each, some without a modality."""
    n = draw(st.integers(1, 24))
    patients = [draw(st.integers(0, 7)) for _ in range(n)]
    here = {name: draw(arrays_of.arrays(bool, n, elements=st.booleans())) for name in ("image", "text")}
    texts = np.array([f"text {i}" if here["text"][i] else "" for i in range(n)], dtype=object)
    return Records(
        schema=Schema(SCHEMA.modalities[:2], SCHEMA.labels),
        values={"image": here["image"].astype(np.float32)[:, None, None, None] * np.ones((n, 1, 2, 3), np.float32),
                "text": texts},
        presence=here,
        labels=np.zeros((n, 2), dtype=np.float32),
        unit_ids=np.array([f"p{patient}" for patient in patients]),
    )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(training_sides(), st.floats(0.01, 0.99), st.integers(0, 9))
def test_a_public_patient_is_at_no_site_and_the_set_holds_only_his_complete_records(records, fraction, seed) -> None:
    private, public = split_public(records, fraction, seed)
    at_sites, shown = set(records.unit_ids[private]), set(records.unit_ids[public])
    complete = records.presence["image"] & records.presence["text"]
    candidates = set(records.unit_ids[complete])
    assert at_sites.isdisjoint(shown)
    assert complete[public].all()
    assert shown <= candidates
    assert len(shown) == (max(1, round(fraction * len(candidates))) if candidates else 0)
    assert at_sites | shown == set(records.unit_ids)
    assert set(public) == {i for i in range(len(records)) if complete[i] and records.unit_ids[i] in shown}


def test_without_a_fraction_everybody_stays_and_a_fraction_that_is_none_is_refused() -> None:
    records = some_records()
    private, public = split_public(records, 0.0, seed=1)
    assert (private.tolist(), public.tolist()) == ([0, 1, 2], [])
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="public_fraction"):
            split_public(records, fraction, seed=1)


def test_a_part_whose_sites_lack_a_modality_gives_no_public_patient_whatever_its_stand_in_holds() -> None:
    records = replace(some_records(6), groups=np.array(["films", "both"] * 3))
    layout = (SitesOf("films", 1, frozenset({"image"})), SitesOf("both", 1, frozenset(SCHEMA.names)))
    private, public = split_public(records, 0.99, seed=1, layout=layout)
    assert set(records.groups[public]) == {"both"}
    assert len(public) == 3
    assert private.tolist() == [0, 2, 4]


def test_the_choice_follows_the_seed_and_nothing_else() -> None:
    records = some_records(20)
    first = split_public(records, 0.3, seed=5)[1].tolist()
    np.random.default_rng(0).random()
    assert split_public(records, 0.3, seed=5)[1].tolist() == first
    assert len({tuple(split_public(records, 0.3, seed=seed)[1]) for seed in range(6)}) > 1
