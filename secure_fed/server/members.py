"""The roster as it lies on disk, read again before each round: the consortium may replace it during a run."""

from __future__ import annotations

from pathlib import Path

from secure_fed.errors import RunAborted
from secure_fed.federation.config import RunConfig
from secure_fed.federation.facts import Federation
from secure_fed.federation.members import sites_of
from secure_fed.identity import Roster


class RosterFile:
    """Gives the federation and roster in force. A new roster must be a later one of the same consortium."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self._path = path
        self._config = config
        self._roster = Roster.load(path)
        self._federation = Federation(config, sites_of(self._roster))

    def __call__(self) -> tuple[Federation, Roster]:
        """Read the file; raises RunAborted where the new roster cannot carry this run."""
        roster = Roster.load(self._path)
        if roster.digest() != self._roster.digest():
            self._federation = self._changed(roster)
            self._roster = roster
        return self._federation, self._roster

    def _changed(self, roster: Roster) -> Federation:
        if roster.consortium != self._roster.consortium or roster.version <= self._roster.version:
            raise RunAborted(
                f"{self._path} was replaced by version {roster.version} of consortium {roster.consortium[:16]}, after "
                f"version {self._roster.version} of {self._roster.consortium[:16]}: a roster is followed by a later "
                "one of the same consortium; put that in its place and resume"
            )
        forgotten = sorted(set(self._roster.known) - set(roster.known))
        if forgotten:
            raise RunAborted(
                f"roster version {roster.version} drops {', '.join(forgotten)} without a word: their ledgers could not "
                "be verified any more. Name them under `revoked`, and resume"
            )
        federation = Federation(self._config, sites_of(roster))
        if federation.model.component_sizes() != self._federation.model.component_sizes():
            raise RunAborted(
                f"roster version {roster.version} changes which modalities are owned, and with them the model's "
                "components: this run cannot go on with it; begin a new run"
            )
        return federation
