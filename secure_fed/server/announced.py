"""What the coordinator tells the sites about the model when a round begins, and what they need to follow it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from secure_fed.federation.announcement import CHECKPOINT, MODEL, PUBLIC, SUM, Announcement, Outcome
from secure_fed.federation.facts import Federation
from secure_fed.federation.public_set import PublicSet
from secure_fed.federation.track import Track
from secure_fed.federation.wire import NEEDS_CHECKPOINT, NEEDS_PUBLIC_SET, Array


@dataclass(frozen=True)
class Opened:
    """What the sites are told about the last opened round: its outcome, its sums, and the track before it."""

    outcome: Outcome
    sums: Mapping[str, Array]
    before: Track


@dataclass(frozen=True)
class Announced:
    """What a round's first message says about the model, and the arrays that go with it."""

    track: Track
    announcement: bytes
    arrays: Mapping[str, Array]
    opened: Opened | None
    public: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def make(
        cls, federation: Federation, track: Track, opened: Opened | None, number: int, public: PublicSet | None = None
    ) -> Announced:
        """For round `number` over `track`; `opened` is the last round's."""
        server_step = federation.config.server_step
        verified = server_step == "verified"
        said = Announcement(
            server_step=server_step,
            round=number,
            model_hash=track.model_hash.hex(),
            # A site that takes the model as it is sent holds no optimizer state.
            state_hash=(track if verified else Track(track.parameters)).state_hash.hex(),
            public_set=federation.config.federation.public_set,
            outcome=opened.outcome if opened is not None and verified else None,
        )
        if not verified:
            arrays = _model(track)
        else:
            arrays = {} if opened is None else {f"{SUM}/{name}": total for name, total in opened.sums.items()}
        return cls(track, said.to_bytes(), arrays, opened, {} if public is None else public.arrays)

    def remedies(self) -> tuple[tuple[str, Callable[[], dict[str, Array]]], ...]:
        """Code -> the arrays for a site that answers with it, in the order in which a site may come to ask."""
        return ((NEEDS_PUBLIC_SET, self.with_public_set), (NEEDS_CHECKPOINT, self.with_checkpoint))

    def with_public_set(self) -> dict[str, Array]:
        """The arrays for a site that does not hold the public set."""
        return {**self.arrays, **{f"{PUBLIC}/{name}": array for name, array in self.public.items()}}

    def with_checkpoint(self) -> dict[str, Array]:
        """The arrays for a site that cannot follow: the track before the last opened round, or the first model."""
        if self.opened is None:
            return _model(self.track)
        return {**self.arrays, **self.opened.before.to_arrays(CHECKPOINT)}


def _model(track: Track) -> dict[str, Array]:
    return {f"{MODEL}/{name}": values for name, values in track.parameters.items()}
