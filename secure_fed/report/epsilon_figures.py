"""The items of an epsilon report that are figures: the guarantee with its parameters, its variants, its checks.

Every figure is the accountant's, from the ledgers' charges.
"""

from __future__ import annotations

import math
from dataclasses import replace

from secure_fed.accounting import Mechanism
from secure_fed.ledger.recompute import disagreement
from secure_fed.report import formats
from secure_fed.report.epsilon_sites import CURVE_DELTAS, Charge, Facts, Figures, SiteFacts
from secure_fed.report.report_item import Item, Table, grouped

_MECHANISM_COLUMNS = ("Phase", "Released", "Mechanism", "σ", "q", "Steps a round", "Rounds", "T", "Clip C")
_MECHANISM_CAPTION = (
    "As charged, before noise was drawn. σ: noise multiplier, relative to the clip norm C of one unit. q: chance of "
    "each unit in each step. T: steps in all charged rounds together."
)
NEIGHBOURS = {"add_or_remove_one": "adding or removing one {}", "replace_one": "replacing one {}"}


def figure_items(facts: Facts) -> tuple[Item, ...]:
    """All of them, in no particular order."""
    return (
        guarantee(facts),
        replace_one(facts),
        patient_level(facts),
        curve(facts),
        cross_checks(facts),
        audit(facts),
    )


def statement(facts: Facts) -> str:
    """The guarantee as one sentence that can be true or false, or why there is none."""
    if facts.void:
        return "There is no privacy guarantee: ε is infinite. " + " ".join(facts.void)
    value = facts.epsilon
    if value is None:
        return f"No guarantee is established: {facts.not_established}."
    if math.isinf(value):
        return (
            "No finite ε is proven: something was charged without noise, or several runs stand on a ledger whose "
            "first record fixes no filter."
        )
    (unit, relation), *_ = facts.guarantees
    return (
        "For each site, everything that left it in all rounds, phases and runs on its ledger is together (ε, δ)-"
        f"differentially private with respect to {NEIGHBOURS[relation].format(unit)} of the site. The largest ε of a "
        f"site is {formats.epsilon(value)} at δ = {formats.small(facts.delta)}. This holds against everybody but "
        "insiders of the site itself, and needs no trust in the masks."
    )


def guarantee(facts: Facts) -> Item:
    """Item: (epsilon, delta) with noise multiplier, rate, steps and clip norm by phase and site."""
    # Sites differ in the components that they train; for what is charged that makes no difference.
    charged = grouped((replace(c, components=()), site.site) for site in facts.sites for c in site.charges)
    several = len({charge.run for charge, _ in charged}) > 1
    rows = [
        (*((charge.run[:12],) if several else ()), *_mechanism_cells(charge), formats.ranges(sites))
        for charge, sites in charged
    ]
    columns = (*(("Run",) if several else ()), *_MECHANISM_COLUMNS, "Sites")
    numeric = frozenset(range(len(columns) - 7, len(columns) - 1))
    table = Table(columns, tuple(rows), numeric, _MECHANISM_CAPTION)
    return Item(
        "guarantee",
        "Guarantee and parameters",
        statements=(statement(facts),),
        tables=(table,) if rows else (_releases_without_privacy(facts),),
    )


def _releases_without_privacy(facts: Facts) -> Table:
    rows = tuple((site.site, formats.count(site.releases_without_privacy)) for site in facts.sites)
    return Table(("Site", "Releases without privacy on its ledger"), rows, frozenset({1}))


def _mechanism_cells(charge: Charge) -> tuple[str, ...]:
    m = charge.mechanism
    return (
        charge.phase,
        charge.artefact,
        mechanism_name(m),
        exact(m.noise_multiplier),
        exact(m.sample_rate),
        formats.count(m.steps),
        formats.count(charge.rounds),
        formats.count(m.steps * charge.rounds),
        exact(charge.max_grad_norm),
    )


def mechanism_name(mechanism: Mechanism) -> str:
    """The mechanism in words."""
    name = {
        "poisson_gaussian": "Gaussian, Poisson sampled",
        "truncated_poisson_gaussian": "Gaussian, truncated Poisson",
        "gaussian": "Gaussian, no sampling credited",
    }[mechanism.kind]
    if mechanism.batch_cap is not None:
        name += f", batch cap {mechanism.batch_cap} of {mechanism.population}"
    if mechanism.component_noise:
        name += f"; per component σ {', '.join(map(exact, mechanism.component_noise))}"
    return name


def exact(value: float) -> str:
    """A parameter with all digits that matter: 1.930001, not 1.93."""
    return f"{value:.9g}"


def replace_one(facts: Facts) -> Item:
    """Item: the same charges under the replace-one relation."""
    title = "Replace-one"
    if (reason := _no_figures(facts)) is not None:
        return Item("replace_one", title, not_applicable=reason)
    rows = tuple(
        (formats.ranges(sites), *key)
        for key, sites in grouped(((_reported(f), formats.epsilon(f.replace_one)), s.site) for s, f in figured(facts))
    )
    text = (
        "The same charges when neighbouring data sets differ by replacing one unit: larger, as one is removed and "
        "another added. Compare it with figures elsewhere only under the same relation."
    )
    table = Table(("Site", "ε as reported", "ε under replace-one"), rows, frozenset({1, 2}))
    return Item("replace_one", title, (text,), tables=(table,))


def patient_level(facts: Facts) -> Item:
    """Item: epsilon of a patient with several records."""
    title = "Patient level"
    if (reason := _no_figures(facts)) is not None:
        return Item("patient_level", title, not_applicable=reason)
    units = {s.genesis.unit for s in facts.sites if s.genesis is not None}
    if units == {"patient"}:
        most = sorted({s.genesis.max_records_per_unit for s in facts.sites if s.genesis is not None})
        reason = (
            "because the unit is the patient: every ε above is a patient's, with all of their records. At most "
            f"{formats.listed([formats.count(k) for k in most], 'or')} records of one patient are used (K_max, public)"
        )
        return Item("patient_level", title, not_applicable=reason)
    patients = grouped((f.patient, s.site) for s, f in figured(facts) if f.patient)
    rows = tuple((formats.ranges(sites), *(formats.epsilon(e) for _, e in patient)) for patient, sites in patients)
    if not rows:
        return Item("patient_level", title, not_applicable="because it is computed under add-or-remove-one only")
    counts = [k for k, _ in patients[0][0]]
    text = (
        "The unit is one record. A patient with k records of a site is covered by the larger ε below: each record is "
        "sampled by itself, and their contributions add up (PLD at the same δ"
    )
    several = any(f.basis == "filter" for _, f in figured(facts))
    text += ", as if all plans had been fixed beforehand)." if several else ")."
    columns = ("Site", *(f"k = {formats.count(k)}" for k in counts))
    left_out = [s.site for s, f in figured(facts) if not f.patient]
    rest = f" Left out are {formats.ranges(left_out)}, which spent less." if left_out else ""
    return Item(
        "patient_level",
        title,
        (text, f"How many records a patient has is not on a ledger.{rest}"),
        tables=(Table(columns, rows, frozenset(range(1, len(columns)))),),
    )


def curve(facts: Facts) -> Item:
    """Item: epsilon as a function of delta, for the site that spent most."""
    title = "ε as a function of δ"
    largest = facts.largest
    if (reason := _no_figures(facts)) is not None or largest is None or largest.figures is None:
        return Item("curve", title, not_applicable=reason or "because no figure is bounded")
    shown = [(d, e) for d, e in zip(CURVE_DELTAS, largest.figures.curve, strict=True) if math.log10(d).is_integer()]
    columns = ("δ", *(formats.small(delta) for delta, _ in shown))
    row = ("ε", *(formats.epsilon(value) for _, value in shown))
    text = f"{largest.site}, which spent most, by PLD over all of its charges"
    text += ", as if all plans had been fixed beforehand." if largest.figures.basis == "filter" else "."
    return Item("curve", title, (text,), tables=(Table(columns, (row,), frozenset(range(1, len(columns)))),))


def cross_checks(facts: Facts) -> Item:
    """Item: the reported figure beside two other accountants'."""
    title = "Cross-checks"
    if (reason := _no_figures(facts)) is not None:
        return Item("cross_checks", title, not_applicable=reason)
    rows = tuple(
        (formats.ranges(sites), *key)
        for key, sites in grouped((_checked(facts, s, f), s.site) for s, f in figured(facts))
    )
    statements = [
        "PLD is reported for one run, the filter's figure for several. RDP bounds PLD from above by other means: a PLD "
        "figure above it is a fault."
    ]
    if facts.sources.cross_check is None:
        statements.append(
            "PRV: not run. It needs torch: secure-fed verify PATH... --cross-check --json > cross_check.json, then "
            "secure-fed report PATH... --cross-check cross_check.json."
        )
    else:
        statements.append("PRV (Opacus) has to agree with PLD to 1 % + 0.005 inside its sound range.")
    columns = ("Site", "Reported", "PLD", "RDP", "PRV", "Result")
    return Item("cross_checks", title, tuple(statements), tables=(Table(columns, rows, frozenset({1, 2, 3, 4})),))


def _checked(facts: Facts, site: SiteFacts, figures: Figures) -> tuple[str, ...]:
    prv, remark = prv_of(facts, site)
    fault = disagreement(figures.pld, figures.rdp, prv)
    result = f"FAULT: {fault}" if fault else "PLD is below RDP" + ("; PRV agrees" if prv is not None else "")
    result += f"; no PRV: {remark}" if remark else ""
    return _reported(figures), formats.epsilon(figures.pld), formats.epsilon(figures.rdp), formats.epsilon(prv), result


def prv_of(facts: Facts, site: SiteFacts) -> tuple[float | None, str]:
    """The PRV figure for a site from the cross-check that was given, or None with the reason."""
    if facts.sources.cross_check is None or site.figures is None:
        return None, ""
    found = [row for row in facts.sources.cross_check.sites if row.site == site.site]
    same = [
        row
        for row in found
        if row.epsilon is not None and math.isclose(row.epsilon, site.figures.epsilon, rel_tol=1e-6)
    ]
    if not same:
        return (
            None,
            "the cross-check is of another state of this ledger" if found else "the cross-check leaves this site out",
        )
    if same[0].epsilon_prv is None:
        return None, same[0].prv_remark or "the verification was run without --cross-check"
    return same[0].epsilon_prv, ""


def audit(facts: Facts) -> Item:
    """Item: the empirical lower bound, where an audit was run."""
    found = facts.sources.audit
    if found is None:
        return Item("audit", "Empirical audit", not_applicable="because no audit was run")
    value = facts.epsilon
    verdict = (
        "CONTRADICTS the ledgers: the noise or the clipping was not what they state"
        if value is not None and found.epsilon_lower > value
        else "does not contradict the ledgers; it can only find gross faults"
    )
    return Item(
        "audit",
        "Empirical audit",
        (f"A lower bound beside the upper bound: it {verdict}.",),
        (
            ("Method", found.method),
            ("Lower bound of ε", f"{found.epsilon_lower:.3f} at δ = {formats.small(found.delta)}"),
            ("Confidence", f"{found.confidence:.3g}"),
            ("Canaries", formats.count(found.canaries)),
        ),
    )


def _no_figures(facts: Facts) -> str | None:
    """Why no figure can be given at all, or None."""
    if facts.void:
        return "because nothing is guaranteed: ε is infinite"
    if not facts.established:
        return f"because {facts.not_established}" if facts.sites or facts.missing else "because there is no ledger"
    if not any(site.charges for site in facts.established):
        return "because nothing was charged"
    return None


def figured(facts: Facts) -> list[tuple[SiteFacts, Figures]]:
    """The sites whose ledgers have figures, with these."""
    return [(site, site.figures) for site in facts.established if site.figures is not None]


def _reported(figures: Figures) -> str:
    return formats.epsilon(figures.epsilon)
