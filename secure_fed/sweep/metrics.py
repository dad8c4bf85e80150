"""A cell's metrics: what they are called, where a run's summary has them, and how people name them. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from secure_fed.data.records import Schema
from secure_fed.report import evaluation
from secure_fed.report.assessment import ANY
from secure_fed.report.run_folder import Summary

MACRO, MISSING, LABEL = "auroc_macro", "auroc_macro_missing.", "auroc."
_AUPRC, _AUPRC_MISSING = "auprc_macro", "auprc_macro_missing."
_RATE = "auroc_rate."
_FEDERATED = "auroc_macro_federated."
_IMPUTATION = {
    "imputation_cosine.": "cosine of imputed {} and real",
    "imputation_mse_over_variance.": "error over variance of imputed {}, less is better",
    "imputation_rank.": "rank of real {} by imputed, less is better",
}


def metrics_of(summary: Summary) -> dict[str, float | None]:
    """Every metric of a finished run; None where the run has no figure."""
    metrics = {MACRO: summary.auroc_macro}
    metrics |= {f"{MISSING}{name}": value for name, value in summary.auroc_macro_missing.items()}
    metrics[_AUPRC] = summary.auprc_macro
    metrics |= {f"{_AUPRC_MISSING}{name}": value for name, value in summary.auprc_macro_missing.items()}
    metrics |= {f"{LABEL}{label}": value for label, value in summary.auroc_per_label.items()}
    metrics |= {_rate(point.modality, point.rate): point.auroc_macro for point in summary.missing_rates}
    for name, found in summary.imputation.items():
        figures = (found.cosine, found.mse_over_variance, found.rank)
        metrics |= {f"{prefix}{name}": figure for prefix, figure in zip(_IMPUTATION, figures, strict=True)}
    for view, score in summary.evaluation.views.items():
        metrics[f"{_FEDERATED}{view}"] = score.macro.auroc if score.macro else None
    return metrics


def objectives(schema: Schema, views: Sequence[str], rates: Sequence[float]) -> list[str]:
    """The metrics of which more is better that every cell has, whatever its method.

    `views`: those of the federated evaluation. `rates`: at which a modality is missing.
    """
    names = [MACRO, *(f"{MISSING}{name}" for name in schema.names), *(f"{_FEDERATED}{view}" for view in views)]
    names += [_AUPRC, *(f"{_AUPRC_MISSING}{name}" for name in schema.names)]
    losses = [*schema.names, *([ANY] if len(schema.names) > 1 else [])]
    names += [_rate(name, rate) for name in losses for rate in rates]
    return [*names, *(f"{LABEL}{label}" for label in schema.labels)]


def _rate(modality: str, rate: float) -> str:
    return f"{_RATE}{modality}.{rate:g}"


def name_of(metric: str) -> str:
    """A metric for people."""
    named = {MACRO: "AUROC, macro", _AUPRC: "AUPRC, macro"}
    if metric in named:
        return named[metric]
    if metric.startswith(MISSING):
        return f"AUROC, no {metric.removeprefix(MISSING)}"
    if metric.startswith(_AUPRC_MISSING):
        return f"AUPRC, no {metric.removeprefix(_AUPRC_MISSING)}"
    if metric.startswith(_RATE):
        modality, _, rate = metric.removeprefix(_RATE).partition(".")
        what = "one modality" if modality == ANY else modality
        return f"AUROC, {what} missing in {100 * float(rate):g} % of records"
    for prefix, text in _IMPUTATION.items():
        if metric.startswith(prefix):
            return text.format(metric.removeprefix(prefix))
    if metric.startswith(_FEDERATED):
        return f"AUROC at the sites, from {evaluation.computed_from(metric.removeprefix(_FEDERATED))}"
    return f"AUROC of {metric.removeprefix(LABEL)}" if metric.startswith(LABEL) else metric


def note_of(metric: str) -> str:
    """What a metric is, in a sentence."""
    if metric == MACRO:
        return "AUROC, macro over labels, every modality present at test"
    if metric == _AUPRC:
        return "AUPRC, macro over labels (average precision; chance is the prevalence), every modality present at test"
    for prefix, score in ((MISSING, "AUROC"), (_AUPRC_MISSING, "AUPRC")):
        if metric.startswith(prefix):
            return f"{score}, macro over labels, {metric.removeprefix(prefix)} taken away from every test record"
    if metric.startswith(_FEDERATED):
        return f"{name_of(metric)}: macro over labels, on noised counts of the sites' own test records"
    return name_of(metric)
