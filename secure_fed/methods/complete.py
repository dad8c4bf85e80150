"""Complete: nobody misses anything; the upper reference, which exists in simulation only.

Every simulated site gets every modality, whatever `federation.ownership` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from secure_fed.data.records import Schema
from secure_fed.errors import ConfigError
from secure_fed.methods.base import Pair
from secure_fed.methods.config import MethodConfig
from secure_fed.methods.zero_fill import ZeroFill


class CompleteConfig(MethodConfig):
    """Options of complete: only the classifier's."""

    name: Literal["complete"]


class Complete(ZeroFill):
    """Zero-filling where nothing is missing in training; a record that lacks a modality in the data keeps its gap."""

    name: ClassVar[str] = "complete"
    ideal: ClassVar[bool] = True

    def pairs(self, schema: Schema, owned: Sequence[frozenset[str]]) -> tuple[Pair, ...]:
        """None; raises ConfigError where a site lacks a modality, which no real site can be given."""
        lacking = sum(not modalities >= set(schema.names) for modalities in owned)
        if lacking:
            raise ConfigError(
                f"method={self.name} is what a simulation would reach if nobody missed anything, and {lacking} of "
                f"these {len(owned)} sites lack a modality of {', '.join(schema.names)}: use another method"
            )
        return ()
