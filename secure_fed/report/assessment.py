"""The final model on the coordinator's public hold-out, as a run's files have it, and as rows of tables.

Exact figures: their intervals say how much hangs on who is in the hold-out, and have nothing to do with noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from secure_fed.report import formats

Interval = tuple[float, float]
Score = Literal["AUROC", "AUPRC"]
ANY = "any"
"""Stands for a modality in missing rates: each record that loses one loses whichever the lot says."""


class _FromFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RateFacts(_FromFile):
    """Macro scores where a share `rate` of all records lacks `modality`, or one of theirs (`any`)."""

    modality: str
    rate: float
    auroc_macro: float | None
    auprc_macro: float | None


class LikenessFacts(_FromFile):
    """How near imputed features come to the real ones; `rank` 0 is best, 0.5 chance."""

    cosine: float | None
    mse: float
    mse_over_variance: float | None
    rank: float | None
    recall_at_10: float | None


class ImputationFacts(LikenessFacts):
    """A modality imputed from all others; `constant_mean` is what the mean of its real features scores.

    `calibration`: squared error over the variance that the method states, None where it states none.
    """

    records: int
    calibration: float | None
    constant_mean: LikenessFacts


class IntervalFacts(_FromFile):
    """Percentile intervals over draws of the hold-out's patients; None where no draw has the score."""

    level: float
    draws: int
    patients: int
    auroc_macro: Interval | None
    auprc_macro: Interval | None
    auroc_macro_missing: dict[str, Interval | None]
    auprc_macro_missing: dict[str, Interval | None]
    auroc_per_label: dict[str, Interval]
    auprc_per_label: dict[str, Interval]


class CostFacts(_FromFile):
    """What the model costs to use, and a round to run: FLOPs of one record, bytes and seconds as means over rounds."""

    parameters: dict[str, int]
    parameters_total: int
    flops_inference: int
    flops_imputation: dict[str, int]
    bytes_up_per_site_round: float
    bytes_down_per_site_round: float
    seconds_per_round: float


class AssessmentFacts(_FromFile):
    """The part of `summary.json` that stands on the public hold-out."""

    auroc_macro: float | None
    auroc_macro_missing: dict[str, float | None]
    auroc_per_label: dict[str, float | None]
    auprc_macro: float | None
    auprc_macro_missing: dict[str, float | None]
    auprc_per_label: dict[str, float | None]
    prevalence: dict[str, float]
    auprc_chance: float | None
    labels_left_out: tuple[str, ...]
    missing_rates: tuple[RateFacts, ...]
    imputation: dict[str, ImputationFacts]
    intervals: IntervalFacts
    cost: CostFacts


@dataclass(frozen=True)
class ScoreRow:
    """The macro scores with some modalities at test, as text."""

    view: str
    auroc: str
    auroc_interval: str
    auprc: str
    auprc_interval: str


@dataclass(frozen=True)
class LabelRow:
    """A label's scores as text; `above_chance`: where its AUROC lies between chance (0) and perfect (1)."""

    label: str
    auroc: str
    interval: str
    above_chance: float | None
    auprc: str
    prevalence: str


@dataclass(frozen=True)
class LikenessRow:
    """Features of one modality, imputed or constant, against the real ones, as text."""

    modality: str
    features: str
    error: str
    cosine: str
    rank: str
    recall: str
    calibration: str


def interval(found: Interval | None) -> str:
    """`0.757 to 0.785`; a dash where there is none."""
    return formats.NOTHING if found is None else f"{found[0]:.3f} to {found[1]:.3f}"


def with_interval(note: str, found: Interval | None) -> str:
    """A note on a score, its interval first where there is one."""
    return note if found is None else f"{interval(found)}, {note}"


def score_rows(facts: AssessmentFacts) -> list[ScoreRow]:
    """With every modality, then without each."""
    intervals = facts.intervals
    every = ScoreRow(
        "every modality",
        formats.score(facts.auroc_macro),
        interval(intervals.auroc_macro),
        formats.score(facts.auprc_macro),
        interval(intervals.auprc_macro),
    )
    return [every] + [
        ScoreRow(
            f"without {name}",
            formats.score(facts.auroc_macro_missing[name]),
            interval(intervals.auroc_macro_missing.get(name)),
            formats.score(facts.auprc_macro_missing.get(name)),
            interval(intervals.auprc_macro_missing.get(name)),
        )
        for name in facts.auroc_macro_missing
    ]


def label_rows(facts: AssessmentFacts) -> list[LabelRow]:
    """Labels, best AUROC first; those without one last."""
    ordered = sorted(facts.auroc_per_label.items(), key=lambda item: -1.0 if item[1] is None else -item[1])
    return [
        LabelRow(
            label,
            formats.score(auroc),
            interval(facts.intervals.auroc_per_label.get(label)),
            None if auroc is None else min(1.0, max(0.0, 2 * (auroc - 0.5))),
            formats.score(facts.auprc_per_label.get(label)),
            formats.score(facts.prevalence.get(label)),
        )
        for label, auroc in ordered
    ]


def likeness_rows(facts: AssessmentFacts) -> list[LikenessRow]:
    """For each modality what the method imputes, then the constant mean."""
    return [
        row
        for name, found in facts.imputation.items()
        for row in (
            _likeness(name, "imputed from all others", found, found.calibration),
            _likeness("", "constant mean", found.constant_mean, None),
        )
    ]


def _likeness(name: str, features: str, found: LikenessFacts, calibration: float | None) -> LikenessRow:
    return LikenessRow(
        modality=name,
        features=features,
        error=_figure(found.mse_over_variance),
        cosine=_figure(found.cosine),
        rank=_figure(found.rank),
        recall=formats.NOTHING if found.recall_at_10 is None else f"{100 * found.recall_at_10:.1f} %",
        calibration=_figure(calibration),
    )


def _figure(value: float | None) -> str:
    return formats.NOTHING if value is None else f"{value:.2f}"


def cost_rows(facts: CostFacts) -> list[tuple[str, str]]:
    """(what, figure) of the model's cost and a round's."""
    return [
        ("Parameters", formats.count(facts.parameters_total)),
        ("FLOPs of one inference, everything present", formats.large(facts.flops_inference)),
        *((f"FLOPs of imputing {name}", formats.large(value)) for name, value in facts.flops_imputation.items()),
        (
            "A site and round, sent and received",
            f"{formats.size(round(facts.bytes_up_per_site_round))}, "
            f"{formats.size(round(facts.bytes_down_per_site_round))}",
        ),
        ("A round, all sites in turn, evaluation included", formats.duration(facts.seconds_per_round)),
    ]


def rate_lines(facts: AssessmentFacts, score: Score) -> Mapping[str, list[tuple[float, float]]]:
    """Modality -> (missing rate, macro score), where there is one."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for point in facts.missing_rates:
        value = point.auroc_macro if score == "AUROC" else point.auprc_macro
        if value is not None:
            lines.setdefault(point.modality, []).append((point.rate, value))
    return lines


def rules(facts: AssessmentFacts) -> str:
    """What the scores stand on, for a caption."""
    found = facts.intervals
    return (
        "On the coordinator's public hold-out; sites' records have no part in it. Macro over labels of which the "
        f"hold-out has both classes. {100 * found.level:g} %: of {formats.count(found.draws)} draws of its "
        f"{formats.plural(found.patients, 'patient')} with replacement, so how much hangs on who is in it, not on the "
        f"seed. AUPRC is average precision; chance is the prevalence, {formats.score(facts.auprc_chance)} on average. "
        "Its intervals sit high, the more the rarer a label's positives: one that is drawn twice ranks beside itself. "
        "So a macro AUPRC may lie in the lower half of its interval, or at its end."
    )


AIM = (
    "FIN's losses `labels` (its default) and `logits` aim at what the frozen head makes of a translation, not at the "
    "feature: a poor likeness is to be expected of them, and no sign of a broken translator"
)
"""What to know of a likeness before it is read."""


def likeness_rules(facts: AssessmentFacts) -> str:
    """What the figures of imputed features stand on; empty where there are none."""
    records = max((found.records for found in facts.imputation.values()), default=0)
    if not records:
        return ""
    return (
        f"On {formats.plural(records, 'record')} of the public hold-out with every modality, one of them hidden. Error "
        "over variance: the constant mean has 1, less is better. Rank of the record's own feature by distance to what "
        f"was imputed: 0 is best, 0.5 chance. Cosine alone misleads: see what a constant has. {AIM}; the "
        "scores above tell."
    )
