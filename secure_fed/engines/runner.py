"""A run from configuration to run folder: check everything, found the homes, train, write the results.

Nothing is written before the configuration, the data and every site's plan have been found to work.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from flwr.app import Context
from flwr.serverapp import Grid

from secure_fed.accounting import epsilon_by_round
from secure_fed.config import dump_config, load_config
from secure_fed.engines.apps import forget_folders, make_client_app, make_server_app
from secure_fed.engines.in_process import run_in_process
from secure_fed.engines.simulated_homes import coordinator_key, found_homes, plan_of, refuses_unseen
from secure_fed.engines.simulated_sites import SimulatedSites, simulate, with_public_set
from secure_fed.engines.summary import summarise
from secure_fed.engines.transport import GridTransport
from secure_fed.errors import BudgetExhausted, ConfigError, PolicyRefusal, SecureFedError
from secure_fed.federation.config import RunConfig
from secure_fed.federation.evaluation import PHASE
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.masking import secagg_params
from secure_fed.federation.plan import SitePlan
from secure_fed.federation.public_set import PublicSet, context_of
from secure_fed.federation.track import Track, initial_track, solve_statistics
from secure_fed.files import write_whole
from secure_fed.identity import SigningKey
from secure_fed.ledger import ANCHORS
from secure_fed.privacy.histograms import HistogramPlan
from secure_fed.report import write_epsilon_report, write_model_card, write_report
from secure_fed.server.assessment import Assessment, assess
from secure_fed.server.federated_auroc import NoiseOf
from secure_fed.server.members import RosterFile
from secure_fed.server.public_set import save_public_set
from secure_fed.server.round import Coordinator, Place, RoundResult
from secure_fed.server.training import (
    Held,
    Progress,
    ServerStep,
    Trainer,
    load_checkpoint,
    save_checkpoint,
    save_model,
)
from secure_fed.strategies import FlowerConfig


class Observer(Protocol):
    """Who watches a run: a live table, or nobody."""

    def begin(self, config: RunConfig, done: int, notes: Sequence[str] = ()) -> None:
        """The run is about to train; `done` steps of the schedule are already behind it.

        `notes`: what was made of public weights, a sentence each.
        """

    def round(self, line: dict[str, Any]) -> None:
        """A round ended with this line of metrics."""


class Silent:
    """An observer that shows nothing."""

    def begin(self, config: RunConfig, done: int, notes: Sequence[str] = ()) -> None:
        """Nothing."""

    def round(self, line: dict[str, Any]) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Prepared:
    """A run that has been found to work. `plans`: without those of sites whose budget does not admit it.

    `config` names the public set, where the method needs one.
    """

    config: RunConfig
    simulated: SimulatedSites
    federation: Federation
    plans: dict[str, SitePlan | None]
    public: PublicSet | None = None


def prepare(config: RunConfig, run: str | None = None) -> Prepared:
    """Load data, derive the federation and find every site's plan; raises before anything is written.

    A kept home's plan is solved given its ledger's past, or is the one that the ledger holds for `run`.
    """
    simulated = simulate(config)
    config, public = with_public_set(config, simulated)
    federation = federation_of(config, simulated.members)
    return Prepared(config, simulated, federation, _plans(federation, run), public)


def federation_of(config: RunConfig, members: Sequence[Site]) -> Federation:
    """The federation of these members, found to work but for its data and plans; raises what `prepare` raises of it."""
    federation = Federation(config, members)
    if config.secagg.mode == "on":
        secagg_params(federation)
    if config.federation.compliance and (weak := config.weaknesses()):
        raise PolicyRefusal(
            f"{' and '.join(weak)} is refused under federation.compliance=true, which no switch turns into a "
            "warning; run without it"
        )
    _unverified_step(federation)
    return federation


def _plans(federation: Federation, run: str | None) -> dict[str, SitePlan | None]:
    """Every site's plan, but for sites whose budget or policy does not admit the run: the others go on without them.

    Raises BudgetExhausted with every reason where too few others are left, PolicyRefusal where a site would stay out
    that has no ledger to show for it.
    """
    plans: dict[str, SitePlan | None] = {}
    refused: list[str] = []
    for site in federation.sites:
        try:
            plans[site.name] = plan_of(federation, site, run)
        except PolicyRefusal as error:
            if not isinstance(error, BudgetExhausted) and refuses_unseen(federation, site):
                raise
            refused.append(str(error))
    if refused and len(plans) < federation.min_cohort:
        raise BudgetExhausted(
            f"{len(plans)} of {len(federation.sites)} sites have budget and policy for this run, and "
            f"{federation.min_cohort} are needed: {' | '.join(refused)}"
        )
    return plans


def start(config: RunConfig, observer: Observer | None = None) -> Path:
    """Train in a new run folder and return it; raises ConfigError where the folder is in use."""
    folder = Path(config.run_dir).resolve()
    _refuse_what_stands(folder)
    prepared = prepare(config)
    found(folder, prepared)
    return train(folder, prepared, observer or Silent())


def _refuse_what_stands(folder: Path) -> None:
    """Raise ConfigError unless `folder` is empty or can be made."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir={folder} is a file; give a folder that does not exist yet")
    if folder.is_dir() and any(folder.iterdir()):
        resumable = (folder / "config.yaml").is_file() and not (folder / "summary.json").is_file()
        way_on = f", or continue that run with `secure-fed run resume={folder}`" if resumable else ""
        raise ConfigError(
            f"run_dir={folder} exists and is not empty: a run never overwrites another; choose another run_dir{way_on}"
        )


def resume(folder: Path, observer: Observer | None = None) -> Path:
    """Go on from a run's last checkpoint; the round that was interrupted is charged again."""
    folder = folder.resolve()
    if (folder / "sites").is_dir() and not (folder / "config.yaml").exists():
        raise ConfigError(
            f"{folder} was interrupted before its run began, and nothing was charged: delete it and start again"
        )
    config = load_config(folder)
    if (folder / "summary.json").exists():
        if (folder / "report.html").exists():
            raise ConfigError(f"the run {folder} is finished: nothing to resume; its report is report.html")
        return _describe(folder)
    prepared = prepare(config, load_checkpoint(folder)[1].run)
    _lay_out_public_set(folder, prepared)
    return train(folder, prepared, observer or Silent(), resumed=True)


def found(folder: Path, prepared: Prepared) -> None:
    """Make the run folder: resolved configuration, homes, roster, data notes and the first checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_dir={folder} cannot be made: {error.strerror}; give a folder that can") from error
    found_homes(folder, prepared.federation)
    _lay_out_public_set(folder, prepared)
    (folder / "data_notes.json").write_text(
        json.dumps(dict(prepared.simulated.notes), indent=2) + "\n", encoding="utf-8"
    )
    save_checkpoint(folder, Held(initial_track(prepared.federation)), Progress(run=secrets.token_hex(16)))
    # The configuration comes last: with it the folder is a run that can be resumed.
    write_whole(folder / "config.yaml", dump_config(prepared.config))


def _lay_out_public_set(folder: Path, prepared: Prepared) -> None:
    if prepared.public is not None:
        save_public_set(folder, prepared.public)


def train(folder: Path, prepared: Prepared, observer: Observer, resumed: bool = False) -> Path:
    """Run the schedule from the folder's checkpoint under the configured engine and write the results."""
    config = prepared.config
    outcome: list[Trained] = []
    failure: list[BaseException] = []

    def serve(grid: Grid, _context: Context) -> None:
        try:
            outcome.append(serve_schedule(folder, prepared, grid, observer, resumed))
        except BaseException as error:
            # The simulation swallows what a ServerApp raises: keep it for the caller.
            failure.append(error)
            raise

    forget_folders()
    try:
        _run_engine(config, folder, serve)
    except Exception:
        if not failure:
            raise
    if failure:
        raise failure[0]
    if not outcome:
        raise SecureFedError(f"the engine {config.engine.name} ended without a result; the run can be resumed")
    return finish(folder, prepared, outcome[0])


@dataclass(frozen=True)
class Trained:
    """The end of a schedule: the model, what it does on the public hold-out, and what it took."""

    track: Track
    assessment: Assessment
    progress: Progress


def serve_schedule(
    folder: Path, prepared: Prepared, grid: Grid, observer: Observer | None = None, resumed: bool = False
) -> Trained:
    """The coordinator's whole work over a grid, from the folder's checkpoint on."""
    torch.set_num_threads(1)
    observer = observer or Silent()
    config, federation = prepared.config, prepared.federation
    held, progress = load_checkpoint(folder)
    if resumed:
        # The interrupted round may have been reserved at any site, and its sessions begun: no number is used again.
        progress.round += 1
        progress.attempt += 2 * config.secagg.max_attempts + 1
        progress.resumed += 1
        _drop_metrics_from(folder, progress.step)
        save_checkpoint(folder, held, progress)
    holdout = federation.new_model().prepare(prepared.simulated.holdout).require_readable()
    transport = GridTransport(grid, [site.name for site in federation.sites], config.engine.timeout_s)
    key = SigningKey.load(coordinator_key(folder))
    members = RosterFile(folder / "roster.json", config)
    coordinator = Coordinator(*members(), transport, key, progress.attempt, prepared.public)
    observer.begin(config, progress.step, _notes_of(federation))
    trainer = Trainer(
        coordinator,
        holdout,
        folder,
        _epsilon_by_step(prepared),
        observer.round,
        members,
        _count_noise(progress.run),
        _unverified_step(federation),
        prepared.public,
    )
    held = trainer.run(held, progress)
    anchors = coordinator.finish(Place(progress.run, progress.step, progress.round))
    lines = [anchor.to_line().decode() + "\n" for anchor in sorted(anchors, key=lambda anchor: anchor.site)]
    write_whole(folder / ANCHORS, "".join(lines))
    model = held.track.load_into(federation.new_model())
    context = context_of(federation, model, prepared.public)
    return Trained(held.track, assess(federation, model, prepared.simulated.holdout, context), progress)


def _notes_of(federation: Federation) -> list[str]:
    return [f"{name}: {note}" for name, notes in federation.model.notes().items() for note in notes]


def _unverified_step(federation: Federation) -> ServerStep | None:
    """The step of a Flower strategy, where the configuration names one; raises ConfigError where it cannot serve."""
    config = federation.config.strategy
    if not isinstance(config, FlowerConfig):
        return None
    from secure_fed.engines.flower_strategy import FlowerStep

    flower = FlowerStep(config)
    flower.rehearse(initial_track(federation).parameters)

    def step(at: int, track: Track, result: RoundResult) -> Track:
        means = {name: mean for name, mean in result.means.items() if name in track.parameters}
        # Flower counts its rounds from 1; a burned round is none of them.
        parameters = flower.step(at + 1, track.parameters, means, result.survivors)
        return solve_statistics(federation, at, Track(parameters), result.means)

    return step


def finish(folder: Path, prepared: Prepared, trained: Trained) -> Path:
    """Write model, summary, model card and report of a run that is done."""
    save_model(folder / "model.safetensors", trained.track)
    summary = summarise(
        folder,
        prepared.federation,
        _plans(prepared.federation, trained.progress.run),
        trained.assessment,
        trained.progress,
        trained.track.load_into(prepared.federation.new_model()),
        prepared.simulated,
    )
    write_whole(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return _describe(folder)


def _describe(folder: Path) -> Path:
    """Model card and reports of a run whose summary is written; the run's page comes last."""
    write_epsilon_report([folder], folder)
    write_model_card(folder)
    write_report(folder)
    return folder


def _run_engine(config: RunConfig, folder: Path, serve: Callable[[Grid, Context], None]) -> None:
    def folder_of(_context: Context) -> Path:
        return folder

    server_app, client_app = make_server_app(serve), make_client_app(folder_of)
    if config.engine.name == "in_process":
        run_in_process(server_app, client_app, config.federation.members)
    else:
        from secure_fed.engines.simulation import run_simulation

        run_simulation(server_app, client_app, config.federation.members, config.engine.workers)


def _epsilon_by_step(prepared: Prepared) -> Callable[[int], float | None]:
    """Largest epsilon of any site after a number of scheduled steps, from the public plans."""
    if prepared.config.privacy.mode == "off":
        return lambda _steps: None
    largest = [0.0] * (prepared.federation.total_steps + 1)
    curves: dict[tuple[tuple[object, ...], ...], tuple[float, ...]] = {}
    for name, plan in prepared.plans.items():
        assert plan is not None  # noqa: S101 - privacy is on
        site = prepared.federation.site(name)
        rounds = [
            [plan.phase(phase.name).per_round for phase in prepared.federation.phases_of(site, step)]
            for step in range(prepared.federation.total_steps)
        ]
        key = tuple(tuple(round_) for round_ in rounds)
        if key not in curves:
            curves[key] = epsilon_by_round(rounds, plan.delta)
        for step, value in enumerate(curves[key], start=1):
            largest[step] = max(largest[step], value)
    return lambda steps: largest[steps]


def _count_noise(run: str) -> NoiseOf:
    """How noisy a site's counts are, from its plan for the run."""

    def deviation(federation: Federation, name: str) -> float:
        plan = plan_of(federation, federation.site(name), run)
        if plan is None:
            return 0.0
        release = plan.phase(PHASE).release
        assert isinstance(release, HistogramPlan)  # noqa: S101 - so for an evaluation
        return release.deviation

    return deviation


def _drop_metrics_from(folder: Path, step: int) -> None:
    """Forget lines of metrics that the checkpoint does not know: they will be written again."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the torn last line of the interruption
    write_whole(path, "".join(f"{line}\n" for line in kept))
