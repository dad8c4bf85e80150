"""What a site must never forget: which session it began last, which round it released, under which roster.

Synced before anything that depends on it leaves the site; a journal that is missing or changed stops the site.
"""

from __future__ import annotations

import json
from typing import Any

from secure_fed.client.home import Home
from secure_fed.errors import ConfigError, PolicyRefusal, SecAggError
from secure_fed.federation.wire import Header
from secure_fed.identity import Roster

_FILE = "journal"
_FRESH = {"attempt": -1, "released": -1}


class Journal:
    """The monotone counters of one home, by run."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def require_new(self, header: Header) -> None:
        """Raise SecAggError(stale_round) where this session is not beyond all before."""
        last = self._read()["runs"].get(header.run, _FRESH)
        if header.attempt <= last["attempt"] or header.round <= last["released"]:
            raise SecAggError("stale_round", f"round {header.round} attempt {header.attempt} after {last}")

    def begin(self, header: Header) -> None:
        """Note that this session begins; raises SecAggError(stale_round) where it is not beyond all before.

        A session number is used once, so no key serves twice; a released round gets no other session.
        """
        self.require_new(header)
        tree = self._read()
        last = tree["runs"].get(header.run, _FRESH)
        tree["runs"][header.run] = {**last, "attempt": header.attempt}
        self._write(tree)

    def require_unreleased(self, header: Header) -> None:
        """Raise SecAggError(stale_round) where shares of this round, or of a later one, were released."""
        released = self._read()["runs"].get(header.run, _FRESH)["released"]
        if header.round <= released:
            raise SecAggError("stale_round", f"round {header.round}: shares of round {released} were released")

    def release(self, header: Header) -> None:
        """Note that shares of this round are about to leave; raises SecAggError(stale_round) if they did before."""
        self.require_unreleased(header)
        tree = self._read()
        tree["runs"][header.run]["released"] = header.round
        self._write(tree)

    def accept_roster(self, roster: Roster) -> bool:
        """Whether this roster is a newer one than the last; the first is taken as it is.

        Raises PolicyRefusal where the consortium changed, or a version came back or came twice with another content.
        """
        tree = self._read()
        known = tree.get("roster")
        found = {"consortium": roster.consortium, "version": roster.version, "digest": roster.digest().hex()}
        if known == found:
            return False
        if known is not None and known["consortium"] != found["consortium"]:
            raise PolicyRefusal(
                f"{self._home.root}: the roster is signed by another consortium than the one this site joined; if that "
                "is meant, begin with a new home"
            )
        if known is not None and found["version"] <= known["version"]:
            raise PolicyRefusal(
                f"{self._home.root}: roster version {found['version']} comes after version {known['version']}: "
                "a roster is never taken back; ask the consortium for a newer one"
            )
        tree["roster"] = found
        self._write(tree)
        return known is not None

    def _read(self) -> dict[str, Any]:
        stored = self._home.get(_FILE)
        if stored is None and self._home.ledger_path.exists():
            # The journal is written before the first charge: a ledger without one means that it was taken away.
            raise ConfigError(f"{self._home.root}: the journal is gone; the site cannot know which rounds it released")
        tree: dict[str, Any] = json.loads(stored) if stored else {"runs": {}}
        return tree

    def _write(self, tree: dict[str, Any]) -> None:
        self._home.put(_FILE, json.dumps(tree).encode())
