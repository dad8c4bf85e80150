"""Makes the example importable by name, as pytest puts this folder on the path, and writes one to look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from example import example_sweep


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example as it is by default, for everybody who only reads: whoever writes makes an example of their own."""
    return example_sweep(tmp_path_factory.mktemp("sweeps") / "finished")
