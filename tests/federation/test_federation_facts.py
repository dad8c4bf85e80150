"""What everybody derives from configuration and roster, and what is refused before any epsilon is spent."""

from __future__ import annotations

import pytest

from secure_fed.accounting import epsilon
from secure_fed.errors import ConfigError, SecAggError
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.masking import secagg_params, session_context
from secure_fed.federation.plan import plan_for
from secure_fed.federation.wire import Header
from secure_fed.identity import Member, Roster, SigningKey
from secure_fed.secagg import k_regular

BOTH, IMAGE, TEXT = frozenset({"image", "text"}), frozenset({"image"}), frozenset({"text"})


def sites(*owned: frozenset[str], n: int = 600) -> list[Site]:
    return [Site(f"site{i:02d}", modalities, n) for i, modalities in enumerate(owned, start=1)]


def test_a_site_uploads_only_what_it_owns_and_translators_need_both_modalities(make_config) -> None:
    federation = Federation(make_config(), sites(IMAGE, IMAGE, TEXT, BOTH, BOTH, BOTH))
    owners = {part.name: part.owners for part in federation.slices_at(0)}
    assert owners["encoder.image"] == {"site01", "site02", "site04", "site05", "site06"}
    assert owners["encoder.text"] == {"site03", "site04", "site05", "site06"}
    assert owners["fusion"] == {f"site{i:02d}" for i in range(1, 7)}
    last = {part.name: part.owners for part in federation.slices_at(2)}
    assert last == dict.fromkeys(
        ("translator.image_to_text", "translator.text_to_image"), frozenset({"site04", "site05", "site06"})
    )


def test_weights_are_public_counts_over_the_largest(make_config) -> None:
    members = [Site("a", BOTH, 300), Site("b", BOTH, 600), Site("c", BOTH, 450)]
    assert Federation(make_config(), members).weights == {"a": 0.5, "b": 1.0, "c": 0.75}


@pytest.mark.parametrize(("n", "corrupt", "threshold"), [(10, 2, 7), (10, 1, 6), (30, 6, 19), (5, 1, 4), (3, 0, 2)])
def test_threshold_is_the_least_with_two_t_above_n_plus_c(make_config, n, corrupt, threshold) -> None:
    config = make_config(f"federation.corrupt={corrupt}")
    found = Federation(config, sites(*[BOTH] * n)).threshold
    assert found == threshold
    assert 2 * found > n + corrupt >= 2 * (found - 1)


@pytest.mark.parametrize(
    ("overrides", "owned", "words"),
    [
        ((), (BOTH, BOTH), ("federation.sites=2", "at least 3", "secagg=off")),
        (("federation.corrupt=3",), (BOTH,) * 3, ("federation.corrupt=3", "threshold of 4", "lower")),
        (("federation.corrupt=2",), (BOTH,) * 3, ("fusion 3 contributors", "floor of 4", "fusion:3")),
        (("federation.min_contributors=5",), (BOTH,) * 4, ("encoder.image 4 contributors", "min_contributors=5")),
        (("secagg.min_cohort=5",), (BOTH,) * 4, ("secagg.min_cohort=5", "4 sites", "lower it")),
        (("secagg.graph=k_regular",), (BOTH,) * 100, ("secagg.graph=k_regular", "100 sites", "graph=complete")),
        ((), (IMAGE,) * 5, ("owns two modalities", "zero_fill")),
        (("method=zero_fill",), (IMAGE,) * 5, ("encoder.text", "no site owns text")),
        ((), (IMAGE, IMAGE, IMAGE, BOTH, BOTH), ("encoder.text 2 contributors", "floor of 3", "corrupt=0")),
        ((), (IMAGE,) * 4 + (BOTH,), ("encoder.text 1 contributors", "floor of 1 shows", "that site's own update")),
        (("privacy.delta=0.01",), (BOTH,) * 3, ("privacy.delta=0.01", "N=600", "site01")),
        (("federation.rounds=1",), (BOTH,) * 3, ("federation.rounds=1", "at least 2 rounds")),
    ],
)
def test_what_cannot_work_is_refused_with_the_value_and_the_way_out(make_config, overrides, owned, words) -> None:
    with pytest.raises(ConfigError) as error:
        Federation(make_config(*overrides), sites(*owned))
    for word in words:
        assert word in str(error.value)


PAPER = (IMAGE,) * 8 + (BOTH,) * 2
OPTED = "+secagg.floors={encoder.text:2,translator.image_to_text:2,translator.text_to_image:2}"


def test_the_papers_8_0_2_works_without_corrupt_sites_or_where_owners_opt_for_a_floor_of_two(make_config) -> None:
    with pytest.raises(ConfigError, match=r"federation\.corrupt=0") as refused:
        Federation(make_config("federation.corrupt=1"), sites(*PAPER))
    assert f"'{OPTED}'" in str(refused.value), "the way out can be pasted into the command line"
    assert Federation(make_config("federation.corrupt=0"), sites(*PAPER)).floor("encoder.text") == 2
    opted = Federation(make_config("federation.corrupt=1", OPTED), sites(*PAPER))
    assert [opted.floor(name) for name in ("encoder.text", "encoder.image", "fusion")] == [2, 3, 3]
    assert opted.dp_only == {"encoder.text", "translator.image_to_text", "translator.text_to_image"}


@pytest.mark.parametrize(
    ("floors", "words"),
    [
        ("{encoder.sound:2}", ("encoder.sound", "known: encoder.image, encoder.text, fusion, translator")),
        ("{fusion:3}", ("fusion the floor 3", "1..2", "default of 3", "min_contributors")),
        ("{fusion:7}", ("fusion the floor 7", "1..2")),
        ("{fusion:0}", ("fusion the floor 0", "1..2")),
        ("{fusion:-1}", ("fusion the floor -1", "1..2")),
    ],
)
def test_a_floor_that_lowers_nothing_or_names_nothing_is_refused(make_config, floors, words) -> None:
    with pytest.raises(ConfigError, match=r"secagg\.floors") as error:
        Federation(make_config(f"+secagg.floors={floors}"), sites(*[BOTH] * 5))
    for word in words:
        assert word in str(error.value)


def test_without_masks_there_are_no_floors_to_lower(make_config) -> None:
    federation = Federation(make_config("secagg=off", OPTED), sites(*PAPER))
    assert federation.dp_only == frozenset()


def test_a_statistic_has_a_floor_of_its_own(make_config) -> None:
    config = make_config("method=ridge", "federation.corrupt=1", "+secagg.floors={statistic.image_to_text:2}")
    federation = Federation(config, sites(IMAGE, TEXT, TEXT, BOTH, BOTH))
    assert federation.floor("statistic.image_to_text") == 2
    assert federation.slice_names == ("encoder.image", "encoder.text", "fusion", "statistic.image_to_text")


def test_each_step_masks_under_the_floors_of_its_own_components(make_config, tmp_path) -> None:
    federation = Federation(make_config("federation.corrupt=1", OPTED), sites(*PAPER))
    assert dict(secagg_params(federation, 0).floors) == {"encoder.text": 2}
    assert dict(secagg_params(federation, 2).floors) == {"translator.image_to_text": 2, "translator.text_to_image": 2}
    assert secagg_params(federation).dp_only == federation.dp_only
    keys = {site.name: SigningKey.generate().public_bytes.hex() for site in federation.sites}
    members = {
        site.name: Member(public_key=keys[site.name], owns=tuple(sorted(site.owned)), declared_n=site.declared_n)
        for site in federation.sites
    }
    roster = Roster.create(members, SigningKey.generate(), coordinator=SigningKey.generate().public_bytes)
    contexts = [session_context(federation, roster, Header("run", step, step, step)) for step in range(3)]
    assert [set(context.params.floors) - set(context.schema.by_name) for context in contexts] == [set()] * 3


@pytest.mark.parametrize(("wanted", "fewest"), [(2, 6), (6, 6), (8, 8), (10, 10)])
def test_a_round_goes_on_with_the_threshold_or_the_cohort_that_was_asked_for(make_config, wanted, fewest) -> None:
    federation = Federation(make_config(f"secagg.min_cohort={wanted}"), sites(*[BOTH] * 10))
    assert federation.threshold == 6
    assert secagg_params(federation).quorum == federation.min_cohort == fewest


@pytest.mark.parametrize(("dropout", "fewest"), [(0.2, 104), (0.1, 117), (0.4, 78)])
def test_a_k_regular_graph_is_made_for_the_drop_outs_that_were_asked_for_and_no_more(
    make_config, dropout, fewest
) -> None:
    config = make_config("secagg=k_regular", "federation.corrupt=5", f"secagg.max_dropout={dropout}")
    params = secagg_params(Federation(config, sites(*[BOTH] * 130)))
    assert params.graph == k_regular(130, 5 / 130, (130 - fewest) / 130)
    assert params.quorum == fewest
    assert any("semi-malicious" in note for note in params.cautions())


def test_a_member_that_leaves_changes_threshold_weights_owners_and_nothing_of_another_federation(make_config) -> None:
    config = make_config()
    members = [Site("a", BOTH, 300), *[Site(name, BOTH, 200) for name in "bcde"], Site("f", IMAGE, 100)]
    before = Federation(config, members)
    assert (before.threshold, before.weights["b"], len(before.owners("fusion"))) == (4, 2 / 3, 6)
    after = Federation(config, members[1:])
    assert (after.threshold, after.weights["b"], len(after.owners("fusion"))) == (4, 1.0, 5)
    assert (before.threshold, before.weights["b"], len(before.owners("fusion"))) == (4, 2 / 3, 6)
    assert before.digest() == after.digest(), "who takes part is the roster's matter, and bound beside it"


def test_a_plan_covers_every_planned_and_spare_round_and_stays_within_epsilon(make_config) -> None:
    config = make_config("privacy.epsilon=3", "federation.rounds=6", "federation.spare_rounds=2")
    federation = Federation(config, sites(IMAGE, TEXT, BOTH, BOTH, BOTH))
    for site in federation.sites:
        plan = plan_for(federation, site)
        assert plan is not None
        assert {item.phase.name: item.rounds for item in plan.phases} == (
            {"classify": 7, "translate": 3} if site.owned == BOTH else {"classify": 7}
        )
        everything = [item.in_all for item in plan.phases]
        assert plan.epsilon == epsilon(everything, config.privacy.delta)
        # Calibrated from below: never above the target, and not far under it.
        assert 0.97 * 3 < plan.epsilon <= 3


def test_a_site_with_fewer_phases_needs_less_noise(make_config) -> None:
    federation = Federation(make_config(), sites(IMAGE, TEXT, BOTH, BOTH, BOTH))
    noise = [plan_for(federation, site).phases[0].per_round.noise_multiplier for site in federation.sites]
    assert noise[0] == noise[1] < noise[2]


def test_an_epsilon_that_no_noise_reaches_is_refused(make_config) -> None:
    federation = Federation(make_config("privacy.epsilon=1e-9"), sites(*[BOTH] * 3))
    with pytest.raises(ConfigError, match=r"privacy\.epsilon=1e-09"):
        plan_for(federation, federation.sites[0])


def test_the_digest_changes_with_what_decides_the_run_and_not_with_where_it_is_written(make_config, tmp_path) -> None:
    members = sites(*[BOTH] * 3)
    digest = Federation(make_config(), members).digest()
    assert digest == Federation(make_config("engine=simulation", folder=tmp_path / "other"), members).digest()
    assert digest == Federation(make_config("secagg.threads=2"), members).digest()
    for other in ("privacy.epsilon=7", "+secagg.floors={fusion:1}", "secagg.min_cohort=3", "secagg.clip=5"):
        assert digest != Federation(make_config(other), members).digest(), other


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"run":"r","step":0,"round":0,"attempt":-1}',
        b'{"run":"r","step":0,"round":true,"attempt":0}',
        b'{"run":1,"step":0,"round":0,"attempt":0}',
        b'{"run":"r","step":0,"round":0,"attempt":0,"more":1}',
    ],
)
def test_a_malformed_header_is_refused_with_a_fixed_code(data) -> None:
    with pytest.raises(SecAggError) as error:
        Header.from_bytes(data)
    assert error.value.code == "malformed_message"


def test_a_header_survives_the_wire() -> None:
    header = Header("run", 3, 4, 1)
    assert Header.from_bytes(header.to_bytes()) == header
