"""Scales, ticks and labels of the pictures."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_fed.report import svg
from secure_fed.report.contributions import contributions_chart
from secure_fed.report.run_folder import read_run


@given(low=st.floats(-1e3, 1e3), span=st.floats(1e-3, 1e4), most=st.integers(2, 10))
def test_ticks_are_round_evenly_spaced_and_within_the_axis(low, span, most):
    found = svg.ticks(low, low + span, most)
    # Steps of 1, 2, 2.5 and 5 lie at most a factor of 2.5 above the step asked for.
    assert most / 2.5 - 1 <= len(found) <= most + 1
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in found)
    gaps = {round(b - a, 6) for a, b in pairwise(found)}
    assert max(gaps, default=0) - min(gaps, default=0) < 1e-5


def test_tick_texts_show_the_value_that_they_stand_at():
    area = svg.frame((0, 30), (0, 13.5))
    texts = re.findall(r'text-anchor="end">([\d.]+)<', "".join(svg.axes(area, "x", "y")))
    assert texts == ["0.0", "2.5", "5.0", "7.5", "10.0", "12.5"]


def test_counts_get_whole_ticks_only():
    area = svg.frame((0, 3), (0, 3.2))
    texts = re.findall(r'text-anchor="end">([\d.]+)<', "".join(svg.axes(area, "x", "y", whole=True)))
    assert texts == ["0", "1", "2", "3"]


@given(st.lists(st.floats(40, 280), min_size=1, max_size=8))
def test_labels_of_lines_that_end_together_do_not_overlap_nor_leave_the_picture(ends):
    parts = svg.end_labels(400, [(y, f"n{i}", "1", "c0") for i, y in enumerate(ends)], 30, 284)
    places = sorted(float(y) for y in re.findall(r'class="end c0" x="414" y="([\d.-]+)"', "".join(parts)))
    assert len(places) == len(ends)
    assert all(b - a >= 2 * svg.LABEL_HEIGHT - 0.02 for a, b in pairwise(places))
    assert places[-1] <= 284


def test_steps_hold_a_value_until_the_next():
    assert svg.steps([(0, 0), (1, 5), (3, 6)]) == [(0, 0), (1, 0), (1, 5), (3, 5), (3, 6)]


def test_text_titles_and_attributes_are_escaped():
    made = svg.element("text", '<b>&"', title="<i>", class_='x" onload="y')
    parsed = ElementTree.fromstring(made)  # noqa: S314 - our own output
    assert parsed.attrib == {"class": 'x" onload="y'}
    assert parsed[0].text == "<i>"
    assert parsed[0].tail == '<b>&"'


@pytest.mark.parametrize(("sites", "rounds"), [(3, 2), (3, 60), (40, 2), pytest.param(40, 60, marks=pytest.mark.slow)])
def test_grid_stays_within_its_picture(tmp_path, example, sites, rounds):
    example.owns = {f"site{i:02d}": ("image", "text") for i in range(sites)}
    example.rounds, example.privacy, example.dropped = rounds, "off", {}
    run = read_run(example.write(tmp_path / "run"))
    picture = ElementTree.fromstring(contributions_chart(run.steps, run.summary))  # noqa: S314 - our own output
    width, height = map(float, picture.attrib["viewBox"].split()[2:])
    for box in picture.iter("rect"):
        left, top, wide, high = (float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        assert left >= 0
        assert left + wide <= width + 0.02
        assert top >= 0
        assert top + high <= height
