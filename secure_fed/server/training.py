"""The schedule at the coordinator: rounds, the server step, evaluation, and a checkpoint after each.

Resumable: everything that the next round needs is in the checkpoint, replaced in one step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from secure_fed.errors import BudgetExhausted, DataError, RunAborted
from secure_fed.federation.facts import Federation
from secure_fed.federation.wire import Header
from secure_fed.methods.base import StatisticPhase
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.server.evaluation import ALL_PRESENT, Scores, evaluate
from secure_fed.server.round import Coordinator, RoundBurned, RoundResult
from secure_fed.strategies import State, Vector, step


@dataclass
class Progress:
    """Where a run stands between two rounds."""

    run: str
    step: int = 0
    round: int = 0
    burned: int = 0
    skipped: int = 0
    resumed: int = 0
    wall_s: float = 0.0
    states: dict[str, State] = field(default_factory=dict)


class Trainer:
    """Runs the schedule from wherever the checkpoint stands.

    `epsilon_max` tells the largest epsilon of any site after a number of scheduled steps, from the public plans;
    `report` gets each round's line of metrics.
    """

    def __init__(
        self,
        federation: Federation,
        coordinator: Coordinator,
        holdout: Batch,
        folder: Path,
        epsilon_max: Callable[[int], float | None],
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self.federation = federation
        self.coordinator = coordinator
        self.holdout = holdout
        self.folder = folder
        self.epsilon_max = epsilon_max
        self.report = report

    def run(self, model: MultimodalModel, progress: Progress) -> dict[str, Scores]:
        """Train to the end of the schedule; returns the final scores by missing modality."""
        config = self.federation.config
        total = config.federation.rounds
        scores: dict[str, Scores] = {}
        while progress.step < total:
            began = time.monotonic()
            try:
                result = self._round(model, progress)
            except BudgetExhausted:
                # Interruptions have used up the spare rounds of this phase: what is left of the schedule goes on.
                progress.step += 1
                progress.round += 1
                progress.skipped += 1
                save_checkpoint(self.folder, model, progress)
                continue
            self._apply(result, model, progress)
            last = progress.step == total - 1
            if last or progress.step % config.evaluation.every == 0:
                scores = evaluate(self.federation.method, model, self.holdout, self.federation.schema.labels)
            else:
                scores = {}
            progress.wall_s += time.monotonic() - began
            line = self._line(result, scores, progress, time.monotonic() - began)
            progress.step += 1
            progress.round += 1
            append_metrics(self.folder, line)
            save_checkpoint(self.folder, model, progress)
            self.report(line)
        return scores or evaluate(self.federation.method, model, self.holdout, self.federation.schema.labels)

    def _round(self, model: MultimodalModel, progress: Progress) -> RoundResult:
        """One scheduled step; a burned round is repeated under a new number, as often as was budgeted."""
        spare = self.federation.config.federation.spare_rounds
        for _ in range(spare + 1):
            try:
                return self.coordinator.run_round(Header(progress.run, progress.step, progress.round, 0), model)
            except RoundBurned as burned:
                progress.round += 1
                progress.burned += 1
                code = burned.code
                # A run that is killed now must not come back to a round number that sites have released.
                save_checkpoint(self.folder, model, progress)
        raise RunAborted(
            f"step {progress.step} was burned {spare + 1} times while its sums were opened ({code}); the "
            f"{spare} spare rounds of the budget are used up. The ledgers stand; a new run needs a new budget"
        )

    def _apply(self, result: RoundResult, model: MultimodalModel, progress: Progress) -> None:
        statistics = {
            phase.slice_name: phase
            for phase in self.federation.phases_at(progress.step)
            if isinstance(phase, StatisticPhase)
        }
        for name, mean in result.means.items():
            if name in statistics:
                statistics[name].solve(model, mean.astype(np.float64))
            else:
                state = progress.states.get(name, State())
                parameters, progress.states[name] = step(
                    self.federation.config.strategy, model.get_component(name), state, mean
                )
                model.set_component(name, parameters)

    def _line(self, result: RoundResult, scores: dict[str, Scores], progress: Progress, wall: float) -> dict[str, Any]:
        line: dict[str, Any] = {
            "step": progress.step,
            "round": result.header.round,
            "attempts": result.attempts,
            "phases": [phase.name for phase in self.federation.phases_at(progress.step)],
            "participants": result.participants,
            "survivors": result.survivors,
            "contributors": {name: list(sites) for name, sites in result.contributors.items()},
            "kept": list(result.kept),
            "bytes_up": result.traffic.bytes_up,
            "bytes_down": result.traffic.bytes_down,
            "wall_s": round(wall, 4),
        }
        epsilon = self.epsilon_max(progress.step + 1)
        if epsilon is not None:
            line["epsilon_max"] = epsilon
        if scores:
            line["auroc_macro"] = scores[ALL_PRESENT].auroc_macro
            line["auroc_macro_missing"] = {n: s.auroc_macro for n, s in scores.items() if n != ALL_PRESENT}
        return line


# -- files -------------------------------------------------------------------------------------------------


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Append a round's line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=False, allow_nan=False) + "\n")


def save_model(path: Path, model: MultimodalModel) -> None:
    """The model's components as safetensors, replaced in one step."""
    _save_tensors(path, {name: model.get_component(name) for name in model.components()})


def _save_tensors(path: Path, tensors: dict[str, Vector], metadata: dict[str, str] | None = None) -> None:
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata=metadata)
    temporary.replace(path)


def load_model(path: Path, model: MultimodalModel) -> None:
    """Read components into `model`; raises DataError where the file is missing or of another model."""
    try:
        tensors = load_file(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: the run has no model yet") from error
    if {name: len(values) for name, values in tensors.items()} != model.component_sizes():
        raise DataError(f"{path} holds another model than the run's config.yaml describes")
    for name, values in tensors.items():
        model.set_component(name, values)


def save_checkpoint(folder: Path, model: MultimodalModel, progress: Progress) -> None:
    """Model, strategy state and place in the schedule, in one file that is replaced in one step."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    tensors = {f"model/{name}": model.get_component(name) for name in model.components()}
    for name, state in progress.states.items():
        tensors |= {f"state/{name}/{moment}": values for moment, values in state.moments.items()}
    facts = {key: value for key, value in vars(progress).items() if key != "states"}
    facts["state_steps"] = {name: state.steps for name, state in progress.states.items()}
    _save_tensors(checkpoint / "last.safetensors", tensors, {"progress": json.dumps(facts)})


def load_checkpoint(folder: Path, model: MultimodalModel) -> Progress:
    """Put the last checkpoint into `model` and return where the run stood; raises DataError if there is none."""
    from safetensors import safe_open

    path = folder / "checkpoint" / "last.safetensors"
    if not path.is_file():
        raise DataError(f"{folder} has no checkpoint: the run ended before it began; start it again in a new folder")
    with safe_open(path, framework="numpy") as file:
        facts = json.loads(file.metadata()["progress"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    steps = facts.pop("state_steps")
    progress = Progress(**facts)
    for name in model.components():
        model.set_component(name, tensors[f"model/{name}"])
    for name, count in steps.items():
        prefix = f"state/{name}/"
        moments = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
        progress.states[name] = State(count, moments)
    return progress
