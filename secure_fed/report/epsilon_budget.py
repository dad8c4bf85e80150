"""The items of an epsilon report that add up: each site's budget over all runs, and the federation's figure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from secure_fed.report import formats
from secure_fed.report.epsilon_sites import Facts, RunFigures, SiteFacts
from secure_fed.report.report_item import Item, Table, grouped


def budget_items(facts: Facts) -> tuple[Item, ...]:
    """All of them, in no particular order."""
    return lifetime(facts), sites_and_federation(facts)


def lifetime(facts: Facts) -> Item:
    """Item: what stands on the ledgers over all runs, and what is left."""
    if not facts.established:
        return Item(
            "lifetime",
            "Lifetime: all runs on the ledgers",
            not_applicable=f"because {facts.not_established}"
            if facts.sites or facts.missing
            else "because there is no ledger",
        )
    statements = [_basis_sentence(figures, sites) for figures, sites in grouped(_bases(facts))]
    statements.append(_claim_sentence(facts))
    runs = [(_run_key(run), site.site) for site in facts.established for run in site.runs]
    rows = tuple((*key, formats.ranges(sites)) for key, sites in grouped(runs))
    columns = ("Run", "Method", "Planned ε", "ε of this run (PLD)", "Rounds charged", "State", "Sites")
    tables = [Table(columns, rows, frozenset({2, 3, 4}), "Each run by itself, at the ledger's δ.")] if rows else []
    tables.append(_budget_table(facts))
    return Item("lifetime", "Lifetime: all runs on the ledgers", tuple(statements), tables=tuple(tables))


def _bases(facts: Facts) -> Iterable[tuple[tuple[str, int, str, str, str], str]]:
    for site in facts.established:
        figures = site.figures
        assert figures is not None  # noqa: S101 - established sites have them
        yield (
            (
                figures.basis,
                len(site.runs),
                formats.epsilon(figures.epsilon),
                formats.epsilon(figures.pld),
                formats.small(site.genesis.delta if site.genesis else None),
            ),
            site.site,
        )


def _basis_sentence(key: tuple[str, int, str, str, str], sites: list[str]) -> str:
    basis, runs, reported, pld, delta = key
    where = formats.ranges(sites)
    if basis == "pld":
        what = "No run" if runs == 0 else "One run"
        return (
            f"{where}: {what} stands on the ledger. Its plan was fixed before it began, so PLD composition is proven: "
            f"ε = {reported} at δ = {delta}."
        )
    if basis == "filter":
        return (
            f"{where}: {formats.count(runs)} runs stand on the ledger. Later plans were chosen after results had been "
            f"seen, so the Rényi filter's figure is reported: ε = {reported} at δ = {delta} (Feldman and Zrnic 2021). "
            f"By PLD it would be {pld}, had the plans been fixed beforehand."
        )
    return f"{where}: no finite ε is proven for what stands on the ledger."


def _claim_sentence(facts: Facts) -> str:
    without = [s.site for s in facts.established if s.genesis is not None and not s.genesis.lifetime_claim]
    if not without:
        return "Every site claims that its ledger counts every use of its data set."
    return (
        f"No lifetime claim at {formats.ranges(without)}: the same data may be used where this ledger does not count "
        "it, and the epsilons would add up."
    )


def _run_key(run: RunFigures) -> tuple[str, ...]:
    state = "privacy off" if run.off else "closed" if run.closed else "open: its whole plan counts"
    planned = formats.NOTHING if run.planned_epsilon is None else formats.epsilon(run.planned_epsilon)
    return (
        run.run[:12],
        run.method or formats.NOTHING,
        planned,
        formats.epsilon(run.epsilon),
        formats.count(run.rounds),
        state,
    )


def _budget_table(facts: Facts) -> Table:
    rows = []
    for key, sites in grouped((_budget_key(site), site.site) for site in facts.established):
        rows.append((formats.ranges(sites), *key))
    columns = ("Site", "Owner's limit ε", "Spent ε", "Taken by open plans too", "A further run by itself")
    return Table(columns, tuple(rows), frozenset({1, 2, 3, 4}), "The budget of the data set's life.")


def _budget_key(site: SiteFacts) -> tuple[str, ...]:
    figures, genesis = site.figures, site.genesis
    assert figures is not None and genesis is not None  # noqa: S101, PT018 - established sites have both
    limit = genesis.epsilon_limit
    left = figures.further
    return (
        "none set" if limit is None else formats.limit(limit),
        formats.epsilon(site.epsilon),
        formats.epsilon(figures.committed),
        formats.NOTHING if left is None else f"{math.floor(left * 100) / 100:.2f}",
    )


def sites_and_federation(facts: Facts) -> Item:
    """Item: epsilon of each site, the largest, and of a unit that is at two sites."""
    if not facts.sites:
        return Item("sites_and_federation", "Sites and federation", not_applicable="because there is no ledger")
    rows = [
        (formats.ranges(sites), *key) for key, sites in grouped((_site_key(site), site.site) for site in facts.sites)
    ]
    rows += [(site, *(formats.NOTHING,) * 5, "its ledger is missing") for site in facts.missing]
    columns = ("Site", "Unit", "Declared N", "δ", "ε", "N·δ", "Remark")
    return Item(
        "sites_and_federation",
        "Sites and federation",
        statements=(_federation_sentence(facts), _two_sites_sentence(facts)),
        tables=(Table(columns, tuple(rows), frozenset({2, 3, 4, 5})),),
    )


def _site_key(site: SiteFacts) -> tuple[str, ...]:
    genesis, value = site.genesis, site.epsilon
    if genesis is None or value is None:
        return (*(formats.NOTHING,) * 5, site.problem or "not established")
    remark = site.problem or "; ".join(flag for flag in site.flags)
    if site.insecure and site.figures is not None:
        remark = f"charged {formats.epsilon(site.figures.epsilon)}, void; {remark}"
    return (
        genesis.unit,
        formats.count(genesis.declared_n),
        formats.small(genesis.delta),
        formats.epsilon(value),
        f"{genesis.delta * genesis.declared_n:.2g}",
        remark,
    )


def _federation_sentence(facts: Facts) -> str:
    value = facts.epsilon
    if value is None:
        return f"The largest ε over the sites is not established: {facts.not_established}."
    return (
        f"Federation: as long as nobody's records are at two sites, ε of one person is that of their site; the "
        f"largest is {formats.epsilon(value)}."
    )


def _two_sites_sentence(facts: Facts) -> str:
    """Basic composition: epsilons and deltas add up."""
    two = two_largest(facts)
    if two is None:
        return "Somebody at two sites: not applicable because fewer than two sites have a finite ε here."
    epsilon, delta = two
    return (
        f"Whoever is at two sites has the sum of both: at most ε = {formats.epsilon(epsilon)} at "
        f"δ = {formats.small(delta)} for the two largest (basic composition)."
    )


def two_largest(facts: Facts) -> tuple[float, float] | None:
    """(epsilon, delta) of a unit that is at the two sites with the largest figures; None where there are no two."""
    known = sorted(
        ((s.epsilon, s.genesis.delta) for s in facts.sites if s.epsilon is not None and s.genesis is not None),
        reverse=True,
    )[:2]
    if len(known) < 2 or facts.epsilon is None or math.isinf(known[0][0]):
        return None
    return known[0][0] + known[1][0], known[0][1] + known[1][1]
