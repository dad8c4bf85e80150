"""The tables of `docs/results.md`, as lines of Markdown: scores, phases, imputed features, costs, contributors."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from results_studies import BASELINE, Gain, Study, Table, View, difference, privacy_of, tested

from secure_fed.report import formats
from secure_fed.report.run_folder import ComponentFacts, Summary
from secure_fed.sweep.contrasts import verdict
from secure_fed.sweep.differences import shown
from secure_fed.sweep.page_tables import phase_table
from secure_fed.sweep.record import Scalar

QUALITY = (
    ("imputation_cosine", "cosine"),
    ("imputation_mse_over_variance", "MSE over variance"),
    ("imputation_rank", "rank"),
)
"""Metrics of imputed features by modality, and what they are called."""


def table_lines(headings: Sequence[str], rows: Iterable[Sequence[str]], *, text: int = 1) -> list[str]:
    """A Markdown table whose columns from `text` on are figures, set to the right; a blank line after it."""
    marks = ["---" if place < text else "---:" for place in range(len(headings))]
    lines = [headings, marks, *rows]
    return [*(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines), ""]


# -- scores --------------------------------------------------------------------------------------------------


def score_lines(study: Study, table: Table) -> list[str]:
    """Mean AUROC of each row and view, and its paired difference to the baseline; AUPRC folded away below."""
    lines = _scores(study, table, [(view.title, view.metric) for view in study.views])
    precision = [(view.title, view.average_precision) for view in study.views]
    if any(row.scores(metric) for row in table.rows for _, metric in precision):
        lines += ["<details><summary>The same in macro AUPRC</summary>", ""]
        lines += [*_scores(study, table, precision), "</details>", ""]
    return lines


def matrix_lines(study: Study, tables: Sequence[Table], view: View) -> list[str]:
    """Settings as rows and methods as columns: the baseline's mean AUROC, and what the others differ from it."""
    names = list(dict.fromkeys(row.name for table in tables for row in table.rows))
    gains = tested(
        {
            (table.setting, name): gain.paired
            for table in tables
            for (name, _), gain in table.gains([view.metric], study.confidence).items()
        }
    )
    rows = []
    for table in tables:
        base = table.row(BASELINE)
        mean = base.interval(view.metric, study.confidence) if base is not None else None
        score = formats.score(mean.mean if mean else None)
        rows.append(
            [
                table.setting.place,
                *(score if name == BASELINE else gain_text(gains.get((table.setting, name))) for name in names),
            ]
        )
    headings = [name if name == BASELINE else f"{name} − {BASELINE}" for name in names]
    return table_lines(["setting", *headings], rows)


def _scores(study: Study, table: Table, columns: Sequence[tuple[str, str]]) -> list[str]:
    gains = table.gains([metric for _, metric in columns], study.confidence)
    headings = ["method" if study.name != "fin_ablation" else "variant", "seeds"]
    for title, _ in columns:
        headings += [title, f"− {BASELINE}"]
    headings.append("ε spent")
    rows = []
    for row in table.rows:
        cells = [row.name, str(len(row.cells))]
        for _, metric in columns:
            mean = row.interval(metric, study.confidence)
            cells += [formats.score(mean.mean if mean else None), gain_text(gains.get((row.name, metric)))]
        rows.append([*cells, "–" if row.spent is None else formats.epsilon(row.spent)])
    return table_lines(headings, rows)


def price_lines(study: Study) -> list[str]:
    """What privacy costs: each row at each budget minus itself without privacy, over common seeds."""
    budgets = [epsilon for epsilon in study.budgets if epsilon is not None]
    lines = []
    for off in study.at(None):
        private = {e: [t for t in study.at(e) if t.setting.factors == off.setting.factors] for e in budgets}
        found = {
            (row.name, view.title, epsilon): result
            for row in off.rows
            for view in study.views
            for epsilon, tables in private.items()
            for other in (table.row(row.name) for table in tables)
            if other is not None and (result := difference(row, other, view.metric, study.confidence)) is not None
        }
        gains = tested(found)
        rows = [
            [row.name, view.title, *(gain_text(gains.get((row.name, view.title, epsilon))) for epsilon in budgets)]
            for row in off.rows
            for view in study.views
        ]
        headings = ["method", "view", *(f"{privacy_of(epsilon)} − without" for epsilon in budgets)]
        if found:
            lines += [f"**{off.setting.place or 'all cells'}**", "", *table_lines(headings, rows, text=2)]
    return lines


def gain_text(gain: Gain | None) -> str:
    """`+0.012 ± 0.003, p 0.041`: mean, standard error, Holm's p; bold where the interval leaves out 0."""
    if gain is None:
        return ""
    result = gain.paired
    text = signed(result.difference)
    if result.standard_error is not None:
        text += f" ± {result.standard_error:.3f}"
    if verdict(gain.paired) in ("higher", "lower"):
        text = f"**{text}**"
    return text if gain.holm_p is None else f"{text}, p {p_text(gain.holm_p)}"


def signed(value: float) -> str:
    """A difference with three decimals, its sign, and a minus of its own width."""
    return f"{value:+.3f}".replace("-", "−")


def p_text(value: float) -> str:
    """A p-value with two digits, or that it is below a thousandth."""
    return "< .001" if value < 0.001 else f"{value:.2g}"


# -- what a phase cost, and how good imputed features are --------------------------------------------------


def phase_lines(study: Study) -> list[str]:
    """Every method's phases: what of the budget each had, and its epsilon as if it had run alone."""
    found = phase_table(study.results)
    targets = [f"ε alone, of {target}" for target in found.targets]
    headings = ["method", "phase", "released", "rounds", "share of the budget", *targets, "seconds", "bytes up"]
    rows = [
        [method, phase, artefact, rounds, share, *alone, seconds, size]
        for method, phase, artefact, rounds, share, alone, seconds, size in found.rows
    ]
    return table_lines(headings, rows, text=3)


def quality_lines(study: Study, table: Table) -> list[str]:
    """How near imputed features come to the real ones, means over seeds; rows without an imputation are left out."""
    modalities = [view.missing for view in study.views if view.missing is not None]
    columns = [(f"{title}, {m}", f"{metric}.{m}") for m in modalities for metric, title in QUALITY]
    rows = []
    for row in table.rows:
        # Zeros have no direction, so no cosine: they are no imputation to look at.
        if any(row.scores(f"imputation_cosine.{m}") for m in modalities):
            figures = [row.interval(metric, study.confidence) for _, metric in columns]
            rows.append([row.name, *("–" if figure is None else f"{figure.mean:.3f}" for figure in figures)])
    return table_lines(["method", *(title for title, _ in columns)], rows) if rows else []


# -- what a run costs ----------------------------------------------------------------------------------------


def cost_lines(study: Study, table: Table) -> list[str]:
    """Parameters, computation and traffic of each method, from the summary of its first cell."""
    headings = [
        "method",
        "parameters",
        "FLOPs an inference",
        "FLOPs an imputation",
        "bytes up",
        "bytes down",
        "seconds",
    ]
    rows = []
    for row, summary in study.summaries(table):
        cost = summary.cost
        imputing = ", ".join(f"{name} {formats.large(flops)}" for name, flops in cost.flops_imputation.items())
        rows.append(
            [
                row.name,
                formats.count(cost.parameters_total),
                formats.large(cost.flops_inference),
                imputing or formats.NOTHING,
                *(formats.size(round(size)) for size in (cost.bytes_up_per_site_round, cost.bytes_down_per_site_round)),
                f"{cost.seconds_per_round:.2f}",
            ]
        )
    return table_lines(headings, rows)


def paper_cost_lines(costs: Mapping[str, object]) -> list[str]:
    """The table that `benchmarks/costs.py --json` measured at the paper's sizes."""
    rows, ratios = costs.get("rows"), costs.get("ratios")
    assert isinstance(rows, list)  # noqa: S101 - so written by our own benchmark, and read strictly
    assert isinstance(ratios, dict)  # noqa: S101
    figures = [
        [
            row["method"],
            formats.count(row["parameters_per_round"]),
            formats.size(row["bytes_up_per_site_round"]),
            formats.large(row["flops_imputation"]),
        ]
        for row in rows
    ]
    headings = ["method", "parameters uploaded a round", "bytes up, a site and round", "FLOPs an imputation"]
    return [
        *table_lines(headings, figures),
        f"From a film to the text's feature, the generative baseline needs {ratios['communication']:.1f} times FIN's "
        f"bytes (aim: 10; against FIN's both directions {ratios['communication_both_directions']:.1f}) and "
        f"{round(ratios['computation']):,} times its FLOPs (aim: 1,000; without reading what it wrote "
        f"{round(ratios['computation_writing_alone']):,}).",
        "",
    ]


# -- contributors --------------------------------------------------------------------------------------------


def contributor_lines(study: Study) -> list[str]:
    """For each ownership: components, who contributes, the floor, and what protects them beside the noise."""
    lines = []
    seen = set()
    for table in study.tables:
        # Floors and owners do not depend on the budget; the privacy of the cell does not change them either.
        if table.setting.factors in seen or table.setting.epsilon is None:
            continue
        seen.add(table.setting.factors)
        # One component may be summed under one method and solved from a statistic under another.
        rows: dict[tuple[str, str, int], tuple[ComponentFacts, list[str]]] = {}
        for row, summary in study.summaries(table):
            for name, facts in summary.summed.items():
                key = (name, protection(summary, facts), len(facts.owners))
                rows.setdefault(key, (facts, []))[1].append(row.name)
        title = table.setting.place or "all cells"
        lines += [f"**{title}**", ""]
        every = len(table.rows)
        lines += table_lines(
            ["component", "in", "beside its noise it is protected by", "contributors", "floor"],
            [
                [
                    f"`{name}`",
                    "every method" if len(methods) == every else ", ".join(methods),
                    protected,
                    str(contributors),
                    formats.NOTHING if facts.floor is None else str(facts.floor),
                ]
                for (name, protected, contributors), (facts, methods) in rows.items()
            ],
            text=3,
        )
    return lines


def protection(summary: Summary, facts: ComponentFacts) -> str:
    """What the masks are worth for a component, from its owners, its floor and the corrupt sites reckoned with."""
    if facts.floor is None:
        return "never summed: solved from a statistic" if summary.secagg.mode == "on" else "nothing: masks are off"
    if facts.floor == 1:
        return "nothing: its sum can be one single site's update"
    owners, corrupt = len(facts.owners), summary.secagg.corrupt or 0
    text = f"a sum of {owners}, at the least {facts.floor}"
    if corrupt:
        return f"{text}; {facts.floor - corrupt} of these honest with {formats.plural(corrupt, 'corrupt site')}"
    if facts.floor == 2:
        who = "one of the two" if owners == 2 else "one owner of a sum at its floor"
        return f"{text}; if {who} colludes with the server, nothing"
    return f"{text}; with k colluding owners {facts.floor} − k"


def command_of(study: Study) -> str:
    """The command that runs the sweep, without the folder, which is anybody's own."""
    return shlex.join(["secure-fed", "sweep", *_arguments(study)])


def _arguments(study: Study) -> list[str]:
    kept = [item for item in study.results.manifest.arguments if item.partition("=")[0] not in _OWN]
    return [f"{item.partition('=')[0]}=PATH" if _is_path(item) else item for item in kept]


_OWN = {"sweep.dir", "launcher", "launcher.workers"}


def _is_path(item: str) -> bool:
    """Where data lie is no part of what was run, and nobody else's business."""
    return item.partition("=")[2].lstrip("'\"").startswith(("/", "~"))


def row_command(study: Study, table: Table, row: str) -> str:
    """The command that runs one row of a table again, all of its seeds."""
    known = {axis.name for axis in study.results.manifest.axes}
    chosen: dict[str, Scalar] = {**dict(table.setting.factors), "privacy.epsilon": table.setting.epsilon}
    chosen["variant" if study.name == "fin_ablation" else "method"] = row
    found = {name: _argument(name, value) for name, value in chosen.items() if name in known and value is not None}
    kept = [item for item in _arguments(study) if item.partition("=")[0] not in found]
    return shlex.join(["secure-fed", "sweep", *kept, *found.values()])


def _argument(name: str, value: Scalar) -> str:
    quoted = isinstance(value, str) and ":" in value
    return f'{name}="{value}"' if quoted else f"{name}={shown(value)}"
