"""Two sweeps side by side: what changed, and whether the scores moved, by paired tests over common seeds.

Cells meet where kind and factors are the same; nothing is averaged over settings that only one of them ran.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jinja2
from markupsafe import Markup
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secure_fed.errors import ConfigError
from secure_fed.files import write_whole
from secure_fed.report import formats
from secure_fed.report.page import resource, templates
from secure_fed.sweep.differences import Change, of_configs, of_manifests, read_config, shown
from secure_fed.sweep.forest import Block, Row, colour_of, forest
from secure_fed.sweep.matching import Place, Scored, Setting, mean, places_of, scores_of
from secure_fed.sweep.record import GRID
from secure_fed.sweep.statistics import Paired, holm, paired
from secure_fed.sweep.table import Results, read_results

SCHEMA = "secure_fed.comparison/1"
HEADINGS = ("before", "after", "difference", "ε before, after", "p, Student", "p, sign flips", "p, Holm")
# Two epsilons closer than this are one: calibration stops within a thousandth of its target.
_SAME_EPSILON = 0.01


@dataclass(frozen=True)
class Test:
    """One setting in both sweeps: means over the common seeds, `after - before`, and its p-value within the family.

    holm_p: t_p adjusted for the number of settings compared. beyond_noise: holm_p below 1 - confidence. epsilon_*:
    means of what was spent, None without a guarantee.
    """

    setting: Setting
    before: float
    after: float
    epsilon_before: float | None
    epsilon_after: float | None
    paired: Paired
    holm_p: float | None
    beyond_noise: bool


@dataclass(frozen=True)
class Side:
    """One of the two sweeps: its folder's name, and how many of its cells have finished."""

    folder: str
    name: str
    code: str
    data: str
    finished: int
    broken: int
    missing: int
    insecure_reproducible: bool


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `overall`: the mean over settings of the grid, paired over seeds, as one test; it stands on
    those `overall_settings` that have a score at every common seed in both.

    only_*: cells whose like the other sweep does not have; unfinished: cells of both that at least one lacks a score
    of.
    """

    before: Side
    after: Side
    metric: str
    confidence: float
    changes: tuple[Change, ...]
    overall: Paired | None
    overall_settings: int
    tests: tuple[Test, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    unfinished: tuple[str, ...]
    remarks: tuple[str, ...]


def compare(before: Path, after: Path, metric: str | None = None) -> Comparison:
    """Compare two sweeps' folders by `metric`, which is their common objective where none is named.

    Raises DataError on a folder that is no sweep or damaged, ConfigError where the objectives differ or no finished
    cell of one has the metric.
    """
    first, second = read_results(before), read_results(after)
    metric = _metric(first, second, metric)
    axes = list(dict.fromkeys(axis.name for results in (first, second) for axis in results.manifest.axes))
    places = places_of(first, second, axes), places_of(second, first, axes)
    scores = scores_of(first, places[0], metric), scores_of(second, places[1], metric)
    confidence = max(first.manifest.confidence, second.manifest.confidence)
    overall, settings = _overall(*scores, confidence)
    known = set(places[0].values()), set(places[1].values())
    met = [place for place in scores[0] if place in scores[1]]
    configs = ((read_config(before, scores[0][p].cell), read_config(after, scores[1][p].cell)) for p in met)
    found = Comparison(
        before=_side(first),
        after=_side(second),
        metric=metric,
        confidence=confidence,
        changes=(*of_manifests(first.manifest, second.manifest), *of_configs(configs)),
        overall=overall,
        overall_settings=settings,
        tests=_tests(*scores, confidence),
        only_before=_texts(place for place in places[0].values() if place not in known[1]),
        only_after=_texts(place for place in places[1].values() if place not in known[0]),
        unfinished=_texts(place for place in places[0].values() if place in known[1] and place not in met),
        remarks=(),
    )
    return replace(found, remarks=_remarks(found))


def _metric(first: Results, second: Results, metric: str | None) -> str:
    objectives = first.manifest.objective, second.manifest.objective
    if metric is None and objectives[0] != objectives[1]:
        raise ConfigError(
            f"The sweeps have different objectives, {objectives[0]!r} and {objectives[1]!r}: name the metric to "
            "compare them by."
        )
    chosen = metric or objectives[0]
    for results in (first, second):
        names = {name for cell in results.finished for name in cell.metrics}
        if results.finished and chosen not in names:
            raise ConfigError(
                f"metric={chosen!r} is none of the metrics of {results.folder}: {', '.join(sorted(names))}."
            )
    return chosen


def _tests(first: Mapping[Place, Scored], second: Mapping[Place, Scored], confidence: float) -> tuple[Test, ...]:
    """One test a setting that both have a score of at some common seed, in the order of the first sweep."""
    seeds: defaultdict[Setting, list[int]] = defaultdict(list)
    for setting, seed in first:
        if (setting, seed) in second:
            seeds[setting].append(seed)
    found = []
    for setting, common in seeds.items():
        a, b = ({seed: scores[setting, seed] for seed in common} for scores in (first, second))
        result = _paired(a, b, confidence)
        found.append((setting, list(a.values()), list(b.values()), result))
    adjusted = holm([result.t_p for *_, result in found])
    return tuple(
        Test(
            setting=setting,
            before=mean([cell.score for cell in a]),
            after=mean([cell.score for cell in b]),
            epsilon_before=_mean_epsilon(a),
            epsilon_after=_mean_epsilon(b),
            paired=result,
            holm_p=p,
            beyond_noise=p is not None and p < 1 - confidence,
        )
        for (setting, a, b, result), p in zip(found, adjusted, strict=True)
    )


def _mean_epsilon(cells: Sequence[Scored]) -> float | None:
    values = [cell.epsilon for cell in cells if cell.epsilon is not None]
    return mean(values) if len(values) == len(cells) else None


def _paired(first: Mapping[int, Scored], second: Mapping[int, Scored], confidence: float) -> Paired:
    scores = [{seed: cell.score for seed, cell in cells.items()} for cells in (first, second)]
    result = paired(scores[0], scores[1], confidence)
    assert result is not None  # noqa: S101 - the seeds are common
    return result


def _overall(
    first: Mapping[Place, Scored], second: Mapping[Place, Scored], confidence: float
) -> tuple[Paired | None, int]:
    """The mean over the grid's settings at each seed, paired over seeds: settings share a seed's patients, so they
    are no independent pairs. Settings that lack a seed are left out, lest seeds be means of different settings.
    """
    common = [place for place in first if place in second and place[0].kind == GRID]
    seeds = {seed for _, seed in common}
    settings = {setting for setting, _ in common}
    whole = [setting for setting in settings if all((setting, seed) in common for seed in seeds)]
    if not whole:
        return None, 0
    means = [
        {seed: mean([scores[setting, seed].score for setting in whole]) for seed in seeds} for scores in (first, second)
    ]
    return paired(means[0], means[1], confidence), len(whole)


def _texts(places: Iterable[Place]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{setting}, seed={seed}" for setting, seed in places))


def _side(results: Results) -> Side:
    return Side(
        folder=results.folder.resolve().name,
        name=results.manifest.name,
        code=results.manifest.code,
        data=results.manifest.data,
        finished=len(results.finished),
        broken=len(results.broken),
        missing=len(results.missing),
        insecure_reproducible=any(cell.insecure_reproducible for cell in results.finished),
    )


# -- in words ----------------------------------------------------------------------------------------------


def headline(comparison: Comparison) -> str:
    """What came out, in two sentences at the most."""
    if not comparison.tests:
        return "The sweeps have no setting and seed in common that both have finished: there is nothing to compare."
    beyond = sum(test.beyond_noise for test in comparison.tests)
    tested = sum(test.holm_p is not None for test in comparison.tests)
    text = (
        f"{beyond} of {formats.plural(len(comparison.tests), 'common setting')} differ beyond noise in "
        f"{comparison.metric} (paired t-tests over seeds, Holm over {tested}, level {1 - comparison.confidence:.2g})."
    )
    if (overall := comparison.overall) is not None:
        settings = formats.plural(comparison.overall_settings, "setting")
        text += f" Over {settings} of the grid together: {difference(overall)}, {p_value(overall.t_p)}."
    return text


def difference(result: Paired) -> str:
    """`+0.012 [+0.004, +0.020], 3 seeds`."""
    interval = "" if result.low is None or result.high is None else f" [{result.low:+.3f}, {result.high:+.3f}]"
    return f"{result.difference:+.3f}{interval}, {formats.plural(result.n, 'seed')}"


def p_value(value: float | None) -> str:
    """`p = 0.031`, `p < 0.001`, or that there is no test."""
    if value is None:
        return "no test"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _remarks(comparison: Comparison) -> tuple[str, ...]:
    """What a reader must know before believing a p-value."""
    before, after = comparison.before, comparison.after
    remarks = [
        "A seed fixes the data, their split and the initial weights. The noise for privacy comes from the operating "
        "system in both sweeps, so it does not cancel in a pair."
    ]
    if before.data != after.data:
        remarks.append(
            f"The data differ ({before.data}, {after.data}): a seed stands for other patients, and pairs share nothing."
        )
    if before.insecure_reproducible or after.insecure_reproducible:
        remarks.append("insecure_reproducible=true in one of them: those cells give no privacy.")
    most = max((test.paired.n for test in comparison.tests), default=0)
    if 1 <= most < 6:
        remarks.append(
            f"With {formats.plural(most, 'seed')} a sign-flip test cannot give less than p = {2.0 ** (1 - most):.3g}; "
            "Student's t can, because it takes differences to be normal."
        )
    if any(_epsilons_differ(test) for test in comparison.tests):
        remarks.append(
            "Some settings spent another epsilon in the two sweeps: their scores differ in what was paid for them, too."
        )
    return tuple(remarks)


def _epsilons_differ(test: Test) -> bool:
    a, b = test.epsilon_before, test.epsilon_after
    if a is None or b is None:
        return a is not b
    return abs(a - b) > _SAME_EPSILON * max(a, b)


def to_json(comparison: Comparison) -> dict[str, object]:
    """Plain JSON values."""
    plain = asdict(comparison)
    for value, test in zip(plain["tests"], comparison.tests, strict=True):
        value["setting"] = {"kind": test.setting.kind, "factors": dict(test.setting.factors)}
    return {"schema": SCHEMA, "headline": headline(comparison), **plain}


def render(comparison: Comparison, console: Console) -> None:
    """Print what changed, the tests, what has no counterpart, and the remarks."""
    sides = comparison.before, comparison.after
    console.print(
        " against ".join(
            f"[bold]{escape(side.folder)}[/] ({formats.plural(side.finished, 'finished cell')})" for side in sides
        )
    )
    if comparison.changes:
        console.print(_change_table(comparison.changes))
    else:
        console.print("Nothing changed in configuration, code or versions.")
    if comparison.tests:
        console.print(_test_table(comparison))
    console.print(f"[bold]{escape(headline(comparison))}[/]")
    for title, cells in left_out(comparison):
        more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
        console.print(f"[yellow]{escape(title)}[/]: {escape('; '.join(cells[:3]))}{more}")
    for remark in comparison.remarks:
        console.print(f"[dim]{escape(remark)}[/]")


def left_out(comparison: Comparison) -> list[tuple[str, tuple[str, ...]]]:
    """Cells that enter no test, under what is the matter with them."""
    titles = (
        (f"only in {comparison.before.folder}", comparison.only_before),
        (f"only in {comparison.after.folder}", comparison.only_after),
        ("in both, but without a score in one", comparison.unfinished),
    )
    return [(f"{title} ({len(cells)})", cells) for title, cells in titles if cells]


def _change_table(changes: Sequence[Change]) -> Table:
    table = Table(title="What changed")
    for heading in ("what", "before", "after", "pairs of cells"):
        table.add_column(heading, overflow="fold")
    for change in changes:
        cells = "" if change.cells is None else str(change.cells)
        table.add_row(escape(change.what), escape(change.before), escape(change.after), cells)
    return table


def _test_table(comparison: Comparison) -> Table:
    # Eight columns have to be read on 80 characters: no lines between them, and keys by their last part.
    table = Table(title=f"{comparison.metric}, after - before", box=None, pad_edge=False)
    # A factor a line, without its name where all have the same: a method broken within a word is hard to read.
    names = {tuple(name.rsplit(".", 1)[-1] for name, _ in test.setting.factors) for test in comparison.tests}
    alike = len(names) == 1 and names != {()} and all(test.setting.kind == GRID for test in comparison.tests)
    table.add_column("\n".join(*names) if alike else "setting", overflow="fold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for test in comparison.tests:
        style = "bold" if test.beyond_noise else None
        values = [shown(value) for _, value in test.setting.factors]
        setting = "\n".join(values) if alike else test.setting.brief.replace(", ", "\n")
        table.add_row(escape(setting), *figures(test), style=style)
    return table


def figures(test: Test) -> tuple[str, ...]:
    """A test's row: means, difference, epsilons and p-values, as text."""
    epsilons = ", ".join(formats.epsilon(value) for value in (test.epsilon_before, test.epsilon_after))
    p_values = (test.paired.t_p, test.paired.permutation_p, test.holm_p)
    return (
        formats.score(test.before),
        formats.score(test.after),
        difference(test.paired),
        epsilons,
        *(formats.NOTHING if value is None else f"{value:.3f}" for value in p_values),
    )


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write the comparison as one self-contained page, a forest plot first; raises DataError where it cannot."""
    environment = templates().overlay(loader=jinja2.PackageLoader("secure_fed.sweep"))
    sides = (comparison.before, comparison.after)
    page = environment.get_template("compare.html.j2").render(
        c=comparison,
        f=formats,
        style=Markup(resource("report.css")),  # noqa: S704 - our own file
        void=[side.folder for side in sides if side.insecure_reproducible],
        headline=headline(comparison),
        plot=Markup(_forest(comparison)),  # noqa: S704 - numbers and escaped text of our own svg module
        headings=HEADINGS,
        figures=figures,
        left_out=left_out(comparison),
    )
    return write_whole(path, page)


def _forest(comparison: Comparison) -> str:
    """The plot, or nothing where nothing was compared."""
    rows = [
        Row(test.setting.brief, p.difference, p.low, p.high, difference(p), colour_of(test.beyond_noise))
        for test in comparison.tests
        for p in (test.paired,)
    ]
    if (overall := comparison.overall) is not None:
        beyond = overall.t_p is not None and overall.t_p < 1 - comparison.confidence
        name = f"{formats.plural(comparison.overall_settings, 'setting')} of the grid together"
        rows.insert(
            0,
            Row(
                name, overall.difference, overall.low, overall.high, difference(overall), colour_of(beyond), strong=True
            ),
        )
    title = f"Paired differences in {comparison.metric}: {formats.plural(len(rows), 'row')}"
    axis = f"{comparison.metric}: lower after ← 0 → higher after"
    return forest([Block("", rows)], title, axis, zero=True) if rows else ""
