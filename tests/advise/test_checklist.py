"""The rules: every row's three states at its bounds, and the one ending that follows."""

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.advise import checklist as rules
from tunesmith.advise.checklist import checklist, rows_in_all
from tunesmith.advise.decide import ELSEWHERE, EXIT_CODES, decide
from tunesmith.advise.price import break_even, by_time, by_tokens
from tunesmith.data.size_advice import BANDS as SIZES
from tunesmith.evaluate import gate, rule
from tunesmith.recipe import Lora, Train
from tunesmith.recipe.derive import BANDS, derive, width_of_update
from tunesmith.rundir.records.advice import (
    Advice,
    DevArm,
    Facts,
    MachineFacts,
    MemoryFacts,
    MetricFacts,
    PriceFacts,
    RowFacts,
)
from tunesmith.rundir.records.evaluation import Terms
from tunesmith.rundir.records.evidence import CrossFit

GB = 10**9
ROWS = RowFacts(
    rows=1500,
    distinct=1500,
    prompts=1500,
    conflicting=0,
    distinct_4=0.9,
    compression=3.0,
    sampled=1500,
    train=1125,
    dev=75,
    test=300,
    split=True,
    tokens=120_000,
    supervised=60_000,
    counted=True,
)
METRIC = MetricFacts(
    name="json",
    tried=375,
    calibrated=None,
    min_gain=0.10,
    planned=0.2,
    detectable=0.12,
    test_needed=62,
    discordance=0.2,
    min_score=None,
)
PRICE = PriceFacts(calls_per_month=100_000, per_million=1.0, per_hour=2.0, tokens_saved=500, counted=True)
MACHINE = MachineFacts(name="a GPU", kind="gpu", cores=8, memory=24 * GB)
MEMORY = MemoryFacts(
    base="bf16", by_base={"bf16": 10 * GB, "nf4": 5 * GB}, why_not="", parameters=10**9, adapter_per_rank=1_000_000, hidden=2048
)
NO_SIZES = MemoryFacts(base="auto", by_base={}, why_not="not fetched", parameters=0, adapter_per_rank=0, hidden=0)


def arm(name, score, retrieves=False, tokens=600.0):
    return DevArm(
        name=name,
        detail=name,
        score=score,
        n=64,
        prompt_tokens=tokens,
        new_tokens=40,
        retrieves=retrieves,
    )


def fit(score, below=0.1):
    """A figure whose bound lies so far below it."""
    low, high = max(0.0, score - 1.1 * below), min(1.0, score + below)
    return CrossFit(score=score, low=low, high=high, bound=max(0.0, score - below), n=64)


ALL = Facts(
    rows=ROWS,
    metric=METRIC,
    arms=(arm("instruction", 0.3), arm("few_shot", 0.5)),
    prompt=fit(0.5),
    retrieval=None,
    documents=True,
    price=PRICE,
    machine=MACHINE,
    memory=MEMORY,
)


def facts(**changes):
    """``ALL`` with changes; where the arms change, their best scores are the cross-fitted figures, sure to 1 point."""
    changed = ALL
    if "arms" in changes:
        best = {searches: [a.score for a in changes["arms"] if a.retrieves == searches] for searches in (False, True)}
        figures = {searches: fit(max(scores), 0.01) if scores else None for searches, scores in best.items()}
        changed = dataclasses.replace(changed, prompt=figures[False], retrieval=figures[True])
    for key, value in changes.items():
        section, _, name = key.partition("__")
        value = dataclasses.replace(getattr(changed, section), **{name: value}) if name else value
        changed = dataclasses.replace(changed, **{section: value})
    return changed


@pytest.mark.parametrize(
    ("check", "changes", "state"),
    [
        (rules.PROMPT, {}, "pass"),
        (rules.PROMPT, {"arms": ()}, "unknown"),
        (rules.PROMPT, {"arms": (arm("instruction", 0.90),)}, "pass"),  # exactly min_gain is left
        (rules.PROMPT, {"arms": (arm("instruction", 0.91),)}, "stop"),
        (rules.PROMPT, {"arms": (arm("instruction", 1.0),), "metric__min_gain": 0.0}, "stop"),
        (rules.PROMPT, {"arms": (arm("instruction", 0.95),), "metric__calibrated": True}, "unknown"),
        # Sure to 10 points, sure to 11; the figure is what counts, not what the winner got on the rows that chose it.
        (rules.PROMPT, {"arms": (arm("instruction", 0.95),), "prompt": fit(0.95, 0.10)}, "stop"),
        (rules.PROMPT, {"arms": (arm("instruction", 0.95),), "prompt": fit(0.95, 0.11)}, "unknown"),
        (rules.PROMPT, {"arms": (arm("instruction", 1.0),), "prompt": fit(0.85, 0.01)}, "pass"),
        (rules.PROMPT, {"prompt": None}, "unknown"),
        (rules.RETRIEVAL, {}, "unknown"),
        (rules.RETRIEVAL, {"arms": (arm("a", 0.5), arm("b", 0.9, True)), "metric__calibrated": True}, "unknown"),
        (rules.RETRIEVAL, {"arms": (arm("few_shot", 0.5), arm("retrieval", 0.55, True))}, "pass"),
        (rules.RETRIEVAL, {"arms": (arm("few_shot", 0.5), arm("retrieval", 0.4, True))}, "pass"),
        (rules.RETRIEVAL, {"arms": (arm("few_shot", 0.5), arm("retrieval", 0.7, True))}, "unknown"),  # 40 % of what lacks
        (rules.RETRIEVAL, {"arms": (arm("few_shot", 0.5), arm("retrieval", 0.75, True))}, "stop"),
        (rules.RETRIEVAL, {"arms": (arm("few_shot", 0.5), arm("retrieval", 0.75, True)), "retrieval": fit(0.7)}, "unknown"),
        (rules.RETRIEVAL, {"arms": (arm("few_shot", 0.5), arm("retrieval", 0.75, True)), "retrieval": None}, "unknown"),
        (rules.ROWS, {}, "pass"),
        (rules.ROWS, {"rows__train": 199, "rows__rows": 199, "rows__distinct": 199, "rows__prompts": None}, "unknown"),
        (rules.ROWS, {"rows__prompts": 60}, "stop"),  # 1,500 rows of 60 prompts: 45 of them to train on
        (rules.VARIETY, {}, "pass"),
        (rules.VARIETY, {"rows__distinct_4": 0.2}, "unknown"),
        (rules.VARIETY, {"rows__distinct_4": 0.2, "rows__sampled": 100}, "pass"),
        (rules.VARIETY, {"rows__conflicting": 76}, "unknown"),
        (rules.METRIC, {"metric__calibrated": False}, "unknown"),
        (rules.METRIC, {"metric__calibrated": True}, "pass"),
        (rules.RESOLUTION, {}, "pass"),
        (rules.RESOLUTION, {"metric__detectable": 0.21}, "unknown"),  # another split of these rows would do
        (rules.RESOLUTION, {"metric__detectable": 0.21, "metric__test_needed": 1500}, "stop"),
        (rules.RESOLUTION, {"metric__min_gain": 0.0}, "unknown"),
        (rules.PRICE, {}, "pass"),
        (rules.PRICE, {"price__per_hour": None}, "unknown"),
        (rules.PRICE, {"price__tokens_saved": 0.0}, "stop"),
        (rules.PRICE, {"price__calls_per_month": 100}, "stop"),
        (rules.HARDWARE, {}, "pass"),
        (rules.HARDWARE, {"machine__memory": 10.4 * GB}, "pass"),  # nf4, with room to spare
        (rules.HARDWARE, {"machine__memory": 5.1 * GB}, "unknown"),
        (rules.HARDWARE, {"machine__memory": 4 * GB}, "stop"),
        (rules.HARDWARE, {"machine__memory": None}, "unknown"),
        (rules.HARDWARE, {"memory": NO_SIZES}, "unknown"),
        (rules.HARDWARE, {"machine__kind": "cpu"}, "pass"),  # 1.5 times bf16
    ],
)
def test_states(check, changes, state):
    row = next(row for row in checklist(facts(**changes), 1.0) if row.check == check)
    assert row.state == state, row
    assert row.evidence and (row.hint or state == "pass")


@pytest.mark.parametrize(
    ("changes", "ending", "code"),
    [
        ({}, "tune", 0),
        ({"arms": ()}, "tune", 0),
        ({"machine__memory": 4 * GB}, "tune", ELSEWHERE),
        ({"arms": (arm("few_shot", 0.95),)}, "prompt is enough", 21),
        ({"arms": (arm("few_shot", 0.5), arm("retrieval", 0.8, True))}, "use retrieval", 22),
        ({"arms": (arm("few_shot", 0.7),), "metric__min_score": 0.68}, "prompt is enough", 21),  # for certain good enough
        ({"arms": (arm("few_shot", 0.7),), "metric__min_score": 0.69}, "tune", 0),  # likely, not certain
        ({"rows__prompts": 60}, "collect more rows", 23),
        ({"metric__detectable": 0.25, "metric__test_needed": 2000}, "collect more rows", 23),
        # A cheap ending goes before a dear one.
        ({"rows__prompts": 60, "arms": (arm("few_shot", 0.95),)}, "prompt is enough", 21),
        ({"rows__prompts": 60, "arms": (arm("few_shot", 0.1), arm("retrieval", 0.8, True))}, "use retrieval", 22),
        ({"price__calls_per_month": 0}, "tune", 0),  # quality is a reason without a saving
    ],
)
def test_endings(changes, ending, code):
    advice = decide(facts(**changes), 1.0)
    assert (advice.ending, advice.exit_code) == (ending, code)
    assert advice.provisional == (changes.get("arms") == ())
    assert (advice.settings is not None) == (ending == "tune")
    assert (advice.more_rows is not None) == (ending == "collect more rows")
    assert (advice.arm is not None) == (ending in ("prompt is enough", "use retrieval"))
    assert Advice.parse(advice.to_json()) == advice


def test_exit_codes_are_free():
    taken = {2, *range(3, 10), 20, 130, *gate.EXIT_CODES.values()} - {0}
    codes = {*EXIT_CODES.values(), ELSEWHERE}
    assert not codes & taken and len(codes) == 5


@pytest.mark.parametrize("changes", [{"rows__prompts": 60}, {"metric__detectable": 0.25, "metric__test_needed": 2000}])
def test_as_many_rows_as_asked_for_are_enough(changes):
    """The advice, taken, ends the advice: with the rows collected (and split as told) nothing stops any more."""
    before = facts(**changes)
    more = decide(before, 1.0).more_rows
    total = before.rows.rows + more
    test = max(before.metric.test_needed, before.rows.test)
    dev = math.ceil(before.rows.dev / before.rows.rows * total)
    grown = {"rows": total, "distinct": before.rows.distinct + more, "prompts": before.rows.prompts + more}
    rows = dataclasses.replace(before.rows, **grown, train=total - test - dev, dev=dev, test=test)
    metric = dataclasses.replace(before.metric, detectable=before.metric.planned)
    after = dataclasses.replace(before, rows=rows, metric=metric)
    assert decide(after, 1.0).ending == "tune"


@given(gain=st.floats(0.02, 0.4), share=st.floats(0.01, 1.0), dev=st.integers(10, 200))
def test_rows_in_all_leave_200_to_train_on(gain, share, dev):
    needed = rule.planned_rows(max(2 * gain, share), 2 * gain, Terms(min_gain=gain))
    changed = facts(metric__test_needed=needed, rows__dev=dev)
    total = rows_in_all(changed)
    assert total - needed - total * dev / changed.rows.rows >= rules.FEW - 1e-6


def test_another_split_shows_the_gain():
    changed = facts(metric__detectable=0.25, metric__test_needed=626, metric__min_gain=0.05)
    advice = decide(changed, 1.0)
    assert advice.ending == "tune" and advice.settings.test_fraction == 0.42
    assert math.floor(advice.settings.test_fraction * changed.rows.rows) >= 626
    assert advice.settings.keys["data.test_fraction"] == 0.42
    assert decide(facts(), 1.0).settings.test_fraction is None


@pytest.mark.parametrize(
    ("rows", "r", "epochs"), [(100, 8, 4), (199, 8, 4), (200, 8, 3), (999, 16, 3), (4999, 16, 2), (50_000, 32, 1)]
)
def test_rank_and_epochs_follow_the_train_rows(rows, r, epochs):
    many = {f"rows__{name}": rows for name in ("rows", "distinct", "prompts", "train")}
    settings = decide(facts(**many), 1.0).settings
    assert (settings.r, settings.num_train_epochs, settings.alpha) == (r, epochs, 32)
    derived = {"train.num_train_epochs", "train.tokens_per_step", "train.learning_rate"}
    assert {"base", "lora.r", "lora.alpha", *derived} == set(settings.why) == set(settings.keys)


def test_advice_names_what_auto_comes_to():
    for rslora in (False, True):
        seen = dataclasses.replace(facts(), use_rslora=rslora)
        settings = decide(seen, 1.0).settings
        update = width_of_update(Lora(r=settings.r, alpha=32, use_rslora=rslora))
        rows = {"rows": seen.rows.train, "tokens": seen.rows.tokens, "supervised": seen.rows.supervised}
        trained = derive(Train(), **rows, hidden=2048, update=update).settings
        assert settings.learning_rate == trained.learning_rate and settings.tokens_per_step == trained.tokens_per_step
    unknown = decide(facts(memory=NO_SIZES), 1.0).settings
    assert unknown.learning_rate is None and "train.learning_rate" not in {*unknown.keys, *unknown.why}
    guessed = decide(facts(rows__counted=False), 1.0).settings
    assert guessed.tokens_per_step is None and "train.tokens_per_step" not in {*guessed.keys, *guessed.why}


def test_bands_are_those_of_the_check():
    assert [bound for bound, _, _ in BANDS] == [bound for bound, _, _ in SIZES]


def test_rank_grows_until_the_adapter_holds_the_answers():
    settings = decide(facts(rows__supervised=70e6), 1.0).settings  # 70 Mbit in 2 Mbit a rank
    assert settings.r == 64 and "supervised tokens" in settings.why["lora.r"]
    assert decide(facts(rows__supervised=1e12), 1.0).settings.r == 256


@pytest.mark.parametrize(
    ("memory", "base", "fits"),
    [(24, "bf16", True), (10.4, "nf4", True), (6, "nf4", True), (4, "nf4", False), (None, "bf16", True)],
)
def test_the_first_base_that_fits(memory, base, fits):
    settings = decide(facts(machine__memory=memory and memory * GB), 1.0).settings
    assert (settings.base, settings.fits) == (base, fits)


@pytest.mark.parametrize(
    ("base", "memory", "spare", "hint"),
    [
        ("bf16", 24, 3 * GB, ""),  # of a base that is not taken
        ("bf16", 10.4, 3 * GB, "base: nf4 fits with room to spare; base_budget: auto gives .* in up to 3.00 GB that are left"),
        ("nf4", 24, 3 * GB, "base_budget: auto"),
        ("nf4", 24, 0, ""),
    ],
)
def test_what_nf4_leaves_over_is_offered_where_nf4_is_the_base(base, memory, spare, hint):
    checks = checklist(facts(memory__base=base, memory__spare=spare, machine__memory=memory * GB), 1.0)
    found = next(check.hint for check in checks if check.check == rules.HARDWARE)
    assert re.match(hint, found) if hint else not found


def test_the_best_prompt_is_the_shorter_of_equals_and_never_retrieves():
    arms = (arm("few_shot", 0.5, tokens=900), arm("instruction", 0.5, tokens=300), arm("retrieval", 0.9, True))
    assert facts(arms=arms).best_prompt().name == "instruction" and facts(arms=arms).best_retrieval().name == "retrieval"


def test_break_even():
    advice = break_even(30_000, by_tokens(500, 2.0), 6.0)
    assert advice.a_month == pytest.approx(30.0) and advice.cost == 6.0
    assert advice.requests == pytest.approx(6000) and advice.days == pytest.approx(6.0)
    # What was saved by then is what the training cost.
    assert advice.requests * by_tokens(500, 2.0) == pytest.approx(advice.cost)
    assert break_even(30_000, by_tokens(-5, 2.0), 6.0).requests == math.inf
    assert break_even(30_000, 0.0, 0.0).days == math.inf  # free, and nothing is saved
    assert break_even(0, by_tokens(500, 2.0), 6.0).days == math.inf


def test_caching_hosting_answers_and_seconds_have_their_price():
    # 10,000 calls a month that save 500 prompt tokens at 0.10 a million.
    assert break_even(10_000, by_tokens(500, 0.10), 3.0).a_month == pytest.approx(0.50)
    assert break_even(10_000, by_tokens(500, 0.10), 3.0).days == pytest.approx(180.0)
    assert break_even(10_000, by_tokens(500, 0.10, cached=0.01), 3.0).a_month == pytest.approx(0.05)
    assert break_even(10_000, by_tokens(500, 0.10, cached=0.0), 3.0).days == math.inf
    assert break_even(10_000, by_tokens(500, 0.10, new_tokens=-50, output=0.40), 3.0).a_month == pytest.approx(0.30)
    # Hosting is paid each month, before the training is: 60 a month saved, 20 of it for hosting, 40 pay 20 in half a month.
    hosted = break_even(60_000, by_tokens(1000, 1.0), 20.0, hosting=20.0)
    assert (hosted.a_month, hosted.days, hosted.requests) == pytest.approx((40.0, 15.0, 30_000))
    assert break_even(60_000, by_tokens(1000, 1.0), 20.0, hosting=60.0).days == math.inf
    assert break_even(7_200, by_time(0.5, 2.0), 1.0).a_month == pytest.approx(2.0)  # an hour of a machine at 2 an hour


def test_the_check_says_what_is_in_the_saving():
    line = checklist(facts(), 1.0)[6].evidence
    assert "50.00 a month (hosting not counted, answers of today's length)" in line and "cached" not in line
    line = checklist(facts(price__per_million_cached=0.1, price__hosting=2.0), 1.0)[6].evidence
    assert "priced as cached ones, 3.00 a month (after 2.00 for hosting" in line
