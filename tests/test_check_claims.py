"""The claims' checker accepts what exists and names every claim, test or benchmark that does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "check_claims.py"

TESTS = """
import pytest

class Base:
    def test_inherited(self): ...

class TestMasks(Base):
    def test_cancel(self): ...

class TestNothing:
    def helper(self): ...

@pytest.mark.parametrize("n", [1, 2])
def test_table(n): ...

async def test_awaits(): ...

def not_collected():
    def test_nested(): ...
"""


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "tests" / "secagg").mkdir(parents=True)
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "speed.py").write_text("")
    (tmp_path / "tests" / "secagg" / "test_mask.py").write_text(TESTS)
    (tmp_path / "README.md").write_text("Measured by `benchmarks/speed.py`.\n")
    return tmp_path


def run(root: Path, *rows: str) -> subprocess.CompletedProcess[str]:
    table = "\n".join(["# Threat model", "", "| id | claim | tests |", "|---|---|---|", *rows, ""])
    (root / "threat_model.md").write_text(table, encoding="utf-8")
    return subprocess.run([sys.executable, SCRIPT, root], capture_output=True, text=True, check=False)


def refused(root: Path, *rows: str) -> str:
    result = run(root, *rows)
    assert result.returncode == 1
    return result.stderr


def test_functions_classes_parametrised_inherited_and_async_tests_are_found(repository):
    result = run(
        repository,
        "| T-01 | masks cancel | tests/secagg/test_mask.py::TestMasks::test_cancel |",
        "| T-02 | é → ≤ | `tests/secagg/test_mask.py::TestMasks::test_inherited` |",
        "| `T-03` | it awaits | tests/secagg/test_mask.py::test_awaits |",
        "| T-05 | one value, in code | x, `tests/secagg/test_mask.py::test_table[2]` |",
        "| T-04 | all of a class | tests/secagg/test_mask.py::TestMasks |",
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_an_id_used_twice_is_named_with_both_lines(repository):
    row = "| T-01 | x | tests/secagg/test_mask.py::test_table |"
    assert "threat_model.md:6: T-01 is used twice, first in line 5" in refused(repository, row, row)


def test_a_claim_without_a_test_is_named(repository):
    complaints = refused(repository, "| T-07 | trust us | |", "| T-08 | only a file | tests/secagg/test_mask.py |")
    assert "T-07 names no test" in complaints
    assert "T-08 names no test" in complaints


def test_an_id_that_the_checker_would_overlook_is_refused(repository):
    assert "T1 is not an id" in refused(repository, "| T1 | x | tests/secagg/test_mask.py::test_table |")


@pytest.mark.parametrize(
    ("test", "complaint"),
    [
        ("tests/secagg/test_gone.py::test_x", "there is no file tests/secagg/test_gone.py"),
        ("tests/secagg/test_mask.py::test_gone", "has no test test_gone"),
        ("tests/secagg/test_mask.py::test_nested", "has no test test_nested"),
        ("tests/secagg/test_mask.py::test_cancel", "has no test test_cancel"),
        ("tests/secagg/test_mask.py::TestMasks::test_gone", "has no test TestMasks::test_gone"),
        ("tests/secagg/test_mask.py::TestNothing", "has no test TestNothing"),
        ("tests/secagg/test_mask.py::not_collected", "has no test not_collected"),
    ],
)
def test_a_test_that_does_not_exist_is_named_with_its_line(repository, test, complaint):
    good = "| T-01 | x | tests/secagg/test_mask.py::test_table |"
    complaints = refused(repository, good, f"| T-02 | y | tests/secagg/test_mask.py::test_table, {test} |")
    assert complaint in complaints
    assert "threat_model.md:6" in complaints
    assert len(complaints.splitlines()) == 1


def test_readme_and_docs_are_checked_for_tests_and_benchmarks(repository):
    (repository / "README.md").write_text("See benchmarks/gone.py and ./tests/secagg/test_mask.py::test_gone.\n")
    (repository / "docs" / "deep" / "a.md").write_text("\n`benchmarks/also_gone.py`\n")
    complaints = refused(repository, "| T-01 | x | tests/secagg/test_mask.py::test_table |")
    assert "README.md:1: benchmarks/gone.py" in complaints
    assert "README.md:1: tests/secagg/test_mask.py::test_gone" in complaints
    assert "docs/deep/a.md:2: benchmarks/also_gone.py" in complaints


def test_a_row_of_scores_in_readme_has_to_stand_in_the_results(repository):
    claim = "| T-01 | x | tests/secagg/test_mask.py::test_table |"
    row = "| fin | 5 | 0.751 | −0.003 ± 0.002 |"
    (repository / "README.md").write_text(f"| method | seeds |\n|---|---|\n{row}\n| size | 12.1 MB |\n")
    assert "README.md:3: this row of scores is not in docs/results.md" in refused(repository, claim)
    (repository / "docs" / "results.md").write_text(f"# Results\n{row.replace('0.751', '0.752')}\n")
    assert len(refused(repository, claim).splitlines()) == 1
    (repository / "docs" / "results.md").write_text(f"# Results\n{row}\n")
    assert run(repository, claim).returncode == 0


def test_a_missing_or_empty_threat_model_is_refused(repository):
    result = subprocess.run([sys.executable, SCRIPT, repository], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "threat_model.md: missing" in result.stderr
    assert "holds no claim" in refused(repository)
