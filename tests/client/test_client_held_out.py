"""The held-out patients of a site: the same in every run, nobody's business, and on one side only."""

from __future__ import annotations

import numpy as np
import pytest
from example_policy import STRICT
from hypothesis import given
from hypothesis import strategies as st

from secure_fed.client.held_out import KEY_PURPOSE, SiteRecords, in_keyed_order, is_held_out
from secure_fed.client.home import Home
from secure_fed.engines.simulated_sites import simulate
from secure_fed.federation.facts import Federation

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
PATIENTS = np.array([f"patient-{i}" for i in range(2000)])


def test_the_share_is_the_configured_one_and_another_key_holds_out_others():
    apart, others = is_held_out(PATIENTS, 0.2, KEY), is_held_out(PATIENTS, 0.2, OTHER_KEY)
    # Binomial with a standard error of 0.009.
    assert apart.mean() == pytest.approx(0.2, abs=0.036)
    assert (apart & others).mean() == pytest.approx(0.04, abs=0.02)


@given(st.lists(st.sampled_from(list("abcdefgh")), max_size=30), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_a_patient_is_on_one_side_whatever_others_there_are_and_a_larger_share_only_adds(patients, one, other):
    few, many = sorted((one, other))
    units = np.array(patients, dtype=np.str_)
    apart = is_held_out(units, few, KEY)
    for patient, side in zip(units, apart, strict=True):
        assert is_held_out(np.array([patient]), few, KEY)[0] == side
    assert not (apart & ~is_held_out(units, many, KEY)).any()


def test_which_record_of_a_patient_counts_is_chosen_by_the_key_and_not_by_the_order():
    units = np.repeat(PATIENTS[:300], 3)
    order = in_keyed_order(units, np.arange(900), KEY)
    assert sorted(order) == list(range(900))
    first = {}
    for position in order:
        first.setdefault(units[position], position % 3)
    # Each of three places in a third of 300 patients: a standard error of 0.027.
    assert np.bincount(list(first.values())) / 300 == pytest.approx([1 / 3] * 3, abs=0.11)
    np.testing.assert_array_equal(order, in_keyed_order(units, np.arange(900), KEY))


@pytest.mark.parametrize("unit", ["record", "patient"])
def test_a_sites_records_fall_into_two_parts_that_share_no_patient(make_config, unit):
    config = make_config("evaluation=federated", f"privacy.unit={unit}", "evaluation.fraction=0.4")
    simulated = simulate(config)
    records = simulated.records["site01"]
    federation = Federation(config, simulated.members)
    halves = SiteRecords.split(records, federation.model, config.privacy, config.evaluation, KEY)
    apart = is_held_out(records.unit_ids, 0.4, KEY)
    assert len(halves.held_out) == apart.sum()
    assert 0 < len(halves.held_out) < len(records)
    assert set(records.unit_ids[apart]).isdisjoint(records.unit_ids[~apart])
    patients = len(set(records.unit_ids[~apart]))
    assert halves.training.unit_count == (patients if unit == "patient" else (~apart).sum())
    # The labels tell the records apart well enough: the parts hold what they should, and nothing twice.
    wanted = np.nan_to_num(records.labels[~apart]).sum(axis=0)
    if unit == "record":
        np.testing.assert_array_equal(halves.training.labels.sum(dim=0).numpy(), wanted)


def test_without_a_federated_evaluation_nothing_is_held_out(make_config):
    config = make_config()
    simulated = simulate(config)
    records = simulated.records["site01"]
    model = Federation(config, simulated.members).model
    halves = SiteRecords.split(records, model, config.privacy, config.evaluation, KEY)
    assert (len(halves.training), len(halves.held_out)) == (len(records), 0)


def test_the_key_is_a_homes_own_stays_the_same_and_is_not_the_one_that_wraps_its_secrets(tmp_path):
    one, other = (Home.create(tmp_path / name, STRICT) for name in ("a", "b"))
    key = one.derived_key(KEY_PURPOSE)
    assert key == Home(one.root).derived_key(KEY_PURPOSE)
    assert len({key, other.derived_key(KEY_PURPOSE), one.derived_key("another purpose")}) == 3
    assert key != (one.private / "storage.key").read_bytes()
