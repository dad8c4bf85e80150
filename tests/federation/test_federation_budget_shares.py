"""How a budget is shared out between phases: the shares hold exactly, and the whole stays within epsilon."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_fed.config import compose_config, freeze
from secure_fed.errors import ConfigError
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import PlannedPhase, SitePlan, plan_for, plan_on_record, relative_noise
from secure_fed.ledger import Plan
from secure_fed.ledger import PlannedPhase as LedgerPhase
from secure_fed.ledger.record import RNG_CLASSES
from secure_fed.methods.base import GradientPhase, HistogramPhase

BOTH, IMAGE = frozenset({"image", "text"}), frozenset({"image"})
OVERRIDES = ("method=mean_fill", "method.releases=3", "federation.rounds=6")
MEMBERS = [Site(f"site{i}", BOTH, 600) for i in range(1, 5)] + [Site("images", IMAGE, 600)]


def plan(config: RunConfig, site: Site = MEMBERS[0]) -> SitePlan:
    found = plan_for(Federation(config, MEMBERS), site)
    assert found is not None
    return found


def spent_on(planned: PlannedPhase) -> float:
    """A phase's part of the sum over the schedule of steps * (q / sigma)^2, before it is divided by that sum."""
    mechanism = planned.per_round
    return planned.phase.rounds * mechanism.steps * (mechanism.sample_rate / mechanism.noise_multiplier) ** 2


def shares(found: SitePlan) -> dict[str, float]:
    parts = {item.phase.name: spent_on(item) for item in found.phases if not isinstance(item.phase, HistogramPhase)}
    return {name: part / math.fsum(parts.values()) for name, part in parts.items()}


def test_without_shares_every_phase_has_the_same_noise(make_config) -> None:
    federation = Federation(make_config("method=fin_paper"), MEMBERS)
    assert [relative_noise(federation, phase) for phase in federation.phases] == [1.0, 1.0]


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_a_gradient_phase_bears_the_noise_that_its_method_says_unless_it_is_given_a_share(make_config, noise) -> None:
    overrides = ("federation.rounds=6", f"method.translate.noise={noise}")
    found = plan(make_config(*overrides))
    classify, translate = (found.phase(name).per_round for name in ("classify", "translate"))
    assert translate.noise_multiplier / classify.noise_multiplier == pytest.approx(noise, rel=1e-9)
    assert 8 * (1 - 1e-3) <= found.epsilon <= 8
    assert shares(plan(make_config(*overrides, "+privacy.budget_shares.translate=0.3")))["translate"] == pytest.approx(
        0.3, rel=1e-9
    )


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_a_statistic_bears_the_noise_that_its_method_says_unless_it_is_given_a_share(make_config, noise) -> None:
    config = make_config(*OVERRIDES, f"method.noise={noise}")
    federation = Federation(config, MEMBERS)
    found = {phase.name: relative_noise(federation, phase) for phase in federation.phases}
    assert found == {"classify": 1.0, "image": noise, "text": noise}
    means = [item for item in plan(config).phases if item.phase.name != "classify"]
    assert [item.rounds for item in means] == [4, 4], "three releases and a spare one"
    more = make_config(*OVERRIDES, f"method.noise={noise}", "+privacy.budget_shares.image=0.25")
    assert shares(plan(more))["image"] == pytest.approx(0.25, rel=1e-9)
    by_noise = {name: part for name, part in shares(plan(more)).items() if name != "image"}
    assert by_noise["classify"] / by_noise["text"] == pytest.approx(2 * 6 / (3 / noise**2), rel=1e-9)


@cache
def composed(method: str) -> RunConfig:
    return freeze(compose_config([f"method={method}"]), Path("run"))


@settings(max_examples=50, deadline=None)
@given(
    share=st.floats(0.01, 0.99),
    rate=st.sampled_from([0.1, 0.5, 1.0]),
    rounds=st.integers(2, 12),
    phase=st.sampled_from([("fin", "translate"), ("fin", "classify"), ("ridge", "image_to_text")]),
)
def test_a_phase_gets_the_share_of_the_schedule_that_it_was_promised(
    share: float, rate: float, rounds: int, phase: tuple[str, str]
) -> None:
    method, named = phase
    config = composed(method)
    privacy = config.privacy.model_copy(update={"budget_shares": {named: share}, "sample_rate": rate})
    schedule = config.federation.model_copy(update={"rounds": rounds})
    federation = Federation(config.model_copy(update={"privacy": privacy, "federation": schedule}), MEMBERS)
    # A statistic is released once a round, over all records.
    equal = {
        p.name: p.rounds * (p.steps * rate**2 if isinstance(p, GradientPhase) else 1) / p.noise**2
        for p in federation.phases
        if not isinstance(p, HistogramPhase)
    }
    parts = {
        p.name: equal[p.name] * (p.noise / relative_noise(federation, p)) ** 2
        for p in federation.phases
        if not isinstance(p, HistogramPhase)
    }
    # Square root, square and a handful of sums: a few units in the last place of a double.
    assert parts[named] / math.fsum(parts.values()) == pytest.approx(share, rel=1e-12)
    # The common scale means the same for any shares: what is spent is that of each phase's own noise.
    assert math.fsum(parts.values()) == pytest.approx(math.fsum(equal.values()), rel=1e-12)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_the_noise_is_solved_for_both_phases_together_and_never_passes_epsilon(make_config, share: float) -> None:
    found = plan(make_config(f"+privacy.budget_shares.translate={share}", "privacy.epsilon=3"))
    assert shares(found)["translate"] == pytest.approx(share, rel=1e-9)
    assert 3 * (1 - 1e-3) <= found.epsilon <= 3


def test_more_share_is_less_noise_for_that_phase_and_more_for_the_other(make_config) -> None:
    less, more = (plan(make_config(f"+privacy.budget_shares.translate={share}")) for share in (0.2, 0.6))
    assert more.phase("translate").per_round.noise_multiplier < less.phase("translate").per_round.noise_multiplier
    assert more.phase("classify").per_round.noise_multiplier > less.phase("classify").per_round.noise_multiplier


def test_the_share_that_a_phase_has_anyway_changes_nothing(make_config) -> None:
    equal = plan(make_config())
    same = plan(make_config(f"+privacy.budget_shares.translate={shares(equal)['translate']!r}"))
    for one, other in zip(equal.phases, same.phases, strict=True):
        assert one.per_round.noise_multiplier == pytest.approx(other.per_round.noise_multiplier, rel=2e-3)


def test_a_site_that_takes_part_in_one_phase_only_spends_all_of_its_epsilon_there(make_config) -> None:
    found = plan(make_config("+privacy.budget_shares.translate=0.9", "privacy.epsilon=3"), MEMBERS[-1])
    assert [item.phase.name for item in found.phases] == ["classify"]
    assert 3 * (1 - 1e-3) <= found.epsilon <= 3


def test_the_evaluation_keeps_its_own_noise_relative_to_the_common_scale(make_config) -> None:
    config = make_config("evaluation=federated", "+privacy.budget_shares.translate=0.3", "evaluation.noise=0.7")
    federation = Federation(config, MEMBERS)
    assert [relative_noise(federation, p) for p in federation.phases if isinstance(p, HistogramPhase)] == [0.7]
    assert shares(plan(config))["translate"] == pytest.approx(0.3, rel=1e-9)


def test_a_plan_with_shares_reads_back_from_the_ledger_as_it_was_made(make_config) -> None:
    federation = Federation(make_config("+privacy.budget_shares.translate=0.3"), MEMBERS)
    made = plan_for(federation, MEMBERS[0])
    assert made is not None
    record = Plan(
        run="run",
        plan_hash=federation.plan_hash(),
        method="fin",
        phases=tuple(
            LedgerPhase(
                name=item.phase.name,
                mechanism=item.per_round,
                max_grad_norm=item.sensitivity,
                rounds=item.rounds,
                components=item.components,
            )
            for item in made.phases
        ),
        epsilon=made.epsilon,
        filter_epsilon=None,
        delta=made.delta,
        accountant="pld",
        versions={},
        rng=next(iter(RNG_CLASSES)),
    )
    assert plan_on_record(federation, MEMBERS[0], record) == made


def test_shares_are_part_of_what_an_owner_approves(make_config) -> None:
    approved = {Federation(make_config(*more), MEMBERS).plan_hash() for more in SHARED}
    assert len(approved) == len(SHARED)


SHARED = ((), ("+privacy.budget_shares.translate=0.3",), ("+privacy.budget_shares.translate=0.4",))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("+privacy.budget_shares.translation=0.3",), ("'translation'", "method=fin", "known: classify, translate")),
        (("+privacy.budget_shares.translate=0.3", "method=zero_fill"), ("'translate'", "known: classify")),
        (("+privacy.budget_shares.translate=1",), ("add up to 1", "nothing for classify", "less than 1")),
        (("+privacy.budget_shares={translate:0.3,classify:0.5}",), ("add up to 0.8", "expected 1", "gets the rest")),
        (("+privacy.budget_shares={translate:0.7,classify:0.7}",), ("add up to 1.4", "expected 1")),
        (
            ("evaluation=federated", "+privacy.budget_shares.evaluation=0.3"),
            ("'evaluation'", "evaluation.noise decides"),
        ),
    ],
)
def test_shares_that_cannot_be_are_refused_with_the_way_out(make_config, overrides, words) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.budget_shares") as error:
        Federation(make_config(*overrides), MEMBERS)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("share", ["0", "-0.1", "1.5", "inf", "nan"])
def test_a_share_out_of_range_is_named_with_its_key(make_config, share: str) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.budget_shares\.translate="):
        make_config(f"+privacy.budget_shares.translate={share}")


def test_shares_that_name_every_phase_and_add_up_to_one_are_fine(make_config) -> None:
    found = plan(make_config("+privacy.budget_shares={translate:0.3,classify:0.7}"))
    assert shares(found) == {"classify": pytest.approx(0.7), "translate": pytest.approx(0.3)}


def test_without_privacy_shares_mean_nothing_and_stop_nothing(make_config) -> None:
    Federation(make_config("privacy=off", "+privacy.budget_shares.nothing=0.3"), MEMBERS)
