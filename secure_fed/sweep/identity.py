"""Which cell is which: the hash of what a run depends on, and of the code that runs it.

Two cells with one hash would be one run twice; a finished cell with another code version is another cell.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from secure_fed.config import config_dir
from secure_fed.federation.config import RunConfig
from secure_fed.identity import canonical_json
from secure_fed.versions import versions

_ASIDE: dict[str, bool | set[str]] = {
    "name": True,
    "run_dir": True,
    "engine": True,
    "secagg": {"threads"},
    "federation": {"homes"},
}
"""Where and how a run is computed, which no result depends on."""

_OF_PRIVACY = ("epsilon", "delta", "max_grad_norm", "max_noise_ratio", "budget_shares")
"""What of the privacy section only a run with privacy reads."""


@cache
def code_version() -> str:
    """The package's version and, behind a plus, 16 hex digits of SHA-256 over its sources and configuration files."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for root in dict.fromkeys((package, config_dir())):
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                content = path.read_bytes()
                name = path.relative_to(root).as_posix().encode()
                digest.update(len(name).to_bytes(8, "big") + name + len(content).to_bytes(8, "big") + content)
    return f"{versions().get('secure_fed', '0')}+{digest.hexdigest()[:16]}"


def cell_id(config: RunConfig, repeat: int = 0) -> str:
    """The first 16 hex digits of SHA-256 over canonical JSON of what decides a cell's result."""
    what = {"config": what_counts(config), "code": code_version(), "repeat": repeat}
    return hashlib.sha256(canonical_json(what)).hexdigest()[:16]


def what_counts(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values, without those that cannot change its result.

    With privacy off neither epsilon nor clip nor a step count for noisy gradients means anything; with it on, those of
    plain gradients do not. What is only suspected to mean nothing stays.
    """
    tree: dict[str, Any] = config.model_dump(mode="json", exclude=_ASIDE)
    private = config.privacy.mode == "dp"
    unread = ("unclipped_steps", "unclipped_learning_rate") if private else ("steps", "learning_rate")
    for phase in tree["method"].values():
        if isinstance(phase, dict) and "unclipped_steps" in phase:
            for key in unread:
                del phase[key]
    if not private:
        for key in _OF_PRIVACY:
            del tree["privacy"][key]
        tree["federation"].pop("lifetime_epsilon")
        tree["evaluation"].pop("noise", None)
    return tree
