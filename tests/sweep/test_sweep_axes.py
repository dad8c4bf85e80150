"""What is swept, over which values, and who has the last word on a key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_fed.config import compose_config, validate_as
from secure_fed.errors import ConfigError
from secure_fed.sweep.axes import Axis, Choice, Interval, Space, last_of_each_key, parsed, space_of, split_arguments
from secure_fed.sweep.config import SweepConfig

PRESET = {
    "name": "test",
    "dir": "sweeps",
    "base": ["experiment=small", "method=fin"],
    "axes": {"privacy.epsilon": "1,3,8", "seed": "range(0,3)"},
    "bundles": {},
    "references": {},
    "objective": "auroc_macro",
    "tuning": None,
    "repeat_select": {"mean": 10.0, "shape": 1.0},
    "search": None,
    "page": {"x": "privacy.epsilon", "log_x": True, "series": None, "panels": None},
    "confidence": 0.95,
}
SEARCH = {"trials": 4, "seeds": [5, 6], "sampler": "tpe", "sampler_seed": 0}
SIZES = {"4 small": ["federation.sites=4", "data.patients=400"], "8": ["federation.sites=8", "data.patients=800"]}


def space(*overrides: str, **changes: object) -> Space:
    return space_of(validate_as(SweepConfig, {**PRESET, **changes}), overrides)


def labels(found: Space) -> dict[str, list[object]]:
    return {axis.name: [choice.label for choice in axis.choices] for axis in found.axes}


def test_a_preset_alone_sweeps_its_axes_and_fixes_its_base() -> None:
    found = space()
    assert labels(found) == {"privacy.epsilon": [1, 3, 8], "seed": [0, 1, 2]}
    assert found.fixed == ("experiment=small", "method=fin")
    assert found.axes[0].choices[1] == Choice(3, ("privacy.epsilon=3",))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("privacy.epsilon=0.5,2", {"privacy.epsilon": [0.5, 2], "seed": [0, 1, 2]}),
        ("privacy.epsilon=2", {"privacy.epsilon": [2], "seed": [0, 1, 2]}),
        ("~seed", {"privacy.epsilon": [1, 3, 8]}),
        ("seed=choice(7,9)", {"privacy.epsilon": [1, 3, 8], "seed": [7, 9]}),
        ("method=fin,ridge", {"privacy.epsilon": [1, 3, 8], "seed": [0, 1, 2], "method": ["fin", "ridge"]}),
    ],
)
def test_the_command_line_has_the_last_word_on_an_axis(override, expected) -> None:
    assert labels(space(override)) == expected


def test_the_command_line_has_the_last_word_on_the_base_and_an_axis_takes_its_place() -> None:
    assert space("experiment=physionet2012").fixed == ("method=fin", "experiment=physionet2012")
    assert space("method=fin,ridge").fixed == ("experiment=small",)
    assert space(bundles={"what": {"a": ["method=fin"], "b": ["method=ridge"]}}).fixed == ("experiment=small",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('federation.ownership="5:1:4","2:2:6"', ["5:1:4", "2:2:6"]),
        ("federation.ownership={image:4,image+text:6},all", ["{image:4,image+text:6}", "all"]),
        ('privacy=dp,"off"', ["dp", "off"]),
        ("method.classify.learning_rate=1,2.5", [1, 2.5]),
        ("model.image.weights=null,a.pt", [None, "a.pt"]),
        ("insecure_reproducible=true,false", [True, False]),
    ],
)
def test_labels_keep_their_types_and_texts_lose_their_quotes(text, expected) -> None:
    name = text.partition("=")[0]
    found = labels(space(text))[name]
    assert found == expected
    assert [type(label) for label in found] == [type(label) for label in expected]


def test_an_axis_whose_key_is_added_needs_its_plus_once_only() -> None:
    axes = {"+privacy.budget_shares.translate": "0.1,0.5"}
    page = {**PRESET["page"], "x": "privacy.budget_shares.translate"}
    for override in ("privacy.budget_shares.translate=0.2,0.3", "+privacy.budget_shares.translate=0.2,0.3"):
        found = space(override, axes=axes, page=page)
        assert [choice.overrides for choice in found.axes[0].choices] == [
            ("+privacy.budget_shares.translate=0.2",),
            ("+privacy.budget_shares.translate=0.3",),
        ]


def test_a_bundle_is_one_axis_and_its_labels_can_be_chosen_among() -> None:
    assert labels(space(bundles={"size": SIZES}))["size"] == ["4 small", 8]
    chosen = space('size="4 small"', bundles={"size": SIZES})
    assert chosen.axes[-1] == Axis("size", (Choice("4 small", tuple(SIZES["4 small"])),))
    with pytest.raises(ConfigError, match=r"size=16 is no value of this axis; it has 4 small, 8"):
        space("size=16", bundles={"size": SIZES})


@pytest.mark.parametrize(
    ("overrides", "changes", "words"),
    [
        (["seed=range(0,0)"], {}, ("seed=range(0,0)", "axis is empty")),
        (["seed="], {}, ("seed=", "axis is empty")),
        (["seed=choice()"], {}, ("choice()", "axis is empty")),
        ([], {"axes": {"seed": ""}}, ("seed=", "axis is empty")),
        ([], {"bundles": {"size": {}}}, ("sweep.bundles.size", "axis is empty")),
        (["seed=0,1,0"], {}, ("seed has the value 0 twice",)),
        (["federation.sites=6"], {"bundles": {"size": SIZES}}, ("conflicts with the axis size", "size=...")),
        (["federation.sites=6,7"], {"bundles": {"size": SIZES}}, ("set by two axes",)),
        ([], {"bundles": {"size": {"a": ["seed=4"]}}}, ("seed is set by two axes, seed and size",)),
        ([], {"bundles": {"size": {"a": ["federation.sites=4,5"]}}}, ("size.a", "is swept")),
        ([], {"base": ["method=fin,ridge"]}, ("sweep.base", "sweep.axes")),
        (["~size"], {"bundles": {"size": SIZES}}, ("~size", "size=...")),
        (["seed=glob(*)"], {}, ("glob()", "list the options")),
        (["privacy.epsilon=interval(1,2)"], {}, ("no end of values", "sweep/search=tpe")),
        (["privacy.epsilon=interval(2,1)"], {"search": SEARCH}, ("empty", "ascending")),
        (["privacy.epsilon=tag(log,interval(0,1))"], {"search": SEARCH}, ("above 0", "logarithmic")),
        (["seed=1"], {"search": SEARCH}, ("seed=1 beside sweep/search", "sweep.search.seeds")),
        (["size=interval(1,2)"], {"bundles": {"size": SIZES}, "search": SEARCH}, ("bundle", "4 small, 8")),
    ],
)
def test_what_cannot_be_swept_is_refused_with_the_way_out(overrides, changes, words) -> None:
    with pytest.raises(ConfigError) as error:
        space(*overrides, **changes)
    for word in words:
        assert word in str(error.value)


def test_a_search_takes_intervals_and_its_own_seeds() -> None:
    found = space(
        "privacy.max_grad_norm=tag(log,interval(0.5,8))",
        "federation.rounds=int(interval(6,24))",
        search=SEARCH,
    )
    assert labels(found) == {"privacy.epsilon": [1, 3, 8], "seed": [5, 6]}
    clip, rounds = found.intervals
    assert clip == Interval("privacy.max_grad_norm", "privacy.max_grad_norm", 0.5, 8.0, log=True, integer=False)
    assert (rounds.low, rounds.high, rounds.log, rounds.integer) == (6, 24, False, True)
    assert rounds.choice(7) == Choice(7, ("federation.rounds=7",))


@pytest.mark.parametrize("value", [0.4, 8.1, True, "2", None])
def test_a_number_outside_its_interval_is_refused(value) -> None:
    interval = Interval("privacy.max_grad_norm", "privacy.max_grad_norm", 0.5, 8.0, log=True, integer=False)
    with pytest.raises(ConfigError, match=r"privacy\.max_grad_norm=.*within \[0\.5, 8\]"):
        interval.choice(value)


@given(st.floats(0.5, 8.0))
def test_a_number_of_an_interval_is_read_back_as_it_was_drawn(value: float) -> None:
    interval = Interval("privacy.max_grad_norm", "privacy.max_grad_norm", 0.5, 8.0, log=False, integer=False)
    assert parsed(interval.choice(value).overrides[0]).value() == value


def test_true_is_no_one_among_the_values_of_an_axis() -> None:
    with pytest.raises(ConfigError, match="no value of this axis"):
        space("seed=0,1").axes[1].choice(True)


def test_arguments_are_told_apart_by_their_keys() -> None:
    own = ["sweep=clipping", "sweep.dir=x", "~sweep.references.single_site", "sweep/search=tpe", "launcher.workers=2"]
    runs = ["privacy.epsilon=1,2", "+privacy.budget_shares.translate=0.3", "method=fin"]
    assert split_arguments([*runs[:1], *own, *runs[1:]]) == (own, runs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resume=x"], ("resume=x", "resume=DIR")),
        (["run_dir=x"], ("run_dir=x", "sweep.dir=")),
        (["name=x"], ("name=x", "sweep.name=")),
        (["federation.homes=homes"], ("federation.homes=homes", "one another's budget")),
        (["federation.homes=a,b"], ("federation.homes=a,b", "one another's budget")),
        (["federation.lifetime_epsilon=3"], ("federation.lifetime_epsilon=3", "leave it out")),
        (["hydra.job.chdir=true"], ("hydra.job.chdir=true", "leave it out")),
        (["seed=1", "seed=2"], ("seed is given twice", "seed=1", "seed=2")),
        (["seed"], ("'seed' cannot be read", "key=value")),
        (["--multirun"], ("'--multirun' cannot be read",)),
    ],
)
def test_arguments_that_no_cell_may_have_are_refused_with_the_reason(arguments, words) -> None:
    with pytest.raises(ConfigError) as error:
        split_arguments(arguments)
    for word in words:
        assert word in str(error.value)


def test_of_two_overrides_of_one_key_the_later_one_stays() -> None:
    assert last_of_each_key(["method=fin", "seed=1", "method=ridge"]) == ("method=ridge", "seed=1")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sweep=clippings"], ("sweep=clippings is unknown", "did you mean clipping", "budget_split")),
        (["sweep.confidense=0.9"], ("did you mean sweep.confidence", "secure-fed sweep --cfg job")),
        (["launcher=slurm"], ("launcher=slurm is unknown", "known: processes, ray")),
    ],
)
def test_an_unknown_key_or_option_of_a_sweep_is_answered_with_the_nearest(overrides, words) -> None:
    with pytest.raises(ConfigError) as error:
        compose_config(overrides, "sweep")
    for word in words:
        assert word in str(error.value)


def test_a_runs_configuration_knows_no_sweep_and_says_who_does() -> None:
    with pytest.raises(ConfigError, match="`secure-fed sweep`"):
        compose_config(["sweep=clipping"])
