"""The way of a GPU, step by step under autograd, against the one hand-written step of a CPU, in fp64."""

import pytest
import torch

from tunesmith.kernels.attention import ScoreParams, Span, attention
from tunesmith.layers.attention import Heads, _AttentionFunction, _HeadsFunction
from tunesmith.layers.lora import Norm

K = 8
NORM, OTHER, PLAIN = (
    Norm(w, 1e-5, o) for w, o in ((torch.linspace(-1, 1, K), 1.0), (torch.linspace(1, 2, K), 0.0), (torch.ones(K), 0.0))
)
HEADS = {
    "plain": Heads(4, 2, K),
    "no positions": Heads(4, 2, K, rotary=False),
    "normed": Heads(4, 2, K, NORM, OTHER),
    "normed, no positions": Heads(4, 2, K, NORM, OTHER, rotary=False),
    "values normed": Heads(2, 2, K, NORM, OTHER, PLAIN),
    "keys are values": Heads(4, 1, K, NORM, OTHER, PLAIN, keys_are_values=True),
}


@pytest.mark.parametrize("width", [K, 4], ids=["whole heads turned", "half of each"])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_both_ways_have_one_result_and_one_gradient(heads, width):
    torch.manual_seed(0)
    columns = (heads.num_heads + heads.num_kv_heads * (1 if heads.keys_are_values else 2)) * K
    phase = torch.rand(9, width // 2, dtype=torch.float64).repeat(1, 2) * 6
    spans, scoring = [Span(0, 5, 0, 0), Span(5, 9, 0, 3)], ScoreParams(0.4)
    drawn, dout = torch.randn(9, columns, dtype=torch.float64), torch.randn(9, heads.num_heads, K, dtype=torch.float64)
    results = []
    for ways in (
        lambda qkv: _AttentionFunction.apply(qkv, heads, phase.cos(), phase.sin(), spans, scoring),
        lambda qkv: attention(*_HeadsFunction.apply(qkv, heads, phase.cos(), phase.sin()), spans, scoring),
    ):
        leaf = drawn.clone().requires_grad_()
        out = ways(leaf * 1.0)  # not a leaf: the first way turns it in place
        out.backward(dout)
        results.append((out.detach(), leaf.grad))
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted)
