"""One round's noised update at a site: reserve on the ledger, train each phase, take the difference.

The charge is on disk before a record is sampled or noise is drawn, so that a crash can only over-count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secure_fed.client.charging import Charges
from secure_fed.client.held_out import SiteRecords
from secure_fed.client.policy import Policy
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import PlannedPhase, SitePlan
from secure_fed.federation.public_set import PublicSet, context_of, made_up_context
from secure_fed.federation.track import Track
from secure_fed.federation.wire import Header
from secure_fed.ledger import Ledger
from secure_fed.methods.base import GradientPhase, HistogramPhase, Phase, PublicContext, StatisticPhase, in_context
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.dpsgd import dp_sgd, plain_sgd
from secure_fed.privacy.histograms import CellMap, HistogramPlan, exact_counts, noisy_counts
from secure_fed.privacy.noise import NoiseSource
from secure_fed.privacy.plan import GaussianPlan, SamplingPlan, StatisticPlan, TrainingOptions
from secure_fed.privacy.preflight import preflight_once, preflight_statistic_once
from secure_fed.privacy.statistics import clipped_sum, noisy_sum
from secure_fed.secagg import max_level

Update = dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int32]]
"""Slice name -> float32 [size], or int32 [size] where the slice holds counts."""


@dataclass(frozen=True)
class LocalTraining:
    """What a site needs to make its update in one round.

    `load` gives its records. It is called only after the gate: a refusal must not depend on them.
    `public` is the public set where the method works with one.
    """

    federation: Federation
    site: Site
    policy: Policy
    ledger: Ledger
    load: Callable[[], SiteRecords]
    noise: NoiseSource
    public: PublicSet | None = None

    @property
    def records(self) -> SiteRecords:
        """The site's records."""
        return self.load()

    def update(self, header: Header, track: Track) -> Update:
        """The round's slices, noised and charged; raises PolicyRefusal before anything is charged."""
        if not self.federation.phases_of(self.site):
            return {}  # it holds shares of the others' masks, and its ledger knows of no plan
        charges = Charges(self.federation, self.site, self.policy, self.ledger, self.noise.rng_class)
        phases = self.federation.phases_of(self.site, header.step)
        plan = charges.admit(header, phases, self._preflight)
        if not phases:
            return {}
        self.load()  # before the charge: records that cannot be read must not cost a round each time it is tried
        if plan is None:
            charges.off(header, phases)
        else:
            charges.reserve(header, [plan.phase(phase.name) for phase in phases], track.model_hash)
        model = track.load_into(self.federation.new_model())
        context = self._context(model)
        # The round's own training changes `model`: counts and sums stand on what the round began from.
        trains_only = all(isinstance(phase, GradientPhase) for phase in phases)
        began_from = model if trains_only else track.load_into(self.federation.new_model())
        update: Update = {}
        for phase in phases:
            planned = None if plan is None else plan.phase(phase.name)
            if isinstance(phase, GradientPhase):
                update |= self._descend(phase, model, context, header, planned)
            elif isinstance(phase, HistogramPhase):
                update |= self._count(phase, began_from, context, header, planned)
            else:
                update |= self._release_statistic(phase, began_from, context, header, planned)
        return update

    def _context(self, model: MultimodalModel) -> PublicContext | None:
        return context_of(self.federation, model, self.public)

    # -- training --------------------------------------------------------------------------------------

    def _descend(
        self,
        phase: GradientPhase,
        model: MultimodalModel,
        context: PublicContext | None,
        header: Header,
        planned: PlannedPhase | None,
    ) -> Update:
        loss, noise = in_context(phase.loss, context), self._stream(header, phase)
        components = tuple(name for name in phase.components if self.federation.contributes(self.site, name))
        before = {name: model.get_component(name) for name in components}
        options = self.federation.config.training
        training = TrainingOptions(
            optimizer=options.optimizer,
            learning_rate=phase.unclipped_learning_rate if planned is None else phase.learning_rate,
            momentum=options.momentum,
            max_physical_batch=options.max_physical_batch,
            back_end=options.back_end,
        )
        if planned is None:
            sampling = SamplingPlan(
                phase=phase.name,
                sample_rate=self.federation.config.privacy.sample_rate,
                steps=phase.unclipped_steps,
                declared_n=self.site.declared_n,
                unit=self.federation.config.privacy.unit,
                max_records_per_unit=self.federation.config.privacy.max_records_per_unit,
            )
            plain_sgd(model, components, loss, self.records.training, sampling, training, noise)
        else:
            assert isinstance(planned.release, GaussianPlan)  # noqa: S101 - so for every gradient phase
            dp_sgd(model, components, loss, self.records.training, planned.release, training, noise)
        return {name: model.get_component(name) - before[name] for name in components}

    def _release_statistic(
        self,
        phase: StatisticPhase,
        model: MultimodalModel,
        context: PublicContext | None,
        header: Header,
        planned: PlannedPhase | None,
    ) -> Update:
        model.eval()
        records = self.records.training
        rows = phase.map(model, records, context)
        if planned is None:
            total = clipped_sum(rows, records.units, phase.bound).numpy()
        else:
            assert isinstance(planned.release, StatisticPlan)  # noqa: S101 - so for every statistic
            total = noisy_sum(rows, records, planned.release, self._stream(header, phase))
        return {phase.slice_name: (total / (phase.bound * self.site.declared_n)).astype(np.float32)}

    def _count(
        self,
        phase: HistogramPhase,
        model: MultimodalModel,
        context: PublicContext | None,
        header: Header,
        planned: PlannedPhase | None,
    ) -> Update:
        records = self.records.held_out
        slices = [name for name in phase.slices if self.federation.contributes(self.site, name)]

        def cells_of(name: str) -> CellMap:
            return lambda batch: phase.cells(model, name, batch, context)

        cells = {name: cells_of(name) for name in slices}
        if planned is None:
            return dict(exact_counts(cells, phase.groups, phase.width, records))
        assert isinstance(planned.release, HistogramPlan)  # noqa: S101 - so for every histogram
        largest = max_level(self.federation.config.secagg.value_bits)
        noise = self._stream(header, phase)
        return dict(noisy_counts(cells, phase.groups, phase.width, records, planned.release, noise, largest))

    def _stream(self, header: Header, phase: Phase) -> NoiseSource:
        return self.noise.derive(f"{self.site.name}/{header.round}/{phase.name}")

    def _preflight(self, plan: SitePlan) -> None:
        """Raise PrivacyError, on made-up records, where a phase is not what its plan takes it for.

        Once in a process for what decides it: method, phase, model, unit and back end.
        """
        config, model = self.federation.config, self.federation.model
        noise = self.noise.derive(f"{self.site.name}/preflight")
        context = made_up_context(self.federation)
        for planned in plan.phases:
            phase, release = planned.phase, planned.release
            if isinstance(phase, GradientPhase) and isinstance(release, GaussianPlan):
                preflight_once(
                    config.method.model_dump_json(),
                    model,
                    planned.components,
                    in_context(phase.still_loss or phase.loss, context),
                    release,
                    noise,
                    back_end=config.training.back_end,
                )
            elif isinstance(phase, StatisticPhase) and isinstance(release, StatisticPlan):
                statistic = in_context(phase.map, context)
                preflight_statistic_once(config.method.model_dump_json(), model, statistic, release, noise)
