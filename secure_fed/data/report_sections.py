"""The sections of a radiology report, by public rules alone: headings, de-identification blanks, white space.

Nothing here is fitted to reports; `docs/data.md` lists the rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# A heading stands at the beginning of a line, in capitals, and ends with a colon.
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /,&()\-]{1,60}):", flags=re.MULTILINE)
_SECTION_OF: Mapping[str, str] = {
    "FINDINGS": "findings",
    "FINDING": "findings",
    "FINDINGS AND IMPRESSION": "findings",
    "FINDINGS/IMPRESSION": "findings",
    "IMPRESSION": "impression",
    "IMPRESSIONS": "impression",
    "IMPRESSION AND RECOMMENDATION": "impression",
    "CONCLUSION": "impression",
    "CONCLUSIONS": "impression",
    "INDICATION": "indication",
    "INDICATIONS": "indication",
    "HISTORY": "indication",
    "CLINICAL HISTORY": "indication",
    "CLINICAL INFORMATION": "indication",
    "CLINICAL INDICATION": "indication",
    "REASON FOR EXAM": "indication",
    "REASON FOR EXAMINATION": "indication",
    "COMPARISON": "comparison",
    "COMPARISONS": "comparison",
    "COMPARISON STUDY": "comparison",
}
# Where a report describes what is seen under the name of the examination ("PA AND LATERAL VIEWS OF THE CHEST:").
_NAMES_THE_FILM = re.compile(r"\b(VIEWS?|RADIOGRAPHS?|PA|AP|CHEST)\b")
_NEVER_FINDINGS = re.compile(r"\b(EXAM|EXAMINATION|TECHNIQUE|STUDY|PROCEDURE|TYPE)\b")
# What stands for something taken out: ___ in MIMIC-CXR, XXXX in Open-I, [** **] in older releases.
_BLANK = re.compile(r"_{2,}|\bX{3,}\b|\[\*\*.*?\*\*\]", flags=re.DOTALL)
_SPACE = re.compile(r"\s+")


def sections_of(report: str) -> dict[str, str]:
    """A whole report's cleaned sections by name; what stands under no known heading is left out.

    A heading that occurs twice (an addendum) continues its section. A section without words is absent.
    """
    headings = list(_HEADING.finditer(report))
    found: dict[str, list[str]] = {}
    ends = [*(heading.start() for heading in headings), len(report)][1:]
    for heading, end in zip(headings, ends, strict=True):
        section = _section_named(heading.group(1).strip())
        if section is not None:
            found.setdefault(section, []).append(report[heading.end() : end])
    return cleaned({section: " ".join(bodies) for section, bodies in found.items()})


def cleaned(sections: Mapping[str, str]) -> dict[str, str]:
    """Sections without blanks and line breaks, those left without a word dropped."""
    texts = {name: _SPACE.sub(" ", _BLANK.sub(" ", text)).strip() for name, text in sections.items()}
    return {name: text for name, text in texts.items() if any(c.isalnum() for c in text)}


def joined(sections: Mapping[str, str], wanted: Sequence[str]) -> str:
    """The wanted sections in that order, each under its heading; "" where there is none of them."""
    return "\n".join(f"{name.upper()}: {sections[name]}" for name in wanted if name in sections)


def _section_named(heading: str) -> str | None:
    if heading in _SECTION_OF:
        return _SECTION_OF[heading]
    return "findings" if _NAMES_THE_FILM.search(heading) and not _NEVER_FINDINGS.search(heading) else None
