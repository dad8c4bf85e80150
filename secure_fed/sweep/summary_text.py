"""What a sweep's numbers say, in sentences that do not say more than the noise over seeds allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from secure_fed.report import formats
from secure_fed.sweep.contrasts import (
    MOST_PLACES,
    NON_PRIVATE,
    SINGLE_SITE,
    Comparison,
    Verdict,
    average,
    compare,
    verdict,
)
from secure_fed.sweep.metrics import name_of
from secure_fed.sweep.page_data import (
    Frontier,
    Layout,
    kind_name,
    percent,
    place_name,
    settings,
    short,
    shown,
)
from secure_fed.sweep.record import GRID
from secure_fed.sweep.statistics import Paired, holm
from secure_fed.sweep.table import Results


@dataclass(frozen=True)
class Finding:
    """A question that the numbers answer, and the answer."""

    title: str
    sentences: tuple[str, ...]


def findings(results: Results, picture: Frontier, told: Sequence[Comparison]) -> list[Finding]:
    """The summary, in the order in which a reader asks."""
    questions: dict[str, list[str]] = {}
    for comparison in told:
        questions.setdefault(comparison.question, []).append(_sentence(comparison, picture.layout, results))
    parts = [
        Finding("What ran", tuple(_what_ran(results))),
        *(Finding(question, tuple(sentences)) for question, sentences in questions.items()),
        Finding("How far to trust this", tuple(_reliability(results, picture, told))),
    ]
    return [part for part in parts if part.sentences]


# -- sentences -----------------------------------------------------------------------------------------------


def lead(results: Results, picture: Frontier) -> str:
    """The best private setting and its references, in plain words; empty without a private one."""
    metric = results.manifest.objective
    private = [group for group in picture.grid if group.cells[0].privacy == "dp" and group.scores(metric)]
    if not private:
        return ""
    best = max(private, key=lambda group: average([group], metric))
    where = f"The best private setting is {settings(best.factors)}" if best.factors else "One setting ran with privacy"
    runs = formats.plural(len(best.scores(metric)), "run")
    sentences = [f"{where}: {name_of(metric)} {average([best], metric):.3f}, the mean of {runs}."]
    for kind, words in ((NON_PRIVATE, "Without privacy the same setting"), (SINGLE_SITE, "A site alone")):
        other = picture.reference(kind, best)
        if other is not None and other.scores(metric):
            distance = _DISTANCE[verdict(compare(other, best, results))]
            sentences.append(f"{words} reaches {average([other], metric):.3f}: {distance}.")
    return " ".join(sentences)


_DISTANCE: dict[Verdict, str] = {
    "higher": "visibly less",
    "lower": "visibly more",
    "alike": "no visible difference",
    "unknown": "too few common seeds to tell",
}


def _what_ran(results: Results) -> Iterator[str]:
    total = len(results.finished) + len(results.broken) + len(results.missing)
    seeds = {cell.seed for cell in results.finished}
    kinds = [cell.kind for cell in results.finished]
    references = [
        f"{formats.count(kinds.count(kind))} {kind_name(kind)}" for kind in dict.fromkeys(kinds) if kind != GRID
    ]
    beside = f", and to compare with {formats.listed(references)}" if references else ""
    yield (
        f"{formats.count(len(results.finished))} of {formats.plural(total, 'cell')} finished on "
        f"{results.manifest.data}, over {formats.plural(len(seeds), 'seed')}: {formats.count(kinds.count(GRID))} of "
        f"the grid{beside}."
    )


def _sentence(comparison: Comparison, layout: Layout, results: Results) -> str:
    """A comparison in words, along x: neighbours with one outcome are told together, and panels that agree."""
    names = dict.fromkeys(filter(None, comparison.subjects))
    subject = next(iter(names)) if len(names) == 1 else f"the best line of each panel ({formats.listed(list(names))})"
    parts: list[tuple[Verdict | None, list[int]]] = []
    for x in range(len(layout.xs)):
        verdicts = {verdict(result) for result in _column(comparison, x)}
        outcome = verdicts.pop() if len(verdicts) == 1 else None
        if outcome is not None and parts and parts[-1][0] == outcome:
            parts[-1][1].append(x)
        elif outcome is not None or verdicts:
            parts.append((outcome, [x]))
    clauses = [
        f"{_at(comparison, layout, xs).strip()} {{}} is {_disagreement(comparison, layout, xs[0])}"
        if outcome is None
        else f"{{}} {_outcome(outcome, comparison, layout, xs)}"
        for outcome, xs in parts
    ]
    text = "; ".join(clause.replace("{}", "it" if index else subject, 1) for index, clause in enumerate(clauses))
    metric = name_of(results.manifest.objective)
    return f"Against {comparison.against}, {text.strip()} ({metric}; {_seeds(comparison.known)})."


def _column(comparison: Comparison, x: int) -> list[Paired]:
    """All panels' differences at one x."""
    return [result for panel in comparison.results if (result := panel[x]) is not None]


def _at(comparison: Comparison, layout: Layout, xs: Sequence[int]) -> str:
    """`at ε = 1, 3 and 8`, `for method fin`; nothing where x has one place only."""
    if layout.x is None or not comparison.along:
        return ""
    values = formats.listed([shown(layout.xs[x]) for x in xs])
    return f" at {short(layout.x)} = {values}" if layout.numeric else f" for {short(layout.x)} {values}"


def _outcome(outcome: Verdict, comparison: Comparison, layout: Layout, xs: Sequence[int]) -> str:
    """What all panels show at some x."""
    if outcome == "alike":
        known = [result for x in xs for result in _column(comparison, x)]
        return (
            f"shows no visible difference{_at(comparison, layout, xs)} (up to {_hidden(known)} could hide in the noise)"
        )
    sizes = formats.listed(
        [f"{_span(outcome, _column(comparison, x))}{_at(comparison, layout, [x])}" for x in xs],
    )
    if outcome == "unknown":
        return f"differs by {sizes}, on one seed: that says nothing about noise"
    return f"is {outcome} by {sizes}"


def _disagreement(comparison: Comparison, layout: Layout, x: int) -> str:
    """One x at which panels come out differently."""
    parts = []
    for outcome in ("lower", "higher", "alike", "unknown"):
        panels = [
            (panel, result)
            for panel, row in enumerate(comparison.results)
            if (result := row[x]) is not None and verdict(result) == outcome
        ]
        if panels:
            size = _span(outcome, [result for _, result in panels])
            what = {"alike": "not visibly different", "unknown": f"{size} on one seed"}
            named = formats.listed([place_name(layout, panel) for panel, _ in panels])
            many = len(comparison.results) > MOST_PLACES
            where = f"in {len(panels)} of {len(comparison.results)} panels" if many else f"with {named}"
            parts.append(f"{what.get(outcome, f'{outcome} by {size}')} {where}")
    return formats.listed(parts)


def _span(outcome: Verdict, found: Sequence[Paired]) -> str:
    """The least and the most difference, or the one; signed where the outcome does not say which way."""
    values = [result.difference if outcome == "unknown" else abs(result.difference) for result in found]
    sign = "+" if outcome == "unknown" else ""
    low, high = (f"{value:{sign}.3f}".replace("-", "−") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _hidden(known: Sequence[Paired]) -> str:
    """The farthest that an interval reaches from 0: an effect of that size would not have been seen."""
    return f"{max(max(-(result.low or 0.0), result.high or 0.0) for result in known):.3f}"


def _seeds(known: Sequence[Paired]) -> str:
    few, many = min(result.n for result in known), max(result.n for result in known)
    return formats.plural(many, "seed") if few == many else f"{few} to {many} seeds"


def _reliability(results: Results, picture: Frontier, told: Sequence[Comparison]) -> Iterator[str]:
    """How many differences were looked at, how many chance alone would show, and how many stand after correction."""
    every = [result for comparison in told for result in comparison.known]
    tested = [result for result in every if verdict(result) != "unknown"]
    confidence = results.manifest.confidence
    if tested:
        visible = sum(verdict(result) != "alike" for result in tested)
        yield (
            f"A difference is called visible where the {percent(confidence):g} % interval of the paired differences, "
            f"seed by seed, leaves out 0: {formats.count(visible)} of {formats.plural(len(tested), 'difference')} "
            f"here. Did nothing differ at all, chance would still show about {len(tested) * (1 - confidence):.1f}."
        )
        # Where all seeds agree to the last digit t has no p, and nothing scatters: such a difference stands.
        adjusted = zip(tested, holm([result.t_p for result in tested]), strict=True)
        standing = sum(verdict(result) != "alike" and (p is None or p <= 1 - confidence) for result, p in adjusted)
        remain = f"{formats.count(standing)} remain{'s' if standing == 1 else ''}"
        yield f"After Holm's correction for their number {remain}; more seeds would tell more."
    if len(tested) < len(every):
        yield (
            f"{formats.plural(len(every) - len(tested), 'difference')} on a single common seed: noise cannot be told "
            "from effect there."
        )
    if not every and len(picture.grid) > 1:
        yield "No two settings that could be compared have a seed in common."
