"""The model and the optimizer's state as everybody must hold them, and the one step from a round to the next.

Server and sites run the same code over the same opened sums, so a site can check what it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from secure_fed.errors import SecAggError
from secure_fed.federation.facts import Federation
from secure_fed.federation.wire import Array, part
from secure_fed.methods.base import StatisticPhase
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.secagg import dequantise
from secure_fed.secagg.encoding import digest
from secure_fed.strategies import FlowerConfig, State, Vector, parameters_digest, state_digest, step

_MODEL, _STATE = "model", "state"


@dataclass(frozen=True, eq=False)
class Track:
    """Parameters by component, float32 [P], and each component's optimizer state."""

    parameters: Mapping[str, Vector]
    states: Mapping[str, State] = field(default_factory=dict)

    @cached_property
    def model_hash(self) -> bytes:
        """SHA-256 of the parameters."""
        return parameters_digest(self.parameters)

    @cached_property
    def state_hash(self) -> bytes:
        """SHA-256 of the optimizer's state."""
        return state_digest(self.states)

    @cached_property
    def digest(self) -> bytes:
        """What a session binds: H(H(model), H(optimizer state))."""
        return binding(self.model_hash, self.state_hash)

    def load_into(self, model: MultimodalModel) -> MultimodalModel:
        """Put the parameters into `model`, and return it."""
        for name, values in self.parameters.items():
            model.set_component(name, values)
        return model

    def to_arrays(self, prefix: str) -> dict[str, Array]:
        """All arrays under `prefix`/model and `prefix`/state; `steps` goes with them."""
        arrays: dict[str, Array] = {f"{prefix}/{_MODEL}/{name}": values for name, values in self.parameters.items()}
        for name, state in self.states.items():
            arrays |= {f"{prefix}/{_STATE}/{name}/{moment}": values for moment, values in state.moments.items()}
        return arrays

    @property
    def steps(self) -> dict[str, int]:
        """Component -> server steps taken, for those that took any."""
        return {name: state.steps for name, state in self.states.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], prefix: str, steps: Mapping[str, int]) -> Track:
        """The track whose `to_arrays(prefix)` and `steps` these are."""
        moments = part(arrays, f"{prefix}/{_STATE}")
        states = {name: State(count, part(moments, name)) for name, count in steps.items()}
        return cls(part(arrays, f"{prefix}/{_MODEL}"), states)


def binding(model_hash: bytes, state_hash: bytes) -> bytes:
    """The one hash of both, 32 bytes."""
    return digest("track", [model_hash, state_hash])


def initial_track(federation: Federation) -> Track:
    """Where every run begins: the weights that the configuration's seed gives, no state."""
    model = federation.new_model()
    return Track({name: model.get_component(name) for name in model.components()})


def is_same_draw(own: Track, other: Track) -> bool:
    """Whether two initial tracks are the same draw: equal but for the last bits.

    Torch's uniform and normal draws differ by some units in the last place between kinds of processors.
    """
    return all(
        np.allclose(values, other.parameters[name], rtol=1e-5, atol=1e-6) for name, values in own.parameters.items()
    )


def contributors_of(federation: Federation, at_step: int, survivors: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Slice -> its contributors, sorted, for the slices that enough owners survived for."""
    present = frozenset(survivors)
    alive = {piece.name: tuple(sorted(piece.owners & present)) for piece in federation.slices_at(at_step)}
    return {name: sites for name, sites in alive.items() if len(sites) >= federation.floor(name)}


def means_of(
    federation: Federation, at_step: int, survivors: Iterable[str], sums: Mapping[str, Array]
) -> dict[str, Vector]:
    """Slice -> weighted mean update, float32 [size], from its opened sum (int32 [size]); counts have none.

    Raises:
        SecAggError: bad_sums unless exactly the slices above their floor are there, in their sizes.
    """
    contributors = contributors_of(federation, at_step, survivors)
    sizes = {piece.name: piece.size for piece in federation.slices_at(at_step) if piece.name in contributors}
    if {name: total.shape for name, total in sums.items()} != {name: (size,) for name, size in sizes.items()}:
        raise SecAggError("bad_sums", "the opened slices are not those that the survivors' floors allow")
    averaged = {piece.name for piece in federation.slices_at(at_step) if not piece.counts}
    return {name: _mean(federation, sums[name], contributors[name]) for name in sorted(averaged & set(sums))}


def counts_of(federation: Federation, at_step: int, sums: Mapping[str, Array]) -> dict[str, Array]:
    """Slice -> the sum of its contributors' counts, int64 [size], exactly as it was opened."""
    counted = [piece.name for piece in federation.slices_at(at_step) if piece.counts]
    return {name: sums[name].astype(np.int64) for name in counted if name in sums}


def _mean(federation: Federation, total: Array, contributors: tuple[str, ...]) -> Vector:
    secagg = federation.config.secagg
    # Python's floats and elementwise IEEE operations in a fixed order: the same bits on every machine.
    weight = sum(federation.weights[site] for site in contributors)
    mean: Vector = (dequantise(total, secagg.clip, secagg.value_bits) / weight).astype(np.float32)
    return mean


def follow(federation: Federation, at_step: int, track: Track, means: Mapping[str, Vector]) -> Track:
    """The track after the server's step: the strategy for components, the method's solution for statistics.

    Raises:
        SecAggError: bad_model where a value is not finite any more.
    """
    config = federation.config.strategy
    if isinstance(config, FlowerConfig):
        raise TypeError("a Flower strategy's step cannot be recomputed")
    parameters, states = dict(track.parameters), dict(track.states)
    for name in sorted(set(means) & set(parameters)):
        parameters[name], states[name] = step(config, parameters[name], states.get(name, State()), means[name])
    return check_finite(solve_statistics(federation, at_step, Track(parameters, states), means))


def solve_statistics(federation: Federation, at_step: int, track: Track, means: Mapping[str, Vector]) -> Track:
    """The track with the components that the opened statistics of this step determine."""
    phases = [phase for phase in federation.phases_at(at_step) if isinstance(phase, StatisticPhase)]
    due = [phase for phase in phases if phase.slice_name in means]
    if not due:
        return track
    model = track.load_into(federation.new_model())
    solved: dict[str, Vector] = {}
    for phase in due:
        phase.solve(model, means[phase.slice_name].astype(np.float64))
        solved |= {name: model.get_component(name) for name in phase.components}
    return Track({**track.parameters, **solved}, track.states)


def check_finite(track: Track) -> Track:
    """The same track; raises SecAggError(bad_model) where a parameter or a moment is NaN or infinite."""
    moments = [values for state in track.states.values() for values in state.moments.values()]
    if not all(bool(np.isfinite(values).all()) for values in (*track.parameters.values(), *moments)):
        raise SecAggError("bad_model", "a parameter or a moment is not finite")
    return track


def check_shape(federation: Federation, track: Track) -> Track:
    """The same track; raises SecAggError(bad_model) unless it is whole, float32, and of the run's model."""
    expected = {name: (size,) for name, size in federation.model.component_sizes().items()}
    if {name: values.shape for name, values in track.parameters.items()} != expected or any(
        values.dtype != np.float32 for values in track.parameters.values()
    ):
        raise SecAggError("bad_model", "components, sizes or types are not those of the run's model")
    for name, state in track.states.items():
        if any(values.dtype != np.float32 or values.shape != expected.get(name) for values in state.moments.values()):
            raise SecAggError("bad_model", f"the optimizer's state of {name} does not fit it")
    return check_finite(track)
