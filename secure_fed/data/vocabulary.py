"""The public n-gram vocabulary of radiology reports, and the marks of negation and uncertainty.

The resource is written by hand and shipped; nothing is fitted to a site's reports, so it costs no privacy.

Scopes follow NegEx (Chapman et al., "A Simple Algorithm for Identifying Negated Findings and Diseases in
Discharge Summaries", J Biomed Inform 34:301-310, 2001) with its later class of uncertain statements: a cue
reaches the concepts of its own clause, forwards ("no ...") or backwards ("... has resolved").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from secure_fed.errors import DataError

NEGATED = "NEG_"
UNCERTAIN = "UNC_"
MAX_SCOPE = 12  # words; NegEx takes five tokens, too few for "no focal consolidation, effusion, or ..."

_WORD = re.compile(r"[a-z]+")
_SENTENCE = re.compile(r"[.;:!?\n]+")
_CLAUSE_BREAKS = frozenset({"but", "however", "although", "though", "except", "aside", "otherwise", "with"})

_Direction = Literal["forward", "backward"]
_Cue = tuple[tuple[str, ...], str, _Direction]


def _cues(mark: str, direction: _Direction, listed: str) -> list[_Cue]:
    return [(tuple(cue.split()), mark, direction) for cue in listed.split("|")]


# Longer cues come first, so that "cannot be excluded" is not taken for "excluded".
_CUES: tuple[_Cue, ...] = tuple(
    sorted(
        [
            *_cues(NEGATED, "forward", "no|without|negative for|free of|clear of|absence of|not|resolution of"),
            *_cues(NEGATED, "forward", "resolved|removal of|rather than"),
            *_cues(NEGATED, "backward", "has resolved|have resolved|now resolved|has cleared|have cleared"),
            *_cues(NEGATED, "backward", "is absent|are absent|is excluded|not seen|not present|not identified"),
            *_cues(NEGATED, "backward", "unlikely|has been removed|have been removed|no longer seen"),
            *_cues(NEGATED, "backward", "no longer present"),
            *_cues(UNCERTAIN, "forward", "possible|possibly|probable|probably|likely|may represent|may reflect"),
            *_cues(UNCERTAIN, "forward", "may be|could represent|could reflect|could be|suggesting|suggests"),
            *_cues(UNCERTAIN, "forward", "suggestive of|questionable|question of|equivocal|suspected"),
            *_cues(UNCERTAIN, "forward", "concerning for|concern for|cannot exclude|evaluate for|assess for"),
            *_cues(UNCERTAIN, "forward", "rule out|history of|known|versus"),
            *_cues(UNCERTAIN, "backward", "cannot be excluded|not excluded|not entirely excluded|is possible"),
            *_cues(UNCERTAIN, "backward", "are possible|is questioned|is suspected"),
        ],
        key=lambda cue: -len(cue[0]),
    )
)


@dataclass(frozen=True)
class _Entries:
    columns: tuple[str, ...]
    position: dict[str, int]
    concepts: frozenset[str]


@cache
def _entries() -> _Entries:
    text = (files("secure_fed.data") / "resources" / "ngram_vocabulary.txt").read_text(encoding="utf-8")
    columns: list[str] = []
    concepts: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        term = entry.removeprefix("*").strip()
        if term in columns:
            raise DataError(f"ngram_vocabulary.txt, line {number}: {term!r} is listed twice: remove one")
        columns.append(term)
        if entry.startswith("*"):
            concepts.add(term)
            columns += [NEGATED + term, UNCERTAIN + term]
    return _Entries(
        columns=tuple(columns),
        position={column: i for i, column in enumerate(columns)},
        concepts=frozenset(concepts),
    )


def vocabulary() -> tuple[str, ...]:
    """The V column names of `ngram_counts`, in order: "effusion", "NEG_effusion", "UNC_effusion", ..."""
    return _entries().columns


def tokenise(text: str) -> list[str]:
    """The vocabulary columns found in `text`, in reading order, with repeats; unknown words are dropped."""
    found: list[str] = []
    for sentence in _SENTENCE.split(text.lower()):
        found += _tokenise_sentence(sentence)
    return found


def ngram_counts(texts: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Binary presence [n, V] of the vocabulary in `texts` [n] of str: bounded, whatever a report repeats."""
    position = _entries().position
    rows = np.zeros((len(texts), len(position)), dtype=np.float32)
    seen: dict[str, list[int]] = {}  # reports share most of their sentences
    for row, text in zip(rows, texts, strict=True):
        for sentence in _SENTENCE.split(str(text).lower()):
            hits = seen.get(sentence)
            if hits is None:
                hits = seen[sentence] = [position[column] for column in _tokenise_sentence(sentence)]
            row[hits] = 1.0
    return rows


def _tokenise_sentence(sentence: str) -> list[str]:
    entries = _entries()
    words = _WORD.findall(sentence)
    marks = _marks(words)
    found: list[str] = []
    for i, word in enumerate(words):
        found += _columns_of(word, marks[i], entries)
        if i + 1 < len(words) and marks[i] == marks[i + 1]:
            found += _columns_of(f"{word} {words[i + 1]}", marks[i], entries)
    return found


def _columns_of(term: str, mark: str, entries: _Entries) -> Iterator[str]:
    if term in entries.concepts:
        yield mark + term
    elif term in entries.position:
        yield term


def _marks(words: list[str]) -> list[str]:
    """The mark of each word; negation beats uncertainty ("no definite ...", "unlikely to be ...")."""
    marks = [""] * len(words)
    taken = [False] * len(words)
    for cue, mark, direction in _CUES:
        for start in range(len(words) - len(cue) + 1):
            end = start + len(cue)
            if tuple(words[start:end]) != cue or any(taken[start:end]):
                continue
            taken[start:end] = [True] * len(cue)
            for i in _scope(words, start, end, direction):
                if marks[i] != NEGATED:
                    marks[i] = mark
    return marks


def _scope(words: list[str], start: int, end: int, direction: _Direction) -> Iterator[int]:
    reach = range(end, min(len(words), end + MAX_SCOPE))
    if direction == "backward":
        reach = range(start - 1, max(-1, start - 1 - MAX_SCOPE), -1)
    for i in reach:
        if words[i] in _CLAUSE_BREAKS:
            return
        yield i
