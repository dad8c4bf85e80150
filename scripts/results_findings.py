"""Sentences of `docs/results.md`, each made from figures by a rule: a difference whose interval holds 0 is none.

Nothing here knows which method should win.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from results_studies import BASELINE, Study, Table, View, difference, privacy_of
from results_tables import signed, table_lines

from secure_fed.report import formats
from secure_fed.sweep.contrasts import Verdict, verdict
from secure_fed.sweep.statistics import Paired

MOST_BELOW = 0.01
"""With everything present FIN may lie so much below zero-filling at the aims' budget."""
ERRORS_ABOVE = 2.0
"""With a modality missing it should lie so many standard errors above."""
AIMED_EPSILON = 8.0

_WORDS: dict[Verdict, str] = {
    "higher": "gains",
    "lower": "loses",
    "alike": "no visible difference",
    "unknown": "one seed, so nothing can be said",
}


@dataclass(frozen=True)
class Found:
    """One difference and where it was seen."""

    place: str
    paired: Paired


def seen(study: Study, tables: Sequence[Table], name: str, metric: str, against: str = BASELINE) -> tuple[Found, ...]:
    """`name - against` in each of the tables that has both."""
    found = []
    for table in tables:
        first, second = table.row(against), table.row(name)
        if first is None or second is None:
            continue
        result = difference(first, second, metric, study.confidence)
        if result is not None:
            found.append(Found(table.setting.place, result))
    return tuple(found)


def sentence(subject: str, found: Iterable[Found]) -> str:
    """What a row did at every place, the gains first; empty where there is nothing."""
    by_verdict: defaultdict[Verdict, list[Found]] = defaultdict(list)
    for item in found:
        by_verdict[verdict(item.paired)].append(item)
    parts = [f"{words} {_places(by_verdict[kind])}" for kind, words in _WORDS.items() if by_verdict[kind]]
    return f"**{subject}**: {'; '.join(parts)}." if parts else ""


def _places(found: Sequence[Found]) -> str:
    return ", ".join(
        f"at {item.place} ({_amount(item.paired)})" if item.place else f"({_amount(item.paired)})" for item in found
    )


def _amount(result: Paired) -> str:
    error = "" if result.standard_error is None else f" ± {result.standard_error:.3f}"
    return f"{signed(result.difference)}{error}"


def tally(found: Sequence[Found], confidence: float) -> str:
    """How many differences are visible each way, and how many chance alone would show."""
    words = {"higher": "gains", "lower": "losses", "alike": "no visible difference", "unknown": "one seed"}
    counts = Counter(verdict(item.paired) for item in found)
    told = ", ".join(f"{words[kind]} {counts[kind]}" for kind in _WORDS if counts[kind])
    expected = (1 - confidence) * (len(found) - counts["unknown"])
    told = f"Of {formats.plural(len(found), 'difference')}: {told}"
    return f"{told}; chance alone would show about {expected:.1f} visible ones."


# -- the aims ------------------------------------------------------------------------------------------------


def aim_lines(study: Study) -> list[str]:
    """Whether FIN keeps to the aims at their budget, in every setting and view."""
    rows = []
    for table in study.at(AIMED_EPSILON):
        for view in study.views:
            for found in seen(study, [table], "fin", view.metric):
                setting = f"{table.setting}, {view.title}"
                rows.append([setting, _aim(view), _amount(found.paired), aim_met(view, found.paired)])
    if not rows:
        return []
    return table_lines(["setting", "aim for FIN − zero_fill", "found", "aim"], rows, text=2)


def _aim(view: View) -> str:
    return f"at least −{MOST_BELOW}" if view.missing is None else f"above 0 by {ERRORS_ABOVE:g} standard errors"


def aim_met(view: View, found: Paired) -> str:
    """`met` or `missed`; with a modality missing, one seed can neither meet nor miss it."""
    if view.missing is None:
        return "met" if found.difference >= -MOST_BELOW else "missed"
    if found.standard_error is None:
        return "one seed: not known"
    return "met" if found.difference > 0 and found.difference >= ERRORS_ABOVE * found.standard_error else "missed"


# -- an overview --------------------------------------------------------------------------------------------


def guide_lines(studies: Iterable[Study], names: Sequence[str]) -> list[str]:
    """Method by budget: in how many settings and views of all studies it visibly gained or lost on the baseline."""
    told = [study for study in studies if study.name != "fin_ablation"]
    budgets = list(dict.fromkeys(epsilon for study in told for epsilon in study.budgets))
    columns = [
        (f"{privacy_of(epsilon)}, {title}", epsilon, missing)
        for epsilon in sorted(budgets, key=lambda epsilon: (epsilon is not None, -(epsilon or 0.0)))
        for title, missing in (("all present", False), ("one missing", True))
    ]
    rows = []
    for name in names:
        counts = [_count(told, name, epsilon, missing) for _, epsilon, missing in columns]
        if any(counts):
            rows.append([name, *(text or formats.NOTHING for text in counts)])
    return table_lines(["method", *(title for title, *_ in columns)], rows) if rows else []


def _count(studies: Iterable[Study], name: str, epsilon: float | None, missing: bool) -> str:
    verdicts = Counter(
        verdict(found.paired)
        for study in studies
        for view in study.views
        if (view.missing is not None) == missing
        for found in seen(study, study.at(epsilon), name, view.metric)
    )
    known = verdicts.total() - verdicts["unknown"]
    return f"{verdicts['higher']} ↑ {verdicts['lower']} ↓ of {known}" if known else ""


# -- when imputation pays ------------------------------------------------------------------------------------


def pays_lines(study: Study, names: Sequence[str]) -> list[str]:
    """For each budget and view: what every row gained on zero-filling, place by place."""
    lines = []
    for epsilon in study.budgets:
        tables = study.at(epsilon)
        for view in study.views:
            every = {name: seen(study, tables, name, view.metric) for name in names}
            told = [sentence(name, found) for name, found in every.items() if found]
            if not told:
                continue
            count = tally([item for found in every.values() for item in found], study.confidence)
            heading = f"*{tables[0].setting.privacy}, {_at_test(view)}*"
            lines += [f"{heading} {count}", "", *(f"- {text}" for text in told), ""]
    return lines


def _at_test(view: View) -> str:
    return "everything present at test." if view.missing is None else f"{view.missing} missing at test."


def against_lines(study: Study, name: str, against: str) -> list[str]:
    """A row against another baseline, one sentence a budget and view."""
    lines = []
    for epsilon in study.budgets:
        tables = study.at(epsilon)
        for view in study.views:
            found = seen(study, tables, name, view.metric, against)
            text = sentence(f"{name} − {against}, {tables[0].setting.privacy}, {view.title}", found)
            if text:
                lines.append(f"- {text}")
    return [*lines, ""] if lines else []


def variant_lines(study: Study) -> list[str]:
    """An ablation: each variant against the one that it changes a thing of."""
    lines = []
    for table in [table for epsilon in study.budgets for table in study.at(epsilon)]:
        variants = [row for row in table.rows if row.name != BASELINE]
        bases = {row.name: base_of(row.name, [other.name for other in variants]) for row in variants}
        for view in study.views:
            for base in dict.fromkeys(bases.values()):
                first = table.row(base) if base is not None else None
                if first is None:
                    continue
                found = [
                    Found(row.name, result)
                    for row in variants
                    if bases[row.name] == base
                    and (result := difference(first, row, view.metric, study.confidence)) is not None
                ]
                if text := _variants(found):
                    lines.append(f"- {table.setting.privacy}, {_at_test(view)} Against `{base}`: {text}")
    return [*lines, ""] if lines else []


def base_of(variant: str, variants: Sequence[str]) -> str | None:
    """`decoder` of decoder_depth_4; the first variant for one that changes none of the others; None for the first."""
    changed = [other for other in variants if variant.startswith(f"{other}_")]
    if changed:
        return max(changed, key=len)
    return variants[0] if variant != variants[0] else None


def _variants(found: Sequence[Found]) -> str:
    words: Mapping[Verdict, str] = {
        "higher": "better",
        "lower": "worse",
        "alike": "no visible difference",
        "unknown": "one seed",
    }
    parts = []
    for kind, word in words.items():
        if items := [item for item in found if verdict(item.paired) == kind]:
            parts.append(f"{word}: {', '.join(f'{item.place} ({_amount(item.paired)})' for item in items)}")
    return f"{'; '.join(parts)}." if parts else ""
