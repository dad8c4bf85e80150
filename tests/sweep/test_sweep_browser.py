"""A real browser draws sweep.html, filters, explains and links its marks, without an error or a request.

A script is added to a copy of the page, whose policy stays in force and names that script too; it acts as a reader
would and writes what it sees into the page. Skipped where there is no browser.
"""

from __future__ import annotations

import json
import re

import pytest
from example import example_sweep
from headless import BROWSER, browse

from secure_fed.sweep.page import script_hash, write_page
from secure_fed.sweep.table import read_results

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]

READER = """
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);
const press = (text) => all(".controls button").find((button) => button.textContent.trim() === text).click();
const means = (panel, colour) => all(`figure[data-panel="${panel}"] .mean.${colour}`);
const top = (element) => {
  const mark = one("circle, .mark", element);
  mark.scrollIntoView({ block: "center" });
  const box = mark.getBoundingClientRect();
  return document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
};
const hover = (element) => top(element).dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
const key = (name) => {
  const event = new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true });
  document.activeElement.dispatchEvent(event);
};
const tip = (panel) => {
  const found = one(`figure[data-panel="${panel}"] .tip`);
  return found.hidden ? null : [...found.children].map((line) => line.textContent);
};
const seen = (value) => {
  const made = document.createElement("pre");
  made.id = "seen";
  made.textContent = JSON.stringify(value);
  document.body.append(made);
};
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything there: three lines, two panels, both references, a broken and a missing cell."""
    made = example_sweep(tmp_path_factory.mktemp("browser") / "sweep")
    write_page(made)
    return made


@pytest.fixture
def act(folder, tmp_path):
    """Run a reader's script in a copy beside the page; returns what it saw, having checked that nothing went wrong."""

    def run(script, *arguments, address="", page=folder):
        script = f"{{{READER}{script}}}"
        html = (page / "sweep.html").read_text(encoding="utf-8")
        html = html.replace("script-src ", f"script-src 'sha256-{script_hash(script)}' ", 1)
        copy = page / f"{tmp_path.name}.html"
        copy.write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        done = browse(copy.as_uri() + address, tmp_path / "profile", *arguments, "--dump-dom")
        assert not re.search(r"CONSOLE|Refused to", done.stderr), done.stderr
        found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
        return (
            json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
            if found
            else done.stdout
        )

    return run


def data_of(folder):
    html = (folder / "sweep.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="sweep-data">(.*?)</script>', html)[1])


def test_chromium_draws_every_mark_without_an_error_or_a_request(act, folder):
    seen = act(
        "seen([all('figure .cell-dot').length, all('figure .mean').length, all('figure polygon.band').length,"
        " performance.getEntriesByType('resource').length])"
    )
    results = read_results(folder)
    shared = sum(cell.kind == "single_site" for cell in results.finished)  # drawn in both panels
    assert seen == [len(results.finished) + shared, 24 + 6 + 4 * 2, 6 + 2, 0]


def test_a_method_that_is_switched_off_leaves_every_panel_and_the_others_stay_where_they_are(act):
    seen = act(
        "const before = means(0, 'c0').map((mark) => one('.mark', mark).getAttribute('d'));"
        "press('fin');"
        "seen([means(0, 'c2').length, means(1, 'c2').length, all('figure .line.c2').length,"
        " means(0, 'c0').map((mark) => one('.mark', mark).getAttribute('d')).join() === before.join(),"
        " all('button[aria-pressed=false][data-series]').map((button) => button.textContent.trim()), location.hash])"
    )
    assert seen == [0, 0, 0, True, ["fin"], "#off=fin"]


def test_a_method_comes_back_when_its_button_is_pressed_again(act):
    assert act("press('fin'); press('fin'); seen([means(0, 'c2').length, location.hash])") == [5, ""]


def test_references_can_be_switched_off(act):
    seen = act(
        "press('a site alone'); press('without privacy');seen([all('.mean.neutral').length, all('.line.level').length])"
    )
    assert seen == [0, 0]


def test_hover_over_a_mean_says_score_interval_seeds_and_the_epsilon_spent(act, folder):
    found = act("hover(means(0, 'c2')[2]); seen([tip(0), tip(1)])")
    data = data_of(folder)
    group = next(g for g in data["groups"] if g["series"] == 2 and g["panels"] == [0] and g["x"] == 2)
    mean, low, high, n, sd = group["stats"]["auroc_macro"]
    spent = [data["cells"]["spent"][cell] for cell in group["cells"]]
    assert found[1] is None
    assert found[0][:5] == [
        "fin, ε = 3",
        "ownership 5:1:4",
        f"mean {mean:.3f}",
        f"95 % interval {low:.3f} to {high:.3f} over {n} seeds",
        f"standard deviation {sd:.4f}",
    ]
    assert n == 3
    assert found[0][5].startswith("ε spent ")
    shown = float(re.match(r"ε spent ([0-9.]+)", found[0][5])[1])
    assert min(spent) <= shown <= min(spent) + 0.01  # rounded up
    assert found[0][5].endswith(" of 3")


def test_hover_over_a_run_says_its_seed_and_score_and_leaving_it_takes_the_words_away(act, folder):
    found = act(
        "const dot = one('figure[data-panel=\"1\"] .cell-dot.c0'); const cell = Number(dot.dataset.cell);"
        "one('circle', dot).dispatchEvent(new PointerEvent('pointerover', { bubbles: true })); const said = tip(1);"
        "one('circle', dot).dispatchEvent(new PointerEvent('pointerout', { bubbles: true }));"
        "seen([cell, said, tip(1)])"
    )
    cell, said, after = found
    data = data_of(folder)
    assert said[2] == f"seed {data['cells']['seed'][cell]}: {data['cells']['metrics']['auroc_macro'][cell]:.3f}"
    assert after is None


def test_a_click_on_a_run_opens_its_report(act, folder):
    dom = act(
        "const dot = all('figure .cell-dot').find((dot) => top(dot).closest('a') === dot);"
        "top(dot).dispatchEvent(new MouseEvent('click', { bubbles: true, cancelable: true }));"
    )
    opened = re.search(r"<title>([0-9a-f]{16})</title>", dom)
    assert opened, "the browser did not leave the page for the run's report"
    assert (folder / "cells" / opened[1] / "report.html").is_file()


def test_keys_walk_along_lines_and_enter_pins_links_to_the_reports(act, folder):
    found = act(
        'const stops = all(\'figure[data-panel="0"] [tabindex="0"]\'); stops[0].focus();'
        "key('ArrowRight'); key('ArrowDown'); const there = tip(0)[0]; key('Enter');"
        "const links = all('figure[data-panel=\"0\"] .tip a').map((link) => link.getAttribute('href'));"
        "key('Escape');"
        "seen([stops.length, there, links, tip(0)])"
    )
    stops, there, links, after = found
    assert stops == 1
    assert there == "modality_dropout, ε = 1"
    assert len(links) == 3
    assert all((folder / link).is_file() for link in links)
    assert after is None


def test_the_score_can_be_switched_to_a_missing_modality(act, folder):
    found = act(
        "press('AUROC, no image'); hover(means(0, 'c2')[0]); seen([tip(0)[2], one('[data-metric-name]').textContent])"
    )
    group = next(g for g in data_of(folder)["groups"] if g["series"] == 2 and g["panels"] == [0] and g["x"] == 0)
    assert found == [f"mean {group['stats']['auroc_macro_missing.image'][0]:.3f}", "AUROC, no image"]


def test_the_address_restores_score_and_filters(act):
    found = act(
        "seen([means(0, 'c0').length, means(0, 'c1').length, one('[data-metric-name]').textContent,"
        " all('.mean.neutral').length])",
        address="#metric=auroc_macro_missing.text&off=zero_fill&without=single_site",
    )
    assert found == [0, 5, "AUROC, no text", 0]


def test_an_address_with_names_that_are_not_there_changes_nothing(act):
    found = act(
        "seen([means(0, 'c0').length, one('[data-metric-name]').textContent])",
        address="#metric=x&off=%3Cb%3E&without=y",
    )
    assert found == [5, "AUROC, macro"]


def test_the_table_of_all_cells_sorts_by_number_and_links_each_run(act, folder):
    found = act(
        "one('#all-cells').open = true;"
        "setTimeout(() => {"
        "const head = all('#all-cells th').find((cell) => cell.dataset.key === 'auroc_macro');"
        "const column = () => all('#all-cells tbody tr').map((row) => Number(row.cells[head.cellIndex].textContent));"
        "one('button', head).click(); const up = column(); one('button', head).click();"
        "seen([up, column(), all('#all-cells tbody a').map((link) => link.getAttribute('href'))]); }, 100);"
    )
    rising, falling, links = found
    assert rising == sorted(rising)
    assert falling == sorted(rising, reverse=True)
    assert len(links) == len(read_results(folder).finished)
    assert all((folder / link).is_file() for link in links)


@pytest.mark.parametrize("width", [420, 860, 1280])
def test_nothing_sticks_out_of_the_window(act, width):
    seen = act(
        "all('details').forEach((part) => { part.open = true; });"
        "setTimeout(() => seen([document.documentElement.scrollWidth, window.innerWidth]), 100);",
        f"--window-size={width},900",
    )
    assert seen[0] <= seen[1]


def test_hostile_and_endless_names_stay_text_within_the_window(act, tmp_path):
    hostile = "<img src=x onerror=alert(1)></script>" + "endless_" * 12
    made = example_sweep(tmp_path / "hostile", name=hostile, methods=("zero_fill", hostile), ownerships=(hostile,))
    write_page(made)
    found = act(
        "hover(means(0, 'c1')[0]); const said = tip(0)[0];"
        "all('button[data-series]')[1].click(); const left = means(0, 'c1').length;"
        "seen([said, left, all('img').length, document.documentElement.scrollWidth <= window.innerWidth])",
        "--window-size=420,900",
        page=made,
    )
    assert found == [f"{hostile}, ε = 0.5", 0, 0, True]


def test_a_tip_at_either_edge_stays_in_the_window(act):
    seen = act(
        "const boxes = ['c0', 'c2'].flatMap((colour) => means(0, colour)).map((mark) => {"
        "hover(mark); const box = one('figure[data-panel=\"0\"] .tip').getBoundingClientRect();"
        "return [box.left, box.right]; });"
        "seen([boxes, window.innerWidth])",
        "--window-size=420,900",
    )
    boxes, width = seen
    assert all(left >= 0 and right <= width for left, right in boxes)


def test_in_the_dark_paper_is_dark_and_ink_is_light(act):
    light = "const style = getComputedStyle(document.body); seen([style.backgroundColor, style.color])"
    paper, ink = act(light, "--blink-settings=preferredColorScheme=0")
    assert sum(map(int, re.findall(r"\d+", paper))) < 150 < 600 < sum(map(int, re.findall(r"\d+", ink)))


def test_two_thousand_cells_are_drawn_within_two_seconds(act, tmp_path):
    many = example_sweep(
        tmp_path / "many",
        epsilons=tuple(0.25 * 1.3**step for step in range(14)),
        seeds=tuple(range(24)),
        broken=0,
        missing=0,
    )
    write_page(many)
    assert (many / "sweep.html").stat().st_size < 2_000_000
    took, dots = act(
        "const start = performance.now(); press('fin'); press('fin'); document.body.getBoundingClientRect();"
        "seen([(performance.now() - start) / 2, all('figure .cell-dot').length]);",
        page=many,
    )
    assert dots > 2000
    assert took < 2000
