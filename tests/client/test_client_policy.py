"""The site owner's policy: what it refuses, however the server asks, with one fixed code and an untouched ledger."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from example_policy import STRICT

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from federation_bench import Bench

from secure_fed.client.home import Home
from secure_fed.client.policy import Policy, admit, load_policy, save_policy
from secure_fed.errors import ConfigError, PolicyRefusal, RunAborted
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.wire import STAGES, Header

BOTH, IMAGE = frozenset({"image", "text"}), frozenset({"image"})
PAPER = (IMAGE, IMAGE, IMAGE, BOTH, BOTH)
TRANSLATORS = ("translator.image_to_text", "translator.text_to_image")
OPTED = "+secagg.floors={encoder.text:2,translator.image_to_text:2,translator.text_to_image:2}"
CONSENT = {"encoder.text": 2, "translator.image_to_text": 2, "translator.text_to_image": 2}


def edit(home: Path, **changes: object) -> Path:
    path = home / "policy.yaml"
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, **changes}))
    return path


def federation_of(config: RunConfig, owned: tuple[frozenset[str], ...] = (BOTH,) * 5) -> Federation:
    return Federation(config, [Site(f"site{i:02d}", modalities, 200) for i, modalities in enumerate(owned, start=1)])


def size_of(federation: Federation) -> int:
    return sum(federation.model.component_sizes().values())


@pytest.fixture
def policy(make_config) -> Policy:
    """What the small run of five sites just meets, in every respect."""
    return STRICT.model_copy(update={"data_set": federation_of(make_config()).data_set})


LIMITS: dict[str, tuple[dict[str, object], dict[str, object], tuple[str, ...]]] = {
    # by field: the last value that is allowed, the first that is refused, and what the refusal says
    "declared_n": ({"declared_n": 200}, {"declared_n": 150}, ("N=200", "declared_n=150", "the consortium signs")),
    "delta": ({"delta": 1e-5}, {"delta": 2e-5}, ("privacy.delta is 1e-05", "counts with delta=2e-05", "with that")),
    "a smaller delta": ({}, {"delta": 9e-6}, ("privacy.delta is 1e-05", "counts with delta=9e-06", "with that")),
    "unit": (
        {"unit": "record"},
        {"unit": "patient"},
        ("privacy.unit is record", "this home counts with unit=patient", "with that"),
    ),
    "max_records_per_unit": (
        {"max_records_per_unit": 1},
        {"max_records_per_unit": 2},
        ("privacy.max_records_per_patient, or 1", "counts with max_records_per_unit=2"),
    ),
    "allowed_components": (
        {"allowed_components": ("encoder.image", "encoder.text", "fusion", *TRANSLATORS)},
        {"allowed_components": ("encoder.image", "encoder.text", "fusion")},
        (*TRANSLATORS, "allowed_components are encoder.image", "a method that does not"),
    ),
    "no component": ({"allowed_components": ("any",)}, {"allowed_components": ()}, ("allowed_components are none",)),
    "max_clip": ({"max_clip": 4.0}, {"max_clip": 3.9}, ("secagg.clip is 4.0", "max_clip=3.9", "at most that")),
    "max_value_bits": (
        {"max_value_bits": 20},
        {"max_value_bits": 19},
        ("secagg.value_bits is 20", "max_value_bits=19", "at most that"),
    ),
    "min_corrupt": (
        {"min_corrupt": 1},
        {"min_corrupt": 2},
        ("federation.corrupt is 1", "min_corrupt=2", "at least that"),
    ),
    "min_threshold": (
        {"min_threshold": 4},
        {"min_threshold": 5},
        ("threshold", "is 4", "min_threshold=5", "raised by federation.corrupt or more sites"),
    ),
    "min_cohort": (
        {"min_cohort": 4},
        {"min_cohort": 5},
        ("fewest sites of a round", "is 4", "min_cohort=5", "raised by secagg.min_cohort"),
    ),
    "min_contributors": (
        {"min_contributors": 3},
        {"min_contributors": 4},
        (
            "floors encoder.image:3",
            "fusion:3",
            "the policy's encoder.image:4",
            "min_contributors=4",
            "run with a higher",
        ),
    ),
    "allowed_methods": (
        {"allowed_methods": ("ridge", "fin")},
        {"allowed_methods": ("ridge", "zero_fill")},
        ("allowed_methods says ridge, zero_fill", "method=fin", "one of those"),
    ),
    "no method": ({"allowed_methods": ("any",)}, {"allowed_methods": ()}, ("allowed_methods says none",)),
    "allow_graph": (
        {"allow_graph": ("complete",)},
        {"allow_graph": ("k_regular",)},
        ("allow_graph says k_regular", "secagg.graph=complete"),
    ),
    "no graph": ({"allow_graph": ("complete", "k_regular")}, {"allow_graph": ()}, ("allow_graph says none",)),
}


@pytest.mark.parametrize("field", LIMITS)
def test_a_run_just_within_the_policy_is_admitted_and_one_just_beyond_it_is_refused(make_config, policy, field) -> None:
    allowed, refused, words = LIMITS[field]
    federation = federation_of(make_config())
    admit(policy.model_copy(update=allowed), federation)
    with pytest.raises(PolicyRefusal) as refusal:
        admit(policy.model_copy(update=refused), federation)
    for word in (*words, "site05", "its owner edits policy.yaml"):
        assert word in str(refusal.value)
    assert str(refusal.value).count(";") == 0, "it has nothing else to object to"


def test_every_field_of_the_policy_has_such_a_case(policy) -> None:
    elsewhere = {
        *("site", "relation", "lifetime_claim"),  # who it is, and what its ledger says
        *("epsilon", "max_rounds_a_day"),  # the ledger says what was spent and when: test_client_budget.py
        *("data_set", "approved_plans"),  # tests of their own
        *("max_parameters", "dp_only", "allow_unverified_server_step", "compliance"),  # tests of their own
    }
    assert set(Policy.model_fields) == (set(LIMITS) & set(Policy.model_fields)) | elsewhere


def test_a_model_of_one_parameter_more_than_allowed_is_refused(make_config, policy) -> None:
    federation = federation_of(make_config())
    size = size_of(federation)
    admit(policy.model_copy(update={"max_parameters": size}), federation)
    with pytest.raises(PolicyRefusal, match=f"is {size}, above the policy's max_parameters={size - 1}"):
        admit(policy.model_copy(update={"max_parameters": size - 1}), federation)


def test_a_home_serves_the_data_set_that_it_belongs_to_and_no_other(make_config, policy) -> None:
    with pytest.raises(PolicyRefusal, match=rf"data_set={policy.data_set}, and the run trains on synthetic_cxr-"):
        admit(policy, federation_of(make_config("seed=7")))


def test_a_run_whose_plan_the_owner_has_not_approved_is_refused_with_its_hash(make_config, policy) -> None:
    federation = federation_of(make_config())
    approved = policy.model_copy(update={"approved_plans": (federation.plan_hash(),)})
    admit(approved, federation)
    for overrides in (("privacy.epsilon=7",), ("method.classify.steps=9",), ("seed=0", "privacy.sample_rate=0.5")):
        other = federation_of(make_config(*overrides))
        with pytest.raises(PolicyRefusal, match=rf"{other.plan_hash()} is not among the policy's approved_plans"):
            admit(approved, other)


def test_where_a_run_is_written_and_how_it_is_computed_changes_no_approved_plan(make_config) -> None:
    one = federation_of(make_config())
    other = federation_of(make_config("secagg.threads=2", "engine.workers=2", "federation.homes=homes"))
    assert one.plan_hash() == other.plan_hash()


def test_a_run_may_be_stricter_than_the_policy_in_everything(make_config, policy) -> None:
    config = make_config(
        *("secagg.clip=1", "secagg.value_bits=16", "secagg.min_cohort=6"),
        *("federation.corrupt=2", "federation.min_contributors=5"),
    )
    admit(policy, federation_of(config, (BOTH,) * 7))


def test_a_step_that_the_site_cannot_recompute_needs_the_owners_word(make_config, policy) -> None:
    allowed = policy.model_copy(update={"allow_unverified_server_step": True, "compliance": False})
    for overrides in (("strategy=flower",), ("secagg=off",)):
        federation = federation_of(make_config(*overrides))
        admit(allowed, federation)
        with pytest.raises(PolicyRefusal, match="allow_unverified_server_step=false"):
            admit(allowed.model_copy(update={"allow_unverified_server_step": False}), federation)


# -- floors -----------------------------------------------------------------------------------------------------


def test_a_lower_floor_needs_the_consent_of_the_owner_by_component(make_config, policy) -> None:
    federation = federation_of(make_config(OPTED), PAPER)
    admit(policy.model_copy(update={"dp_only": CONSENT}), federation)
    for name in CONSENT:
        some = {key: floor for key, floor in CONSENT.items() if key != name}
        with pytest.raises(PolicyRefusal, match=rf"has {name}:2, below the default of 3.*dp_only"):
            admit(policy.model_copy(update={"dp_only": some}), federation)


def test_consent_to_a_floor_is_none_to_a_lower_one(make_config, policy) -> None:
    federation = federation_of(make_config("+secagg.floors={fusion:1}"))
    admit(policy.model_copy(update={"dp_only": {"fusion": 1}}), federation)
    with pytest.raises(PolicyRefusal, match="floors fusion:1 are below the policy's fusion:2 "):
        admit(policy.model_copy(update={"dp_only": {"fusion": 2}}), federation)


def test_a_site_is_not_asked_about_components_that_it_does_not_own(make_config, policy) -> None:
    federation = federation_of(make_config(OPTED), PAPER)
    admit(policy.model_copy(update={"site": "site01"}), federation)


def test_consent_also_serves_where_the_owner_wants_more_contributors_than_the_run(make_config, policy) -> None:
    federation = federation_of(make_config())
    picky = policy.model_copy(update={"min_contributors": 5})
    with pytest.raises(PolicyRefusal) as refusal:
        admit(picky, federation)
    assert all(f"{name}:3" in str(refusal.value) for name in federation.slice_names)
    admit(picky.model_copy(update={"dp_only": dict.fromkeys(federation.slice_names, 3)}), federation)


# -- compliance -------------------------------------------------------------------------------------------------

WEAK = {
    "privacy=off": ("privacy=off",),
    "secagg=off": ("secagg=off",),
    "insecure_reproducible=true": ("insecure_reproducible=true",),
    "strategy=flower": ("strategy=flower",),
    "secagg.graph=k_regular": ("secagg=k_regular", "federation.corrupt=5"),
}


@pytest.mark.parametrize("switch", WEAK)
def test_compliance_refuses_every_weakness_whatever_else_the_policy_allows(make_config, policy, switch) -> None:
    config = make_config(*WEAK[switch])
    assert list(config.weaknesses()) == [switch]
    open_ = policy.model_copy(
        update={"allow_graph": ("complete", "k_regular"), "allow_unverified_server_step": True, "compliance": False}
    )
    federation = federation_of(config, (BOTH,) * (130 if "k_regular" in switch else 5))
    admit(open_, federation)
    with pytest.raises(PolicyRefusal, match=rf"{switch} is refused in compliance mode") as refusal:
        admit(open_.model_copy(update={"compliance": True}), federation)
    assert refusal.value.exit_code == 3


def test_a_home_that_speaks_for_the_life_of_its_data_takes_no_noise_that_can_be_repeated(make_config, policy) -> None:
    federation = federation_of(make_config("insecure_reproducible=true"))
    lenient = policy.model_copy(update={"compliance": False})
    admit(lenient, federation)
    with pytest.raises(PolicyRefusal, match="insecure_reproducible=true protects nothing"):
        admit(lenient.model_copy(update={"lifetime_claim": True}), federation)


def test_all_objections_are_raised_at_once(make_config, policy) -> None:
    config = make_config("privacy=off", "strategy=flower")
    with pytest.raises(PolicyRefusal) as refusal:
        admit(policy.model_copy(update={"max_clip": 1.0, "min_cohort": 5}), federation_of(config))
    for word in ("privacy=off and strategy=flower", "allow_unverified_server_step", "max_clip", "min_cohort"):
        assert word in str(refusal.value)


# -- at the site ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        *({"allowed_methods": ["zero_fill"]}, {"declared_n": 75}, {"min_corrupt": 2}, {"min_threshold": 5}),
        *({"min_cohort": 5}, {"min_contributors": 4}, {"max_clip": 1.0}, {"max_parameters": 10}, {"allow_graph": []}),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_site_refuses_what_its_policy_does_not_allow_and_its_ledger_does_not_change(make_config, changes) -> None:
    bench = Bench.make(make_config())
    edit(bench.folder / "sites" / "site01", **changes)
    bench.restart("site01")
    header = Header("run", 0, 0, 0)
    for action in (*STAGES, "plain"):
        answer = bench.sites["site01"].handle(bench.request("site01", action, header))
        assert (answer.code, answer.body, dict(answer.arrays)) == ("refused_by_policy", b"", {}), action
    home = bench.home("site01")
    assert not home.ledger_path.exists()
    assert bench.pending("site01") is None
    assert next(iter(changes)) in (home.private / "site.log").read_text()


def test_an_epsilon_above_the_owners_is_refused_before_anything_is_charged(make_config) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    edit(bench.folder / "sites" / "site01", epsilon=2.0)
    bench.restart("site01")
    result = bench.round()
    assert result.survivors == 4, "the others go on without the site"
    assert "site01" not in result.contributors["fusion"]
    assert bench.reserves("site01") == []
    assert dict(result.traffic.codes) == {"site01": "budget_exhausted"}


def test_an_edit_of_the_policy_holds_from_the_next_session_on(make_config) -> None:
    bench = Bench.make(make_config())
    bench.round(0, 0)
    edit(bench.folder / "sites" / "site01", allowed_methods=["zero_fill"])
    result = bench.round(1, 1)
    assert result.traffic.codes["site01"] == "refused_by_policy"
    assert "site01" not in result.contributors["fusion"]


def test_when_every_site_refuses_the_run_stops_and_says_why(make_config) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    for name in bench.sites:
        edit(bench.folder / "sites" / name, allowed_methods=["ridge"])
        bench.restart(name)
    with pytest.raises(RunAborted, match="site01: refused_by_policy"):
        bench.round()


LAXER = {
    "a lower floor": ("+secagg.floors={fusion:1}",),
    "fewer corrupt sites": ("federation.corrupt=0",),
    "fewer contributors": ("federation.min_contributors=2", "federation.corrupt=0"),
    "a wider clip": ("secagg.clip=8",),
    "more bits": ("secagg.value_bits=24",),
    "a smaller cohort": ("secagg.min_cohort=2",),
    "a larger delta": ("privacy.delta=1e-4",),
}


@pytest.mark.parametrize("case", LAXER)
def test_a_coordinator_that_runs_laxer_rules_than_the_sites_gets_nothing(make_config, tmp_path, case) -> None:
    config = make_config("secagg.max_attempts=1", "secagg.min_cohort=4")
    bench = Bench.make(config)
    lax = make_config("secagg.max_attempts=1", "secagg.min_cohort=4", *LAXER[case])
    assert rules_differ(config, lax)
    bench.coordinator.federation = Federation(lax, bench.prepared.federation.sites)
    with pytest.raises(RunAborted):
        bench.round()
    assert all(not answer.arrays for _, _, answer in bench.transport.received), "no masked vector left a site"
    assert all(bench.reserves(name) == [] for name in bench.sites), "and no budget was spent"


def rules_differ(one: RunConfig, other: RunConfig) -> bool:
    return one.model_dump(exclude={"run_dir"}) != other.model_dump(exclude={"run_dir"})


def test_the_policy_is_read_from_the_home_alone_and_no_message_writes_it(make_config) -> None:
    bench = Bench.make(make_config())
    before = {name: (bench.folder / "sites" / name / "policy.yaml").read_bytes() for name in bench.sites}
    bench.round(0, 0, more=True)
    bench.round(1, 1)
    after = {name: (bench.folder / "sites" / name / "policy.yaml").read_bytes() for name in bench.sites}
    assert before == after
    header = Header("run", 2, 2, 9)
    wider = header.to_bytes()[:-1] + b',"min_cohort":1}'
    edit(bench.folder / "sites" / "site01", min_cohort=5)
    answer = bench.sites["site01"].handle(bench.request("site01", "advertise", header))
    assert answer.code == "refused_by_policy"
    forged = bench.request("site01", "advertise", header)
    answer = bench.sites["site01"].handle(replace(forged, header=wider).signed(bench.transport.key))
    assert answer.code == "malformed_message", "there is no place for a rule in a message"


@pytest.mark.parametrize(
    "overrides",
    [(), ("secagg=off",), ("privacy=off",), ("strategy=flower",), ("method=ridge",), ("federation.corrupt=0",)],
    ids=str,
)
def test_a_simulated_owner_agrees_to_its_own_run(make_config, overrides) -> None:
    bench = Bench.make(make_config(*overrides))
    for name in bench.sites:
        admit(bench.home(name).policy(), bench.prepared.federation)


def test_a_simulated_owner_consents_to_the_floors_of_what_it_owns_and_the_round_is_opened(make_config) -> None:
    bench = Bench.make(make_config("federation.sites=6", "federation.ownership='4:0:2'", OPTED))
    owners = bench.prepared.federation.owners("encoder.text")
    for name in bench.sites:
        assert bench.home(name).policy().dp_only == (CONSENT if name in owners else {})
    result = bench.round()
    assert result.contributors["encoder.text"] == tuple(sorted(owners))
    assert len(owners) == 2
    assert result.kept == ()


def test_no_simulated_owner_admits_less_than_its_run_asks(make_config) -> None:
    bench = Bench.make(make_config())
    policy = bench.home("site05").policy()
    members = bench.prepared.federation.sites
    for overrides in (*LAXER.values(), ("secagg=off",), ("strategy=flower",), ("+secagg.floors={fusion:2}",)):
        if overrides == ("secagg.min_cohort=2",):
            continue  # the run's own
        with pytest.raises(PolicyRefusal):
            admit(policy, Federation(make_config(*overrides), members))


def test_a_simulated_owner_keeps_to_the_contributors_that_its_run_asked_for(make_config) -> None:
    overrides = ("federation.ownership='0:0:5'", "federation.min_contributors=4")
    bench = Bench.make(make_config(*overrides))
    members = bench.prepared.federation.sites
    with pytest.raises(PolicyRefusal, match=r"fusion:3.* are below the policy's .*fusion:4"):
        admit(bench.home("site01").policy(), Federation(make_config(overrides[0]), members))


# -- the file ---------------------------------------------------------------------------------------------------

MALFORMED: dict[str, tuple[dict[str, object], str]] = {
    "a negative epsilon": ({"epsilon": -1}, "epsilon=-1"),
    "a delta of one": ({"delta": 1}, "delta=1"),
    "an epsilon without end": ({"epsilon": float("inf")}, "epsilon=inf"),
    "a delta that allows publishing a record": ({"delta": 0.005}, "delta=0.005 is not below 1/declared_n=0.005"),
    "another unit": ({"unit": "hospital"}, "unit='hospital'"),
    "several records of one record": ({"max_records_per_unit": 3}, "max_records_per_unit=3 with unit: record"),
    "a clip of zero": ({"max_clip": 0}, "max_clip=0"),
    "no round a day": ({"max_rounds_a_day": 0}, "max_rounds_a_day=0"),
    "a plan that is no hash": ({"approved_plans": ["yes"]}, "approved_plans.0='yes'"),
    "no cohort": ({"min_cohort": 0}, "min_cohort=0"),
    "a name that is none": ({"site": "../site01"}, "site='../site01'"),
    "no number": ({"declared_n": "many"}, "declared_n='many'"),
    "an unknown key": ({"epsilom": 3}, "unknown key 'epsilom', did you mean epsilon?"),
    "a key of another name": ({"max_corrupt": 1}, "unknown key 'max_corrupt', did you mean min_corrupt?"),
    "a word for a list": ({"allowed_methods": "fin"}, "allowed_methods='fin'"),
    "another graph": ({"allow_graph": ["star"]}, "allow_graph.0='star'"),
    "an endless clip": ({"max_clip": float("inf")}, "max_clip=inf"),
    "more bits than the ring has": ({"max_value_bits": 32}, "max_value_bits=32"),
    "a floor of nobody": ({"dp_only": {"fusion": 0}}, "dp_only.fusion=0"),
    "consent without a floor": ({"dp_only": ["fusion"]}, "dp_only=['fusion']"),
    "no word on the step": ({"allow_unverified_server_step": None}, "allow_unverified_server_step=None"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_policy_names_its_file_key_and_value(tmp_path, policy, case) -> None:
    changes, expected = MALFORMED[case]
    save_policy(tmp_path / "policy.yaml", policy)
    path = edit(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        load_policy(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize("key", Policy.model_fields)
def test_a_missing_key_is_named_and_never_filled_in(tmp_path, policy, key) -> None:
    path = tmp_path / "policy.yaml"
    save_policy(path, policy)
    assert load_policy(path) == policy
    tree = yaml.safe_load(path.read_text())
    del tree[key]
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=rf"policy\.yaml: {key} is missing"):
        load_policy(path)


def test_an_empty_file_one_that_is_no_policy_and_a_missing_one_are_named(tmp_path, policy) -> None:
    path = tmp_path / "policy.yaml"
    for text, expected in {
        "": "policy.yaml",
        "- a\n- b\n": "policy.yaml",
        "a: [": "is not YAML",
        "\x00": "policy.yaml",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=expected):
            load_policy(path)
    path.write_bytes(b"site: \xff\xfe")
    with pytest.raises(ConfigError, match=r"policy\.yaml"):
        load_policy(path)
    path.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        load_policy(path)


def test_a_home_is_never_made_over_another(tmp_path, policy) -> None:
    home = Home.create(tmp_path / "home", policy)
    key = (home.private / "identity.pem").read_bytes()
    with pytest.raises(ConfigError, match="never overwritten"):
        Home.create(tmp_path / "home", policy)
    assert (home.private / "identity.pem").read_bytes() == key
    with pytest.raises(ConfigError, match="is not a site's home"):
        Home(tmp_path / "other")
