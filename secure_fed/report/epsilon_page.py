"""`epsilon_report.html`: the epsilon report for people, one file that needs no network and prints on paper.

Everything that it says comes from the report's items; jinja2 escapes every value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from secure_fed.report import formats
from secure_fed.report.charts import curve_chart
from secure_fed.report.epsilon_figures import statement
from secure_fed.report.epsilon_sites import CURVE_DELTAS, Facts
from secure_fed.report.notices import Notice
from secure_fed.report.page import Tile, resource, templates
from secure_fed.report.report_item import Item


def render(facts: Facts, items: Sequence[Item], warnings: Sequence[Notice]) -> str:
    """The page as text."""
    summary = facts.run.summary if facts.run is not None else None
    svg = _curve(facts)
    return (
        templates()
        .get_template("epsilon_report.html.j2")
        .render(
            name=summary.name if summary is not None else _ledgers_name(facts),
            run=None if summary is None else summary.run,
            state_of=max((site.last_time for site in facts.sites if site.last_time), default=None),
            style=Markup(resource("report.css") + resource("epsilon_report.css")),  # noqa: S704 - our own files
            warnings=warnings,
            statement=statement(facts),
            holds=facts.epsilon is not None and math.isfinite(facts.epsilon) and facts.sources.verdict.ok,
            tiles=tiles(facts),
            items=items,
            curve=None if svg is None else Markup(svg),  # noqa: S704 - numbers and escaped text of our own svg module
        )
    )


def _ledgers_name(facts: Facts) -> str:
    return (
        f"Ledger of {facts.sites[0].site}" if len(facts.sites) == 1 else f"{formats.plural(len(facts.sites), 'ledger')}"
    )


def tiles(facts: Facts) -> list[Tile]:
    """The headline figures."""
    value, verdict = facts.epsilon, facts.sources.verdict
    runs = {run.run for site in facts.sites for run in site.runs}
    established = "not established" if value is None else "void" if facts.void else "over all runs on the ledgers"
    units = formats.listed([unit for unit, _ in facts.guarantees]) or formats.NOTHING
    relation = formats.listed([name.replace("_", " ") for _, name in facts.guarantees])
    return [
        Tile("Largest ε of a site", "?" if value is None else formats.epsilon(value), established),
        *_tuned(facts),
        Tile("at δ", formats.small(facts.delta), "the largest of any ledger"),
        Tile("Unit of privacy", units, relation),
        Tile("Sites", formats.count(len(facts.sites)), f"{formats.plural(len(runs), 'run')} on their ledgers"),
        Tile("Ledgers", "hold" if verdict.ok else "do not hold", f"keys: {verdict.roster}"),
    ]


def _tuned(facts: Facts) -> list[Tile]:
    tuning = facts.sources.tuning
    if tuning is None or tuning.basis == "own":
        return []
    value, how = tuning.figure, "all runs of the sweep composed"
    if tuning.mode == "repeat_select":
        how = "best of a random number, RDP"
    return [Tile("ε with tuning", "?" if value is None else formats.epsilon(value), how)]


def _curve(facts: Facts) -> str | None:
    largest = facts.largest
    if facts.void or largest is None or largest.figures is None or largest.genesis is None or not largest.charges:
        return None
    points = [(d, e) for d, e in zip(CURVE_DELTAS, largest.figures.curve, strict=True) if math.isfinite(e)]
    return curve_chart(points, largest.genesis.delta, 1 / largest.genesis.declared_n, largest.figures.pld)
