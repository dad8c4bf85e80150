"""Warnings on top of every output of a run: what voids a guarantee, and what qualifies one.

Page, model card and terminal share these, so that none of them can keep one back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from secure_fed.report import formats, wording
from secure_fed.report.budget import Budget
from secure_fed.report.run_folder import RunFolder, Summary
from secure_fed.report.tuning import TUNING, Tuning, read_tuning, tuning_statements


@dataclass(frozen=True)
class Notice:
    """Something that stands on top of every output. `danger` voids a guarantee, `notice` qualifies one.

    `covers`: a warning of the run's writer that contains this, in small letters, says the same and is left out.
    """

    level: Literal["danger", "notice"]
    title: str
    text: str
    covers: str = ""


_PRIVACY_OFF = Notice(
    "danger",
    "Privacy is off",
    "privacy=off: updates were trained without clipping and without noise. This run gives no "
    "differential privacy; it is for comparison only, on data that may be public.",
    "privacy=off",
)
_REPRODUCIBLE = Notice(
    "danger",
    "Insecure and reproducible",
    "insecure_reproducible=true: noise, sampling and rounding came from the seed. Whoever knows the seed "
    "can remove them, so no privacy figure of this run protects anybody.",
    "insecure_reproducible",
)
_SECAGG_OFF = Notice(
    "danger",
    "Secure aggregation is off",
    "secagg=off: the coordinator received every site's own update. Only each site's differential "
    "privacy, where it is on, stands between the coordinator and the records.",
    "secagg=off",
)
_SEMI_MALICIOUS = Notice(
    "notice",
    "Semi-malicious server only",
    "secagg.graph=k_regular: each site masked with some of the others only, chosen at random. That holds against a "
    "server that hands on the keys as it got them, whatever it does afterwards; one that tries out lists of keys until "
    "the graph suits it is not covered.",
    "k-regular graph",
)
_UNVERIFIED = Notice(
    "notice",
    "Server step: unverified",
    "No site could recompute the server's step: nothing ties the model that sites were sent after a round to the "
    "sums of their updates.",
    "server_step: unverified",
)
_NO_LIFETIME = Notice(
    "notice",
    "No lifetime claim",
    "The sites' ledgers count this run folder alone. If the same records are used in another run or "
    "elsewhere, the epsilons add up and the figures below understate the total.",
)


def standing_warnings(summary: Summary) -> tuple[Notice, ...]:
    """Warnings that follow from the summary alone, most severe first; the writer's own ones come after."""
    found = []
    if summary.privacy == "off":
        found.append(_PRIVACY_OFF)
    if summary.insecure_reproducible:
        found.append(_REPRODUCIBLE)
    if summary.secagg.mode == "off":
        found.append(_SECAGG_OFF)
    found += _overspent(summary)
    if summary.status != "finished":
        text = f"The run's status is {summary.status}: the figures are those of an unfinished model."
        found.append(Notice("danger", "Not finished", text))
    found += _dp_only(summary)
    if wording.is_k_regular(summary):
        found.append(_SEMI_MALICIOUS)
    if summary.server_step == "unverified":
        found.append(_UNVERIFIED)
    return (*found, *_written(summary.warnings, found))


def _dp_only(summary: Summary) -> list[Notice]:
    """Components with a lower floor; those whose sum may be one site's own update come first."""
    alone = [name for name, floor in summary.dp_only.items() if floor == 1]
    few = {name: floor for name, floor in summary.dp_only.items() if floor > 1}
    guard = "nothing protects" if wording.void(summary) else "differential privacy alone protects"
    found = []
    if alone:
        text = (
            f"The floor of {formats.listed(alone)} is 1: a sum is opened even where a single site contributed, and the "
            "coordinator then sees that one site's own update, unmasked. The owners opted for this; "
            f"{guard} that update."
        )
        found.append(Notice("danger", "DP only, and a single site's update can be seen", text, "floor 1"))
    if few:
        names = formats.listed([f"{name} (floor {floor})" for name, floor in few.items()])
        text = (
            f"The owners of {names} opted for a floor at which corrupt contributors, together with the coordinator, "
            f"can subtract themselves from a sum. Against them {guard} what is left of it."
        )
        found.append(Notice("notice", "DP only", text, "dp only"))
    return found


def all_warnings(run: RunFolder, budget: Budget) -> tuple[Notice, ...]:
    """`standing_warnings`, and what the run's other files say, a sweep that chose it among them.

    Raises DataError where what a sweep said of its tuning is damaged.
    """
    summary = run.summary
    found = _disagreements(budget)
    found += [warning for warning in standing_warnings(summary) if warning.level == "danger"]
    if (run.path / TUNING).is_file():
        found.append(tuning_notice(read_tuning(run.path / TUNING)))
    if summary.privacy == "dp" and not all(ledger.lifetime_claim for ledger in budget.ledgers):
        found.append(_NO_LIFETIME)
    if summary.rounds_charged_again:
        text = (
            f"{formats.plural(summary.rounds_charged_again, 'round')} had to be charged again after an "
            "interruption. The ledgers and every epsilon below include both charges."
        )
        found.append(Notice("notice", "Charged again", text))
    if summary.rounds_skipped:
        text = (
            f"{formats.plural(summary.rounds_skipped, 'round')} of the schedule did not take place: interruptions or "
            "burned rounds had used up the budget that was set aside for repeating them."
        )
        found.append(Notice("notice", "Rounds left out", text))
    others = [ledger.site for ledger in budget.ledgers if ledger.other_runs]
    if others:
        text = (
            f"The ledgers of {formats.ranges(others)} also hold charges of other runs. The figures below "
            "are of this run alone; `secure-fed verify` gives the totals."
        )
        found.append(Notice("notice", "Other runs on the same ledger", text))
    known = {(w.level, w.text) for w in found}
    found += [w for w in standing_warnings(summary) if (w.level, w.text) not in known]
    return tuple(found)


def tuning_notice(tuning: Tuning) -> Notice:
    """How a sweep chose the run, and what that cost."""
    text = " ".join(tuning_statements(tuning)[:2])
    if tuning.mode == "public":
        return Notice("notice", "Chosen by a sweep", text)
    if tuning.figure is None or math.isinf(tuning.figure):
        return Notice("danger", "Tuning is not covered", text)
    return Notice("notice", "Tuning counts", text)


def _written(texts: Iterable[str], found: Sequence[Notice]) -> list[Notice]:
    """The writer's warnings, without those that say what one of `found` says at greater length."""
    covered = [notice.covers for notice in found if notice.covers]
    return [
        Notice("notice", "Note", text)
        for text in dict.fromkeys(texts)
        if not any(marker in text.lower() for marker in covered)
    ]


def _disagreements(budget: Budget) -> list[Notice]:
    if not budget.discrepancies:
        return []
    site, (stated, found) = max(budget.discrepancies.items(), key=lambda item: item[1][1])
    text = (
        f"The ledgers of {formats.ranges(list(budget.discrepancies))} do not give the epsilon that "
        f"summary.json states: for {site} the summary says {formats.epsilon(stated)}, its ledger "
        f"{formats.epsilon(found)}. Trust the ledger, and run `secure-fed verify`."
    )
    return [Notice("danger", "Ledger and summary disagree", text)]


def _overspent(summary: Summary) -> list[Notice]:
    spent, target = summary.epsilon_max, summary.epsilon_target
    if summary.privacy == "off" or spent is None or target is None or spent <= target:
        return []
    text = f"A site spent ε = {formats.epsilon(spent)}, above the limit of {formats.limit(target)} that was set."
    return [Notice("danger", "Over budget", text)]
