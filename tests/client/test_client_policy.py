"""The site owner's policy: what it refuses, however the server asks, with one fixed code and an untouched ledger."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from federation_bench import Bench

from secure_fed.client.home import Home
from secure_fed.client.policy import Policy, admit, load_policy, save_policy
from secure_fed.client.site import SiteClient
from secure_fed.errors import ConfigError, PolicyRefusal, RunAborted
from secure_fed.federation.wire import STAGES, Header, Parcel
from secure_fed.identity import Roster


def edit(home: Path, **changes: object) -> Path:
    path = home / "policy.yaml"
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, **changes}))
    return path


def client_of(bench: Bench, name: str) -> SiteClient:
    """A site's client as it is after its owner edited the policy."""
    records = bench.prepared.simulated.records[name]
    roster = Roster.load(bench.folder / "roster.json")
    home = Home(bench.folder / "sites" / name)
    return SiteClient(home, bench.prepared.config, roster, lambda model: model.prepare(records))


REFUSED: dict[str, tuple[dict[str, object], tuple[str, ...], str]] = {
    # what the policy says, what the run asks, the reason in the site's own log
    "another method": ({"allowed_methods": ["zero_fill", "ridge"]}, (), "allows the methods zero_fill, ridge, not fin"),
    "another declared N": ({"declared_n": 150}, (), "the roster declares N=50, the policy N=150"),
    "a larger cohort": ({"min_cohort": 6}, (), "a cohort of 5 is below the policy's min_cohort=6"),
    "more corrupt sites": ({"max_corrupt": 2}, (), "tolerates 1 corrupt sites"),
    "more contributors": ({"min_contributors": 4}, (), "floor of 3 contributors"),
    "a smaller delta": ({"delta": 1e-7}, (), "privacy.delta=1e-05 is above the policy's 1e-07"),
    "compliance against privacy=off": ({"compliance": True}, ("privacy=off",), "privacy=off is refused"),
    "compliance against secagg=off": ({"compliance": True}, ("secagg=off",), "secagg=off is refused"),
    "compliance against a reproducible run": (
        {"compliance": True},
        ("insecure_reproducible=true",),
        "insecure_reproducible=true is refused",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_site_refuses_what_its_policy_does_not_allow_and_its_ledger_does_not_change(make_config, case) -> None:
    changes, overrides, reason = REFUSED[case]
    bench = Bench.make(make_config(*overrides))
    edit(bench.folder / "sites" / "site01", **changes)
    site = client_of(bench, "site01")
    header = Header("run", 0, 0, 0).to_bytes()
    arrays = {name: bench.model.get_component(name) for name in bench.model.components()}
    for action in (*STAGES, "plain"):
        answer = site.handle(action, Parcel(header=header, arrays=arrays))
        assert (answer.code, answer.body, dict(answer.arrays)) == ("refused_by_policy", b"", {}), action
    assert not site.home.ledger_path.exists()
    assert bench.pending("site01") is None
    assert reason in (site.home.private / "site.log").read_text()
    with pytest.raises(PolicyRefusal) as refusal:
        admit(site.home.policy(), site.federation)
    assert refusal.value.exit_code == 3


def test_an_epsilon_above_the_owners_is_refused_before_anything_is_charged(make_config) -> None:
    bench = Bench.make(make_config("federation.max_attempts=1"))
    edit(bench.folder / "sites" / "site01", epsilon=2.0)
    bench.sites["site01"] = client_of(bench, "site01")
    bench.transport.sites = bench.sites
    result = bench.round()
    assert result.survivors == 4, "the others go on without the site"
    assert "site01" not in result.contributors["fusion"]
    assert bench.reserves("site01") == []
    assert dict(result.traffic.codes) == {"site01": "budget_exhausted"}


def test_an_edit_of_the_policy_holds_from_the_next_message_on(make_config) -> None:
    bench = Bench.make(make_config())
    site = bench.sites["site01"]
    header = Header("run", 0, 0, 0).to_bytes()
    assert site.handle("advertise", Parcel(header=header)).code == "ok"
    edit(bench.folder / "sites" / "site01", allowed_methods=["zero_fill"])
    header = Header("run", 0, 1, 0).to_bytes()
    assert site.handle("advertise", Parcel(header=header)).code == "refused_by_policy"


def test_when_every_site_refuses_the_run_stops_and_says_why(make_config) -> None:
    bench = Bench.make(make_config("federation.max_attempts=1"))
    for name in bench.sites:
        edit(bench.folder / "sites" / name, allowed_methods=["ridge"])
    bench.transport.sites = {name: client_of(bench, name) for name in bench.sites}
    with pytest.raises(RunAborted, match="site01: refused_by_policy"):
        bench.round()


MALFORMED: dict[str, tuple[dict[str, object], str]] = {
    "a negative epsilon": ({"epsilon": -1}, "epsilon=-1"),
    "a delta of one": ({"delta": 1}, "delta=1"),
    "another unit": ({"unit": "patient"}, "unit='patient'"),
    "no number": ({"declared_n": "many"}, "declared_n='many'"),
    "an unknown key": ({"epsilom": 3}, "epsilom=3"),
    "a word for a list": ({"allowed_methods": "fin"}, "allowed_methods='fin'"),
}


@pytest.fixture
def policy() -> Policy:
    return Policy(
        site="site01",
        epsilon=8,
        delta=1e-5,
        unit="record",
        relation="add_or_remove_one",
        declared_n=500,
        min_cohort=3,
        min_contributors=2,
        max_corrupt=1,
        allowed_methods=("fin", "ridge"),
        lifetime_claim=False,
        compliance=True,
    )


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_policy_names_its_file_key_and_value(tmp_path, policy, case) -> None:
    changes, expected = MALFORMED[case]
    save_policy(tmp_path / "policy.yaml", policy)
    path = edit(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        load_policy(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


def test_a_missing_key_an_empty_file_and_a_missing_file_are_named(tmp_path, policy) -> None:
    path = tmp_path / "policy.yaml"
    save_policy(path, policy)
    assert load_policy(path) == policy
    tree = yaml.safe_load(path.read_text())
    del tree["compliance"]
    for text, expected in {
        yaml.safe_dump(tree): "compliance",
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
