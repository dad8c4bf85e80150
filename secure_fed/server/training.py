"""The schedule at the coordinator: rounds, the server step, evaluation, and a checkpoint after each.

Resumable: everything that the next round needs is in the checkpoint, replaced in one step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

from secure_fed.errors import BudgetExhausted, DataError, RunAborted, SecAggError
from secure_fed.federation.announcement import Outcome
from secure_fed.federation.facts import Federation
from secure_fed.federation.public_set import PublicSet, context_of
from secure_fed.federation.track import Track, follow
from secure_fed.federation.wire import Array, part
from secure_fed.identity import Roster
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.server.announced import Opened
from secure_fed.server.evaluation import ALL_PRESENT, Scores, evaluate
from secure_fed.server.federated_auroc import NoiseOf, score_counts
from secure_fed.server.round import Coordinator, Place, RoundBurned, RoundResult


@dataclass
class Progress:
    """Where a run stands between two rounds. `attempt` is the next unused session number."""

    run: str
    step: int = 0
    round: int = 0
    attempt: int = 0
    burned: int = 0
    skipped: int = 0
    resumed: int = 0
    wall_s: float = 0.0


@dataclass(frozen=True)
class Held:
    """The model's track, and what the sites need to follow to it: the last opened round (None at the beginning)."""

    track: Track
    opened: Opened | None = None


ServerStep = Callable[[int, Track, RoundResult], Track]
"""(step, track, result) -> the track after it, for strategies that sites cannot recompute."""


class Trainer:
    """Runs the schedule from wherever the checkpoint stands.

    `epsilon_max` tells the largest epsilon of any site after a number of scheduled steps, from the public plans;
    `report` gets each round's line of metrics; `members` gives the federation and roster in force, before each round;
    `noise_of` tells how noisy a site's counts are; `unverified_step` stands in for the strategy where it is Flower's;
    `public` is the set that the method imputes from, where it needs one.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        holdout: Batch,
        folder: Path,
        epsilon_max: Callable[[int], float | None],
        report: Callable[[dict[str, Any]], None],
        members: Callable[[], tuple[Federation, Roster]],
        noise_of: NoiseOf,
        unverified_step: ServerStep | None = None,
        public: PublicSet | None = None,
    ) -> None:
        self.coordinator = coordinator
        self.holdout = holdout
        self.folder = folder
        self.epsilon_max = epsilon_max
        self.report = report
        self.members = members
        self.noise_of = noise_of
        self.unverified_step = unverified_step
        self.public = public

    @property
    def federation(self) -> Federation:
        """The run's public facts under the roster in force."""
        return self.coordinator.federation

    def run(self, held: Held, progress: Progress) -> Held:
        """Train to the end of the schedule; returns what is held then."""
        config = self.federation.config
        model = held.track.load_into(self.federation.new_model())
        while progress.step < self.federation.total_steps:
            began = time.monotonic()
            try:
                result = self._round(held, progress)
            except BudgetExhausted:
                # Interruptions have used up the spare rounds of this phase: what is left of the schedule goes on.
                progress.step += 1
                progress.round += 1
                progress.skipped += 1
                self._save(held, progress)
                continue
            held = self._apply(result, held, progress)
            held.track.load_into(model)
            trained = self.federation.trains_at(progress.step)
            last = progress.step == config.federation.rounds - 1
            due = trained and (last or progress.step % config.evaluation.every == 0)
            scores = self._scores(model) if due else {}
            progress.wall_s += time.monotonic() - began
            line = self._line(result, scores, progress, time.monotonic() - began)
            progress.step += 1
            progress.round += 1
            append_metrics(self.folder, line)
            self._save(held, progress)
            self.report(line)
        if progress.skipped == self.federation.total_steps:
            raise RunAborted(
                "not one round was trained: too few sites had budget left for any of them. The ledgers stand; "
                "`secure-fed site budget` shows what holds each site's"
            )
        return held

    def _scores(self, model: MultimodalModel) -> dict[str, Scores]:
        context = context_of(self.federation, model, self.public)
        return evaluate(self.federation.method, model, self.holdout, self.federation.schema.labels, context)

    def _round(self, held: Held, progress: Progress) -> RoundResult:
        """One scheduled step; a burned round is repeated under a new number, as often as was budgeted."""
        spare = self.federation.config.federation.spare_rounds
        for _ in range(spare + 1):
            self._take_roster()
            place = Place(progress.run, progress.step, progress.round)
            following = None
            if progress.step + 1 < self.federation.total_steps:
                following = Place(progress.run, progress.step + 1, progress.round + 1)
            try:
                return self.coordinator.run_round(place, held.track, held.opened, following)
            except RoundBurned as burned:
                progress.round += 1
                progress.burned += 1
                code = burned.code
                # A run that is killed now must not come back to a round number that sites have released.
                self._save(held, progress)
        raise RunAborted(
            f"step {progress.step} was burned {spare + 1} times while its sums were opened ({code}); the "
            f"{spare} spare rounds of the budget are used up. The ledgers stand; a new run needs a new budget"
        )

    def _take_roster(self) -> None:
        federation, roster = self.members()
        if roster.digest() != self.coordinator.roster.digest():
            self.coordinator.change_members(federation, roster)

    def _apply(self, result: RoundResult, held: Held, progress: Progress) -> Held:
        """The server's step, the same that every site takes where it can be recomputed."""
        if not self.federation.trains_at(progress.step):
            track = held.track
        elif self.unverified_step is not None:
            track = self.unverified_step(progress.step, held.track, result)
        else:
            track = self._followed(result, held, progress)
        return Held(track, result.opened)

    def _followed(self, result: RoundResult, held: Held, progress: Progress) -> Track:
        try:
            return follow(self.federation, progress.step, held.track, result.means)
        except SecAggError as error:
            raise RunAborted(
                f"the server step of round {progress.round} gives a model that is not finite ({error}); the checkpoint "
                "before it stands. Begin a new run with a lower strategy.learning_rate"
            ) from error

    def _save(self, held: Held, progress: Progress) -> None:
        progress.attempt = self.coordinator.attempt
        save_checkpoint(self.folder, held, progress)

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
            "exchanges": result.traffic.exchanges,
            "bytes_up": result.traffic.bytes_up,
            "bytes_down": result.traffic.bytes_down,
            "wall_s": round(wall, 4),
        }
        epsilon = self.epsilon_max(progress.step + 1)
        if epsilon is not None:
            line["epsilon_max"] = epsilon
        if scores and scores[ALL_PRESENT].auroc_per_label:  # else the hold-out has no label of both classes
            line["auroc_macro"] = scores[ALL_PRESENT].auroc_macro
            line["auroc_macro_missing"] = {n: s.auroc_macro for n, s in scores.items() if n != ALL_PRESENT}
        evaluation = score_counts(self.federation, result, self.noise_of)
        if evaluation:
            line["evaluation"] = evaluation
        return line


# -- files -------------------------------------------------------------------------------------------------


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Append a round's line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=False, allow_nan=False) + "\n")


def save_model(path: Path, track: Track) -> None:
    """The model's components as safetensors, replaced in one step."""
    _save_tensors(path, dict(track.parameters))


def _save_tensors(path: Path, tensors: dict[str, Array], metadata: dict[str, str] | None = None) -> None:
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


def save_checkpoint(folder: Path, held: Held, progress: Progress) -> None:
    """Track, last opened round and place in the schedule, in one file that is replaced in one step."""
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    tensors = held.track.to_arrays("track")
    facts: dict[str, Any] = {"progress": vars(progress), "steps": held.track.steps, "outcome": None}
    if held.opened is not None:
        tensors |= held.opened.before.to_arrays("before")
        tensors |= {f"sum/{name}": packed for name, packed in held.opened.sums.items()}
        facts["outcome"] = held.opened.outcome.model_dump(mode="json")
    _save_tensors(checkpoint / "last.safetensors", tensors, {"facts": json.dumps(facts)})


def load_checkpoint(folder: Path) -> tuple[Held, Progress]:
    """What `save_checkpoint` wrote last; raises DataError if there is none."""
    from safetensors import safe_open

    path = folder / "checkpoint" / "last.safetensors"
    if not path.is_file():
        raise DataError(f"{folder} has no checkpoint: the run ended before it began; start it again in a new folder")
    with safe_open(path, framework="numpy") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    opened = None
    if facts["outcome"] is not None:
        outcome = Outcome.model_validate(facts["outcome"])
        opened = Opened(outcome, part(tensors, "sum"), Track.from_arrays(tensors, "before", outcome.steps))
    return Held(Track.from_arrays(tensors, "track", facts["steps"]), opened), Progress(**facts["progress"])
