"""Versions of the software that a result or a ledger record stands on, without importing any of it."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("secure-fed", "torch", "opacus", "flwr", "cryptography", "dp-accounting", "numpy")


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package.replace("-", "_"), version(package)))
        except PackageNotFoundError:
            continue
    return tuple(found)


def versions() -> dict[str, str]:
    """Package name -> installed version."""
    return dict(_versions())
