"""sweep.html says what the numbers allow and no more, on one page that loads nothing and shows what is missing."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
from example import EPSILON, METHOD, OWNERSHIP, SEED, example_sweep

from secure_fed.report import formats
from secure_fed.sweep import page_data
from secure_fed.sweep.contrasts import champion, comparisons
from secure_fed.sweep.metrics import name_of, note_of
from secure_fed.sweep.page import script_hash, write_page
from secure_fed.sweep.page_data import embedded, frontier
from secure_fed.sweep.page_tables import best_rows, glance_rows, number_rows, phase_table
from secure_fed.sweep.page_top import notices
from secure_fed.sweep.price import price_of
from secure_fed.sweep.record import AxisRecord
from secure_fed.sweep.statistics import mean_interval, paired
from secure_fed.sweep.summary_text import findings, lead
from secure_fed.sweep.table import read_results

HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)> <!--'


class Page(HTMLParser):
    """Tags, texts of scripts, and the words outside of them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n\u00a0]+", " ", " ".join(self.words))

    @property
    def data(self):
        return json.loads(self.scripts[0])

    @property
    def policy(self) -> str:
        return next(a["content"] for _, a in self.tags if a.get("http-equiv") == "Content-Security-Policy")


def page(folder) -> Page:
    return Page(write_page(folder).read_text(encoding="utf-8"))


def made(tmp_path, **changes):
    """Results of an example without loose ends, unless they are asked for."""
    return read_results(example_sweep(tmp_path / "sweep", **{"broken": 0, "missing": 0, **changes}))


def said(results) -> dict[str, str]:
    """The summary: question -> answer."""
    picture = frontier(results)
    found = findings(results, picture, comparisons(results, picture))
    return {finding.title: " ".join(finding.sentences) for finding in found}


def renamed(results, **names):
    """The same results with other names of factors, as a grid of one's own has them; `page` and `axes` follow."""

    def row(cell):
        return cell.model_copy(update={"factors": {names.get(key, key): value for key, value in cell.factors.items()}})

    manifest = results.manifest
    axes = tuple(AxisRecord(name=names.get(axis.name, axis.name), values=axis.values) for axis in manifest.axes)
    changed = manifest.model_copy(update={"axes": axes, "cells": tuple(map(row, manifest.cells))})
    parts = {name: tuple(map(row, getattr(results, name))) for name in ("finished", "broken", "missing")}
    return dataclasses.replace(results, manifest=changed, **parts)


def without(results, factor, value):
    """The same results where a factor was fixed to one value instead of being swept."""

    def kept(rows):
        return tuple(
            row.model_copy(update={"factors": {k: v for k, v in row.factors.items() if k != factor}})
            for row in rows
            if row.factors.get(factor, value) == value
        )

    manifest = results.manifest
    axes = tuple(axis for axis in manifest.axes if axis.name != factor)
    changed = manifest.model_copy(update={"axes": axes, "cells": kept(manifest.cells)})
    parts = {name: kept(getattr(results, name)) for name in ("finished", "broken", "missing")}
    return dataclasses.replace(results, manifest=changed, **parts)


def drawn_as(results, **fields):
    """The same results with another `page` in the manifest."""
    page = results.manifest.page.model_copy(update=fields)
    return dataclasses.replace(results, manifest=results.manifest.model_copy(update={"page": page}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return example_sweep(tmp_path_factory.mktemp("page") / "sweep")


@pytest.fixture(scope="module")
def good(folder) -> Page:
    return page(folder)


# -- self-contained ------------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_anywhere(good):
    loading = {"src", "xlink:href", "action", "data", "poster", "srcset", "background"}
    assert [(tag, name) for tag, attributes in good.tags for name in attributes if name in loading] == []
    assert not {"link", "iframe", "object", "embed", "img", "base"} & {tag for tag, _ in good.tags}
    assert not re.search(r"url\((?!#)|@import|https?://|fetch\(|XMLHttp|import\(", good.html)


def test_every_link_leads_to_a_report_beside_the_page(good, folder):
    links = [attributes["href"] for _, attributes in good.tags if "href" in attributes]
    assert links
    assert all(re.fullmatch(r"cells/[0-9a-f]{16}/report\.html", link) and (folder / link).is_file() for link in links)


def test_the_policy_names_the_one_script_by_its_hash_and_forbids_everything_else(good):
    assert len(good.scripts) == 2
    assert good.policy.startswith("default-src 'none';")
    assert re.findall(r"script-src ([^;]*)", good.policy) == [f"'sha256-{script_hash(good.scripts[1])}'"]
    assert "base-uri 'none'" in good.policy


def test_no_handler_and_no_script_parses_text_as_html(good):
    assert [name for _, attributes in good.tags for name in attributes if name.startswith("on")] == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", good.scripts[1])


def test_written_twice_the_page_is_the_same(folder):
    assert write_page(folder).read_bytes() == write_page(folder).read_bytes()


# -- names that would do harm --------------------------------------------------------------------------------


def test_hostile_names_stay_text_everywhere(tmp_path):
    found = page(
        example_sweep(
            tmp_path / "sweep",
            name=HOSTILE,
            methods=("zero_fill", HOSTILE),
            ownerships=(HOSTILE,),
            data=HOSTILE,
            arguments=(HOSTILE,),
            base=(HOSTILE,),
            versions={HOSTILE: HOSTILE},
            epsilons=(1.0, 3.0),
        )
    )
    assert len(found.scripts) == 2
    assert "img" not in {tag for tag, _ in found.tags}
    assert found.data["series"][1] == HOSTILE
    assert HOSTILE in found.text


@pytest.mark.parametrize("text", ["</script>", "<!--", "<script", "]]>", "&lt;", "\u2028\u2029", "a\"b\\c'"])
def test_json_in_the_page_ends_no_element_and_comes_back_whole(text):
    inside = embedded({text: [text, 1.5, None]})
    assert not set("<>&\u2028\u2029") & set(inside)
    assert json.loads(inside) == {text: [text, 1.5, None]}


# -- numbers -------------------------------------------------------------------------------------------------


def test_the_pages_json_holds_each_groups_interval_over_its_seeds(good, folder):
    results, data = read_results(folder), good.data
    assert data["cells"]["id"] == [cell.id for cell in results.finished]
    group = next(g for g in data["groups"] if g["series"] == 2 and g["x"] == 3 and g["panels"] == [0])
    scores = [
        cell.metrics["auroc_macro"]
        for cell in results.finished
        if cell.factors == {EPSILON: 8.0, METHOD: "fin", OWNERSHIP: "5:1:4", SEED: cell.seed}
    ]
    expected = mean_interval(scores, 0.95)
    assert group["stats"]["auroc_macro"] == pytest.approx(
        [expected.mean, expected.low, expected.high, 3, expected.sd], abs=1e-6
    )


def test_a_reference_stands_where_its_own_factors_place_it(folder):
    picture = frontier(read_results(folder))
    private_off = [group for group in picture.references if group.kind == "non_private"]
    alone = [group for group in picture.references if group.kind == "single_site"]
    assert {(group.x, group.series, group.panels) for group in private_off} == {
        (None, series, (panel,)) for series in range(3) for panel in range(2)
    }
    assert {(group.x, group.series, group.panels) for group in alone} == {(x, None, (0, 1)) for x in range(4)}


def test_axis_says_its_unit_its_delta_and_that_it_is_logarithmic(good):
    assert good.data["axis"]["label"] == "privacy budget ε of each site, δ = 10⁻⁵, log scale"
    assert good.data["axis"]["log"]


def test_the_caption_says_what_lines_and_bands_are(good):
    assert "Lines join means; what lies between was not run" in good.text
    assert "A band is the 95 % interval of the mean (Student's t over seeds)" in good.text


def test_the_numbers_of_the_picture_carry_the_epsilon_that_was_spent_rounded_up(folder):
    results = read_results(folder)
    row = next(row for row in number_rows(results, frontier(results)) if (row.line, row.x) == ("zero_fill", "3"))
    spent = max(c.epsilon_spent for c in results.finished if c.method == "zero_fill" and c.factors.get(EPSILON) == 3)
    assert row.spent == formats.epsilon(spent)
    assert float(row.spent) >= spent
    assert len(row.against) == 2


def test_best_rows_name_the_runner_up_and_the_paired_difference(tmp_path):
    results = made(tmp_path, noise=0.002, alike=True, ownerships=("5:1:4",))
    rows = best_rows(results, frontier(results))
    last = rows[-1]
    assert (last.x, last.line, last.runner_up, last.verdict) == ("8", "fin", "modality_dropout", "beyond noise")
    scores = {
        method: {
            c.seed: c.metrics["auroc_macro"]
            for c in results.finished
            if c.factors.get(EPSILON) == 8 and c.method == method
        }
        for method in ("fin", "modality_dropout")
    }
    assert f"{paired(scores['modality_dropout'], scores['fin']).difference:+.3f}" in last.difference


def test_phases_show_their_share_and_their_epsilon_alone_by_target(folder):
    table = phase_table(read_results(folder))
    assert table.targets == ("0.5", "1", "3", "8")
    shares = {(method, phase): share for method, phase, _, _, share, *_ in table.rows}
    assert shares == {
        ("zero_fill", "classify"): "100 %",
        ("modality_dropout", "classify"): "100 %",
        ("fin", "classify"): "83 %",
        ("fin", "translate"): "17 %",
    }


# -- sentences -----------------------------------------------------------------------------------------------


def test_a_gain_beyond_noise_is_told_with_its_size(tmp_path):
    results = made(tmp_path, alike=True, noise=0.01, gain={"fin": 0.02}, ownerships=("5:1:4",))
    answer = said(results)["Whether imputation helps"]
    picture = frontier(results)
    for x, epsilon in ((2, 3), (3, 8)):
        plain, _, fin = (group.scores("auroc_macro") for group in picture.at(0, x))
        assert f"{paired(plain, fin).difference:.3f} at ε = {epsilon}" in answer
    assert "3 seeds" in answer


def test_a_difference_whose_interval_holds_zero_is_no_visible_difference(tmp_path):
    results = made(tmp_path, gain={}, noise=0.01, ownerships=("5:1:4",), seeds=(0, 1, 2, 3))
    picture = frontier(results)
    told = comparisons(results, picture)
    found = [result for comparison in told for result in comparison.results[0]]
    verdicts = [verdict for row in glance_rows(picture, told) for _, _, verdict in row.cells]
    assert {"alike", "lower", "higher"} == set(verdicts)
    for result, verdict in zip(found, verdicts, strict=True):
        assert (verdict == "alike") == (result.low <= 0 <= result.high)
    answer = said(results)["Whether imputation helps"]
    assert "no visible difference at ε = " in answer
    assert "could hide in the noise" in answer
    assert "4 seeds" in answer


def test_what_privacy_costs_is_told_against_the_same_setting_without_it(tmp_path):
    results = made(tmp_path, alike=True, ownerships=("5:1:4",), noise=0.01)
    answer = said(results)["What privacy costs"]
    picture = frontier(results)
    line = champion(picture, 0, "auroc_macro")
    reference = picture.reference("non_private", line[0])
    cost = paired(reference.scores("auroc_macro"), line[0].scores("auroc_macro")).difference
    assert answer.startswith("Against the same without privacy, fin is lower by ")
    assert f"{-cost:.3f} at ε = 0.5" in answer


def test_panels_that_disagree_are_told_apart(tmp_path):
    results = made(tmp_path, noise=0.0, alike=True)
    better = tuple(
        cell.model_copy(update={"metrics": {**cell.metrics, "auroc_macro": 0.9 + 0.001 * cell.seed}})
        if cell.kind == "single_site" and cell.factors[EPSILON] == 8
        else cell.model_copy(update={"metrics": {**cell.metrics, "auroc_macro": 0.95 + 0.001 * cell.seed}})
        if cell.ownership == "2:2:6" and cell.factors.get(EPSILON) == 8 and cell.kind == "grid"
        else cell
        for cell in results.finished
    )
    answer = said(dataclasses.replace(results, finished=better))["Whether joining pays"]
    assert re.search(
        r"at ε = 8 it is lower by 0\.\d+ with ownership 5:1:4 and higher by 0\.050 with ownership 2:2:6", answer
    )


def test_the_summary_counts_its_comparisons_and_what_chance_would_show(tmp_path):
    results = made(tmp_path, ownerships=("5:1:4",))
    told = comparisons(results, frontier(results))
    number = sum(len(comparison.known) for comparison in told)
    assert number == 4 + 4 * 2 + 4
    answer = said(results)["How far to trust this"]
    assert f"of {number} differences here" in answer
    assert f"chance would still show about {0.05 * number:.1f}" in answer
    assert "After Holm's correction" in answer


def test_one_seed_says_nothing_about_noise(tmp_path):
    results = made(tmp_path, seeds=(0,))
    summary = said(results)
    assert "on one seed: that says nothing about noise" in summary["What privacy costs"]
    assert "single common seed" in summary["How far to trust this"]
    assert not re.search("visible|Holm", " ".join(summary.values()))
    assert {row.verdict for row in best_rows(results, frontier(results))} == {"not enough common seeds"}
    text = page(results.folder).text
    assert "One seed" not in lead(results, frontier(results))
    assert "(one seed)" in text


def test_the_lead_names_the_best_private_setting_and_its_references(tmp_path):
    results = made(tmp_path, noise=0.0, alike=True, ownerships=("5:1:4",))
    words = lead(results, frontier(results))
    assert words.startswith("The best private setting is ε = 8, method fin, ownership 5:1:4: AUROC, macro 0.8")
    assert "A site alone reaches" in words


# -- sweeps of another shape ---------------------------------------------------------------------------------


def test_without_references_no_sentence_and_no_column_speaks_of_them(tmp_path):
    results = made(tmp_path, references=(), ownerships=("5:1:4",))
    assert set(said(results)) == {"What ran", "Whether imputation helps", "How far to trust this"}
    found = page(results.folder)
    assert found.data["kinds"] == []
    assert "a site alone" not in found.text


def test_without_an_axis_of_epsilon_methods_stand_side_by_side(tmp_path):
    results = without(made(tmp_path), EPSILON, 3.0)
    layout = frontier(results).layout
    assert (layout.x, layout.series, layout.panels, layout.numeric, layout.joined) == (
        METHOD,
        None,
        (OWNERSHIP,),
        False,
        False,
    )
    summary = said(results)
    assert re.search(r"Against zero_fill, fin (is|shows) ", summary["Whether imputation helps"])
    assert re.search(r"for method (zero_fill|modality_dropout|fin)", summary["What privacy costs"])


def test_a_single_line_is_compared_along_its_numbers(tmp_path):
    results = made(tmp_path, alike=True, noise=0.01, references=(), methods=("fin",), ownerships=("5:1:4",))
    summary = said(without(without(results, METHOD, "fin"), OWNERSHIP, "5:1:4"))
    assert "Against ε = 0.5, ε = 8 is higher by " in summary["What ε changes"]


def test_where_only_the_seed_varies_there_is_one_place(tmp_path):
    results = made(tmp_path, references=(), methods=("fin",), ownerships=("5:1:4",), epsilons=(3.0,))
    for name, value in ((EPSILON, 3.0), (METHOD, "fin"), (OWNERSHIP, "5:1:4")):
        results = without(results, name, value)
    picture = frontier(results)
    assert [(group.x, group.series, group.panels) for group in picture.grid] == [(0, None, (0,))]
    assert said(results).keys() == {"What ran"}


def test_where_lines_are_budgets_each_is_told_what_privacy_costs_it(tmp_path):
    results = drawn_as(made(tmp_path, alike=True, noise=0.01, ownerships=("5:1:4",)), x=METHOD, series=EPSILON)
    answer = said(results)["What privacy costs"]
    for epsilon in ("0.5", "1", "3", "8"):
        assert f"Against the same without privacy, ε = {epsilon} is lower by " in answer


def test_choices_along_x_are_compared_on_the_best_line(tmp_path):
    results = without(made(tmp_path, alike=True, noise=0.01), EPSILON, 3.0)
    results = drawn_as(results, x=OWNERSHIP, series=METHOD, panels=None)
    answer = said(results)["What ownership changes"]
    assert answer.startswith("Against ownership 5:1:4, ownership 2:2:6 (on fin) is lower by 0.015")


def test_panels_are_compared_with_the_first_at_each_x(tmp_path):
    answer = said(made(tmp_path, alike=True, noise=0.01))["What ownership changes"]
    assert answer.startswith("Against ownership 5:1:4, ownership 2:2:6 (on fin) is lower by 0.015 at ε = 0.5")
    assert "0.015 at ε = 8" in answer


def test_phases_are_told_apart_by_a_split_that_was_swept(tmp_path):
    results = renamed(made(tmp_path, methods=("fin",)), **{OWNERSHIP: "privacy.budget_shares.translate"})
    methods = {row[0] for row in phase_table(results).rows}
    assert methods == {"fin, translate 5:1:4", "fin, translate 2:2:6"}


def test_every_further_factor_gets_panels_of_its_own(tmp_path):
    results = drawn_as(renamed(made(tmp_path), **{OWNERSHIP: "training.clip"}), panels=None)
    layout = frontier(results).layout
    assert layout.panels == ("training.clip",)
    assert len(layout.places) == 2


def test_an_axis_that_is_not_epsilon_is_named_by_its_key_and_keeps_a_linear_scale(tmp_path):
    results = drawn_as(
        renamed(made(tmp_path, references=()), **{EPSILON: "training.max_grad_norm"}),
        x="training.max_grad_norm",
        log_x=False,
    )
    layout = frontier(results).layout
    assert (layout.numeric, layout.log, layout.joined) == (True, False, True)
    assert page_data.axis_label(results, layout) == "max grad norm"


def test_a_page_factor_that_is_not_swept_is_replaced_by_one_that_is(tmp_path):
    results = drawn_as(made(tmp_path), x="federation.sites")
    assert frontier(results).layout.x == EPSILON


def test_one_place_on_the_axis_has_whiskers_and_a_factor_with_one_value_no_panel(tmp_path):
    results = made(tmp_path, epsilons=(3.0,), ownerships=("5:1:4",), references=())
    layout = frontier(renamed(results, **{OWNERSHIP: "training.clip"})).layout
    assert (layout.joined, layout.panels, layout.places) == (False, (), ((),))


def test_a_reference_may_stand_where_the_grid_has_no_cell(tmp_path):
    results = made(tmp_path, search_trials=12)

    def kept(rows):
        return tuple(row for row in rows if row.kind != "grid" or row.factors[EPSILON] != 8)

    manifest = results.manifest.model_copy(update={"cells": kept(results.manifest.cells)})
    picture = frontier(dataclasses.replace(results, manifest=manifest, finished=kept(results.finished)))
    assert picture.layout.xs == (0.5, 1.0, 3.0, 8.0)
    assert {group.x for group in picture.references if group.kind == "single_site"} == {0, 1, 2, 3}
    assert {group.x for group in picture.grid} == {0, 1, 2}


def test_a_search_joins_no_marks(tmp_path):
    results = made(tmp_path, search_trials=12, references=())
    assert not frontier(results).layout.joined


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("auroc_macro", "AUROC, macro"),
        ("auroc_macro_missing.image", "AUROC, no image"),
        ("auroc.Edema", "AUROC of Edema"),
        ("auprc_macro", "AUPRC, macro"),
        ("auprc_macro_missing.text", "AUPRC, no text"),
        ("auroc_rate.image.0.25", "AUROC, image missing in 25 % of records"),
        ("auroc_rate.any.1", "AUROC, one modality missing in 100 % of records"),
        ("imputation_mse_over_variance.text", "error over variance of imputed text, less is better"),
        ("auroc_macro_federated.image+text", "AUROC at the sites, from image and text"),
        ("something_new", "something_new"),
    ],
)
def test_scores_are_named_for_people(metric, label):
    assert name_of(metric) == label
    assert label.split(",")[0] in note_of(metric)


# -- what is wrong stands on top -----------------------------------------------------------------------------


def above(folder) -> str:
    html = write_page(folder).read_text(encoding="utf-8")
    return Page(html[: html.index("<h1>")]).text


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"insecure_reproducible": True}, "Insecure and reproducible. In all 102 cells noise"),
        ({"secagg": "off"}, "Secure aggregation is off. In all 72 cells of the grid"),
        ({}, "References without privacy. 18 reference cells ran without privacy"),
        ({"broken": 2, "missing": 3}, "Not all cells are here. 2 cells broke and 3 cells have not run yet"),
    ],
)
def test_warnings_stand_above_everything_else(tmp_path, changes, warned):
    assert warned in above(made(tmp_path, **changes).folder)


def test_cells_of_the_grid_without_privacy_are_a_danger(tmp_path):
    results = made(tmp_path)
    off = tuple(
        cell.model_copy(update={"privacy": "off", "epsilon_spent": None, "charges": ()})
        if cell.kind == "grid"
        else cell
        for cell in results.finished
    )
    warned = notices(dataclasses.replace(results, finished=off), price_of(results))
    assert (warned[0].level, warned[0].title) == ("danger", "Privacy is off")


def test_a_cell_above_its_budget_is_a_danger(tmp_path):
    results = made(tmp_path)
    over = (results.finished[0].model_copy(update={"epsilon_spent": 0.51}), *results.finished[1:])
    warned = notices(dataclasses.replace(results, finished=over), price_of(results))
    assert "1 of 102 cells spent more" in warned[0].text


def test_void_runs_show_no_epsilon_as_if_it_protected(tmp_path):
    found = page(made(tmp_path, insecure_reproducible=True).folder)
    assert set(found.data["cells"]["spent"]) == {None}


def test_broken_and_missing_cells_are_shown_with_their_errors(good):
    assert "ε = 8, method fin, ownership 2:2:6, seed 1: BudgetExhausted" in re.sub(r" +", " ", good.text)
    assert "1 of 10 sites have budget and policy for this run" in good.text
    assert "Traceback (most recent call last)" in good.text
    assert "Not run yet: ε = 8, method fin, ownership 2:2:6, seed 2" in good.text


def test_a_sweep_of_which_nothing_has_finished_is_still_a_page(tmp_path):
    results = example_sweep(
        tmp_path / "sweep",
        references=(),
        epsilons=(1.0,),
        methods=("fin",),
        ownerships=("5:1:4",),
        seeds=(0, 1),
        broken=1,
        missing=1,
    )
    found = page(results)
    assert "No cell has finished yet" in found.text
    assert "BudgetExhausted" in found.text


def test_the_price_of_tuning_stands_on_the_page_and_says_that_selection_is_by_rdp(good, folder):
    price = price_of(read_results(folder))
    assert formats.epsilon(price.composed_private) in good.text
    assert "RDP only" in good.text
    assert all(re.sub(r"\s+", " ", sentence) in good.text for sentence in price.statement)


def test_repeat_select_says_that_the_page_must_stay_inside(tmp_path):
    results = made(tmp_path, tuning="repeat_select", references=(), draws=(3, 5, 3, 9))
    assert "Keep this page inside" in above(results.folder)


def test_how_it_was_run_can_be_repeated(good):
    assert "secure-fed sweep sweep=privacy_utility" in good.text
    assert "0.1.0+0123456789abcdef" in good.text
    assert "privacy.epsilon = 0.5, 1, 3, 8" in good.text
