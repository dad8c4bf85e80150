"""The lower and the upper reference: who lacks something stays out, or nobody lacks anything."""

from __future__ import annotations

import pytest
import torch
from fin_example import model_of, records_of, schema_of
from shipped_methods import built

from secure_fed.config import RunConfig
from secure_fed.engines.simulated_sites import made_up_members, simulate
from secure_fed.engines.summary import warnings_of
from secure_fed.errors import ConfigError
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import plan_for

SCHEMA = schema_of(3)
EVERYTHING = frozenset(SCHEMA.names)
SOME = frozenset({"labs", "notes"})


def test_drop_lets_a_record_that_lacks_something_teach_nothing() -> None:
    method = built("drop")
    model = model_of(method, SCHEMA, [EVERYTHING])
    batch = model.prepare(records_of(SCHEMA, {n: [n != "labs" or i % 2 > 0 for i in range(8)] for n in SCHEMA.names}))
    (phase,) = method.phases(SCHEMA, (), 3, 6)
    loss = phase.loss(model, batch, None)
    assert (loss[~batch.presence["labs"]] == 0).all()
    assert torch.equal(
        loss[batch.presence["labs"]],
        built("zero_fill").phases(SCHEMA, (), 3, 6)[0].loss(model, batch, None)[batch.presence["labs"]],
    )


@pytest.mark.parametrize("component", ["encoder.labs", "fusion"])
def test_drop_trains_at_sites_that_own_everything(component) -> None:
    method = built("drop")
    assert method.contributes(component, EVERYTHING, SCHEMA)
    assert not method.contributes(component, SOME, SCHEMA)


def test_drop_is_refused_where_no_site_owns_everything() -> None:
    with pytest.raises(ConfigError, match="none of the 2 sites all of them"):
        built("drop").pairs(SCHEMA, [SOME, frozenset({"vitals"})])


def drop_federation(make_config, *overrides: str) -> Federation:
    config: RunConfig = make_config("method=drop", *overrides)
    return Federation(config, simulate(config).members)


def test_a_site_that_drop_leaves_out_has_no_phase_and_spends_nothing(make_config) -> None:
    federation = drop_federation(make_config)
    out = [site for site in federation.sites if len(site.owned) < 2]
    assert len(out) == 2
    for site in out:
        assert federation.phases_of(site) == ()
        plan = plan_for(federation, site)
        assert plan is not None
        assert (plan.phases, plan.epsilon) == ((), 0.0)
    (warning,) = [text for text in warnings_of(federation, {}) if "trains nothing at" in text]
    assert warning.startswith(", ".join(site.name for site in out))
    assert federation.owners("fusion") == {site.name for site in federation.sites} - {site.name for site in out}


def test_the_floor_counts_only_sites_that_drop_lets_train(make_config) -> None:
    with pytest.raises(ConfigError, match=r"fusion 2 contributors \(floor of 3\)"):
        drop_federation(make_config, "federation.ownership=2:1:2")


def test_a_site_that_drop_leaves_out_still_takes_part_in_a_federated_evaluation(make_config) -> None:
    federation = drop_federation(
        make_config,
        "evaluation=federated",
        "evaluation.views=all",
        "federation.corrupt=0",
        "federation.ownership=2:0:3",
    )
    (site, *_) = [site for site in federation.sites if site.owned == {"image"}]
    assert [phase.name for phase in federation.phases_of(site)] == ["evaluation"]
    assert any(site.name in text and "trains nothing at" in text for text in warnings_of(federation, {}))


def test_complete_gives_every_simulated_site_every_modality_and_says_so(make_config) -> None:
    config = make_config("method=complete")
    simulated = simulate(config)
    everything = {"image", "text"}
    assert all(site.owned == everything for site in simulated.members)
    assert [(s.name, s.owned) for s in made_up_members(config)] == [(s.name, s.owned) for s in simulated.members]
    zero = simulate(make_config("method=zero_fill"))
    for name, records in simulated.records.items():
        assert set(records.unit_ids) == set(zero.records[name].unit_ids), "the same patients at the same sites"
        assert all(present.any() for present in records.presence.values())
    assert any("upper reference" in text for text in warnings_of(Federation(config, simulated.members), {}))


def test_complete_is_refused_where_a_real_site_lacks_a_modality(make_config) -> None:
    members = [Site(f"site0{i}", frozenset({"image", "text"} if i else {"image"}), 50) for i in range(5)]
    with pytest.raises(ConfigError, match="1 of these 5 sites lack a modality"):
        Federation(make_config("method=complete"), members)
