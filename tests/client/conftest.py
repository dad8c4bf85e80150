"""A founded run whose rounds charge two phases, with the benches of the engines' tests within reach."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from federation_bench import Bench
from two_phase_site import TWO_PHASES


@pytest.fixture
def bench(make_config, tmp_path) -> Bench:
    return Bench.make(make_config(TWO_PHASES, "secagg.max_attempts=1", folder=tmp_path / "run"))
