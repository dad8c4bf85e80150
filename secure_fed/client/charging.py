"""The gate before the noise: a run's plan is fixed on the ledger once, and every round is charged before it is drawn.

Nothing here reads a record, so that no refusal says anything about one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secure_fed.accounting import epsilon
from secure_fed.client.books import past_of, require_admitted, require_open, require_rate
from secure_fed.client.policy import Policy
from secure_fed.errors import BudgetExhausted
from secure_fed.federation.facts import Federation, Site
from secure_fed.federation.plan import PlannedPhase, SitePlan, plan_for, plan_on_record
from secure_fed.federation.wire import Header
from secure_fed.ledger import Ledger, Off, Plan, Reserve, Standing, standing
from secure_fed.ledger import PlannedPhase as LedgerPhase
from secure_fed.methods.base import Phase
from secure_fed.privacy.plan import GaussianPlan
from secure_fed.versions import versions


@dataclass(frozen=True)
class Charges:
    """One run's charges at one site, on an open ledger. `rng` names the class of the noise source."""

    federation: Federation
    site: Site
    policy: Policy
    ledger: Ledger
    rng: str

    def admit(self, header: Header, phases: Sequence[Phase], preflight: Callable[[SitePlan], None]) -> SitePlan | None:
        """The run's plan, on the ledger, with room for one more round of `phases`; None where privacy is off.

        `preflight` is asked before a new plan is written. Raises BudgetExhausted, PolicyRefusal or what preflight
        raises; nothing is charged then.
        """
        if self.federation.config.privacy.mode == "off":
            self._require_unlimited()
            return None
        books = standing(self.ledger.records)
        known = books.run(header.run)
        require_open(known, self.site.name, header.run)
        require_rate(self.ledger, self.policy, header.run, header.round)
        if known is None or known.plan is None:
            plan = self._fix(header.run, books, preflight)
        else:
            plan = plan_on_record(self.federation, self.site, known.plan)
            # The owner may have lowered the limit since; only what this run still has in its plan can be asked for.
            require_admitted(books, self.policy, header.run, plan)
            preflight(plan)
        self._require_rounds_left(header.run, plan, phases)
        return plan

    def reserve(self, header: Header, planned: Sequence[PlannedPhase], model_hash: bytes) -> None:
        """Charge one round of all of its phases, or of none where the disk refuses.

        When this returns the charges survive a power cut.
        """
        self.ledger.append_all([self._charge(header, phase, model_hash) for phase in planned])

    def off(self, header: Header, phases: Sequence[Phase]) -> None:
        """Note one round of phases without privacy."""
        at = {"run": header.run, "step": header.step, "round": header.round}
        self.ledger.append_all([Off(**at, phase=phase.name) for phase in phases])  # type: ignore[arg-type]

    def _charge(self, header: Header, planned: PlannedPhase, model_hash: bytes) -> Reserve:
        sampled = isinstance(planned.release, GaussianPlan)
        return Reserve(
            run=header.run,
            step=header.step,
            round=header.round,
            attempt=header.attempt,
            phase=planned.phase.name,
            mechanism=planned.per_round,
            max_grad_norm=planned.sensitivity,
            sampler="poisson" if sampled else "none",
            expected_batch=planned.per_round.sample_rate * self.site.declared_n,
            physical_batch=self.federation.config.training.max_physical_batch,
            unit=self.policy.unit,
            max_records_per_unit=self.policy.max_records_per_unit,
            declared_n=self.policy.declared_n,
            relation=self.policy.relation,
            components=planned.components,
            model_hash=model_hash.hex(),
            rng=self.rng,
            artefact=planned.artefact,
        )

    def _fix(self, run: str, books: Standing, preflight: Callable[[SitePlan], None]) -> SitePlan:
        """Solve the noise given what the home has given away, and put the plan on the ledger."""
        plan = plan_for(self.federation, self.site, past_of(books, self.policy, run))
        assert plan is not None  # noqa: S101 - privacy is on
        reached = require_admitted(books, self.policy, run, plan)
        preflight(plan)
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
        genesis = self.ledger.genesis
        self.ledger.append(
            Plan(
                run=run,
                plan_hash=self.federation.plan_hash(),
                method=self.federation.config.method.name,
                phases=phases,
                epsilon=epsilon(plan.mechanisms, genesis.delta, relation=genesis.relation),
                filter_epsilon=reached,
                delta=genesis.delta,
                accountant="pld",
                versions=versions(),
                rng=self.rng,
            )
        )
        return plan

    def _require_unlimited(self) -> None:
        if self.ledger.genesis.epsilon_limit is not None:
            raise BudgetExhausted(
                f"{self.site.name}: the run has privacy=off, and this home's ledger promises epsilon "
                f"{self.ledger.genesis.epsilon_limit:g} for the whole life of the data; run with privacy=dp"
            )

    def _require_rounds_left(self, run: str, plan: SitePlan, phases: Sequence[Phase]) -> None:
        """Raise BudgetExhausted before a gradient is taken where a phase has used all its planned rounds."""
        charged = [body for r in self.ledger.records if isinstance(body := r.body, Reserve) and body.run == run]
        for phase in phases:
            reserved = sum(body.phase == phase.name for body in charged)
            allowed = plan.phase(phase.name).rounds
            if reserved >= allowed:
                raise BudgetExhausted(
                    f"{self.site.name}: phase {phase.name} has used the {allowed} rounds that were budgeted for "
                    "it, spare ones included; the run may go on without this site"
                )
