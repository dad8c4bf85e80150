"""One round's noised update at a site: reserve on the ledger, train each phase, take the difference.

The charge is on disk before a record is sampled or noise is drawn, so that a crash can only over-count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from secure_fed.client.charging import Charges
from secure_fed.client.held_out import SiteRecords
from secure_fed.client.policy import Policy
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import PlannedPhase, SitePlan
from secure_fed.federation.track import Track
from secure_fed.federation.wire import Header
from secure_fed.ledger import Ledger
from secure_fed.methods.base import GradientPhase, HistogramPhase, Phase, StatisticPhase, owns
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.dpsgd import dp_sgd, plain_sgd
from secure_fed.privacy.histograms import HistogramPlan, exact_counts, noisy_counts
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
    """

    federation: Federation
    site: Site
    policy: Policy
    ledger: Ledger
    load: Callable[[], SiteRecords]
    noise: NoiseSource

    @property
    def records(self) -> SiteRecords:
        """The site's records."""
        return self.load()

    def update(self, header: Header, track: Track) -> Update:
        """The round's slices, noised and charged; raises PolicyRefusal before anything is charged."""
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
        update: Update = {}
        for phase in phases:
            planned = None if plan is None else plan.phase(phase.name)
            if isinstance(phase, HistogramPhase):
                # The round's own training has changed `model` by now: what is evaluated is what the round began from.
                began_from = track.load_into(self.federation.new_model())
                update |= self._count(phase, began_from, header, planned)
            else:
                update |= self._train(phase, model, header, planned)
        return update

    # -- training --------------------------------------------------------------------------------------

    def _train(
        self,
        phase: GradientPhase | StatisticPhase,
        model: MultimodalModel,
        header: Header,
        planned: PlannedPhase | None,
    ) -> Update:
        noise = self._stream(header, phase)
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
            plain_sgd(model, components, phase.loss, self.records.training, sampling, training, noise)
        else:
            assert isinstance(planned.release, GaussianPlan)  # noqa: S101 - so for every gradient phase
            dp_sgd(model, components, phase.loss, self.records.training, planned.release, training, noise)
        return {name: model.get_component(name) - before[name] for name in components}

    def _release_statistic(
        self, phase: StatisticPhase, model: MultimodalModel, noise: NoiseSource, planned: PlannedPhase | None
    ) -> Update:
        model.eval()
        records = self.records.training
        rows = phase.map(model, records)
        if planned is None:
            total = clipped_sum(rows, records.units, phase.bound).numpy()
        else:
            assert isinstance(planned.release, StatisticPlan)  # noqa: S101 - so for every statistic
            total = noisy_sum(rows, records, planned.release, noise)
        return {phase.slice_name: (total / (phase.bound * self.site.declared_n)).astype(np.float32)}

    def _count(
        self, phase: HistogramPhase, model: MultimodalModel, header: Header, planned: PlannedPhase | None
    ) -> Update:
        records = self.records.held_out
        slices = [name for name in phase.slices if owns(name, self.site.owned)]
        cells = {name: partial(phase.cells, model, name) for name in slices}
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
        config = self.federation.config
        noise = self.noise.derive(f"{self.site.name}/preflight")
        for planned in plan.phases:
            phase, release = planned.phase, planned.release
            if isinstance(phase, GradientPhase) and isinstance(release, GaussianPlan):
                loss = phase.still_loss or phase.loss
                preflight_once(
                    config.method.model_dump_json(),
                    self.federation.model,
                    planned.components,
                    loss,
                    release,
                    noise,
                    back_end=config.training.back_end,
                )
            elif isinstance(phase, StatisticPhase) and isinstance(release, StatisticPlan):
                method = config.method.model_dump_json()
                preflight_statistic_once(method, self.federation.model, phase.map, release, noise)
