"""How a site follows the model: it recomputes every server step from the opened sums and compares hashes.

What it cannot recompute it takes only from a checkpoint that enough peers have signed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from secure_fed.client.home import Home, of_run
from secure_fed.errors import SecAggError
from secure_fed.federation.announcement import CHECKPOINT, MODEL, SUM, Announcement, Outcome
from secure_fed.federation.facts import Federation
from secure_fed.federation.masking import Membership
from secure_fed.federation.track import Track, binding, check_shape, follow, initial_track, is_same_draw, means_of
from secure_fed.federation.wire import NEEDS_CHECKPOINT, Array, Header, part
from secure_fed.secagg import Code, Transcript, packed_bytes, unpack, wire_bits

TRACK = "track"
DIVERGED = "model_diverged"
"""The announced model is not what the announced sums give."""


@dataclass(frozen=True)
class Standing:
    """The track that a site holds: which outcome's round led to it, and for which round it was last announced."""

    track: Track
    outcome_round: int = -1
    announced_round: int = -1


class Follower:
    """Keeps the verified track in the site's home; `membership_of` finds a roster by its digest (hex), or None."""

    def __init__(self, home: Home, membership_of: Callable[[str], Membership | None]) -> None:
        self._home = home
        self._membership_of = membership_of

    def track(self, header: Header) -> Track:
        """The track that was announced for this round.

        Raises:
            SecAggError: model_not_bound where none was.
        """
        standing = self._load(header.run)
        if standing is None or standing.announced_round != header.round:
            raise SecAggError(Code.MODEL_NOT_BOUND, f"no model was announced for round {header.round}")
        return standing.track

    def follow(self, federation: Federation, header: Header, announced: bytes, arrays: Mapping[str, Array]) -> Track:
        """Reach the announced track and keep it.

        Raises:
            SecAggError: needs_checkpoint where this site missed rounds and the request brings none; stale_model
                where it would go back; model_mismatch, model_diverged, bad_sums and bad_model where what was
                announced does not hold; codes of the transcript's check.
        """
        said = Announcement.from_bytes(announced)
        before = self._load(header.run) or Standing(initial_track(federation))
        if not before.announced_round <= said.round <= header.round:
            raise SecAggError("stale_model", f"the model of round {said.round} after that of {before.announced_round}")
        if said.server_step != federation.config.server_step:
            raise SecAggError("malformed_message", f"server_step={said.server_step} is not this run's")
        if said.server_step == "unverified":
            track, outcome_round = self._taken(federation, said, arrays), before.outcome_round
        else:
            track, outcome_round = self._recomputed(federation, said, arrays, before)
        self._keep(header.run, Standing(track, outcome_round, said.round))
        return track

    def _taken(self, federation: Federation, said: Announcement, arrays: Mapping[str, Array]) -> Track:
        """server_step=unverified: the model as it is sent, whole and finite; all members bind its hash."""
        track = check_shape(federation, Track(part(arrays, MODEL)))
        if _target(said) != track.digest:
            raise SecAggError(Code.MODEL_MISMATCH, "the model that was sent is not the one that was announced")
        return track

    def _recomputed(
        self, federation: Federation, said: Announcement, arrays: Mapping[str, Array], before: Standing
    ) -> tuple[Track, int]:
        target = _target(said)
        if before.track.digest == target:
            return before.track, before.outcome_round
        outcome = said.outcome
        if outcome is None:
            if before.outcome_round >= 0:
                raise SecAggError("stale_model", "the first model again")
            return _first(federation, arrays, target), before.outcome_round
        if outcome.round <= before.outcome_round:
            raise SecAggError("stale_model", f"round {outcome.round} after round {before.outcome_round}")
        basis = binding(bytes.fromhex(outcome.model_hash), bytes.fromhex(outcome.state_hash))
        membership = self._checked(outcome, basis)
        if before.track.digest != basis:
            if outcome.round == before.announced_round:
                raise SecAggError(Code.MODEL_MISMATCH, f"peers signed another model for round {outcome.round}")
            origin = _checkpoint(federation, outcome, arrays, basis)
        else:
            origin = before.track
        sums = _sums(membership.federation, outcome, arrays)
        survivors = Transcript.from_bytes(bytes.fromhex(outcome.transcript)).survivors
        means = means_of(membership.federation, outcome.step, survivors, sums)
        track = follow(membership.federation, outcome.step, origin, means)
        if track.digest != target:
            raise SecAggError(DIVERGED, f"the sums of round {outcome.round} do not give the announced model")
        return track, outcome.round

    def _checked(self, outcome: Outcome, basis: bytes) -> Membership:
        """The membership of the outcome's round, if enough of its members signed its survivors over `basis`."""
        membership = self._membership_of(outcome.roster)
        if membership is None:
            raise SecAggError("unknown_roster", "the last round stands on a roster that this site never had")
        context = membership.context(outcome.header)
        context.check_transcript(Transcript.from_bytes(bytes.fromhex(outcome.transcript)), basis)
        return membership

    def _load(self, run: str) -> Standing | None:
        stored = self._home.get_tensors(of_run(TRACK, run))
        if stored is None:
            return None
        facts, tensors = stored
        track = Track.from_arrays(tensors, "track", facts["steps"])
        return Standing(track, facts["outcome_round"], facts["announced_round"])

    def _keep(self, run: str, standing: Standing) -> None:
        facts = {
            "steps": standing.track.steps,
            "outcome_round": standing.outcome_round,
            "announced_round": standing.announced_round,
        }
        self._home.put_tensors(of_run(TRACK, run), facts, standing.track.to_arrays("track"))


def _target(said: Announcement) -> bytes:
    return binding(bytes.fromhex(said.model_hash), bytes.fromhex(said.state_hash))


def _first(federation: Federation, arrays: Mapping[str, Array], target: bytes) -> Track:
    """The first model where another processor drew it: as it is sent, if it is this site's own but for last bits."""
    if not part(arrays, MODEL):
        raise SecAggError(NEEDS_CHECKPOINT, "the first model differs from the one that the configuration gives here")
    track = check_shape(federation, Track(part(arrays, MODEL)))
    # Not the last one announced: step by step that could be walked anywhere.
    if track.digest != target or not is_same_draw(initial_track(federation), track):
        raise SecAggError(Code.MODEL_MISMATCH, "the first model is not the one that the configuration gives")
    return track


def _checkpoint(federation: Federation, outcome: Outcome, arrays: Mapping[str, Array], basis: bytes) -> Track:
    """The track before the outcome, as the request brings it; peers have signed its hash."""
    if not part(arrays, CHECKPOINT):
        raise SecAggError(NEEDS_CHECKPOINT, f"this site does not hold the model of round {outcome.round}")
    track = check_shape(federation, Track.from_arrays(arrays, CHECKPOINT, outcome.steps))
    if track.digest != basis:
        raise SecAggError(Code.MODEL_MISMATCH, "the checkpoint is not the one that the members signed")
    return track


def _sums(federation: Federation, outcome: Outcome, arrays: Mapping[str, Array]) -> dict[str, Array]:
    bits = wire_bits(len(federation.sites), federation.config.secagg.value_bits)
    sizes = {piece.name: piece.size for piece in federation.slices_at(outcome.step)}
    packed = part(arrays, SUM)
    for name, data in packed.items():
        if name not in sizes or data.nbytes != packed_bytes(sizes[name], bits):
            raise SecAggError("bad_sums", "an opened slice is unknown or of another size")
    return {name: unpack_signed(data, sizes[name], bits) for name, data in packed.items()}


def unpack_signed(data: Array, size: int, bits: int) -> Array:
    """Centred sums, int32 [size], from their packed form."""
    shift = 32 - bits
    signed: Array = (unpack(data, size, bits) << shift).view("int32") >> shift
    return signed
