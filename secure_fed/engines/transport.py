"""The coordinator's transport over any Flower Grid: push one message a site, poll for replies, give up in time."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp import Grid

from secure_fed.engines.messages import MESSAGE_TYPES, from_record, to_record
from secure_fed.errors import RunAborted
from secure_fed.federation.wire import OK, Parcel

_POLL_S = 0.02


class GridTransport:
    """Reaches sites by name; which node holds which site, the nodes say once and the roster's keys prove later."""

    def __init__(self, grid: Grid, sites: Collection[str], timeout_s: float) -> None:
        """Find the nodes of `sites`; raises RunAborted where some have not come within `timeout_s`."""
        self._grid = grid
        self._timeout_s = timeout_s
        self._nodes = self._find(set(sites))

    def exchange(self, action: str, parcels: Mapping[str, Parcel]) -> dict[str, Parcel]:
        """Send each site its parcel; a site without an answer in time, or with a Flower error, is absent."""
        return self._round_trip(
            action, {site: (self._nodes[site], replace(parcel, site=site)) for site, parcel in parcels.items()}
        )

    def _find(self, sites: set[str]) -> dict[str, int]:
        deadline = time.monotonic() + self._timeout_s
        found: dict[str, int] = {}
        asked: set[int] = set()
        while True:
            fresh = {str(node): node for node in self._grid.get_node_ids() if node not in asked}
            asked |= set(fresh.values())
            replies = self._round_trip("hello", {key: (node, Parcel()) for key, node in fresh.items()})
            for key, parcel in replies.items():
                found |= {site: fresh[key] for site in _hosted(parcel) if site in sites}
            if found.keys() == sites:
                return found
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(sites - found.keys()))
                raise RunAborted(f"no node came for {missing} within {self._timeout_s:g} s; nothing was charged")
            time.sleep(_POLL_S)

    def _round_trip(self, action: str, parcels: Mapping[str, tuple[int, Parcel]]) -> dict[str, Parcel]:
        """Push one message for each key and poll until all are answered or the time is up."""
        messages = [
            Message(to_record(parcel), node, MESSAGE_TYPES[action], ttl=self._timeout_s)
            for node, parcel in parcels.values()
        ]
        waiting = dict(zip(self._grid.push_messages(messages), parcels, strict=True))
        answers: dict[str, Parcel] = {}
        deadline = time.monotonic() + self._timeout_s
        while waiting:
            for reply in self._grid.pull_messages(list(waiting)):
                key = waiting.pop(reply.metadata.reply_to_message_id)
                if reply.has_content():
                    answers[key] = from_record(reply.content)
            if time.monotonic() > deadline:
                break
            if waiting:
                time.sleep(_POLL_S)
        return answers


def _hosted(parcel: Parcel) -> list[str]:
    """The sites that a node says it holds."""
    return parcel.body.decode(errors="replace").split("\n") if parcel.code == OK else []
