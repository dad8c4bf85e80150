"""A real browser shows both pages without an error, a request or a line that sticks out, and prints the epsilon report.

Skipped where there is no browser.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from example_run import Example
from headless import BROWSER, browse

from secure_fed.report import write_epsilon_report, write_report

PDF_TEXT = shutil.which("pdftotext")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """An epsilon report of three runs: the longest page that there is."""
    run = Example(rounds=4, earlier=("first", "second"), limit=30.0).write(tmp_path_factory.mktemp("paper") / "run")
    return write_epsilon_report([run], run).page


def test_chromium_lays_the_page_out(finished, tmp_path):
    done = browse(write_report(finished).as_uri(), tmp_path / "profile", "--dump-dom")
    assert "Who contributed what" in done.stdout
    assert "Refused to" not in done.stderr


def test_chromium_lays_the_epsilon_report_out(page, tmp_path):
    done = browse(page.as_uri(), tmp_path / "profile", "--dump-dom")
    assert "Trust model: who sees what" in done.stdout
    assert "Refused to" not in done.stderr


@pytest.mark.parametrize("width", [420, 860, 1280])
def test_no_line_of_the_epsilon_report_sticks_out_of_the_window(page, tmp_path, width):
    """Measured by a script in a copy of the page that allows one; wide tables scroll within their own box."""
    html = page.read_text(encoding="utf-8")
    html = re.sub(r"<meta http-equiv=.*?>", "", html)
    measure = "document.title = 'wide ' + document.documentElement.scrollWidth + ' of ' + window.innerWidth"
    copy = tmp_path / "copy.html"
    copy.write_text(html.replace("</body>", f"<script>{measure}</script></body>"), encoding="utf-8")
    done = browse(copy.as_uri(), tmp_path / "profile", f"--window-size={width},900", "--dump-dom")
    wide, inner = map(int, re.search(r"<title>wide (\d+) of (\d+)</title>", done.stdout).groups())
    assert wide <= inner


@pytest.mark.skipif(PDF_TEXT is None, reason="no pdftotext on this machine")
def test_the_epsilon_report_prints_whole_on_a4(page, tmp_path):
    target = tmp_path / "page.pdf"
    browse(page.as_uri(), tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={target}")
    text = subprocess.run([PDF_TEXT, "-layout", target, "-"], capture_output=True, text=True, check=True).stdout
    pages = [sheet for sheet in text.split("\f") if sheet.strip()]
    assert b"/MediaBox [0 0 594.9" in target.read_bytes()  # A4: 210 mm are 595 points
    assert 6 <= len(pages) <= 14
    # A hash is the widest thing that must not be cut, the recomputation the last.
    assert max(len(word) for word in text.split()) == 64
    assert "secure-fed verify RUN --roster roster.json --cross-check" in text
    # No heading stands alone at the end of a page.
    headings = {unescaped.strip() for unescaped in re.findall(r"</span>(.*?)</h2>", page.read_text(encoding="utf-8"))}
    for sheet in pages:
        last = [line.strip() for line in sheet.splitlines() if line.strip()][-1]
        assert re.sub(r"^\d+\s+", "", last) not in headings
