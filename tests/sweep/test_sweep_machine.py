"""How many workers a machine holds: affinity, cgroups of both versions, containers, memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secure_fed.sweep.config import LauncherConfig
from secure_fed.sweep.machine import free_memory, usable_cores, worker_count

GIB = 2**30


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {2, 3, 6, 7})


V2 = {"proc/self/cgroup": "0::/user/job\n"}
V1 = {"proc/self/cgroup": "4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, (2, 3, 6, 7)),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "max 100000\n"}, (2, 3, 6, 7)),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "200000 100000\n"}, (2, 3)),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "150000 100000\n"}, (2,)),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "20000 100000\n"}, (2,)),
        # A limit on an ancestor is a limit too; in a container the path is the host's, and the mount is the own group.
        (V2 | {"sys/fs/cgroup/user/cpu.max": "300000 100000\n"}, (2, 3, 6)),
        (V2 | {"sys/fs/cgroup/cpu.max": "100000 100000\n"}, (2,)),
        (
            V1 | {"sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000"},
            (2, 3, 6, 7),
        ),
        (
            V1
            | {"sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "200000", "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000"},
            (2, 3),
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            (2,),
        ),
    ],
)
def test_cores_are_those_of_the_affinity_and_no_more_than_the_quota(
    tmp_path: Path, four_cores: None, files: dict[str, str], cores: tuple[int, ...]
) -> None:
    assert usable_cores(machine(tmp_path, files)) == cores


MEMINFO = {"proc/meminfo": "MemTotal: 64000000 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (MEMINFO, 8 * GIB),
        (
            MEMINFO | V2 | {"sys/fs/cgroup/user/job/memory.max": "max", "sys/fs/cgroup/user/job/memory.current": "1"},
            8 * GIB,
        ),
        (
            MEMINFO
            | V2
            | {
                "sys/fs/cgroup/user/job/memory.max": str(4 * GIB),
                "sys/fs/cgroup/user/job/memory.current": str(3 * GIB),
                # Pages of files that were read: given back when asked for.
                "sys/fs/cgroup/user/job/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
            },
            3 * GIB,
        ),
        (
            MEMINFO
            | V1
            | {
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2 * GIB),
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(GIB),
            },
            GIB,
        ),
        ({}, GIB),
    ],
)
def test_memory_is_what_is_available_and_what_the_cgroup_leaves(
    tmp_path: Path, files: dict[str, str], free: int
) -> None:
    assert free_memory(machine(tmp_path, files)) == free


@pytest.mark.parametrize(
    ("asked", "cells", "cores", "memory", "workers"),
    [
        (None, 72, 2, 32 * GIB, 2),
        (None, 72, 16, 6 * GIB, 4),  # 1.5 GiB each
        (None, 72, 16, 0, 1),
        (None, 3, 16, 64 * GIB, 3),
        (None, 0, 16, 64 * GIB, 1),
        (5, 72, 2, GIB, 5),  # asked for: the person knows better
        (5, 2, 2, GIB, 2),
    ],
)
def test_workers_are_one_for_each_core_that_finds_memory(
    asked: int | None, cells: int, cores: int, memory: int, workers: int
) -> None:
    launcher = LauncherConfig(name="processes", workers=asked, memory_gib=1.5, pin=True, address=None)
    assert worker_count(launcher, cells, cores, memory) == workers


def test_this_machine_has_at_least_one_core_and_some_memory() -> None:
    assert set(usable_cores()) <= os.sched_getaffinity(0)
    assert usable_cores()
    assert free_memory() > 0
