"""Makes the example importable by name, as pytest puts this folder on the path, and writes one to look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from example import example_sweep
from omegaconf import DictConfig

from secure_fed.config import compose_config
from secure_fed.sweep import composing


@pytest.fixture(scope="session", autouse=True)
def hydra_is_asked_once() -> Iterator[None]:
    """Sweeps only read what Hydra composes, and most of these choose the same groups."""

    @cache
    def composed(overrides: tuple[str, ...]) -> DictConfig:
        return compose_config(overrides)

    def once(overrides: Sequence[str]) -> DictConfig:
        return composed(tuple(overrides))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composing, "compose_config", once)
        yield


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as it is by default, for everybody who only reads: whoever writes makes an example of their own."""
    return example_sweep(tmp_path_factory.mktemp("sweeps") / "finished")
