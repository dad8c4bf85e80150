"""The items of an epsilon report that say what is guaranteed to whom, and what that stands on.

All of them come from ledgers; a run's files add what its sites and its coordinator saw.
"""

from __future__ import annotations

from secure_fed.report import evaluation, formats, wording
from secure_fed.report.adversaries import adversaries
from secure_fed.report.epsilon_sites import Facts
from secure_fed.report.report_item import Item, Table, grouped
from secure_fed.report.tuning import Tuning, tuning_statements


def setting_items(facts: Facts) -> tuple[Item, ...]:
    """All of them, in no particular order."""
    return (
        trust_model(facts),
        data_accesses(facts),
        released(facts),
        unit(facts),
        relation(facts),
        mechanism(facts),
        assumptions(facts),
    )


def trust_model(facts: Facts) -> Item:
    """Item: who sees what, and which epsilon holds against them."""
    rows = tuple((a.who, formats.epsilon(a.epsilon), a.sees, a.guards) for a in adversaries(facts.run, facts.epsilon))
    statements = ["The largest ε of any site stands in the table; the site's own is in the table of sites."]
    if facts.run is not None and facts.run.summary.server_step == "unverified":
        statements.append(
            "Server step: unverified. A server can send sites another model than the sums give; each site's ε holds "
            "for whatever model it is sent."
        )
    table = Table(
        ("Who", "ε against them", "What they see", "What stands between them and a record"), rows, frozenset({1})
    )
    return Item("trust_model", "Trust model: who sees what", tuple(statements), tables=(table,))


def data_accesses(facts: Facts) -> Item:
    """Item: every use of the data that is counted, and whether tuning is among them."""
    runs = {run.run for site in facts.sites for run in site.runs}
    charged = sum(charge.rounds for site in facts.sites for charge in site.charges)
    by_artefact: dict[str, int] = {}
    for charge in (charge for site in facts.sites for charge in site.charges):
        by_artefact[charge.artefact] = by_artefact.get(charge.artefact, 0) + charge.rounds
    given = [("Runs on the ledgers", formats.count(len(runs))), ("Charges", formats.count(charged))]
    given += [(f"Charged as {name}", formats.count(count)) for name, count in sorted(by_artefact.items())]
    off = sum(site.releases_without_privacy for site in facts.sites)
    if off:
        given.append(("Releases without privacy", formats.count(off)))
    again = sum(site.charged_again for site in facts.sites)
    given.append(("Charged again after an interrupted round", formats.count(again)))
    given += [("Data sets", formats.listed(_data_sets(facts)) or formats.NOTHING)]
    if (tuning := facts.sources.tuning) is not None:
        given.append(("ε with tuning counted", _with_tuning(tuning)))
    return Item("data_accesses", "Data accesses", _tuning(facts, len(runs)), tuple(given))


def _with_tuning(tuning: Tuning) -> str:
    if tuning.basis == "own":
        return "this run's own"
    return "not established" if tuning.figure is None else formats.epsilon(tuning.figure)


def _data_sets(facts: Facts) -> list[str]:
    return list(dict.fromkeys(site.genesis.data_set for site in facts.sites if site.genesis is not None))


def _tuning(facts: Facts, runs: int) -> tuple[str, ...]:
    """What a sweep said of its choice, if one chose this run, and what the ledgers themselves can tell."""
    claims = [site.genesis.lifetime_claim for site in facts.sites if site.genesis is not None]
    counted = f"{formats.plural(runs, 'run')} on these ledgers {'is' if runs == 1 else 'are'} counted"
    if claims and all(claims):
        told = f"Tuning is included: {counted}, and the sites claim that no other use was made of the data."
        return (told,) if facts.sources.tuning is None else (told, *tuning_statements(facts.sources.tuning))
    who = "not every site" if any(claims) else "no site"
    if facts.sources.tuning is not None:
        return (
            *tuning_statements(facts.sources.tuning),
            f"Every other figure of this report is of these ledgers alone, where {counted}; {who} claims that the data "
            "had no other use than these and the sweep's.",
        )
    return (
        f"Tuning is included only as far as it is on these ledgers: {counted}. Hyperparameters chosen by looking at "
        f"other runs on the same records are not charged, and {who} claims that there were none.",
    )


def released(facts: Facts) -> Item:
    """Item: what leaves the sites, and whether it is every checkpoint."""
    settled = [pair for site in facts.sites for pair in site.settled]
    given = [
        (f"Settled as {outcome}", formats.count(sum(count for name, count in settled if name == outcome)))
        for outcome in dict.fromkeys(name for name, _ in settled)
    ]
    evaluated = sum(c.rounds for s in facts.sites for c in s.charges if c.artefact == "evaluation")
    statements = [
        "Every charge counts as released, whatever became of its round: the guarantee covers every checkpoint, not the "
        "last model alone."
    ]
    if facts.run is not None:
        statements.append(
            f"The model after each of {formats.plural(facts.run.summary.rounds, 'round')} goes to the coordinator and "
            "to every site."
        )
        opened = [sums for step in facts.run.steps for sums in wording.opened_sums(step)]
        given.append(("Sums that the coordinator opened", formats.count(len(opened))))
        given.append(
            (
                "Contributors of the smallest opened sum",
                formats.count(min(map(len, opened))) if opened else formats.NOTHING,
            )
        )
    statements += _evaluation(facts, evaluated)
    return Item("released", "What is released", tuple(statements), tuple(given))


def _evaluation(facts: Facts, evaluated: int) -> list[str]:
    said = [f"Evaluation on private data is a release: {formats.plural(evaluated, 'charge')} on the ledgers."]
    if not evaluated:
        said = ["No evaluation on private data is charged on these ledgers."]
    if facts.run is None:
        return said
    summary = facts.run.summary
    holdout = summary.holdout
    return [
        *said,
        *filter(None, (evaluation.sentence(summary.evaluation), evaluation.rules(summary.evaluation))),
        f"The coordinator's hold-out of {formats.plural(holdout.records, 'record')} from "
        f"{formats.plural(holdout.patients, 'patient')} is treated as public: its scores are exact and cost nothing.",
    ]


def unit(facts: Facts) -> Item:
    """Item: what is hidden."""
    title = "Unit of privacy"
    if not facts.guarantees:
        return Item("unit", title, not_applicable="because no ledger says what it counts")
    rows = [
        (formats.ranges(sites), *key)
        for key, sites in grouped(
            (
                (s.genesis.unit, formats.count(s.genesis.max_records_per_unit), formats.count(s.genesis.declared_n)),
                s.site,
            )
            for s in facts.sites
            if s.genesis is not None
        )
    ]
    told = {
        "record": "One record: a patient with several records has the larger ε under 'Patient level'.",
        "patient": "One patient with all of their records that are used: sampling and clipping are per patient.",
    }
    statements = tuple(told[name] for name in dict.fromkeys(pair[0] for pair in facts.guarantees))
    table = Table(("Site", "Unit", "Most records of a unit", "Declared N (units)"), tuple(rows), frozenset({2, 3}))
    return Item("unit", title, statements, tables=(table,))


def relation(facts: Facts) -> Item:
    """Item: what makes two data sets neighbours."""
    title = "Neighbouring relation"
    if not facts.guarantees:
        return Item("relation", title, not_applicable="because no ledger says what it counts")
    told = {
        "add_or_remove_one": "Add or remove one: data sets are neighbours where one holds one {} more than the other.",
        "replace_one": "Replace one: data sets of equal size are neighbours where they differ in one {}.",
    }
    return Item("relation", title, tuple(told[name].format(what) for what, name in facts.guarantees))


def mechanism(facts: Facts) -> Item:
    """Item: mechanism and accountant."""
    title = "Mechanism and accountant"
    kinds = dict.fromkeys(c.mechanism.kind for s in facts.sites for c in s.charges)
    if not kinds:
        return Item("mechanism", title, not_applicable="because nothing was charged: there is no noised mechanism")
    told = {
        "poisson_gaussian": (
            "Each step samples units independently (Poisson), sums their clipped contributions and adds Gaussian noise "
            "(DP-SGD)."
        ),
        "truncated_poisson_gaussian": (
            "Each step samples units independently and cuts the batch at a cap; the cap's cost is accounted."
        ),
        "gaussian": "Gaussian noise on a statistic of all units; no amplification by sampling is counted.",
    }
    bases = {s.figures.basis for s in facts.established if s.figures is not None}
    accountant = {
        "pld": "One run: PLD composition by dp-accounting, pessimistic discretisation.",
        "filter": "Several runs: Rényi filter at the one order that the ledger's first record fixes; PLD beside it.",
        "none": "No bound: something left without privacy, or no filter is fixed.",
    }
    orders = dict.fromkeys(s.genesis.filter_order for s in facts.sites if s.genesis is not None)
    given = [("Accountant", accountant[basis]) for basis in ("pld", "filter", "none") if basis in bases]
    known = [f"{order:g}" for order in orders if order is not None]
    given.append(("Order of the filter", formats.listed(known) or "none fixed"))
    return Item("mechanism", title, tuple(told[kind] for kind in kinds), tuple(given))


def assumptions(facts: Facts) -> Item:
    """Item: what the figure stands on, and whether the record shows that it was so."""
    rows = [
        _sampling_row(facts),
        _plan_row(facts),
        *_conduct_rows(facts),
        ("Public N", _declared(facts), "Declared by each site; nobody can check it."),
        (
            "Sites hold different people",
            "The largest ε is the federation's only then.",
            "Assumed; a ledger cannot show it.",
        ),
        ("Clock", _span(facts), "Times do not fall." if _whole(facts) else "A ledger is damaged: see integrity."),
    ]
    return Item(
        "assumptions",
        "Assumptions, and whether they were met",
        tables=(Table(("Assumption", "What it says", "On record"), tuple(rows)),),
    )


def _sampling_row(facts: Facts) -> tuple[str, str, str]:
    charges = [c for s in facts.sites for c in s.charges]
    amplified = [c for c in charges if c.mechanism.kind != "gaussian" and c.mechanism.sample_rate < 1]
    wrong = [c for c in amplified if c.sampler not in ("poisson", "truncated_poisson")]
    if not charges:
        return "Poisson sampling", "Not needed: no mechanism was charged.", "Nothing charged."
    if not amplified:
        return (
            "Poisson sampling",
            "Not needed: no amplification by sampling is counted.",
            "Every charge touches every unit.",
        )
    capped = any(c.mechanism.batch_cap is not None for c in amplified)
    says = "Amplification is counted for batches in which each unit is sampled independently."
    says += " Capped batches are accounted as capped." if capped else ""
    met = (
        "NOT met: a charge with amplification names another sampler."
        if wrong
        else "Met: every such charge names the Poisson sampler."
    )
    return "Poisson sampling", says, met


def _plan_row(facts: Facts) -> tuple[str, str, str]:
    several = [s.site for s in facts.sites if len([run for run in s.runs if run.rounds]) > 1]
    unplanned = [s.site for s in facts.sites if any(run.plan_hash is None and run.rounds for run in s.runs)]
    says = "Within a run all mechanisms are fixed before it begins (PLD composition needs that)."
    if unplanned:
        return "Plan fixed beforehand", says, f"NOT met at {formats.ranges(unplanned)}: charges without a plan."
    if several:
        return (
            "Plan fixed beforehand",
            says,
            f"Met within each run; over the runs of {formats.ranges(several)} the filter takes its place.",
        )
    return (
        "Plan fixed beforehand",
        says,
        "Met: each run's plan stands before its charges." if _whole(facts) else "Met as far as the ledgers are whole.",
    )


def _conduct_rows(facts: Facts) -> list[tuple[str, str, str]]:
    if not any(site.charges for site in facts.sites):
        return [("Noise and clipping", "Nothing is stated: no mechanism was charged.", "Nothing charged.")]
    drawn = "The site drew the noise, applied the clip and sampled as it stated."
    return [
        ("Charge before noise", "A charge is written and synced before a unit is sampled.", _order_seen(facts)),
        ("Conduct", drawn, "Stated and signed, not proven by a ledger."),
    ]


def _order_seen(facts: Facts) -> str:
    settled = sum(count for s in facts.sites for _, count in s.settled)
    if not settled:
        return "No round is settled yet on these ledgers."
    return "Every settled round was charged before." if _whole(facts) else "A ledger is damaged: see integrity."


def _declared(facts: Facts) -> str:
    found = sorted({s.genesis.declared_n for s in facts.sites if s.genesis is not None})
    if not found:
        return "No ledger declares it."
    span = formats.count(found[0]) if len(found) == 1 else f"{formats.count(found[0])} to {formats.count(found[-1])}"
    return f"Rates, denominators and δ < 1/N stand on N = {span}."


def _span(facts: Facts) -> str:
    first = min((s.first_time for s in facts.sites if s.first_time), default=None)
    last = max((s.last_time for s in facts.sites if s.last_time), default=None)
    return f"Records from {first[:10]} to {last[:10]}, by each site's own clock." if first and last else "No record."


def _whole(facts: Facts) -> bool:
    return bool(facts.sites) and not facts.missing and all(site.problem is None for site in facts.sites)
