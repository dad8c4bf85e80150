"""The federated evaluation as a run's files have it, and in words: noised figures, always with their intervals.

What the coordinator scores on its own public hold-out is exact, stands elsewhere and is never mixed with these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from secure_fed.report import formats


class _FromFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class NoisedScore(_FromFile):
    """An AUROC and its 95 % interval, noise included."""

    auroc: float
    low: float
    high: float


class NoisedLabel(NoisedScore):
    """One label's, with the noised counts that it stands on."""

    positives: float
    negatives: float


class ViewFacts(_FromFile):
    """The scores computed from one set of modalities; `macro` is None where every label was left out."""

    macro: NoisedScore | None
    labels: dict[str, NoisedLabel]
    suppressed: tuple[str, ...]
    contributors: tuple[str, ...]
    noise_deviation: float
    binning: float | None


class ChargedNoise(_FromFile):
    """What a site's counts were noised with: multiplier, and the L2 norm of what one unit adds."""

    noise_multiplier: float
    bound: float


class EvaluationFacts(_FromFile):
    """How a run was scored beside the public hold-out; with `holdout`, not at all."""

    name: Literal["holdout", "federated"]
    planned: int = 0
    done: int = 0
    after_rounds: int | None = None
    fraction: float | None = None
    bins: int | None = None
    logit_range: float | None = None
    views: dict[str, ViewFacts] = Field(default_factory=dict)
    charged: dict[str, ChargedNoise] = Field(default_factory=dict)


@dataclass(frozen=True)
class ViewRow:
    """One view for a table."""

    view: str
    score: str
    interval: str
    labels: str
    suppressed: str
    contributors: str
    noise: str


def computed_from(view: str) -> str:
    """`image+text` as "image and text", `text` as "text alone"."""
    names = view.split("+")
    return formats.listed(names) if len(names) > 1 else f"{view} alone"


def view_rows(facts: EvaluationFacts) -> list[ViewRow]:
    """Every view that was opened, as text."""
    return [
        ViewRow(
            view=computed_from(view),
            score=formats.score(score.macro.auroc if score.macro else None),
            interval=interval(score.macro),
            labels=formats.count(len(score.labels)),
            suppressed=formats.listed(list(score.suppressed)) or "none",
            contributors=formats.count(len(score.contributors)),
            noise=f"{score.noise_deviation:.1f}",
        )
        for view, score in facts.views.items()
    ]


def interval(score: NoisedScore | None) -> str:
    """`0.61 to 0.83`; a dash where there is no figure."""
    return formats.NOTHING if score is None else f"{score.low:.2f} to {score.high:.2f}"


def label_rows(facts: EvaluationFacts) -> list[tuple[str, str, str, str, str]]:
    """(view, label, AUROC, interval, noised positives) of each label that was not left out."""
    return [
        (computed_from(view), name, formats.score(label.auroc), interval(label), f"{label.positives:.0f}")
        for view, score in facts.views.items()
        for name, label in score.labels.items()
    ]


def headline_rows(facts: EvaluationFacts) -> list[tuple[str, str, str]]:
    """(name, figure, note) for the end of a run."""
    if facts.name == "holdout":
        return []
    if not facts.views:
        return [("AUROC at the sites", formats.NOTHING, "federated: no sum was opened")]
    return [_headline(view, score) for view, score in facts.views.items()]


def _headline(view: str, score: ViewFacts) -> tuple[str, str, str]:
    note = f"federated, noised; from {computed_from(view)}"
    if score.macro is None:
        return "AUROC at the sites", formats.NOTHING, f"{note}; too few of every label for the noise"
    left_out = f"; {formats.plural(len(score.suppressed), 'label')} left out" if score.suppressed else ""
    return "AUROC at the sites", formats.score(score.macro.auroc), f"{interval(score.macro)}, {note}{left_out}"


def sentence(facts: EvaluationFacts) -> str:
    """The federated evaluation in one or two sentences; empty with the hold-out alone."""
    if facts.name == "holdout":
        return ""
    scored = {view: score.macro for view, score in facts.views.items() if score.macro is not None}
    if not facts.views:
        return "It was to be evaluated on records that the sites hold out, but no such sum was opened."
    if not scored:
        return (
            "On records that the sites hold out, every label has too few positives or negatives for the noise: no "
            "federated figure is shown."
        )
    figures = formats.listed(
        [f"{formats.score(s.auroc)} ({interval(s)}) from {computed_from(view)}" for view, s in scored.items()]
    )
    return (
        f"On records that the sites hold out, by noised counts, its macro AUROC is {figures}, with 95 % intervals "
        "that include the noise."
    )


def rules(facts: EvaluationFacts) -> str:
    """What the figures stand on, for a caption."""
    if facts.name == "holdout" or facts.fraction is None:
        return ""
    multipliers = sorted({charge.noise_multiplier for charge in facts.charged.values()})
    charged = (
        f"Charged at every site as a Gaussian release (noise multiplier {multipliers[0]:.3g}"
        + (f" to {multipliers[-1]:.3g}" if len(multipliers) > 1 else "")
        + ")."
        if multipliers
        else "Privacy was off: the counts are exact."
    )
    return (
        f"Of each site's patients a share of {facts.fraction:g}, chosen by a keyed hash, is never trained on. Their "
        f"scores are counted in {facts.bins} bins by label, truth and view; sums over sites are opened, with noise on "
        f"every count. {charged} A label is left out where its noised positives or negatives are few, or not told from "
        "noise."
    )
