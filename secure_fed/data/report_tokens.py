"""Reports as token ids over a public vocabulary, and back: what a report generator reads and writes.

The words are shipped; nothing is fitted to a site's reports, so they cost no privacy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_fed.data.vocabulary import NEGATED, UNCERTAIN, vocabulary

PAD, BEGIN, END, UNKNOWN = range(4)
SPECIAL = 4
"""Ids below this stand for no word."""

_MARKS = (".", ",", ";")
_TOKEN = re.compile(r"[a-z]+|[.,;]")
_WORD = re.compile(r"[a-z]+")
_FINDINGS = re.compile(r"\bfindings\s*:")
_IMPRESSION = re.compile(r"\bimpression\s*:")


@cache
def words() -> tuple[str, ...]:
    """The public words and marks, in the order of their ids from `SPECIAL` on."""
    shipped = (files("secure_fed.data") / "resources" / "report_words.txt").read_text(encoding="utf-8")
    listed = " ".join(line for line in shipped.splitlines() if not line.startswith("#"))
    columns = " ".join(column.removeprefix(NEGATED).removeprefix(UNCERTAIN) for column in vocabulary())
    return (*_MARKS, *sorted(set(_WORD.findall(f"{listed} {columns}"))))


def vocabulary_size() -> int:
    """How many ids there are, the special ones included."""
    return SPECIAL + len(words())


def body(report: str) -> str:
    """What a report says of its film, in lower case: from FINDINGS on, else from IMPRESSION on, else all of it.

    Reasons and comparisons come before, and nobody can read them off a film. The two headings are left out.
    """
    text = report.lower()
    heading = _FINDINGS.search(text) or _IMPRESSION.search(text)
    return _IMPRESSION.sub(" ", text[heading.end() :]) if heading else text


def report_ids(texts: npt.NDArray[Any], max_tokens: int) -> npt.NDArray[np.int64]:
    """Object array of str [n] -> ids [n, max_tokens]: the body's words and marks, END where it fits, then PAD.

    Digits are dropped; a word that is not public is UNKNOWN.
    """
    position = _positions()
    ids = np.full((len(texts), max_tokens), PAD, dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        if not text:
            continue  # an absent report is not one without words
        found = [position.get(token, UNKNOWN) for token in _TOKEN.findall(body(str(text)))]
        found = [*found, END][:max_tokens]
        row[: len(found)] = found
    return ids


def report_texts(ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Ids [n, T] -> object array of str [n], up to END; special ids are left out."""
    texts = np.empty(len(ids), dtype=object)
    for i, row in enumerate(ids.tolist()):
        texts[i] = _written(row[: row.index(END)] if END in row else row)
    return texts


def _written(row: Iterable[int]) -> str:
    known = words()
    text = ""
    for token in row:
        if token >= SPECIAL:
            word = known[token - SPECIAL]
            text += word if not text or word in _MARKS else f" {word}"
    return text


@cache
def _positions() -> dict[str, int]:
    return {word: SPECIAL + i for i, word in enumerate(words())}
