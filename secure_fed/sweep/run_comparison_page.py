"""The comparison of runs as one self-contained page: scores with intervals, curves over missing rates, tables."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from secure_fed.files import write_whole
from secure_fed.report import formats
from secure_fed.report.page import Figure, resource, templates
from secure_fed.sweep.run_comparison import RunComparison
from secure_fed.sweep.run_comparison_plots import difference_plot, rate_plot, score_plot
from secure_fed.sweep.run_comparison_text import headline, rate_modalities, tables


def write_page(found: RunComparison, path: Path) -> Path:
    """Write the page and return its path; raises DataError where it cannot be written."""
    environment = templates().overlay(loader=jinja2.PackageLoader("secure_fed.sweep"))
    summaries = [summary for group in found.groups for summary in group.summaries]
    page = environment.get_template("compare_runs.html.j2").render(
        c=found,
        f=formats,
        style=Markup(resource("report.css")),  # noqa: S704 - our own file
        title=formats.listed(list(dict.fromkeys(group.first.method for group in found.groups))),
        runs=len(summaries),
        void=[summary.name for summary in summaries if summary.insecure_reproducible],
        off=any(summary.privacy == "off" for summary in summaries),
        headline=headline(found),
        figures=_figures(found),
        tables=tables(found),
    )
    return write_whole(path, page)


def _figures(found: RunComparison) -> list[Figure]:
    drawn = [
        (
            "Macro AUROC on the hold-out",
            score_plot(found),
            "A dot is a row's score, its line the 95 % interval: of a single run a bootstrap over the hold-out's "
            "patients, of several seeds Student's over the runs.",
            True,
        ),
        (
            "Paired differences in AUROC",
            difference_plot(found),
            "Over common seeds, on the same patients and under the same privacy. Orange: the interval leaves out 0.",
            True,
        ),
        *(
            (
                f"AUROC when {'one modality by lot' if modality == 'any' else modality} is missing",
                rate_plot(found, modality),
                "By the share of the hold-out's records that lack it; the same records for every row.",
                False,
            )
            for modality in rate_modalities(found)
        ),
    ]
    return [Figure(title, Markup(svg), caption, wide) for title, svg, caption, wide in drawn if svg]  # noqa: S704 - ours
