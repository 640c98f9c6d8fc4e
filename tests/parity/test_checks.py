"""What figures say of a form, on numbers alone: bounds, non-inferiority, and when nothing can be told."""

import unicodedata

import pytest

from tunesmith.evaluate.gate import EXIT_CODES as VERDICT_CODES
from tunesmith.evaluate.gate import NOT_TRAINED
from tunesmith.models.load import load_tokenizer
from tunesmith.parity.checks import (
    LOOSE_AGREEMENT,
    LOOSE_KL,
    adapter_check,
    distribution_check,
    form_state,
    ids_check,
    metric_check,
    template_check,
)
from tunesmith.parity.prompts import Prompt, Rendering, fixed_prompts, long_text
from tunesmith.rundir.records.parity import EXIT_CODES, Check, Figures, TaskScore


def _figures(kl_mean, from_base=0.5, agreement=1.0):
    return Figures(
        positions=100,
        kl_mean=kl_mean,
        kl_max=kl_mean,
        kl_from_base=from_base,
        agreement=agreement,
        agreement_or_tie=agreement,
    )


def _metric(gain, low, high):
    return metric_check(TaskScore(score=0.5, gain=gain, low=low, high=high, n=60), 0.015)


@pytest.mark.parametrize(
    ("gain", "low", "high", "state"),
    [
        (-0.005, -0.014, 0.004, "pass"),
        (-0.10, -0.18, -0.02, "fail"),
        (-0.10, -0.22, 0.02, "unknown"),
        (-0.01, -0.018, -0.002, "unknown"),  # worse for certain, by less than the margin as far as is known
        (0.0, -0.2, 0.2, "unknown"),
    ],
)
def test_non_inferiority(gain, low, high, state):
    assert _metric(gain, low, high).state == state


def test_a_form_that_differs_by_design_is_deployable_where_the_metric_shows_it_and_nowhere_else():
    shown = {"distribution": distribution_check(_figures(0.01, agreement=0.97), None)}
    assert shown["distribution"].state == "shown"
    untold, good, bad = _metric(0.0, -0.2, 0.2), _metric(0.0, -0.01, 0.01), _metric(-0.1, -0.18, -0.02)
    assert form_state({**shown, "metric": good}, True, None) == ("deployable", "")
    state, reason = form_state({**shown, "metric": untold}, True, None)
    assert state == "unknown" and "too few rows to tell" in reason
    state, reason = form_state(shown, True, "a judge compares two answers")
    assert state == "unknown" and "a judge compares two answers" in reason
    assert form_state({**shown, "metric": bad}, True, None)[0] == "not deployable"
    # One that computes what was trained needs no metric: the distribution proves it.
    exact = {"distribution": distribution_check(_figures(1e-7), 1e-6)}
    assert form_state(exact, False, "no rows")[0] == form_state({**exact, "metric": untold}, False, None)[0] == "deployable"


def test_beyond_the_loose_bounds_a_quantised_form_is_broken_whatever_the_metric():
    """An adapter of another scale in the reference: KL 0.40, greedy agreement 2.6 %, and too few rows for the metric."""
    for broken in (_figures(0.40, agreement=0.026), _figures(1.1 * LOOSE_KL), _figures(0.01, agreement=0.9 * LOOSE_AGREEMENT)):
        check = distribution_check(broken, None)
        assert check.state == "fail" and "loose bounds 3e-01 nats and 70 %" in check.summary
        assert form_state({"distribution": check, "metric": _metric(0.0, -0.01, 0.01)}, True, None)[0] == "not deployable"


def test_the_adapter_check_says_when_it_cannot_tell():
    near = _figures(0.001)
    assert adapter_check(near, 0.4, 1e-3).state == "pass"
    assert adapter_check(near, 0.009, 1e-3).state == "unknown"
    assert adapter_check(near, 0.009, 1e-6).state == "pass"
    assert adapter_check(_figures(0.5, from_base=0.4), 0.4, None).state == "fail"


def test_a_beginning_of_text_token_may_stand_in_the_text_or_be_put_there_by_the_engine():
    prompt = Prompt(name="one", messages=[], text="<s>hi", ids=[1, 7], forged=False, continuation=[])
    written = Rendering(text="hi", ids=[1, 7])
    assert template_check([prompt], [written], "<s>").state == "pass"
    assert template_check([prompt], [written], None).state == "fail"
    assert ids_check([prompt], [Rendering(text="hi", ids=[7])], str).summary.startswith("prompt one: expected 1")
    refused = Rendering(text="", ids=[], refused="no system role")
    assert "no system role" in template_check([prompt], [refused], None).summary
    checks = {"template": Check(state="fail", summary="x"), "metric": Check(state="unknown", summary="y")}
    assert form_state(checks, True, None) == ("not deployable", "template: x")


def test_exit_codes_are_those_of_verdicts():
    unknown, failed = VERDICT_CODES["too little data to tell"], VERDICT_CODES[NOT_TRAINED]
    assert {"deployable": 0, "unknown": unknown, "not deployable": failed} == EXIT_CODES


def test_fixed_prompts_are_written_as_tokenizers_demand(tokenizer_dir):
    prompts = fixed_prompts(["<|im_end|>"], long_text(40))
    text = prompts["unicode"][0]["content"]
    assert unicodedata.is_normalized("NFC", text) and any(unicodedata.combining(c) for c in text)
    assert {"R", "AL"} <= {unicodedata.bidirectional(c) for c in text}
    assert "<|im_end|>" in prompts["control tokens"][0]["content"]
    assert 200 < len(load_tokenizer(tokenizer_dir)(prompts["long"][0]["content"])["input_ids"]) < 600
