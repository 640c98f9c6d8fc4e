import dataclasses
import json

import numpy as np
import pytest
from rich.console import Console
from scipy import stats as scipy_stats

from outputs import outputs, selection
from tunesmith.cli.text import print_verdict
from tunesmith.errors import RunError
from tunesmith.evaluate import resample, rule, stats
from tunesmith.evaluate.compare import compare, figure_with_interval
from tunesmith.evaluate.gate import EXIT_CODES, NOT_TRAINED, RULES, Case, Evidence, choose, decide, is_borderline, verdict
from tunesmith.evaluate.metrics import Metric
from tunesmith.rundir.records.choice import Choice
from tunesmith.rundir.records.evaluation import Comparison, Terms, Totals, Verdict
from tunesmith.rundir.records.evidence import Calibration, Forgetting, Judgement, SeedRun, Seeds
from tunesmith.rundir.records.parity import FormParity

YES_NO = Metric(name="exact_match", score=lambda answer, reference: {"score": 1.0}, tie_break="score", binary=True)
SHARES = dataclasses.replace(YES_NO, name="rouge", binary=False)
FEW_SHOT = selection("few_shot")
BETTER, WORTH = Terms(min_gain=0.05), Terms(min_gain=0.05, certainty="worth")


def _comparison(gain, low, high, n=100):
    return Comparison(gain=gain, low=low, high=high, p=0.5, won=1, lost=1, n=n, units=n)


def _case(*comparisons, terms=BETTER, **more):
    return Case(terms=terms, comparisons=comparisons, **more)


def _forgetting(verdict, required=False):
    suite = Forgetting(verdict=verdict, reason="because", margin=0.02, probes=(), figures=())
    return Evidence(forgetting=suite, forgetting_required=required)


@pytest.mark.parametrize(
    ("gain", "low", "high", "expected", "if_worth"),
    [
        (0.10, 0.06, 0.18, "deploy", "deploy"),  # worth it for certain
        (0.10, 0.02, 0.18, "deploy", "too little data to tell"),  # better for certain, worth it likely
        (0.05, 0.01, 0.09, "deploy", "too little data to tell"),  # exactly min_gain
        (0.10, -0.01, 0.20, "too little data to tell", "too little data to tell"),
        (0.04, 0.01, 0.08, "too little data to tell", "too little data to tell"),  # better for certain, not by enough
        (0.02, 0.01, 0.04, "prompting is enough", "prompting is enough"),
        (0.00, -0.03, 0.03, "not better", "not better"),
        (-0.10, -0.20, -0.01, "not better", "not better"),
        (-0.02, -0.12, 0.08, "too little data to tell", "too little data to tell"),
    ],
)
def test_decision(gain, low, high, expected, if_worth):
    c = _comparison(gain, low, high)
    assert decide(_case(c)).decision == expected and decide(_case(c, terms=WORTH)).decision == if_worth
    # Forgetting can take back a deploy and nothing else; what is not known blocks only when it is required.
    taken_back = "regression" if expected == "deploy" else expected
    assert decide(_case(c, evidence=_forgetting("regression"))).decision == taken_back
    assert decide(_case(c, evidence=_forgetting("too little data to tell"))).decision == expected
    unknown = "too little data to tell" if expected == "deploy" else expected
    assert decide(_case(c, evidence=_forgetting("too little data to tell", required=True))).decision == unknown
    assert decide(_case(c, evidence=_forgetting("no regression", required=True))).decision == expected


@pytest.mark.parametrize("numbers", [(0.10, 0.06, 0.18), (0.02, 0.01, 0.04), (-0.10, -0.20, -0.01), (0.04, -0.05, 0.12)])
def test_a_judge_that_does_not_agree_with_people_decides_nothing(numbers):
    def judged(calibrated):
        calibration = Calibration(calibrated=calibrated, reason="kappa 0.00; 0.6 is needed", n=120)
        return _case(_comparison(*numbers), evidence=Evidence(judge=Judgement(calibration=calibration, arms={})))

    assert decide(judged(False)).decision == "not calibrated" and "kappa 0.00" in decide(judged(False)).why(judged(False))
    assert EXIT_CODES["not calibrated"] == EXIT_CODES["too little data to tell"]
    assert decide(judged(True)) == decide(_case(_comparison(*numbers)))


def test_rows_without_a_score_block_above_one_in_twenty():
    strongest, other = (dataclasses.replace(_comparison(0.10, 0.06, 0.18, n=95), unscored=unscored) for unscored in (5, 6))
    assert decide(_case(strongest)).decision == "deploy"
    assert decide(_case(other)).decision == decide(_case(strongest, other)).decision == "too little data to tell"
    assert "6 of 101 rows (5.9 %) have no score" in decide(_case(strongest, other)).why(_case(strongest, other))


def test_every_prompt_has_to_be_beaten():
    strongest, other = _comparison(0.08, 0.02, 0.14), _comparison(0.09, 0.03, 0.15)
    assert decide(_case(strongest, other)).decision == "deploy"
    unsure = dataclasses.replace(other, low=-0.01)
    assert decide(_case(strongest, unsure)).decision == "too little data to tell"
    far_behind = _comparison(0.50, 0.40, 0.60)
    assert decide(_case(_comparison(0.0, -0.03, 0.03), far_behind)).decision == "not better"


@pytest.mark.parametrize(
    ("score", "prompt", "gain", "expected"),
    [
        (0.75, 0.60, 0.15, "deploy"),
        (0.69, 0.54, 0.15, "not good enough"),
        (0.70, 0.55, 0.15, "deploy"),  # exactly the bar
        (0.40, 0.65, -0.25, "not good enough"),
        (0.60, 0.75, -0.15, "not better"),  # the prompt is good enough
    ],
)
def test_below_the_bar_nothing_is_deployed(score, prompt, gain, expected):
    c = _comparison(gain, gain - 0.08, gain + 0.08)
    terms = Terms(min_gain=0.05, min_score=0.70)
    assert decide(_case(c, terms=terms, score=score, best_prompt_score=prompt)).decision == expected
    no_bar = decide(_case(c, score=score, best_prompt_score=prompt)).decision
    assert no_bar == ("deploy" if gain > 0 else "not better")


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((0.12, 0.08, 0.01), "deploy"),
        ((0.12, 0.01, 0.02), "too little data to tell"),
        ((0.12, 0.01), "deploy"),  # half of them
        ((), "deploy"),
    ],
)
def test_half_of_the_seeds_have_to_gain(gains, expected):
    assert decide(_case(_comparison(0.12, 0.06, 0.18), seed_gains=gains)).decision == expected
    assert decide(_case(_comparison(0.0, -0.03, 0.03), seed_gains=gains)).decision == "not better"


def test_exit_codes_are_distinct_and_clear_of_the_errors():
    import tunesmith.errors as errors

    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.TunesmithError)]
    own = [code for decision, code in EXIT_CODES.items() if decision != "not calibrated"]  # that is too little data on a judge
    codes = [kind.exit_code for kind in kinds] + own + [2, 130]
    assert len(set(codes)) == len(codes) and {row.decision for row in RULES} == set(EXIT_CODES)


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
    assert is_borderline(_case(_comparison(gain, low, high))) == expected


def _arms():
    return {
        "zero_shot": outputs([1] * 30 + [0] * 70),
        "few_shot": outputs([1] * 50 + [0] * 50),
        "few_shot:2": outputs([0] * 10 + [1] * 48 + [0] * 42),
        "tuned": outputs([1] * 95 + [0] * 5),
        "deployed": outputs([0] * 2 + [1] * 88 + [0] * 10),
    }


FINALISTS = selection("few_shot:2", "few_shot", rivals=("zero_shot",))


def test_a_deployed_form_that_failed_parity_outranks_every_other_verdict():
    failed = FormParity(
        form="Q4_K_M",
        file="q4.gguf",
        state="not deployable",
        reason="adapter: it has no effect in this form",
        checks={},
    )
    hopeless = {**_arms(), "deployed": outputs([0] * 100)}
    bar = dataclasses.replace(BETTER, min_score=0.99)
    for arms, terms in ((_arms(), BETTER), (hopeless, BETTER), (_arms(), bar)):
        result = verdict(arms, FINALISTS, YES_NO, terms, evidence=Evidence(parity=failed))
        assert (result.decision, result.exit_code) == (NOT_TRAINED, 14) and result.parity == failed
        assert "Q4_K_M failed parity (adapter: it has no effect" in result.reason
        assert not result.borderline and "tunesmith parity" in result.advice[0]
        plain = verdict(arms, FINALISTS, YES_NO, terms)
        for state in ("deployable", "unknown"):
            parity = dataclasses.replace(failed, state=state, reason="too few rows")
            same = verdict(arms, FINALISTS, YES_NO, terms, evidence=Evidence(parity=parity))
            assert same.decision == plain.decision != NOT_TRAINED
            assert ("is not known (too few rows)" in same.reason) == (state == "unknown")


def test_verdict_is_on_the_deployed_arm_against_every_finalist_and_the_headline_against_the_strongest():
    arms = _arms()
    result = verdict(arms, FINALISTS, YES_NO, BETTER)
    assert result.decision == "deploy" and result.candidate == "deployed" and result.exit_code == 0 and result.deploy
    assert [rival.name for rival in result.rivals] == ["few_shot", "few_shot:2"]  # the second on dev is the first on test
    assert [rival.score for rival in result.rivals] == [0.50, 0.48] and all(rival.finalist for rival in result.rivals)
    c = result.comparison
    assert (c.gain, c.won, c.lost) == (pytest.approx(0.38), 40, 2) and c.p < 1e-8 and result.rivals[0].comparison == c
    few_shot, zero_shot, deployed = (result.arm(name) for name in ("few_shot", "zero_shot", "deployed"))
    assert few_shot.against is None and zero_shot.against.gain == pytest.approx(-0.2) and deployed.against == c
    assert deployed.ms == 500 and deployed.prompt_tokens == 9
    assert deployed.totals == Totals(prompt_tokens=900, new_tokens=100, seconds=50.0, cost=None)
    assert result.deployed_loss.gain == pytest.approx(-0.07) and result.deployed_loss.lost == 7
    assert result.differing.won == tuple(str(i) for i in range(50, 90)) and result.differing.lost == ("0", "1")
    assert result.differing.only_tuning == tuple(str(i) for i in range(58, 90))
    assert result.rows_to_settle is None and result.borderline is False and result.advice == ()
    assert Verdict.parse(json.dumps(result.to_json(), allow_nan=False)) == result
    with pytest.raises(RunError, match="few_shot:2: a prompt that has to be beaten"):
        verdict({name: arm for name, arm in arms.items() if name != "few_shot:2"}, FINALISTS, YES_NO, BETTER)
    del arms["deployed"]
    result = verdict(arms, FINALISTS, YES_NO, BETTER)
    assert "the deployed form was not scored" in result.reason and result.deployed_loss is None
    del arms["tuned"]
    with pytest.raises(RunError, match="neither"):
        verdict(arms, FINALISTS, YES_NO, BETTER)


def test_a_prompt_that_dev_did_not_choose_and_that_is_ahead_has_to_be_beaten_too():
    """An accident: another prompt arm got 60 of 100, the tuned model 40, the chosen prompt 25, and the verdict was deploy."""
    arms = {
        "few_shot": outputs([1] * 25 + [0] * 75),
        "instruction": outputs([1] * 60 + [0] * 40),
        "external:big": outputs([1] * 90 + [0] * 10),
        "tuned": outputs([1] * 40 + [0] * 60),
    }
    result = verdict(arms, selection("few_shot", rivals=("instruction",)), YES_NO, BETTER)
    assert result.decision == "not better" and result.best_prompt == "instruction" and not result.rivals[0].finalist
    assert "over instruction, which dev did not choose" in result.reason
    assert result.ahead == ("external:big",) and "external:big, which the recipe does not hold against it" in result.reason
    del arms["instruction"]
    alone = verdict(arms, FEW_SHOT, YES_NO, BETTER)
    assert alone.decision == "deploy" and "external:big" in alone.reason  # shown beside, by the recipe's own word


def test_words_claim_what_was_shown():
    """Better for certain is not worth it for certain; that no bar was set is said; a bar is met for certain or likely."""
    arms = {"few_shot": outputs([1] * 50 + [0] * 50), "tuned": outputs([0] * 4 + [1] * 60 + [0] * 36)}
    likely = verdict(arms, FEW_SHOT, YES_NO, BETTER)
    assert (likely.decision, likely.better, likely.worth) == ("deploy", True, "likely")
    assert "better for certain; that it is by the 5.0 points asked for is likely, not certain" in likely.reason
    assert "no bar was set" in likely.reason and "whether general skills were lost is not known" in likely.reason
    unsure = verdict(arms, FEW_SHOT, YES_NO, WORTH)
    assert unsure.decision == "too little data to tell" and "can be by more or less than the 5.0" in unsure.reason
    certain = verdict(_arms(), FINALISTS, YES_NO, WORTH)
    assert (certain.decision, certain.worth) == ("deploy", "certain")
    assert "better for certain than each of 2 prompts, and for certain by the 5.0 points asked for" in certain.reason
    for bar, sure in ((0.55, "is likely, not certain"), (0.45, "for certain")):
        met = verdict(arms, FEW_SHOT, YES_NO, dataclasses.replace(BETTER, min_score=bar))
        assert met.decision == "deploy" and f"task.min_score, {'which ' if 'likely' in sure else ''}{sure}" in met.reason
        assert "no bar" not in met.reason
    below = verdict(arms, FEW_SHOT, YES_NO, dataclasses.replace(BETTER, min_score=0.61))
    assert (below.decision, below.exit_code) == ("not good enough", 15)
    assert (
        "it scores 60.0 of 100, the best prompt 50.0; task.min_score asks 61.0; 95 % interval of tuned 50.2 to" in below.reason
    )


def test_a_run_that_only_got_worse_says_so_and_what_to_lower():
    result = verdict(_arms(), FINALISTS, YES_NO, BETTER, evidence=Evidence(only_worse=True))
    assert result.only_worse and "lowered no dev loss" in result.reason and "train.learning_rate" in result.advice[0]
    assert result.decision == verdict(_arms(), FINALISTS, YES_NO, BETTER).decision


def test_forgetting_is_in_the_verdict_and_its_reason():
    def with_suite(suite, required=False):
        return verdict(_arms(), FINALISTS, YES_NO, BETTER, evidence=_forgetting(suite, required))

    kept = with_suite("no regression")
    assert kept.decision == "deploy" and "general skills" not in kept.reason
    lost = with_suite("regression")
    assert (lost.decision, lost.exit_code) == ("regression", 13) and "skills were lost (because)" in lost.reason
    unknown = with_suite("too little data to tell")
    assert unknown.decision == "deploy" and "is not known" in unknown.reason
    required = with_suite("too little data to tell", required=True)
    assert required.decision == "too little data to tell" and "required" in required.reason
    assert required.rows_to_settle is None  # more test rows would not tell more of general skills


def test_of_several_candidates_each_answers_for_what_it_has_forgotten():
    """The higher one lost skills, so the verdict is of the other, a file that was asked as it is deployed."""
    arms = _arms()
    arms = {**{name: arms[name] for name in FINALISTS.rivals}, "tuned:a": arms["tuned"], "tuned:b": arms["deployed"]}
    lost, kept = (_forgetting(suite).forgetting for suite in ("regression", "no regression"))
    for form, said in (("", True), ("b.gguf", False)):
        each = {"tuned:a": lost, "tuned:b": dataclasses.replace(kept, form=form)}
        result = verdict(arms, FINALISTS, YES_NO, BETTER, evidence=Evidence(forgetting_of=each, form="several"))
        assert [(one.name, one.decision) for one in result.candidates] == [("tuned:a", "regression"), ("tuned:b", "deploy")]
        assert {one.name: one.forgetting for one in result.candidates} == each
        assert (result.candidate, result.decision, result.forgetting) == ("tuned:b", "deploy", each["tuned:b"])
        assert ("the deployed form was not scored" in result.reason) is said
        assert f"gate b alone: its {'deployed form and its ' * said}parity" in result.advice[0]


def test_of_several_candidates_the_file_of_the_chosen_one_is_judged_at_the_share_of_one():
    """Both models pass; the better one's file lost skills and points, and no other takes its place."""
    arms = _arms()
    models = {name: arms[name] for name in FINALISTS.rivals} | {"tuned:a": arms["tuned"], "tuned:b": arms["deployed"]}
    kept, lost = (_forgetting(suite).forgetting for suite in ("no regression", "regression"))
    evidence = Evidence(forgetting_of={"tuned:a": kept, "tuned:b": kept, "": lost}, form="several")
    name, standing = choose(models, FINALISTS, YES_NO, BETTER, evidence=evidence)
    assert name == "tuned:a" and [one.decision for one in standing] == ["deploy", "deploy"]
    choice = Choice(name=name, key="k", candidates=standing)
    evidence = dataclasses.replace(evidence, choice=choice, forgetting=lost)
    result = verdict(models | {"deployed": outputs([1] * 80 + [0] * 20)}, FINALISTS, YES_NO, BETTER, evidence=evidence)
    assert (result.candidate, result.chosen, result.decision) == ("deployed", "tuned:a", "regression")
    assert result.forgetting == lost and result.candidates == standing and result.score == 0.80
    assert result.terms.alpha == result.comparison.alpha == 0.025 and standing[1].comparison.alpha == 0.05
    assert result.deployed_loss is not None and result.deployed_loss.gain == pytest.approx(-0.15)
    assert result.reason.startswith("deployed (a) gains")
    assert "tuned:a was chosen from 2 candidates at 95.0" in result.reason and "tuned:b 88.0" in result.reason
    assert not any("alone" in sentence for sentence in result.advice)


def test_too_little_data_says_how_many_rows_and_asks_for_seeds_once():
    arms = {"few_shot": outputs([1] * 50 + [0] * 50), "tuned": outputs([0] * 9 + [1] * 58 + [0] * 33)}
    result = verdict(arms, FEW_SHOT, YES_NO, BETTER)
    assert result.decision == "too little data to tell" and result.borderline
    assert result.planned == 0.10 and result.n_needed == rule.planned_rows(0.26, 0.10, BETTER)
    assert result.rows_to_settle == rule.rows_to_settle(result.comparison, BETTER) > 100
    assert f"{result.rows_to_settle - 100:,} more test rows settle it four times in five" in result.advice[0]
    assert f"a true gain of 10.0 points is deployed four times in five from {result.n_needed} rows on" in result.advice[1]
    assert any("evaluate.seeds: 3" in sentence for sentence in result.advice)
    runs = tuple(SeedRun(seed=k, score=score, best_dev_loss=1.0) for k, score in enumerate((0.58, 0.52, 0.60)))
    seeds = Seeds(arm="tuned", n=100, runs=runs, mean=0.57, min=0.52, max=0.6, sd=0.04)
    result = verdict(arms, FEW_SHOT, YES_NO, BETTER, evidence=Evidence(seeds=seeds))
    assert result.seed_gains == pytest.approx((0.08, 0.02, 0.10))
    assert not any("evaluate.seeds" in sentence for sentence in result.advice)
    assert any("2 of 3 seeds gain at least 5.0 points" in sentence for sentence in result.advice)


def test_unscored_rows_leave_the_pair_and_are_counted():
    ours, theirs = outputs([None, 1.0, 0.5, 1.0, None, 0.0]), outputs([0.5, None, 0.5, 0.5, None, 0.5])
    c = compare(ours, theirs, SHARES)
    assert (c.n, c.unscored, c.gain, c.won, c.lost) == (3, 3, 0.0, 1, 1)
    result = verdict({"few_shot": theirs, "tuned": ours}, FEW_SHOT, SHARES, BETTER)
    assert result.arm("tuned").score == pytest.approx(0.625) and result.arm("tuned").unscored == 2
    assert (result.differing.won, result.differing.lost, result.differing.only_tuning) == (("3",), ("5",), ("3",))
    assert result.decision == "too little data to tell" and "3 of 6 rows (50.0 %) have no score" in result.reason
    assert "were all of them lost, the gain would be -50.0, were all won +50.0" in result.reason
    json.dumps(result.to_json(), allow_nan=False)
    with pytest.raises(RunError, match="none of 2 rows"):
        compare(ours[:2], theirs[:2], SHARES)


def test_scores_between_wrong_and_right_are_bootstrapped_row_by_row():
    rng = np.random.default_rng(0)
    base = rng.beta(2, 2, 300)
    ours, theirs = outputs(np.clip(base + rng.normal(0.05, 0.1, 300), 0, 1)), outputs(base)
    c = compare(ours, theirs, SHARES)
    d = np.array([a.score - b.score for a, b in zip(ours, theirs, strict=True)])
    expected = scipy_stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert (c.low, c.high) == pytest.approx((expected.low, expected.high), abs=0.001) and c.p < 0.001
    figure, (low, high) = figure_with_interval(theirs, SHARES)
    assert figure == pytest.approx(base.mean()) and high - low == pytest.approx(3.92 * base.std() / np.sqrt(300), rel=0.04)


def test_an_arm_that_is_always_wrong_has_an_interval():
    assert figure_with_interval(outputs([0.0] * 20), SHARES) == (0.0, stats.wilson(0, 20))
    assert compare(outputs([0.0] * 20), outputs([0.0] * 20), SHARES).high > 0.1


def test_groups_are_drawn_whole():
    rng = np.random.default_rng(2)
    of_group = rng.choice([-1, 0, 1], size=30, p=[0.2, 0.4, 0.4])
    differs = np.repeat(of_group, 8)
    ours, theirs = outputs(differs == 1), outputs(differs == -1)
    alone = compare(ours, theirs, YES_NO)
    together = compare(ours, theirs, YES_NO, [str(i // 8) for i in range(240)])
    assert alone.gain == together.gain and (together.units, together.n) == (30, 240)
    assert together.high - together.low == pytest.approx(np.sqrt(8) * (alone.high - alone.low), rel=0.1)
    assert together.p > 20 * alone.p
    assert compare(ours, theirs, YES_NO, [str(i) for i in range(240)]) == alone
    with pytest.raises(RunError, match="group"):
        compare(ours, theirs, YES_NO, ["a"] * 240)
    assert verdict({"few_shot": theirs, "tuned": ours}, FEW_SHOT, YES_NO, BETTER, ["a", "b"] * 120).clusters == 2


def test_a_corpus_metric_is_computed_anew_on_every_draw():
    """The share of right answers squared: no mean of rows, so what is bootstrapped must be the square."""
    square = dataclasses.replace(
        YES_NO, corpus=resample.SumStatistic(resample.MEAN.counts, lambda s: (s[..., 0] / s[..., 1]) ** 2)
    )
    arms = {"few_shot": outputs([1] * 50 + [0] * 150), "tuned": outputs([1] * 120 + [0] * 80)}
    result = verdict(arms, FEW_SHOT, square, BETTER)
    assert result.corpus_metric and result.comparison.gain == pytest.approx(0.36 - 0.0625)
    tuned = result.arm("tuned")
    assert tuned.score == pytest.approx(0.36)
    low, high = stats.wilson(120, 200)
    assert (tuned.low, tuned.high) == pytest.approx((low**2, high**2), abs=0.01)


def test_arms_on_different_rows_are_refused():
    with pytest.raises(RunError, match="different rows"):
        compare(outputs([1, 0]), outputs([1, 0, 1]), YES_NO)


def test_the_terminal_shows_every_rival_and_the_answers_that_were_cut(capsys):
    arms = {**_arms(), "few_shot:2": outputs([0] * 10 + [1] * 48 + [0] * 42, finished=False)}
    result = verdict(arms, FINALISTS, YES_NO, dataclasses.replace(BETTER, min_score=0.95))
    print_verdict(result, Console(width=120))
    printed = capsys.readouterr().out
    assert "verdict: not good enough" in printed and result.reason in printed
    assert "few_shot +38.0 (+27.7 to +48.3); few_shot:2 +40.0" in printed
    assert "deploy a true gain of" in printed and "(min_gain 5.0, certainty better)" in printed
    head = next(line for line in printed.splitlines() if "cut off" in line)
    cut = {
        line.split()[0]: line[: head.index("cut off") + 7].split()[-1] for line in printed.split("cut off")[1].splitlines()[2:7]
    }
    assert cut == {name: "100" if name == "few_shot:2" else "0" for name in arms}
