"""The final model on the coordinator's public hold-out: scores with intervals, missing rates, imputations, cost.

Done once, at the end of a run. Nothing here touches a site's records.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure_fed.data.records import Records
from secure_fed.federation.facts import Federation
from secure_fed.methods import build
from secure_fed.methods.base import PublicContext
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.server import bootstrap
from secure_fed.server.bootstrap import ViewIntervals
from secure_fed.server.cost import Cost, cost_of
from secure_fed.server.evaluation import ALL_PRESENT, Scores, mean_of, predict, score, truth_of, views_of
from secure_fed.server.imputation_quality import ImputationQuality, imputation_quality
from secure_fed.server.missing_rates import RateScore, missing_rates


@dataclass(frozen=True)
class Assessment:
    """Scores and their intervals by the modality that is taken away, and what else is known of the final model."""

    scores: Mapping[str, Scores]
    intervals: Mapping[str, ViewIntervals]
    patients: int
    rates: tuple[RateScore, ...]
    imputation: Mapping[str, ImputationQuality]
    cost: Cost

    def facts(self) -> dict[str, Any]:
        """For summary.json, in plain values; None where there is no figure."""
        final = self.scores[ALL_PRESENT]
        missing = {name: scores for name, scores in self.scores.items() if name != ALL_PRESENT}
        return {
            "auroc_macro": figure(final.auroc_macro),
            "auroc_macro_missing": {name: figure(scores.auroc_macro) for name, scores in missing.items()},
            "auroc_per_label": final.auroc_per_label,
            "auprc_macro": figure(final.auprc_macro),
            "auprc_macro_missing": {name: figure(scores.auprc_macro) for name, scores in missing.items()},
            "auprc_per_label": final.auprc_per_label,
            "prevalence": final.prevalence,
            "auprc_chance": figure(mean_of(final.prevalence)),
            "labels_left_out": list(final.left_out),
            "missing_rates": [
                {
                    "modality": point.modality,
                    "rate": point.rate,
                    "auroc_macro": figure(point.auroc_macro),
                    "auprc_macro": figure(point.auprc_macro),
                }
                for point in self.rates
            ],
            "imputation": {name: _likeness(found) for name, found in self.imputation.items()},
            "intervals": self._intervals(),
        }

    def _intervals(self) -> dict[str, Any]:
        final = self.intervals[ALL_PRESENT]
        missing = {name: view for name, view in self.intervals.items() if name != ALL_PRESENT}
        return {
            "level": bootstrap.LEVEL,
            "draws": bootstrap.DRAWS,
            "patients": self.patients,
            "auroc_macro": final.auroc_macro,
            "auprc_macro": final.auprc_macro,
            "auroc_macro_missing": {name: view.auroc_macro for name, view in missing.items()},
            "auprc_macro_missing": {name: view.auprc_macro for name, view in missing.items()},
            "auroc_per_label": final.auroc_per_label,
            "auprc_per_label": final.auprc_per_label,
        }


def assess(
    federation: Federation, model: MultimodalModel, records: Records, context: PublicContext | None = None
) -> Assessment:
    """Everything that a summary says of the final model, on the hold-out `records`."""
    method, labels = federation.method, federation.schema.labels
    holdout = model.prepare(records)
    predictions = {name: predict(method, model, view, context) for name, view in views_of(holdout).items()}
    truth, known = truth_of(holdout)
    names, numbers = np.unique(records.unit_ids, return_inverse=True)
    return Assessment(
        scores={name: score(labels, holdout, values) for name, values in predictions.items()},
        intervals=bootstrap.intervals(labels, predictions, truth, known, numbers),
        patients=len(names),
        rates=missing_rates(labels, holdout, predictions),
        imputation=imputation_quality(method, model, holdout, context),
        cost=cost_of(build(federation.config.method), model, records, context),
    )


def figure(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _likeness(found: ImputationQuality) -> dict[str, Any]:
    return {
        "records": found.records,
        **dataclasses.asdict(found.imputed),
        "calibration": found.calibration,
        "constant_mean": dataclasses.asdict(found.constant_mean),
    }
