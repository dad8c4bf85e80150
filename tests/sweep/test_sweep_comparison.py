"""Two sweeps side by side: what meets, what changed, and that a difference is claimed only where there is one."""

from __future__ import annotations

import html
import io
import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml
from example import EPSILON, METHOD, OWNERSHIP, example_sweep
from rich.console import Console

from secure_fed.errors import ConfigError, DataError
from secure_fed.sweep.comparison import compare, headline, render, to_json, write_page
from secure_fed.sweep.record import CELLS, GRID, MANIFEST, RESULT
from secure_fed.sweep.statistics import holm, paired
from secure_fed.sweep.table import read_results

TINY = {"epsilons": (1.0, 3.0), "methods": ("zero_fill", "fin"), "ownerships": ("5:1:4",), "broken": 0, "missing": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return example_sweep(tmp_path_factory.mktemp("base") / "base", **TINY, alike=True)


@pytest.fixture
def other(tmp_path):
    return lambda name="other", **changes: example_sweep(tmp_path / name, **{**TINY, "alike": True, **changes})


def scores(folder: Path, metric: str = "auroc_macro") -> dict:
    return {
        (cell.kind, tuple(sorted(cell.factors.items()))): cell.metrics[metric] for cell in read_results(folder).finished
    }


def changes_of(comparison) -> dict:
    return {change.what: (change.before, change.after, change.cells) for change in comparison.changes}


def test_a_sweep_does_not_differ_from_itself(base):
    found = compare(base, base)
    assert found.changes == found.only_before == found.only_after == found.unfinished == ()
    assert {test.paired.difference for test in found.tests} == {0.0}
    assert not any(test.beyond_noise for test in found.tests)
    assert found.overall.t_p == 1.0


def test_every_common_setting_is_tested_over_its_common_seeds(base, other):
    second = other(seeds=(1, 2, 3), shift=0.02, noise=0.006)
    found = compare(base, second)
    assert {(test.setting.kind, dict(test.setting.factors).get(METHOD)) for test in found.tests} == {
        (GRID, "zero_fill"),
        (GRID, "fin"),
        ("non_private", "zero_fill"),
        ("non_private", "fin"),
        ("single_site", None),
    }
    a, b = scores(base), scores(second)
    for test in found.tests:
        keys = {seed: (test.setting.kind, tuple(sorted((*test.setting.factors, ("seed", seed))))) for seed in (1, 2)}
        expected = paired({s: a[k] for s, k in keys.items()}, {s: b[k] for s, k in keys.items()})
        assert test.paired == expected
        assert test.paired.n == 2
        assert test.before == pytest.approx(np.mean([a[key] for key in keys.values()]))
    assert [test.holm_p for test in found.tests] == list(holm([test.paired.t_p for test in found.tests]))


def test_cells_of_one_sweep_alone_are_listed_and_enter_no_test(base, other):
    second = other(epsilons=(3.0, 8.0), references=("non_private",))
    found = compare(base, second)
    assert {dict(test.setting.factors).get(EPSILON) for test in found.tests} == {3.0, None}
    assert all("epsilon=1" in text or text.startswith("single_site") for text in found.only_before)
    assert all("epsilon=8" in text for text in found.only_after)
    assert len(found.only_before) == 2 * 3 + 2 * 3  # epsilon 1: two methods, three seeds; single_site: two epsilons
    assert len(found.only_after) == 2 * 3


def test_cells_without_a_score_are_named_and_their_seed_is_left_out(base, other):
    found = compare(base, other(broken=1, missing=1))
    (setting,) = {text.rsplit(", seed=", 1)[0] for text in found.unfinished}
    assert len(found.unfinished) == 2
    assert next(test for test in found.tests if str(test.setting) == setting).paired.n == 1


def test_the_grid_as_a_whole_is_one_test_over_seeds_of_whole_settings(base, other):
    second = other(shift=0.01, noise=0.007, missing=1)
    found = compare(base, second)
    assert found.overall_settings == 3  # of four: one lacks a seed
    a, b = scores(base), scores(second)
    whole = [
        (epsilon, method)
        for epsilon, method in product((1.0, 3.0), ("zero_fill", "fin"))
        if (epsilon, method) != (3.0, "fin")
    ]
    means = [
        {
            seed: np.mean([
                table[GRID, tuple(sorted({EPSILON: e, METHOD: m, OWNERSHIP: "5:1:4", "seed": seed}.items()))]
                for e, m in whole
            ])
            for seed in (0, 1, 2)
        }
        for table in (a, b)
    ]  # fmt: skip
    assert found.overall.difference == pytest.approx(paired(*means).difference)
    assert found.overall.t_p == pytest.approx(paired(*means).t_p)
    assert found.overall.n == 3


def test_what_changed_is_told_of_sweeps_and_of_cells(base, other):
    changed = {
        "code": "0.1.0+feedfeedfeedfeed",
        "max_grad_norm": 1.0,
        "versions": {"python": "3.12.1", "opacus": "1.6"},
    }
    found = changes_of(compare(base, other(**changed)))
    assert found == {
        "code": ("0.1.0+0123456789abcdef", "0.1.0+feedfeedfeedfeed", None),
        "version of python": ("3.11.7", "3.12.1", None),
        "version of torch": ("2.14.1", "absent", None),
        "version of opacus": ("absent", "1.6", None),
        "privacy.max_grad_norm": ("2", "1", 18),  # twelve of the grid and six of single_site; none without privacy
    }


def test_a_key_with_several_values_is_one_change(base, other):
    second = other()
    for number, path in enumerate(sorted(second.glob("cells/*/config.yaml"))):
        tree = yaml.safe_load(path.read_text())
        tree["federation"]["rounds"] = 20 + number % 3
        path.write_text(yaml.safe_dump(tree))
    assert changes_of(compare(base, second)) == {"federation.rounds": ("18", "3 values", 24)}


def test_a_factor_that_only_one_sweep_varies_is_read_from_the_others_configuration(base, other):
    """`method=fin` on the command line removes the axis: those cells still are the ones with method=fin."""
    second = other(methods=("fin",))
    manifest = json.loads((second / MANIFEST).read_text())
    manifest["axes"] = [axis for axis in manifest["axes"] if axis["name"] != METHOD]
    for row in manifest["cells"]:
        row["factors"].pop(METHOD, None)
    (second / MANIFEST).write_text(json.dumps(manifest))
    for path in second.glob(f"{CELLS}/*/{RESULT}"):
        cell = json.loads(path.read_text())
        cell["factors"].pop(METHOD, None)
        path.write_text(json.dumps(cell))
    for found in (compare(base, second), compare(second, base)):
        grid = [dict(test.setting.factors) for test in found.tests if test.setting.kind == GRID]
        assert [factors[METHOD] for factors in grid] == ["fin", "fin"]
        assert {test.paired.difference for test in found.tests} == {0.0}


def test_an_axis_of_another_order_changes_nothing(base, other):
    second = other()
    manifest = json.loads((second / MANIFEST).read_text())
    manifest["axes"].reverse()
    (second / MANIFEST).write_text(json.dumps(manifest))
    assert len(compare(base, second).tests) == len(compare(base, base).tests)


def test_noise_alone_is_hardly_ever_called_a_difference(tmp_path):
    """Twenty pairs of sweeps that do the same: Holm lets at most 5 % of them alarm, that is one or so."""
    options = {**TINY, "methods": ("zero_fill",), "references": (), "seeds": (0, 1, 2, 3)}
    folders = [example_sweep(tmp_path / str(n), **options, code=f"0.1.0+{n:016x}") for n in range(40)]
    pairs = zip(folders[::2], folders[1::2], strict=True)
    alarms = sum(any(test.beyond_noise for test in compare(a, b).tests) for a, b in pairs)
    assert alarms <= 4  # a binomial of 20 trials at 5 % is above that in 0.3 % of all cases


def test_a_clear_difference_is_found(base, other):
    found = compare(base, other(shift=0.05, noise=0.0041))
    assert all(test.beyond_noise for test in found.tests)
    assert "8 of 8 common settings differ beyond noise" in headline(found)


def test_a_single_seed_tests_nothing_and_says_so(base, other):
    found = compare(base, other(seeds=(0,), shift=0.05))
    assert {test.holm_p for test in found.tests} == {None}
    assert not any(test.beyond_noise for test in found.tests)
    assert "Holm over 0" in headline(found)


def test_sweeps_with_nothing_in_common_are_not_compared(base, other):
    found = compare(base, other(seeds=(7, 8)))
    assert found.tests == ()
    assert found.overall is None
    assert "nothing to compare" in headline(found)
    assert write_page(found, Path(other("page")) / "compare.html").is_file()


def test_remarks_warn_of_what_a_p_value_does_not_know(base, other):
    remarks = " ".join(compare(base, other(data="physionet2012", insecure_reproducible=True)).remarks)
    assert "does not cancel in a pair" in remarks
    assert "The data differ (synthetic_cxr, physionet2012)" in remarks
    assert "insecure_reproducible" in remarks
    assert "p = 0.25" in remarks  # three seeds: 2^-2


def test_another_epsilon_is_remarked(base, other):
    second = other()
    for path in second.glob(f"{CELLS}/*/{RESULT}"):
        cell = json.loads(path.read_text())
        if cell["epsilon_spent"]:
            path.write_text(json.dumps(cell | {"epsilon_spent": cell["epsilon_spent"] * 1.2}))
    assert any("another epsilon" in remark for remark in compare(base, second).remarks)
    assert not any("another epsilon" in remark for remark in compare(base, base).remarks)


def test_another_metric_can_be_asked_for(base, other):
    second = other(shift=0.01)
    found = compare(base, second, "auroc_macro_missing.image")
    assert found.metric == "auroc_macro_missing.image"
    assert found.overall.difference == pytest.approx(0.01, abs=1e-6)
    with pytest.raises(ConfigError, match=r"metric='accuracy' is none of .*auroc_macro"):
        compare(base, second, "accuracy")


def test_different_objectives_need_a_metric(base, other):
    second = other(objective="auroc_macro_missing.text")
    with pytest.raises(ConfigError, match="different objectives"):
        compare(base, second)
    assert compare(base, second, "auroc_macro").tests


def test_a_folder_that_is_no_sweep_is_refused(base, tmp_path):
    with pytest.raises(DataError, match="not a sweep's folder"):
        compare(base, tmp_path)


def test_a_damaged_configuration_is_named(base, other):
    second = other()
    path = next(iter(sorted(second.glob("cells/*/config.yaml"))))
    path.write_text("a: [")
    with pytest.raises(DataError, match=r"config\.yaml is damaged"):
        compare(base, second)


# -- what people see ---------------------------------------------------------------------------------------


@pytest.fixture
def different(base, other):
    return compare(base, other("<b>other", shift=0.05, noise=0.0041, broken=1, code="0.1.0+feedfeedfeedfeed"))


def test_json_holds_everything_and_is_plain(different):
    found = json.loads(json.dumps(to_json(different), allow_nan=False))
    assert found["schema"] == "secure_fed.comparison/1"
    assert found["tests"][0]["setting"] == {
        "kind": GRID,
        "factors": {EPSILON: 1.0, METHOD: "zero_fill", OWNERSHIP: "5:1:4"},
    }
    assert found["tests"][0]["paired"]["n"] == 3
    assert found["headline"] == headline(different)
    assert math.isclose(found["overall"]["difference"], 0.05, abs_tol=0.01)


def test_the_terminal_shows_changes_tests_and_what_was_left_out(different):
    console = Console(width=160, record=True, file=io.StringIO())
    render(different, console)
    text = console.export_text()
    for expected in ("0.1.0+feedfeedfeedfeed", "method=fin", "differ beyond noise", "without a score", "+0.050"):
        assert expected in text


def test_the_page_stands_alone_and_escapes_names(different, tmp_path):
    page = write_page(different, tmp_path / "compare.html").read_text()
    assert "<b>other" not in page
    assert "&lt;b&gt;other" in page
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('class="dot') == 2 * (len(different.tests) + 1)  # for a wide and a narrow window
    assert headline(different) in html.unescape(page)


def test_a_page_that_cannot_be_written_is_an_error_of_ours(different, tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        write_page(different, tmp_path / "nowhere" / "compare.html")
