"""The fastest plan that fits: exact dials before those that round, and never one that does not fit."""

from dataclasses import replace

import pytest

from tunesmith.formatting import gb, parse_amount
from tunesmith.memory.cards import find_card
from tunesmith.memory.dials import Dials
from tunesmith.memory.estimate import estimate
from tunesmith.memory.plan import CONTEXT, Rates, make_plan, recompute_name, seconds, settings
from tunesmith.memory.techniques import TECHNIQUES, needed, sizes

CARD = find_card("RTX 4090")
assert CARD is not None
RATES = Rates.of(CARD)
SHAPES = {size.name: size.shape for size in sizes()}
GIVEN = Dials(rows=287, recompute="auto")


def test_more_memory_is_never_slower_and_what_is_planned_fits():
    for name in ("1B", "8B"):
        before = float("inf")
        for budget in (1.5e9, 2e9, 3e9, 4e9, 5e9, 6e9, 7e9, 8e9, 10e9, 12e9, 16e9, 24e9):
            plan = make_plan(SHAPES[name], GIVEN, int(budget), RATES)
            assert plan.fits == (plan.chosen.needs(CONTEXT) <= budget)
            if plan.fits and not plan.rounds:
                assert plan.chosen.seconds is not None and plan.chosen.seconds <= before
                before = plan.chosen.seconds
            assert all(point.needs(CONTEXT) > budget for point in plan.passed_over)
        assert before < float("inf")


def test_plenty_turns_nothing_and_little_turns_all():
    plenty = make_plan(SHAPES["8B"], GIVEN, 80 * 10**9, RATES)
    assert plenty.fits and plenty.chosen.dials == replace(GIVEN, recompute="none") and not plenty.passed_over
    little = make_plan(SHAPES["8B"], GIVEN, 10**9, RATES)
    assert not little.fits and little.rounds and little.chosen is little.smallest
    dials = little.chosen.dials
    assert (dials.head, dials.optimizer, dials.embedding_on, dials.resident_layers) == ("int8", "adamw_8bit", "host", 0)


def test_what_rounds_comes_only_where_nothing_exact_fits():
    exact = min(estimate(SHAPES["8B"], dials).reserved for dials in settings(SHAPES["8B"], GIVEN))
    budget = exact + CONTEXT
    assert not make_plan(SHAPES["8B"], GIVEN, budget, RATES).rounds
    plan = make_plan(SHAPES["8B"], GIVEN, budget - 1, RATES)
    assert plan.fits and plan.rounds


def test_dials_that_are_set_stay():
    given = replace(GIVEN, recompute=4, offload="inputs", optimizer="adamw_8bit")
    for dials in settings(SHAPES["8B"], given):
        assert (dials.recompute, dials.offload, dials.optimizer) == (4, "inputs", "adamw_8bit")
    fixed = list(settings(SHAPES["8B"], replace(GIVEN, recompute="none")))
    assert {dials.recompute for dials in fixed} == {"none"} and {dials.offload for dials in fixed} == {"none"}
    assert {dials.embedding_on for dials in fixed} == {"device", "host"} and {0, None} < {d.resident_layers for d in fixed}
    assert all(dials.embedding_on == "device" for dials in settings(SHAPES["1B"], GIVEN)), "tied: it is the head as well"


def test_time_counts_what_is_computed_again_and_what_is_copied():
    def of(**turned) -> float:
        took = seconds(SHAPES["8B"], replace(GIVEN, **turned), RATES)
        assert took is not None
        return took

    none, all_again, half = of(recompute="none"), of(recompute="layer"), of(recompute=tuple(range(16)))
    assert none < half < all_again < 1.5 * none
    assert abs(half - (none + (all_again - none) * 16 / 31)) < 0.02 * none  # the last layer is never computed again
    streamed = of(recompute="layer", resident_layers=0, tokens=64, rows=9)
    bytes_ = 2 * 32 * 112.5e6
    assert streamed == pytest.approx(bytes_ / RATES.link, rel=0.01), "so few tokens hide no copy"
    assert of(recompute="layer", resident_layers=0) == all_again, "and 2,048 hide them"


def test_attention_is_kept_where_documents_are_long_and_our_kernels_compute_it():
    given = replace(GIVEN, tokens=65536, rows=64, longest=65536, recompute="layer")
    found = {offload: seconds(SHAPES["8B"], replace(given, offload=offload), RATES) for offload in ("inputs", "attention")}
    assert found["inputs"] and found["attention"] and found["attention"] < 0.9 * found["inputs"]
    few = replace(given, tokens=64, longest=64)
    moved = [seconds(SHAPES["8B"], replace(few, offload=offload), replace(RATES, link=1e7)) for offload in found]
    assert moved[1] == pytest.approx(moved[0] * (2 * 4096 + 2 * 4096 + 4 * 32) / (2 * 4096)), "twice the bytes and the sums"
    assert any(dials.offload == "attention" for dials in settings(SHAPES["8B"], given))
    assert not any(dials.offload == "attention" for dials in settings(SHAPES["8B"], replace(given, plain=False)))
    assert not any(dials.offload == "attention" for dials in settings(SHAPES["8B"], replace(given, compute="fp16")))


def test_without_rates_the_order_is_the_same():
    with_rates = make_plan(SHAPES["8B"], GIVEN, 9 * 10**9, RATES).chosen.dials
    assert make_plan(SHAPES["8B"], GIVEN, 9 * 10**9, None).chosen.dials == with_rates


def test_the_table_of_techniques():
    for size in sizes():
        full, lora, qlora, turned, rounded, streamed = (needed(size, technique, 2048) for technique in TECHNIQUES)
        assert full > 4 * lora > 4 * qlora and qlora >= turned > rounded > streamed
    longer = [needed(size, TECHNIQUES[-1], 8192) for size in sizes()]
    assert all(more > needed(size, TECHNIQUES[-1], 2048) for more, size in zip(longer, sizes(), strict=True))


def test_names_of_policies():
    names = [recompute_name(replace(GIVEN, recompute=policy), 32) for policy in ("auto", "mlp", 4, (0, 1))]
    assert names == ["none", "mlp", "one of 4 layers", "2 of 32 layers"]


@pytest.mark.parametrize(("text", "nbytes"), [("16GB", 16 * 10**9), (" 1.5 gib", 3 * 2**29), ("900mb", 9 * 10**8)])
def test_amounts(text, nbytes):
    assert parse_amount(text) == nbytes
    assert gb(nbytes).endswith(" GB")


@pytest.mark.parametrize("text", ["", "16", "GB", "-1GB", "16 Gb of it", "0GB", "16XB"])
def test_what_is_no_amount(text):
    with pytest.raises(ValueError, match="an amount of memory like 16GB"):
        parse_amount(text)
