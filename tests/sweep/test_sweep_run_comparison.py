"""`secure-fed compare RUN...`: rows are settings, pairs share patients and privacy, and noise is called noise."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from example import example_sweep
from example_runs import run
from headless import BROWSER, browse
from scipy import stats
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.errors import ConfigError, DataError
from secure_fed.sweep.forest import shortened
from secure_fed.sweep.run_comparison import compare_runs
from secure_fed.sweep.run_comparison_page import write_page
from secure_fed.sweep.run_comparison_plots import difference_plot, rate_plot, score_plot
from secure_fed.sweep.run_comparison_text import headline, to_json
from secure_fed.sweep.statistics import holm

FIN = {0: 0.841, 1: 0.846, 2: 0.838}
ZERO = {0: 0.820, 1: 0.824, 2: 0.818}


@pytest.fixture
def seeds(tmp_path) -> list[Path]:
    """FIN and zero-filling over three seeds, FIN named first."""
    found = [run(tmp_path / f"fin-{seed}", "fin", seed, auroc=auroc) for seed, auroc in FIN.items()]
    return found + [run(tmp_path / f"zero-{seed}", "zero_fill", seed, auroc=auroc) for seed, auroc in ZERO.items()]


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "100"})
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


# -- what lies there ------------------------------------------------------------------------------------------


def test_runs_and_sweeps_together_are_refused(tmp_path, seeds):
    sweep = example_sweep(tmp_path / "sweep", epsilons=(3.0,), methods=("fin",))
    code, _, said = invoke(sweep, seeds[0])
    assert code == 2
    assert "compare two sweeps, or runs with runs" in said


def test_a_folder_that_is_neither_is_named(tmp_path, seeds):
    code, _, said = invoke(seeds[0], tmp_path / "nothing")
    assert code == 2
    assert "nothing is neither a sweep's folder" in said


@pytest.mark.parametrize("count", [1, 3])
def test_sweeps_are_compared_in_twos(tmp_path, count):
    sweep = example_sweep(tmp_path / "sweep", epsilons=(3.0,), methods=("fin",))
    code, _, said = invoke(*[sweep] * count)
    assert code == 2
    assert "two" in said


def test_a_run_alone_and_a_run_twice_are_refused(seeds):
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare_runs(seeds[:1])
    with pytest.raises(ConfigError, match="given twice"):
        compare_runs([seeds[0], seeds[0].parent / "." / seeds[0].name])


def test_a_metric_is_for_sweeps(seeds):
    code, _, said = invoke(*seeds, "--metric", "auroc_macro")
    assert code == 2
    assert "leave it out" in said


@pytest.mark.parametrize("key", ["auprc_macro", "intervals", "cost", "missing_rates", "imputation"])
def test_a_run_of_an_older_version_is_named_with_what_it_lacks(seeds, key):
    path = seeds[0] / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    del summary[key]
    path.write_text(json.dumps(summary), encoding="utf-8")
    with pytest.raises(DataError, match=rf"summary\.json.*another version.*{key}"):
        compare_runs(seeds)


def test_an_unfinished_run_is_named(seeds):
    (seeds[0] / "summary.json").unlink()
    with pytest.raises(DataError, match="unfinished"):
        compare_runs(seeds)


def test_reading_runs_needs_neither_torch_nor_flower(seeds):
    code = (
        "import sys\nfrom secure_fed.cli import app\n"
        f"try:\n    app(['compare', {str(seeds[0])!r}, {str(seeds[3])!r}])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(sorted({'torch', 'flwr', 'hydra'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


# -- rows -----------------------------------------------------------------------------------------------------


def test_runs_that_differ_by_their_seed_are_one_row(seeds):
    found = compare_runs(seeds)
    assert [(group.label, group.seeds) for group in found.groups] == [("fin", [0, 1, 2]), ("zero_fill", [0, 1, 2])]
    assert found.settings == ()


def test_the_interval_of_one_run_is_its_bootstrap_and_of_several_students(seeds):
    found = to_json(compare_runs([seeds[0], *seeds[3:]]))
    one, several = found["rows"]
    assert one["auroc_macro"]["all present"] == pytest.approx({"mean": 0.841, "low": 0.821, "high": 0.861})
    low, high = stats.t.interval(0.95, 2, np.mean(list(ZERO.values())), stats.sem(list(ZERO.values())))
    assert several["auroc_macro"]["all present"]["low"] == pytest.approx(low)
    assert several["auroc_macro"]["all present"]["high"] == pytest.approx(high)
    assert [of_run["auroc_interval"]["no image"] for of_run in one["runs"]] == [pytest.approx([0.751, 0.791])]


def test_rows_of_one_method_are_told_apart_by_what_differs(tmp_path):
    folders = [
        run(tmp_path / "a", "fin", epsilon=8.0),
        run(tmp_path / "b", "fin", epsilon=3.0),
        run(tmp_path / "c", "fin", epsilon=None),
        run(tmp_path / "d", "zero_fill", ownership={"image": 8, "image+text": 2}),
    ]
    found = compare_runs(folders)
    assert [group.label for group in found.groups] == ["fin, ε 8", "fin, ε 3", "fin, without privacy", "zero_fill"]
    assert found.groups[-1].ownership == "image 8, image+text 2"
    assert [group.epsilon_spent for group in found.groups] == [
        pytest.approx(7.84), pytest.approx(2.94), None, pytest.approx(7.84),
    ]  # fmt: skip


def test_two_runs_of_one_configuration_and_seed_are_refused(tmp_path):
    folders = [run(tmp_path / name, "fin", seed=3) for name in ("a", "b")]
    with pytest.raises(ConfigError, match="their noise alone differs"):
        compare_runs(folders)


def test_rows_of_one_method_with_other_options_have_short_labels_and_all_options_in_the_table(tmp_path):
    options = {"schedule": "last", "loss": "mse", "share": 0.1, "dropout": 0.2}
    others = {"schedule": "every_round", "loss": "cosine", "share": 0.3, "dropout": 0.0}
    folders = [
        run(tmp_path / name, "fin", config={"method": {"name": "fin", **chosen}})
        for name, chosen in (("a", options), ("b", others))
    ]
    found = compare_runs([*folders, run(tmp_path / "c", "zero_fill")])
    assert found.groups[0].label.endswith(", and 1 more")
    assert {setting.key for setting in found.settings} == {f"method.{name}" for name in options}
    assert len({group.label for group in found.groups}) == 3


def test_other_settings_are_shown_and_options_of_the_method_are_not(tmp_path):
    federation = {"sites": 10, "rounds": 30, "ownership": "4:4:2"}
    folders = [
        run(tmp_path / "a", "fin"),
        run(tmp_path / "b", "zero_fill", config={"federation": federation, "method": {"name": "zero_fill", "x": 1}}),
    ]
    found = compare_runs(folders)
    assert {setting.key: dict(setting.values) for setting in found.settings} == {
        "federation.rounds": {"fin": "18", "zero_fill": "30"}
    }
    assert len(found.differences) == 6  # the same patients all the same: paired, and told


# -- pairs ----------------------------------------------------------------------------------------------------


def test_differences_are_paired_by_seed_against_zero_filling_wherever_it_stands(seeds):
    found = compare_runs(seeds)
    assert {(item.label, item.against) for item in found.differences} == {("fin", "zero_fill")}
    expected = stats.ttest_rel(list(FIN.values()), list(ZERO.values()))
    first = found.differences[0]
    assert first.paired.n == 3
    assert first.paired.difference == pytest.approx(np.mean([FIN[s] - ZERO[s] for s in FIN]))
    assert first.paired.t_p == pytest.approx(expected.pvalue)
    assert [item.holm_p for item in found.differences] == list(holm([item.paired.t_p for item in found.differences]))
    assert {item.kind for item in found.differences} == {"auroc", "auprc"}


def test_seeds_that_one_row_lacks_are_left_out_of_a_pair(seeds):
    found = compare_runs(seeds[:-1])
    assert {item.paired.n for item in found.differences} == {2}


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 3.0},
        {"epsilon": None},
        {"ownership": "8:0:2"},
        {"config": {"data": {"name": "synthetic_cxr", "patients": 400}}},
        {"seed": 1},
    ],
)
def test_runs_on_other_patients_or_under_another_privacy_are_not_paired(tmp_path, change):
    folders = [run(tmp_path / "a", "fin"), run(tmp_path / "b", "zero_fill", **change)]
    found = compare_runs(folders)
    assert found.differences == ()
    assert found.unpaired == ("fin", "zero_fill")
    assert "nothing is paired" in headline(found)


def test_a_row_that_its_public_fraction_alone_keeps_from_a_pair_is_told_the_way_out(tmp_path):
    """CAR-MFL needs a public set and the others do not, so a comparison easily ends without a pair for it."""

    def of(name, fraction, **more):
        federation = {"sites": 10, "rounds": 18, "ownership": "4:4:2", "public_fraction": fraction}
        return run(tmp_path / f"{name}-{fraction}", name, config={"federation": federation}, **more)

    apart = [of("fin", 0.0), of("zero_fill", 0.0), of("car_mfl", 0.1)]
    said = [remark for remark in compare_runs(apart).remarks if "public_fraction" in remark]
    assert said == [
        "federation.public_fraction alone keeps rows from being paired (0 in fin and zero_fill; 0.1 in car_mfl): "
        "give all of them federation.public_fraction=0.1, also where the method needs no public set: it decides who is "
        "where."
    ]
    code, out, _ = invoke(*apart)
    assert code == 0
    assert "give all of them federation.public_fraction=0.1" in " ".join(out.split())
    together = [of("fin", 0.1), of("zero_fill", 0.1), apart[2]]
    found = compare_runs(together)
    assert found.unpaired == ()
    assert not any("public_fraction" in remark for remark in found.remarks)
    # Another seed or another budget as well: the fraction alone would not help.
    assert not any("public_fraction" in r for r in compare_runs([apart[1], of("car_mfl", 0.2, seed=1)]).remarks)
    assert not any("public_fraction" in r for r in compare_runs([apart[1], of("car_mfl", 0.3, epsilon=3.0)]).remarks)


def test_a_page_that_names_a_folder_or_lies_in_none_is_refused_before_anything_is_compared(tmp_path, seeds):
    for page, why in ((tmp_path, "it is a folder. Name a file"), (tmp_path / "no" / "page.html", "there is no folder")):
        code, out, said = invoke(*seeds, "--page", page)
        assert (code, out) == (2, "")
        assert why in said


def test_without_privacy_its_unused_options_do_not_part_a_pair(tmp_path):
    off = {"mode": "off", "epsilon": 3.0, "delta": 1e-5}
    folders = [
        run(tmp_path / "a", "fin", epsilon=None),
        run(tmp_path / "b", "zero_fill", epsilon=None, config={"privacy": off}),
    ]
    assert len(compare_runs(folders).differences) == 6


def test_a_pair_of_one_seed_supports_no_claim(tmp_path):
    found = compare_runs([run(tmp_path / "a", "fin", auroc=0.9), run(tmp_path / "b", "zero_fill", auroc=0.7)])
    assert {item.verdict for item in found.differences} == {"unknown"}
    assert "nothing can be told from noise" in headline(found)
    assert any("run more seeds" in remark for remark in found.remarks)


def test_a_difference_within_noise_is_not_counted_as_one(tmp_path):
    scattered = {0: 0.85, 1: 0.80, 2: 0.83}
    folders = [run(tmp_path / f"f{seed}", "fin", seed, auroc=auroc) for seed, auroc in scattered.items()]
    folders += [run(tmp_path / f"z{seed}", "zero_fill", seed, auroc=auroc) for seed, auroc in ZERO.items()]
    assert headline(compare_runs(folders)).startswith("0 of 3 paired differences")


# -- what is shown --------------------------------------------------------------------------------------------


def test_the_terminal_shows_scores_imputation_rates_costs_and_contributors(seeds):
    code, out, _ = invoke(*seeds)
    assert code == 0
    for title in ("Macro AUROC", "Macro AUPRC", "Paired differences in AUROC", "Imputed features", "What it costs"):
        assert title in out
    assert re.search(r"fin +0\.842 \[\.832, \.852\]", out)
    assert re.search(r"image +fin +0\.910 \(0\.780\) +0\.430 \(1\.000\)", out)
    assert re.search(r"any +zero_fill +0\.821 +0\.803", out)
    assert re.search(r"zero_fill +18 238 +123 k +0 +0 +153\.4 kB", out.replace("\u202f", " "))
    assert re.search(r"translator\.image_to_text +2, floor 2 \(fin\)", out)


def test_json_is_finite_and_has_every_run(seeds):
    code, out, _ = invoke(*seeds, "--json")
    assert code == 0
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert found["schema"] == "secure_fed.run_comparison/1"
    assert [len(row["runs"]) for row in found["rows"]] == [3, 3]
    run_ = found["rows"][0]["runs"][0]
    assert run_["cost"]["parameters_total"] == 19_294
    assert run_["contributors"] == {"encoder.image": 6, "fusion": 10, "translator.image_to_text": 2}
    assert run_["imputation"]["text"]["constant_mean"]["rank"] == 0.5
    assert len(run_["missing_rates"]) == 15


def test_the_page_stands_alone_and_escapes_what_it_shows(tmp_path, seeds):
    bad = "<script>alert(1)</script>"
    config = {"federation": {"sites": 10, "rounds": 18, "ownership": "4:4:2", "note": bad}}
    page = write_page(compare_runs([*seeds, run(tmp_path / "bad", "fin", config=config)]), tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    assert bad not in text
    assert "&lt;script&gt;" in text
    assert "default-src 'none'" in text
    assert not re.search(r"<script|src=|href=", text)
    assert text.count("<svg") == 2 * (2 + 3)  # scores and differences; image, text and any missing; wide and narrow


def test_what_both_of_a_pair_have_in_common_is_said_once_in_the_picture(tmp_path):
    folders = [
        run(tmp_path / f"{method}-{epsilon}", method, epsilon=epsilon)
        for method in ("fin", "zero_fill")
        for epsilon in (8.0, 3.0)
    ]
    picture = difference_plot(compare_runs(folders))
    assert "fin − zero_fill, ε 3, no text" in picture
    assert "fin, ε 3 −" not in picture


def test_the_page_warns_of_runs_without_privacy(tmp_path):
    folders = [
        run(tmp_path / "a", "fin", epsilon=None),
        run(tmp_path / "b", "zero_fill", changes={"insecure_reproducible": True}),
    ]
    text = write_page(compare_runs(folders), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "privacy=off" in text
    assert "insecure_reproducible=true" in text


def test_a_long_name_keeps_its_end_which_tells_the_views_apart():
    views = [f"fin, {'option ' * 20}− zero_fill, {view}" for view in ("all present", "no image", "no text")]
    assert len({shortened(name) for name in views}) == 3
    assert {len(shortened(name)) for name in views} == {58}
    assert shortened("fin − zero_fill, no image") == "fin − zero_fill, no image"


def test_rows_beyond_the_number_of_colours_have_other_marks_and_dashes(tmp_path):
    """Twelve methods are compared: zero_fill and vae would both be a blue line with blue dots."""
    names = [f"method_{number:02d}" for number in range(12)]
    found = compare_runs([run(tmp_path / name, name, auroc=0.8 + 0.001 * n) for n, name in enumerate(names)])
    for picture in (score_plot(found), rate_plot(found, "image")):
        for svg in re.findall(r"<svg.*?</svg>", picture):
            looks = {}
            for kind, class_, title in re.findall(
                r'<(circle|polygon|polyline) class="([^"]*)".*?><title>(method_\d\d)', svg
            ):
                looks.setdefault(title, set()).add((kind, class_))
            assert len(looks) == 12
            assert len({frozenset(look) for look in looks.values()}) == 12


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [420, 1280])
def test_pictures_are_read_without_scrolling_sideways(seeds, tmp_path, width):
    """Every figure is as wide as its place or narrower, and none of its words smaller than ten pixels."""
    names = ["modality_dropout", "uniform_fill", "generative"]
    many = [run(tmp_path / name, name, epsilon=1.0 + n) for n, name in enumerate(names)]
    page = write_page(compare_runs([*seeds, *many]), tmp_path / "page.html")
    html = re.sub(r"<meta http-equiv=.*?>", "", page.read_text(encoding="utf-8"))
    measure = """
    const shown = [...document.querySelectorAll('figure svg')].filter(svg => svg.getBoundingClientRect().width);
    const words = shown.flatMap(svg => [...svg.querySelectorAll('text')]);
    const size = t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a;
    const over = shown.map(svg => svg.parentElement.scrollWidth - svg.parentElement.clientWidth);
    const out = words.map(t => t.getBoundingClientRect()).filter(b => b.left < 0 || b.right > innerWidth).length;
    const least = Math.min(...words.map(size));
    document.title = `${shown.length} shown, ${Math.max(...over)} over, ${out} out, ${least} least`;
    """
    page.write_text(html.replace("</body>", f"<script>{measure}</script></body>"), encoding="utf-8")
    done = browse(page.as_uri(), tmp_path / "profile", f"--window-size={width},900", "--dump-dom")
    shown, over, out, least = re.search(
        r"<title>(\d+) shown, (\d+) over, (\d+) out, ([\d.]+) least", done.stdout
    ).groups()
    assert (shown, over, out) == ("5", "0", "0")
    assert float(least) >= 10


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [420, 1280])
def test_no_line_of_the_page_sticks_out_of_the_window(seeds, tmp_path, width):
    many = [run(tmp_path / f"many{n}", "a_method_with_a_long_name", epsilon=1.0 + n) for n in range(8)]
    page = write_page(compare_runs([*seeds, *many]), tmp_path / "page.html")
    html = re.sub(r"<meta http-equiv=.*?>", "", page.read_text(encoding="utf-8"))
    measure = "document.title = 'wide ' + document.documentElement.scrollWidth + ' of ' + window.innerWidth"
    page.write_text(html.replace("</body>", f"<script>{measure}</script></body>"), encoding="utf-8")
    done = browse(page.as_uri(), tmp_path / "profile", f"--window-size={width},900", "--dump-dom")
    wide, inner = map(int, re.search(r"<title>wide (\d+) of (\d+)</title>", done.stdout).groups())
    assert wide <= inner
