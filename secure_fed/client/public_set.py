"""How a site comes by the run's public set: once, from the coordinator, and never another than it agreed to.

It is no secret, but it lies with what the site keeps: it may come under terms that leave with nobody.
"""

from __future__ import annotations

from collections.abc import Mapping

from secure_fed.client.home import Home
from secure_fed.data.records import Schema
from secure_fed.errors import ConfigError, SecAggError
from secure_fed.federation.announcement import PUBLIC
from secure_fed.federation.public_set import PublicSet
from secure_fed.federation.wire import NEEDS_PUBLIC_SET, Array, part


class PublicSets:
    """The sets that a home keeps while runs need them, each under its digest."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._read: PublicSet | None = None

    def take(self, schema: Schema, digest: str, arrays: Mapping[str, Array]) -> PublicSet:
        """The set called `digest`: what the home holds, else what a request brings, which is checked before it is kept.

        Raises:
            SecAggError: needs_public_set where there is neither; public_set_mismatch where the request brings another,
                whatever the home holds; bad_public_set where the one that is named is none.
        """
        sent = part(arrays, PUBLIC)
        received = PublicSet.received(schema, digest, sent) if sent else None
        held = self._held(schema, digest)
        if held is not None:
            return held
        if received is None:
            raise SecAggError(NEEDS_PUBLIC_SET, f"this site does not hold the public set {digest}")
        self._home.put_tensors(_file(digest), {}, received.arrays)
        self._read = received
        return received

    def forget(self, digest: str) -> None:
        """Keep it no longer; a run that still needs it asks again."""
        self._home.drop(_file(digest))
        self._read = None

    def _held(self, schema: Schema, digest: str) -> PublicSet | None:
        """None where there is none, or one that the disk has changed: unlike a journal it can be had again."""
        if self._read is not None and self._read.digest == digest:
            return self._read
        try:
            stored = self._home.get_tensors(_file(digest))
            self._read = None if stored is None else PublicSet.received(schema, digest, stored[1])
        except (ConfigError, SecAggError) as error:
            self._home.log(f"the public set {digest} cannot be used and is asked for again: {error}")
            self._read = None
        return self._read


def _file(digest: str) -> str:
    return f"public-{digest}"
