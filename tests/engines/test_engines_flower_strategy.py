"""Flower's strategies run over the opened means; those that need more than a mean are refused before they begin."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid, strategy
from flwr.serverapp.strategy import FedAvg, FedMedian, Strategy

from secure_fed.engines.flower_strategy import FlowerStep
from secure_fed.errors import ConfigError, RunAborted
from secure_fed.strategies import FedAvgConfig, FlowerConfig, State, Vector, step

SIZES = {"fusion": 3, "encoder.image": 5, "translator.image_to_text": 4}


def flower(target: str, **options: Any) -> FlowerStep:
    return FlowerStep(FlowerConfig(name="flower", target=target, options=options))


def own(target: type, **options: Any) -> FlowerStep:
    return flower(f"{__name__}.{target.__name__}", **options)


def builtin(name: str, **options: Any) -> FlowerStep:
    return flower(f"flwr.serverapp.strategy.{name}", **options)


def draw(seed: int, *names: str) -> dict[str, Vector]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=SIZES[name]).astype(np.float32) for name in names or SIZES}


def close(found: Vector, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


# -- Flower's own ---------------------------------------------------------------------------------------------


def test_flowers_fedavg_is_ours_with_rate_1_to_the_last_bit() -> None:
    theirs, config = builtin("FedAvg"), FedAvgConfig(name="fedavg", learning_rate=1.0)
    parameters = draw(0)
    for number in (1, 2, 3):
        means = draw(number)
        expected = {name: step(config, old, State(), means[name])[0] for name, old in parameters.items()}
        parameters = theirs.step(number, parameters, means, examples=400)
        for name, values in parameters.items():
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected[name])


def test_flowers_fedadagrad_remembers_its_second_moment_between_rounds() -> None:
    theirs, parameters = builtin("FedAdagrad", eta=0.1, tau=1e-3), draw(0)
    expected = {name: values.astype(np.float64) for name, values in parameters.items()}
    squares = {name: np.zeros(size) for name, size in SIZES.items()}
    for number in (1, 2, 3):
        means = draw(number)
        parameters = theirs.step(number, parameters, means, examples=400)
        for name, mean in means.items():
            squares[name] += mean.astype(np.float64) ** 2
            expected[name] += 0.1 * mean / (np.sqrt(squares[name]) + 1e-3)
            close(parameters[name], expected[name])


def test_flowers_fedyogi_follows_its_formula() -> None:
    theirs, parameters = builtin("FedYogi", eta=0.01, beta_1=0.9, beta_2=0.99, tau=1e-3), draw(0)
    expected = {name: values.astype(np.float64) for name, values in parameters.items()}
    first = {name: np.zeros(size) for name, size in SIZES.items()}
    second = {name: np.zeros(size) for name, size in SIZES.items()}
    for number in (1, 2, 3):
        means = draw(number)
        parameters = theirs.step(number, parameters, means, examples=400)
        for name, mean in means.items():
            square = mean.astype(np.float64) ** 2
            first[name] = 0.9 * first[name] + 0.1 * mean
            second[name] -= 0.01 * square * np.sign(second[name] - square)
            expected[name] += 0.01 * first[name] / (np.sqrt(second[name]) + 1e-3)
            close(parameters[name], expected[name])


def test_flowers_fedavgm_has_its_momentum_and_does_not_mix_up_components() -> None:
    """It remembers arrays by their place, so the order of the mapping must not reach it."""
    theirs, parameters = builtin("FedAvgM", server_learning_rate=1.0, server_momentum=0.5), draw(0)
    expected = {name: values.astype(np.float64) for name, values in parameters.items()}
    velocity = {name: np.zeros(size) for name, size in SIZES.items()}
    for number in (1, 2, 3):
        means = draw(number)
        parameters = theirs.step(number, dict(reversed(parameters.items())), means, examples=400)
        for name, mean in means.items():
            velocity[name] = 0.5 * velocity[name] + mean
            expected[name] += velocity[name]
            close(parameters[name], expected[name])


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"])
def test_every_strategy_that_needs_but_the_mean_passes_its_rehearsal(name: str) -> None:
    builtin(name).rehearse(draw(0))


def test_a_rehearsal_leaves_nothing_behind() -> None:
    rehearsed, fresh = builtin("FedAdagrad"), builtin("FedAdagrad")
    rehearsed.rehearse(draw(0))
    np.testing.assert_array_equal(
        rehearsed.step(1, draw(0), draw(1), 1)["fusion"], fresh.step(1, draw(0), draw(1), 1)["fusion"]
    )


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdam"])
def test_a_component_without_a_mean_keeps_its_value_whatever_momentum_it_had(name: str) -> None:
    options = {"server_momentum": 0.9} if name == "FedAvgM" else {}
    theirs, parameters = builtin(name, **options), draw(0)
    parameters = theirs.step(1, parameters, draw(1), examples=10)
    after = theirs.step(2, parameters, draw(2, "fusion"), examples=10)
    np.testing.assert_array_equal(after["encoder.image"], parameters["encoder.image"])
    assert (after["fusion"] != parameters["fusion"]).all()


def test_flower_does_not_tell_of_nodes_and_replies_that_there_are_not(caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("flwr").level
    with caplog.at_level(logging.INFO):
        builtin("FedAvg").step(1, draw(0), draw(1), examples=10)
    assert not caplog.records
    assert logging.getLogger("flwr").level == level


# -- refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Krum", "compares the sites' updates"),
        ("MultiKrum", "compares the sites' updates"),
        ("Bulyan", "compares the sites' updates"),
        ("FedMedian", "compares the sites' updates"),
        ("FedTrimmedAvg", "compares the sites' updates"),
        ("QFedAvg", "losses"),
        ("FedProx", "proximal term"),
        ("FedXgbBagging", "trees"),
        ("FedXgbCyclic", "trees"),
        ("DifferentialPrivacyServerSideFixedClipping", "privacy=dp"),
        ("DifferentialPrivacyServerSideAdaptiveClipping", "privacy=dp"),
        ("DifferentialPrivacyClientSideFixedClipping", "privacy=dp"),
        ("DifferentialPrivacyClientSideAdaptiveClipping", "privacy=dp"),
    ],
)
def test_a_strategy_that_needs_individual_replies_is_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} cannot do what it promises: .*{why}.*one reply"):
        builtin(name)


def test_every_strategy_that_flower_ships_is_either_run_or_refused() -> None:
    """A new one in a later Flower fails here until somebody has decided."""
    decided = {"FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi", "Result", "Strategy", "FedProx", "QFedAvg"}
    decided |= {"Krum", "MultiKrum", "Bulyan", "FedMedian", "FedTrimmedAvg", "FedXgbBagging", "FedXgbCyclic"}
    assert {name for name in strategy.__all__ if not name.startswith("DifferentialPrivacy")} == decided


class MyMedian(FedMedian):
    pass


def test_a_subclass_of_a_refused_strategy_is_refused() -> None:
    with pytest.raises(ConfigError, match="MyMedian cannot do what it promises"):
        own(MyMedian)


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("flwr.serverapp.strategy.FedNothing", "cannot be imported.*AttributeError"),
        ("no_such_module.Strategy", "cannot be imported.*PYTHONPATH"),
        ("flwr.serverapp.Grid", "no subclass of flwr.serverapp.strategy.Strategy"),
        ("flwr.serverapp.strategy.strategy_utils.sample_nodes", "no subclass"),
        ("flwr.serverapp.strategy.Strategy", "abstract"),
    ],
)
def test_a_target_that_is_no_strategy_is_refused(target: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        flower(target)


def test_options_that_the_strategy_does_not_know_or_that_would_have_no_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.options=.*learning_rate"):
        builtin("FedAvg", learning_rate=1.0)
    with pytest.raises(ConfigError, match=r"strategy\.options\.min_train_nodes would have no effect"):
        builtin("FedAvg", min_train_nodes=2)


# -- one's own ------------------------------------------------------------------------------------------------


class HalfWay(FedAvg):
    """A user's own: goes half of the way, and tells the fraction as an option."""

    def __init__(self, fraction: float = 0.5) -> None:
        super().__init__(weighted_by_key="records")
        self.fraction, self.seen = fraction, []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.before = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        (reply,) = replies
        self.seen.append((server_round, reply.content["metrics"]["records"], reply.metadata.src_node_id))
        arrays, metrics = super().aggregate_train(server_round, [reply])
        moved = {n: old + self.fraction * (arrays[n].numpy() - old) for n, old in self.before.items()}
        return ArrayRecord({name: Array(values) for name, values in moved.items()}), metrics


def test_a_strategy_of_ones_own_gets_what_flower_would_give_it() -> None:
    theirs, parameters, means = own(HalfWay, fraction=0.25), draw(0), draw(1, "fusion", "encoder.image")
    moved = theirs.step(4, parameters, means, examples=77)
    for name, mean in means.items():
        close(moved[name], parameters[name] + 0.25 * mean)
    assert theirs._strategy.seen == [(4, 77, 1)]


class Bare(Strategy):
    """Not even a FedAvg; what it does wrong is an option."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        from flwr.app import RecordDict

        if self.wrong == "waits":
            while len(list(grid.get_node_ids())) < 2:
                pass
        if self.wrong == "reaches":
            list(grid.send_and_receive([]))
        if self.wrong == "extra":
            config["lr"] = 0.1
        config["server-round"] = server_round
        if self.wrong == "other model":
            arrays = ArrayRecord({name: Array(array.numpy() + 1) for name, array in arrays.items()})
        nodes = {"nobody": [], "twice": [1, 1]}.get(self.wrong, grid.get_node_ids())
        return [Message(RecordDict({"m": arrays, "c": config}), node, "train") for node in nodes]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        (reply,) = replies
        arrays = {name: array.numpy() for name, array in reply.content["arrays"].items()}
        match self.wrong:
            case "nothing":
                return None, None
            case "raises":
                raise KeyError("train_loss")
            case "fewer":
                arrays.pop("fusion")
            case "renamed":
                arrays["head"] = arrays.pop("fusion")
            case "reshaped":
                arrays["fusion"] = arrays["fusion"].reshape(1, -1)
            case "bytes":
                arrays["fusion"] = arrays["fusion"].astype(np.uint8)
            case "nan":
                arrays["fusion"] = arrays["fusion"] * np.float32(np.nan)
            case "too large":
                arrays["fusion"] = np.full(SIZES["fusion"], 1e39)
        return ArrayRecord({name: Array(values) for name, values in arrays.items()}), None

    def configure_evaluate(self, *_: Any) -> Iterable[Message]:
        raise AssertionError("sites evaluate nothing")

    def aggregate_evaluate(self, *_: Any) -> MetricRecord | None:
        raise AssertionError("sites evaluate nothing")

    def summary(self) -> None:
        pass


def test_a_strategy_that_derives_from_the_abstract_base_alone_is_run() -> None:
    parameters, means = draw(0), draw(1)
    for name, values in own(Bare).step(1, parameters, means, 5).items():
        np.testing.assert_array_equal(values, parameters[name] + means[name])


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ("waits", "waits for more than the one node"),
        ("reaches", "reaches for sites itself"),
        ("extra", "sends sites lr, but sites train by the signed configuration alone"),
        ("other model", "sends sites another model"),
        ("nobody", "for 0 replies"),
        ("twice", "for 2 replies"),
        ("nothing", "gave no parameters"),
        ("raises", "raised KeyError: 'train_loss'"),
        ("fewer", "other components or sizes"),
        ("renamed", "other components or sizes"),
        ("reshaped", "other components or sizes"),
        ("bytes", "fusion as uint8"),
        ("nan", "fusion values that are not finite"),
        ("too large", "fusion values that are not finite"),
    ],
)
def test_a_strategy_that_does_something_else_stops_the_run_and_is_named(wrong: str, what: str) -> None:
    with pytest.raises(RunAborted, match=rf"server round 7: strategy\.target=.*Bare.*{what}"):
        own(Bare, wrong=wrong).step(7, draw(0), draw(1), 5)
    with pytest.raises(ConfigError, match=what):
        own(Bare, wrong=wrong).rehearse(draw(0))


def test_means_that_do_not_belong_to_the_model_are_refused() -> None:
    with pytest.raises(RunAborted, match="stranger"):
        builtin("FedAvg").step(1, draw(0), {"stranger": np.ones(3, np.float32)}, 5)
    with pytest.raises(RunAborted, match="means of fusion"):
        builtin("FedAvg").step(1, draw(0), {"fusion": np.ones(1, np.float32)}, 5)
    with pytest.raises(RunAborted, match="0 examples"):
        builtin("FedAvg").step(1, draw(0), draw(1), 0)
