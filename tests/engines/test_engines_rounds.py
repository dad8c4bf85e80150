"""Rounds over real sites: what leaves a site, and what happens when sites fall silent at any stage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from federation_bench import Bench

from secure_fed.client.following import unpack_signed
from secure_fed.client.home import Home, of_run
from secure_fed.client.site import PENDING
from secure_fed.client.training import LocalTraining
from secure_fed.errors import BudgetExhausted, ConfigError, RunAborted
from secure_fed.federation.wire import OK, STAGES, Header, Parcel
from secure_fed.identity import SigningKey
from secure_fed.secagg import wire_bits
from secure_fed.server.announced import Announced
from secure_fed.server.round import RoundBurned


def test_the_opened_mean_is_the_weighted_mean_of_the_updates(make_config, updates) -> None:
    bench = Bench.make(make_config())
    result = bench.round()
    weights = bench.prepared.federation.weights
    assert result.survivors == result.participants == 5
    secagg = bench.prepared.config.secagg
    for name, mean in result.means.items():
        owners = result.contributors[name]
        expected = sum(weights[s] * updates[s][name].astype(np.float64) for s in owners) / sum(
            weights[s] for s in owners
        )
        # Each contribution is rounded to one of two neighbouring levels; the weighted mean is off by one at the most.
        level = secagg.clip / (2 ** (secagg.value_bits - 1) - 1)
        assert np.abs(mean - expected).max() < level * len(owners) / sum(weights[s] for s in owners) + 1e-7


def test_the_server_receives_no_update_count_or_metric_of_any_site(make_config, updates) -> None:
    """Everything that the server gets in a round, against what only a site knows."""
    bench = Bench.make(make_config())
    bench.round()
    weights = bench.prepared.federation.weights
    assert {action for _, action, _ in bench.transport.received} == set(STAGES)
    for site, action, parcel in bench.transport.received:
        # Nothing but a code and the protocol's own bytes.
        assert set(parcel.arrays) == (set(updates[site]) if action == "mask" else set())
        raw = parcel.body + b"".join(array.tobytes() for array in parcel.arrays.values())
        assert parcel == Parcel(code=OK, body=parcel.body, arrays=parcel.arrays)
        for name, update in updates[site].items():
            for form in (update, (update * np.float32(weights[site])).astype(np.float32), update.astype(np.float64)):
                assert form[:16].tobytes() not in raw, f"{site} {action} shows {name}"
        if action != "mask":
            continue
        bits = wire_bits(len(bench.sites), bench.prepared.config.secagg.value_bits)
        for name, update in updates[site].items():
            masked = unpack_signed(parcel.arrays[name], len(update) + 1, bits)[:-1]
            correlation = np.corrcoef(masked.astype(np.float64), update)[0, 1]
            # Of d independent pairs it is about N(0, 1/d); six deviations, some dozen looks.
            assert abs(correlation) < 6 / np.sqrt(len(update)), f"{site} correlates with {name}"


def test_messages_are_as_long_with_many_records_as_with_few(make_config, tmp_path) -> None:
    def lengths(patients: int) -> list[tuple[str, str, int]]:
        overrides = (f"data.patients={patients}", "federation.partition.scheme=dirichlet")
        bench = Bench.make(make_config(*overrides, folder=tmp_path / str(patients)))
        bench.round()
        return [(site, action, parcel.size) for site, action, parcel in bench.transport.received]

    assert lengths(200) == lengths(420)


@pytest.mark.parametrize("stage", STAGES)
def test_a_site_that_falls_silent_at_any_stage_is_survived(make_config, stage) -> None:
    bench = Bench.make(make_config())

    def silence(site: str, action: str, parcel: Parcel) -> Parcel | None:
        late = STAGES.index(action) >= STAGES.index(stage)
        return None if site == "site02" and late else parcel

    bench.transport.before = silence
    result = bench.round()
    counted = stage in {"confirm", "unmask"}  # its masked vector had arrived
    assert ("site02" in result.contributors["fusion"]) == counted
    assert result.survivors == (5 if counted else 4)


def test_below_the_threshold_the_round_is_retried_over_the_same_update_without_a_new_charge(
    make_config, updates
) -> None:
    bench = Bench.make(make_config())
    first_updates: dict[str, dict[str, np.ndarray]] = {}

    def silence(site: str, action: str, parcel: Parcel) -> Parcel | None:
        first = Header.from_bytes(parcel.header).attempt == 0
        if first and action == "confirm":
            first_updates.update(updates)
            updates.clear()
            return None
        return parcel

    bench.transport.before = silence
    result = bench.round()
    assert result.attempts == 2
    assert updates == {}, "a retry trained anew"
    weights = bench.prepared.federation.weights
    expected = sum(weights[s] * first_updates[s]["fusion"] for s in first_updates) / sum(weights.values())
    np.testing.assert_allclose(result.means["fusion"], expected, atol=1e-4)
    assert all(len(bench.reserves(site)) == 1 for site in bench.sites)


def test_a_round_that_fails_in_all_attempts_stops_with_the_ledgers_intact_and_the_model_as_it_was(make_config) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=2"))
    before = bench.held.track.digest
    bench.transport.before = lambda site, action, parcel: None if action == "confirm" else parcel
    with pytest.raises(RunAborted, match="all 2 attempts"):
        bench.round()
    assert bench.held.track.digest == before
    assert all(len(bench.reserves(site)) == 1 for site in bench.sites)


def test_a_round_that_fails_while_it_is_opened_is_burned_and_charged_anew(make_config) -> None:
    bench = Bench.make(make_config())
    bench.transport.after = lambda site, action, parcel: None if action == "unmask" else parcel
    with pytest.raises(RoundBurned):
        bench.round(number=0)
    assert all(bench.pending(site) is None for site in bench.sites), "a released update was kept"
    bench.transport.after = lambda site, action, parcel: parcel
    bench.round(number=1)
    assert [record.round for record in bench.reserves("site01")] == [0, 1]


def test_a_released_round_is_never_answered_again(make_config) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    bench.round(number=3)
    for number in (3, 2):
        with pytest.raises(RunAborted, match="stale_round"):
            bench.round(number=number)


def test_a_component_below_its_floor_keeps_its_value_and_the_others_move(make_config) -> None:
    """Owners of encoder.text are sites with text; with two of four silent before masking, its sum stays masked."""
    bench = Bench.make(
        make_config("federation.sites=8", "federation.ownership=4:0:4", "federation.corrupt=1", "method=zero_fill")
    )
    owners = sorted(bench.prepared.federation.owners("encoder.text"))
    silent = set(owners[:2])
    bench.transport.before = lambda site, action, parcel: None if site in silent and action == "mask" else parcel
    result = bench.round()
    assert result.kept == ("encoder.text",)
    assert set(result.means) == {"encoder.image", "fusion"}


def test_an_exceptions_text_never_leaves_the_site(make_config, monkeypatch) -> None:
    bench = Bench.make(make_config())

    def fail(self, *_arguments):
        raise OSError("patient_Mueller_1954.dcm is not readable")

    monkeypatch.setattr(LocalTraining, "update", fail)
    with pytest.raises(RunAborted):
        bench.round()
    for _, action, parcel in bench.transport.received:
        assert b"Mueller" not in parcel.body
        if action == "mask":
            assert (parcel.code, parcel.body) == ("internal_error", b"")
    log = (bench.folder / "sites" / "site01" / "private" / "site.log").read_text()
    assert "Mueller" in log, "the site's own log tells its operator"


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_model_that_is_not_finite_is_refused_before_anything_is_charged(make_config, poison) -> None:
    """Where the server's step cannot be recomputed, the model itself is sent."""
    bench = Bench.make(make_config("secagg.max_attempts=1", "strategy=flower"))

    def poisoned(site: str, action: str, parcel: Parcel) -> Parcel:
        arrays = {name: np.full_like(values, poison) for name, values in parcel.arrays.items()}
        return replace(parcel, arrays=arrays)

    bench.transport.before = poisoned
    with pytest.raises(RunAborted, match="bad_model"):
        bench.round()
    assert all(bench.reserves(site) == [] for site in bench.sites)


def test_a_model_of_another_shape_is_refused_before_anything_is_charged(make_config) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1", "strategy=flower"))
    bench.transport.before = lambda site, action, parcel: replace(
        parcel, arrays={name: np.zeros(len(values) + 1, np.float32) for name, values in parcel.arrays.items()}
    )
    with pytest.raises(RunAborted, match="bad_model"):
        bench.round()
    assert all(bench.reserves(site) == [] for site in bench.sites)


def test_the_charge_is_on_disk_before_a_record_is_sampled_or_noise_is_drawn(make_config, monkeypatch) -> None:
    bench = Bench.make(make_config())
    seen: list[int] = []

    def look(model, components, loss, records, plan, train, noise) -> None:
        seen.append(sum(len(bench.reserves(site)) for site in bench.sites))

    monkeypatch.setattr("secure_fed.client.training.dp_sgd", look)
    bench.round()
    assert seen == [1, 2, 3, 4, 5]  # sites train one after the other, each with its own charge already there


def test_a_message_out_of_order_costs_no_budget(make_config) -> None:
    bench = Bench.make(make_config())
    header = Header("run", 0, 0, 0)
    said = Announced.make(bench.prepared.federation, bench.held.track, None, 0).announcement
    site = bench.sites["site01"]
    mask = bench.request("site01", "mask", header, announcement=said)
    assert site.handle(mask).code == "no_session"
    assert site.handle(bench.request("site01", "advertise", header, announcement=said)).code == OK
    assert site.handle(mask).code == "wrong_stage"
    assert bench.reserves("site01") == []


def test_no_message_gets_an_unmasked_update_out_of_a_run_with_secure_aggregation(make_config) -> None:
    bench = Bench.make(make_config())
    arrays = bench.held.track.to_arrays("model")
    answer = bench.sites["site01"].handle(bench.request("site01", "plain", Header("run", 0, 0, 0), arrays=arrays))
    assert (answer.code, answer.body, dict(answer.arrays)) == ("refused_by_policy", b"", {})
    assert bench.reserves("site01") == []


def test_a_request_that_the_coordinator_did_not_sign_is_not_answered(make_config) -> None:
    """Nor one to another site, nor one whose content changed after it was signed; and nobody halts for a stranger."""
    bench = Bench.make(make_config())
    header = Header("run", 0, 0, 0)
    said = Announced.make(bench.prepared.federation, bench.held.track, None, 0).announcement
    good = bench.request("site01", "advertise", header, announcement=said)
    forged = [
        replace(good, signature=b""),
        good.signed(SigningKey.generate()),
        bench.request("site02", "advertise", header, announcement=said),
        replace(good, body=b"x"),
        replace(good, next_header=good.header),
        replace(good, arrays={"sum/fusion": np.zeros(1, np.uint8)}),
    ]
    site = bench.sites["site01"]
    assert [site.handle(parcel).code for parcel in forged] == ["unsigned_request"] * len(forged)
    assert site.handle(good).code == OK


def test_a_server_cannot_renew_a_sites_budget_by_calling_the_run_another(make_config) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    bench.round(run="first")
    with pytest.raises(BudgetExhausted, match="site01"):
        bench.round(run="second")
    assert all(len(bench.reserves(site)) == 1 for site in bench.sites)


def test_a_site_refuses_more_rounds_than_were_budgeted_whatever_the_server_asks(make_config) -> None:
    bench = Bench.make(make_config("federation.rounds=2", "federation.spare_rounds=1", "secagg.max_attempts=1"))
    bench.round(number=0)
    bench.round(number=1)
    with pytest.raises(BudgetExhausted, match="site01"):
        bench.round(number=2)
    assert all(len(bench.reserves(site)) == 2 for site in bench.sites)


def test_what_a_site_keeps_between_messages_is_encrypted(make_config, updates) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    bench.transport.before = lambda site, action, parcel: None if action == "confirm" else parcel
    with pytest.raises(RunAborted):
        bench.round()
    home = Home(bench.folder / "sites" / "site01")
    raw = (home.private / f"{of_run(PENDING, 'run')}.bin").read_bytes()
    plain = home.get(of_run(PENDING, "run"))
    assert plain is not None
    for update in updates["site01"].values():
        assert update[:8].tobytes() in plain
        assert update[:8].tobytes() not in raw
    assert home.private.stat().st_mode & 0o077 == 0
    (home.private / f"{of_run(PENDING, 'run')}.bin").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ConfigError, match="was changed"):
        home.get(of_run(PENDING, "run"))


@pytest.mark.parametrize("harm", ["changed", "deleted"])
def test_a_site_whose_journal_was_changed_takes_part_in_nothing(make_config, harm) -> None:
    bench = Bench.make(make_config("secagg.max_attempts=1"))
    bench.round(number=0)
    for site in bench.sites:
        journal = bench.folder / "sites" / site / "private" / "journal.bin"
        if harm == "deleted":
            journal.unlink()
        else:
            journal.write_bytes(journal.read_bytes()[:-1])
    with pytest.raises(RunAborted, match="refused"):
        bench.round(number=1)
