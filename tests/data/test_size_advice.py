import math

import pytest
from scipy.stats import norm

from tunesmith.data.size_advice import BANDS, advice, detectable_gain


@pytest.mark.parametrize(
    ("rows", "band"),
    [
        (0, "below 200"),
        (199, "below 200"),
        (200, "200-500"),
        (499, "200-500"),
        (500, "500-1,000"),
        (999, "500-1,000"),
        (1000, "1,000-5,000"),
        (4999, "1,000-5,000"),
        (5000, "5,000-10,000"),
        (9999, "5,000-10,000"),
        (10000, "above 10,000"),
        (10**9, "above 10,000"),
    ],
)
def test_bands_change_where_they_say(rows, band):
    assert advice(rows).band == band


def test_every_band_says_something_else_in_two_or_three_sentences():
    texts = [text for _, _, text in BANDS]
    assert len(set(texts)) == len(texts)
    assert all(text.endswith(".") and len(text) < 320 for text in texts)


@pytest.mark.parametrize("n", [30, 150, 1500])
def test_detectable_gain_is_the_paired_power_formula(n):
    expected = (norm.ppf(0.975) + norm.ppf(0.8)) * math.sqrt(0.2 / n)
    assert detectable_gain(n) == pytest.approx(expected, rel=1e-4)
    said = advice(10 * n, test_rows=n)
    assert said.detectable_gain == detectable_gain(n)
    assert f"{100 * expected:.1f} points" in " ".join(said.sentences)


def test_no_test_rows_and_few_prompts_are_said():
    assert advice(1).detectable_gain is None and "prove nothing" in advice(1).sentences[1]
    assert "100 distinct prompts" in advice(5000, prompts=100).sentences[-1]
    assert len(advice(5000, prompts=4900).sentences) == 2
