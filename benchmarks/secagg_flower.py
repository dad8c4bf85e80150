"""The peer of benchmarks/secagg.py: Flower's SecAgg+, its own client mod and server workflow called in their order.

Nothing of the protocol is written here: this file makes the inputs, and stands in for the network.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import (
    Code,
    FitRes,
    NDArrays,
    Parameters,
    Status,
    bytes_to_ndarray,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_mod
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation import secaggplus_workflow
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.serverapp.grid import Grid
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

EXAMPLES = 100
CHECKED_PARAMS = 64


def payload_bytes(value: object) -> int:
    """Bytes of the byte strings in a record of the mod, without Flower's own framing."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(payload_bytes(item) for item in value.values())
    return sum(payload_bytes(item) for item in value) if isinstance(value, list) else 0


@dataclass
class _Strategy:
    """Takes what the workflow opened, where a strategy would average it."""

    opened: Parameters | None = None

    def aggregate_fit(
        self, server_round: int, results: Sequence[tuple[ClientProxy, FitRes]], failures: Sequence[object]
    ) -> tuple[None, dict[str, float]]:
        del server_round, failures
        self.opened = results[0][1].parameters
        return None, {}


@dataclass
class _Grid:
    """Answers the unmask stage with the releases that the mod made beforehand."""

    releases: dict[int, dict[str, Any]]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        del timeout
        return [
            Message(
                RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(self.releases[message.metadata.dst_node_id])}),
                reply_to=message,
            )
            for message in messages
        ]


@dataclass
class FlowerCohort:
    """All clients of a SecAgg+ round on the complete graph, after shares were dealt; node 1 is the one timed.

    Attributes:
        clients: an odd number, so that everybody neighbours everybody.
        threshold: the same as ours.
    """

    clients: int
    threshold: int
    up_bytes: int = 0
    down_bytes: int = 0
    _states: dict[int, SecAggPlusState] = field(default_factory=dict)
    _public: dict[int, list[bytes]] = field(default_factory=dict)
    _forwarded: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        logging.getLogger("flwr").setLevel(logging.ERROR)
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # messages name whose task made them
        self._workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=self.threshold)
        shared = {}
        for node in range(1, self.clients + 1):
            self._states[node] = state = SecAggPlusState()
            state.nid = node
            keys = _setup(state, ConfigRecord(self._protocol()))
            self._public[node] = [cast(bytes, keys[Key.PUBLIC_KEY_1]), cast(bytes, keys[Key.PUBLIC_KEY_2])]
        for node, state in self._states.items():
            listed = {str(other): pair for other, pair in self._public.items()}
            shared[node] = _share_keys(state, cast(ConfigRecord, listed))
            self._forwarded[node] = {Key.SOURCE_LIST: [], Key.CIPHERTEXT_LIST: []}
        for source, sent in shared.items():
            addressed = cast(list[int], sent[Key.DESTINATION_LIST]), cast(list[bytes], sent[Key.CIPHERTEXT_LIST])
            for target, ciphertext in zip(*addressed, strict=True):
                self._forwarded[target][Key.SOURCE_LIST].append(source)
                self._forwarded[target][Key.CIPHERTEXT_LIST].append(ciphertext)
        self._key_bytes = payload_bytes(self._public[1]) + payload_bytes(dict(shared[1]))
        self._before_mask = copy.deepcopy(self._states[1])
        self._check()
        self._key_bytes += payload_bytes(dict(self._release(1, dropouts=0)))

    def _protocol(self) -> dict[str, Any]:
        """What the workflow's setup stage sends."""
        return {
            Key.SAMPLE_NUMBER: self.clients,
            Key.SHARE_NUMBER: self.clients,
            Key.THRESHOLD: self.threshold,
            Key.CLIPPING_RANGE: self._workflow.clipping_range,
            Key.TARGET_RANGE: self._workflow.quantization_range,
            Key.MOD_RANGE: self._workflow.modulus_range,
            Key.MAX_WEIGHT: self._workflow.max_weight,
        }

    def mask(self, update: NDArray[np.float32]) -> float:
        """Seconds that the mod takes for the stage in which it quantises and masks."""
        state, parameters = copy.deepcopy(self._before_mask), ndarrays_to_parameters([update])
        start = time.perf_counter()
        sent = _collect_masked_vectors(state, ConfigRecord(self._forwarded[1]), EXAMPLES, parameters)
        seconds = time.perf_counter() - start
        self.up_bytes = self._key_bytes + payload_bytes(dict(sent))
        return seconds

    def unmask(self, params: int, dropouts: int) -> float:
        """Seconds of the workflow's unmask stage for a sum of that size; the last `dropouts` nodes are gone."""
        rng = np.random.default_rng(dropouts)
        total = [np.array([1]), rng.integers(0, self._workflow.modulus_range, params, dtype=np.int64)]
        return self._unmask_stage(total, dropouts)[0]

    def unmask_without_shamir(self, params: int, dropouts: int) -> None:
        """The same with the secrets at hand: traced, its pure Python field arithmetic would take minutes."""
        secrets: dict[bytes, bytes] = {}
        for state in self._states.values():
            secrets |= {share: self._states[dealer].rd_seed for dealer, share in state.rd_seed_share_dict.items()}
            secrets |= {share: self._states[dealer].sk1 for dealer, share in state.sk1_share_dict.items()}
        with patch.object(secaggplus_workflow, "combine_shares", lambda shares: secrets[shares[0]]):
            self.unmask(params, dropouts)

    def _release(self, node: int, dropouts: int) -> dict[str, Any]:
        """What a node answers in the unmask stage."""
        last = self.clients - dropouts
        asked = {
            Key.ACTIVE_NODE_ID_LIST: list(range(1, last + 1)),
            Key.DEAD_NODE_ID_LIST: list(range(last + 1, self.clients + 1)),
        }
        return dict(_unmask(self._states[node], ConfigRecord(dict(asked))))

    def _unmask_stage(self, total: NDArrays, dropouts: int) -> tuple[float, NDArrays]:
        everyone = set(self._states)
        active = set(range(1, self.clients - dropouts + 1))
        grid = _Grid({node: self._release(node, dropouts) for node in active})
        strategy = _Strategy()
        context = SimpleNamespace(
            state=SimpleNamespace(config_records={MAIN_CONFIGS_RECORD: {WorkflowKey.CURRENT_ROUND: 1}}),
            strategy=strategy,
        )
        result = FitRes(Status(Code.OK, ""), Parameters([], ""), EXAMPLES, {})
        state = WorkflowState(
            sampled_node_ids=everyone,
            active_node_ids=active,
            num_shares=self.clients,
            threshold=self.threshold,
            clipping_range=self._workflow.clipping_range,
            quantization_range=self._workflow.quantization_range,
            mod_range=self._workflow.modulus_range,
            max_weight=self._workflow.max_weight,
            nid_to_neighbours={node: set(everyone) for node in everyone},
            nid_to_publickeys=self._public,
            aggregate_ndarrays=total,
            legacy_results=[(cast(ClientProxy, None), result)],
        )
        start = time.perf_counter()
        done = self._workflow.unmask_stage(cast(Grid, grid), cast(LegacyContext, context), state)
        seconds = time.perf_counter() - start
        if not done or strategy.opened is None:
            raise RuntimeError("Flower's workflow halted")
        self.down_bytes = sum(len(tensor) for tensor in strategy.opened.tensors)
        return seconds, parameters_to_ndarrays(strategy.opened)

    def _check(self) -> None:
        """A small round, so that every node holds its shares and the calls are seen to give the mean."""
        rng = np.random.default_rng(0)
        updates = rng.uniform(-1, 1, (self.clients, CHECKED_PARAMS)).astype(np.float32)
        total: NDArrays = []
        for node, state in self._states.items():
            sent = _collect_masked_vectors(
                state, ConfigRecord(self._forwarded[node]), EXAMPLES, ndarrays_to_parameters([updates[node - 1]])
            )
            vector = [bytes_to_ndarray(raw) for raw in cast(list[bytes], sent[Key.MASKED_PARAMETERS])]
            total = parameters_addition(total, vector) if total else vector
        _, opened = self._unmask_stage(parameters_mod(total, self._workflow.modulus_range), dropouts=0)
        error = float(np.abs(opened[0] - updates.mean(axis=0)).max())
        if error > 1e-3:
            raise RuntimeError(f"Flower's SecAgg+ as called here misses the mean by {error:.3g}")
