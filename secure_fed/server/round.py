"""One round at the coordinator: the secure aggregation's exchanges, retries, and the weighted mean.

It sees masked vectors and opened sums, and derives owners and weights from the roster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from secure_fed.errors import BudgetExhausted, RunAborted, SecAggError
from secure_fed.federation.facts import Federation
from secure_fed.federation.masking import session_context
from secure_fed.federation.wire import OK, STAGES, Header, Parcel, Transport
from secure_fed.identity import Roster
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.secagg import ServerSession, dequantise

Mean = npt.NDArray[np.float32]


@dataclass
class Traffic:
    """Payload bytes of a round, and who answered with which code."""

    bytes_up: int = 0
    bytes_down: int = 0
    codes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundResult:
    """The weighted mean of each opened slice, float32 [size]; a slice below its floor is in `kept`."""

    header: Header
    attempts: int
    participants: int
    survivors: int
    means: Mapping[str, Mean]
    contributors: Mapping[str, tuple[str, ...]]
    kept: tuple[str, ...]
    traffic: Traffic


class RoundBurned(Exception):
    """The round failed after shares were asked for: it is over, its charge stays, a new one begins."""

    def __init__(self, code: str, traffic: Traffic) -> None:
        super().__init__(code)
        self.code = code
        self.traffic = traffic


class Coordinator:
    """Runs rounds over a transport; holds no secret and no update."""

    def __init__(self, federation: Federation, roster: Roster, transport: Transport) -> None:
        self.federation = federation
        self.roster = roster
        self.transport = transport

    def run_round(self, header: Header, model: MultimodalModel) -> RoundResult:
        """One round of the schedule.

        Retries with fresh keys over the same stored updates while nothing was opened. Raises RoundBurned where
        something was, BudgetExhausted where sites have no budget left for it, RunAborted when the attempts are used up.
        """
        if self.federation.config.secagg.mode == "off":
            return self._plain_round(header, model)
        traffic = Traffic()
        limit = self.federation.config.federation.max_attempts
        for attempt in range(limit):
            try:
                return self._attempt(replace(header, attempt=attempt), model, traffic)
            except SecAggError as error:
                failure = error
        exhausted = sorted(site for site, code in traffic.codes.items() if code == "budget_exhausted")
        if exhausted:
            raise BudgetExhausted(
                f"round {header.round} found {', '.join(exhausted)} without budget for its phase, and too few others"
            )
        answered = ", ".join(f"{site}: {code}" for site, code in sorted(traffic.codes.items())) or "all answered"
        raise RunAborted(
            f"round {header.round} failed in all {limit} attempts: {failure} (last answers: {answered}); nothing "
            "was opened, the ledgers stand. Continue with `secure-fed run resume=...` when enough sites are back, "
            "or raise federation.max_attempts"
        )

    # -- secure ----------------------------------------------------------------------------------------

    def _attempt(self, header: Header, model: MultimodalModel, traffic: Traffic) -> RoundResult:
        session = ServerSession(session_context(self.federation, self.roster, header))
        session.bind_model(model.digest())
        participants = 0
        survivors = 0
        try:
            for stage in STAGES:
                self._exchange(session, stage, header, model, traffic)
                if stage == "share":
                    participants = len(session.answered)
                if stage == "mask":
                    survivors = len(session.answered)
                session.advance()
        except SecAggError as error:
            if session.released:
                raise RoundBurned(error.code, traffic) from error
            raise
        opened = {name: total for name, total in session.sums().items() if total is not None}
        return RoundResult(
            header=header,
            attempts=header.attempt + 1,
            participants=participants,
            survivors=survivors,
            means={name: self._mean(total.values, total.contributors) for name, total in opened.items()},
            contributors={name: total.contributors for name, total in opened.items()},
            kept=tuple(name for name, total in session.sums().items() if total is None),
            traffic=traffic,
        )

    def _exchange(
        self, session: ServerSession, stage: str, header: Header, model: MultimodalModel, traffic: Traffic
    ) -> None:
        # The model travels once a round, with the message that asks for the masked update.
        arrays = {name: model.get_component(name) for name in model.components()} if stage == "mask" else {}
        parcels = {
            site: Parcel(header=header.to_bytes(), body=session.request(site), arrays=arrays)
            for site in session.participants
        }
        for site, answer in self._send(stage, parcels, traffic).items():
            session.receive(site, answer.body)
        traffic.codes |= session.faults

    def _send(self, action: str, parcels: Mapping[str, Parcel], traffic: Traffic) -> dict[str, Parcel]:
        """Exchange, count bytes, and keep the good answers; a bad code is remembered, not trusted."""
        answers = self.transport.exchange(action, parcels)
        traffic.bytes_down += sum(parcel.size for parcel in parcels.values())
        traffic.bytes_up += sum(answer.size for answer in answers.values())
        traffic.codes |= {site: answer.code for site, answer in answers.items() if answer.code != OK}
        return {site: answer for site, answer in answers.items() if answer.code == OK}

    def _mean(self, total: npt.NDArray[np.int64], contributors: tuple[str, ...]) -> Mean:
        secagg = self.federation.config.secagg
        summed = dequantise(total, secagg.clip, secagg.value_bits)
        return (summed / self._weight(contributors)).astype(np.float32)

    def _weight(self, contributors: tuple[str, ...]) -> float:
        return sum(self.federation.weights[site] for site in contributors)

    # -- comparison only -------------------------------------------------------------------------------

    def _plain_round(self, header: Header, model: MultimodalModel) -> RoundResult:
        """secagg=off: the coordinator sees every site's update."""
        traffic = Traffic()
        arrays = {name: model.get_component(name) for name in model.components()}
        parcels = {site.name: Parcel(header=header.to_bytes(), arrays=arrays) for site in self.federation.sites}
        answers = self._send("plain", parcels, traffic)
        if not answers:
            raise RunAborted(f"round {header.round}: no site answered ({traffic.codes}); nothing was aggregated")
        means: dict[str, Mean] = {}
        contributors: dict[str, tuple[str, ...]] = {}
        for part in self.federation.slices_at(header.step):
            names = tuple(sorted(site for site in answers if site in part.owners))
            if names:
                weighted = [self.federation.weights[s] * answers[s].arrays[part.name] for s in names]
                means[part.name] = (np.sum(weighted, axis=0) / self._weight(names)).astype(np.float32)
                contributors[part.name] = names
        kept = tuple(p.name for p in self.federation.slices_at(header.step) if p.name not in means)
        return RoundResult(header, 1, len(parcels), len(answers), means, contributors, kept, traffic)
