"""The items of an epsilon report that lie around the figures: public data, side channels, access, bias, collusion.

What only a run's files can tell is not applicable where only ledgers were given.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from secure_fed.identity import fingerprint
from secure_fed.report import formats, wording
from secure_fed.report.epsilon_sites import INSECURE, Facts
from secure_fed.report.report_item import Item, Table, grouped
from secure_fed.report.run_folder import RunFolder

_LEDGERS_ALONE = "because only ledgers were given: give the run's folder"
_GENERATORS = {
    "os_urandom_aes256ctr": (
        "an AES-256 counter-mode keystream under a fresh key of the operating system for every site, round and phase"
    ),
    INSECURE: "the run's seed: whoever knows it can repeat noise and samples, so they protect nobody",
}


def surrounding_items(facts: Facts) -> tuple[Item, ...]:
    """All of them, in no particular order."""
    return (
        public_data(facts),
        security(facts),
        rng(facts),
        access_control(facts),
        fairness(facts),
        collusion(facts),
        not_noised(facts),
        withdrawal(facts),
    )


def public_data(facts: Facts) -> Item:
    """Item: data and weights from elsewhere, which are treated as public."""
    title = "Public and pre-training data"
    if facts.run is None:
        return Item("public_data", title, not_applicable=f"{_LEDGERS_ALONE}; a ledger does not name initial weights")
    weights = given_paths(facts.run.settings.get("model"))
    text = "Initial weights: drawn from the seed."
    if weights:
        text = "Initial weights: given, and so treated as public, whatever they were trained on."
    holdout = facts.run.summary.holdout
    given = [
        ("Weights given for", formats.listed(weights) or "nothing"),
        (
            "Hold-out, treated as public",
            f"{formats.plural(holdout.records, 'record')}, {formats.plural(holdout.patients, 'patient')}",
        ),
        ("Text vocabulary", _vocabulary(facts.run.settings)),
    ]
    return Item("public_data", title, (text,), tuple(given))


def given_paths(tree: JsonValue, prefix: str = "model") -> list[str]:
    """Keys named `weights` with a value, as `model.image.weights`; the values are paths, and stay out."""
    if not isinstance(tree, dict):
        return []
    found = []
    for key, value in tree.items():
        if key == "weights" and value is not None:
            found.append(prefix)
        else:
            found += given_paths(value, f"{prefix}.{key}")
    return found


def _vocabulary(settings: Mapping[str, JsonValue]) -> str:
    model = settings.get("model")
    text = model.get("text") if isinstance(model, dict) else None
    if not isinstance(text, dict):
        return "none: the model reads no text"
    if text.get("weights") is not None:
        return "the given weights' own"
    return "shipped with the software, written by hand"


def security(facts: Facts) -> Item:
    """Item: floating point and side channels."""
    refused = sum(count for s in facts.sites for _, count in s.refusals)
    return Item(
        "security",
        "Security and side channels",
        facts=(
            ("Floating point", _floating_point(facts)),
            (
                "Timing",
                "Not covered: how long a site takes depends on its records, and the server sees when the answer comes.",
            ),
            ("Memory, caches, power", "Not covered."),
            ("Refusals on the ledgers", f"{formats.count(refused)}; a refusal is a fixed code."),
        ),
    )


def _floating_point(facts: Facts) -> str:
    classes = {name for site in facts.sites for name in site.rngs}
    if not classes:
        return "No noise is on these ledgers."
    if not classes <= set(_GENERATORS):
        return "The ledgers name a source of noise that this version does not know: nothing is claimed."
    return (
        "The noise is added in floating point; the guarantee itself is proved for real numbers. Against attacks on the "
        "few values that a sampler can reach (Mironov 2012) each normal is made of four (Holohan and Braghin 2021), "
        "and what is released is rounded to a public grid."
    )


def rng(facts: Facts) -> Item:
    """Item: where noise and samples came from."""
    title = "Randomness"
    found = grouped((r, s.site) for s in facts.sites for r in s.rngs)
    if not found:
        return Item("rng", title, not_applicable="because no noise is on these ledgers")
    rows = tuple(
        (name, _GENERATORS.get(name, "a class that this version does not know"), formats.ranges(sites))
        for name, sites in found
    )
    return Item("rng", title, tables=(Table(("Class on the ledger", "What it is", "Sites"), rows),))


def access_control(facts: Facts) -> Item:
    """Item: who may read what, as far as files can say."""
    title = "Access control"
    roster = facts.sources.roster
    if roster is None:
        return Item(
            "access_control",
            title,
            not_applicable="because neither a run's folder nor a roster was given: give --roster",
        )
    run = facts.run
    given = [
        ("Members of the roster", formats.count(len(roster.members))),
        ("Former members", formats.count(len(roster.known) - len(roster.members))),
        ("Consortium's key", fingerprint(bytes.fromhex(roster.consortium))),
    ]
    statements = ["Records stay at their site, under the site's own access control, which no file here describes."]
    if run is not None and run.summary.engine in ("in_process", "simulation"):
        statements.append(
            "This is a simulation: sites' keys, homes and records lie side by side with whoever runs it, and a run "
            "folder that is passed on takes sites/*/private with it."
        )
    return Item("access_control", title, tuple(statements), tuple(given))


def fairness(facts: Facts) -> Item:
    """Item: for whom the model may be worse."""
    title = "Bias and fairness"
    if facts.run is None:
        return Item("fairness", title, not_applicable=f"{_LEDGERS_ALONE}; a ledger holds no score")
    summary = facts.run.summary
    scored = sorted(((n, v) for n, v in summary.auroc_per_label.items() if v is not None), key=lambda item: item[1])
    statements = ["Clipping and noise cost rare findings and small groups most: look at the labels one by one."]
    statements.append("No score by sex, age or hospital is computed: nothing here shows that groups are served alike.")
    given = [
        ("Left out, one class only in the hold-out", formats.listed(list(summary.labels_left_out)) or "none"),
        ("Without a score", formats.listed([n for n, v in summary.auroc_per_label.items() if v is None]) or "none"),
    ]
    rows = tuple((name, formats.score(value)) for name, value in scored)
    tables = (Table(("Label, worst first", "AUROC on the hold-out"), rows, frozenset({1})),) if rows else ()
    return Item("fairness", title, tuple(statements), tuple(given), tables)


def collusion(facts: Facts) -> Item:
    """Item: what is assumed of colluding and of missing sites."""
    title = "Collusion and drop-outs"
    said = (
        "No ε stands on the masks: none is lowered for drop-outs, for the choice of sites, or for other sites' noise.",
    )
    if facts.run is None:
        return Item("collusion", title, said, (("Masks, thresholds, colluding sites", "not on a ledger"),))
    summary, rows = facts.run.summary, facts.run.steps
    masks = summary.secagg
    dropped = sum(row.participants - row.survivors for row in rows)
    given = [("Masks", "on" if masks.mode == "on" else "off: updates travelled in the clear")]
    if masks.mode == "on":
        given += [
            ("Colluding sites withstood (C)", _number(masks.corrupt)),
            ("Sites that must sign and release", _number(masks.threshold)),
            ("Fewest sites with which a round goes on", _number(masks.min_cohort)),
            ("Who masks with whom", wording.graph(summary) or formats.NOTHING),
            ("Floors lowered by their owners (DP only)", _floors(facts.run)),
        ]
    given += [
        ("Drop-outs over all rounds", formats.count(dropped)),
        ("Fewest sites at the end of a round", formats.count(min(row.survivors for row in rows))),
        ("Rounds burned", formats.count(summary.rounds_burned)),
    ]
    return Item("collusion", title, said, tuple(given))


def _floors(run: RunFolder) -> str:
    return formats.listed([f"{name} (floor {floor})" for name, floor in run.summary.dp_only.items()]) or "none"


def _number(value: int | None) -> str:
    return formats.NOTHING if value is None else formats.count(value)


def not_noised(facts: Facts) -> Item:
    """Item: every output that no noise protects."""
    refusals = grouped((code, s.site) for s in facts.sites for code, _ in s.refusals)
    rows = [
        ("Refusal codes", f"on the ledgers: {formats.listed([c for c, _ in refusals]) or 'none'}", "the server"),
        ("The ledgers", "times, declared N, mechanisms, hashes", "whoever is given them"),
    ]
    run = facts.run
    if run is None:
        rows.append(("Participation, message sizes and times", "not on a ledger", "the server and the network"))
        return _not_noised(rows)
    summary = run.summary
    rows += [
        (
            "Participation",
            f"who began and who stayed in each of {formats.plural(len(run.steps), 'round')}",
            "the server, the sites",
        ),
        (
            "Timing and sizes of messages",
            f"{formats.size(sum(r.bytes_up for r in run.steps))} sent by sites",
            "the server, the network",
        ),
        ("Roster", "names, modalities and declared N of the sites", "every member"),
        (
            "Scores on the hold-out",
            f"exact, on {formats.plural(summary.holdout.records, 'public record')}",
            "whoever has the report",
        ),
    ]
    if summary.data_notes:
        notes = "; ".join(f"{str(k).replace('_', ' ')}: {v}" for k, v in summary.data_notes.items())
        rows.append(
            (
                "Counts of the data reader",
                f"exact, over all sites' data in simulation: {notes}",
                "whoever has the run folder",
            )
        )
    return _not_noised(rows)


def _not_noised(rows: list[tuple[str, str, str]]) -> Item:
    return Item("not_noised", "Outputs without noise", tables=(Table(("Output", "What", "Who sees it"), tuple(rows)),))


def withdrawal(facts: Facts) -> Item:
    """Item: what a patient's withdrawal of consent changes."""
    spent = any(site.charges or site.releases_without_privacy for site in facts.sites)
    text = (
        "What was released with a patient's records stays released and charged: removing the records stops further "
        "use, and neither takes the model back nor lowers ε"
        if spent
        else "Nothing was released on these ledgers yet: removing a patient's records stops every use"
    )
    return Item("withdrawal", "Withdrawal of consent", (f"{text} (docs/privacy.md, 'Withdrawal of consent').",))
