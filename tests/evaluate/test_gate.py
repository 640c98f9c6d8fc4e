import pytest

from tunesmith.errors import RunError
from tunesmith.evaluate.gate import EXIT_CODES, Comparison, compare, decide, verdict


def _outputs(scores):
    fixed = {"prompt": [], "output": "", "reference": "", "prompt_tokens": 9, "new_tokens": 1, "seconds": 0.5, "finished": True}
    return [{"id": str(i), "score": float(s), **fixed} for i, s in enumerate(scores)]


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
    assert decide(Comparison(gain, low, high, 0.5, 1, 1, 0.1), min_gain=0.05) == expected


def test_exit_codes_are_distinct_and_clear_of_the_errors():
    import tunesmith.errors as errors

    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.TunesmithError)]
    codes = [kind.exit_code for kind in kinds] + list(EXIT_CODES.values()) + [2, 130]
    assert len(set(codes)) == len(codes)


def test_verdict_is_on_the_deployed_arm_against_the_prompt_chosen_on_dev():
    arms = {
        "zero_shot": _outputs([1] * 60 + [0] * 40),  # better on test than the prompt that dev chose: not looked at
        "few_shot": _outputs([1] * 50 + [0] * 50),
        "tuned": _outputs([1] * 95 + [0] * 5),
        "deployed": _outputs([1] * 90 + [0] * 10),
    }
    result = verdict(arms, "few_shot", 0.05)
    assert result["verdict"] == "deploy" and result["candidate"] == "deployed" and result["exit_code"] == 0
    c = result["comparison"]
    assert (c["gain"], c["won"], c["lost"]) == (pytest.approx(0.4), 40, 0) and c["p"] < 1e-9
    rows = {arm["arm"]: arm for arm in result["arms"]}
    assert rows["few_shot"]["against"] is None and rows["zero_shot"]["against"]["gain"] == pytest.approx(0.1)
    assert rows["deployed"]["ms"] == 500 and rows["deployed"]["prompt_tokens"] == 9
    del arms["deployed"]
    assert "the deployed form was not scored" in verdict(arms, "few_shot", 0.05)["reason"]
    del arms["tuned"]
    with pytest.raises(RunError, match="neither"):
        verdict(arms, "few_shot", 0.05)


def test_arms_on_different_rows_are_refused():
    with pytest.raises(RunError, match="different rows"):
        compare(_outputs([1, 0]), _outputs([1, 0, 1]))
