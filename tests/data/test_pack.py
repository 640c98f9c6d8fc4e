import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.pack import Plan, best_fit

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=60)


def _naive(lengths, capacity):
    """Best fit by looking at every pack; the newest of equally full ones, as a stack gives it."""
    free, touched, numbers = [], [], []
    for clock, length in enumerate(lengths):
        fits = [p for p, room in enumerate(free) if room >= length]
        if fits:
            best = min(fits, key=lambda p: (free[p], -touched[p]))
        else:
            best = len(free)
            free.append(capacity)
            touched.append(0)
        free[best] -= length
        touched[best] = clock
        numbers.append(best)
    return numbers, len(free)


def _first_fit(lengths, capacity):
    free = []
    for length in lengths:
        place = next((p for p, room in enumerate(free) if room >= length), None)
        if place is None:
            free.append(capacity - length)
        else:
            free[place] -= length
    return len(free)


@given(st.one_of(st.tuples(lengths, st.just(50)), st.tuples(st.lists(st.integers(1, 5000), max_size=80), st.just(5000))))
def test_the_bit_mask_finds_what_looking_at_every_pack_finds(case):
    assert best_fit(*case) == _naive(*case)


@given(lengths)
def test_packs_never_overflow_and_no_two_would_fit_into_one(lengths):
    numbers, count = best_fit(lengths, 50)
    assert set(numbers) == set(range(count))
    sums = sorted(np.bincount(numbers, lengths).tolist())
    assert sums[-1] <= 50 and (len(sums) < 2 or sums[0] + sums[1] > 50)


@given(lengths, st.integers(1, 3), st.integers(1, 200), st.integers(40, 80), st.integers(0, 5))
def test_every_document_once_an_epoch_and_seeking_is_iterating(lengths, epochs, budget, max_length, seed):
    lengths = [min(length, max_length) for length in lengths]
    plan = Plan(lengths, epochs, budget, max_length, seed)
    steps = list(plan)
    assert plan.capacity <= min(max_length, budget)
    assert 0 <= plan.capacity * plan.packs_per_step - budget < plan.packs_per_step
    assert len(steps) == len(plan) == plan.epoch_ends[-1]
    packs_seen = 0
    for epoch in range(epochs):
        mine = [packs for e, packs in steps if e == epoch]
        assert steps[plan.epoch_ends[epoch] - 1][0] == epoch
        assert sorted(d for packs in mine for pack in packs for d in pack) == list(range(len(lengths)))
        assert all(len(pack) == 1 or sum(lengths[d] for d in pack) <= plan.capacity for packs in mine for pack in packs)
        assert all(len(packs) == plan.packs_per_step for packs in mine[:-1])
        sums = sorted(min(plan.capacity, sum(lengths[d] for d in pack)) for packs in mine for pack in packs)
        assert len(sums) < 2 or sums[0] + sums[1] > plan.capacity
        packs_seen += len(sums)
    assert plan.fill == pytest.approx(epochs * np.clip(lengths, 0, plan.capacity).sum() / (packs_seen * plan.capacity))
    again = Plan(np.array(lengths), epochs, budget, max_length, seed)
    for step in random.Random(seed).sample(range(len(plan)), len(plan)):
        assert again[step] == steps[step]
    with pytest.raises(IndexError):
        plan[len(plan)]


def test_seed_and_epoch_change_the_order_and_more_epochs_do_not():
    lengths = list(range(1, 41))
    first, second = list(Plan(lengths, 2, 60, 50, 0)), list(Plan(lengths, 2, 60, 50, 1))
    assert first != second
    assert [p for e, p in first if e == 0] != [p for e, p in first if e == 1]
    assert list(Plan(lengths, 3, 60, 50, 0))[: len(first)] == first


def test_a_step_holds_about_the_tokens_asked_for():
    lengths = np.random.default_rng(0).lognormal(4.0, 0.7, 3000).astype(int).clip(1, 512)
    for budget in (256, 512, 1000, 4096):
        plan = Plan(lengths, 1, budget, 512, 0)
        tokens = [sum(lengths[d] for pack in packs for d in pack) for _, packs in plan][:-1]
        assert np.mean(tokens) == pytest.approx(budget, rel=0.03)


def test_one_long_document_leaves_the_other_steps_small():
    plan = Plan([10] * 90 + [500], 1, 30, 512, 0)
    assert sorted(len(packs[0]) for _, packs in plan) == [1, *[3] * 30]


def test_fuller_than_first_fit_and_steps_mix_lengths_like_a_random_draw():
    lengths = np.random.default_rng(1).lognormal(5.0, 0.8, 3000).astype(int).clip(1, 2048)
    order = np.random.default_rng(2).permutation(lengths).tolist()
    assert best_fit(order, 2048)[1] <= _first_fit(order, 2048)
    plan = Plan(lengths, 1, 2048, 2048, 0)
    assert plan.fill > 0.97
    alike = {}
    longest_first = np.argsort(-lengths)
    numbers = np.array(best_fit(lengths[longest_first].tolist(), 2048)[0])
    for name, packs in {
        "plan": [pack for _, step in plan for pack in step],
        "longest first": [longest_first[numbers == number].tolist() for number in range(numbers.max() + 1)],
    }.items():
        deviations = [(lengths[list(pack)].mean() - lengths.mean()) * len(pack) ** 0.5 for pack in packs]
        alike[name] = np.std(deviations) / lengths.std()
    assert alike["plan"] < 1.4 < 2 < alike["longest first"]


def test_a_million_lengths_pack_in_seconds():
    lengths = np.random.default_rng(0).lognormal(5.7, 0.8, 200_000).astype(int).clip(1, 2048)
    started = time.process_time()
    plan = Plan(lengths, 1, 16384, 2048, 0)
    seconds = time.process_time() - started
    assert seconds < 2 and plan.fill > 0.99  # a fifth of a million in a fifth of ten seconds


def test_documents_of_a_row_are_in_one_pack_and_the_plan_is_the_rows():
    sizes = np.array([1, 3, 2, 1, 4, 1])
    lengths = [10, 30, 25, 40, 60, 5]
    rows, documents = list(Plan(lengths, 2, 70, 60, 3)), list(Plan(lengths, 2, 70, 60, 3, sizes))
    firsts = np.cumsum(sizes) - sizes
    of_row = [tuple(range(first, first + size)) for first, size in zip(firsts.tolist(), sizes.tolist(), strict=True)]
    assert documents == [
        (epoch, [tuple(document for row in pack for document in of_row[row]) for pack in packs]) for epoch, packs in rows
    ]
