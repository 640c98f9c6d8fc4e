"""As good and cheaper: when it is the verdict, when something stands in its way, and what people read of it."""

import dataclasses
import json

import pytest
from rich.console import Console

from outputs import outputs, selection
from tunesmith.cli.text import print_verdict
from tunesmith.evaluate.gate import EXIT_CODES, Case, Evidence, decide, verdict
from tunesmith.evaluate.metrics import Metric
from tunesmith.rundir.records.evaluation import Candidate, Comparison, Selection, Terms, Trial, Verdict
from tunesmith.rundir.records.evidence import Forgetting
from tunesmith.rundir.records.saving import Saving

YES_NO = Metric(name="exact_match", score=lambda answer, reference: {"score": 1.0}, tie_break="score", binary=True)
TERMS = Terms(min_gain=0.05)
# 10,000 calls save 500 prompt tokens at 0.10 a million, 0.50 a month; 3.00 of training are paid after 180 days, just in time.
SAVING = Saving(
    way="few_shot (k=3 bm25)",
    basis="tokens",
    prompt_tokens=500.0,
    new_tokens=-2.0,
    ms=120.0,
    calls_per_month=10_000.0,
    a_call=0.00005,
    cached=False,
    output_priced=False,
    hosting=0.0,
    a_month=0.5,
    hours=1.5,
    cost=3.0,
    calls=60_000.0,
    days=180.0,
    horizon=180.0,
)
NEVER = dataclasses.replace(SAVING, a_month=-0.1, calls=None, days=None)


def _case(*gains, saving=SAVING, forgot=None, required=False, **more):
    comparisons = tuple(
        Comparison(gain=gain, low=low, high=high, p=0.5, won=1, lost=1, n=400, units=400) for gain, low, high in gains
    )
    suite = forgot and Forgetting(verdict=forgot, reason="because", margin=0.02, probes=(), figures=())
    evidence = Evidence(forgetting=suite, forgetting_required=required, saving=saving)
    return Case(**{"terms": TERMS, "comparisons": comparisons, "evidence": evidence, **more})


@pytest.mark.parametrize(
    ("gain", "low", "high", "without"),
    [
        (0.00, -0.04, 0.04, "not better"),
        (0.02, 0.01, 0.04, "prompting is enough"),
        (0.02, -0.03, 0.07, "too little data to tell"),
        (-0.02, -0.04, -0.01, "not better"),  # worse for certain, but by less than the margin
    ],
)
def test_a_model_within_the_margin_that_pays_back_in_time(gain, low, high, without):
    c = (gain, low, high)
    assert decide(_case(c)).decision == "as good and cheaper" and EXIT_CODES["as good and cheaper"] == 16
    for saving in (None, NEVER, dataclasses.replace(SAVING, days=180.1)):
        assert decide(_case(c, saving=saving)).decision == without
    # Against every prompt, not the strongest alone; the margin itself is too much.
    for beside in ((0.01, -0.05, 0.07), (0.01, -0.06, 0.08)):
        assert decide(_case(c, beside)).decision != "as good and cheaper"
    assert decide(_case(c, (0.01, -0.049, 0.07))).decision == "as good and cheaper"
    # Below the bar by itself, though the prompt reaches it.
    bar = dataclasses.replace(TERMS, min_score=0.70)
    assert decide(_case(c, terms=bar, score=0.69, best_prompt_score=0.71)).decision == without
    # What takes a deploy back takes this back.
    assert decide(_case(c, forgot="regression")).decision == "regression"
    assert decide(_case(c, forgot="too little data to tell", required=True)).decision == "too little data to tell"
    assert decide(_case(c, forgot="too little data to tell")).decision == "as good and cheaper"
    # Half of the seeds have to be within the margin.
    assert decide(_case(c, seed_gains=(0.0, -0.04, -0.2, -0.2))).decision == "as good and cheaper"
    assert decide(_case(c, seed_gains=(0.0, -0.05, -0.2))).decision == without


def test_a_shown_gain_is_a_deploy_and_a_loss_is_none():
    assert decide(_case((0.10, 0.06, 0.14))).decision == "deploy"
    assert decide(_case((-0.10, -0.14, -0.06))).decision == "not better"


def test_the_words_say_the_break_even_and_what_is_in_it(capsys):
    arms = {
        "few_shot": outputs([1] * 300 + [0] * 100),
        "deployed": outputs([1] * 302 + [0] * 98),
        "prompt_deployed": outputs([1] * 299 + [0] * 101),
    }
    result = verdict(arms, selection("few_shot"), YES_NO, TERMS, evidence=Evidence(saving=SAVING))
    assert (result.decision, result.exit_code, result.deploy) == ("as good and cheaper", 16, False)
    assert "less than 5.0 points behind the best, and cheaper: it pays back 3.00 of training (1.50 h)" in result.reason
    assert "after 60,000 calls, 180.0 days (180 are allowed)" in result.reason and "no bar was set" in result.reason
    assert Verdict.parse(json.dumps(result.to_json(), allow_nan=False)) == result
    print_verdict(result, Console(width=120))
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "500 fewer prompt tokens, 2 more answer tokens and 120 fewer ms",
        "saved prompt tokens as uncached ones, answer tokens without a price",
        "10,000 calls save 0.50 a month, hosting not counted",
    ):
        assert words in printed
    hosted = dataclasses.replace(NEVER, cached=True, output_priced=True, hosting=0.6)
    assert "as cached ones, 10,000 calls save -0.10 a month, after 0.60 for hosting: it never pays back 3.00" in hosted.line
    assert "priced by the time that it takes, " in dataclasses.replace(SAVING, basis="time").line
    unknown = verdict(arms, selection("few_shot"), YES_NO, TERMS)
    assert any("add prompt_deployed to evaluate.arms" in sentence for sentence in unknown.advice)


def test_the_prompt_on_the_deployed_base_has_to_be_matched_where_it_is_ahead():
    arms = {
        "few_shot": outputs([1] * 300 + [0] * 100),
        "deployed": outputs([1] * 302 + [0] * 98),
        "prompt_deployed": outputs([1] * 350 + [0] * 50),
    }
    result = verdict(arms, selection("few_shot"), YES_NO, TERMS, evidence=Evidence(saving=SAVING))
    assert result.decision == "not better" and result.best_prompt == "prompt_deployed"


def test_the_prompt_that_is_deployed_is_the_best_of_dev_that_the_base_answers():
    short, long = Candidate(arm="instruction", instruction="x"), Candidate(arm="few_shot", instruction="x", k=3)
    figures = {"unscored": 0, "figures": {}, "prompt_tokens": 9.0, "new_tokens": 1.0, "finished": 1.0, "ms": 1.0}
    tries = ((short, 0.5), (long, 0.6))
    trials = tuple(Trial(name=c.name, arm=c.arm, candidate=c, n=40, score=score, **figures) for c, score in tries)
    chosen = Selection(
        finalists=("external:big", "instruction"),
        rivals=(),
        arms={"instruction": short, "few_shot": long},
        candidates=trials,
        search=None,
        dev_rows=40,
    )
    assert chosen.base_prompt == "instruction"
    assert dataclasses.replace(chosen, finalists=("external:big",)).base_prompt == "few_shot"
