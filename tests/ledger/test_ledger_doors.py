"""The command line's doors to ledgers: verify with anchors and without torch, show, export, schema."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from bookkeeping import bodies, forge, genesis, plan, reserve, write
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.identity import SigningKey
from secure_fed.ledger import Note, make_anchor, read_ledger, verify
from secure_fed.ledger.free_text import FREE_FIELDS
from secure_fed.ledger.record import BODIES
from secure_fed.ledger.schema import json_schema

GOLDEN = [Path(__file__).with_name(name) for name in ("golden_ledger.jsonl", "golden_ledger_rekeyed.jsonl")]
SCHEMA = Path(__file__).parents[2] / "docs" / "ledger.schema.json"
KEY = SigningKey.generate()


def _cli(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def _words(text):
    return " ".join(text.split())


@pytest.fixture
def home(tmp_path):
    """A home with a ledger, and the anchors that it kept of two others."""
    write(tmp_path / "home" / "ledger.jsonl", "site01", KEY, bodies())
    others = [make_anchor(site, 5, b"h" * 32, SigningKey.generate()) for site in ("site02", "site03")]
    kept = b"".join(anchor.to_line() + b"\n" for anchor in others)
    (tmp_path / "home" / "witness.jsonl").write_bytes(kept)
    return tmp_path / "home"


# -- verify --------------------------------------------------------------------------------------------------------


def test_verify_takes_anchors_from_several_places_and_says_so_in_json(books, tmp_path):
    records = read_ledger(books.ledger("site01"))
    seen = make_anchor("site01", 8, bytes.fromhex(records[-1].hash), books.keys["site01"])
    (tmp_path / "given.jsonl").write_bytes(seen.to_line() + b"\n")
    longer = make_anchor("site02", 9, b"x" * 32, books.keys["site02"])
    books.ledger("site03").with_name("witness.jsonl").write_bytes(longer.to_line() + b"\n")
    alone = _cli("verify", books.folder, "--json")
    assert alone.exit_code == 0
    assert json.loads(alone.stdout)["sites"][0]["tail"] == "unanchored"
    result = _cli("verify", books.folder, "--anchor", tmp_path / "given.jsonl", "--anchor", books.folder, "--json")
    assert result.exit_code == 1
    value = json.loads(result.stdout)
    assert [site["tail"] for site in value["sites"]] == ["anchored up to record 8 of 8", "unanchored", "unanchored"]
    assert value["first_problem"].startswith("site02: its last record was cut off")
    assert _cli("verify", books.folder, "--anchor", tmp_path).exit_code == 2


GUARD = """
import json, sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "flwr", "opacus", "ray", "torchvision", "transformers"}:
            raise AssertionError("imported " + name)
sys.meta_path.insert(0, Guard())
from secure_fed.cli import app
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments)
    except SystemExit as end:
        print("CODE", end.code)
    except AssertionError as error:
        print("GUARD", error)
"""


def test_verify_and_the_ledgers_doors_work_where_torch_and_flower_cannot_be_imported(home, tmp_path):
    """Every import of them, wherever it stands, would raise here."""
    calls = [
        ["verify", str(home), "--anchor", str(home), "--json"],
        ["ledger", "show", str(home)],
        ["ledger", "export", str(home), "--output", str(tmp_path / "copy.jsonl")],
        ["verify", str(home), "--cross-check"],
    ]
    command = [sys.executable, "-c", GUARD, json.dumps(calls)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ends = [line for line in shown.splitlines() if line.startswith(("CODE", "GUARD"))]
    # The last one shows that the guard is awake: the cross-check alone needs torch.
    assert ends == ["CODE 0", "CODE 0", "CODE 0", "GUARD imported opacus"]


@pytest.mark.slow
def test_cross_check_by_opacus_agrees_and_is_shown(home):
    result = _cli("verify", home, "--cross-check", "--json")
    assert result.exit_code == 0, result.output
    site = json.loads(result.stdout)["sites"][0]
    assert site["epsilon_prv"] == pytest.approx(site["epsilon"], rel=0.01, abs=0.005)
    assert "PRV" in _cli("verify", home, "--cross-check").stdout


# -- show ----------------------------------------------------------------------------------------------------------


def test_show_lists_every_kind_of_record_and_the_standing():
    result = _cli("ledger", "show", GOLDEN[0])
    assert result.exit_code == 0
    text = _words(result.stdout)
    for kind in set(BODIES) - {"rekey"}:
        assert kind in text
    assert "epsilon spent inf" in text
    assert "rekey" in _cli("ledger", "show", GOLDEN[1]).stdout


def test_show_gives_records_with_their_bodies_and_the_budget_as_json(home):
    (found,) = json.loads(_cli("ledger", "show", home, "--json").stdout)
    assert (found["site"], found["length"], found["problem"]) == ("site01", 8, None)
    assert [record["seq"] for record in found["records"]] == list(range(8))
    assert found["records"][2]["body"] == reserve(0).model_dump(mode="json")
    row = verify([home]).rows[0]
    assert found["standing"]["spent"] == row.epsilon
    assert found["standing"]["committed"] > row.epsilon  # the run is open: the third round counts too
    assert found["standing"]["limit"] == 8.0


def test_show_narrows_to_a_run_and_to_the_last_records(home):
    with_run = _cli("ledger", "show", home, "--run", "run-1", "--tail", "2", "--json")
    (found,) = json.loads(with_run.stdout)
    assert [record["kind"] for record in found["records"]] == ["reserve", "settle"]
    assert "holds no record of run 'run-9'" in _words(_cli("ledger", "show", home, "--run", "run-9").stderr)
    assert _cli("ledger", "show", home, "--tail", "0").exit_code == 2
    assert "tail=0" in _cli("ledger", "show", home, "--tail", "0").stderr


def test_show_of_a_run_folder_shows_every_site(books):
    found = json.loads(_cli("ledger", "show", books.folder, "--json").stdout)
    assert [listing["site"] for listing in found] == ["site01", "site02", "site03"]


def test_show_of_a_damaged_ledger_shows_what_is_good_names_the_rest_and_exits_1(home):
    path = home / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"outcome":"masked"', b'"outcome":"Masked"', 1))
    result = _cli("ledger", "show", home)
    assert result.exit_code == 1
    assert "record 4 was changed" in _words(result.stdout)
    assert "reserve" in result.stdout
    (found,) = json.loads(_cli("ledger", "show", home, "--json").stdout)
    assert len(found["records"]) == 4
    path.write_bytes(b"")
    assert _cli("ledger", "show", home).exit_code == 1


def test_show_of_a_path_without_a_ledger_is_a_usage_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        result = _cli("ledger", "show", path)
        assert result.exit_code == 2
        assert "holds no ledger" in _words(result.stderr)


# -- export --------------------------------------------------------------------------------------------------------


def test_export_is_the_same_bytes_and_verifies_with_roster_and_anchors(books, tmp_path):
    site = "site01"
    records = read_ledger(books.ledger(site))
    seen = make_anchor(site, 6, bytes.fromhex(records[5].hash), books.keys[site])
    books.ledger("site02").with_name("witness.jsonl").write_bytes(seen.to_line() + b"\n")
    target, kept = tmp_path / "site01.jsonl", tmp_path / "anchors.jsonl"
    assert _cli("ledger", "export", books.ledger(site).parent, "--output", target).exit_code == 0
    assert target.read_bytes() == books.ledger(site).read_bytes()
    second = _cli(
        "ledger", "export", books.ledger("site02").parent, "--output", tmp_path / "2.jsonl", "--anchors", kept
    )
    assert "1 anchors of others" in _words(second.stdout)
    verdict = verify([target], roster=books.folder / "roster.json", anchors=[kept])
    assert verdict.ok, verdict.first_problem
    assert verdict.rows[0].tail == "anchored up to record 6 of 8"


def test_export_overwrites_nothing_and_leaves_nothing_half_done(home, tmp_path):
    target, kept = tmp_path / "copy.jsonl", tmp_path / "anchors.jsonl"
    kept.write_text("mine")
    result = _cli("ledger", "export", home, "--output", target, "--anchors", kept)
    assert result.exit_code == 2
    assert "exists already and is not overwritten" in _words(result.stderr)
    assert kept.read_text() == "mine"
    assert not target.exists()
    target.write_text("mine too")
    assert _cli("ledger", "export", home, "--output", target).exit_code == 2
    assert target.read_text() == "mine too"
    assert _cli("ledger", "export", home, "--output", tmp_path / "x", "--anchors", tmp_path / "x").exit_code == 2
    assert _cli("ledger", "export", home, "--output", tmp_path / "no" / "x").exit_code == 2


def test_export_from_a_read_only_home_writes_nothing_there(home, tmp_path):
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    for path in home.iterdir():
        path.chmod(0o400)
    home.chmod(0o500)
    try:
        assert _cli("ledger", "show", home).exit_code == 0
        result = _cli("ledger", "export", home, "--output", tmp_path / "a", "--anchors", tmp_path / "b")
        assert result.exit_code == 0, result.output
        assert {path.name: path.read_bytes() for path in home.iterdir()} == before
        assert stat.S_IMODE((home / "ledger.jsonl").stat().st_mode) == 0o400
    finally:
        home.chmod(0o700)


def test_export_of_a_torn_ledger_leaves_the_unfinished_line_here(home, tmp_path):
    whole = (home / "ledger.jsonl").read_bytes()
    (home / "ledger.jsonl").write_bytes(whole + b'{"body":{"out')
    result = _cli("ledger", "export", home, "--output", tmp_path / "copy.jsonl")
    assert "13 bytes of an unfinished record were left out" in result.stderr
    assert (tmp_path / "copy.jsonl").read_bytes() == whole


def test_damaged_ledger_is_not_exported(home, tmp_path):
    path = home / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"run-1", b"run-2", 1))
    result = _cli("ledger", "export", home, "--output", tmp_path / "copy.jsonl")
    assert result.exit_code == 1
    assert "record 1 was changed" in _words(result.stderr)
    assert not (tmp_path / "copy.jsonl").exists()


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (
            Note(code="remark", text="see /home/anna/notes"),
            "record 1: text holds the path or address '/home/anna/notes'",
        ),
        (Note(code="remark", text=f"on {socket.gethostname().upper()}"), "text holds this machine's name"),
        (plan(run="/srv/runs/1"), "record 1: run holds the path or address '/srv/runs/1'"),
        (plan(versions={"torch": "/opt/torch"}), "versions holds the path"),
        (plan(versions={"~/env": "1"}), "versions holds the path"),
        (genesis(KEY, data_set="C:\\films"), "record 0: data_set holds the path or address 'C:\\\\films'"),
    ],
)
def test_export_is_refused_where_a_text_tells_of_the_machine(tmp_path, item, words):
    items = [item] if item.__class__.__name__ == "Genesis" else [genesis(KEY), item]
    path = forge(tmp_path / "ledger.jsonl", "site01", KEY, items)
    result = _cli("ledger", "export", path, "--output", tmp_path / "copy.jsonl")
    assert result.exit_code == 2
    assert words in _words(result.stderr)
    assert not (tmp_path / "copy.jsonl").exists()


def test_machine_that_is_called_like_a_phase_does_not_stop_an_export(home, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "encoders.example.org")
    assert _cli("ledger", "export", home, "--output", tmp_path / "copy.jsonl").exit_code == 0


def test_every_text_that_the_schema_leaves_free_is_looked_at():
    """A new field of free words would otherwise leave a site unread."""
    free = set()

    def walk(value, field):
        if isinstance(value, dict):
            bounded = {"pattern", "enum", "const"} & set(value)
            if value.get("type") == "string" and not bounded:
                free.add(field)
            for key, item in value.items():
                if key == "properties":
                    for name, inner in item.items():
                        walk(inner, name)
                elif key not in ("title", "description"):
                    walk(item, field)
        elif isinstance(value, list):
            for item in value:
                walk(item, field)

    for body in json_schema()["$defs"].values():
        walk(body, "")
    assert free == FREE_FIELDS


# -- schema --------------------------------------------------------------------------------------------------------


def test_checked_in_schema_is_the_models_own():
    """Write it anew with: secure-fed ledger schema > docs/ledger.schema.json."""
    assert _cli("ledger", "schema").stdout == SCHEMA.read_text(encoding="utf-8")


@pytest.mark.parametrize("golden", GOLDEN)
def test_golden_records_are_valid_by_the_schema(golden):
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    jsonschema.Draft202012Validator.check_schema(validator.schema)
    for line in golden.read_text(encoding="utf-8").splitlines():
        validator.validate(json.loads(line))


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"unit": "study"}),
        (1, {"surprise": 1}),
        (2, {"mechanism": {"kind": "laplace", "noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 1}}),
        (2, {"declared_n": 0}),
        (4, {"outcome": "kept"}),
    ],
)
def test_schema_refuses_what_the_parser_refuses(number, change):
    validator = jsonschema.Draft202012Validator(json_schema())
    record = json.loads(GOLDEN[0].read_text(encoding="utf-8").splitlines()[number])
    assert not validator.is_valid({**record, "body": {**record["body"], **change}})
    assert not validator.is_valid({**record, "kind": "rekey"})
    with pytest.raises(ValueError):
        BODIES[record["kind"]].model_validate_json(json.dumps({**record["body"], **change}))


def test_help_of_the_ledger_commands_is_quick_to_load():
    script = "import sys\nfrom secure_fed.cli import app\ntry: app(['ledger', '--help'])\nexcept SystemExit: pass\n"
    script += "print('HEAVY', sorted({'numpy', 'pydantic', 'torch'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in shown
    assert "export" in shown


def test_copy_that_was_moved_between_machines_is_shown_the_same(home, tmp_path):
    shutil.copytree(home, tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / "ledger.jsonl", (0, 0))
    assert _cli("ledger", "show", home).stdout == _cli("ledger", "show", tmp_path / "elsewhere").stdout
