"""Who contributed what: a grid of components by sites, and each component's rounds beside it.

A round in which a component stayed below its floor, and so kept its old value, is marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from secure_fed.report import formats
from secure_fed.report.run_folder import Step, Summary
from secure_fed.report.svg import document, element

_ROW = 30.0
_CELL_HEIGHT = 25.0
_WIDTH = 1100.0
_STRIP = 300.0
_NAME = 176.0
_TOP = 52.0


@dataclass(frozen=True)
class ComponentRow:
    """One component's contributions.

    `owned`: its owners. `rounds`: site -> rounds in which its update entered the sum. `timeline`: per step,
    how many contributed (None where it was not trained or nobody counted), and whether it kept its old value.
    """

    name: str
    owned: frozenset[str]
    rounds: Counter[str]
    timeline: tuple[tuple[int | None, bool], ...]

    @property
    def trained(self) -> int:
        """Rounds in which the component was trained at all."""
        return sum(contributors is not None or below for contributors, below in self.timeline)

    @property
    def kept(self) -> int:
        """Rounds in which it stayed below its floor."""
        return sum(below for _, below in self.timeline)


def component_rows(rows: Sequence[Step], summary: Summary) -> tuple[ComponentRow, ...]:
    """A row for every component of the model, then for every statistic that sites released."""
    named = [name for row in rows for name in (*row.contributors, *row.kept)]
    return tuple(_row(name, rows, summary) for name in dict.fromkeys([*summary.components, *named]))


def _row(name: str, rows: Sequence[Step], summary: Summary) -> ComponentRow:
    counts: Counter[str] = Counter()
    timeline: list[tuple[int | None, bool]] = []
    for row in rows:
        below = name in row.kept
        sites = row.contributors.get(name)
        if sites is None and not below:
            timeline.append((None, False))
            continue
        timeline.append((None if sites is None else len(sites), below))
        if not below:
            counts.update(sites or ())
    component = summary.components.get(name)
    return ComponentRow(name, frozenset(component.owners if component else counts), counts, tuple(timeline))


def contributions_chart(rows: Sequence[Step], summary: Summary) -> str:
    """The grid and the strips as one picture."""
    components = component_rows(rows, summary)
    sites = list(summary.members)
    cell = (_WIDTH - _STRIP - _NAME - 24) / max(1, len(sites))
    height = _TOP + _ROW * len(components) + 26
    strip = _WIDTH - _STRIP
    parts = [element("text", "rounds contributed, by site", class_="label", x=_NAME, y=14)]
    parts.append(element("text", "contributors, by round", class_="label", x=strip, y=14))
    for column, site in enumerate(sites):
        parts.append(_site_name(site, _NAME + (column + 0.5) * cell, cell))
    for index, component in enumerate(components):
        y = _TOP + index * _ROW
        name = component.name if len(component.name) <= 27 else f"{component.name[:26]}…"
        parts.append(
            element("text", name, class_="row", x=_NAME - 10, y=y + 16, text_anchor="end", title=component.name)
        )
        for column, site in enumerate(sites):
            parts += _cell(component, site, _NAME + column * cell, y, cell)
        parts += _strip(component, rows, strip, y)
    y = _TOP + len(components) * _ROW + 16
    parts.append(element("text", f"round {rows[0].round + 1}", class_="tick", x=strip, y=y))
    parts.append(element("text", f"{rows[-1].round + 1}", class_="tick", x=_WIDTH, y=y, text_anchor="end"))
    return document(_WIDTH, height, "Rounds contributed by each site to each component", parts)


def _site_name(site: str, x: float, cell: float) -> str:
    y = _TOP - 12
    if cell >= 7.2 * len(site):
        return element("text", site, class_="tick", x=x, y=y, text_anchor="middle")
    # Narrow columns: the trailing number alone, the whole name on hover.
    short = site[len(site.rstrip("0123456789")) :] or site[:2]
    return element("text", short, class_="tick", x=x, y=y, text_anchor="middle", title=site)


def _cell(component: ComponentRow, site: str, x: float, y: float, cell: float) -> list[str]:
    width = cell - 3
    if site not in component.owned:
        title = f"{site} does not own {component.name}"
        return [element("circle", title=title, class_="absent", cx=x + width / 2, cy=y + _CELL_HEIGHT / 2, r=1.6)]
    rounds = component.rounds[site]
    share = rounds / component.trained if component.trained else 0.0
    title = f"{site}, {component.name}: {rounds} of {formats.plural(component.trained, 'round')}"
    box: dict[str, Any] = {"x": x, "y": y, "width": width, "height": _CELL_HEIGHT, "rx": 3}
    parts = [element("rect", class_="cell-back", **box)]
    parts.append(
        element("rect", title=title, class_="cell", fill_opacity=0.12 + 0.88 * share if rounds else 0.0, **box)
    )
    if cell >= 20:
        class_ = "cell-text dark" if share > 0.5 else "cell-text"
        parts.append(
            element(
                "text",
                str(rounds),
                class_=class_,
                x=x + width / 2,
                y=y + 17,
                text_anchor="middle",
                title=title,
            )
        )
    return parts


def _strip(component: ComponentRow, rows: Sequence[Step], left: float, y: float) -> list[str]:
    """A bar for each trained round, as high as the share of owners that contributed; red below the floor."""
    width = _STRIP / len(rows)
    bottom = y + _CELL_HEIGHT
    parts = [element("line", class_="axis", x1=left, x2=left + _STRIP, y1=bottom, y2=bottom)]
    owners = max(1, len(component.owned))
    for index, ((contributors, below), row) in enumerate(zip(component.timeline, rows, strict=True)):
        place: dict[str, Any] = {"x": left + index * width, "width": max(0.6, width - min(1.5, width * 0.2))}
        number = f"round {row.round + 1}"
        if below:
            title = f"{number}: contributors below the floor, the old value was kept"
            parts.append(element("rect", title=title, class_="below", y=y + 2, height=_CELL_HEIGHT - 2, **place))
        elif contributors is not None:
            title = f"{number}: {contributors} of {formats.plural(len(component.owned), 'owner')} contributed"
            high = max(1.5, (_CELL_HEIGHT - 4) * min(1.0, contributors / owners))
            parts.append(element("rect", title=title, class_="part", y=bottom - high, height=high, **place))
    return parts
