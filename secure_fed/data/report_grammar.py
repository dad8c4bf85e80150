"""Writes chest film reports: what is stated, hedged, denied or left out, and much beside the point.

Phrases are the field's common ones, written for this grammar. A report has the sections of real ones: the
reason for the film, a comparison, findings by organ, an impression; the first two say nothing of the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_fed.data.cxr_anatomy import DEVICES, FINDINGS, Placement

# Evidence at which a finding is stated, and above which it is at least hedged; below, denied or left out.
_STATED_FROM, _HEDGED_FROM = 1.7, 1.2
_SEVERE_FROM, _MODERATE_FROM = 3.2, 2.4


@dataclass(frozen=True)
class Phrases:
    """Ways to state, hedge and deny one finding, and how often its absence is worth a sentence."""

    stated: tuple[str, ...]
    hedged: tuple[str, ...]
    denied: tuple[str, ...]
    deny_rate: float


_PHRASES: Mapping[str, Phrases] = {
    "Enlarged Cardiomediastinum": Phrases(
        (
            "The mediastinum is widened",
            "{Degree} widening of the cardiomediastinal silhouette",
            "The mediastinal contours are enlarged and the aorta is tortuous",
        ),
        (
            "Possible mediastinal widening, which may be projectional",
            "Apparent widening of the mediastinum may reflect portable technique",
        ),
        (
            "The mediastinal contours are normal",
            "The cardiomediastinal silhouette is within normal limits",
            "No mediastinal widening",
        ),
        0.35,
    ),
    "Cardiomegaly": Phrases(
        (
            "{Degree} cardiomegaly",
            "The heart is {degree}ly enlarged",
            "The cardiac silhouette is enlarged",
            "There is {degree} enlargement of the cardiac silhouette",
        ),
        (
            "The heart is top normal in size",
            "Borderline heart size",
            "Possible cardiomegaly, accounting for technique",
        ),
        ("The heart size is normal", "No cardiomegaly", "Heart size within normal limits"),
        0.5,
    ),
    "Lung Opacity": Phrases(
        (
            "{Side} {zone} opacity",
            "There is a hazy opacity in the {side} {zone}",
            "Patchy opacity in the {side} {zone}",
            "Increased opacification of the {side} {zone}",
        ),
        (
            "Questionable opacity in the {side} {zone}",
            "{Side} {zone} opacity may represent overlap of structures",
            "Possible {side} {zone} opacity versus atelectasis",
        ),
        ("No focal opacity", "The lungs are clear", "The lungs are well expanded and clear"),
        0.5,
    ),
    "Lung Lesion": Phrases(
        (
            "A rounded nodule projects over the {side} {zone}",
            "{Side} {zone} mass",
            "Well defined pulmonary nodule in the {side} {zone}",
        ),
        (
            "Possible nodule in the {side} {zone}, versus overlap of vessels",
            "A nodular lesion of the {side} {zone} cannot be excluded",
        ),
        ("No pulmonary nodule or mass", "No suspicious lesion"),
        0.12,
    ),
    "Edema": Phrases(
        (
            "{Degree} pulmonary edema",
            "{Degree} interstitial edema with perihilar haze",
            "Findings consistent with {degree} vascular congestion and edema",
            "Increased interstitial markings and kerley lines, consistent with edema",
        ),
        (
            "Possible mild vascular congestion",
            "Increased interstitial markings may reflect edema versus chronic disease",
            "Early edema cannot be excluded",
        ),
        ("No pulmonary edema", "No evidence of congestion or edema", "No overt edema"),
        0.45,
    ),
    "Consolidation": Phrases(
        (
            "{Side} {lobe} consolidation",
            "Confluent airspace consolidation with air bronchograms in the {side} {lobe}",
            "Dense airspace opacification of the {side} {lobe}",
        ),
        (
            "Opacity in the {side} {lobe} could represent early consolidation",
            "Possible developing consolidation in the {side} {lobe}",
        ),
        ("No focal consolidation", "No consolidation", "There is no focal airspace consolidation"),
        0.55,
    ),
    "Pneumonia": Phrases(
        (
            "{Side} {zone} pneumonia",
            "Patchy {side} {zone} infiltrate consistent with pneumonia",
            "Findings compatible with an infectious process in the {side} {zone}",
        ),
        (
            "Pneumonia of the {side} {zone} cannot be excluded",
            "Patchy opacity may represent atelectasis or pneumonia",
            "Streaky {side} {zone} opacity, suggestive of aspiration or atelectasis",
        ),
        ("No evidence of pneumonia", "No infiltrate", "Negative for pneumonia"),
        0.4,
    ),
    "Atelectasis": Phrases(
        (
            "{Side} basilar atelectasis",
            "Linear atelectasis at the {side} base",
            "Plate like atelectasis and volume loss at the {side} base",
            "Low lung volumes with atelectatic changes at the {side} base",
        ),
        (
            "{Side} basilar opacity, likely atelectasis",
            "Streaky basilar opacity may represent atelectasis",
            "Possible volume loss at the {side} base",
        ),
        ("No atelectasis or collapse", "The lung volumes are normal"),
        0.15,
    ),
    "Pneumothorax": Phrases(
        (
            "Small {side} apical pneumothorax",
            "{Size} {side} pneumothorax with visible pleural line",
            "There is a {side} pneumothorax",
        ),
        (
            "Questionable {side} apical pneumothorax versus skin fold",
            "A tiny {side} pneumothorax cannot be excluded",
        ),
        ("No pneumothorax", "There is no evidence of pneumothorax"),
        0.6,
    ),
    "Pleural Effusion": Phrases(
        (
            "{Size} {side} pleural effusion",
            "Layering {side} pleural fluid",
            "Blunting of the {side} costophrenic angle consistent with effusion",
            "There is a {size} {side} effusion",
        ),
        (
            "Possible trace {side} pleural effusion",
            "Blunted {side} costophrenic angle may represent effusion or scarring",
            "A small {side} effusion cannot be excluded",
        ),
        ("No pleural effusion", "No effusion", "The costophrenic angles are sharp"),
        0.6,
    ),
    "Pleural Other": Phrases(
        (
            "{Side} pleural thickening",
            "Calcified {side} pleural plaque",
            "{Side} apical capping and pleural thickening",
        ),
        ("Possible {side} pleural thickening", "Apparent {side} apical capping, likely scarring"),
        ("No pleural thickening", "The pleural surfaces are unremarkable"),
        0.12,
    ),
    "Fracture": Phrases(
        (
            "Displaced {side} rib fracture",
            "{Side} rib fractures with callus",
            "Acute fracture of a {side} lateral rib",
        ),
        (
            "Questionable {side} rib deformity",
            "A nondisplaced {side} rib fracture cannot be excluded",
        ),
        ("No acute fracture", "The osseous structures are intact", "No acute osseous abnormality"),
        0.3,
    ),
    "Support Devices": Phrases((), (), ("No support device or hardware",), 0.04),
}
_DEVICE_PHRASES: Mapping[str, tuple[str, ...]] = {
    "pacemaker": (
        "Pacemaker with leads in the right atrium and ventricle",
        "Left pacemaker leads are in place",
    ),
    "endotracheal": ("Endotracheal tube tip above the carina", "The patient is intubated, tube tip in place"),
    "venous": (
        "Right jugular venous catheter terminates in the lower cava",
        "PICC line tip at the cavoatrial junction",
    ),
    "wires": ("Sternotomy wires are intact", "Status after sternotomy with clips"),
    "chest_tube": ("{Side} chest tube in place", "{Side} drain projects over the hemithorax"),
    "nasogastric": ("Enteric tube terminates in the stomach", "Nasogastric tube tip below the diaphragm"),
}
_VAGUE_DEVICES = (
    "Lines and tubes are unchanged",
    "Monitoring and support devices as before",
    "Stable device position",
)

_REASONS = (
    "fever and cough", "dyspnea", "chest pain", "fall", "hypoxia", "preoperative evaluation", "follow up",
    "evaluate for pneumonia", "rule out pneumothorax", "evaluate for effusion", "history of heart failure",
    "history of pneumonia", "rule out fracture after trauma", "assess for edema", "tube placement", "sepsis",
    "known lung cancer, evaluate for nodule", "shortness of breath", "weakness", "COPD", "asthma, smoker",
    "line placement, rule out pneumothorax",
)  # fmt: skip
_COMPARISONS = (
    "None", "Prior film", "Portable film of the previous day", "Outside film, not available",
    "Prior film. The previously seen effusion has resolved",
    "Prior film. Previously seen pneumonia has cleared",
    "Prior film. The chest tube has been removed", "Prior film. Endotracheal tube has been removed",
    "Prior film. Resolved edema", "Prior film. Atelectasis has resolved",
    "Prior film. Pneumothorax has resolved",
)  # fmt: skip
_ASIDES = (
    "Portable technique limits assessment", "The patient is rotated", "The aorta is calcified",
    "Old granuloma",
    "Degenerative change of the spine", "Limited penetration", "Upright view",
    "The stomach is distended with gas",
    "Hyperinflated lungs as in emphysema", "The trachea is midline", "Hilar contours are normal",
)  # fmt: skip
_NOTHING = (
    "No acute cardiopulmonary process", "No acute cardiopulmonary abnormality", "Normal chest",
    "No acute disease",
    "Unremarkable film of the chest",
)  # fmt: skip
_SOMETHING = (
    "As above", "Findings as described", "Clinical correlation is recommended", "Interval change as above",
    "Stable appearance", "Follow up film is recommended",
)  # fmt: skip

# Findings beside which the lungs are not clear.
_SHADOWS = tuple(FINDINGS.index(name) for name in ("Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis"))
_SIDE = {-1: "right", 1: "left", 0: "bilateral"}
_ZONE = ("upper zone", "perihilar region", "lower zone")
_LOBE = ("upper lobe", "middle lobe", "lower lobe")


class _Dice:
    """Uniform numbers drawn ahead of time, one row a report: fast, and each report's are its own."""

    def __init__(self, row: Sequence[float]) -> None:
        self._row = iter(row)

    def chance(self, probability: float) -> bool:
        return next(self._row) < probability

    def pick(self, options: Sequence[str]) -> str:
        return options[int(next(self._row) * len(options))]


_DICE_PER_REPORT = 8 + 5 * len(FINDINGS) + 2 * len(DEVICES)


def write_reports(
    rng: np.random.Generator, evidence: npt.NDArray[np.float64], placement: Placement
) -> npt.NDArray[Any]:
    """Reports [n] (object array of str) for evidence [n, 13]: unit noise around a finding's plainness.

    Side, zone and device are those of the film, where a finding is drawn at all.
    """
    dice = rng.random((len(evidence), _DICE_PER_REPORT)).tolist()
    reports = np.empty(len(evidence), dtype=object)
    sides, zones, devices = placement.side.tolist(), placement.zone.tolist(), placement.devices.tolist()
    for i, row in enumerate(evidence.tolist()):
        reports[i] = _write_report(_Dice(dice[i]), row, sides[i], zones[i], devices[i])
    return reports


def _write_report(dice: _Dice, evidence: list[float], sides: list[int], zones: list[int], devices: list[bool]) -> str:
    sections = []
    if dice.chance(0.7):
        sections.append(f"INDICATION: {dice.pick(_REASONS)}.")
    if dice.chance(0.5):
        sections.append(f"COMPARISON: {dice.pick(_COMPARISONS)}.")
    body: list[str] = []
    denied: list[str] = []
    worst = ("", _STATED_FROM)
    quiet = True
    shadows = any(evidence[j] >= _HEDGED_FROM for j in _SHADOWS)
    for j, name in enumerate(FINDINGS):
        level = evidence[j]
        if level >= _HEDGED_FROM:
            quiet = quiet and name == "Support Devices"
            sentence = (
                _devices(dice, level, sides[j], devices)
                if name == "Support Devices"
                else _fill(dice, name, level, sides[j], zones[j])
            )
            body.append(sentence)
            if level >= worst[1] and name != "Support Devices":
                worst = (sentence, level)
        elif dice.chance(_PHRASES[name].deny_rate):
            # Nobody calls lungs clear and describes a consolidation in the next sentence.
            options = _PHRASES[name].denied[: 1 if name == "Lung Opacity" and shadows else None]
            denied.append(dice.pick(options))
    if dice.chance(0.4):
        body.append(dice.pick(_ASIDES))
    findings = ". ".join([*body, *_joined(denied)]) or "As below"
    sections.append(f"FINDINGS: {findings}.")
    if dice.chance(0.8):
        sections.append(f"IMPRESSION: {_impression(dice, quiet, worst[0])}.")
    return "\n".join(sections)


def _impression(dice: _Dice, quiet: bool, worst: str) -> str:
    if quiet:
        return dice.pick(_NOTHING)
    return worst if worst and dice.chance(0.6) else dice.pick(_SOMETHING)


def _fill(dice: _Dice, name: str, level: float, side: int, zone: int) -> str:
    phrases = _PHRASES[name]
    template = dice.pick(phrases.stated if level >= _STATED_FROM else phrases.hedged)
    degree = "severe" if level >= _SEVERE_FROM else "moderate" if level >= _MODERATE_FROM else "mild"
    size = {"severe": "large", "moderate": "moderate", "mild": "small"}[degree]
    words = {"side": _SIDE[side], "zone": _ZONE[zone], "lobe": _LOBE[zone], "degree": degree, "size": size}
    return template.format(**words, **{key.capitalize(): word.capitalize() for key, word in words.items()})


def _devices(dice: _Dice, level: float, side: int, devices: list[bool]) -> str:
    if level < _STATED_FROM:
        return dice.pick(_VAGUE_DEVICES)
    named = [
        dice.pick(_DEVICE_PHRASES[name]).format(Side=_SIDE[side or 1].capitalize())
        for name, there in zip(DEVICES, devices, strict=True)
        if there
    ]
    return ". ".join(named)


def _joined(denied: list[str]) -> list[str]:
    """Denials as they are dictated: those with "No" run together ("No effusion or pneumothorax")."""
    short = [sentence for sentence in denied if sentence.startswith("No ")]
    rest = [sentence for sentence in denied if not sentence.startswith("No ")]
    if len(short) < 2:
        return denied
    tail = [sentence.removeprefix("No ").removeprefix("evidence of ") for sentence in short[1:]]
    return [*rest, ", ".join([short[0], *tail[:-1]]) + " or " + tail[-1]]
