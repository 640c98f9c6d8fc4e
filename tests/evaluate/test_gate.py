import dataclasses
import json

import numpy as np
import pytest
from scipy import stats as scipy_stats

from tunesmith.errors import RunError
from tunesmith.evaluate import resample, stats
from tunesmith.evaluate.compare import Comparison, compare, figure_with_interval
from tunesmith.evaluate.gate import EXIT_CODES, NOT_TRAINED, decide, is_borderline, rows_to_settle, verdict
from tunesmith.evaluate.metrics import Metric
from tunesmith.rundir.records.parity import FormParity

YES_NO = Metric("exact_match", lambda answer, reference: {"score": 1.0}, None, "score", True)
SHARES = dataclasses.replace(YES_NO, name="rouge", binary=False)


def _outputs(scores, **more):
    fixed = {"prompt": [], "output": "", "reference": "", "prompt_tokens": 9, "new_tokens": 1, "seconds": 0.5, "finished": True}
    return [{"id": str(i), "score": float(s), **fixed, **more} for i, s in enumerate(scores)]


def _comparison(gain, low, high, n=100):
    return Comparison(gain, low, high, 0.5, 1, 1, 0.1, n, n)


@pytest.mark.parametrize(
    ("gain", "low", "high", "expected"),
    [
        (0.10, 0.02, 0.18, "deploy"),
        (0.05, 0.01, 0.09, "deploy"),  # exactly min_gain
        (0.10, -0.01, 0.20, "too little data to tell"),
        (0.04, 0.01, 0.08, "too little data to tell"),  # better for certain, not by enough for certain
        (0.02, 0.01, 0.04, "prompting is enough"),
        (0.00, -0.03, 0.03, "not better"),
        (-0.10, -0.20, -0.01, "not better"),
        (-0.02, -0.12, 0.08, "too little data to tell"),
    ],
)
def test_decision(gain, low, high, expected):
    comparison = _comparison(gain, low, high)
    assert decide(comparison, 0.05) == expected
    # Forgetting can take back a deploy and nothing else; what is not known blocks only when it is required.
    assert decide(comparison, 0.05, "regression") == ("regression" if expected == "deploy" else expected)
    assert decide(comparison, 0.05, "too little data to tell") == expected
    unknown = "too little data to tell" if expected == "deploy" else expected
    assert decide(comparison, 0.05, "too little data to tell", required=True) == unknown
    assert decide(comparison, 0.05, "no regression", required=True) == expected


def test_exit_codes_are_distinct_and_clear_of_the_errors():
    import tunesmith.errors as errors

    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.TunesmithError)]
    codes = [kind.exit_code for kind in kinds] + list(EXIT_CODES.values()) + [2, 130]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(
    ("gain", "low", "high", "expected"),
    [
        (0.20, 0.10, 0.30, False),  # five points are half a standard error: far from both borders
        (0.11, 0.01, 0.21, True),  # low end near zero
        (0.06, 0.04, 0.08, True),  # gain near min_gain
        (0.10, 0.07, 0.13, False),
        (0.01, -0.02, 0.04, True),  # high end near min_gain
        (-0.10, -0.15, -0.05, False),
        (0.00, -0.20, 0.20, False),  # knows nothing; one standard error is no help
    ],
)
def test_borderline(gain, low, high, expected):
    assert is_borderline(_comparison(gain, low, high), 0.05) == expected


def test_rows_to_settle_have_the_power_they_claim():
    """At the size that is named, four of five experiments with this very gain end in a verdict."""
    share, gain, min_gain = 0.2, 0.06, 0.03
    only_a, only_b = (share + gain) / 2, (share - gain) / 2
    seen = Comparison(gain, *stats.score_interval(13, 7, 100), 0.2, 13, 7, 0.1, 100, 100)
    assert decide(seen, min_gain) == "too little data to tell"
    n = rows_to_settle(seen, min_gain)
    x = np.random.default_rng(0).multinomial(n, [only_a, only_b, 1 - share], size=20_000)
    low, _ = stats.score_interval(x[:, 0], x[:, 1], n)
    assert (low > 0).mean() == pytest.approx(0.80, abs=0.03)
    assert rows_to_settle(_comparison(0.05, 0.0, 0.10), 0.051) is None  # on the border
    assert rows_to_settle(_comparison(0.0, -0.1, 0.1), 0.0) is None
    assert seen.needed(0.05) == stats.n_needed(0.05, 0.2) and seen.needed(0.0) is None


def _arms():
    return {
        "zero_shot": _outputs([1] * 60 + [0] * 40),  # better on test than the prompt that dev chose: not looked at
        "few_shot": _outputs([1] * 50 + [0] * 50),
        "tuned": _outputs([1] * 95 + [0] * 5),
        "deployed": _outputs([0] * 2 + [1] * 88 + [0] * 10),
    }


def test_a_deployed_form_that_failed_parity_outranks_every_other_verdict():
    reason = "adapter: the adapter has no effect in this form"
    failed = FormParity(form="Q4_K_M", file="q4.gguf", state="not deployable", reason=reason, checks={})
    hopeless = {**_arms(), "deployed": _outputs([0] * 100)}
    for arms in (_arms(), hopeless):
        result = verdict(arms, "few_shot", YES_NO, 0.05, parity=failed)
        assert (result["verdict"], result["exit_code"]) == (NOT_TRAINED, 14) and result["parity"] == failed.to_json()
        assert "Q4_K_M failed parity (adapter: the adapter has no effect" in result["reason"]
        assert not result["borderline"] and "tunesmith parity" in result["advice"][0]
        for state in ("deployable", "unknown"):
            same = verdict(arms, "few_shot", YES_NO, 0.05, parity=dataclasses.replace(failed, state=state))
            assert same["verdict"] == verdict(arms, "few_shot", YES_NO, 0.05)["verdict"] != NOT_TRAINED


def test_verdict_is_on_the_deployed_arm_against_the_prompt_chosen_on_dev():
    arms = _arms()
    result = verdict(arms, "few_shot", YES_NO, 0.05)
    assert result["verdict"] == "deploy" and result["candidate"] == "deployed" and result["exit_code"] == 0
    c = result["comparison"]
    assert (c["gain"], c["won"], c["lost"]) == (pytest.approx(0.38), 40, 2) and c["p"] < 1e-9
    rows = {arm["arm"]: arm for arm in result["arms"]}
    assert rows["few_shot"]["against"] is None and rows["zero_shot"]["against"]["gain"] == pytest.approx(0.1)
    assert rows["zero_shot"]["against"]["p_holm"] == rows["zero_shot"]["against"]["p"]  # the largest of three
    assert c["p_holm"] == rows["deployed"]["against"]["p_holm"] == pytest.approx(2 * c["p"])  # the second of three
    assert rows["deployed"]["ms"] == 500 and rows["deployed"]["prompt_tokens"] == 9
    assert rows["deployed"]["totals"] == {"prompt_tokens": 900, "new_tokens": 100, "seconds": 50.0, "cost": None}
    assert result["deployed_loss"]["gain"] == pytest.approx(-0.07) and result["deployed_loss"]["lost"] == 7
    assert result["differ"]["won"] == [str(i) for i in range(50, 90)] and result["differ"]["lost"] == ["0", "1"]
    assert result["differ"]["only_tuning"] == [str(i) for i in range(60, 90)]
    assert result["rows_to_settle"] is None and result["borderline"] is False and result["advice"] == []
    json.dumps(result, allow_nan=False)
    del arms["deployed"]
    result = verdict(arms, "few_shot", YES_NO, 0.05)
    assert "the deployed form was not scored" in result["reason"] and result["deployed_loss"] is None
    del arms["tuned"]
    with pytest.raises(RunError, match="neither"):
        verdict(arms, "few_shot", YES_NO, 0.05)


def test_forgetting_is_in_the_verdict_and_its_reason():
    def decided(found, **more):
        return verdict(_arms(), "few_shot", YES_NO, 0.05, forgetting={"verdict": found, "reason": "because", **more})

    assert decided("no regression")["verdict"] == "deploy"
    lost = decided("regression")
    assert (lost["verdict"], lost["exit_code"]) == ("regression", 13) and "skills were lost (because)" in lost["reason"]
    unknown = decided("too little data to tell")
    assert unknown["verdict"] == "deploy" and "is not known" in unknown["reason"]
    asked = decided("too little data to tell", required=True)
    assert asked["verdict"] == "too little data to tell" and "required" in asked["reason"]
    assert asked["rows_to_settle"] is None  # more test rows would not tell more of general skills


def test_too_little_data_says_how_many_rows_and_asks_for_seeds_once():
    arms = {"few_shot": _outputs([1] * 50 + [0] * 50), "tuned": _outputs([0] * 9 + [1] * 58 + [0] * 33)}
    result = verdict(arms, "few_shot", YES_NO, 0.05)
    assert result["verdict"] == "too little data to tell" and result["borderline"]
    assert result["n_needed"] == stats.n_needed(0.05, 0.26) and result["rows_to_settle"] > 100
    assert f"{result['rows_to_settle'] - 100:,} more test rows" in result["advice"][0]
    assert any("evaluate.seeds: 3" in sentence for sentence in result["advice"])
    seeds = {"runs": [{"seed": k, "score": score} for k, score in enumerate((0.58, 0.52, 0.60))]}
    result = verdict(arms, "few_shot", YES_NO, 0.05, seeds=seeds)
    assert result["seeds"]["gains"] == pytest.approx([0.08, 0.02, 0.10])
    assert not any("evaluate.seeds" in sentence for sentence in result["advice"])
    assert any("2 of 3 seeds gain at least 5.0 points" in sentence for sentence in result["advice"])


def test_unscored_rows_leave_the_pair_and_are_counted():
    nan = float("nan")
    ours, theirs = _outputs([nan, 1.0, 0.5, 1.0, nan, 0.0]), _outputs([0.5, nan, 0.5, 0.5, nan, 0.5])
    c = compare(ours, theirs, SHARES)
    assert (c.n, c.unscored, c.gain, c.won, c.lost) == (3, 3, 0.0, 1, 1)
    result = verdict({"few_shot": theirs, "tuned": ours}, "few_shot", SHARES, 0.05)
    rows = {arm["arm"]: arm for arm in result["arms"]}
    assert rows["tuned"]["score"] == pytest.approx(0.625) and rows["tuned"]["unscored"] == 2
    assert result["differ"] == {"won": ["3"], "lost": ["5"], "only_tuning": ["3"]}
    assert any("3 of 6 rows are unscored" in sentence for sentence in result["advice"])
    json.dumps(result, allow_nan=False)
    with pytest.raises(RunError, match="none of 2 rows"):
        compare(ours[:2], theirs[:2], SHARES)


def test_scores_between_wrong_and_right_are_bootstrapped_row_by_row():
    rng = np.random.default_rng(0)
    base = rng.beta(2, 2, 300)
    ours, theirs = _outputs(np.clip(base + rng.normal(0.05, 0.1, 300), 0, 1)), _outputs(base)
    c = compare(ours, theirs, SHARES)
    d = np.array([a["score"] - b["score"] for a, b in zip(ours, theirs, strict=True)])
    expected = scipy_stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert (c.low, c.high) == pytest.approx((expected.low, expected.high), abs=0.001) and c.p < 0.001
    assert c.detectable == pytest.approx(2.8016 * d.std() / np.sqrt(300), rel=0.03)
    assert c.needed(c.detectable / 2) == pytest.approx(1200, abs=2)
    figure, low, high = figure_with_interval(theirs, SHARES)
    assert figure == pytest.approx(base.mean()) and high - low == pytest.approx(3.92 * base.std() / np.sqrt(300), rel=0.04)


def test_an_arm_that_is_always_wrong_has_an_interval():
    assert figure_with_interval(_outputs([0.0] * 20), SHARES) == (0.0, *stats.wilson(0, 20))
    assert compare(_outputs([0.0] * 20), _outputs([0.0] * 20), SHARES).high > 0.1


def test_groups_are_drawn_whole():
    rng = np.random.default_rng(2)
    of_group = rng.choice([-1, 0, 1], size=30, p=[0.2, 0.4, 0.4])
    differs = np.repeat(of_group, 8)
    ours, theirs = _outputs(differs == 1), _outputs(differs == -1)
    alone = compare(ours, theirs, YES_NO)
    together = compare(ours, theirs, YES_NO, [str(i // 8) for i in range(240)])
    assert alone.gain == together.gain and (together.units, together.n) == (30, 240)
    assert together.high - together.low == pytest.approx(np.sqrt(8) * (alone.high - alone.low), rel=0.1)
    assert together.p > 20 * alone.p and together.detectable > 2.5 * alone.detectable
    assert compare(ours, theirs, YES_NO, [str(i) for i in range(240)]) == alone
    with pytest.raises(RunError, match="group"):
        compare(ours, theirs, YES_NO, ["a"] * 240)
    assert verdict({"few_shot": theirs, "tuned": ours}, "few_shot", YES_NO, 0.03, ["a", "b"] * 120)["clusters"] == 2


def test_a_corpus_metric_is_computed_anew_on_every_draw():
    """The share of right answers squared: no mean of rows, so what is bootstrapped must be the square."""
    square = dataclasses.replace(
        YES_NO, corpus=resample.SumStatistic(resample.MEAN.counts, lambda s: (s[..., 0] / s[..., 1]) ** 2)
    )
    arms = {"few_shot": _outputs([1] * 50 + [0] * 150), "tuned": _outputs([1] * 120 + [0] * 80)}
    result = verdict(arms, "few_shot", square, 0.03)
    assert result["corpus_metric"] and result["comparison"]["gain"] == pytest.approx(0.36 - 0.0625)
    rows = {arm["arm"]: arm for arm in result["arms"]}
    assert rows["tuned"]["score"] == pytest.approx(0.36)
    low, high = stats.wilson(120, 200)
    assert (rows["tuned"]["low"], rows["tuned"]["high"]) == pytest.approx((low**2, high**2), abs=0.01)


def test_arms_on_different_rows_are_refused():
    with pytest.raises(RunError, match="different rows"):
        compare(_outputs([1, 0]), _outputs([1, 0, 1]), YES_NO)
