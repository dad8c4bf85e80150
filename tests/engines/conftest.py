"""Makes the bench importable by name, as pytest puts this folder on the path."""

from __future__ import annotations

import numpy as np
import pytest

from secure_fed.client.training import LocalTraining


@pytest.fixture
def steady_config(make_config):
    """One phase in every round, and rounds enough."""
    return lambda *overrides, **options: make_config("method=zero_fill", "federation.rounds=8", *overrides, **options)


@pytest.fixture
def updates(monkeypatch):
    """The un-masked updates of every site, taken from inside the sites, for comparison only."""
    taken: dict[str, dict[str, np.ndarray]] = {}
    original = LocalTraining.update

    def spy(self, header, track):
        taken[self.site.name] = original(self, header, track)
        return taken[self.site.name]

    monkeypatch.setattr(LocalTraining, "update", spy)
    return taken
