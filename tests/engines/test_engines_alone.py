"""One site of a federation by itself: the same data as among the others, nobody else's, and no masks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secure_fed.engines.runner import start
from secure_fed.engines.simulated_sites import made_up_members, simulate
from secure_fed.errors import ConfigError
from secure_fed.federation.facts import Federation
from secure_fed.ledger import read_ledger, verify

ALONE = ("method=zero_fill", "federation.alone=site02", "federation.ownership=all", "secagg=off")


def test_a_site_alone_holds_what_it_would_hold_among_the_others(make_config) -> None:
    among, alone = simulate(make_config(*ALONE[:1], *ALONE[2:])), simulate(make_config(*ALONE))
    assert [site.name for site in alone.members] == ["site02"]
    assert set(alone.records) == {"site02"}
    assert alone.members[0] in among.members
    np.testing.assert_array_equal(alone.records["site02"].unit_ids, among.records["site02"].unit_ids)
    np.testing.assert_array_equal(alone.holdout.unit_ids, among.holdout.unit_ids)
    by_itself = Federation(make_config(*ALONE), alone.members)
    assert by_itself.data_set == Federation(make_config(*ALONE[:1], *ALONE[2:]), among.members).data_set


@pytest.mark.parametrize("overrides", [(), ALONE, ("federation.ownership={image:2,image+text:3}",)])
def test_made_up_members_are_the_real_ones_but_for_their_number(make_config, overrides) -> None:
    config = make_config(*overrides)
    real, made_up = simulate(config).members, made_up_members(config)
    assert [(site.name, site.owned) for site in made_up] == [(site.name, site.owned) for site in real]
    assert all(one.declared_n <= other.declared_n for one, other in zip(made_up, real, strict=True))


def test_masks_are_refused_for_a_site_that_is_alone(make_config) -> None:
    with pytest.raises(ConfigError, match=r"federation\.alone=site02 with secagg=on.*give secagg=off"):
        make_config("federation.alone=site02")


def test_a_site_that_is_not_there_is_named_with_those_that_are(make_config) -> None:
    config = make_config("federation.alone=site77", "secagg=off")
    for members in (simulate, made_up_members):
        with pytest.raises(ConfigError, match=r"federation\.alone=site77 is none of.*site01 to site05"):
            members(config)


def test_a_run_of_one_site_has_one_ledger_that_holds_and_says_that_it_was_alone(make_config, tmp_path) -> None:
    folder = start(make_config(*ALONE, folder=tmp_path / "alone"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sites"] == 1
    assert any(text.startswith("federation.alone=site02: one of 5 sites") for text in summary["warnings"])
    assert any(text.startswith("secagg=off: the coordinator sees every site's update") for text in summary["warnings"])
    assert [path.name for path in (folder / "sites").iterdir()] == ["site02"]
    assert read_ledger(folder / "sites" / "site02" / "ledger.jsonl")
    verdict = verify([folder])
    assert verdict.ok
    assert (folder / "report.html").is_file()
    assert (folder / "epsilon_report.json").is_file()
