"""The items of an epsilon report that let a reader check it: integrity, versions, hashes, and how to recompute."""

from __future__ import annotations

from secure_fed.report import formats
from secure_fed.report.epsilon_sites import Facts, SiteFacts
from secure_fed.report.report_item import Item, Table, grouped


def evidence_items(facts: Facts) -> tuple[Item, ...]:
    """All of them, in no particular order."""
    return integrity(facts), versions(facts), hashes(facts), recompute(facts)


def integrity(facts: Facts) -> Item:
    """Item: what `secure-fed verify` says of these ledgers, whole."""
    verdict = facts.sources.verdict
    said = "The ledgers hold: chains, signatures, plans and figures agree."
    if not verdict.ok:
        said = f"THE LEDGERS DO NOT HOLD: {'; '.join(verdict.problems)}."
    rows = tuple(
        (formats.ranges(sites), *key) for key, sites in grouped((_verdict_cells(s), s.site) for s in facts.sites)
    )
    given = (
        ("Whose keys", verdict.roster),
        ("Tail", verdict.tail),
        *(("Remark", remark) for remark in verdict.remarks),
    )
    columns = ("Site", "Records", "Notes and new keys", "Tail", "What weakens it", "Verdict")
    return Item("integrity", "Integrity of the ledgers", (said,), given, (Table(columns, rows, frozenset({1})),))


def _verdict_cells(site: SiteFacts) -> tuple[str, ...]:
    return (
        formats.count(site.records),
        formats.listed([f"{formats.count(count)} × {code}" for code, count in site.notes]) or formats.NOTHING,
        site.tail,
        "; ".join(site.flags) or formats.NOTHING,
        site.problem or "holds",
    )


def versions(facts: Facts) -> Item:
    """Item: the software that the figures and the noise stand on."""
    title = "Software"
    stated = [(pair, site.site) for site in facts.sites for pair in site.versions]
    if facts.run is not None:
        stated += [(pair, "the run") for pair in facts.run.summary.versions.items()]
    rows = [(package, version, formats.ranges(sites)) for (package, version), sites in grouped(sorted(stated))]
    if not rows:
        return Item("versions", title, not_applicable="because no plan on these ledgers names its software")
    return Item("versions", title, tables=(Table(("Package", "Version", "Stated by"), tuple(rows)),))


def hashes(facts: Facts) -> Item:
    """Item: what pins down the very things that this report is about."""
    rows = [(f"SHA-256 of {name}", digest) for name, digest in facts.sources.digests.items()]
    if facts.run is not None and facts.run.summary.model_sha256 is not None:
        rows.append(("Digest of the model's parameters", facts.run.summary.model_sha256))
    plans = grouped((run.plan_hash, s.site) for s in facts.sites for run in s.runs if run.plan_hash is not None)
    rows += [(f"Plan, at {formats.ranges(sites)}", digest) for digest, sites in plans]
    rows += [
        (f"Head of {s.site}'s ledger, {formats.plural(s.records, 'record')}", s.head) for s in facts.sites if s.head
    ]
    if not rows:
        return Item("hashes", "Hashes", not_applicable="because no ledger could be read")
    return Item("hashes", "Hashes", tables=(Table(("Of what", "Hash"), tuple(rows)),))


def recompute(facts: Facts) -> Item:
    """Item: the commands that give these figures again."""
    what = "RUN" if facts.run is not None else "LEDGER..."
    return Item(
        "recompute",
        "How to recompute",
        (f"{what}: what this report was made from. The roster should come from the consortium, not from the run.",),
        (
            ("Check and recompute", f"secure-fed verify {what} --roster roster.json"),
            ("The same with Opacus's PRV beside it", f"secure-fed verify {what} --roster roster.json --cross-check"),
            ("This report", f"secure-fed report {what} --roster roster.json"),
            ("Without this software", "dp-accounting alone: docs/privacy.md, 'Verifying a run, step by step'"),
        ),
    )
