"""Open-I's index terms as the 14 labels of CheXpert: a table, written by hand from what CheXpert's labeller looks for.

Open-I's reports carry MeSH and RadLex terms with qualifiers ("Cardiomegaly/borderline", "Thickening/pleura").
"""

from __future__ import annotations

from collections.abc import Iterable

from secure_fed.data.synthetic_cxr import CHEXPERT_LABELS

# (term, qualifier, label): a term counts for a label, whatever its qualifiers where none is named. Whatever is not
# here says nothing about the labels. docs/data.md shows this table.
TERMS: tuple[tuple[str, str, str], ...] = (
    ("mediastinum", "enlarged", "Enlarged Cardiomediastinum"),
    ("mediastinum", "wide", "Enlarged Cardiomediastinum"),
    ("cardiomegaly", "", "Cardiomegaly"),
    ("cardiac shadow", "enlarged", "Cardiomegaly"),
    ("heart", "enlarged", "Cardiomegaly"),
    ("opacity", "", "Lung Opacity"),
    ("airspace disease", "", "Lung Opacity"),
    ("infiltrate", "", "Lung Opacity"),
    ("density", "lung", "Lung Opacity"),
    ("markings", "lung", "Lung Opacity"),
    ("markings", "interstitial", "Lung Opacity"),
    ("lung diseases, interstitial", "", "Lung Opacity"),
    ("cicatrix", "lung", "Lung Opacity"),
    ("nodule", "", "Lung Lesion"),
    ("mass", "", "Lung Lesion"),
    ("lung neoplasms", "", "Lung Lesion"),
    ("cavitation", "", "Lung Lesion"),
    ("pulmonary edema", "", "Edema"),
    ("pulmonary congestion", "", "Edema"),
    ("heart failure", "", "Edema"),
    ("consolidation", "", "Consolidation"),
    ("pneumonia", "", "Pneumonia"),
    ("pulmonary atelectasis", "", "Atelectasis"),
    ("atelectasis", "", "Atelectasis"),
    ("pneumothorax", "", "Pneumothorax"),
    ("hydropneumothorax", "", "Pneumothorax"),
    ("pleural effusion", "", "Pleural Effusion"),
    ("hydropneumothorax", "", "Pleural Effusion"),
    ("costophrenic angle", "blunted", "Pleural Effusion"),
    ("thickening", "pleura", "Pleural Other"),
    ("cicatrix", "pleura", "Pleural Other"),
    ("calcinosis", "pleura", "Pleural Other"),
    ("fractures, bone", "", "Fracture"),
    ("catheters, indwelling", "", "Support Devices"),
    ("tube, inserted", "", "Support Devices"),
    ("implanted medical device", "", "Support Devices"),
    ("medical device", "", "Support Devices"),
    ("pacemaker, artificial", "", "Support Devices"),
    ("stents", "", "Support Devices"),
)
UNCERTAIN_QUALIFIERS = frozenset({"borderline"})
NOT_INDEXED = frozenset({"no indexing", "technical quality of image unsatisfactory"})


def labels_of(terms: Iterable[str]) -> tuple[float, ...] | None:
    """The 14 labels in CheXpert's order: 1, 0 (the set's indexing is exhaustive) or -1 (borderline).

    None where the report was not indexed, or nothing in it could be. As CheXpert's labeller has it, No Finding is 1
    where nothing but devices was found. Terms are matched whatever their case.
    """
    known = [[part.strip().lower() for part in term.split("/")] for term in terms if term.strip()]
    if not known or all(term[0] in NOT_INDEXED for term in known):
        return None
    values = dict.fromkeys(CHEXPERT_LABELS, 0.0)
    for head, *qualifiers in known:
        found = -1.0 if UNCERTAIN_QUALIFIERS & set(qualifiers) else 1.0
        for term, qualifier, label in TERMS:
            # What is found for certain once outweighs what is borderline elsewhere.
            if head == term and (not qualifier or qualifier in qualifiers) and values[label] != 1.0:
                values[label] = found
    pathology = [values[name] for name in CHEXPERT_LABELS if name not in ("No Finding", "Support Devices")]
    values["No Finding"] = float(not any(pathology))
    return tuple(values[name] for name in CHEXPERT_LABELS)
