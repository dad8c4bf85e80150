"""One site of a small run with two charges a round, and what tests look up or change in its home."""

from __future__ import annotations

import yaml

from secure_fed.client.home import Home
from secure_fed.ledger import read_ledger

SITE = "site01"
TWO_PHASES = "method.schedule=every_round"
"""Classifier and translators in one round: two charges of it."""


def bodies(home: Home, kind: type) -> list:
    return [r.body for r in read_ledger(home.ledger_path) if isinstance(r.body, kind)]


def edit(home: Home, **changes: object) -> None:
    path = home.policy_path
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def log_of(home: Home) -> str:
    return (home.private / "site.log").read_text()
