"""What a sweep's folder shows, made anew from its cells: tables, the chosen models' tuning, the page. No torch."""

from __future__ import annotations

from pathlib import Path

from secure_fed.sweep.choice import write_tuning
from secure_fed.sweep.folder import SweepFolder
from secure_fed.sweep.page import write_page
from secure_fed.sweep.price import price_of
from secure_fed.sweep.table import read_results, write_tables


def report_command(folder: Path) -> Path:
    """Write tables and page of a sweep that does not run; raises ConfigError where it does. Returns the page."""
    sweep = SweepFolder(folder)
    sweep.manifest()
    with sweep.locked():
        return rewrite(sweep.root)


def rewrite(folder: Path) -> Path:
    """Tables, the chosen models' tuning and the page anew from the cells; returns the page. The lock must be held."""
    write_tables(folder)
    results = read_results(folder)
    write_tuning(results, price_of(results))
    return write_page(folder)
