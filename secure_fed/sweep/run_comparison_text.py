"""A comparison of runs in words, tables and JSON: what the terminal and the page have in common."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secure_fed.report import formats
from secure_fed.report.assessment import AIM, rate_lines
from secure_fed.sweep.comparison import p_value
from secure_fed.sweep.run_comparison import CONFIDENCE, Difference, Group, RunComparison, Score

SCHEMA = "secure_fed.run_comparison/1"
_NARROW = 9
LIKENESS = ("cosine", "mse_over_variance", "rank", "recall_at_10")
"""Figures of an imputed modality; the constant mean of the real features has its own."""


@dataclass(frozen=True)
class Lines:
    """A table as text; columns from `numbers` on are figures. `note` explains it; the terminal leaves out `more`."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int = 1
    note: str = ""
    more: bool = False


def tables(found: RunComparison) -> list[Lines]:
    """Every table of the comparison, those without a row left out."""
    every = [
        _about(found),
        *(_scores(found, kind) for kind in ("auroc", "auprc")),
        *(_paired(found, kind) for kind in ("auroc", "auprc")),
        _imputation(found),
        _rates(found),
        _cost(found),
        _contributors(found),
        _settings(found),
    ]
    return [table for table in every if table.rows]


def _about(found: RunComparison) -> Lines:
    headings = ("run", "data", "seeds", "ownership", "ε spent")
    rows = tuple(
        (
            group.label,
            group.first.data,
            formats.spans(group.seeds),
            group.ownership,
            "∞" if group.epsilon_spent is None else formats.epsilon(group.epsilon_spent),
        )
        for group in found.groups
    )
    return Lines("What was run", headings, rows, numbers=4)


def _scores(found: RunComparison, kind: str) -> Lines:
    rows = tuple(
        (group.label, *(score_text(group.score(view, kind)) for view in found.views)) for group in found.groups
    )
    title = f"Macro {kind.upper()}"
    return Lines(title, ("run", *(view.title for view in found.views)), rows)


def score_text(score: Score | None) -> str:
    """`0.861 [.840, .880]`."""
    return formats.NOTHING if score is None else f"{formats.score(score.mean)}{_interval(score.low, score.high, '')}"


def _interval(low: float | None, high: float | None, sign: str) -> str:
    if low is None or high is None:
        return ""
    return f" [{_fraction(low, sign)}, {_fraction(high, sign)}]"


def _fraction(value: float, sign: str) -> str:
    """Three decimals without the zero before them: `.840`, `−.012`."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1).replace("-", "−")


def _paired(found: RunComparison, kind: str) -> Lines:
    rows = []
    for item in found.differences:
        if item.kind == kind:
            p = p_value(item.holm_p).removeprefix("p ").removeprefix("= ")
            rows.append((item.label, item.against, item.view.title, difference_text(item), str(item.paired.n), p))
    headings = ("run", "minus", "view", "difference", "seeds", "p, Holm")
    note = f"Intervals of {100 * CONFIDENCE:g} % by Student's t over the seeds' differences."
    title = f"Paired differences in {kind.upper()}"
    return Lines(title, headings, tuple(rows), numbers=3, note=note, more=kind == "auprc")


def difference_text(item: Difference) -> str:
    """`+0.019 [+.017, +.020]`."""
    found = item.paired
    return f"{found.difference:+.3f}".replace("-", "−") + _interval(found.low, found.high, "+")


def _imputation(found: RunComparison) -> Lines:
    targets = dict.fromkeys(name for group in found.groups for name in group.first.imputation)
    rows = []
    for target in targets:
        for group in found.groups:
            if all(target in summary.imputation for summary in group.summaries):
                facts = [summary.imputation[target] for summary in group.summaries]
                cells = []
                for name in LIKENESS:
                    own = _mean([getattr(of_run, name) for of_run in facts])
                    constant = _mean([getattr(of_run.constant_mean, name) for of_run in facts])
                    cells.append(f"{_figure(own)} ({_figure(constant)})")
                rows.append((target, group.label, *cells))
    note = (
        "Imputed from all other modalities, on hold-out records that have everything; in brackets what the constant "
        f"mean of the real features scores. Rank: 0 is best, 0.5 chance. {AIM}."
    )
    headings = ("imputed", "run", "cosine", "MSE over variance", "rank", "recall at 10")
    return Lines("Imputed features against the real ones", headings, tuple(rows), numbers=2, note=note)


def _mean(values: Sequence[float | None]) -> float | None:
    """Over the runs that have a figure."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _figure(value: float | None) -> str:
    return formats.NOTHING if value is None else f"{value:.3f}"


def rate_means(group: Group, modality: str) -> list[tuple[float, float]]:
    """(share of records that lack `modality`, mean AUROC over the runs), in order; `any` is one modality by lot."""
    found: dict[float, list[float]] = {}
    for summary in group.summaries:
        for rate, score in rate_lines(summary, "AUROC").get(modality, []):
            found.setdefault(rate, []).append(score)
    return [(rate, math.fsum(values) / len(values)) for rate, values in sorted(found.items())]


def rate_modalities(found: RunComparison) -> list[str]:
    """What is taken away at some rate: each modality, then `any`."""
    return list(dict.fromkeys(point.modality for group in found.groups for point in group.first.missing_rates))


def _rates(found: RunComparison) -> Lines:
    rates: list[float] = []
    rows = []
    for modality in rate_modalities(found):
        for group in found.groups:
            means = dict(rate_means(group, modality))
            rates = rates or sorted(means)
            if means:
                rows.append((modality, group.label, *(formats.score(means.get(rate)) for rate in rates)))
    note = "The same records lose the same modality for every row; `any` is one modality of a record, by lot."
    headings = ("missing", "run", *(f"{100 * rate:g} %" for rate in rates))
    return Lines(
        "Macro AUROC by the share of records that lack a modality", headings, tuple(rows), numbers=2, note=note
    )


def _cost(found: RunComparison) -> Lines:
    modalities = list(dict.fromkeys(name for group in found.groups for name in group.first.cost.flops_imputation))
    rows = []
    for group in found.groups:
        cost, imputing = group.first.cost, group.first.cost.flops_imputation
        rows.append(
            (
                group.label,
                formats.count(cost.parameters_total),
                formats.large(cost.flops_inference),
                *(formats.large(imputing[name]) if name in imputing else formats.NOTHING for name in modalities),
                *(formats.size(round(b)) for b in (cost.bytes_up_per_site_round, cost.bytes_down_per_site_round)),
                _figure(_mean([summary.cost.seconds_per_round for summary in group.summaries])),
            )
        )
    imputed = (f"FLOPs, {name} imputed" for name in modalities)
    headings = ("run", "parameters", "FLOPs, inference", *imputed, "bytes up", "bytes down", "seconds")
    note = "FLOPs of one record; bytes of a site and round, masked; seconds of a round as it was measured."
    return Lines("What it costs", headings, tuple(rows), note=note)


def _contributors(found: RunComparison) -> Lines:
    rows = []
    for name in dict.fromkeys(name for group in found.groups for name in group.first.summed):
        texts = {}
        for group in found.groups:
            if (facts := group.first.summed.get(name)) is not None:
                floor = "" if facts.floor is None else f", floor {facts.floor}"
                texts[group.label] = f"{len(facts.owners)}{floor}"
        rows.append((name, _by_value(texts, len(found.groups))))
    note = "Sites that own all modalities in a component's name; fewer than the floor open no sum."
    return Lines("Contributors", ("component", "sites"), tuple(rows), numbers=2, note=note)


def _settings(found: RunComparison) -> Lines:
    rows = tuple((setting.key, _by_value(setting.values, len(found.groups))) for setting in found.settings)
    note = "Beside the seed, and options in which one method differs from another."
    return Lines("What else differs", ("setting", "value"), rows, numbers=2, note=note)


def _by_value(values: Mapping[str, str], rows: int) -> str:
    """Which rows have which value: `3 (fin, ε 3); 8 (all others)`, or the one value of all."""
    labels: dict[str, list[str]] = {}
    for label, value in values.items():
        labels.setdefault(value, []).append(label)
    if len(labels) == 1 and len(values) == rows:
        return next(iter(labels))
    most = max(labels.values(), key=len)
    others = len(values) == rows and len(most) > 1
    return "; ".join(
        f"{value} ({'all others' if others and names is most else '; '.join(names)})" for value, names in labels.items()
    )


def render(found: RunComparison, console: Console) -> None:
    """Print the tables, what came out, and the remarks."""
    for lines in (lines for lines in tables(found) if not lines.more):
        table = Table(title=escape(lines.title), box=None, pad_edge=False)
        for place, heading in enumerate(lines.headings):
            # Figures stay on one line; their headings may take several.
            number = place >= lines.numbers
            text = "\n".join(textwrap.wrap(heading, _NARROW, break_long_words=False)) if number else heading
            least = None if number else min(_NARROW, max(len(row[place]) for row in lines.rows))
            side: Literal["left", "right"] = "right" if number else "left"
            table.add_column(escape(text), justify=side, overflow="fold", no_wrap=number, min_width=least)
        for row in lines.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        if lines.note:
            console.print(f"[dim]{escape(lines.note)}[/]")
        console.print()
    console.print(f"[bold]{escape(headline(found))}[/]")
    if found.unpaired:
        console.print(f"[yellow]paired with no other[/]: {escape('; '.join(found.unpaired))}")
    for remark in found.remarks:
        console.print(f"[dim]{escape(remark)}[/]")


def headline(found: RunComparison) -> str:
    """What came out, in a sentence or two."""
    told = [difference for difference in found.differences if difference.kind == "auroc"]
    if not told:
        return "No two rows share patients, seeds and privacy with another method: nothing is paired."
    tested = [difference for difference in told if difference.verdict != "unknown"]
    beyond = [difference for difference in tested if difference.verdict != "alike"]
    if not tested:
        count = formats.plural(len(told), "paired difference")
        return f"{count} in AUROC, of one seed each: nothing can be told from noise."
    return (
        f"{len(beyond)} of {formats.plural(len(tested), 'paired difference')} in AUROC with an interval that leaves "
        f"out 0; chance alone would show about {(1 - CONFIDENCE) * len(tested):.1f}."
    )


def to_json(found: RunComparison) -> dict[str, object]:
    """Plain JSON values; scores of every run with its own bootstrap interval."""
    return {
        "schema": SCHEMA,
        "headline": headline(found),
        "rows": [_row_json(found, group) for group in found.groups],
        "differences": [
            {
                "row": item.label,
                "against": item.against,
                "missing": item.view.missing,
                "metric": f"{item.kind}_macro",
                **asdict(item.paired),
                "holm_p": item.holm_p,
                "verdict": item.verdict,
            }
            for item in found.differences
        ],
        "settings": [asdict(setting) for setting in found.settings],
        "unpaired": list(found.unpaired),
        "remarks": list(found.remarks),
    }


def _row_json(found: RunComparison, group: Group) -> dict[str, object]:
    def scores(kind: str) -> dict[str, object]:
        known = {view.title: group.score(view, kind) for view in found.views}
        return {title: None if score is None else asdict(score) for title, score in known.items()}

    return {
        "label": group.label,
        "method": group.first.method,
        "data": group.first.data,
        "ownership": group.ownership,
        "privacy": group.first.privacy,
        "epsilon_spent": group.epsilon_spent,
        "auroc_macro": scores("auroc"),
        "auprc_macro": scores("auprc"),
        "runs": [
            {
                "folder": str(run.path),
                "seed": run.summary.seed,
                "epsilon_max": run.summary.epsilon_max,
                "auroc_macro": {view.title: view.auroc(run.summary) for view in found.views},
                "auroc_interval": {view.title: view.auroc_interval(run.summary) for view in found.views},
                "auprc_macro": {view.title: view.auprc(run.summary) for view in found.views},
                "auprc_interval": {view.title: view.auprc_interval(run.summary) for view in found.views},
                "missing_rates": [point.model_dump() for point in run.summary.missing_rates],
                "imputation": {name: facts.model_dump() for name, facts in run.summary.imputation.items()},
                "cost": run.summary.cost.model_dump(),
                "contributors": {name: len(facts.owners) for name, facts in run.summary.summed.items()},
            }
            for run in group.runs
        ],
    }
