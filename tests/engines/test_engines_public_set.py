"""A public paired set on its way: from the run's configuration to every site, once, and never another one."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from federation_bench import Bench
from mortal_bench import MortalBench, Mortality, mortal
from puppeteer import draw_instead_of_training
from safetensors.numpy import load_file

from secure_fed.client.halt import check_evidence, halted
from secure_fed.client.site import SiteClient
from secure_fed.config import compose_config, freeze, load_config
from secure_fed.data.public_set import encode_public
from secure_fed.engines.runner import federation_of, prepare, resume, start
from secure_fed.engines.simulated_sites import made_up_members, simulate
from secure_fed.errors import ConfigError, DataError
from secure_fed.federation.announcement import Announcement
from secure_fed.federation.facts import Federation
from secure_fed.federation.public_set import PublicSet
from secure_fed.federation.wire import Header, Parcel, hash_arrays, part
from secure_fed.ledger import verify
from secure_fed.methods.car_mfl import CarMfl
from secure_fed.planning import plan_view
from secure_fed.prediction import predict_csv
from secure_fed.server.public_set import FILE
from secure_fed.server.training import Trainer

FRACTION = "federation.public_fraction=0.2"
SMALL = (
    *("data.patients=240", "federation.sites=5", "federation.ownership=1:1:3", "federation.corrupt=1"),
    *("method.classify.steps=2", "method.classify.learning_rate=1"),
)


def contexts(patch: pytest.MonkeyPatch) -> list[bytes]:
    """The models that a context is computed with from now on."""
    models: list[bytes] = []
    original = CarMfl.public_context

    def spy(self, model, public):
        models.append(model.digest())
        return original(self, model, public)

    patch.setattr(CarMfl, "public_context", spy)
    return models


@pytest.fixture
def quick(monkeypatch) -> None:
    """A little noise instead of training; nothing is synced, for there is no power cut here."""
    draw_instead_of_training(monkeypatch)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def with_set(steady_config):
    return lambda *overrides, **options: steady_config("method=car_mfl", FRACTION, *overrides, **options)


def asked(bench: Bench, code: str = "needs_public_set") -> list[str]:
    """The sites that answered with a code, one entry for each time."""
    return [site for site, _, answer in bench.transport.received if answer.code == code]


def brought(bench: Bench) -> list[str]:
    """The sites that were sent a public set, one entry for each time."""
    return [site for site, _, parcel in bench.transport.sent if part(parcel.arrays, "public")]


def kept(bench: Bench, site: str) -> Path:
    return bench.home(site).private / f"public-{bench.prepared.public.digest}.bin"


def silence(*sites: str):
    return lambda site, action, parcel: None if site in sites else parcel


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# -- whole runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A run of two rounds, and the models that a context was computed with on the way."""
    folder = tmp_path_factory.mktemp("public") / "run"
    overrides = [*SMALL, "method=car_mfl", FRACTION, "federation.rounds=2"]
    with pytest.MonkeyPatch.context() as patch:
        models = contexts(patch)
        return start(freeze(compose_config(overrides), folder)), models


def test_a_run_with_a_public_set_ends_with_a_configuration_and_a_folder_that_name_and_hold_it(finished) -> None:
    run, _ = finished
    config = load_config(run)
    public = simulate(config).public_set
    assert config.federation.public_set == public.digest
    assert hash_arrays(load_file(run / FILE)) == public.digest
    assert verify([run]).ok
    assert not list(run.glob("sites/*/private/public-*")), "a site keeps nothing of a run that is over"


def test_the_summary_and_its_pages_say_who_was_given_away_and_to_what(finished) -> None:
    run, _ = finished
    config = load_config(run)
    public = simulate(config).public
    patients = len(set(public.unit_ids))
    assert json.loads((run / "summary.json").read_text())["public_set"] == {
        "fraction": 0.2,
        "records": len(public),
        "patients": patients,
        "sha256": config.federation.public_set,
        "phases": ["classify"],
    }
    said = f"{len(public)} records from {patients} patients who are at no site; every site holds them, for 1 phase of"
    assert said in (run / "model_card.md").read_text()
    assert said in (run / "report.html").read_text()


def test_patients_who_are_kept_from_the_sites_for_a_comparison_are_said_to_serve_no_phase(tmp_path, quick) -> None:
    """With a fraction and a method that needs no set, the records are missing at the sites all the same."""
    for fraction, name in ((FRACTION, "kept"), ("federation.public_fraction=0", "all")):
        overrides = [*SMALL, "method=zero_fill", fraction, "federation.rounds=1"]
        run = start(freeze(compose_config(overrides), tmp_path / name))
        found = json.loads((run / "summary.json").read_text())["public_set"]
        card = (run / "model_card.md").read_text()
        if name == "all":
            assert found is None
            assert "Public paired set" not in card
        else:
            assert found["records"] > found["patients"] > 0
            assert (found["sha256"], found["phases"]) == (None, [])
            assert "used by nothing in zero\\_fill" in card


def test_every_site_gets_the_set_once_and_its_bytes_are_counted(finished) -> None:
    run, _ = finished
    size = sum(array.nbytes for array in simulate(load_config(run)).public_set.arrays.values())
    first, second = [line["bytes_down"] for line in metrics_of(run)]
    assert 5 * size < first < 6 * size
    assert second < size, "sums, and no set"


def test_the_context_is_computed_once_for_each_model_for_all_sites_and_the_coordinator_together(finished) -> None:
    _, models = finished
    # The initial model with the preflight's made-up set and with the real one, then the two models that are scored.
    assert (len(models), len(set(models))) == (4, 3)


def test_with_the_masks_off_every_site_gets_the_set_once_too(with_set, quick) -> None:
    bench = Bench.make(with_set("secagg=off"))
    rounds = [bench.round(number, number) for number in (0, 1)]
    assert [result.survivors for result in rounds] == [5, 5]
    assert sorted(asked(bench)) == sorted(brought(bench)) == sorted(bench.sites)
    assert all(len(bench.reserves(site)) == 2 for site in bench.sites)


def test_the_trained_model_predicts_from_the_set_of_its_run_folder_and_from_no_other(finished, tmp_path) -> None:
    run, _ = finished
    data = tmp_path / "new.csv"
    data.write_text("id,text\nx,no effusion\n")
    first = predict_csv(run, data)
    path = run / FILE
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        predict_csv(run, data)
    path.write_bytes(whole[:-3])
    with pytest.raises(DataError, match="damaged"):
        predict_csv(run, data)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match="damaged or the set of another run"):
        predict_csv(run, data)
    path.write_bytes(whole)
    assert predict_csv(run, data) == first


@pytest.mark.slow
def test_rays_simulation_gives_the_model_that_this_process_gives(with_set, tmp_path) -> None:
    overrides = ("federation.rounds=2", "insecure_reproducible=true")
    runs = [
        start(with_set(*overrides, f"engine={engine}", folder=tmp_path / engine))
        for engine in ("in_process", "simulation")
    ]
    here, there = (json.loads((run / "summary.json").read_text()) for run in runs)
    assert there["engine"] == "simulation"
    assert here["model_sha256"] == there["model_sha256"]
    assert metrics_of(runs[0])[0]["bytes_down"] == metrics_of(runs[1])[0]["bytes_down"]


def test_a_federated_evaluation_and_a_flower_strategy_go_with_a_public_set(with_set) -> None:
    run = start(with_set("federation.rounds=1", "evaluation=federated", "evaluation.evaluations=1", "strategy=flower"))
    lines = metrics_of(run)
    assert lines[-1]["evaluation"], "the sites score with what they impute, as the coordinator does"
    assert "auroc_macro" in lines[0]


# -- which set -------------------------------------------------------------------------------------------------


def test_the_sets_digest_is_part_of_what_owners_approve_and_of_what_every_session_binds(with_set) -> None:
    prepared = prepare(with_set())
    other = prepared.config.federation.model_copy(update={"public_set": "0" * 64})
    changed = Federation(prepared.config.model_copy(update={"federation": other}), prepared.simulated.members)
    assert prepared.federation.digest() != changed.digest(), "which is the policy hash of a session"
    assert prepared.federation.plan_hash() != changed.plan_hash()


def test_the_plan_that_is_shown_to_owners_has_the_hash_of_the_run(with_set, small) -> None:
    shown = plan_view([*small, "method=car_mfl", "federation.rounds=8", FRACTION])
    prepared = prepare(with_set())
    assert prepared.config.federation.public_set is not None
    assert shown.plan_hash == prepared.federation.plan_hash()


def test_a_method_that_needs_a_set_is_refused_without_one_before_data_are_read(steady_config) -> None:
    config = steady_config("method=car_mfl")
    with pytest.raises(ConfigError, match=r"federation\.public_fraction=0\.1"):
        federation_of(config, made_up_members(config))


def test_a_set_that_is_named_is_the_one_that_the_data_give_or_the_run_is_refused(with_set) -> None:
    digest = prepare(with_set()).public.digest
    assert prepare(with_set(f"federation.public_set={digest}")).public.digest == digest
    with pytest.raises(ConfigError, match=r"federation\.public_set=0{64} is not the set that these data give"):
        prepare(with_set(f"federation.public_set='{'0' * 64}'"))
    with pytest.raises(ConfigError, match="works with none"):
        prepare(with_set("method=fin", f"federation.public_set={digest}"))


def test_public_patients_are_neither_at_a_site_nor_in_the_hold_out_and_no_method_changes_who_is_where(
    with_set,
) -> None:
    found = simulate(with_set())
    at_sites = set().union(*(records.unit_ids.tolist() for records in found.records.values()))
    public, held_out = PublicSet.of(found.public), set(found.holdout.unit_ids.tolist())
    shown = set(found.public.unit_ids.tolist())
    assert len(shown) == round(0.2 * 180)
    assert len(at_sites | shown | held_out) == 240 == len(at_sites) + len(shown) + len(held_out)
    assert all(present.all() for present in found.public.presence.values())
    for method in ("fin", "ridge"):
        config = with_set(f"method={method}")
        other = simulate(config)
        assert {name: records.unit_ids.tolist() for name, records in other.records.items()} == {
            name: records.unit_ids.tolist() for name, records in found.records.items()
        }
        assert prepare(config).config.federation.public_set is None
    assert public.digest == simulate(with_set("federation.rounds=5")).public_set.digest


def test_sites_that_hold_other_patients_hold_another_data_set(with_set) -> None:
    few = with_set()
    more = with_set("federation.public_fraction=0.3")
    found = {federation_of(config, made_up_members(config)).data_set for config in (few, more)}
    assert len(found) == 2


# -- asking ----------------------------------------------------------------------------------------------------


def test_a_site_asks_for_the_set_once_and_not_after_a_restart_either(with_set, quick) -> None:
    bench = Bench.make(with_set())
    rounds = [bench.round(0, 0, more=True)]
    for site in list(bench.sites):
        bench.restart(site)
    rounds += [bench.round(number, number, more=True) for number in (1, 2)]
    assert [result.traffic.exchanges for result in rounds] == [6, 3, 3]
    assert all(result.survivors == 5 for result in rounds)
    assert sorted(asked(bench)) == sorted(brought(bench)) == sorted(bench.sites)


def test_a_method_that_needs_no_set_gets_none_and_keeps_none(with_set, quick) -> None:
    bench = Bench.make(with_set("method=modality_dropout"))
    bench.transport.before = lambda site, action, parcel: (
        replace(parcel, arrays={**parcel.arrays, "public/labels": np.zeros((1, 1), dtype=np.int8)})
        if parcel.announcement
        else parcel
    )
    assert bench.round(0, 0).survivors == 5
    assert asked(bench) == []
    assert not [path for site in bench.sites for path in bench.home(site).private.glob("public-*")]


def test_who_joins_late_gets_the_set_and_the_checkpoint_each_once(with_set, quick) -> None:
    bench = Bench.make(with_set())
    bench.transport.before = silence("site02")
    for number in range(3):
        bench.round(number, number, more=True)
    bench.transport.before = silence()
    back = [bench.round(number, number, more=True) for number in (3, 4)]
    assert [result.survivors for result in back] == [4, 5]
    assert brought(bench).count("site02") == 1
    assert asked(bench, "needs_checkpoint") == ["site02"]
    assert asked(bench).count("site02") == 1


@pytest.mark.parametrize("harm", ["torn", "deleted", "of another home"])
def test_a_site_whose_copy_is_harmed_asks_again_and_goes_on(with_set, quick, harm) -> None:
    bench = Bench.make(with_set())
    bench.round(0, 0, more=True)
    path = kept(bench, "site03")
    match harm:
        case "torn":
            path.write_bytes(path.read_bytes()[:-7])
        case "deleted":
            path.unlink()
        case _:
            path.write_bytes(kept(bench, "site01").read_bytes())
    bench.restart("site03")
    result = bench.round(1, 1, more=True)
    assert result.survivors == 5
    assert asked(bench).count("site03") == 2
    bench.restart("site03")
    assert bench.round(2, 2, more=True).survivors == 5
    assert asked(bench).count("site03") == 2
    assert len(bench.reserves("site03")) == 3


def test_a_set_that_is_lost_within_a_round_costs_that_round_and_no_budget(with_set, quick) -> None:
    """The model was announced with the session; between that and its update the copy goes."""
    bench = Bench.make(with_set())

    def lose(site: str, action: str, parcel: Parcel) -> Parcel:
        if (site, action) == ("site03", "mask"):
            kept(bench, site).unlink(missing_ok=True)
            bench.restart(site)
        return parcel

    bench.transport.before = lose
    result = bench.round(0, 0)
    assert result.survivors == 4
    assert result.traffic.exchanges == 6, "it is not asked again what brings no set"
    assert bench.reserves("site03") == []
    bench.transport.before = silence()
    assert bench.round(1, 1).survivors == 5


# -- lies ------------------------------------------------------------------------------------------------------


def exchanged(parcel: Parcel) -> Parcel:
    """The request with one pixel of its public set changed."""
    name = "public/values/image"
    if name not in parcel.arrays:
        return parcel
    other = parcel.arrays[name].copy()
    other.flat[0] = 1.0 - other.flat[0]
    return replace(parcel, arrays={**parcel.arrays, name: other})


@pytest.mark.parametrize("secagg", ["on", "off"])
def test_another_set_than_the_configurations_halts_the_site_before_it_charges_or_keeps_anything(
    with_set, quick, secagg
) -> None:
    bench = Bench.make(with_set(f"secagg={secagg}"))
    bench.transport.before = lambda site, action, parcel: exchanged(parcel) if site == "site01" else parcel
    result = bench.round(0, 0)
    assert result.survivors == 4
    assert result.traffic.codes["site01"] == "public_set_mismatch"
    assert not kept(bench, "site01").exists()
    assert bench.reserves("site01") == []
    found = halted(bench.home("site01"))
    assert found is not None
    path = bench.folder / "sites" / "site01" / "evidence" / found.evidence
    content = check_evidence(path, bench.coordinator.roster)
    assert content["code"] == "public_set_mismatch"
    assert path.with_suffix(".safetensors").is_file(), "the other set is part of the evidence"


def test_a_site_that_holds_its_set_halts_over_another_one_that_nobody_asked_for(with_set, quick) -> None:
    bench = Bench.make(with_set())
    bench.round(0, 0)
    before = kept(bench, "site01").read_bytes()
    public = {f"public/{name}": array for name, array in bench.prepared.public.arrays.items()}
    bench.transport.before = lambda site, action, parcel: (
        exchanged(replace(parcel, arrays={**parcel.arrays, **public}))
        if site == "site01" and parcel.announcement
        else parcel
    )
    assert bench.round(1, 1).traffic.codes["site01"] == "public_set_mismatch"
    assert halted(bench.home("site01")) is not None
    assert kept(bench, "site01").read_bytes() == before


def one_site(bench: Bench, **federation: object) -> SiteClient:
    """site01 under a configuration whose federation was changed."""
    config = bench.prepared.config
    changed = config.federation.model_copy(update=federation)
    records = bench.prepared.simulated.records["site01"]
    return SiteClient(
        bench.home("site01"),
        config.model_copy(update={"federation": changed}),
        bench.folder / "roster.json",
        lambda: records,
    )


def advertise(bench: Bench, arrays) -> Parcel:
    first = next(parcel for site, action, parcel in bench.transport.sent if (site, action) == ("site01", "advertise"))
    named = {f"public/{name}": array for name, array in arrays.items()}
    said = Announcement.from_bytes(first.announcement).model_copy(update={"public_set": hash_arrays(arrays)}).to_bytes()
    return bench.request("site01", "advertise", Header("run", 0, 5, 50), announcement=said, arrays=named)


@pytest.mark.parametrize("harm", ["patients' ids", "no number"])
def test_a_set_that_is_named_and_holds_no_records_is_refused_and_not_kept(with_set, quick, harm) -> None:
    """The configuration itself is bad: nothing was sent that it does not name, so nobody halts."""
    bench = Bench.make(with_set())
    bench.round(0, 0)
    arrays = dict(bench.prepared.public.arrays)
    if harm == "no number":
        arrays["values/image"] = np.full_like(arrays["values/image"], np.nan)
    else:
        arrays["unit_ids"] = np.arange(3)
    site = one_site(bench, public_set=hash_arrays(arrays))
    assert site.handle(advertise(bench, arrays)).code == "bad_public_set"
    assert halted(bench.home("site01")) is None
    assert len(list(bench.home("site01").private.glob("public-*"))) == 1
    assert len(bench.reserves("site01")) == 1


def test_a_signed_request_of_another_run_that_somebody_delivers_again_halts_nobody(with_set, quick) -> None:
    """Its public set is that run's: whoever can repeat messages must not make the coordinator look like a liar."""
    bench = Bench.make(with_set())
    bench.round(0, 0)
    sent = [parcel for site, _, parcel in bench.transport.sent if site == "site01" and part(parcel.arrays, "public")]
    repeated = bench.request(
        "site01", "advertise", Header("other", 0, 0, 0), announcement=sent[0].announcement, arrays=sent[0].arrays
    )
    before = {path.name for path in bench.home("site01").private.iterdir()}
    assert one_site(bench, public_set="ab" * 32).handle(repeated).code == "other_public_set"
    assert halted(bench.home("site01")) is None
    assert {path.name for path in bench.home("site01").private.iterdir()} == before
    assert len(bench.reserves("site01")) == 1


def test_a_configuration_that_does_not_say_which_set_is_refused(with_set, quick) -> None:
    bench = Bench.make(with_set())
    bench.round(0, 0)
    site = one_site(bench, public_set=None)
    assert site.handle(advertise(bench, bench.prepared.public.arrays)).code == "refused"


# -- interruptions ---------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As a SIGKILL in this process: nothing catches it."""


def test_a_run_that_was_killed_goes_on_with_the_same_set_also_where_its_file_was_lost(
    with_set, quick, monkeypatch
) -> None:
    original = Trainer._round

    def die(self, held, progress):
        if progress.step == 1:
            raise Killed
        return original(self, held, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_round", die)
        with pytest.raises(Killed):
            start(with_set("federation.rounds=2"))
    run = Path(with_set().run_dir)
    digest = load_config(run).federation.public_set
    whole = (run / FILE).read_bytes()
    (run / FILE).unlink()
    resume(run)
    assert (run / FILE).read_bytes() == whole
    assert load_config(run).federation.public_set == digest
    size = sum(array.nbytes for array in simulate(load_config(run)).public_set.arrays.values())
    assert all(line["bytes_down"] < 3 * size for line in metrics_of(run)[1:]), "the sites have it already"


def test_a_run_whose_data_give_another_set_by_now_is_not_resumed(with_set) -> None:
    bench = Bench.make(with_set())
    path = bench.folder / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["federation"]["public_set"] = "0" * 64
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match="is not the set that these data give"):
        resume(bench.folder)


def test_a_site_killed_at_any_write_of_its_first_message_has_the_set_whole_or_takes_it_again(tmp_path, quick) -> None:
    overrides = (
        *("data.patients=240", "federation.sites=4", "federation.ownership=0:0:4", "federation.rounds=12"),
        *("federation.corrupt=0", "method=car_mfl", "method.classify.steps=1", "method.classify.learning_rate=1"),
    )
    with mortal(Mortality()):
        founded = MortalBench.make(freeze(compose_config([*overrides, FRACTION]), tmp_path / "run"))
    torn = 0
    for at in range(4):
        mortality = Mortality({"site02": "torn"}, at)
        with mortal(mortality):
            bench = founded.fork(tmp_path / str(at), mortality)
            bench.go_on(1)
            assert mortality.killed == {"site02"}
            last = bench.round(bench.number, bench.number, more=True)
        assert (last.survivors, halted(bench.home("site02"))) == (4, None)
        stored = bench.home("site02").get_tensors(f"public-{bench.prepared.public.digest}")
        assert stored is not None
        assert hash_arrays(stored[1]) == bench.prepared.public.digest
        torn += len(list(bench.home("site02").private.glob(".public-*.torn")))
        shutil.rmtree(bench.folder)
    assert torn == 1, "one of the writes is the set's own"


def test_the_arrays_of_a_run_hold_no_patient(with_set) -> None:
    found = simulate(with_set())
    raw = b"".join(array.tobytes() for array in encode_public(found.public).values())
    assert not any(str(patient).encode() in raw for patient in found.public.unit_ids)
