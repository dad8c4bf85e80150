#!/usr/bin/env python3
"""Fails where a claim names no test, a paper names a test or benchmark that does not exist, or README a stale score.

Claims are table rows of threat_model.md: `| T-01 | claim | tests/a/test_b.py::test_c, ... |`. README's rows of scores
are copies of rows of docs/results.md, which a script writes.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

_CLAIM = re.compile(r"^\s*\|\s*`?(?P<id>[A-Z]+-\d+)`?\s*\|(?P<rest>.*)$")
# Looks like a claim's row, though its id is not one: T1, T-1a, t-01.
_MALFORMED = re.compile(r"^\s*\|\s*`?(?P<id>[Tt]-?\d+\w*)`?\s*\|")
# A parametrised name ends in [values]; a class stands between file and function.
_TEST = re.compile(r"tests/[\w./-]+\.py(?:::\w+)+")
_SCORE = re.compile(r"(?<![\d.])[01]?\.\d{3}\b")
_BENCHMARK = re.compile(r"(?<![\w/.-])benchmarks/[\w./-]+\.py")


def check(root: Path) -> list[str]:
    """All complaints about the papers of the repository at `root`; none means that every name exists."""
    model = root / "threat_model.md"
    if not model.is_file():
        return [f"{model.name}: missing, so no claim of this project is tied to a test"]
    complaints = list(_claims(model))
    for paper in [model, root / "README.md", *sorted((root / "docs").glob("**/*.md"))]:
        if paper.is_file():
            complaints += _mentions(root, paper)
    return complaints + list(_scores(root))


def _claims(model: Path) -> Iterator[str]:
    """Complaints about the claims' own form: no claim at all, an id used twice, a claim without a test."""
    first_seen: dict[str, int] = {}
    for number, line in _lines(model):
        claim = _CLAIM.match(line)
        if claim is None:
            if malformed := _MALFORMED.match(line):
                yield f"{model.name}:{number}: {malformed['id']} is not an id: write one like T-01"
            continue
        name = claim["id"]
        if name in first_seen:
            yield f"{model.name}:{number}: {name} is used twice, first in line {first_seen[name]}"
        first_seen.setdefault(name, number)
        if not _TEST.search(claim["rest"]):
            yield f"{model.name}:{number}: {name} names no test (write tests/path/test_file.py::test_name)"
    if not first_seen:
        yield f"{model.name}: holds no claim (a table row such as | T-01 | claim | tests/...::test_name |)"


def _mentions(root: Path, paper: Path) -> Iterator[str]:
    """Complaints about tests and benchmarks that `paper` names and the repository lacks."""
    where = paper.relative_to(root).as_posix()
    for number, line in _lines(paper):
        for mention in _TEST.findall(line):
            file, *names = mention.split("::")
            if not (root / file).is_file():
                yield f"{where}:{number}: {mention}: there is no file {file}"
            elif tuple(names) not in _tests(root / file):
                yield f"{where}:{number}: {mention}: {file} has no test {'::'.join(names)}"
        for path in _BENCHMARK.findall(line):
            if not (root / path).is_file():
                yield f"{where}:{number}: {path}: there is no such benchmark"


def _scores(root: Path) -> Iterator[str]:
    """Complaints about README's table rows with a score that are not, to the letter, rows of docs/results.md."""
    readme, results = root / "README.md", root / "docs" / "results.md"
    if readme.is_file():
        written = {line for _, line in _lines(results)} if results.is_file() else set()
        for number, line in _lines(readme):
            if line.startswith("|") and _SCORE.search(line) and line not in written:
                yield f"{readme.name}:{number}: this row of scores is not in docs/results.md: copy it from there"


def _lines(paper: Path) -> Iterable[tuple[int, str]]:
    return enumerate(paper.read_text(encoding="utf-8").splitlines(), start=1)


@cache
def _tests(file: Path) -> frozenset[tuple[str, ...]]:
    """Names that pytest collects from `file`: (function,) and (class, function), inherited ones included.

    A class itself may be named too: it stands for all of its tests, of which it must have one.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found: set[tuple[str, ...]] = {(name,) for name in _functions(tree)}
    for name in classes:
        if name.startswith("Test"):
            methods = _methods(name, classes)
            found |= {(name, method) for method in methods}
            if methods:
                found.add((name,))
    return frozenset(found)


def _methods(name: str, classes: dict[str, ast.ClassDef], seen: frozenset[str] = frozenset()) -> set[str]:
    if name not in classes or name in seen:
        return set()
    own = set(_functions(classes[name]))
    for base in classes[name].bases:
        if isinstance(base, ast.Name):
            own |= _methods(base.id, classes, seen | {name})
    return own


def _functions(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and child.name.startswith("test"):
            yield child.name


def main(arguments: list[str]) -> int:
    """Check the repository given as the only argument, or the one that this script lies in."""
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    complaints = check(root)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    if not complaints:
        print("check_claims: every claim names a test that exists")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
