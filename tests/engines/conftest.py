"""Makes the bench importable by name, as pytest puts this folder on the path."""

from __future__ import annotations

import pytest


@pytest.fixture
def steady_config(make_config):
    """One phase in every round, and rounds enough."""
    return lambda *overrides, **options: make_config("method=zero_fill", "federation.rounds=8", *overrides, **options)
