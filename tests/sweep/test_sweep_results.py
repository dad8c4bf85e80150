"""`scripts/results.py`: the page follows from the sweeps' files, and claims a difference only where one is seen."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import results
from example_study import AXES, EPSILON, METHOD, OWNERSHIP, SEED, study
from results_findings import Found as Difference
from results_findings import aim_met, base_of, sentence, tally
from results_studies import View, read_studies
from results_tables import contributor_lines, protection
from scipy import stats

from secure_fed.report.run_folder import ComponentFacts, parse_summary
from secure_fed.sweep.record import CELLS, RESULT
from secure_fed.sweep.statistics import Paired, holm
from secure_fed.sweep.table import read_results

LINKS = (0, 0.2, 0.6, 0.95)
LINK_AXES = {"data.link": LINKS, METHOD: ("zero_fill", "modality_dropout", "fin"), EPSILON: (8.0,), SEED: (0, 1, 2)}


def planted(factors, missing):
    """FIN gains .03 with text missing and loses .03 with everything present; nothing else differs."""
    if factors[METHOD] != "fin":
        return 0.0
    return {"text": 0.03, None: -0.03}.get(missing, 0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sweeps")
    return {
        "methods": study(root / "methods", gain=planted),
        "link": study(
            root / "link", name="link", axes=LINK_AXES, gain=lambda f, m: 0.05 * (f["data.link"] - 0.2) if m else 0.0
        ),
    }


@pytest.fixture(scope="module")
def written(folders, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("docs") / "results.md"
    assert results.main([*map(str, folders.values()), "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def text(written) -> str:
    return written.read_text(encoding="utf-8")


def rows_under(text: str, heading: str) -> dict[str, list[str]]:
    """First column -> the others, of the first table below a heading."""
    body = text.partition(f"{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", body, flags=re.MULTILINE)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {first: rest for first, *rest in cells}


def scores(folder: Path, method: str, metric: str, ownership: str, epsilon: float) -> dict[int, float]:
    found = {}
    for cell in read_results(folder).finished:
        if (cell.method, cell.ownership, cell.epsilon_target) == (method, ownership, epsilon):
            found[cell.seed] = cell.metrics[metric]
    return found


def test_means_differences_errors_and_p_values_are_those_of_the_cells(folders, text):
    metrics = ("auroc_macro", "auroc_macro_missing.image", "auroc_macro_missing.text")
    found, tests = {}, {}
    for method in ("modality_dropout", "fin"):
        for metric in metrics:
            a = scores(folders["methods"], "zero_fill", metric, "8:0:2", 8.0)
            b = scores(folders["methods"], method, metric, "8:0:2", 8.0)
            differences = np.array([b[seed] - a[seed] for seed in (0, 1, 2)])
            tests[method, metric] = stats.ttest_rel(list(b.values()), list(a.values())).pvalue
            found[method, metric] = (
                np.mean(list(b.values())),
                differences.mean(),
                differences.std(ddof=1) / np.sqrt(3),
            )
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    rows = rows_under(text, "### 8:0:2, ε = 8")
    for (method, metric), (mean, difference, error) in found.items():
        place = 1 + 2 * metrics.index(metric)
        assert rows[method][place] == f"{mean:.3f}"
        shown = rows[method][place + 1].replace("*", "").replace("−", "-")
        p = adjusted[method, metric]
        assert shown == f"{difference:+.3f} ± {error:.3f}, p {'< .001' if p < 0.001 else f'{p:.2g}'}"
    assert rows["zero_fill"][2] == ""
    assert rows["fin"][-1] == "7.84"


def test_planted_gains_and_losses_are_found_and_nothing_else_is_called_one(text):
    pays = text.partition("## When imputation pays")[2]
    for privacy in ("without privacy", "ε = 8", "ε = 1"):
        for view, word in (("everything present", "loses"), ("text missing", "gains")):
            lines = pays.partition(f"*{privacy}, {view} at test.*")[2].splitlines()
            told = next(line for line in lines if line.startswith("- **fin**"))
            assert told.startswith(f"- **fin**: {word} at 8:0:2")
            assert "at 4:4:2" in told
    assert "modality_dropout**:" not in pays


def test_the_curve_over_the_link_is_told_and_drawn(text, written):
    told = text.partition("### How strongly the report follows the film")[2]
    line = next(line for line in told.partition("ε = 8, image missing")[2].splitlines() if line.startswith("- **fin**"))
    assert re.match(r"- \*\*fin\*\*: gains at link 0\.6 .*, at link 0\.95 .*; loses at link 0 ", line)
    figures = sorted(path.name for path in (written.parent / "figures").iterdir())
    assert [name for name in figures if name.startswith("link")] == [
        f"link-{view}-{privacy}.svg"
        for view in ("both", "no-image", "no-text")
        for privacy in ("epsilon-8", "without-privacy")
    ]
    assert set(re.findall(r"\(figures/(.*?)\)", text)) == set(figures)


def test_a_figure_stands_alone_in_light_and_dark_and_loads_nothing(written):
    for path in (written.parent / "figures").iterdir():
        picture = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(picture)  # noqa: S314 - our own file
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in picture
        assert not re.search(r"<script|href|url\(|@import|<foreignObject", picture)


def test_the_same_folders_give_the_same_bytes_wherever_they_lie(folders, text, written, tmp_path):
    moved = [shutil.copytree(folder, tmp_path / "elsewhere" / name) for name, folder in folders.items()]
    output = tmp_path / "docs" / "results.md"
    output.parent.mkdir()
    assert results.main([*map(str, reversed(moved)), "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8") == text
    for path in (written.parent / "figures").iterdir():
        assert path.read_bytes() == (output.parent / "figures" / path.name).read_bytes()
    assert "/somewhere" not in text
    assert "data.root=PATH" in text
    assert str(tmp_path) not in output.read_text(encoding="utf-8")


def test_a_study_that_is_not_given_is_named_as_not_run(text):
    for name in ("paired_sites", "icu", "fin_ablation"):
        assert f"| `{name}` | not run |" in text
        assert f"Not run: `secure-fed sweep sweep={name}`" in text
    assert "Not run: `python benchmarks/costs.py" in text


def test_a_sweep_with_missing_cells_is_refused_and_told_with_partial(tmp_path, capsys):
    folder = study(tmp_path / "methods", unfinished=2)
    output = tmp_path / "results.md"
    assert results.main([str(folder), "--output", str(output)]) == 2
    assert "2 missing" in capsys.readouterr().err
    assert not output.exists()
    assert results.main([str(folder), "--output", str(output), "--partial"]) == 0
    assert "52 of 54, incomplete" in output.read_text(encoding="utf-8")


def test_one_seed_supports_no_claim(tmp_path):
    folder = study(tmp_path / "methods", axes={**AXES, SEED: (0,)}, gain=planted)
    output = tmp_path / "results.md"
    assert results.main([str(folder), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    pays = text.partition("## When imputation pays\n")[2].partition("### ")[2]
    assert "one seed, so nothing can be said" in pays
    assert not re.search(r"gains at|loses at|\| met \|(?=.*missing)", pays)
    assert "one seed: not known" in pays


@pytest.mark.parametrize(
    ("names", "message"),
    [(("privacy_utility",), "'privacy_utility'"), (("link", "link"), "both the sweep 'link'")],
)
def test_an_unknown_study_and_one_given_twice_are_refused(names, message, tmp_path, capsys):
    folders = [study(tmp_path / str(place), name=name, axes=LINK_AXES) for place, name in enumerate(names)]
    assert results.main([*map(str, folders), "--output", str(tmp_path / "results.md")]) == 2
    assert message in capsys.readouterr().err


def test_costs_of_another_kind_are_refused(folders, tmp_path, capsys):
    other = tmp_path / "costs.json"
    other.write_text(json.dumps({"schema": "secure_fed.summary/1"}), encoding="utf-8")
    arguments = [str(folders["link"]), "--costs", str(other), "--output", str(tmp_path / "results.md")]
    assert results.main(arguments) == 2
    assert "benchmarks/costs.py" in capsys.readouterr().err


def test_a_cell_that_was_changed_changes_the_page(folders, text, tmp_path):
    folder = shutil.copytree(folders["methods"], tmp_path / "methods")
    cell = folder / CELLS / read_results(folder).finished[-1].id / RESULT
    found = json.loads(cell.read_text(encoding="utf-8"))
    found["metrics"]["auroc_macro"] += 0.1
    cell.write_text(json.dumps(found), encoding="utf-8")
    output = tmp_path / "results.md"
    assert results.main([str(folder), str(folders["link"]), "--output", str(output)]) == 0
    assert output.read_text(encoding="utf-8") != text


def test_what_privacy_costs_is_each_method_against_itself_without(folders, text):
    a = scores(folders["methods"], "fin", "auroc_macro_missing.text", "8:0:2", None)
    b = scores(folders["methods"], "fin", "auroc_macro_missing.text", "8:0:2", 1.0)
    differences = np.array([b[seed] - a[seed] for seed in (0, 1, 2)])
    body = text.partition("### What privacy costs")[2].partition("**8:0:2**")[2]
    line = next(line for line in body.splitlines() if line.startswith("| fin | no text |"))
    shown = line.split("|")[4].replace("*", "").replace("−", "-")
    assert shown.strip().startswith(f"{differences.mean():+.3f} ± {differences.std(ddof=1) / np.sqrt(3):.3f}, p ")


def test_the_guide_counts_what_is_visible_over_all_studies(text):
    rows = rows_under(text, "Visible gains (↑) and losses (↓) against `zero_fill`, over all settings and views:\n")
    # Off and at epsilon 8: two ownerships and four links with everything present, twice as many with one missing.
    losses = sum(line.count("loses at") > 0 for line in text.splitlines() if line.startswith("- **fin**"))
    assert losses > 0
    assert re.fullmatch(r"0 ↑ [23] ↓ of 6", rows["fin"][0])
    assert re.fullmatch(r"\d ↑ \d ↓ of 12", rows["fin"][3])
    assert rows["fin"][5] == "2 ↑ 0 ↓ of 4"  # epsilon 1: the methods alone, text missing at both ownerships
    assert set(rows) == {"fin", "modality_dropout"}


def test_an_ablation_compares_each_variant_with_what_it_changes(tmp_path):
    variants = ("decoder", "decoder_depth_4", "mlp", "linear", "linear_inputs")
    axes = {"variant": variants, EPSILON: (8.0,), SEED: (0, 1, 2)}
    better = {"linear_inputs": 0.03, "decoder_depth_4": -0.03}
    folder = study(tmp_path / "a", name="fin_ablation", axes=axes, gain=lambda f, m: better.get(f["variant"], 0.0))
    output = tmp_path / "results.md"
    assert results.main([str(folder), "--output", str(output)]) == 0
    lines = [
        line for line in output.read_text(encoding="utf-8").splitlines() if line.startswith("- ε = 8, text missing")
    ]
    assert [re.findall(r"Against `(\w+)`", line) for line in lines] == [["decoder"], ["linear"]]
    assert "worse: decoder_depth_4 (−0.0" in lines[0]
    assert re.search(r"no visible difference: mlp .*linear ", lines[0])
    assert "better: linear_inputs (+0.0" in lines[1]


@pytest.mark.parametrize(
    ("variant", "base"),
    [("decoder", None), ("decoder_depth_4", "decoder"), ("linear", "decoder"), ("linear_inputs", "linear")],
)
def test_a_variant_is_named_after_what_it_changes(variant, base):
    assert base_of(variant, ["decoder", "decoder_depth_4", "linear", "linear_inputs"]) == base


def test_sweeps_of_different_code_are_told_apart(folders, tmp_path):
    other = study(tmp_path / "link", name="link", axes=LINK_AXES, code="0.1.0+feedfeedfeedfeed")
    output = tmp_path / "results.md"
    assert results.main([str(folders["methods"]), str(other), "--output", str(output)]) == 0
    assert "different versions of the code" in output.read_text(encoding="utf-8")


def test_the_paper_sized_costs_are_those_of_the_benchmark(folders, tmp_path):
    row = {"parameters_per_round": 6_454_784, "bytes_up_per_site_round": 19_364_355, "flops_imputation": 27_104_256}
    costs = {
        "schema": "secure_fed.costs/1",
        "rows": [{"method": "fin, image to text", **row}],
        "ratios": {
            "communication": 12.13, "communication_both_directions": 6.06, "computation": 1880.4,
            "computation_writing_alone": 1054.2,
        },
    }  # fmt: skip
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(costs), encoding="utf-8")
    output = tmp_path / "results.md"
    assert results.main([str(folders["link"]), "--costs", str(path), "--output", str(output)]) == 0
    text = output.read_text(encoding="utf-8")
    assert "12.1 times FIN's bytes (aim: 10; against FIN's both directions 6.1) and 1,880 times its FLOPs" in text
    assert "| fin, image to text | 6\u202f454\u202f784 | 19.4 MB | 27.1 M |" in text


# -- rules ----------------------------------------------------------------------------------------------------


def seen(difference: float, low: float | None, high: float | None, error: float | None = 0.01) -> Paired:
    n = 1 if low is None else 5
    return Paired(n, difference, error, low, high, None, None)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (seen(0.02, 0.001, 0.039), "gains at 8:0:2 (+0.020 ± 0.010)"),
        (seen(-0.02, -0.039, -0.001), "loses at 8:0:2 (−0.020 ± 0.010)"),
        (seen(0.02, -0.001, 0.041), "no visible difference at 8:0:2 (+0.020 ± 0.010)"),
        (seen(0.02, 0.0, 0.04), "no visible difference at 8:0:2 (+0.020 ± 0.010)"),
        (seen(0.02, None, None, None), "one seed, so nothing can be said at 8:0:2 (+0.020)"),
    ],
)
def test_a_sentence_follows_from_the_interval(found, words):
    assert sentence("fin", [Difference("8:0:2", found)]) == f"**fin**: {words}."


def test_a_tally_says_what_chance_alone_would_show():
    found = [Difference("", seen(0.02, 0.001, 0.039))] * 3 + [Difference("", seen(0.0, -0.01, 0.01))] * 17
    told = tally(found, 0.95)
    assert told == (
        "Of 20 differences: gains 3, no visible difference 17; chance alone would show about 1.0 visible ones."
    )


@pytest.mark.parametrize(
    ("missing", "found", "expected"),
    [
        (False, seen(-0.0099, -0.02, 0.0), "met"),
        (False, seen(-0.0101, -0.02, 0.0), "missed"),
        (True, seen(0.0201, 0.001, 0.04), "met"),
        (True, seen(0.0199, 0.001, 0.04), "missed"),
        (True, seen(-0.03, -0.05, -0.01), "missed"),
        (True, seen(0.03, None, None, None), "one seed: not known"),
        (True, seen(0.0, 0.0, 0.0, 0.0), "missed"),
    ],
)
def test_an_aim_is_met_by_its_rule(missing, found, expected):
    view = View("no image", "auroc_macro_missing.image", "") if missing else View("both", "auroc_macro", "")
    assert aim_met(view, found) == expected


@pytest.mark.parametrize(
    ("owners", "floor", "corrupt", "words"),
    [
        (10, 3, 1, "a sum of 10, at the least 3; 2 of these honest with 1 corrupt site"),
        (2, 2, 0, "a sum of 2, at the least 2; if one of the two colludes with the server, nothing"),
        (10, 2, 0, "if one owner of a sum at its floor colludes with the server, nothing"),
        (10, 4, 0, "with k colluding owners 4 − k"),
        (1, 1, 1, "nothing: its sum can be one single site's update"),
        (4, None, 1, "never summed"),
    ],
)
def test_what_protects_a_component_follows_from_its_floor(folders, owners, floor, corrupt, words):
    cell = next((folders["methods"] / CELLS).iterdir())
    values = json.loads((cell / "summary.json").read_text(encoding="utf-8"))
    values["secagg"]["corrupt"] = corrupt
    facts = ComponentFacts(parameters=1, owners=tuple(map(str, range(owners))), floor=floor, dp_only=False, kept=0)
    assert words in protection(parse_summary(values), facts)


def test_components_of_some_methods_alone_say_of_which(text):
    rows = rows_under(text.partition("## Who contributes to what")[2], "**8:0:2**")
    assert rows["`fusion`"][0] == "every method"
    assert rows["`translator.image_to_text`"][0] == "fin"
    assert rows["`translator.image_to_text`"][2:] == ["2", "2"]


def test_a_component_that_one_method_sums_and_another_solves_has_a_row_for_each(tmp_path):
    """Ridge's translators are solved from a statistic; FIN's, of the same name, are opened as sums of updates."""
    folder = study(tmp_path / "methods", axes={**AXES, METHOD: ("zero_fill", "ridge", "fin")})
    for file in folder.glob(f"{CELLS}/*/summary.json"):
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["method"] == "ridge":
            facts = values["components"]["fusion"] | {"owners": ["site01", "site02"], "floor": None}
            values["components"]["translator.image_to_text"] = facts
            file.write_text(json.dumps(values), encoding="utf-8")
    lines = contributor_lines(read_studies([folder])["methods"])
    found = {line.split(" | ")[1]: line.split(" | ")[2:] for line in lines if "translator.image_to_text" in line}
    assert found["ridge"][0].startswith("never summed")
    assert found["fin"][0].startswith("a sum of 2")


def test_presets_of_one_method_are_rows_of_their_own(tmp_path):
    folder = study(tmp_path / "methods", axes={**AXES, METHOD: ("zero_fill", "fin", "fin_paper")})
    (table, *_) = read_studies([folder])["methods"].tables
    assert [row.name for row in table.rows] == ["zero_fill", "fin", "fin_paper"]


def test_settings_are_the_axes_but_method_epsilon_and_seed(folders):
    found = read_studies([folders["methods"]])["methods"]
    assert {str(table.setting) for table in found.tables} == {
        f"{ownership}, {privacy}" for ownership in AXES[OWNERSHIP] for privacy in ("ε = 8", "ε = 1", "without privacy")
    }
    assert found.budgets == [None, 8.0, 1.0]
