"""report/charts.py: ticks are round, lines stay in the frame, gaps stay gaps."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_jax.report import charts


def svg_of(markup):
    return ElementTree.fromstring(str(markup).partition("</svg>")[0] + "</svg>")


def test_ticks_are_round():
    assert charts.round_ticks(0.0, 60.0, 6) == [0, 10, 20, 30, 40, 50, 60]
    assert charts.round_ticks(2.13, 3.04, 5) == pytest.approx([2.2, 2.4, 2.6, 2.8, 3.0])


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), count=st.integers(1, 10))
def test_ticks_lie_inside_and_are_few(low, span, count):
    ticks = charts.round_ticks(low, low + span, count)
    slack = span * 1e-6
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)
    assert len(ticks) <= 2 * count + 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (4e-4, "4e-4"), (2.5, "2.5"), (1000.0, "1000"), (12500.0, "12.5k"), (3e6, "3M")],
)
def test_axis_numbers_are_short(value, shown):
    assert charts.format_number(value) == shown


def test_lines_stay_inside_the_frame_and_have_axes():
    points = [(float(step), 3 / step) for step in range(1, 50)]
    picture = charts.line_chart([charts.Series("loss", points)], label="loss")
    svg = svg_of(picture)
    (line,) = svg.findall("polyline")
    for pair in line.get("points").split():
        x, y = map(float, pair.split(","))
        assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM
    assert len(svg.findall("text[@class='tick']")) >= 8
    assert [name.text for name in svg.findall("text[@class='name']")] == ["step"]


def test_nan_breaks_the_line():
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, math.nan), (4.0, None), (5.0, 2.0), (6.0, 1.0)]
    picture = charts.line_chart([charts.Series("loss", points)], label="loss")
    assert len(svg_of(picture).findall("polyline")) == 2


def test_single_point_is_a_dot():
    picture = charts.line_chart([charts.Series("loss", [(1.0, 2.0)])], label="loss")
    assert len(svg_of(picture).findall("circle")) == 1


def test_nothing_to_draw_is_none():
    assert charts.line_chart([charts.Series("loss", [(1.0, None)])], label="loss") is None


def test_hover_text_has_every_series_at_that_step():
    one = charts.Series("documents", [(0.0, 3.0), (20.0, 2.5)])
    two = charts.Series("control", [(20.0, 2.75)], colour=1)
    picture = charts.line_chart([one, two], label="held-out")
    titles = [title.text for title in svg_of(picture).iter("title")]
    assert titles == ["step 0\ndocuments 3", "step 20\ndocuments 2.5\ncontrol 2.75"]


def test_long_runs_stay_small():
    points = [(float(step), math.sin(step)) for step in range(100_000)]
    picture = charts.line_chart([charts.Series("loss", points)], label="loss")
    assert len(str(picture)) < 60_000
    assert re.search(r">100k<", str(picture)) or re.search(r">80k<", str(picture))


def test_smooth_starts_at_the_first_value_and_keeps_a_constant():
    assert charts.smooth([(0.0, 5.0)])[0] == (0.0, 5.0)
    smoothed = charts.smooth([(float(step), 2.0) for step in range(40)])
    assert all(y == pytest.approx(2.0) for _, y in smoothed)
