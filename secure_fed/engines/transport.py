"""The coordinator's transport over any Flower Grid: push one message a site, poll for replies, give up in time."""

from __future__ import annotations

import time
from collections.abc import Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from secure_fed.engines.messages import MESSAGE_TYPES, from_record, to_record
from secure_fed.errors import RunAborted
from secure_fed.federation.wire import OK, Parcel

_POLL_S = 0.02


class GridTransport:
    """Reaches sites by name; which node is which site, the nodes say once and the roster's keys prove later."""

    def __init__(self, grid: Grid, sites: int, timeout_s: float) -> None:
        self._grid = grid
        self._timeout_s = timeout_s
        self._nodes = self._find(sites)

    def exchange(self, action: str, parcels: Mapping[str, Parcel]) -> dict[str, Parcel]:
        """Send each site its parcel; a site without an answer in time, or with a Flower error, is absent."""
        sites = {self._nodes[site]: site for site in parcels}
        replies = self._round_trip(action, {self._nodes[site]: parcel for site, parcel in parcels.items()})
        return {sites[node]: parcel for node, parcel in replies.items()}

    def _find(self, sites: int) -> dict[str, int]:
        deadline = time.monotonic() + self._timeout_s
        while len(nodes := list(self._grid.get_node_ids())) < sites:
            if time.monotonic() > deadline:
                raise RunAborted(f"only {len(nodes)} of {sites} nodes came within {self._timeout_s:g} s")
            time.sleep(_POLL_S)
        replies = self._round_trip("hello", {node: Parcel() for node in nodes})
        return {parcel.body.decode(): node for node, parcel in replies.items() if parcel.code == OK}

    def _round_trip(self, action: str, parcels: Mapping[int, Parcel]) -> dict[int, Parcel]:
        messages = [
            Message(to_record(parcel), node, MESSAGE_TYPES[action], ttl=self._timeout_s)
            for node, parcel in parcels.items()
        ]
        waiting = set(self._grid.push_messages(messages))
        answers: dict[int, Parcel] = {}
        deadline = time.monotonic() + self._timeout_s
        while True:
            for reply in self._grid.pull_messages(list(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
                if reply.has_content():
                    answers[reply.metadata.src_node_id] = from_record(reply.content)
            if not waiting or time.monotonic() > deadline:
                return answers
            time.sleep(_POLL_S)
