"""What a chest film set on disk holds, in numbers that may be mailed: no id, no report text, no small count.

Counts come from the set's tables and from looking whether files are there; images and reports are opened for a sample.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure_fed.data.chexpert import chexpert_folder
from secure_fed.data.config import ChexpertConfig, MimicCxrConfig, OpenIConfig
from secure_fed.data.images import read_grey
from secure_fed.data.mimic_cxr import METADATA, SPLIT
from secure_fed.data.open_i import PROJECTIONS, REPORTS, xml_folder
from secure_fed.data.radiology import HELD_OUT, UNCERTAIN, Film, Study, Survey, report_of
from secure_fed.data.synthetic_cxr import CHEXPERT_LABELS
from secure_fed.data.tables import Fault, Faults, Place, find_table
from secure_fed.errors import DataError

SMALLEST_SHOWN = 10
_FRONTAL = frozenset({"pa", "ap", "frontal"})
_MOST_LINES = 10
_LABEL_VALUES = ("positive", "negative", "uncertain", "blank")

FilmSetConfig = MimicCxrConfig | OpenIConfig | ChexpertConfig
Count = int | str
"""A count, or "<10" for a small one, or "hidden" for one that would give a small one away."""

Progress = Callable[[str, int, int], None]
"""What is being done, how many are done, of how many."""


@dataclass(frozen=True)
class Problem:
    """One kind of fault in one file: how often, and at which lines first."""

    file: str
    problem: str
    times: int
    lines: tuple[int, ...]

    def __str__(self) -> str:
        if not self.lines:
            return f"{self.file}: {self.problem}" + (f" ({self.times} times)" if self.times > 1 else "")
        more = ", ..." if self.times > len(self.lines) else ""
        return f"{self.file}: {self.problem} ({self.times} times: line {', '.join(map(str, self.lines))}{more})"


@dataclass(frozen=True)
class Examination:
    """What was found, all of it fit to be shown.

    labels: label -> positive, negative, uncertain, blank, but for those that no label of the set ever is.
    notes: what the set lacks for some configuration, though nothing is wrong with it.
    """

    kind: str
    totals: Mapping[str, int]
    views: Mapping[str, Count]
    splits: Mapping[str, Count]
    labels: Mapping[str, Mapping[str, Count]]
    prevalence: Mapping[str, float | None]
    sections: Mapping[str, Count]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The same for machines."""
        return {
            "schema": "secure_fed.data_check/1",
            "set": self.kind,
            "totals": dict(self.totals),
            "views": dict(self.views),
            "splits": dict(self.splits),
            "labels": {
                name: {**cells, "prevalence_of_known": self.prevalence[name]} for name, cells in self.labels.items()
            },
            "sections": dict(self.sections),
            "problems": [vars(problem) | {"lines": list(problem.lines)} for problem in self.problems],
            "notes": list(self.notes),
        }


def kind_of(path: Path) -> str:
    """The name of the set that lies in `path`. Raises DataError where none does, or no folder is there."""
    if not path.is_dir():
        raise DataError(f"{path} is no folder: give the one that the set was unpacked in")
    if find_table(path, METADATA):
        return "mimic_cxr"
    if (find_table(path, REPORTS) and find_table(path, PROJECTIONS)) or xml_folder(path):
        return "open_i"
    if chexpert_folder(path):
        return "chexpert"
    raise DataError(
        f"{path} holds none of {METADATA}(.gz), {REPORTS} with {PROJECTIONS}, ecgen-radiology/*.xml, and train.csv or "
        "valid.csv: give the folder of MIMIC-CXR-JPG, Open-I or CheXpert, or say with --data which one it should be. "
        "No other set can be checked: a run reads physionet2012 or a manifest whole before its first round"
    )


def examine(
    config: FilmSetConfig,
    survey: Callable[[FilmSetConfig, Faults], Survey],
    *,
    sample: int | None,
    exact: bool = False,
    progress: Progress = lambda what, done, of: None,
) -> Examination:
    """Look at everything, and open the images and reports of `sample` studies (None: of all).

    Unless `exact`, counts below 10 are not shown, nor what would give them away. Raises DataError where it is no
    such set.
    """
    faults = Faults(collect=True)
    progress("tables", 0, 1)
    studies = survey(config, faults).studies
    films = [film for study in studies for film in study.films]
    gone = _missing(films, faults, progress)
    chosen = _sample(studies, sample)
    sections, reports, texts = _read_reports(studies, chosen, faults, progress)
    if not reports and (named := next((s.report for s in studies if isinstance(s.report, Place)), None)):
        faults.add(named, "no such report was found: give --reports, the folder that holds them, or use films alone")
    opened, unreadable = _open_images(chosen, gone, faults, progress)
    labelled = [study.labels for study in studies if study.labels is not None]
    counts = {name: _label_counts([row[i] for row in labelled]) for i, name in enumerate(CHEXPERT_LABELS)}
    never = {value for value in _LABEL_VALUES if not any(cells[value] for cells in counts.values())}
    labels = {
        # A value that no label has anywhere is one that the set does not know, and says nothing of a patient.
        name: shown({value: count for value, count in cells.items() if value not in never}, exact)
        for name, cells in counts.items()
    }
    totals = {
        "patients": len({study.patient for study in studies}),
        "studies": len(studies),
        "images": len(films),
        "records (studies with a frontal image)": sum(_has_frontal(study) for study in studies),
        "labelled studies": len(labelled),
        "studies with a report": reports,
        "reports opened": texts,
        "images opened": opened,
        "images not on disk": len(gone),
        "images that cannot be read": unreadable,
        "malformed rows and files": len(faults.found) - len(gone) - unreadable,
    }
    return Examination(
        kind=config.name,
        totals=totals,
        views=shown(Counter(film.view for film in films), exact),
        splits=shown(Counter(study.split or "none" for study in studies), exact),
        labels=labels,
        prevalence={name: _prevalence(counts[name], labels[name]) for name in CHEXPERT_LABELS},
        sections={name: section_shown(count, texts, exact) for name, count in sections.items()},
        problems=_grouped(faults.found),
        notes=_lacking(config, studies),
    )


def shown(counts: Mapping[str, int], exact: bool) -> dict[str, Count]:
    """Counts of a whole whose total is known, small ones as "<10".

    A total gives away the sum of what is hidden: while that says too much of a small one (two of them with a sum of
    18 are 9 and 9), the next smallest goes too.
    """
    if exact:
        return dict(counts)
    ordered = sorted(counts, key=lambda name: counts[name])
    small = {name for name in ordered if counts[name] < SMALLEST_SHOWN}
    hidden = set(small)
    for name in ordered[len(small) :]:
        if small and _tells(sum(counts[other] for other in hidden), len(small), len(hidden) - len(small), counts[name]):
            hidden.add(name)
    return {name: "<10" if name in small else "hidden" if name in hidden else count for name, count in counts.items()}


def _tells(total: int, small: int, others: int, most: int) -> bool:
    """Whether a known sum leaves a small count fewer than half of its values.

    Hidden beside it are `small` - 1 more of that kind, and `others` between the smallest shown and `most`.
    """
    least = total - (SMALLEST_SHOWN - 1) * (small - 1) - most * others
    largest = total - SMALLEST_SHOWN * others
    return total < SMALLEST_SHOWN or min(largest, SMALLEST_SHOWN - 1) - max(least, 0) < SMALLEST_SHOWN // 2


def section_shown(count: int, opened: int, exact: bool) -> Count:
    """How many of the opened reports have a section: with their number beside it, it also tells how many have none."""
    if exact or (count >= SMALLEST_SHOWN and not 0 < opened - count < SMALLEST_SHOWN):
        return count
    return "<10" if count < SMALLEST_SHOWN else "hidden"


def _missing(films: Sequence[Film], faults: Faults, progress: Progress) -> set[str]:
    gone = set()
    for done, film in enumerate(films):
        progress("files", done, len(films))
        if not os.path.isfile(film.file):
            gone.add(film.file)
            faults.add(film.place, "names an image that is not on disk")
    return gone


def _sample(studies: Sequence[Study], sample: int | None) -> list[Study]:
    """`sample` studies in the order of a hash: the same ones each time, and spread over the set."""
    if sample is None or sample >= len(studies):
        return list(studies)
    ranks = [hashlib.sha256(f"secure_fed sample/{i}".encode()).digest() for i in range(len(studies))]
    return [studies[i] for i in sorted(sorted(range(len(studies)), key=ranks.__getitem__)[:sample])]


def _read_reports(
    studies: Sequence[Study], chosen: Sequence[Study], faults: Faults, progress: Progress
) -> tuple[dict[str, int], int, int]:
    """How many of the chosen reports have each section; how many studies have a report; how many were opened."""
    sections = dict.fromkeys(("indication", "comparison", "findings", "impression", "none of them"), 0)
    opened = 0
    for done, study in enumerate(chosen):
        progress("reports", done, len(chosen))
        found = report_of(study, faults)
        if found is None:
            continue
        opened += 1
        for name in found or ("none of them",):
            sections[name] += 1
    there = sum(
        study.report.file.is_file() if isinstance(study.report, Place) else study.report is not None
        for study in studies
    )
    return sections, there, opened


def _open_images(chosen: Sequence[Study], gone: set[str], faults: Faults, progress: Progress) -> tuple[int, int]:
    """How many images were opened, and how many of them cannot be read."""
    films = [film for study in chosen for film in study.films if film.file not in gone]
    unreadable = 0
    for done, film in enumerate(films):
        progress("images", done, len(films))
        try:
            read_grey(Path(film.file), 16, 16)
        except DataError:
            # The error's own text names the file, and with it the patient.
            unreadable += 1
            faults.add(film.place, "names an image that is cut off or no image")
    return len(films), unreadable


def _label_counts(values: Sequence[float]) -> dict[str, int]:
    found = Counter(
        "blank" if v != v else {1.0: "positive", 0.0: "negative", UNCERTAIN: "uncertain"}[v] for v in values
    )
    return {name: found[name] for name in _LABEL_VALUES}


def _prevalence(counts: Mapping[str, int], cells: Mapping[str, Count]) -> float | None:
    """Positives among what is known, to four digits; None where either count is hidden, or nothing is known."""
    known = counts["positive"] + counts["negative"]
    if not known or any(isinstance(cells.get(value), str) for value in ("positive", "negative")):
        return None
    return round(counts["positive"] / known, 4)


def _lacking(config: FilmSetConfig, studies: Sequence[Study]) -> tuple[str, ...]:
    """Whether the official split could be asked for, of a set that was released with one."""
    if isinstance(config, OpenIConfig) or any(study.split in HELD_OUT for study in studies):
        return ()
    table = f"{SPLIT}(.gz)" if isinstance(config, MimicCxrConfig) else "valid.csv"
    return (
        f"no study of an official test side, which {table} would name: a run with data.split=official would be "
        "refused; data.split=patient, the default, holds out patients by lot",
    )


def _has_frontal(study: Study) -> bool:
    return any(film.view in _FRONTAL for film in study.films)


def _grouped(found: Sequence[Fault]) -> tuple[Problem, ...]:
    """Faults of one kind in one file together, in the order in which they were met."""
    lines: dict[tuple[str, str], list[int | None]] = {}
    for fault in found:
        lines.setdefault((fault.place.shown, fault.problem), []).append(fault.place.line)
    return tuple(
        Problem(file, problem, len(at), tuple(line for line in at if line is not None)[:_MOST_LINES])
        for (file, problem), at in lines.items()
    )
