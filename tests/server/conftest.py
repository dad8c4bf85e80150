"""A federation whose model looks trained, for the tests of what the coordinator scores."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from secure_fed.config import compose_config, freeze
from secure_fed.data import Records
from secure_fed.engines.simulated_sites import simulate
from secure_fed.federation.facts import Federation
from secure_fed.models.batch import Batch
from secure_fed.models.multimodal import MultimodalModel


@dataclass(frozen=True)
class Shape:
    """An untrained model of which no layer is zero, and its hold-out, raw and prepared."""

    federation: Federation
    model: MultimodalModel
    records: Records
    holdout: Batch


@pytest.fixture(scope="session")
def kept_shape(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    """For everybody who changes nothing of it."""
    folder: Path = tmp_path_factory.mktemp("shape") / "run"
    overrides = ("data.patients=240", "federation.sites=5", "federation.ownership=1:1:3", "federation.rounds=3")
    config = freeze(compose_config(overrides), folder)
    simulated = simulate(config)
    federation = Federation(config, simulated.members)
    model = federation.new_model()
    return Shape(federation, _filled(model), simulated.holdout, model.prepare(simulated.holdout))


@pytest.fixture
def shape(kept_shape: Shape) -> Shape:
    """The same with a model of its own."""
    return dataclasses.replace(kept_shape, model=_filled(kept_shape.federation.new_model()))


def _filled(model: MultimodalModel) -> MultimodalModel:
    rng = np.random.default_rng(0)
    for name, size in model.component_sizes().items():
        model.set_component(name, rng.normal(0, 0.3, size).astype(np.float32))
    return model
