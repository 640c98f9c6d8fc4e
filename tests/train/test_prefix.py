"""Sharing common beginnings: what is grouped, by generated documents, and that a step's gradients stay the same."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.prefix import JOIN, PIECE, SHORTEST, Group, even_parts, find_groups, micro_batches, row_tokens
from tunesmith.train.step import ROUND, mean_loss, step_gradients, step_packs

VOCABULARY = 200


def _numbers(seed, count):
    return np.random.default_rng(seed).integers(1, VOCABULARY, count).tolist()


@st.composite
def document(draw):
    """Ids that begin with a part of one of two texts, the second of which branches off the first, and what is supervised."""
    trunk, branch = _numbers(0, 60), _numbers(0, 30) + _numbers(1, 30)
    beginning = draw(st.sampled_from([trunk, branch]))[: draw(st.sampled_from([0, 1, 7, 8, 9, 30, 45, 60]))]
    ids = beginning + draw(st.lists(st.integers(1, 3), min_size=0 if beginning else 1, max_size=12))
    start = draw(st.integers(0, len(ids)))
    later = [0] * start + [1] * (len(ids) - start)
    return ids, draw(st.sampled_from([later, [flag and n % 3 for n, flag in enumerate(later)]]).map(_as_flags))


def _as_flags(values):
    return [int(bool(value)) for value in values]


documents_ = st.lists(document(), min_size=1, max_size=14)
capacities = st.sampled_from([1, 20, 64, 150, 1000])


def _first_supervised(flags):
    return flags.index(1) if 1 in flags else None


@given(pairs=documents_, capacity=capacities, random=st.randoms(use_true_random=False))
def test_groups_and_micro_batches(pairs, capacity, random):
    documents = make_documents(pairs)
    chosen = list(range(len(pairs)))
    groups = find_groups(documents, chosen, capacity)
    packs = micro_batches(groups, capacity)
    # Every document once.
    packed = [group for pack in packs for group in pack]
    assert sorted(d for group in packed for d in group.documents) == chosen
    assert sorted(packed, key=repr) == sorted(groups, key=repr)
    for group in packed:
        members = [pairs[d] for d in group.documents]
        # What is shared is common, worth it, and ends before the token that predicts the first supervised one.
        (shared,) = {*group.shared}
        assert len({tuple(ids[:shared]) for ids, _ in members}) == 1
        assert (shared >= SHORTEST) == (len(members) > 1) and (shared == 0) == (len(members) == 1)
        for _, flags in members:
            first = _first_supervised(flags)
            assert shared == 0 or (first is not None and shared <= first - 1)
        assert group.tokens == shared + sum(len(ids) - shared for ids, _ in members)
        if shared:
            assert sum(len(ids) for ids, _ in members) - group.tokens > PIECE + JOIN * len(members)
    for pack in packs:
        assert sum(g.tokens for g in pack) <= capacity or (len(pack) == 1 and len(pack[0].documents) == 1)
    # The order of what is given changes nothing.
    random.shuffle(chosen)
    assert find_groups(documents, chosen, capacity) == groups
    random.shuffle(packed)
    assert micro_batches(packed, capacity) == packs


@given(pairs=st.lists(document(), min_size=1, max_size=6), capacity=capacities)
def test_no_other_cut_of_the_sorted_documents_is_cheaper(pairs, capacity):
    documents = make_documents(pairs)
    groups = find_groups(documents, range(len(pairs)), capacity)
    ordered = [document for group in groups for document in group.documents]

    def cost(members):
        """Of one group with the most that it can share; None where that is too little or too much."""
        texts = [pairs[d][0] for d in members]
        if len(members) == 1:
            return len(texts[0])
        limits = [(_first_supervised(pairs[d][1]) or 1) - 1 for d in members]
        shared = next((n for n in range(min(limits)) if len({tuple(text[: n + 1]) for text in texts}) > 1), min(limits))
        tokens = shared + sum(len(text) - shared for text in texts)
        return tokens + PIECE + JOIN * len(members) if shared >= SHORTEST and tokens <= capacity else None

    def cheapest(rest):
        options = [(cost(rest[:n]), rest[n:]) for n in range(1, len(rest) + 1)]
        return min((first + cheapest(later) for first, later in options if first is not None), default=0)

    assert sum(cost(group.documents) for group in groups) == cheapest(ordered)


@given(pairs=st.lists(document(), min_size=1, max_size=9), parts=st.integers(1, 5))
def test_even_parts_hold_every_document_in_order_and_differ_by_one_at_most(pairs, parts):
    documents = make_documents(pairs)
    groups = find_groups(documents, range(len(pairs)), 40)
    cut = even_parts(documents, groups, parts)
    assert [document for part in cut for document in part] == [document for group in groups for document in group.documents]
    assert all(cut) and len(cut) <= parts
    own = {document: len(pairs[document][0]) - group.shared[0] for group in groups for document in group.documents}
    share = sum(own.values()) / min(parts, len(pairs))
    for part in cut:
        assert abs(sum(own[document] for document in part) - share) <= max(own.values()) or len(cut) < parts


@st.composite
def asked_turn_by_turn(draw):
    """Rows as they are where a template rewrites earlier turns: a document a turn, a longer history each, and its answer."""
    pairs, sizes = [], []
    system = _numbers(3, draw(st.sampled_from([0, 10, 60])))
    for row in range(draw(st.integers(1, 3))):
        history, sizes = list(system), [*sizes, draw(st.integers(1, 4))]
        for turn in range(sizes[-1]):
            history += _numbers(100 * row + turn, draw(st.integers(2, 12)))
            said = _numbers(1000 + 100 * row + turn, draw(st.integers(1, 8)))
            pairs.append((history + said, [0] * len(history) + [1] * len(said)))
            history = [*history, *(said[1:] if draw(st.booleans()) else [9])]
    return pairs, sizes


def _step_holds_its_documents(documents, pairs, packs):
    rows = []
    for pack in packs:
        ids, positions = pack.ids_1T[0].tolist(), pack.position_1T[0].tolist()
        targets = dict(zip(pack.predict_N.tolist(), pack.target_N.tolist(), strict=True))
        assert len(targets) == len(pack.target_N)  # nothing predicts twice
        prefixes = {s.prefix_start for s in pack.spans if s.prefix_end > s.prefix_start}
        assert [s.start for s in pack.spans] + [len(ids)] == [0] + [s.end for s in pack.spans]
        for span in pack.spans:
            if span.start in prefixes:
                assert not any(place in targets for place in range(span.start, span.end))
                continue
            places = [*range(span.prefix_start, span.prefix_end), *range(span.start, span.end)]
            assert [positions[place] for place in places] == list(range(len(places)))
            rows.append(([ids[place] for place in places], [targets.get(place, 0) for place in places]))
    expected = [(ids, [b if flag else 0 for b, flag in zip(ids[1:], flags[1:], strict=True)] + [0]) for ids, flags in pairs]
    assert sorted(rows) == sorted(expected)


@given(pairs=documents_, capacity=capacities)
def test_packs_hold_what_the_documents_hold(pairs, capacity):
    documents = make_documents(pairs)
    groups = find_groups(documents, range(len(pairs)), capacity)
    packs = step_packs(documents, [tuple(range(len(pairs)))], capacity)
    assert sum(pack.ids_1T.shape[1] for pack in packs) == sum(group.tokens for group in groups)
    _step_holds_its_documents(documents, pairs, packs)


@given(rows=asked_turn_by_turn(), capacity=st.sampled_from([1, 40, 100, 1000]), random=st.randoms(use_true_random=False))
def test_a_row_of_several_documents_is_a_chain(rows, capacity, random):
    pairs, sizes = rows
    documents = make_documents(pairs, sizes)
    chosen = list(range(len(pairs)))
    groups = find_groups(documents, chosen, capacity)
    packs = step_packs(documents, [tuple(chosen)], capacity)
    _step_holds_its_documents(documents, pairs, packs)
    assert all(group.tokens <= capacity or len(group.documents) == 1 for group in groups)
    alone = find_groups(make_documents(pairs), chosen, capacity)
    assert sum(group.cost for group in groups) <= sum(group.cost for group in alone)
    random.shuffle(chosen)
    assert find_groups(documents, chosen, capacity) == groups


def test_a_conversation_costs_its_history_once_and_every_answer_once_more():
    history, pairs = [], []
    for turn in range(6):
        history += _numbers(turn, 20)
        pairs.append((history + _numbers(50 + turn, 10), [0] * len(history) + [1] * 10))
        history += _numbers(80 + turn, 5)  # the answer as the template remembers it
    documents = make_documents(pairs, [6])
    (group,) = find_groups(documents, range(6), 1000)
    # Of a shorter document the last token before its answer is its own, since it predicts the answer.
    assert group.tokens == int(row_tokens(documents)[0]) == 5 * 25 + 30 + 5 * 11
    assert group.shared == (19, 44, 69, 94, 119, 119)
    assert [len(g.documents) for g in find_groups(documents, range(6), 120)] == [2, 2, 1, 1]
    mixed = make_documents([*pairs[:2], pairs[5], (pairs[0][0], pairs[0][1])], [2, 1, 1])
    assert row_tokens(mixed).tolist() == [55 + 11, 155, 30] and [mixed.row_number(n) for n in range(4)] == [0, 0, 1, 2]


def _pairs(shared, rests, supervised=5):
    prefix = _numbers(5, shared)
    flags = [[0] * (shared + length - supervised) + [1] * supervised for length in rests]
    return [(prefix + _numbers(10 + n, length), flags[n]) for n, length in enumerate(rests)]


def test_rows_with_one_system_prompt_compute_it_once():
    documents = make_documents(_pairs(40, [10, 12, 20, 9]))
    groups = find_groups(documents, [3, 0, 2, 1], 1000)
    assert len(groups) == 1 and groups[0].shared == (40,) * 4 and groups[0].tokens == 40 + 51
    assert sorted(groups[0].documents) == [0, 1, 2, 3]
    # A capacity that two rows fill: the prompt stands once in each group.
    assert sorted(len(group.documents) for group in find_groups(documents, range(4), 75)) == [2, 2]


def test_rows_of_several_prompts_find_their_own_in_any_order():
    prompts = [_numbers(n, 50) for n in range(3)]
    pairs = [(prompts[n % 3] + _numbers(100 + n, 8), [0] * 51 + [1] * 7) for n in range(12)]
    groups = find_groups(make_documents(pairs), range(12), 1000)
    assert sorted(sorted(group.documents) for group in groups) == [list(range(n, 12, 3)) for n in range(3)]
    assert {max(group.shared) for group in groups} == {50}
    # By another numbering of the same rows the same rows are together.
    again = find_groups(make_documents(pairs[::-1]), range(12), 1000)
    assert {frozenset(11 - d for d in g.documents) for g in again} == {frozenset(g.documents) for g in groups}


def test_a_short_beginning_is_left_alone():
    for shared, size in ((SHORTEST - 1, 1), (SHORTEST, 2)):
        groups = find_groups(make_documents(_pairs(shared, [10, 12])), [0, 1], 1000)
        assert max(len(group.documents) for group in groups) == size


def test_the_same_row_twice_keeps_the_token_that_predicts():
    ids = _numbers(0, 30)
    flags = [0] * 25 + [1] * 5
    groups = find_groups(make_documents([(ids, flags)] * 3), range(3), 1000)
    assert groups == [Group((0, 1, 2), (24,) * 3, 24 + 3 * 6)]


def test_a_row_that_shares_less_does_not_spoil_the_sharing_of_many():
    pairs = _pairs(100, [10] * 6)
    pairs.append((pairs[0][0][:20] + _numbers(99, 20), [0] * 35 + [1] * 5))
    groups = find_groups(make_documents(pairs), range(7), 10_000)
    assert sorted((max(group.shared), len(group.documents)) for group in groups) == [(0, 1), (100, 6)]


def test_nothing_to_train_on():
    assert find_groups(make_documents([]), [], 10) == [] and micro_batches([], 10) == []


@pytest.fixture(scope="module")
def adapted():
    """A tiny model with adapters, stock and fused."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=VOCABULARY,
        max_position_embeddings=256,
        initializer_range=0.15,
    )
    model = LlamaForCausalLM(config).requires_grad_(False).eval()
    layers = add_lora(model, Lora(r=4, alpha=8, dropout=0.0), 0)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.1)
    fused = copy.deepcopy(model)
    fuse(fused)
    return {"stock": model, "fused": fused}


def _gradients(model, packs):
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.grad = None
    with attention(model, PACKED):
        loss, accuracy = step_gradients(model, packs)
        assert mean_loss(model, packs) == pytest.approx(loss, rel=1e-6)
    return loss, accuracy, {name: p.grad for name, p in parameters.items()}


STEPS = {
    "system prompt": _pairs(40, [10, 31, 6, 17]),
    "system prompt and others": [*_pairs(40, [10, 31, 6]), (_numbers(50, 25), [0] * 10 + [1] * 15), (_numbers(51, 2), [0, 1])],
    "two prompts": _pairs(40, [8, 9]) + [(_numbers(70, 33) + _numbers(n, 9), [0] * 35 + [1] * 7) for n in (71, 72, 73)],
    "one row three times": [(_numbers(80, 30), [0] * 20 + [1] * 10)] * 3,
    "conversations": [(_numbers(90, 28) + _numbers(n, 30), [0] * 29 + [1] * 6 + [0] * 12 + [1] * 11) for n in (91, 92)],
}


def _asked_turn_by_turn(turns):
    history, pairs = [], []
    for turn in range(turns):
        history = history + _numbers(200 + turn, 17)
        pairs.append((history + _numbers(300 + turn, 6), [0] * len(history) + [1] * 6))
    return pairs


STEPS["a document a turn"] = [*_asked_turn_by_turn(3), *_pairs(0, [20, 9])]
SIZES = {"a document a turn": [3, 1, 1]}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kind", ["stock", "fused"])
@pytest.mark.parametrize(("capacity", "tokens"), [(90, None), (400, None), (400, 60)])
def test_a_step_with_sharing_is_the_step_without(adapted, kind, name, capacity, tokens):
    pairs = STEPS[name]
    documents = make_documents(pairs, SIZES.get(name))
    shared = step_packs(documents, [tuple(range(len(pairs)))], capacity, tokens)
    alone = [make_pack(documents, [d]) for d in range(len(pairs))]
    sizes = [p.ids_1T.shape[1] for p in shared]
    if tokens is None:
        assert sum(sizes) < int(documents.lengths.sum())
    else:  # dealt out: of few sizes
        assert not any(size % ROUND for size in sizes)
    loss, accuracy, grads = _gradients(adapted[kind], shared)
    expected_loss, expected_accuracy, expected = _gradients(adapted[kind], alone)
    assert loss == pytest.approx(expected_loss, rel=1e-5) and accuracy == expected_accuracy
    for name, grad in expected.items():
        largest = float(grad.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(grads[name], grad, rtol=0, atol=1e-5 * largest, msg=lambda text, n=name: f"{n}: {text}")
