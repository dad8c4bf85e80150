"""Any strategy of flwr.serverapp as the server's step over the securely summed means.

It gets what Flower would give it: a round to configure, and one reply that holds the mean of all contributors.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from flwr.supercore.run import Run

from secure_fed.engines.task_identity import ensure_identity
from secure_fed.errors import ConfigError, RunAborted
from secure_fed.strategies import FlowerConfig, Vector

_SAMPLING = ("fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
_PROMISES: tuple[tuple[tuple[type[Strategy], ...], str], ...] = (
    (
        (MultiKrum, Bulyan, FedMedian, FedTrimmedAvg),  # Krum is a MultiKrum
        "it compares the sites' updates with each other, and secure aggregation opens nothing but their sum",
    ),
    ((QFedAvg,), "it weights sites by their losses, and a site tells nobody its loss"),
    ((FedProx,), "it sends sites a proximal term, and sites train by the signed configuration alone"),
    ((FedXgbBagging, FedXgbCyclic), "it merges the sites' trees, and what is summed here are vectors"),
    (
        (
            DifferentialPrivacyClientSideAdaptiveClipping,
            DifferentialPrivacyClientSideFixedClipping,
            DifferentialPrivacyServerSideAdaptiveClipping,
            DifferentialPrivacyServerSideFixedClipping,
        ),
        "it clips each site's update, which only the site sees here; privacy=dp has sites clip and noise themselves",
    ),
)
"""Strategies that need more than the mean, and why they could not do what they promise."""


class FlowerStep:
    """A strategy's server step. What the strategy remembers between rounds lives in here and in no checkpoint.

    Raises ConfigError where the target cannot be imported, is no Strategy, refuses its options, or needs more than
    the mean of all contributors.
    """

    def __init__(self, config: FlowerConfig) -> None:
        self._config = config
        self._strategy = _make(config)

    def rehearse(self, parameters: Mapping[str, Vector]) -> None:
        """One step of a second instance on these parameters: a strategy that fails shall not cost a round's budget.

        Raises ConfigError with what `step` would have raised.
        """
        means = {name: np.full_like(values, 1e-3) for name, values in parameters.items()}
        try:
            FlowerStep(self._config).step(1, parameters, means, 1)
        except RunAborted as error:
            raise ConfigError(str(error)) from error

    def step(
        self, round: int, parameters: Mapping[str, Vector], means: Mapping[str, Vector], examples: int
    ) -> dict[str, Vector]:
        """New parameters of every component after server round `round`, 1 for the first as Flower counts.

        parameters: every component, float32 [P]; means: the weighted mean update of each component that was opened,
        float32 [P]; examples: the contributors' declared records, at least 1, the reply's weight. A component without
        a mean (below its floor, or not trained in this round) is in the reply with the value it had, and keeps that
        value whatever the strategy makes of it.

        Raises RunAborted where the strategy raises, sends sites more than the model and the round's number, or gives
        other components, sizes or types, or values that are not finite.
        """
        sizes = {name: parameters[name].shape if name in parameters else () for name in means}
        if {name: mean.shape for name, mean in means.items()} != sizes or examples < 1:
            self._fail(round, f"cannot step on means of {', '.join(sorted(means))} over {examples} examples")
        trained = {name: old + means[name] if name in means else old for name, old in parameters.items()}
        metrics = MetricRecord({getattr(self._strategy, "weighted_by_key", "num-examples"): examples})
        ensure_identity()
        with _quiet():
            try:
                request = self._request(round, parameters)
                content = RecordDict({"arrays": _record(trained), "metrics": metrics})
                result, _ = self._strategy.aggregate_train(round, [Message(content, reply_to=request)])
            except RunAborted:
                raise
            except Exception as error:  # noqa: BLE001 - a strategy may raise anything, and the run must say which did
                self._fail(round, f"raised {type(error).__name__}: {error}", error)
        moved = self._moved(round, result, parameters)
        return {name: moved[name] if name in means else old for name, old in parameters.items()}

    def _request(self, round: int, parameters: Mapping[str, Vector]) -> Message:
        """What the strategy asks the one node for; the protocol has asked the sites already, for just the model."""
        record = _record(parameters)
        model = _contents(record)
        messages = list(self._strategy.configure_train(round, record, ConfigRecord(), _OneNode()))
        if len(messages) != 1:
            self._fail(round, f"asks the one node that stands for all contributors for {len(messages)} replies, not 1")
        content = messages[0].content
        extra = {key for values in content.config_records.values() for key in values} - {"server-round"}
        if extra:
            self._fail(
                round, f"sends sites {', '.join(sorted(extra))}, but sites train by the signed configuration alone"
            )
        if any(_contents(sent) != model for sent in content.array_records.values()):
            self._fail(round, "sends sites another model than the one whose updates are summed")
        return messages[0]

    def _moved(self, round: int, result: ArrayRecord | None, parameters: Mapping[str, Vector]) -> dict[str, Vector]:
        if result is None:
            self._fail(round, "gave no parameters")
        arrays = {name: array.numpy() for name, array in result.items()}
        if {name: values.shape for name, values in arrays.items()} != {n: v.shape for n, v in parameters.items()}:
            self._fail(round, f"gave other components or sizes than the model's: {', '.join(sorted(arrays))}")
        moved: dict[str, Vector] = {}
        for name, values in arrays.items():
            if not np.issubdtype(values.dtype, np.floating):
                self._fail(round, f"gave {name} as {values.dtype}, not as floating point")
            with np.errstate(over="ignore"):
                moved[name] = values.astype(np.float32)
            if not np.isfinite(moved[name]).all():
                self._fail(round, f"gave {name} values that are not finite in float32")
        return moved

    def _fail(self, round: int, what: str, cause: Exception | None = None) -> NoReturn:
        raise RunAborted(
            f"server round {round}: strategy.target={self._config.target} {what}. The model stays as it was; "
            "choose another strategy, or mend this one"
        ) from cause


class _OneNode(Grid):
    """The one node that stands for all contributors; nothing is sent to it."""

    _PATIENCE = 5
    """Flower asks twice a round; a strategy that asks more often waits for nodes that will never come."""

    def __init__(self) -> None:
        self._asked = 0

    def set_run(self, run: Run) -> None:
        """Refuse: there is no run of Flower's behind this node."""
        self._refuse()

    @property
    def run(self) -> Run:
        """Refuse, as `set_run` does."""
        self._refuse()

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message, as Flower's constructor makes it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Node 1. Raises RuntimeError where it is asked again and again."""
        self._asked += 1
        if self._asked > self._PATIENCE:
            raise RuntimeError("it waits for more than the one node that stands for all contributors")
        return [1]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: sites are reached by the secure aggregation alone."""
        self._refuse()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse, as `push_messages` does."""
        self._refuse()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Refuse, as `push_messages` does."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RuntimeError("it reaches for sites itself, and they are reached by the secure aggregation alone")


def _make(config: FlowerConfig) -> Strategy:
    target = _imported(config.target)
    for refused, why in _PROMISES:
        if issubclass(target, refused):
            raise ConfigError(
                f"strategy.target={config.target} cannot do what it promises: {why}. It would get one reply, the mean"
            )
    sampling = sorted(set(config.options) & set(_SAMPLING))
    if sampling:
        raise ConfigError(
            f"strategy.options.{sampling[0]} would have no effect: who takes part is decided by the secure aggregation "
            "(federation.*); leave it out"
        )
    options: dict[str, Any] = dict(config.options)
    try:
        strategy = target(**options)
    except Exception as error:
        raise ConfigError(
            f"strategy.options={options} do not make a {config.target}: {type(error).__name__}: {error}"
        ) from error
    if isinstance(strategy, FedAvg):
        # Otherwise it waits for ever for a second node.
        strategy.min_train_nodes = strategy.min_available_nodes = 1
    return strategy


def _imported(path: str) -> type[Strategy]:
    module, _, name = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(
            f"strategy.target={path} cannot be imported ({type(error).__name__}: {error}): give the dotted path of a "
            "class, such as flwr.serverapp.strategy.FedAdagrad; your own must be installed or on PYTHONPATH"
        ) from error
    if not (isinstance(target, type) and issubclass(target, Strategy)):
        raise ConfigError(f"strategy.target={path} is no subclass of flwr.serverapp.strategy.Strategy")
    return target


def _record(vectors: Mapping[str, Vector]) -> ArrayRecord:
    """By name, because some strategies remember arrays by their place."""
    return ArrayRecord({name: Array(vectors[name]) for name in sorted(vectors)})


def _contents(record: ArrayRecord) -> dict[str, bytes]:
    return {name: array.data for name, array in record.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Flower tells of one sampled node and one reply each round, which would mislead whoever reads the log."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
