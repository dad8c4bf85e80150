"""What everybody derives from configuration and roster, and what is refused before any epsilon is spent."""

from __future__ import annotations

import pytest

from secure_fed.accounting import epsilon
from secure_fed.errors import ConfigError, SecAggError
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import plan_for, repeated
from secure_fed.federation.wire import Header

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
        ((), (BOTH, BOTH), ("federation.sites=2", "cohort floor", "secagg=off")),
        ((), (IMAGE,) * 5, ("owns two modalities", "zero_fill")),
        (("method=zero_fill",), (IMAGE,) * 5, ("encoder.text", "no site owns text")),
        ((), (IMAGE, IMAGE, IMAGE, BOTH, BOTH), ("encoder.text", "2 contributors", "floor of 3", "corrupt=0")),
        (("privacy.delta=0.01",), (BOTH,) * 3, ("privacy.delta=0.01", "N=600", "site01")),
        (("federation.rounds=1",), (BOTH,) * 3, ("federation.rounds=1", "at least 2 rounds")),
    ],
)
def test_what_cannot_work_is_refused_with_the_value_and_the_way_out(make_config, overrides, owned, words) -> None:
    with pytest.raises(ConfigError) as error:
        Federation(make_config(*overrides), sites(*owned))
    for word in words:
        assert word in str(error.value)


def test_the_papers_8_0_2_works_only_without_corrupt_sites(make_config) -> None:
    owned = (IMAGE,) * 8 + (BOTH,) * 2
    with pytest.raises(ConfigError, match=r"federation\.corrupt=0"):
        Federation(make_config("federation.corrupt=1"), sites(*owned))
    assert Federation(make_config("federation.corrupt=0"), sites(*owned)).floor() == 2


def test_a_plan_covers_every_planned_and_spare_round_and_stays_within_epsilon(make_config) -> None:
    config = make_config("privacy.epsilon=3", "federation.rounds=6", "federation.spare_rounds=2")
    federation = Federation(config, sites(IMAGE, TEXT, BOTH, BOTH, BOTH))
    for site in federation.sites:
        plan = plan_for(federation, site)
        assert plan is not None
        assert {item.phase.name: item.rounds for item in plan.phases} == (
            {"classify": 7, "translate": 3} if site.owned == BOTH else {"classify": 7}
        )
        everything = [repeated(item.per_round, item.rounds) for item in plan.phases]
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
    assert digest != Federation(make_config("privacy.epsilon=7"), members).digest()


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
