"""An item of an epsilon report: filled from data, or not applicable with the reason. Never blank."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Table:
    """Rows of text; columns whose place is in `numeric` are set to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    caption: str = ""


@dataclass(frozen=True)
class Item:
    """One point that a report must answer. Where `not_applicable` is set, it says why, and nothing else is."""

    id: str
    title: str
    statements: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    not_applicable: str | None = None

    def __post_init__(self) -> None:
        filled = bool(self.statements or self.facts or any(table.rows for table in self.tables))
        if filled == (self.not_applicable is not None):
            raise ValueError(f"Item {self.id}: either it is filled from data, or it says why it does not apply.")

    def to_json(self) -> dict[str, object]:
        """Plain values: all that the page shows of the item."""
        return {
            "id": self.id,
            "title": self.title,
            "status": "filled" if self.not_applicable is None else "not_applicable",
            "reason": self.not_applicable,
            "statements": list(self.statements),
            "facts": [{"name": name, "value": value} for name, value in self.facts],
            "tables": [
                {"caption": t.caption, "columns": list(t.columns), "rows": [list(row) for row in t.rows]}
                for t in self.tables
            ],
        }


def grouped(pairs: Iterable[tuple[Key, str]]) -> list[tuple[Key, list[str]]]:
    """Sites with equal keys together, each once, in the order of their first."""
    groups: dict[Key, dict[str, None]] = {}
    for key, site in pairs:
        groups.setdefault(key, {})[site] = None
    return [(key, list(sites)) for key, sites in groups.items()]
