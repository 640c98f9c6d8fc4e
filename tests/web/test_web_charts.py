"""Pictures: what is thinned keeps its extremes, what is no number is a gap, and other people's names are text."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.web.charts import Frame, Line, picture, running_mean, thinned


@settings(max_examples=40)
@given(st.lists(st.floats(-10, 10), min_size=300, max_size=600), st.integers(1, 100))
def test_a_thinned_line_keeps_its_extremes_in_their_places(values, columns):
    x, y = np.arange(1.0, len(values) + 1), np.array(values)
    kept_x, kept_y = thinned(x, y, columns)
    assert (kept_y.min(), kept_y.max()) == (y.min(), y.max())
    assert (np.diff(kept_x) > 0).all() and (y[kept_x.astype(int) - 1] == kept_y).all()
    assert len(kept_x) <= max(2 * columns, 0) or len(values) <= 2 * columns


def test_a_hundred_thousand_steps_make_a_small_picture():
    x = np.arange(1.0, 100_001)
    y = np.sin(x / 1000) + 2.0
    y[77_777] = 9.0
    drawn = picture([Line("train", "train", x, y)], Frame("Loss"))
    assert len(drawn) < 60_000
    wide = ElementTree.fromstring(re.findall("<svg.*?</svg>", drawn)[0])
    heights = [float(place.split(",")[1]) for line in wide.iter("polyline") for place in line.attrib["points"].split()]
    assert min(heights) < 40  # the spike of one step is seen


def test_a_value_that_is_no_number_breaks_the_line_and_one_that_is_missing_does_not():
    x = np.arange(1.0, 7.0)
    drawn = picture([Line("a", "train", x, np.array([1.0, 2.0, np.inf, np.nan, 2.0, 1.0]))], Frame("Loss"))
    assert drawn.count("<polyline") == 4  # two pieces, for two screens
    assert picture([Line("a", "train", x, np.full(6, np.nan))], Frame("Loss")) == ""


def test_names_are_text():
    name = '<b onload="x">&\u202e'
    drawn = picture([Line(name, "train", np.array([1.0]), np.array([1.0]), is_dotted=True)], Frame(name, mark=(1.0, name)))
    assert "<b" not in drawn and "\u202e" not in drawn
    ElementTree.fromstring(f"<div>{drawn}</div>")


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [np.inf, 4.0, np.nan, 2.0]])
def test_the_running_mean_is_of_the_finite_values_so_far(values):
    y = np.array(values)
    means = running_mean(y)
    width = 2  # of so few: the value and the one before
    for place in range(len(y)):
        window = [value for value in y[max(0, place + 1 - width) : place + 1] if np.isfinite(value)]
        assert (np.isnan(means[place]) and not window) or means[place] == pytest.approx(np.mean(window))
