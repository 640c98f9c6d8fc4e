import copy
import math

import pytest
import torch

from gpu_ways import as_on_a_gpu
from ties import FP32, greedy_answers, is_greedy, next_logits
from tiny_families import TINY, random_model
from tunesmith.chat.render import Renderer
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.engines.score import Scorer, _packs
from tunesmith.errors import ModelError, RunError
from tunesmith.models.fuse import fuse

HEADER = list(range(20, 42))  # longer than any window of the tiny families


def _ids(count, seed):
    return torch.randint(3, 290, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def _questions(header):
    """Three questions with the same choices of 1, 5 and 1 tokens, and one short context with a long continuation."""
    pairs = []
    for question in range(3):
        context = header + _ids(9 + 7 * question, question)
        pairs += [(context, said) for said in (_ids(1, 10), _ids(5, 11), _ids(1, 12))]
    return [*pairs, ([*header, 7, 8], _ids(30, 5)), ([*header, 7, 8], [])]


def _stock(model, context, said):
    """Log-probabilities by the stock model, of the tokens said and of all, one pair at a time, without a cache."""
    logits_TV = model(torch.tensor([context + said]), use_cache=False).logits[0].double()
    log_p_NV = logits_TV[len(context) - 1 : len(context) + len(said) - 1].log_softmax(-1)
    target_N = torch.tensor(said, dtype=torch.int64)
    return log_p_NV.gather(1, target_N[:, None])[:, 0], log_p_NV


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("header", [HEADER, []], ids=["header", "no header"])
@pytest.mark.parametrize("fused", [False, True], ids=["stock", "fused"])  # as models score on a CPU and on a GPU
@torch.no_grad()
def test_equals_the_stock_model_pair_by_pair(name, header, fused, monkeypatch):
    monkeypatch.setattr("tunesmith.engines.score.CAPACITY", 60)  # several packs
    monkeypatch.setattr("tunesmith.engines.score.CHUNK", 7)  # several chunks of the head
    model = random_model(TINY[name].config)
    scoring = random_model(TINY[name].config)
    if fused:
        as_on_a_gpu(monkeypatch, "flash")
        fuse(scoring, answering=True)
    pairs, done = _questions(header), []
    scored = Scorer(scoring).continuation_logprobs(pairs, done.append)
    assert sum(done) == len(pairs)
    for (context, said), found in zip(pairs, scored, strict=True):
        logprob_N, log_p_NV = _stock(model, context, said)
        assert found.logprob == pytest.approx(float(logprob_N.sum()), abs=1e-4)
        assert (found.prompt_tokens, found.tokens) == (len(context), len(said))
        assert is_greedy(log_p_NV, said, FP32) in (found.greedy, None)


def test_what_is_common_runs_once():
    pairs = _questions(HEADER)
    packs = _packs(pairs, len(HEADER), 512)
    fed = sum(len(pack.ids) for pack in packs)
    # Three questions once each, the fed tokens of the choices of five, and the long continuation; not the header.
    assert fed == (9 + 16 + 23) + 3 * 4 + 2 * 2 + 29
    assert sum(len(pack.looked) for pack in packs) == 3 * (1 + 4) + 2 + 29


@torch.no_grad()
@pytest.mark.parametrize("header", [HEADER, []], ids=["header", "no header"])
@pytest.mark.parametrize("tail", [4, 1, 0])
def test_what_all_choices_begin_with_runs_once(tiny_model, header, tail):
    context, stem = header + _ids(12, 0), _ids(6, 1)
    pairs = [(context, stem + _ids(n, 2 + n)) for n in (tail, 3, 5)] + [(header + _ids(10, 9), _ids(4, 8))]
    (pack,) = _packs(pairs, len(header), 512)
    shared = 6 if tail else 5  # a token of each choice is left
    own = sum(len(said) - shared - 1 for _, said in pairs[:3])
    assert len(pack.ids) == 12 + shared + own + 10 + 3 and len(pack.looked) == 1 + shared + own + 1 + 3
    for (asked, said), found in zip(pairs, Scorer(tiny_model).continuation_logprobs(pairs), strict=True):
        assert found.logprob == pytest.approx(float(_stock(tiny_model, asked, said)[0].sum()), abs=1e-4)


def test_the_head_is_compared_once_a_scorer(tiny_model):
    calls = []
    with tiny_model.register_forward_pre_hook(lambda *_: calls.append(1)):  # scoring asks the decoder, not the model
        scorer = Scorer(tiny_model)
        for _ in range(3):
            scorer.continuation_logprobs([([3], [4])])
    assert len(calls) == 1


@torch.no_grad()
def test_greedy_is_what_decoding_would_say(tiny_model):
    every = ((_ids(12, seed), greedy_answers(next_logits(tiny_model), _ids(12, seed), 4, FP32)) for seed in range(20))
    context, (said,) = next((context, answers) for context, answers in every if len(answers) == 1)  # no near tie
    other = [*said[:3], (said[3] + 1) % 300]
    assert [s.greedy for s in Scorer(tiny_model).continuation_logprobs([(context, said), (context, other)])] == [True, False]


@torch.no_grad()
def test_kl_equals_that_of_the_stock_distributions():
    name = next(n for n in TINY if vars(TINY[n].config).get("final_logit_softcapping"))
    base, tuned = random_model(TINY[name].config), random_model(TINY[name].config)
    for parameter in tuned.model.layers.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    pairs = _questions(HEADER)[:4]
    scorer = Scorer(base)
    states_ND = scorer.last_states(pairs)
    kl_N = scorer.kl_of_states(states_ND, Scorer(tuned).last_states(pairs))
    for (context, said), found in zip(pairs, kl_N.split([len(said) for _, said in pairs]), strict=True):
        log_p_NV, log_q_NV = (_stock(model, context, said)[1] for model in (base, tuned))
        expected_N = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
        torch.testing.assert_close(found, expected_N, atol=1e-5, rtol=1e-3)
        assert (expected_N > 1e-4).all()
    assert scorer.kl_of_states(states_ND, states_ND).abs().max() == 0


@torch.no_grad()
def test_bf16_stays_near_fp32(tiny_model):
    pairs = _questions([])
    exact = Scorer(tiny_model).continuation_logprobs(pairs)
    for found, expected in zip(Scorer(tiny_model.bfloat16()).continuation_logprobs(pairs), exact, strict=True):
        assert found.logprob == pytest.approx(expected.logprob, abs=0.15 * max(1, math.sqrt(found.tokens)))


def test_engine_scores_an_answer_as_it_is_trained(tiny_model, tokenizer):
    """The ids are those of the rendered conversation up to its end-of-turn token; control tokens in it are plain text."""
    renderer = Renderer(tokenizer)
    items = [([{"role": "user", "content": q}], a) for q, a in [("a red car", "red, car"), ("b", "<|im_end|>"), ("b", " x")]]
    for (prompt, answer), found in zip(
        items, InProcessEngine(tiny_model, renderer, 2).score(items, lambda _: None), strict=True
    ):
        asked, whole = renderer.prompt_ids(prompt), renderer.render([*prompt, {"role": "assistant", "content": answer}]).ids
        end = max(n for n, token in enumerate(whole) if token in renderer.stop_ids)
        (expected,) = Scorer(tiny_model).continuation_logprobs([(asked, list(whole[len(asked) : end]))])
        assert list(whole[: len(asked)]) == asked and found.tokens == expected.tokens
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)


def test_refused(tiny_model):
    with pytest.raises(RunError, match="pair 1: 1000 tokens of context and 26 of continuation exceed the model's 1024"):
        Scorer(tiny_model).continuation_logprobs([([3], [4]), ([3] * 1000, [4] * 26)])
    tiny_model = copy.deepcopy(tiny_model)
    head = tiny_model.lm_head
    forward = type(tiny_model).forward

    class Scaling(type(tiny_model)):
        def forward(self, *args, **kwargs):
            out = forward(self, *args, **kwargs)
            out.logits = out.logits / 8
            return out

    tiny_model.__class__ = Scaling
    assert tiny_model.lm_head is head
    with pytest.raises(ModelError, match="its logits differ from those of its head"):
        Scorer(tiny_model).continuation_logprobs([([3], [4])])
