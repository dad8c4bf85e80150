"""`sweep.html`: the picture of a sweep on one self-contained page, with the tables and sentences that go with it.

jinja2 escapes every value; the page's one script is named by its hash, and nothing else may run or load.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from pathlib import Path

import jinja2
from markupsafe import Markup

from secure_fed.files import write_whole
from secure_fed.report import formats
from secure_fed.report.page import resource
from secure_fed.report.page import templates as report_templates
from secure_fed.sweep import page_data, page_tables, page_top
from secure_fed.sweep.contrasts import comparisons
from secure_fed.sweep.metrics import note_of
from secure_fed.sweep.price import Price, price_of
from secure_fed.sweep.summary_text import findings, lead
from secure_fed.sweep.table import Results, read_results

PAGE = "sweep.html"


def write_page(folder: Path) -> Path:
    """Write `sweep.html` into a sweep's folder, finished or not, and return its path; an old one is replaced whole.

    Raises DataError naming a missing or damaged file.
    """
    results = read_results(folder)
    return write_whole(folder / PAGE, render(results, price_of(results)))


def render(results: Results, price: Price) -> str:
    """The page as text."""
    picture, manifest = page_data.frontier(results), results.manifest
    told = comparisons(results, picture)
    data, script = page_data.page_json(results, picture), _template("sweep.js")
    environment = report_templates().overlay(loader=jinja2.PackageLoader("secure_fed.sweep"))
    return environment.get_template("sweep.html.j2").render(
        manifest=manifest,
        f=formats,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(resource("report.css") + _template("sweep.css")),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704 - our own file
        json=Markup(page_data.embedded(data)),  # noqa: S704 - no sign in it means anything to HTML
        data=data,
        warnings=page_top.notices(results, price),
        tiles=page_top.tiles(results, picture, price),
        lead=lead(results, picture),
        findings=findings(results, picture, told),
        glance=page_tables.glance_rows(picture, told),
        xs=page_tables.x_names(picture),
        caption=page_top.caption(results, picture),
        buttons=[metric for metric in page_data.metrics(results) if metric.main],
        others=[metric for metric in page_data.metrics(results) if not metric.main],
        objective=note_of(manifest.objective),
        confidence=f"{page_data.percent(manifest.confidence):g} %",
        panels=[page_data.place_name(picture.layout, index) for index in range(len(picture.layout.places))],
        x=page_data.short(picture.layout.x) if picture.layout.x is not None else "",
        series=page_data.short(picture.layout.series) if picture.layout.series is not None else "",
        best=page_tables.best_rows(results, picture),
        numbers=page_tables.number_rows(results, picture),
        compared=page_tables.references_compared(picture),
        phases=page_tables.phase_table(results),
        price=page_tables.price_rows(price),
        price_statement=price.statement,
        broken=[(page_tables.cell_name(cell), cell) for cell in results.broken],
        missing=[page_tables.cell_name(row) for row in results.missing],
        columns=page_tables.cell_columns(results, picture),
        cells=len(results.finished),
        setup=page_tables.setup_rows(results),
        command=shlex.join(["secure-fed", "sweep", *manifest.arguments]),
    )


def script_hash(script: str) -> str:
    """SHA-256 of an inline script in base64, as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
