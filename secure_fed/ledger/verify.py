"""Verification from the outside: ledgers, a roster and a run's summary, recomputed with nothing else at hand.

A bad ledger is a negative verdict, never an exception; only a path that names nothing is a usage error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secure_fed.accounting import Mechanism
from secure_fed.errors import ConfigError, LedgerError
from secure_fed.identity import Roster, fingerprint
from secure_fed.ledger.anchoring import Anchors, check_anchors, read_anchors
from secure_fed.ledger.chain import Chain, read_chain, rotations, signing_keys
from secure_fed.ledger.checks import agrees
from secure_fed.ledger.recompute import CrossCheck, recompute
from secure_fed.ledger.record import Plan, Record
from secure_fed.ledger.verdict import Row, Verdict

LEDGER = "ledger.jsonl"
ROSTER = "roster.json"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class _Examined:
    """A ledger that was read, and what came of it. `problems` begin with the row's own."""

    row: Row
    chain: Chain
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Given:
    """What an auditor holds against the ledgers."""

    roster: Roster | None
    anchors: Anchors
    cross_check: CrossCheck | None


def verify(
    paths: Sequence[Path],
    roster: Path | None = None,
    *,
    anchors: Sequence[Path] = (),
    cross_check: Callable[[Sequence[Mechanism], float], float | None] | None = None,
) -> Verdict:
    """Check and recompute every ledger under `paths`: run folders, site homes or ledger files.

    Keys are compared with `roster` where given, else with the run's own roster, else with nothing but what the
    ledger itself says; `Verdict.roster` says which. `anchors`: files of anchors, homes or run folders whose sites
    kept some. `cross_check`: an accountant of another make, mechanisms and delta to epsilon, None outside the
    range where it is sound. Raises ConfigError where a path holds no ledger or no anchors or the given roster
    cannot be read.
    """
    given = _Given(Roster.load(roster) if roster is not None else None, read_anchors(anchors), cross_check)
    examined: list[_Examined] = []
    problems: list[str] = []
    own_roster = False
    for path in paths:
        if (path / "sites").is_dir():
            own_roster = own_roster or (path / ROSTER).is_file()
            found, wrong = _verify_run(path, given)
        else:
            ledger = ledger_file(path)
            found, wrong = [_examine(ledger, ledger.parent.name, given)], []
        examined += found
        problems += [f"{e.row.site}: {problem}" for e in found for problem in e.problems] + wrong
    problems += _forks(examined)
    if given.roster is not None:
        trusted = "given from outside"
    elif own_roster:
        trusted = "the run's own, not given from outside"
    else:
        trusted = "none: signatures were checked against the key that each ledger names itself"
    return Verdict(tuple(e.row for e in examined), tuple(problems), trusted, given.anchors.remarks)


def ledger_file(path: Path) -> Path:
    """The ledger of a site's home, or the file itself; ConfigError where there is none."""
    ledger = path / LEDGER if path.is_dir() else path
    if not ledger.is_file():
        raise ConfigError(
            f"{path} holds no ledger: give a run folder (with sites/), a site's home (with {LEDGER}) or a ledger file."
        )
    return ledger


def _verify_run(folder: Path, given: _Given) -> tuple[list[_Examined], list[str]]:
    problems: list[str] = []
    roster = given.roster
    if roster is None:
        try:
            roster = Roster.load(folder / ROSTER)
        except (ConfigError, LedgerError) as error:
            problems.append(str(error).replace(str(folder / ROSTER), ROSTER))
    homes = sorted(p.name for p in (folder / "sites").iterdir() if p.is_dir())
    members = sorted(roster.known) if roster is not None else homes
    examined = []
    for name in sorted({*homes, *members}):
        ledger = folder / "sites" / name / LEDGER
        if ledger.is_file():
            examined.append(_examine(ledger, name, replace(given, roster=roster), site=name))
        else:
            problems.append(f"{name}: belongs to the run, but its {LEDGER} is missing")
    return examined, problems + _against_summary(folder, examined)


def _examine(path: Path, folder: str, given: _Given, *, site: str | None = None) -> _Examined:
    """Read one ledger; `site` is whose it must be, `folder` what it is called where no record can say."""
    try:
        chain = read_chain(path)
    except LedgerError as error:  # its text names the path, which a verdict does not carry
        reason = error.__cause__.strerror if isinstance(error.__cause__, OSError) else "unreadable"
        return _untrusted(Row(folder, 0), Chain((), None, 0), f"record 0 cannot be read: {reason}")
    records = chain.records
    row = Row(site or (records[0].site if records else folder), len(records), rotations=rotations(records))
    if not records:
        return _untrusted(row, chain, f"record 0 {chain.problem or 'is missing: the ledger holds no whole record'}")
    broken = f"record {len(records)} {chain.problem}" if chain.problem is not None else None
    problem = _stranger(records[0], given.roster, site) or broken
    if problem is not None:
        return _untrusted(row, chain, problem)
    trusted = {*signing_keys(records), *_named(records[0], given.roster)}
    anchoring = check_anchors(records, given.anchors.kept, trusted)
    row = replace(row, anchored=anchoring.records, flags=anchoring.remarks)
    problem = _against_roster(chain, given.roster)
    if problem is not None:
        return _untrusted(row, chain, problem, *anchoring.problems)
    row = recompute(row, chain, given.cross_check)
    problems = (*([row.problem] if row.problem else []), *anchoring.problems)
    return _Examined(replace(row, problem=next(iter(problems), None)), chain, problems)


def _untrusted(row: Row, chain: Chain, *problems: str) -> _Examined:
    return _Examined(replace(row, problem=problems[0]), chain, problems)


def _named(first: Record, roster: Roster | None) -> tuple[str, ...]:
    """The key that the roster gives the site: it counts also where the ledger's end, and its last key, is gone."""
    return () if roster is None else (roster.known[first.site].public_key,)


def _stranger(first: Record, roster: Roster | None, site: str | None) -> str | None:
    """Why a ledger's first record is not by a site that it should be by."""
    if site is not None and first.site != site:
        return f"record 0 is by {first.site}: this is another site's ledger"
    if roster is not None and first.site not in roster.known:
        return f"record 0 is by {first.site}, a site that the roster does not know"
    return None


def _against_roster(chain: Chain, roster: Roster | None) -> str | None:
    """Where a whole ledger's present key or its n is not what the roster says of the site."""
    if roster is None:
        return None
    member = roster.known[chain.records[0].site]
    *replaced, current = signing_keys(chain.records)
    named = 0 if not replaced else rotations(chain.records)[-1].seq
    if member.public_key in replaced:
        return (
            f"record {named} hands over to the key {_finger(current)}, but roster version {roster.version} still "
            f"names {_finger(member.public_key)}, which this ledger replaced: the consortium has to confirm the new "
            "key with the site and publish a roster of a higher version"
        )
    if member.public_key != current:
        return (
            f"record {named} names another public key than the roster: {_finger(current)}, where roster version "
            f"{roster.version} has {_finger(member.public_key)}: a stranger's ledger, or one from before a rotation"
        )
    if member.declared_n not in (None, chain.genesis.declared_n):
        return f"record 0 declares n={chain.genesis.declared_n}, the roster {member.declared_n}"
    return None


def _finger(key: str) -> str:
    return fingerprint(bytes.fromhex(key))


def _against_summary(folder: Path, examined: Sequence[_Examined]) -> list[str]:
    """What the run's summary claims and the ledgers do not bear out. A run that was interrupted has none."""
    path = folder / SUMMARY
    if not path.is_file():
        return []
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        claimed = summary["epsilon"]
        if not isinstance(claimed, Mapping):
            raise TypeError("epsilon is no object")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{SUMMARY}: is malformed ({error})"]
    shown = {run for item in examined for run in item.row.epsilon_by_run}
    problems = [problem for item in examined if (problem := _wrong_claim(item.row, summary, shown)) is not None]
    sites = {item.row.site for item in examined}
    problems += [f"{SUMMARY}: names {name}, which has no ledger" for name in sorted(set(claimed) - sites)]
    figures = [value for value in claimed.values() if _is_number(value)]
    highest = summary.get("epsilon_max")
    if _is_number(highest) and len(figures) == len(claimed) > 0 and not agrees(highest, max(figures)):
        problems.append(f"{SUMMARY}: epsilon_max is {highest}, the largest of its sites is {max(figures)}")
    plans = [b for item in examined for r in item.chain.records if isinstance(b := r.body, Plan)]
    reproducible = any(plan.rng == "insecure_reproducible" for plan in plans)
    if reproducible and summary.get("insecure_reproducible") is False:
        problems.append(f"{SUMMARY}: denies insecure_reproducible, the ledgers' plans say so")
    return problems


def _wrong_claim(row: Row, summary: Mapping[str, Any], shown: Collection[str]) -> str | None:
    """Where the summary's epsilon or delta for a site is not what its ledger gives; `shown`: the runs of any ledger."""
    run = str(summary.get("run"))
    # A site that others' ledgers show to have stayed out of the run charged nothing for it. A run that is on no
    # ledger at all is made up, and everything is held against it.
    value = row.epsilon_by_run.get(run, 0.0 if run in shown and row.epsilon is not None else row.epsilon)
    claim, delta = summary["epsilon"].get(row.site), summary.get("delta")
    if value is None:
        return None  # the ledger itself is wrong, which is said already
    if claim is None and (value == math.inf or summary.get("privacy") == "off"):
        return None  # a run without privacy claims nothing, and JSON has no infinity
    if claim is None or not _is_number(claim) or not agrees(claim, value):
        return f"{SUMMARY}: claims epsilon {claim} for {row.site}, its ledger gives {value:.9g}"
    if delta != row.delta:
        return f"{SUMMARY}: delta is {delta!r}, {row.site}'s ledger has {row.delta!r}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _forks(examined: Sequence[_Examined]) -> list[str]:
    """Two ledgers under one key that part ways: its holder shows different books to different people.

    Any key counts that signed records of both, first or later.
    """
    problems = []
    books: dict[str, _Examined] = {}
    for item in examined:
        keys = signing_keys(item.chain.records)
        for earlier in {id(books[key]): books[key] for key in keys if key in books}.values():
            pairs = zip(item.chain.records, earlier.chain.records, strict=False)
            parts = next((a.seq for a, b in pairs if a.hash != b.hash), None)
            if parts is not None:
                problems.append(
                    f"{item.row.site}: record {parts} differs between two ledgers under one key "
                    f"(also {earlier.row.site})"
                )
        for key in keys:
            books.setdefault(key, item)
    return problems
