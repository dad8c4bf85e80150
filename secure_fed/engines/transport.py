"""The coordinator's transport over any Flower Grid: push one message a site, poll for replies, give up in time."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from secure_fed.engines.messages import MESSAGE_TYPES, from_record, to_record
from secure_fed.errors import RunAborted
from secure_fed.federation.wire import OK, Parcel

_POLL_S = 0.02
_GRACE_S = 1.0
"""How long optional answers are waited for at the least; otherwise as long as the others took."""


class GridTransport:
    """Reaches sites by name; which node holds which site, the nodes say once and the roster's keys prove later."""

    def __init__(self, grid: Grid, sites: Collection[str], timeout_s: float) -> None:
        """Find the nodes of `sites`; raises RunAborted where some have not come within `timeout_s`."""
        self._grid = grid
        self._timeout_s = timeout_s
        self._nodes = self._find(set(sites))

    def exchange(self, parcels: Mapping[str, Parcel], optional: Collection[str] = ()) -> Iterator[tuple[str, Parcel]]:
        """Send each site its parcel, yield answers as they come; a site that is late, or fails in Flower, is absent."""
        return self._round_trip({site: (self._nodes[site], parcel) for site, parcel in parcels.items()}, optional)

    def _find(self, sites: set[str]) -> dict[str, int]:
        deadline = time.monotonic() + self._timeout_s
        found: dict[str, int] = {}
        asked: set[int] = set()
        while True:
            fresh = {str(node): node for node in self._grid.get_node_ids() if node not in asked}
            asked |= set(fresh.values())
            replies = self._round_trip({key: (node, Parcel(action="hello")) for key, node in fresh.items()})
            for key, parcel in replies:
                found |= {site: fresh[key] for site in _hosted(parcel) if site in sites}
            if found.keys() == sites:
                return found
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(sites - found.keys()))
                raise RunAborted(f"no node came for {missing} within {self._timeout_s:g} s; nothing was charged")
            time.sleep(_POLL_S)

    def _round_trip(
        self, parcels: Mapping[str, tuple[int, Parcel]], optional: Collection[str] = ()
    ) -> Iterator[tuple[str, Parcel]]:
        """Push one message for each key and poll until all are answered or the time is up."""
        messages = [
            Message(to_record(parcel), node, MESSAGE_TYPES[parcel.action], ttl=self._timeout_s)
            for node, parcel in parcels.values()
        ]
        waiting = dict(zip(self._grid.push_messages(messages), parcels, strict=True))
        del messages
        began = time.monotonic()
        deadline = began + self._timeout_s
        while waiting:
            for reply in self._grid.pull_messages(list(waiting)):
                key = waiting.pop(reply.metadata.reply_to_message_id)
                if reply.has_content():
                    yield key, from_record(reply.content)
            now = time.monotonic()
            if deadline > now and set(waiting.values()) <= set(optional) and optional:
                deadline, optional = min(deadline, max(began + _GRACE_S, now + (now - began))), ()
            if not waiting or now > deadline:
                return
            time.sleep(_POLL_S)


def _hosted(parcel: Parcel) -> list[str]:
    """The sites that a node says it holds."""
    return parcel.body.decode(errors="replace").split("\n") if parcel.code == OK else []
