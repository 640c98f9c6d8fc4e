"""Macro-F1 with a class of 2 % of 100 rows and a gain on it: what the interval of the gain promises, over simulated tasks."""

from dataclasses import replace

import numpy as np
import pytest

from outputs import answers
from tunesmith.evaluate import resample
from tunesmith.evaluate.compare import figure_with_interval
from tunesmith.evaluate.metrics import make_metric
from tunesmith.recipe import Task

LABELS = ("common", "other", "rare")
SHARES = np.array([0.6, 0.38, 0.02])
RIGHT = {"tuned": np.array([0.9, 0.9, 0.8]), "prompt": np.array([0.9, 0.9, 0.3])}
METRIC = make_metric(Task(metric="macro_f1", labels=LABELS))


def _task(rng, n):
    """Labels and the answers of both arms, which find most of the same rows hard; what is wrong is mostly the common class."""
    label = rng.choice(3, size=n, p=SHARES)
    hard, own, wrong = rng.random(n), rng.random(n), np.where(rng.random(n) < 0.3, rng.integers(0, 3, n), 0)
    wrong = np.where(wrong == label, (label + 1) % 3, wrong)
    hardness = hard, np.where(rng.random(n) < 0.6, hard, own)
    return label, *(np.where(h < right[label], label, wrong) for h, right in zip(hardness, RIGHT.values(), strict=True))


def _f1(label, answer):
    masks = [(label == c, answer == c) for c in range(3)]
    return np.array([2 * (a & b).sum() / max(1, a.sum() + b.sum()) for a, b in masks])


def test_the_interval_holds_a_gain_on_a_class_of_two_rows(monkeypatch):
    monkeypatch.setattr(resample, "DRAWS", 400)
    label, *both = _task(np.random.default_rng(0), 1_000_000)
    gain_of_class = _f1(label, both[0]) - _f1(label, both[1])
    rng, plain, covered = np.random.default_rng(1), replace(METRIC.corpus, imagined=None), {"imagined": 0, "plain": 0}
    for _ in range(250):
        label, *both = _task(rng, 100)
        arms = [answers([LABELS[c] for c in arm], [LABELS[c] for c in label]) for arm in both]
        truth = gain_of_class[np.unique(label)].mean()
        for name, statistic in (("imagined", METRIC.corpus), ("plain", plain)):
            values_BA = resample.bootstrap(statistic, arms, np.arange(100))
            low, high = resample.percentile_interval(values_BA[:, 0] - values_BA[:, 1], 100, 0.025)
            covered[name] += low <= truth <= high
    assert covered["imagined"] / 250 >= 0.915 and covered["plain"] / 250 <= 0.88


def test_imagined_rows_move_the_interval_and_not_the_figure_and_matter_to_rare_classes_alone():
    def interval(metric, counts):
        rows = answers(
            [name for name, (right, n) in counts.items() for name in [name] * right + ["?"] * (n - right)],
            [name for name, (_, n) in counts.items() for name in [name] * n],
        )
        return figure_with_interval([replace(row, score=float(row.output == row.reference)) for row in rows], metric)

    plain = replace(METRIC, corpus=replace(METRIC.corpus, imagined=None))
    rare = {"common": (70, 78), "other": (18, 20), "rare": (2, 2)}
    even = {"common": (300, 340), "other": (280, 330), "rare": (290, 330)}
    (figure, wide), (same, narrow) = interval(METRIC, rare), interval(plain, rare)
    assert figure == same and wide.low < narrow.low - 0.1
    (_, ours), (_, theirs) = interval(METRIC, even), interval(plain, even)
    assert tuple(ours) == pytest.approx(tuple(theirs), abs=0.01)
