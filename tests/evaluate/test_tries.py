"""Another try has its price: the whole history of adapters on one test part errs at most 5 % of the time."""

import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console

from outputs import outputs, selection
from tunesmith.cli.text import print_verdict
from tunesmith.evaluate import rule, stats
from tunesmith.evaluate.compare import compare, standard_error
from tunesmith.evaluate.gate import Evidence, verdict
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.tries import alpha_of, widened
from tunesmith.rundir.records.evaluation import Terms
from tunesmith.rundir.records.readings import Tries

YES_NO = Metric(name="exact_match", score=lambda answer, reference: {"score": 1.0}, tie_break="score", binary=True)
SHARES = dataclasses.replace(YES_NO, name="rouge", binary=False)
TERMS = Terms(min_gain=0.03)


def _deploys(tries, histories, rows, seed, alphas):
    """Share of histories in which any adapter, all as good as the prompt, has a gain that is shown."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(0.9, 0.6, size=(histories, rows))
    prompt = rng.random((histories, rows)) < difficulty
    shown = np.zeros(histories, dtype=bool)
    for alpha in alphas[:tries]:
        adapter = rng.random((histories, rows)) < difficulty
        won, lost = (adapter & ~prompt).sum(axis=1), (prompt & ~adapter).sum(axis=1)
        low, _ = stats.score_limits(won, lost, rows, alpha / 2)
        shown |= (low > 0.0) & ((won - lost) / rows >= TERMS.min_gain)
    return shown.mean()


@pytest.mark.parametrize("tries", [1, 3, 10, 20])
def test_a_history_of_adapters_as_good_as_the_prompt_deploys_at_most_one_in_twenty(tries):
    histories = 4_000
    spent = [alpha_of(place) for place in range(1, tries + 1)]
    rate = _deploys(tries, histories, 300, 0, spent)
    error = (0.05 * 0.95 / histories) ** 0.5
    assert rate <= 0.05 + error
    if tries >= 10:  # the accident: nobody counts
        assert _deploys(tries, histories, 300, 0, [stats.ALPHA] * tries) > 0.12


def test_what_all_later_places_may_err_adds_up_to_what_the_first_may():
    later = sum(alpha_of(place) for place in range(2, 100_000))
    assert later == pytest.approx(stats.ALPHA, rel=1e-4) and later < stats.ALPHA


def _shifted(n, gain, seed):
    rng = np.random.default_rng(seed)
    base = np.clip(rng.normal(0.5, 0.2, n), 0, 1)
    return np.clip(base + rng.normal(gain, 0.15, n), 0, 1).tolist(), base.tolist()


@pytest.mark.parametrize("gain", [0.02, 0.04, 0.06, -0.05])
@pytest.mark.parametrize("metric", [YES_NO, SHARES])
def test_p_is_below_one_in_twenty_where_the_widened_interval_excludes_zero(metric, gain):
    a, b = _shifted(150, gain, 4)
    if metric is YES_NO:
        a, b = ([float(x > 0.5) for x in scores] for scores in (a, b))
    first = compare(outputs(a), outputs(b), metric)
    before = first
    for place in (2, 3, 7, 20):
        c = widened(first, alpha_of(place))
        assert c.low < before.low <= before.high < c.high and c.p >= before.p and c.gain == first.gain
        assert (c.p < 0.05) == (not c.low <= 0.0 <= c.high)
        assert standard_error(c) == pytest.approx(standard_error(first), rel=0.1)
        before = c
    assert widened(first, stats.ALPHA) is first


def test_a_stretched_interval_is_what_more_draws_would_have_shown():
    a, b = _shifted(400, 0.02, 1)
    c = widened(compare(outputs(a), outputs(b), SHARES), alpha_of(3))
    exact = stats.mean_interval(np.array(a) - np.array(b), np.arange(400), alpha_of(3) / 2)
    assert (c.low, c.high) == pytest.approx(exact, abs=0.003)


def test_power_is_that_of_the_widened_rule():
    c = compare(outputs([1] * 40 + [0] * 60), outputs([0] * 20 + [1] * 20 + [0] * 60), YES_NO)
    later = dataclasses.replace(TERMS, alpha=alpha_of(10))
    assert rule.power(300, 0.2, 0.10, later) < rule.power(300, 0.2, 0.10, TERMS) - 0.1
    assert rule.detectable(c, later) > rule.detectable(c, TERMS)
    assert rule.rows_needed(c, 0.06, later) > rule.rows_needed(c, 0.06, TERMS)


def test_the_place_decides_and_every_view_shows_the_count(capsys):
    tuned, prompt = [1.0] * 60 + [0.0] * 40, [1.0] * 45 + [0.0] * 53 + [1.0] * 2
    arms = {"few_shot": outputs(prompt), "tuned": outputs(tuned)}

    def at(tries):
        return verdict(arms, selection("few_shot"), YES_NO, TERMS, evidence=Evidence(tries=tries))

    first, later = at(Tries(prompts=3)), at(Tries(place=20, tuned=24, prompts=9, runs=17, lacking="the folder was deleted"))
    assert first.decision == "deploy" and "95 % interval" in first.reason and "candidate" not in first.reason
    assert later.decision == "too little data to tell" and "99.99 % interval" in later.reason
    assert later.comparison.low < 0.0 < first.comparison.low and later.arm("tuned").against.low < 0.0
    assert later.rows_to_settle > 100 and later.detectable > first.detectable
    counted = "tuned candidate 20 of 24"
    assert counted in later.reason and "at least so many, for the folder was deleted" in later.reason
    assert json.loads(json.dumps(later.to_json()))["tries"]["place"] == 20
    print_verdict(first, Console(width=200))
    assert "tuned candidate 1 of 1" in capsys.readouterr().out and "tuned candidate 1 of 1" in first._repr_html_()
