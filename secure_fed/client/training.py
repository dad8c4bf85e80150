"""One round's noised update at a site: reserve on the ledger, train each phase, take the difference.

The charge is on disk before a record is sampled or noise is drawn, so that a crash can only over-count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secure_fed.client.policy import Policy
from secure_fed.errors import BudgetExhausted
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import PlannedPhase, SitePlan, plan_for
from secure_fed.federation.track import Track
from secure_fed.federation.wire import Header
from secure_fed.ledger import Ledger, Off, Plan, Reserve
from secure_fed.ledger import PlannedPhase as LedgerPhase
from secure_fed.methods.base import GradientPhase, Phase, StatisticPhase, owns
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.dpsgd import dp_sgd, plain_sgd
from secure_fed.privacy.noise import NoiseSource
from secure_fed.privacy.plan import GaussianPlan, SamplingPlan, StatisticPlan, TrainingOptions
from secure_fed.privacy.preflight import preflight
from secure_fed.privacy.statistics import clipped_sum, noisy_sum
from secure_fed.versions import versions

_PREFLIGHT_SEED = 2012

Update = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class LocalTraining:
    """What a site needs to make its update in one round."""

    federation: Federation
    site: Site
    policy: Policy
    ledger: Ledger
    records: Batch
    noise: NoiseSource

    def update(self, header: Header, track: Track) -> Update:
        """Slice name -> float32 [size], noised and charged; raises PolicyRefusal before anything is charged."""
        plan = plan_for(self.federation, self.site)
        phases = self.federation.phases_of(self.site, header.step)
        if plan is not None:
            self._ensure_planned(header.run, plan)
            self._check_budget(header.run, plan, phases)
        model = track.load_into(self.federation.new_model())
        update: Update = {}
        for phase in phases:
            if plan is None:
                self.ledger.append(Off(run=header.run, step=header.step, round=header.round, phase=phase.name))
                update |= self._train(phase, model, header, None)
            else:
                planned = plan.phase(phase.name)
                self._reserve(header, planned, track.model_hash)
                update |= self._train(phase, model, header, planned)
        return update

    # -- training --------------------------------------------------------------------------------------

    def _train(self, phase: Phase, model: MultimodalModel, header: Header, planned: PlannedPhase | None) -> Update:
        noise = self.noise.derive(f"{self.site.name}/{header.round}/{phase.name}")
        if isinstance(phase, StatisticPhase):
            return self._release_statistic(phase, model, noise, planned)
        return self._descend(phase, model, noise, planned)

    def _descend(
        self, phase: GradientPhase, model: MultimodalModel, noise: NoiseSource, planned: PlannedPhase | None
    ) -> Update:
        components = tuple(name for name in phase.components if owns(name, self.site.owned))
        before = {name: model.get_component(name) for name in components}
        options = self.federation.config.training
        training = TrainingOptions(
            optimizer=options.optimizer,
            learning_rate=phase.unclipped_learning_rate if planned is None else phase.learning_rate,
            momentum=options.momentum,
            max_physical_batch=options.max_physical_batch,
        )
        if planned is None:
            sampling = SamplingPlan(
                phase=phase.name,
                sample_rate=self.federation.config.privacy.sample_rate,
                steps=phase.unclipped_steps,
                declared_n=self.site.declared_n,
            )
            plain_sgd(model, components, phase.loss, self.records, sampling, training, noise)
        else:
            assert isinstance(planned.release, GaussianPlan)  # noqa: S101 - so for every gradient phase
            dp_sgd(model, components, phase.loss, self.records, planned.release, training, noise)
        return {name: model.get_component(name) - before[name] for name in components}

    def _release_statistic(
        self, phase: StatisticPhase, model: MultimodalModel, noise: NoiseSource, planned: PlannedPhase | None
    ) -> Update:
        model.eval()
        rows = phase.map(model, self.records)
        if planned is None:
            total = clipped_sum(rows, phase.bound).numpy()
        else:
            assert isinstance(planned.release, StatisticPlan)  # noqa: S101 - so for every statistic
            total = noisy_sum(rows, planned.release, noise)
        return {phase.slice_name: (total / (phase.bound * self.site.declared_n)).astype(np.float32)}

    # -- ledger ----------------------------------------------------------------------------------------

    def _ensure_planned(self, run: str, plan: SitePlan) -> None:
        """Put the run's whole plan on the ledger once; raises BudgetExhausted where it passes the policy."""
        planned_runs = {record.body.run for record in self.ledger.records if isinstance(record.body, Plan)}
        if planned_runs - {run}:
            # Composing plans that were chosen after seeing results needs a privacy filter: refuse until there is one.
            raise BudgetExhausted(
                f"{self.site.name}: this home's budget belongs to run {min(planned_runs - {run})}, and run {run} asks "
                "for more; a further run needs a home of its own"
            )
        if planned_runs:
            return
        if plan.epsilon > self.policy.epsilon:
            raise BudgetExhausted(
                f"{self.site.name}: the run plans epsilon {plan.epsilon:.3f}, the policy allows {self.policy.epsilon:g}"
            )
        self._preflight(plan)
        phases = tuple(
            LedgerPhase(
                name=planned.phase.name,
                mechanism=planned.per_round,
                max_grad_norm=planned.sensitivity,
                rounds=planned.rounds,
                components=planned.components,
            )
            for planned in plan.phases
        )
        insecure = self.federation.config.insecure_reproducible
        self.ledger.append(
            Plan(
                run=run,
                method=self.federation.config.method.name,
                phases=phases,
                epsilon=plan.epsilon,
                delta=plan.delta,
                accountant="pld",
                versions=versions(),
                rng="insecure_reproducible" if insecure else "os",
            )
        )

    def _preflight(self, plan: SitePlan) -> None:
        """Raise PrivacyError, on made-up records, where a phase is not what DP-SGD takes it for."""
        model = self.federation.new_model()
        rng = np.random.default_rng(_PREFLIGHT_SEED)
        # A model fresh from its seed has zero layers, behind which no gradient would be seen.
        for name, size in model.component_sizes().items():
            model.set_component(name, rng.normal(0, 0.1, size).astype(np.float32))
        for planned in plan.phases:
            if isinstance(planned.phase, GradientPhase):
                loss = planned.phase.still_loss or planned.phase.loss
                preflight(model, planned.components, loss, planned.sensitivity, _PREFLIGHT_SEED)

    def _check_budget(self, run: str, plan: SitePlan, phases: tuple[Phase, ...]) -> None:
        """Raise BudgetExhausted before a gradient is taken where a phase has used all its planned rounds."""
        for phase in phases:
            reserved = sum(
                isinstance(record.body, Reserve) and (record.body.run, record.body.phase) == (run, phase.name)
                for record in self.ledger.records
            )
            allowed = plan.phase(phase.name).rounds
            if reserved >= allowed:
                raise BudgetExhausted(
                    f"{self.site.name}: phase {phase.name} has used the {allowed} rounds that were budgeted for "
                    f"it, spare ones included; the run may go on without this site"
                )

    def _reserve(self, header: Header, planned: PlannedPhase, model_hash: bytes) -> None:
        sampled = isinstance(planned.release, GaussianPlan)
        self.ledger.append(
            Reserve(
                run=header.run,
                step=header.step,
                round=header.round,
                attempt=header.attempt,
                phase=planned.phase.name,
                mechanism=planned.per_round,
                max_grad_norm=planned.sensitivity,
                sampler="poisson" if sampled else "none",
                expected_batch=planned.per_round.sample_rate * self.site.declared_n,
                unit=self.policy.unit,
                declared_n=self.policy.declared_n,
                relation=self.policy.relation,
                components=planned.components,
                model_hash=model_hash.hex(),
                artefact="update" if sampled else "statistic",
            )
        )
