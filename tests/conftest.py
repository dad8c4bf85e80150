"""What several rooms' tests share: small configurations, composed as the command line composes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secure_fed.config import compose_config, freeze
from secure_fed.federation.config import RunConfig
from secure_fed.sweep.axes import last_of_each_key
from secure_fed.sweep.composing import Composer

SMALL = (
    "data.patients=240",
    "federation.sites=5",
    "federation.ownership=1:1:3",
    "federation.rounds=3",
    "federation.corrupt=1",
    "method.classify.steps=2",
    "method.classify.learning_rate=1",  # so few records make loud noise: stay within the ring's clip
)
"""Five sites of about 70 studies: everything is real and nothing takes long."""

MakeConfig = Callable[..., RunConfig]

COMPOSER = Composer()
"""Hydra takes a fifth of a second; this asks it once for each choice of groups and gives what it would give."""


@pytest.fixture(scope="session", autouse=True)
def no_power_cut() -> Iterator[None]:
    """No waiting for the disk: a run syncs hundreds of times, and only a power cut could tell.

    Tests of syncing watch its calls; runs in processes of their own sync as ever.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses what is no open file, as syncing does
        yield


@pytest.fixture
def small() -> tuple[str, ...]:
    """The overrides themselves, for the command line."""
    return SMALL


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    def make(*overrides: str, folder: Path | None = None) -> RunConfig:
        composed = COMPOSER(last_of_each_key([*SMALL, *overrides]))
        return composed.model_copy(update={"run_dir": str(folder or tmp_path / "run")})

    return make


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished FIN run with drop-outs, for everybody who only reads."""
    from secure_fed.engines.runner import start

    folder = tmp_path_factory.mktemp("runs") / "finished"
    overrides = [*SMALL, "federation.rounds=6", "federation.dropout=0.1", "name=finished"]
    return start(freeze(compose_config(overrides), folder))
