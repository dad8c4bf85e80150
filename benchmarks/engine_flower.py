"""Peers of benchmarks/engine.py: Flower's own FedAvg and sites that do nothing but descend, under Ray or in our engine.

The gradient steps are those of the bare loop; messages, scheduling and averaging are Flower's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from secure_fed.config import compose_config, freeze
from secure_fed.engines.in_process import run_in_process
from secure_fed.engines.simulated_sites import simulate
from secure_fed.engines.simulation import run_simulation
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import SitePlan, plan_for
from secure_fed.methods.base import GradientPhase, in_context
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.dpsgd import dp_sgd
from secure_fed.privacy.noise import OsNoise
from secure_fed.privacy.plan import GaussianPlan, TrainingOptions

Vectors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Work:
    """The gradient steps of a configuration and nothing else: what every engine of the benchmark does."""

    federation: Federation
    batches: Mapping[str, Batch]
    plans: Mapping[str, SitePlan]

    @classmethod
    def of(cls, overrides: Iterable[str]) -> Work:
        """Data generated, split and prepared, and every site's plan."""
        config = freeze(compose_config(list(overrides)), Path("unused"))
        simulated = simulate(config)
        federation = Federation(config, simulated.members)
        batches = {name: federation.model.prepare(records) for name, records in simulated.records.items()}
        plans = {site.name: plan for site in federation.sites if (plan := plan_for(federation, site)) is not None}
        return cls(federation, batches, plans)

    @cached_property
    def training(self) -> TrainingOptions:
        """But for the learning rate."""
        options = self.federation.config.training
        return TrainingOptions(
            optimizer=options.optimizer,
            learning_rate=1.0,
            momentum=options.momentum,
            max_physical_batch=options.max_physical_batch,
            back_end=options.back_end,
        )

    def descend(self, model: MultimodalModel, site: Site, step: int) -> tuple[str, ...]:
        """One site's round on `model`, in place; returns the components that it trained."""
        trained: list[str] = []
        for phase in self.federation.phases_of(site, step):
            assert isinstance(phase, GradientPhase)
            release = self.plans[site.name].phase(phase.name).release
            assert isinstance(release, GaussianPlan)
            components = tuple(name for name in phase.components if self.federation.contributes(site, name))
            options = self.training.model_copy(update={"learning_rate": phase.learning_rate})
            dp_sgd(
                model, components, in_context(phase.loss, None), self.batches[site.name], release, options, OsNoise()
            )
            trained += components
        return tuple(dict.fromkeys(trained))


def bare_loop(work: Work) -> Iterator[float]:
    """Sites one after the other and a weighted mean, in plain torch; yields the time at the end of each round."""
    torch.set_num_threads(1)
    federation = work.federation
    model, weights = federation.new_model(), federation.weights
    whole: Vectors = {name: model.get_component(name) for name in model.components()}
    for step in range(federation.config.federation.rounds):
        sums: Vectors = {}
        totals: dict[str, float] = {}
        for site in federation.sites:
            for name, values in whole.items():
                model.set_component(name, values)
            for name in work.descend(model, site, step):
                weight = weights[site.name]
                update = np.float32(weight) * (model.get_component(name) - whole[name])
                sums[name] = sums[name] + update if name in sums else update
                totals[name] = totals.get(name, 0.0) + weight
        whole |= {name: whole[name] + total / np.float32(totals[name]) for name, total in sums.items()}
        yield time.perf_counter()


class TimedFedAvg(FedAvg):
    """Flower's FedAvg, which also notes when each round ended."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.ends: list[float] = []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As Flower's."""
        result = super().aggregate_train(server_round, replies)
        self.ends.append(time.perf_counter())
        return result


def flower_app(overrides: tuple[str, ...], workers: int | None) -> list[float]:
    """The same steps as a Flower app, the time at the end of each round.

    workers: Ray's, under Flower's simulation; None: in this process, through the Grid of `engines/in_process.py`.
    """
    for name in ("flwr", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    work = Work.of(overrides)
    strategy = TimedFedAvg()
    server, client = ServerApp(), ClientApp()

    @server.main()
    def serve(grid: Grid, _context: Context) -> None:
        model = work.federation.new_model()
        arrays = ArrayRecord({name: Array(model.get_component(name)) for name in model.components()})
        strategy.start(grid, arrays, num_rounds=work.federation.config.federation.rounds)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        return answer(overrides, message, context)

    sites = work.federation.config.federation.sites
    if workers is None:
        run_in_process(server, client, sites)
    else:
        run_simulation(server, client, sites, workers)
    return strategy.ends


@lru_cache(maxsize=1)
def worker_state(overrides: tuple[str, ...]) -> tuple[Work, MultimodalModel]:
    """Once in each worker process."""
    torch.set_num_threads(1)
    work = Work.of(overrides)
    return work, work.federation.new_model()


def answer(overrides: tuple[str, ...], message: Message, context: Context) -> Message:
    """A site's round: the model in, the gradient steps, the model out."""
    work, model = worker_state(overrides)
    site = work.federation.sites[int(context.node_config["partition-id"])]
    config = message.content["config"]
    assert isinstance(config, ConfigRecord)
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    for name, array in arrays.items():
        model.set_component(name, array.numpy())
    work.descend(model, site, int(str(config["server-round"])) - 1)
    updated = ArrayRecord({name: Array(model.get_component(name)) for name in model.components()})
    metrics = MetricRecord({"num-examples": site.declared_n})
    return Message(RecordDict({"arrays": updated, "metrics": metrics}), reply_to=message)
