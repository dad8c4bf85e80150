"""How much of this machine is ours: cores and memory under affinity, cgroups (versions 1 and 2) and what is free."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from secure_fed.sweep.config import LauncherConfig

_GIB = 2**30


def usable_cores(root: Path = Path("/")) -> tuple[int, ...]:
    """Numbers of the cores that this process may run on, no more of them than its cgroups' CPU quota.

    root: where /proc and /sys lie.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    quota = min(_cpu_quotas(root), default=float("inf"))
    # A quota of 1.5 cores serves one worker at full speed; two would wait for each other.
    return tuple(cores[: max(1, int(min(quota, len(cores))))])


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that can be used without swapping: what the kernel calls available, no more than the cgroups leave."""
    available = [limit - used for limit, used in _memory_limits(root)]
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            available.append(int(line.split()[1]) * 1024)
    return max(0, min(available, default=_GIB))


def worker_count(launcher: LauncherConfig, cells: int, cores: int, memory: int) -> int:
    """Workers for so many cells: as configured, else one for each core that finds memory (bytes); at least one."""
    fitting = launcher.workers or min(cores, int(memory / (launcher.memory_gib * _GIB)))
    return max(1, min(fitting, cells))


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time of every cgroup that limits this process, its ancestors included."""
    for folder in _groups(root, ""):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)
    for folder in _groups(root, "cpu"):
        quota = _text(folder / "cpu.cfs_quota_us").strip()
        period = _text(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit():  # -1: no limit
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of every cgroup that limits this process; what can be reclaimed is not counted as used."""
    for controller, limit_file, used_file, reclaimable in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _groups(root, controller):
            limit, used = _text(folder / limit_file).strip(), _text(folder / used_file).strip()
            if limit.isdigit() and used.isdigit():
                stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines() if line.count(" ") == 1)
                yield int(limit), max(0, int(used) - int(stat.get(reclaimable, 0)))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup under `controller` ("": version 2), and of its ancestors."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(",") if controller else not controllers:
            mounts = (
                [f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}"] if controller else ["sys/fs/cgroup"]
            )
            mount = next((root / name for name in mounts if (root / name).is_dir()), None)
            if mount is not None:
                own = mount / path.strip("/")
                # In a container the path is the host's: then the mount itself is this process's group.
                yield own
                yield from (parent for parent in own.parents if parent == mount or mount in parent.parents)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
