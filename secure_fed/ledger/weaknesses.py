"""What holds and still weakens a ledger's guarantee or its evidence, in words for a table and a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from secure_fed.ledger.budget import Standing
from secure_fed.ledger.record import Note, Off, Plan, Record, Reserve


def weaknesses(records: Sequence[Record], books: Standing, torn: bool) -> tuple[str, ...]:
    """Every weakness of a checked chain, the gravest first. `torn`: whether a crash left an unfinished line."""
    return (*_of_the_releases(records), *_of_the_claim(books), *_of_the_books(records, torn))


def _of_the_releases(records: Sequence[Record]) -> list[str]:
    charges = [body for r in records if isinstance(body := r.body, Reserve)]
    off = sum(isinstance(r.body, Off) for r in records)
    sources = {body.rng for r in records if isinstance(body := r.body, Plan | Reserve)}
    unsampled = sum(c.artefact == "update" and c.mechanism.kind == "gaussian" for c in charges)
    capped = sum(c.mechanism.kind == "truncated_poisson_gaussian" for c in charges)
    noiseless = sum(c.mechanism.noise_multiplier == 0 for c in charges)
    flags = []
    if off:
        flags.append(f"PRIVACY OFF in {off} releases")
    if noiseless:
        flags.append(f"NO NOISE in {noiseless} charges")
    if "insecure_reproducible" in sources:
        flags.append("INSECURE RANDOMNESS (reproducible noise)")
    if unsampled:
        flags.append(f"unamplified sampling in {unsampled} charges: counted as if every unit were in every step")
    if capped:
        flags.append(f"capped batches in {capped} charges: large samples were cut, and cost more for it")
    return flags


def _of_the_claim(books: Standing) -> list[str]:
    flags = []
    if not books.genesis.lifetime_claim:
        flags.append("no lifetime claim")
    if books.genesis.epsilon_limit is None and not books.is_off:
        flags.append("no limit was set")
    charging = sum(bool(run.charged) for run in books.runs)
    if charging > 1:
        flags.append(f"{charging} runs, planned one after the other: epsilon is the filter's")
    return flags


def _of_the_books(records: Sequence[Record], torn: bool) -> list[str]:
    flags = []
    charges = Counter((b.run, b.step, b.phase) for r in records if isinstance(b := r.body, Reserve))
    again = sum(charges.values()) - len(charges)
    if again:
        flags.append(f"{again} charged again after an interrupted round")
    repaired = sum(isinstance(r.body, Note) and r.body.code == "torn_line_removed" for r in records)
    if repaired:
        flags.append(f"{repaired} torn last line repaired" if repaired == 1 else f"{repaired} torn lines repaired")
    if torn:
        flags.append("torn last line, not yet repaired")
    return flags
