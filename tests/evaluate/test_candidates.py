"""Several candidates share what one may spend; the verdict is of the best that passes."""

import numpy as np

from tunesmith.evaluate.candidates import holm, share_of_one
from tunesmith.evaluate.stats import score_interval, score_p

N, BASE, TRIES = 200, 0.6, 300


def test_holm_asks_the_surest_first_and_stops_at_the_first_that_fails():
    passed = {"a": 0.011, "b": 0.026, "c": 0.04}
    assert holm(passed, 0.05, lambda name, level: passed[name] < level) == {"a": 0.05 / 3, "b": 0.025, "c": 0.025}
    passed = {"a": 0.011, "b": 0.02, "c": 1.2}
    assert holm(passed, 0.05, lambda name, level: passed[name] < level) == {"a": 0.05 / 3, "b": 0.025, "c": 0.05}
    assert holm({"only": 0.5}, 0.05, lambda name, level: False) == {"only": 0.05}


def test_five_candidates_that_are_no_better_pass_as_seldom_as_one():
    """The share of histories in which any of five passes: 2.5 % of a one-sided 5 % at most, to within the simulation."""
    generator, false = np.random.default_rng(0), 0
    for _ in range(TRIES):
        prompt = generator.random(N) < BASE
        hardest, counts = {}, {}
        for name in "abcde":
            other = np.where(generator.random(N) < 0.7, prompt, generator.random(N) < BASE)
            won, lost = int((other & ~prompt).sum()), int((prompt & ~other).sum())
            counts[name] = (won, lost)
            p = score_p(won, lost)
            hardest[name] = p if won > lost else 2.0 - p

        def passes(name, level, counts=counts):
            return score_interval(*counts[name], N, level / 2)[0] > 0.0

        levels = holm(hardest, 0.05, passes)
        false += any(passes(name, level) for name, level in levels.items())
    assert false / TRIES <= 0.05


def test_the_file_of_the_best_of_five_passes_seldom_at_the_share_of_one():
    """The models are better, and the last of Holm's steps is 5 %; no file is, and at 5 % that of the best passes too often."""
    generator, false = np.random.default_rng(1), {"share": 0, "whole": 0}
    for _ in range(TRIES):
        prompt = generator.random(N) < BASE
        files = [np.where(generator.random(N) < 0.7, prompt, generator.random(N) < BASE) for _ in range(5)]
        best = max(files, key=lambda file: int((file | (generator.random(N) < 0.1)).sum()))
        won, lost = int((best & ~prompt).sum()), int((prompt & ~best).sum())
        for name, level in (("share", share_of_one(0.05, 5)), ("whole", 0.05)):
            false[name] += score_interval(won, lost, N, level / 2)[0] > 0.0
    assert false["share"] / TRIES <= 0.05 < false["whole"] / TRIES
