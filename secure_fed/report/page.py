"""`report.html`: one self-contained file about a run, readable without a network.

Reads files of the run folder only; jinja2 escapes every value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup
from pydantic import JsonValue

from secure_fed.files import write_whole
from secure_fed.identity import fingerprint
from secure_fed.report import assessment, evaluation, formats, wording
from secure_fed.report.assessment import ANY
from secure_fed.report.budget import Budget, read_budget
from secure_fed.report.charts import auroc_chart, budget_chart, rates_chart, survivors_chart
from secure_fed.report.contributions import component_rows, contributions_chart
from secure_fed.report.notices import all_warnings
from secure_fed.report.run_folder import RunFolder, Step, Summary, read_run


@dataclass(frozen=True)
class Tile:
    """A headline figure; `share` in [0, 1] draws a bar below it."""

    label: str
    value: str
    note: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Figure:
    """A picture with its title and caption."""

    title: str
    svg: Markup
    caption: str
    wide: bool = False


def write_report(run: Path) -> Path:
    """Write `report.html` into a finished run folder and return its path; an old one is replaced whole.

    Raises DataError naming a missing or damaged file, LedgerError where a ledger cannot be trusted.
    """
    folder = read_run(run)
    budget = read_budget(folder)
    return write_whole(run / "report.html", render(folder, budget))


def render(run: RunFolder, budget: Budget) -> str:
    """The page as text."""
    summary = run.summary
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            summary=summary,
            f=formats,
            style=Markup(resource("report.css")),  # noqa: S704 - our own file
            warnings=all_warnings(run, budget),
            paragraph=wording.paragraph(summary, run.steps),
            void=wording.void(summary),
            guarantee=wording.guarantee(summary),
            odds=wording.odds(summary),
            public_set=wording.public_set(summary),
            assumptions=wording.assumptions(run, budget),
            tiles=tiles(summary, run.steps),
            figures=_figures(run, budget),
            members=_members(run, budget),
            components=_components(summary, run.steps),
            scores=assessment.score_rows(summary),
            score_rules=assessment.rules(summary),
            labels=assessment.label_rows(summary),
            likeness=assessment.likeness_rows(summary),
            likeness_rules=assessment.likeness_rules(summary),
            varies=any(found.calibration is not None for found in summary.imputation.values()),
            costs=assessment.cost_rows(summary.cost),
            views=evaluation.view_rows(summary.evaluation),
            view_labels=evaluation.label_rows(summary.evaluation),
            evaluation_rules=evaluation.rules(summary.evaluation),
            budget=budget,
            masked=_masked(summary, run.steps),
            config=_without_folders(run.settings),
        )
    )


def _without_folders(settings: Mapping[str, JsonValue]) -> str:
    """config.yaml for a reader elsewhere: of an absolute path only the last part, as a report is handed around."""

    def shown(value: JsonValue) -> JsonValue:
        if isinstance(value, dict):
            return {key: shown(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shown(item) for item in value]
        is_path = isinstance(value, str) and Path(value).is_absolute()
        return f".../{Path(str(value)).name}" if is_path else value

    return yaml.safe_dump(shown(dict(settings)), sort_keys=False, allow_unicode=True)


def tiles(summary: Summary, rows: Sequence[Step]) -> list[Tile]:
    """The headline figures, the model's first."""
    intervals = summary.intervals
    note = assessment.with_interval("every modality present", intervals.auroc_macro)
    found = [Tile("AUROC, macro", formats.score(summary.auroc_macro), note)]
    for name, value in summary.auroc_macro_missing.items():
        note = assessment.with_interval(f"{name} missing at test", intervals.auroc_macro_missing.get(name))
        found.append(Tile(f"AUROC, no {name}", formats.score(value), note))
    found.append(_epsilon_tile(summary))
    least = min(row.survivors for row in rows)
    burned = f", {formats.count(summary.rounds_burned)} burned" if summary.rounds_burned else ""
    found += [
        Tile("Sites", formats.count(summary.sites), f"fewest in a round: {formats.count(least)}"),
        Tile("Rounds", formats.count(summary.rounds), f"{summary.method}{burned}"),
        Tile("Wall time", formats.duration(summary.wall_s), f"engine {summary.engine}"),
    ]
    return found


def _epsilon_tile(summary: Summary) -> Tile:
    if summary.privacy == "off":
        return Tile("Largest ε spent", "∞", "privacy is off")
    spent, target = summary.epsilon_max, summary.epsilon_target
    note = f"at δ = {formats.small(summary.delta)}"
    if summary.insecure_reproducible:
        return Tile("Largest ε charged", formats.epsilon(spent), "void: the noise can be repeated")
    if spent is None or target is None:
        return Tile("Largest ε spent", formats.epsilon(spent), note)
    return Tile("Largest ε spent", formats.epsilon(spent), f"of {formats.limit(target)} {note}", spent / target)


def _figures(run: RunFolder, budget: Budget) -> list[Figure]:
    summary, rows = run.summary, run.steps
    last = max([row.round for row in rows] + [curve.rounds[-1] for curve in budget.curves])
    modalities = list(summary.auroc_macro_missing)
    drawn = [
        (
            "Privacy budget against rounds",
            budget_chart(budget, summary, last),
            _budget_caption(budget),
            False,
        ),
        (
            "AUROC against rounds",
            auroc_chart(rows, modalities),
            "On the coordinator's public hold-out, macro over labels: with every modality, and with each "
            "one taken away from every record. Shaded: the phases that trained.",
            False,
        ),
        (
            "AUROC against what is missing at test",
            rates_chart(summary, "AUROC"),
            "The final model on the same hold-out, where a share of its records lacks a modality." + _by_lot(summary),
            False,
        ),
        (
            "AUPRC against what is missing at test",
            rates_chart(summary, "AUPRC"),
            "Average precision of the same predictions; chance is the labels' prevalence.",
            False,
        ),
        (
            "Who contributed what",
            contributions_chart(rows, summary),
            "A number counts the rounds in which the site's update entered the component's sum; a dot "
            "means that the site does not own it. Red: contributors stayed below the floor, the "
            "component kept its old value.",
            True,
        ),
        (
            "Participants and survivors",
            survivors_chart(rows, summary),
            "Blue: sites that stayed to the end of the round. Red: began and dropped out. Outlined: never began.",
            True,
        ),
    ]
    # Built from numbers and escaped text by our own svg module.
    return [Figure(title, Markup(svg), caption, wide) for title, svg, caption, wide in drawn if svg]  # noqa: S704


def _by_lot(summary: Summary) -> str:
    several = any(point.modality == ANY for point in summary.missing_rates)
    return " One of them: each such record loses one modality by lot." if several else ""


def _budget_caption(budget: Budget) -> str:
    text = (
        "Recomputed from the sites' ledgers by PLD composition; sites that released the same sequence "
        "share a line. What is left below the limit was kept for burned or interrupted rounds."
    )
    if any(curve.composed < len(curve.rounds) for curve in budget.curves):
        fewest = min(curve.composed for curve in budget.curves)
        text += f" Composed at {fewest} rounds or more a line, interpolated between; the ends are exact."
    if budget.uncharted:
        text += f" Not drawn: {formats.ranges(budget.uncharted)}; `secure-fed verify` recomputes every site."
    return text


@dataclass(frozen=True)
class _Member:
    site: str
    owns: str
    declared_n: str
    noise: str
    phases: str
    epsilon: str
    share: float | None
    key: str
    full_key: str


def _members(run: RunFolder, budget: Budget) -> list[_Member]:
    summary, rows = run.summary, []
    for site, facts in summary.members.items():
        key = fingerprint(bytes.fromhex(run.roster.known[site].public_key))
        value = budget.recomputed.get(site, summary.epsilon.get(site))
        target = summary.epsilon_target
        rows.append(
            _Member(
                site=site,
                owns=" + ".join(facts.owns),
                declared_n=formats.count(facts.declared_n),
                noise=formats.NOTHING if facts.noise_multiplier is None else f"{facts.noise_multiplier:.3f}",
                phases=", ".join(facts.phases),
                epsilon=formats.epsilon(value),
                share=value / target if value is not None and target else None,
                key=key[:9],
                full_key=key,
            )
        )
    return rows


@dataclass(frozen=True)
class _Component:
    name: str
    parameters: str
    owners: str
    floor: str
    protection: str
    trained: int
    kept: int
    kept_rounds: str


def _components(summary: Summary, rows: Sequence[Step]) -> list[_Component]:
    """What sites upload and the server opens as sums: components of the model, then statistics."""
    found = []
    for row in component_rows(rows, summary):
        facts = summary.summed.get(row.name)
        below = [step.round + 1 for step, (_, kept) in zip(rows, row.timeline, strict=True) if kept]
        found.append(
            _Component(
                name=row.name,
                parameters=formats.count(facts.parameters) if facts else formats.NOTHING,
                owners=formats.ranges(facts.owners if facts else sorted(row.owned)),
                floor=formats.NOTHING if facts is None or facts.floor is None else formats.count(facts.floor),
                protection=wording.protection(summary, row.name),
                trained=row.trained,
                kept=row.kept,
                kept_rounds=formats.spans(below),
            )
        )
    return found


def _masked(summary: Summary, rows: Sequence[Step]) -> list[tuple[str, str]]:
    """Facts of the secure aggregation."""
    facts = summary.secagg
    up, down = sum(row.bytes_up for row in rows), sum(row.bytes_down for row in rows)
    given = [
        ("Sent by sites, received by sites", f"{formats.size(up)}, {formats.size(down)}"),
        ("Bytes a parameter, up and down", formats.pair(facts.bytes_up_per_parameter, facts.bytes_down_per_parameter)),
        ("Server step", summary.server_step),
    ]
    if facts.mode == "off":
        return [("Mode", "off: updates travelled in the clear"), *given]
    dropped = sum(row.participants - row.survivors for row in rows)
    kept = sum(len(row.kept) for row in rows)
    smallest = wording.fewest_in_a_sum(rows)
    masked = [
        ("Mode", "on: double masking, Shamir shares, one self-mask per component"),
        ("Who masks with whom", wording.graph(summary)),
        ("Threshold", formats.plural(facts.threshold, "site") if facts.threshold else None),
        ("Fewest sites with which a round goes on", str(facts.min_cohort) if facts.min_cohort else None),
        ("Corrupt sites tolerated (C)", str(facts.corrupt) if facts.corrupt is not None else None),
        ("Bits of a value in the ring, on the wire", formats.pair(facts.value_bits, facts.wire_bits)),
        ("Components that DP alone protects", formats.listed(list(summary.dp_only)) or "none"),
        ("Fewest contributors in an opened sum", str(smallest) if smallest is not None else None),
        ("Drop-outs over all rounds", formats.count(dropped)),
        ("Components kept for want of contributors", formats.plural(kept, "time")),
        ("Rounds burned, charged again", f"{summary.rounds_burned}, {summary.rounds_charged_again}"),
        ("Cautions", "; ".join(facts.cautions) or None),
    ]
    return [(name, value) for name, value in masked if value is not None] + given


@cache
def templates() -> jinja2.Environment:
    """The room's HTML templates; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("secure_fed.report"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = formats.unbroken
    environment.tests["long_worded"] = formats.long_worded
    return environment


def resource(name: str) -> str:
    """A style sheet of ours, to be put into a page whole."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
