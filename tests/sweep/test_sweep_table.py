"""Reading a sweep's folder, and its tables: every cell stands in them once, with its types, and nothing is guessed."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example import EPSILON, METHOD, OWNERSHIP, example_sweep
from hypothesis import given
from hypothesis import strategies as st

from secure_fed.errors import DataError
from secure_fed.sweep.record import CELLS, MANIFEST, RESULT
from secure_fed.sweep.table import Column, columns, read_results, to_csv, write_tables

SMALL = {"epsilons": (1.0, 8.0), "methods": ("zero_fill", "fin"), "seeds": (0, 1)}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    folder = example_sweep(tmp_path_factory.mktemp("tables") / "sweep", **SMALL)
    write_tables(folder)
    return folder


@pytest.fixture
def small(tmp_path) -> Path:
    return example_sweep(tmp_path / "sweep", **SMALL)


def first_cell(folder: Path) -> Path:
    return folder / CELLS / json.loads((folder / MANIFEST).read_text())["cells"][0]["id"] / RESULT


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- reading -----------------------------------------------------------------------------------------------


def test_every_cell_of_the_manifest_is_finished_broken_or_missing(tables):
    results = read_results(tables)
    ids = [cell.id for cell in (*results.finished, *results.broken, *results.missing)]
    assert sorted(ids) == sorted(row.id for row in results.manifest.cells)
    assert (len(results.broken), len(results.missing)) == (1, 1)
    assert results.broken[0].error == "BudgetExhausted"


def test_cells_come_in_the_order_of_the_manifest(tables):
    results = read_results(tables)
    place = {row.id: number for number, row in enumerate(results.manifest.cells)}
    assert [place[cell.id] for cell in results.finished] == sorted(place[cell.id] for cell in results.finished)


def test_a_result_counts_more_than_the_error_of_an_earlier_try(small):
    broken = read_results(small).broken[0]
    other = first_cell(small)
    row = json.loads((small / CELLS / broken.id / "error.json").read_text())
    fields = set(json.loads((small / MANIFEST).read_text())["cells"][0])
    result = json.loads(other.read_text()) | {name: row[name] for name in fields}
    (small / CELLS / broken.id / RESULT).write_text(json.dumps(result))
    assert not read_results(small).broken


def test_a_folder_without_a_manifest_is_no_sweep(tmp_path):
    with pytest.raises(DataError, match="not a sweep's folder"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: edit(path, epsilon_spent="much"),
        lambda path: edit(path, schema="secure_fed.cell/2"),
        lambda path: edit(path, surprise=1),
    ],
    ids=["torn", "bytes", "wrong type", "other version", "unknown field"],
)
def test_a_damaged_cell_is_named(small, damage):
    cell = first_cell(small)
    damage(cell)
    with pytest.raises(DataError, match=f"{cell.parent.name}/{RESULT} is damaged"):
        read_results(small)


def test_a_damaged_manifest_is_named(small):
    edit(small / MANIFEST, tuning="free")
    with pytest.raises(DataError, match=f"{MANIFEST} is damaged.*tuning"):
        read_results(small)


@pytest.mark.parametrize(
    ("field", "value"), [("epsilon_target", 0.1), ("method", "fin"), ("id", "0" * 16), ("factors", {}), ("seed", 5)]
)
def test_a_cell_that_contradicts_the_manifest_is_refused(small, field, value):
    edit(first_cell(small), **{field: value})
    with pytest.raises(DataError, match=f"has {field}="):
        read_results(small)


def test_a_cell_that_the_manifest_does_not_know_is_refused_but_in_a_search(tmp_path):
    for name, trials in (("grid", None), ("search", 4)):
        folder = example_sweep(tmp_path / name, **SMALL, search_trials=trials)
        manifest = json.loads((folder / MANIFEST).read_text())
        edit(folder / MANIFEST, cells=manifest["cells"][1:])
        if trials is None:
            with pytest.raises(DataError, match="no cell of this sweep"):
                read_results(folder)
        else:
            assert manifest["cells"][0]["id"] in [cell.id for cell in read_results(folder).finished]


def test_a_sweep_that_has_not_begun_has_nothing_but_missing_cells(small):
    import shutil

    shutil.rmtree(small / CELLS)
    results = read_results(small)
    assert len(results.missing) == len(results.manifest.cells)
    write_tables(small)
    assert pq.read_table(small / "sweep.parquet").num_rows == len(results.missing)


# -- tables ------------------------------------------------------------------------------------------------


def test_the_csv_has_one_row_a_cell_and_reads_back(tables):
    results = read_results(tables)
    with (tables / "sweep.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(results.manifest.cells)
    for cell in results.finished:
        row = rows[cell.id]
        assert row["status"] == "finished"
        assert (row["method"], row["ownership"], int(row["seed"])) == (cell.method, cell.ownership, cell.seed)
        assert row["report"] == f"cells/{cell.id}/report.html"
        assert (tables / row["report"]).is_file()
        for name, value in (*cell.metrics.items(), ("epsilon_spent", cell.epsilon_spent)):
            assert row[name] == ("" if value is None else repr(value))
            assert value is None or float(row[name]) == value  # to the last bit
        assert row["insecure_reproducible"] == "false"


def test_unfinished_cells_stand_in_the_table_with_their_reason(tables):
    with (tables / "sweep.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] != "finished"]
    assert sorted(row["status"] for row in rows) == ["broken", "missing"]
    broken = next(row for row in rows if row["status"] == "broken")
    assert broken["error"].startswith("BudgetExhausted: 1 of 10 sites")
    assert all(row["auroc_macro"] == row["report"] == "" for row in rows)
    assert all(row[EPSILON] for row in rows)


def test_parquet_has_the_same_rows_with_types(tables):
    table = pq.read_table(tables / "sweep.parquet")
    with (tables / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert table.column_names == list(rows[0])
    assert table.column("id").to_pylist() == [row["id"] for row in rows]
    expected = {
        EPSILON: pa.float64(),
        "seed": pa.int64(),
        "auroc_macro": pa.float64(),
        "epsilon_spent": pa.float64(),
        "bytes_up": pa.int64(),
        "phase.classify.rounds": pa.int64(),
        "insecure_reproducible": pa.bool_(),
        OWNERSHIP: pa.dictionary(pa.int32(), pa.string()),
    }
    assert {name: table.schema.field(name).type for name in expected} == expected
    assert table.schema.metadata[b"secure_fed.schema"] == b"secure_fed.sweep_table/1"
    assert table.schema.metadata[b"secure_fed.code"] == b"0.1.0+0123456789abcdef"
    for name in ("auroc_macro", "epsilon_spent", "wall_s"):
        assert table.column(name).to_pylist() == [float(row[name]) if row[name] else None for row in rows]


def test_without_privacy_epsilon_is_empty_never_zero(tables):
    table = pq.read_table(tables / "sweep.parquet").to_pylist()
    off = [row for row in table if row["privacy"] == "off"]
    assert off
    assert {row["epsilon_spent"] for row in off} == {row["epsilon_target"] for row in off} == {None}


def test_json_holds_phases_and_charges_but_no_path_of_this_machine(tables):
    text = (tables / "sweep_results.json").read_text()
    found = json.loads(text)
    assert found["schema"] == "secure_fed.sweep_results/1"
    finished = [cell for cell in found["cells"] if cell["status"] == "finished"]
    assert all(cell["phases"] for cell in finished)
    assert all(bool(cell["charges"]) == (cell["privacy"] == "dp") for cell in finished)
    assert "Traceback" not in text
    assert str(tables) not in text


def test_columns_keep_their_order_whichever_cells_have_finished(small):
    before = [column.name for column in columns(read_results(small))]
    first_cell(small).unlink()
    assert [column.name for column in columns(read_results(small))] == before


def test_a_factor_that_takes_a_columns_name_keeps_both(small):
    """A bundle may be called like a fixed column: its labels are not that column's values."""
    manifest = json.loads((small / MANIFEST).read_text())
    renamed = {}
    for row in manifest["cells"]:
        row["factors"] = {"privacy": f"label {row['privacy']}", METHOD: row["method"], "data": "mine"}
        renamed[row["id"]] = row["factors"]
    edit(small / MANIFEST, cells=manifest["cells"])
    for path in small.glob(f"{CELLS}/*/*.json"):
        edit(path, factors=renamed[path.parent.name])
    table = {column.name: column for column in columns(read_results(small))}
    assert set(table["privacy"].values) == {"dp", "off"}
    assert set(table["factor.privacy"].values) == {"label dp", "label off"}
    assert set(table["factor.data"].values) == {"mine"}
    assert f"factor.{METHOD}" not in table


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        ([1, 2], "integer", (1, 2)),
        ([1, 0.5], "float", (1.0, 0.5)),
        ([True, False], "boolean", (True, False)),
        ([None, 8], "integer", (None, 8)),
        (["a", 1], "string", ("a", "1")),
        ([True, 1], "string", ("True", "1")),
        ([None, None], "string", (None, None)),
    ],
)
def test_a_factor_has_one_type_that_holds_all_its_values(values, kind, shown):
    from secure_fed.sweep.table import _column

    assert _column("factor", values, factor=True) == Column("factor", kind, shown)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))


@given(st.lists(SCALARS, min_size=1, max_size=6))
def test_no_csv_cell_is_ambiguous(values):
    """Different values never look alike: text is in quotes, numbers and truth values are not, None is nothing."""
    text = to_csv([Column(str(place), "string", (value,)) for place, value in enumerate(values)])
    line = text.split("\n", 1)[1].removesuffix("\n")
    assert _parse(line) == [repr(value) for value in values]


def _parse(line: str) -> list[str]:
    """Values of one line by our rules alone, as Python writes them."""
    found, rest = [], line + ","
    while rest:
        if rest[0] == '"':
            end = 1
            while rest[end] != '"' or rest[end + 1] == '"':
                end += 2 if rest[end] == '"' else 1
            found.append(repr(rest[1:end].replace('""', '"')))
            rest = rest[end + 2 :]
            continue
        word, rest = rest.split(",", 1)
        found.append({"": "None", "true": "True", "false": "False"}.get(word, word))
    return found


def test_tables_are_replaced_whole_and_the_same_twice(small):
    write_tables(small)
    before = {name: (small / name).read_bytes() for name in ("sweep.csv", "sweep.parquet", "sweep_results.json")}
    write_tables(small)
    assert {name: (small / name).read_bytes() for name in before} == before
    assert {path.name for path in small.iterdir()} == {MANIFEST, CELLS, *before}  # nothing half done lies around


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_refuses_tables_is_named(small):
    small.chmod(0o500)
    with pytest.raises(DataError, match="cannot be written"):
        write_tables(small)


def test_a_name_that_is_taken_by_a_folder_is_an_error_of_ours(small):
    (small / "sweep.parquet").mkdir()
    with pytest.raises(DataError, match=r"sweep.parquet cannot be written"):
        write_tables(small)


def test_example_numbers_are_finite(tables):
    for cell in read_results(tables).finished:
        assert all(value is None or math.isfinite(value) for value in cell.metrics.values())
        assert (cell.epsilon_spent is None) == (cell.privacy == "off")
        assert cell.epsilon_spent is None or 0 < cell.epsilon_spent <= cell.epsilon_target
