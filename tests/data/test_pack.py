from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.pack import pack_documents, plan_steps

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(lengths)
def test_packs_hold_every_document_once_and_never_overflow(lengths):
    packs = pack_documents(list(range(len(lengths))), lengths, 50)
    assert sorted(d for pack in packs for d in pack) == list(range(len(lengths)))
    assert all(sum(lengths[d] for d in pack) <= 50 for pack in packs)
    # best fit never leaves two packs that would fit into one
    sums = sorted(sum(lengths[d] for d in pack) for pack in packs)
    assert len(sums) < 2 or sums[0] + sums[1] > 50


@given(lengths, st.integers(1, 3), st.integers(1, 200), st.integers(0, 5))
def test_steps_are_a_permutation_per_epoch_and_close_at_the_budget(lengths, epochs, budget, seed):
    steps = plan_steps(lengths, epochs, budget, 50, seed)
    assert steps == plan_steps(lengths, epochs, budget, 50, seed)
    for epoch in range(epochs):
        mine = [packs for e, packs in steps if e == epoch]
        assert sorted(d for packs in mine for pack in packs for d in pack) == list(range(len(lengths)))
        tokens = [sum(lengths[d] for pack in packs for d in pack) for packs in mine]
        assert all(budget <= t < budget + 50 for t in tokens[:-1])


def test_seed_and_epoch_change_the_order():
    lengths = list(range(1, 41))
    first, second = plan_steps(lengths, 2, 60, 50, 0), plan_steps(lengths, 2, 60, 50, 1)
    assert first != second
    assert [p for e, p in first if e == 0] != [p for e, p in first if e == 1]
