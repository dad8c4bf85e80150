"""Run folders for tests of reports, made by `example_run.py` without training."""

from __future__ import annotations

from pathlib import Path

import pytest
from example_run import Example


@pytest.fixture
def example() -> Example:
    return Example()


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run that no test changes."""
    return Example().write(tmp_path_factory.mktemp("finished") / "run")
