"""Reads Open-I's chest films (the Indiana University collection): XML reports, or the two CSVs, with PNGs.

Demner-Fushman et al., "Preparing a collection of radiology examinations for distribution and retrieval", JAMIA 23(2),
2016. One report is one patient there: the set says no more about who is who.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from secure_fed.data.config import OpenIConfig, View
from secure_fed.data.open_i_terms import labels_of
from secure_fed.data.radiology import Film, Study, Survey
from secure_fed.data.report_sections import cleaned
from secure_fed.data.tables import Faults, Place, find_table, read_table, read_text
from secure_fed.errors import DataError

REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
_SECTIONS = ("indication", "comparison", "findings", "impression")
_IMAGE_FOLDERS = ("NLMCXR_png", "images/images_normalized", "images", "png", "ecgen-radiology", "")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a file, so no path of its own
_VIEWS: dict[str, View] = {"frontal": "frontal", "lateral": "lateral"}
_LARGEST_XML = 2**20

_Views = Mapping[str, tuple[str, View, Place]]  # image without the set's decorations -> patient, view, row


def xml_folder(root: Path) -> Path | None:
    """The folder of XML reports below (or at) `root`."""
    places = (root / "ecgen-radiology", root / "NLMCXR_reports" / "ecgen-radiology", root)
    return next((at for at in places if at.is_dir() and any(at.glob("*.xml"))), None)


def survey_open_i(config: OpenIConfig, root: Path, faults: Faults, key: str = "data") -> Survey:
    """Every report with its images: from the CSVs where both are there, else from the XML.

    The XML does not say how an image was taken: where indiana_projections.csv lies beside it, that does.
    Raises DataError where `root` holds neither layout.
    """
    reports, projections, folder = find_table(root, REPORTS), find_table(root, PROJECTIONS), xml_folder(root)
    images = _image_folder(config, root)
    views = {} if projections is None else _projections(projections, faults)
    if reports is not None and projections is not None:
        studies = _from_csv(reports, views, images, faults)
    elif folder is not None:
        studies = _from_xml(folder, views, images, faults)
    else:
        raise DataError(
            f"{key}.root={root} holds neither ecgen-radiology/*.xml nor {REPORTS} with {PROJECTIONS}: give the folder "
            "that the archives of Open-I were unpacked in"
        )
    if studies and projections is None and "unknown" not in config.views:
        faults.add(
            Place(root, "ecgen-radiology/*.xml"),
            f"the XML does not say which images are frontal: lay {PROJECTIONS} beside it, or name `unknown` among the "
            f"set's views, as in {key}.views=[frontal,unknown]",
        )
    counts = {"studies read": len(studies), "images named": sum(len(study.films) for study in studies)}
    return Survey(tuple(studies), counts)


def _image_folder(config: OpenIConfig, root: Path) -> Path:
    if config.images is not None:
        return config.images
    places = [root / name for name in _IMAGE_FOLDERS]
    return next((at for at in places if at.is_dir() and any(at.glob("*.png"))), root / _IMAGE_FOLDERS[0])


def _projections(path: Path, faults: Faults) -> dict[str, tuple[str, View, Place]]:
    """Image file -> patient, view and row, in the order of the table."""
    found: dict[str, tuple[str, View, Place]] = {}
    for row in read_table(path, ("uid", "filename", "projection"), faults):
        name, view = row.cells["filename"], _VIEWS.get(row.cells["projection"].lower())
        if not row.cells["uid"].isdigit() or not _NAME.fullmatch(name):
            faults.add(row.place, "uid is not a number, or filename is not the name of a file")
        elif view is None:
            faults.add(row.place, "projection is neither Frontal nor Lateral")
        elif name in found:
            faults.add(row.place, "names an image that an earlier row names too")
        else:
            found[name] = (row.cells["uid"], view, row.place)
    return found


def _from_csv(path: Path, views: _Views, images: Path, faults: Faults) -> list[Study]:
    films: dict[str, list[Film]] = {}
    for name, (uid, view, place) in views.items():
        films.setdefault(uid, []).append(Film(str(images / name), view, place))
    studies: dict[str, Study] = {}
    for row in read_table(path, ("uid", "MeSH", "Problems", *_SECTIONS), faults):
        uid = row.cells["uid"]
        if not uid.isdigit():
            faults.add(row.place, "uid is not a number")
        elif uid in studies:
            faults.add(row.place, "names a uid that an earlier row names too")
        else:
            # MeSH has the qualifiers, which Problems leaves out.
            terms = (row.cells["MeSH"] or row.cells["Problems"]).split(";")
            sections = cleaned({name: row.cells[name] for name in _SECTIONS})
            studies[uid] = Study(uid, tuple(films.pop(uid, ())), sections, labels_of(terms))
    for orphans in films.values():
        faults.add(orphans[0].place, f"has a uid that {REPORTS} does not have")
    return list(studies.values())


def _from_xml(folder: Path, views: _Views, images: Path, faults: Faults) -> list[Study]:
    view_of = {_bare(name): view for name, (_, view, _) in views.items()}
    studies: dict[str, Study] = {}
    for number, path in enumerate(sorted(folder.glob("*.xml")), start=1):
        # The file's own name is its patient: it is shown by its place in the sorted folder.
        place = Place(path, f"{folder.name}/*.xml, number {number} by name")
        root = _parsed(place, faults)
        if root is None:
            continue
        uid = _uid(root, path)
        if uid in studies:
            faults.add(place, "has a uId that an earlier file has too")
            continue
        names = [image.get("id", "") for image in root.iter("parentImage")]
        if not all(_NAME.fullmatch(name) for name in names):
            faults.add(place, "has a parentImage whose id is not the name of a file")
            continue
        films = tuple(
            Film(str(images / f"{name}.png"), view_of.get(_bare(name), "unknown"), place)
            for name in dict.fromkeys(names)
        )
        texts = {(part.get("Label") or "").lower(): "".join(part.itertext()) for part in root.iter("AbstractText")}
        terms = [term.text or "" for mesh in root.iter("MeSH") for term in mesh.iter("major")]
        sections = cleaned({name: texts[name] for name in _SECTIONS if name in texts})
        studies[uid] = Study(uid, films, sections, labels_of(terms))
    return list(studies.values())


def _uid(root: ET.Element, path: Path) -> str:
    """The report's number as the CSVs have it: <uId id="CXR12"/> is 12."""
    named = root.find(".//uId")
    name = (named.get("id") if named is not None else None) or path.stem
    return name.removeprefix("CXR")


def _bare(name: str) -> str:
    """CXR12_IM-0001-1001(.png) and 12_IM-0001-1001.dcm.png as one name."""
    return name.removesuffix(".png").removesuffix(".dcm").removeprefix("CXR")


def _parsed(place: Place, faults: Faults) -> ET.Element | None:
    """The file's root element; None, and a fault, where it is no XML or declares entities, which could blow up."""
    try:
        large = place.file.stat().st_size > _LARGEST_XML
    except OSError:
        large = False  # `read_text` says what is wrong
    if large:
        faults.add(place, f"is larger than {_LARGEST_XML} bytes: no report of this set is")
        return None
    text = read_text(place, faults)
    if text is None:
        return None
    # Entities need a document type: without one the parser expands nothing and opens nothing.
    if "<!doctype" in text.lower() or "<!entity" in text.lower():
        faults.add(place, "declares a document type or entities, which no report of this set does")
        return None
    try:
        return ET.fromstring(text)  # noqa: S314 - see above
    except ET.ParseError as error:
        line, _ = error.position
        faults.add(place.at(line), "is not well-formed XML")
        return None
