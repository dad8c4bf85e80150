"""Synthetic chest films with reports: who has which finding, and how plainly film and report show it.

Nothing here is a patient: it is the default data set on which every part of the house can be run.
`film.py` draws, `report_grammar.py` writes; this module decides what there is to draw and to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from secure_fed.data.config import SyntheticCxrConfig
from secure_fed.data.cxr_anatomy import FINDINGS, Anatomy, Placement
from secure_fed.data.film import draw_films
from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.data.report_grammar import write_reports

# The 14 labels of CheXpert in their order (Irvin et al., AAAI 2019, arXiv 1901.07031).
CHEXPERT_LABELS = ("No Finding", *FINDINGS)

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FindingModel:
    """One finding. Prevalence is of studies; loadings are on the factors of `_FACTORS`.

    film, report: how far the evidence in that modality lies above its mean without the finding, in standard
    deviations of the evidence (the d' of signal detection theory), so that the best possible AUROC from one
    modality alone is Phi(d' / sqrt 2), whatever the other labels say.
    """

    prevalence: float
    loadings: tuple[float, float, float, float, float]
    film: float
    report: float


# Factors shared by findings: congestion, infection, acuity (the intensive-care patient), trauma, chronic.
# Prevalences are those of the large public chest film sets, with the rarest lifted to 3 % so that a test set
# of this size holds enough of them. Devices and heart size are plain on a film and often left out of a
# report; fractures and lesions are the other way round.
_MODELS: Mapping[str, FindingModel] = {
    #                                            prev    cong  infec  acuity trauma chron   film report
    "Enlarged Cardiomediastinum": FindingModel(0.06, (0.40, 0.00, 0.20, 0.25, 0.00), 2.00, 1.20),
    "Cardiomegaly": FindingModel(0.20, (0.65, 0.00, 0.00, 0.00, 0.10), 2.30, 1.50),
    "Lung Opacity": FindingModel(0.24, (0.25, 0.55, 0.30, 0.00, 0.20), 1.80, 1.70),
    "Lung Lesion": FindingModel(0.05, (-0.10, 0.00, 0.00, 0.00, 0.60), 1.60, 1.90),
    "Edema": FindingModel(0.14, (0.80, 0.00, 0.20, 0.00, 0.00), 2.00, 1.70),
    "Consolidation": FindingModel(0.06, (0.00, 0.75, 0.25, 0.00, 0.00), 1.90, 1.50),
    "Pneumonia": FindingModel(0.08, (0.00, 0.80, 0.15, 0.00, 0.10), 1.60, 1.70),
    "Atelectasis": FindingModel(0.21, (0.25, 0.15, 0.45, 0.10, 0.00), 1.70, 1.50),
    "Pneumothorax": FindingModel(0.05, (-0.15, 0.00, 0.35, 0.55, 0.10), 1.70, 1.90),
    "Pleural Effusion": FindingModel(0.24, (0.60, 0.15, 0.35, 0.10, 0.00), 2.20, 1.70),
    "Pleural Other": FindingModel(0.03, (0.00, 0.10, 0.00, 0.20, 0.50), 1.60, 1.50),
    "Fracture": FindingModel(0.04, (-0.10, 0.00, 0.00, 0.70, 0.10), 1.40, 1.90),
    "Support Devices": FindingModel(0.29, (0.30, 0.10, 0.75, 0.15, 0.00), 2.50, 1.30),
}

_PATIENT_SHARE = (0.7, 0.2, 0.3, 0.4, 0.9)  # of each factor's variance that stays with the patient
_PATIENT_EVIDENCE = 0.3  # of the evidence noise: a patient's habitus mimics the same finding every time


def schema_of_synthetic_cxr(config: SyntheticCxrConfig) -> Schema:
    """Modalities image [1, S, S] and text (the report), and the 14 CheXpert labels."""
    size = config.image_size
    return Schema(
        modalities=(ModalitySpec("image", "image", (1, size, size)), ModalitySpec("text", "text", ())),
        labels=CHEXPERT_LABELS,
    )


def generate_synthetic_cxr(config: SyntheticCxrConfig, seed: int) -> Records:
    """About patients x studies_per_patient records; the same config and seed give the same bytes.

    Raises nothing that depends on the seed.
    """
    rng_labels, rng_film, rng_report = (
        np.random.default_rng(child) for child in np.random.SeedSequence([seed, 2012]).spawn(3)
    )
    studies = 1 + rng_labels.poisson(config.studies_per_patient - 1.0, size=config.patients)
    patient = np.repeat(np.arange(config.patients), studies)
    findings = _draw_findings(rng_labels, config, patient)
    film, report = _draw_evidence(rng_labels, config, patient, findings)
    n = len(patient)
    placement = Placement.draw(rng_labels, n)
    anatomy = Anatomy.draw(rng_film, config.patients, patient)
    anatomy = replace(anatomy, offset=anatomy.offset + np.float32(config.exposure))
    films = draw_films(rng_film, film, anatomy, placement, config.image_size)
    reports = write_reports(rng_report, report, placement)
    everywhere = np.ones(n, dtype=bool)
    return Records(
        schema=schema_of_synthetic_cxr(config),
        values={"image": films, "text": reports},
        presence={"image": everywhere, "text": everywhere.copy()},
        labels=_labels(findings),
        unit_ids=np.array([f"p{i:06d}" for i in range(config.patients)])[patient],
    )


def _draw_findings(
    rng: np.random.Generator, config: SyntheticCxrConfig, patient: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Findings [n, 13] from a Gaussian factor model, thresholded at each finding's (shifted) prevalence."""
    models = [_MODELS[name] for name in FINDINGS]
    share = np.array(_PATIENT_SHARE)
    of_patient = rng.standard_normal((config.patients, len(share)))[patient]
    of_study = rng.standard_normal((len(patient), len(share)))
    factors = np.sqrt(share) * of_patient + np.sqrt(1.0 - share) * of_study
    loadings = np.array([model.loadings for model in models])
    unique = np.sqrt(1.0 - (loadings**2).sum(axis=1))
    latent = factors @ loadings.T + unique * rng.standard_normal((len(patient), len(models)))
    threshold = np.array([NormalDist().inv_cdf(1.0 - model.prevalence) for model in models])
    return np.asarray(latent > threshold - config.prevalence_shift)


def _draw_evidence(
    rng: np.random.Generator,
    config: SyntheticCxrConfig,
    patient: npt.NDArray[np.int64],
    findings: npt.NDArray[np.bool_],
) -> tuple[Float, Float]:
    """How plainly film and report show each finding: two [n, 13], unit noise around d' times the finding."""
    shape = (config.patients, len(FINDINGS))
    habitus = rng.standard_normal(shape)[patient]
    film_noise = np.sqrt(_PATIENT_EVIDENCE) * habitus
    film_noise += np.sqrt(1.0 - _PATIENT_EVIDENCE) * rng.standard_normal(findings.shape)
    report_noise = config.link * film_noise + np.sqrt(1.0 - config.link**2) * rng.standard_normal(findings.shape)
    film_gain = np.array([_MODELS[name].film for name in FINDINGS])
    report_gain = np.array([_MODELS[name].report for name in FINDINGS])
    return film_gain * findings + film_noise, report_gain * findings + report_noise


def _labels(findings: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """The 14 labels [n, 14]. As CheXpert has it, devices do not stand against No Finding."""
    pathology = np.delete(findings, FINDINGS.index("Support Devices"), axis=1)
    return np.column_stack([~pathology.any(axis=1), findings]).astype(np.float32)
