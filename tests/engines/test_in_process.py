from itertools import chain

import pytest
import torch

from gpu_ways import as_on_a_gpu
from ties import FP32, greedy_answers, next_logits
from tiny_families import TINY, random_model
from tunesmith.chat.render import Renderer
from tunesmith.engines.decode import PACK, StopRule, _batches, _packs, greedy
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.engines.shared_prefix import common_beginning
from tunesmith.errors import RunError
from tunesmith.models.fuse import fuse


def _prompts(system):
    turns = [{"role": "system", "content": system}] if system else []
    return [
        [*turns, {"role": "user", "content": text}] for text in ["a", "a red car and a much longer question?", "b c", "zz top"]
    ]


@pytest.mark.parametrize(
    ("system", "batch_size"), [("Answer in one word. " * 20, 3), ("Answer in one word. " * 20, 1), (None, 4)]
)
def test_equals_generate_one_by_one(tiny_model, tokenizer, system, batch_size):
    """The oracle: the stock model token by token, no cache, no batch, no padding, nothing shared."""
    renderer, logits_of = Renderer(tokenizer), next_logits(tiny_model)
    prompts = _prompts(system)
    ids = [renderer.prompt_ids(p) for p in prompts]
    # A tiny model never says the end-of-turn token by itself; let it stop on one that only some rows say, near ties or not.
    free = [greedy_answers(logits_of, i, 12, FP32) for i in ids]
    said, sayable = ([how(*map(set, answers)) for answers in free] for how in (set.intersection, set.union))
    candidates = chain.from_iterable(answers[0] for answers in free)
    stop = next(t for t in candidates if any(t in row for row in said) and not all(t in row for row in sayable))
    renderer.stop_ids = sorted({2, stop})
    done = []
    answers = InProcessEngine(tiny_model, renderer, batch_size).generate(prompts, 12, done.append)
    assert sum(done) == 4
    for answer, prompt_ids in zip(answers, ids, strict=True):
        allowed = greedy_answers(logits_of, prompt_ids, 12, FP32, renderer.stop_ids)
        ends = [new[-1] in renderer.stop_ids for new in allowed]
        texts = [tokenizer.decode(new[: len(new) - end]) for new, end in zip(allowed, ends, strict=True)]
        found = (answer.text, answer.new_tokens, answer.finished)
        assert found in zip(texts, map(len, allowed), ends, strict=True) and answer.prompt_tokens == len(prompt_ids)
    assert len({a.new_tokens for a in answers}) > 1 and any(a.finished for a in answers)  # rows left at different times


class _Ban:
    """Rules out some tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    def change(self, logits_BV):
        return logits_BV.index_fill_(1, torch.tensor(self.tokens), -torch.inf)

    def accept(self, tokens):
        pass

    def keep_rows(self, keep):
        pass


def test_an_answer_knows_whether_it_would_be_the_same_without_a_constraint(tiny_model, tokenizer):
    renderer, rule = Renderer(tokenizer), StopRule(12, [0])
    ids = [renderer.prompt_ids(prompt) for prompt in _prompts(None)]
    free = [generation.ids for generation in greedy(tiny_model, ids, rule, 4)]
    some = next(token for token in chain(*free) if not all(token in row for row in free))
    held = greedy(tiny_model, ids, rule, 4, constrain=lambda _: _Ban([some]))
    assert [generation.likeliest for generation in held] == [some not in row for row in free]
    assert [g.ids == row for g, row in zip(held, free, strict=True)] == [g.likeliest for g in held]


def test_prompt_that_exceeds_the_context(tiny_model, tokenizer):
    with pytest.raises(RunError, match="exceed the model's context of 1024"):
        InProcessEngine(tiny_model, Renderer(tokenizer), 2).generate(_prompts("word " * 1100), 4, lambda _: None)


def test_packs_are_bounded_and_keep_the_order():
    lengths = [5, 700, 900, 1000, 1048, 3000, 10]
    packs = _packs(lengths)
    assert [row for pack in packs for row in pack] == list(range(7))
    assert all(sum(lengths[row] for row in pack) <= PACK or len(pack) == 1 for pack in packs)
    assert packs == [[0, 1, 2], [3, 4], [5], [6]]


@pytest.mark.parametrize(
    ("rows", "batch_size", "to_deal_out", "sizes"),
    [
        (132, 64, False, {66}),
        (190, 64, False, {63, 64}),
        (9, 8, False, {9}),
        (7, 2, False, {1, 2}),
        (5, 1, False, {1}),
        (15, 32, True, {15}),
        (16, 32, True, {8}),
        (64, 64, True, {16}),
        (200, 32, True, {28, 29}),
        (400, 32, True, {33, 34}),
        (7, 2, True, {1, 2}),
    ],
)
def test_batches_are_about_equal_and_keep_the_order(rows, batch_size, to_deal_out, sizes):
    batches = _batches(list(range(rows)), batch_size, to_deal_out)
    assert [row for batch in batches for row in batch] == list(range(rows))
    assert {len(batch) for batch in batches} == sizes


def test_memory_of_reading_is_that_of_a_pack(tiny_model, monkeypatch):
    """No tensor of a forward pass is larger for 24 rows of different lengths than a pack allows."""
    monkeypatch.setattr("tunesmith.engines.decode.PACK", 64)
    prompts = [torch.randint(3, 290, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(5, 53, 2)]
    read = []
    for module in tiny_model.modules():
        module.register_forward_hook(lambda _m, _i, out: read.append(out.shape[:-1].numel()) if torch.is_tensor(out) else None)
    greedy(tiny_model, prompts, StopRule(2, (300,)), 24)
    assert 48 < max(read) <= 64  # padded to a rectangle: 24 x 51


def test_common_prefix_leaves_a_token_of_each():
    assert common_beginning([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_beginning([[1, 2], [1, 2, 3], [1, 4]]) == 1
    assert common_beginning([[1], [2]]) == 0


class _Ids:
    """A renderer for prompts that are token ids already; an answer is its ids as text."""

    stop_ids = (300,)  # beyond the vocabulary

    class tokenizer:
        @staticmethod
        def decode(ids, **_):
            return " ".join(map(str, ids))

    @staticmethod
    def prompt_ids(prompt, tools=None):
        return prompt


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("shared", [22, 0])
@pytest.mark.parametrize("fused", [False, True], ids=["stock", "fused"])  # as models answer on a CPU and on a GPU
def test_every_family_decodes_as_stock(name, shared, fused, monkeypatch):
    """Sliding windows shorter than the shared beginning, soft-capped scores, sinks, layers that read others' keys.

    Two packs of which one is longer than it should be, and two bins.
    """
    monkeypatch.setattr("tunesmith.engines.decode.PACK", 24)
    monkeypatch.setattr("tunesmith.engines.row_cache.BIN_COST", 0)
    model = random_model(TINY[name].config)
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(3, 290, (shared,), generator=generator).tolist()
    prompts = [prefix + torch.randint(3, 290, (n,), generator=generator).tolist() for n in (3, 17, 40)]
    answering = random_model(TINY[name].config)
    if fused:
        as_on_a_gpu(monkeypatch, "flash")
        fuse(answering, answering=True)
    for prompt, answer in zip(prompts, InProcessEngine(answering, _Ids, 3).generate(prompts, 12, lambda _: None), strict=True):
        assert [int(token) for token in answer.text.split()] in greedy_answers(next_logits(model), prompt, 12, FP32)
