"""Partitions: no patient on two sides or at two sites, ownership as written, errors with a way out."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.data import ModalitySpec, Records, Schema
from secure_fed.data.partition import apply_ownership, declared_count, ownership, partition, split_by_unit
from secure_fed.errors import ConfigError, DataError

TWO = ("image", "report")


def make(units, labels=None, groups=None):
    n = len(units)
    schema = Schema((ModalitySpec("image", "image", (1, 2, 2)), ModalitySpec("report", "text", ())), ("x", "y"))
    return Records(
        schema=schema,
        values={"image": np.ones((n, 1, 2, 2), np.float32), "report": np.array(["t"] * n, dtype=object)},
        presence={name: np.ones(n, bool) for name in TWO},
        labels=np.zeros((n, 2), np.float32) if labels is None else labels,
        unit_ids=np.array([f"p{u}" for u in units]),
        groups=None if groups is None else np.array(groups),
    )


many_units = st.lists(st.integers(0, 60), min_size=80, max_size=200).filter(lambda u: len(set(u)) >= 25)


@given(many_units, st.floats(0.05, 0.9), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_no_patient_is_on_both_sides_of_train_and_test(units, fraction, seed):
    records = make(units)
    train, test = split_by_unit(records, fraction, seed)
    assert not set(records.unit_ids[train]) & set(records.unit_ids[test])
    assert sorted([*train, *test]) == list(range(len(records)))


@given(many_units, st.integers(1, 8), st.sampled_from(["iid", "dirichlet", "column"]), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_no_patient_is_at_two_sites_and_no_record_is_lost(units, sites, scheme, seed):
    # Patients change groups between records here, so that the column scheme has to choose one.
    groups = [f"g{i % min(sites, 3)}" for i in range(len(units))]
    records = make(units, groups=groups)
    parts = partition(records, sites, scheme, seed, alpha=0.3)
    assert len(parts) == sites
    assert sorted(np.concatenate(parts)) == list(range(len(records)))
    seen = [set(records.unit_ids[part]) for part in parts]
    assert sum(map(len, seen)) == len(set(records.unit_ids))
    assert all(seen)


def test_partitions_repeat_with_the_seed_and_change_without_it():
    records = make(list(range(100)))
    for scheme in ("iid", "dirichlet"):
        a, b, c = (partition(records, 4, scheme, seed) for seed in (1, 1, 2))
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        assert any(not np.array_equal(x, y) for x, y in zip(a, c, strict=True))


def test_a_small_alpha_makes_sites_differ_in_prevalence_and_a_large_one_does_not():
    labels = np.zeros((1000, 2), np.float32)
    labels[:400, 0] = 1.0
    records = make(list(range(1000)), labels=labels)

    def spread(alpha):
        parts = partition(records, 5, "dirichlet", 0, alpha=alpha)
        return np.std([labels[part, 0].mean() for part in parts])

    assert spread(0.3) > 0.15
    assert spread(1000.0) < 0.06  # 200 patients a site: chance alone gives .035
    assert {len(part) for part in partition(records, 5, "dirichlet", 0, alpha=0.3)} == {200}


def test_sites_follow_the_column_and_share_large_groups():
    groups = ["medical"] * 60 + ["surgical"] * 30 + ["coronary"] * 10
    records = make(list(range(100)), groups=groups)
    parts = partition(records, 6, "column", 0)
    of_site = [set(records.groups[part]) for part in parts]
    assert all(len(names) == 1 for names in of_site)
    held = [names.pop() for names in of_site]
    assert (held.count("medical"), held.count("surgical"), held.count("coronary")) == (3, 2, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0, "iid"), ConfigError, "sites=0"),
        ((11, "iid"), DataError, "sites=11"),
        ((2, "column"), ConfigError, "needs a site column"),
        ((2, "shuffled"), ConfigError, "iid, dirichlet, column"),
    ],
)
def test_a_partition_that_cannot_be_made_says_why(arguments, error, text):
    with pytest.raises(error, match=text):
        partition(make(list(range(10))), *arguments, seed=0)


def test_more_groups_than_sites_are_refused_with_a_way_out():
    records = make(list(range(30)), groups=["a", "b", "c"] * 10)
    with pytest.raises(ConfigError, match=r"3 groups \(a, b, c\) for sites=2: give at least 3"):
        partition(records, 2, "column", 0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("inf"), float("nan")])
def test_an_alpha_that_is_no_concentration_is_refused(alpha):
    with pytest.raises(ConfigError, match="alpha="):
        partition(make(list(range(40))), 10, "dirichlet", 0, alpha=alpha)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_test_fraction_outside_the_interval_is_refused(fraction):
    with pytest.raises(ConfigError, match="test_fraction"):
        split_by_unit(make(list(range(10))), fraction, 0)


def test_a_split_that_leaves_one_side_empty_is_refused():
    with pytest.raises(DataError, match="leaves one side empty"):
        split_by_unit(make([1, 1, 1]), 0.3, 0)


def kinds(owned):
    return [owned.count(frozenset(kind)) for kind in ({"image"}, {"report"}, {"image", "report"})]


def test_shorthand_and_mapping_say_the_same():
    short = ownership("5:1:4", TWO, 10)
    assert kinds(short) == [5, 1, 4]
    assert short == ownership({"image": 5, "report": 1, "image+report": 4}, TWO, 10)
    assert short == ownership("5:1:4", TWO, 10)
    assert kinds(ownership("8:0:2", TWO, 10)) == [8, 0, 2]


@given(st.tuples(*[st.integers(0, 12)] * 3).filter(lambda t: sum(t) > 0))
def test_every_kind_of_site_gets_its_number(counts):
    owned = ownership(":".join(map(str, counts)), TWO, sum(counts))
    assert kinds(owned) == list(counts)


def test_three_modalities_take_a_mapping():
    three = ("image", "report", "ecg")
    owned = ownership({"image+report+ecg": 2, "ecg": 1}, three, 3)
    assert owned.count(frozenset(three)) == 2
    with pytest.raises(ConfigError, match=r"shorthand for two modalities and this data set has 3.*mapping like"):
        ownership("1:1:1", three, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5:1:3", r"'5:1:3' describes 9 sites, but federation.sites=10"),
        ("5:1", "three whole numbers"),
        ("5:1:-4", "three whole numbers"),
        ("a:b:c", "three whole numbers"),
        (None, "expected"),
        ({"image": 5, "ecg": 5}, r"'ecg'.*image, report"),
        ({"image": 5.0, "report": 5}, "whole number of sites"),
        ({"image": True, "report": 9}, "whole number of sites"),
        ({"image": -1, "report": 11}, "whole number of sites"),
        ({"image+report": 5, "report+image": 5}, "twice"),
        ({"image+image": 10}, "twice"),
        ({}, "describes 0 sites"),
    ],
)
def test_wrong_ownership_names_the_value_and_the_way_out(value, text):
    with pytest.raises(ConfigError, match=text):
        ownership(value, TWO, 10)


def test_an_unquoted_shorthand_that_yaml_read_in_base_60_is_recognised():
    read_by_yaml = yaml.safe_load("ownership: 8:0:2")["ownership"]
    with pytest.raises(ConfigError, match=r"28802.*Quote it"):
        ownership(read_by_yaml, TWO, 10)


def test_a_site_sees_only_what_it_owns():
    seen = apply_ownership(make([1, 2]), frozenset({"report"}))
    assert not seen.presence["image"].any()
    assert not seen.values["image"].any()
    assert seen.presence["report"].all()
    with pytest.raises(ConfigError, match="ecg"):
        apply_ownership(make([1, 2]), frozenset({"ecg"}))


@pytest.mark.parametrize(("n", "declared"), [(0, 50), (3, 50), (74, 50), (75, 100), (638, 650), (1000, 1000)])
def test_the_declared_count_is_round(n, declared):
    assert declared_count(n) == declared


@pytest.mark.parametrize("modalities", [("image", "text"), ("a", "b", "c"), ("only",)])
def test_all_is_ownership_of_everything_whatever_there_is(modalities) -> None:
    assert ownership("all", modalities, 4) == [frozenset(modalities)] * 4
