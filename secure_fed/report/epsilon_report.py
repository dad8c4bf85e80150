"""An epsilon report: every point that a reader must be told, from ledgers and a run's files, as page and as JSON.

The points are those of Ponomareva et al. 2023, "How to DP-fy ML" (arXiv 2303.00654), section on reporting, and of NIST
SP 800-226; docs/epsilon_report.md lists them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secure_fed.errors import DataError
from secure_fed.files import write_whole
from secure_fed.report import formats
from secure_fed.report.adversaries import adversaries
from secure_fed.report.epsilon_budget import budget_items, two_largest
from secure_fed.report.epsilon_evidence import evidence_items
from secure_fed.report.epsilon_figures import figure_items, prv_of, statement
from secure_fed.report.epsilon_page import render
from secure_fed.report.epsilon_setting import setting_items
from secure_fed.report.epsilon_sites import CURVE_DELTAS, Facts, SiteFacts, gather
from secure_fed.report.epsilon_sources import read_sources, to_json_text
from secure_fed.report.epsilon_surroundings import surrounding_items
from secure_fed.report.notices import Notice, standing_warnings, tuning_notice
from secure_fed.report.report_item import Item

SCHEMA = "secure_fed.epsilon_report/1"
PAGE = "epsilon_report.html"
JSON = "epsilon_report.json"
ITEMS = (
    *("trust_model", "data_accesses", "released", "unit", "relation", "mechanism", "assumptions", "guarantee"),
    *("public_data", "security", "access_control", "fairness"),
    *("sites_and_federation", "lifetime", "collusion", "replace_one", "patient_level", "curve", "cross_checks"),
    *("audit", "rng", "not_noised", "integrity", "withdrawal", "versions", "hashes", "recompute"),
)
"""The points in the order of the page."""


@dataclass(frozen=True)
class Written:
    """Where a report was written, and whether the ledgers hold."""

    page: Path
    json: Path
    ok: bool
    first_problem: str | None


def write_epsilon_report(
    paths: Sequence[Path],
    output: Path,
    *,
    roster: Path | None = None,
    anchors: Sequence[Path] = (),
    audit: Path | None = None,
    cross_check: Path | None = None,
) -> Written:
    """Write `epsilon_report.html` and `.json` into the folder `output`, from a run folder or from ledgers alone.

    Damaged ledgers are reported, not refused. Raises ConfigError where a path holds no ledger, DataError where a file
    of the run is damaged, `output` is no folder, or a file of that name there is something else.
    """
    facts = gather(read_sources(paths, roster=roster, anchors=anchors, audit=audit, cross_check=cross_check))
    page, tree = output / PAGE, output / JSON
    _may_replace(page, '<meta name="generator" content="secure_fed.epsilon_report/1">')
    _may_replace(tree, f'"schema": "{SCHEMA}"')
    write_whole(tree, to_json_text(report_json(facts)))
    write_whole(page, render(facts, items(facts), warnings(facts)))
    verdict = facts.sources.verdict
    return Written(page, tree, verdict.ok, verdict.first_problem)


def items(facts: Facts) -> tuple[Item, ...]:
    """Every point, in the order of ITEMS."""
    every = (
        *figure_items(facts),
        *budget_items(facts),
        *setting_items(facts),
        *surrounding_items(facts),
        *evidence_items(facts),
    )
    found = {item.id: item for item in every}
    return tuple(found[name] for name in ITEMS)


def warnings(facts: Facts) -> tuple[Notice, ...]:
    """What stands on top of the page, the worst first."""
    found = [
        Notice("danger", "VOID", f"{reason} ε is infinite: no figure below protects anybody.") for reason in facts.void
    ]
    found += [Notice("danger", "Ledgers do not hold", problem) for problem in facts.sources.verdict.problems]
    value, audit = facts.epsilon, facts.sources.audit
    if value is not None and audit is not None and audit.epsilon_lower > value:
        text = f"An audit found ε ≥ {audit.epsilon_lower:.2f}, the ledgers say {formats.epsilon(value)}."
        found.append(Notice("danger", "The audit contradicts the ledgers", text))
    if facts.sources.tuning is not None:
        found.append(tuning_notice(facts.sources.tuning))
    if facts.run is not None:
        # What voids the guarantee is said above; the other dangers and notices are the run's own.
        titles = {"Privacy is off", "Insecure and reproducible"}
        found += [notice for notice in standing_warnings(facts.run.summary) if notice.title not in titles]
    without = [site.site for site in facts.sites if site.genesis is not None and not site.genesis.lifetime_claim]
    if without:
        text = (
            f"{formats.ranges(without)}: what these data are used for elsewhere is not counted here, and would add up."
        )
        found.append(Notice("notice", "No lifetime claim", text))
    return tuple(dict.fromkeys(found))


def report_json(facts: Facts) -> dict[str, object]:
    """The content of `epsilon_report.json`. An infinite figure is null beside `bounded: false`."""
    summary = facts.run.summary if facts.run is not None else None
    two = two_largest(facts)
    return {
        "schema": SCHEMA,
        "scope": "run" if summary is not None else "ledgers",
        "run": None if summary is None else summary.run,
        "name": None if summary is None else summary.name,
        "state_of": max((site.last_time for site in facts.sites if site.last_time), default=None),
        "statement": statement(facts),
        "void": list(facts.void),
        "warnings": [{"level": w.level, "title": w.title, "text": w.text} for w in warnings(facts)],
        "federation": {
            **_figure(facts.epsilon),
            "delta": facts.delta,
            "guarantees": [{"unit": unit, "relation": relation} for unit, relation in facts.guarantees],
            "at_two_sites": None if two is None else {"epsilon": two[0], "delta": two[1]},
            "missing": list(facts.missing),
        },
        "sites": [_site_json(facts, site) for site in facts.sites],
        "adversaries": [
            {"id": a.name, "who": a.who, "sees": a.sees, "guards": a.guards, **_figure(a.epsilon)}
            for a in adversaries(facts.run, facts.epsilon)
        ],
        "audit": None if facts.sources.audit is None else facts.sources.audit.model_dump(by_alias=True),
        "tuning": None if facts.sources.tuning is None else facts.sources.tuning.model_dump(mode="json", by_alias=True),
        "verdict": facts.sources.verdict.to_json(),
        "items": [item.to_json() for item in items(facts)],
    }


def _figure(value: float | None) -> dict[str, object]:
    """`bounded` is null where nothing is established."""
    return {"epsilon": _finite(value), "bounded": None if value is None else math.isfinite(value)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _site_json(facts: Facts, site: SiteFacts) -> dict[str, object]:
    genesis, figures = site.genesis, site.figures
    return {
        "site": site.site,
        **_figure(site.epsilon),
        "problem": site.problem,
        "flags": list(site.flags),
        "records": site.records,
        "head": site.head,
        "key": site.key,
        "guarantee": None if genesis is None else genesis.model_dump(mode="json"),
        "figures": None
        if figures is None
        else {
            "basis": figures.basis,
            "pld": _finite(figures.pld),
            "rdp": _finite(figures.rdp),
            "prv": prv_of(facts, site)[0],
            "committed": _finite(figures.committed),
            "further_run": figures.further,
            "replace_one": _finite(figures.replace_one),
            "patient": [{"records": k, "epsilon": _finite(value)} for k, value in figures.patient],
            "curve": [
                {"delta": delta, "epsilon": _finite(value)}
                for delta, value in zip(CURVE_DELTAS, figures.curve, strict=bool(figures.curve))
            ],
        },
        "runs": [
            {**vars(run), "epsilon": _finite(run.epsilon), "bounded": math.isfinite(run.epsilon)} for run in site.runs
        ],
        "charges": [
            {
                "run": charge.run,
                "phase": charge.phase,
                "artefact": charge.artefact,
                "mechanism": charge.mechanism.to_json(),
                "sampler": charge.sampler,
                "max_grad_norm": charge.max_grad_norm,
                "components": list(charge.components),
                "rounds": charge.rounds,
            }
            for charge in site.charges
        ],
        "rng": list(site.rngs),
        "releases_without_privacy": site.releases_without_privacy,
        "refusals": dict(site.refusals),
        "notes": dict(site.notes),
        "settled": dict(site.settled),
        "charged_again": site.charged_again,
    }


def _may_replace(path: Path, mark: str) -> None:
    """Only an epsilon report is replaced; raises DataError on anything else of that name."""
    if not path.parent.is_dir():
        raise DataError(f"{path.parent} is no folder: make it first, or give another --output.")
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            found = mark in file.read(2000)
    except (OSError, UnicodeDecodeError):
        found = False
    if not found:
        raise DataError(f"{path} exists and is no epsilon report: it is not overwritten. Give another --output.")
