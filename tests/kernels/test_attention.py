"""Attention over spans against a dense masked softmax in fp64, PyTorch's own kernel in bf16, and its promise on memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_ways import as_on_a_gpu
from tunesmith.kernels import attention as attention_kernel
from tunesmith.kernels import attention as module
from tunesmith.kernels.attention import (
    Reach,
    Saved,
    ScoreParams,
    Span,
    attention,
    attention_backward,
    attention_forward,
    flash_fits,
)


def _spans(groups):
    """From (shared tokens, rests): the shared part once, then each rest, which sees it."""
    spans, at = [], 0
    for shared, rests in groups:
        prefix = at
        if shared:
            spans.append(Span(at, at + shared, at, at))
            at += shared
        for n in rests:
            spans.append(Span(at, at + n, prefix, prefix + shared) if shared else Span(at, at + n, at, at))
            at += n
    return spans


def _seen(spans, window):
    """Dense mask, shape (T, T): which key each query sees, token by token."""
    tokens = spans[-1].end
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for span in spans:
        places = [*range(span.prefix_start, span.prefix_end), *range(span.start, span.end)]
        for position, query in enumerate(places):
            for other, key in enumerate(places[: position + 1]):
                if query >= span.start and (window is None or position - other < window):
                    mask[query, key] = True
    return mask


def _dense(q, k, v, spans, scoring):
    """The same by the textbook, recorded by autograd."""
    groups = q.shape[1] // k.shape[1]
    scores = torch.einsum("thk,shk->hts", q, k.repeat_interleave(groups, 1)) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    scores = scores.masked_fill(~_seen(spans, scoring.window), -torch.inf)
    if scoring.sinks_H is not None:
        scores = torch.cat([scores, scoring.sinks_H[:, None, None].expand(-1, len(q), 1)], -1)
    p = scores.softmax(-1)[..., : len(q)]
    return torch.einsum("hts,shk->thk", p, v.repeat_interleave(groups, 1))


def _inputs(tokens, kv_heads, groups, width, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    heads = (kv_heads * groups, kv_heads, kv_heads, kv_heads * groups)
    return [torch.randn(tokens, n, width, dtype=torch.float64, generator=generator).to(dtype) for n in heads]


def _check_against_dense(spans, scoring, kv_heads, groups, width=4):
    q, k, v, do = _inputs(spans[-1].end, kv_heads, groups, width)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = _dense(*leaves, spans, scoring)
    found, saved = attention_forward(q, k, v, spans, scoring)
    torch.testing.assert_close(found, expected)
    saved = Saved.from_tensors(saved.tensors())  # as autograd hands it back
    for name, mine, theirs in zip(
        "qkv", attention_backward(do, saved, spans, scoring), torch.autograd.grad(expected, leaves, do), strict=True
    ):
        torch.testing.assert_close(mine, theirs, msg=lambda text, n=name: f"d{n}: {text}")


group = st.tuples(st.integers(0, 14), st.lists(st.integers(1, 14), min_size=1, max_size=4))


@given(
    groups=st.lists(group, min_size=1, max_size=3),
    window=st.none() | st.integers(1, 20),
    softcap=st.none() | st.just(1.5),
    sinks=st.booleans(),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 3), (1, 3)]),
    block=st.sampled_from([1, 3, 8]),
    kept=st.sampled_from([0, 9, 64]),
    joined=st.sampled_from([0, 8, 40]),
)
def test_forward_and_gradients_equal_dense_attention(groups, window, softcap, sinks, heads, block, kept, joined):
    sinks_H = torch.linspace(-1, 3, heads[0] * heads[1], dtype=torch.float64) if sinks else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "KEEP_PROBS_UP_TO", kept)
        patch.setattr(module, "JOINED", joined)
        _check_against_dense(_spans(groups), ScoreParams(0.4, window, softcap, sinks_H), *heads)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (70, None), (5, 2.0)])
def test_whole_blocks_and_long_spans_at_the_sizes_in_use(window, softcap):
    block, kept = module.BLOCK, module.KEEP_PROBS_UP_TO
    spans = _spans([(block + 1, [1, block, 2 * block - 1]), (0, [kept + block // 2 + 1]), (0, [1])])
    _check_against_dense(spans, ScoreParams(0.4, window, softcap), 1, 3)


def test_a_token_alone_returns_its_value():
    q, k, v, do = _inputs(1, 2, 3, 4)
    o, saved = attention_forward(q, k, v, [Span(0, 1, 0, 0)], ScoreParams(0.5))
    torch.testing.assert_close(o, v.repeat_interleave(3, 1))
    dq, dk, dv = attention_backward(do, saved, [Span(0, 1, 0, 0)], ScoreParams(0.5))
    torch.testing.assert_close(dv, do.unflatten(1, (2, 3)).sum(2))
    torch.testing.assert_close(torch.cat([dq, dk], 1), torch.zeros(1, 8, 4, dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_sink_takes_its_share_and_without_weight_changes_nothing():
    q, k, v, _ = _inputs(12, 2, 1, 4)
    spans = _spans([(3, [4, 5])])
    plain, _ = attention_forward(q, k, v, spans, ScoreParams(0.5))
    none, _ = attention_forward(q, k, v, spans, ScoreParams(0.5, sinks_H=torch.full((2,), -torch.inf, dtype=torch.float64)))
    torch.testing.assert_close(none, plain)
    q[:] = 0  # every score is zero, and so is the sink's: the first token looks at itself and at the sink
    half, _ = attention_forward(q, k, v, spans, ScoreParams(0.5, sinks_H=torch.zeros(2, dtype=torch.float64)))
    torch.testing.assert_close(half[0], v[0] / 2)


def test_recorded_by_autograd_it_is_the_same_on_this_device():
    q, k, v, do = _inputs(20, 1, 2, 4)
    spans, scoring = _spans([(5, [4, 7]), (0, [4])]), ScoreParams(0.4, 6, 1.5, torch.ones(2, dtype=torch.float64))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    expected = _dense(*leaves, spans, scoring)
    mine = [x.clone().requires_grad_() for x in (q, k, v)]
    found = attention(*mine, spans, scoring)
    torch.testing.assert_close(found, expected)
    pairs = zip(torch.autograd.grad(found, mine, do), torch.autograd.grad(expected, leaves, do), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("fits", "change"),
    [
        (True, {}),
        (True, {"dtype": torch.float16, "width": 256, "scoring": ScoreParams(1.0, window=5)}),
        (False, {"capability": None}),
        (False, {"capability": (7, 5)}),
        (False, {"dtype": torch.float32}),
        (False, {"width": 512}),
        (False, {"width": 100}),
        (False, {"scoring": ScoreParams(1.0, softcap=50.0)}),
        (False, {"scoring": ScoreParams(1.0, sinks_H=torch.zeros(4))}),
    ],
)
def test_flash_runs_where_it_can_and_nowhere_else(fits, change):
    usual = {"capability": (8, 0), "dtype": torch.bfloat16, "width": 64, "scoring": ScoreParams(1.0)}
    assert flash_fits(**{**usual, **change}) is fits


def test_views_of_one_product_are_as_good_as_tensors_of_their_own():
    spans = _spans([(5, [4, 7])])
    qkv = torch.randn(16, 10, 4, dtype=torch.float64)
    views = qkv.split([6, 2, 2], dim=1)
    found, expected = (attention_forward(*x, spans, ScoreParams(0.5))[0] for x in (views, [v.contiguous() for v in views]))
    torch.testing.assert_close(found, expected)  # products of strided rows may be summed in another order


def test_nothing_of_another_document_is_seen_not_even_a_nan(monkeypatch):
    monkeypatch.setattr(module, "JOINED", 0)
    spans = _spans([(6, [5, 70]), (0, [9])])
    q, k, v, do = _inputs(90, 1, 2, 4)
    clean, _ = attention_forward(q, k, v, spans, ScoreParams(0.5))
    for x in (q, k, v):
        x[6:11] = torch.nan  # the first rest
    o, saved = attention_forward(q, k, v, spans, ScoreParams(0.5))
    torch.testing.assert_close(o[11:], clean[11:], rtol=0, atol=0)
    torch.testing.assert_close(o[:6], clean[:6], rtol=0, atol=0)
    dq, _, _ = attention_backward(do, saved, spans, ScoreParams(0.5))
    assert dq[6:11].isnan().all() and dq[11:].isfinite().all()


def test_what_stands_in_the_same_block_changes_no_bit():
    spans = _spans([(6, [5, 30]), (0, [9, 20, 8])])
    q, k, v, do = _inputs(78, 1, 2, 4, torch.bfloat16)
    clean, _ = attention_forward(q, k, v, spans, ScoreParams(0.5))
    kept = attention_backward(do, attention_forward(q, k, v, spans, ScoreParams(0.5))[1], spans, ScoreParams(0.5))
    for x in (q, k, v):
        x[50:70] *= 1e4  # the document before the last
    o, saved = attention_forward(q, k, v, spans, ScoreParams(0.5))
    assert len(saved.blocks) == 3, "the three last documents are no block"
    for mine, theirs in zip((o, *attention_backward(do, saved, spans, ScoreParams(0.5))), (clean, *kept), strict=True):
        torch.testing.assert_close(mine[:50], theirs[:50], rtol=0, atol=0)
        torch.testing.assert_close(mine[70:], theirs[70:], rtol=0, atol=0)


def _error(found, exact):
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


@pytest.mark.parametrize(("kv_heads", "offset"), [(1, 0.0), (3, 0.0), (1, 4.0)])
def test_in_bf16_it_is_as_exact_as_torchs_own(kv_heads, offset):
    """With an offset on the values the gradient of a score is a small difference of two large sums."""
    lengths = [150, 61, 300]
    spans, scoring = _spans([(0, [n]) for n in lengths]), ScoreParams(0.125)
    q, k, v, do = _inputs(sum(lengths), kv_heads, 3, 64, torch.bfloat16)
    v += offset
    leaves64 = [x.double().requires_grad_() for x in (q, k, v)]
    o64 = _dense(*leaves64, spans, scoring)
    exact = (o64, *torch.autograd.grad(o64, leaves64, do.double()))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    rows = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in parts), is_causal=True, scale=0.125, enable_gqa=True)
        for parts in zip(*(x.split(lengths) for x in leaves), strict=True)
    ]
    stock_o = torch.cat(rows, 2)[0].transpose(0, 1)
    stock = (stock_o, *torch.autograd.grad(stock_o, leaves, do))
    o, saved = attention_forward(q, k, v, spans, scoring)
    ours = (o, *attention_backward(do, saved, spans, scoring))
    for name, mine, theirs, truth in zip(("o", "dq", "dk", "dv"), ours, stock, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert _error(mine, truth) <= 1.5 * _error(theirs, truth), name


def test_large_scores_keep_their_differences_in_bf16():
    # Scores near 300 that differ by a quarter: rounded to bf16 they lie on a grid of two.
    q = torch.full((8, 1, 64), 6.0).bfloat16()
    k = torch.full((8, 1, 64), 6.0).bfloat16()
    k[:, 0, 0] += torch.arange(8).bfloat16() / 16
    v = torch.randn(8, 1, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    spans, scoring = [Span(0, 8, 0, 0)], ScoreParams(0.125)
    o, _ = attention_forward(q, k, v, spans, scoring)
    assert _error(o, _dense(q.double(), k.double(), v.double(), spans, scoring)) < 0.005


def _saved_bytes(spans, dtype=torch.float32):
    q, k, v, _ = _inputs(spans[-1].end, 1, 3, 8, dtype)
    _, saved = attention_forward(q, k, v, spans, ScoreParams(0.3))
    return sum(x.nbytes for x in saved.tensors() if x is not None)


def test_what_is_saved_is_linear_in_the_tokens(monkeypatch):
    monkeypatch.setattr(module, "KEEP_PROBS_UP_TO", 0)
    inputs = 4 * (3 + 1 + 1 + 3) * 8  # q, k, v, o of one token
    for tokens in (1, 64, 100, 1000):
        assert _saved_bytes(_spans([(0, [tokens])])) == tokens * inputs
    assert _saved_bytes(_spans([(300, [20] * 10)])) == 500 * inputs


@pytest.mark.parametrize(
    "groups",
    [[(0, [3000])], [(0, [module.KEEP_PROBS_UP_TO] * 3)], [(2000, [20] * 50)], [(module.KEEP_PROBS_UP_TO - 20, [20] * 9)]],
    ids=["long", "longest-kept", "long-prefix", "longest-prefix-kept"],
)
def test_no_token_keeps_more_probabilities_than_promised(groups):
    spans = _spans(groups)
    inputs, probabilities = 4 * (3 + 1 + 1 + 3) * 8, 4 * 3 * module.KEEP_PROBS_UP_TO
    assert _saved_bytes(spans) <= spans[-1].end * (inputs + probabilities)


def test_short_documents_keep_theirs():
    """So that the backward pass does not make them again."""
    q, k, v, _ = _inputs(40, 1, 3, 8)
    spans = _spans([(0, [30]), (4, [3, 3])])
    _, saved = attention_forward(q, k, v, spans, ScoreParams(0.3))
    assert len(saved.blocks) == 2 and all(p is not None for p in saved.blocks)  # what stands alone or is shared, the rests


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("groups", [[(0, [2048])], [(0, [64] * 32)], [(1024, [512, 512])]], ids=["one", "short", "shared"])
def test_no_tensor_has_a_side_of_all_tokens_twice(groups):
    spans, scoring = _spans(groups), ScoreParams(0.3, softcap=5.0)
    q, k, v, do = _inputs(2048, 1, 1, 8, torch.float32)
    with _Largest() as largest:
        _, saved = attention_forward(q, k, v, spans, scoring)
        attention_backward(do, saved, spans, scoring)
    assert largest.elements <= module.BLOCK * 2048


@pytest.mark.parametrize("window", [None, 20, 5])
@pytest.mark.parametrize("heads", [(1, 1), (2, 3)])
@pytest.mark.parametrize("kernel", ["flash", "documents"])
@pytest.mark.parametrize("joined", [512, 40])
def test_the_kernels_of_a_gpu_are_asked_for_dense_attention(window, heads, kernel, joined, monkeypatch):
    """What they are called with, on the CPU: flash as its manual says it, the other one itself."""
    as_on_a_gpu(monkeypatch, kernel)
    monkeypatch.setattr(attention_kernel, "GPU_JOINED", joined)
    spans, scoring = _spans([(30, [1, 70, 12]), (0, [25]), (0, [1]), (3, [4, 4])]), ScoreParams(0.3, window)
    q, k, v, do = _inputs(spans[-1].end, *heads, 8)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    exact = [x.clone().requires_grad_() for x in (q, k, v)]
    found, expected = attention(*leaves, spans, scoring), _dense(*exact, spans, scoring)
    grads, expected_grads = torch.autograd.grad(found, leaves, do), torch.autograd.grad(expected, exact, do)
    for mine, theirs in zip((found, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_blocks_of_a_gpu_have_the_same_result(monkeypatch):
    spans, scoring = _spans([(30, [1, 300, 12]), (0, [65])]), ScoreParams(0.3, 50, 4.0)
    monkeypatch.setattr(attention_kernel, "_sizes", lambda _: (attention_kernel.GPU_BLOCK, attention_kernel.GPU_BLOCK))
    _check_against_dense(spans, scoring, 1, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("heads", [(1, 1), (2, 3)])
@pytest.mark.parametrize(("width", "softcap"), [(64, None), (64, 5.0), (512, None)])
def test_on_a_gpu_equals_dense_attention(window, heads, width, softcap):
    """By the flash kernel, and block by block where that does not fit."""
    spans, scoring = _spans([(30, [1, 70, 12]), (0, [65]), (0, [1])]), ScoreParams(width**-0.5, window, softcap)
    q, k, v, do = _inputs(spans[-1].end, *heads, width, torch.bfloat16)
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    expected = _dense(*exact, spans, scoring)
    leaves = [x.cuda().requires_grad_() for x in (q, k, v)]
    found = attention(*leaves, spans, scoring)
    grads = torch.autograd.grad(found, leaves, do.cuda())
    for mine, theirs in zip((found, *grads), (expected, *torch.autograd.grad(expected, exact, do.double())), strict=True):
        assert _error(mine.cpu(), theirs) < 0.01


def test_a_layout_that_an_evaluation_made_can_be_trained_with():
    attention_kernel.flash_layout.cache_clear()
    with torch.inference_mode():
        seen, borders, _ = attention_kernel.flash_layout(
            (Reach(0, 4, ((0, 4),)), Reach(4, 7, ((0, 4), (4, 7)))), torch.device("cpu")
        )
    assert seen is not None and not any(tensor.is_inference() for tensor in (seen, *borders))


@pytest.mark.parametrize("knows", [True, False])
def test_shared_keys_are_named_only_to_a_pytorch_that_knows_the_name(monkeypatch, knows):
    def newer(q, k, v, *_, scale, window_size, enable_gqa):
        assert enable_gqa
        return q

    def older(q, k, v, *_, scale, window_size):
        return q

    monkeypatch.setattr(attention_kernel.on_gpu, "varlen_attn", newer if knows else older, raising=False)
    q_THK, k_TGK = torch.zeros(4, 2, 8), torch.zeros(4, 1, 8)
    assert attention_kernel._flash(q_THK, k_TGK, k_TGK, [Reach(0, 4, ((0, 4),))], ScoreParams(1.0)) is q_THK
