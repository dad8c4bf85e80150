"""Who is speaking, as Flower's Message() wants to know: its own processes set it, ours must.

The one place that touches this private API of Flower's.
"""

from __future__ import annotations

import secrets

from flwr.supercore.task_identity import TaskIdentity

_TASK, _NODE = 1, 1


def take_identity(run_id: int) -> None:
    """Let this process speak for the run `run_id`."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = _TASK, run_id, _NODE


def ensure_identity() -> None:
    """Let this process speak for a run of its own, where Flower or an engine has not said for which."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        take_identity(secrets.randbits(63))
