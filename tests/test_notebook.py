"""What records draw: XML whatever a name holds, and points that lie where their numbers say."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.notebook import DEV, TUNED, Interval, forest, loss_curve, nice_ticks, table
from tunesmith.rundir.records.answers import Output, Outputs
from tunesmith.rundir.records.training import DevLoss, Training

SVG = "{http://www.w3.org/2000/svg}"
NAME = 'a<script>alert("x")</script>&amp; arm with a long name'


def _dots(svg, colour):
    return [
        (float(dot.get("cx")), float(dot.get("cy")), dot[0].text)
        for dot in ET.fromstring(svg).iter(f"{SVG}circle")
        if dot.get("fill") == colour
    ]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_enclose_what_they_measure_and_are_few(low, width):
    high = low + width
    ticks = nice_ticks(low, high)
    slack = 1e-6 * (ticks[-1] - ticks[0])
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack and 2 <= len(ticks) <= 12 and ticks == sorted(set(ticks))


def test_a_curve_puts_losses_where_they_are():
    *dev, _ = _dots(loss_curve([(0, 3.0), (10, 1.0), (30, 2.0)], [(10, 2.5)], 10), DEV)  # the last is of the legend
    (x0, y0, _), (x1, y1, title), (x2, y2, _) = dev
    assert x2 - x0 == pytest.approx(3 * (x1 - x0), abs=0.3) and y1 - y0 == pytest.approx(2 * (y1 - y2), abs=0.3) and y0 < y1
    assert title == "dev, step 10: 1.0000"
    assert ET.fromstring(loss_curve([(0, 2.0)], [], 0)).tag == f"{SVG}svg"  # a run that only got worse at once


def test_a_forest_puts_points_between_their_bounds_whatever_the_arms_are_called():
    lines = [
        Interval(name="plain", value=0.0, low=0.0, high=0.0, figures="+0.0"),
        Interval(name=NAME, value=5.0, low=-10.0, high=20.0, figures="+5.0", is_chosen=True),
    ]
    picture = ET.fromstring(forest(lines, 3.0, "points"))
    ((middle, _, title),) = _dots(forest(lines, 3.0, "points"), TUNED)
    (bar,) = (line for line in picture.iter(f"{SVG}line") if line.get("stroke") == TUNED)
    left, right = float(bar.get("x1")), float(bar.get("x2"))
    assert middle == pytest.approx((left + right) / 2, abs=0.2) and right > left and title.startswith(NAME)


def test_other_peoples_text_is_text():
    cell = ET.fromstring(table(("name",), [(NAME,)], NAME)).find("tbody/tr/td")
    assert cell.text == NAME
    output = Output(
        id="1",
        prompt=[{"role": "user", "content": NAME}],
        output=NAME,
        reference="",
        score=None,
        figures={},
        prompt_tokens=1,
        new_tokens=1,
        seconds=0.1,
        finished=True,
    )
    shown = ET.fromstring(Outputs([output] * 30)._repr_html_())
    assert len(shown.findall("tbody/tr")) == Outputs.SHOWN and shown.find("caption").text == "30 rows, the first 20 of them"
    assert shown.find("tbody/tr/td[3]").text == NAME


def test_a_training_shows_its_curve_and_what_speaks_against_it():
    losses = (DevLoss(step=0, dev_loss=2.0), DevLoss(step=5, dev_loss=2.5, train_loss=1.0))
    training = Training(
        steps=5,
        fill=1.0,
        learning_rate=1e-3,
        tokens_per_step=64,
        num_train_epochs=1,
        derivation=("learning_rate 1.0e-03 as the recipe says",),
        trained_weights=8,
        target_layers=1,
        dev_losses=losses,
        best_step=0,
        best_dev_loss=2.0,
        first_dev_loss=2.0,
        only_worse=True,
        overfit=False,
        undertrained=False,
        tokens_per_second=None,
        computed_on=("cpu",),
    )
    html = ET.fromstring(f"<div>{training._repr_html_()}</div>")
    assert "only made it worse" in html.find("p/strong").tail and len(_dots(ET.tostring(html.find(f"{SVG}svg")), DEV)) == 3
