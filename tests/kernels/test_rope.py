import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tunesmith.kernels.rope import rope_


def angles(T, width, dtype=torch.float32):
    inverse_frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    phase = torch.arange(3, T + 3, dtype=torch.float64)[:, None] * inverse_frequency
    phase = torch.cat((phase, phase), -1)
    return phase.cos().to(dtype), phase.sin().to(dtype)


@pytest.mark.parametrize(("T", "H", "K"), [(1, 1, 2), (3, 9, 64), (17, 2, 16)])
def test_equals_the_stock_formula(T, H, K):
    x, (cos, sin) = torch.randn(T, H, K), angles(T, K)
    stock, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos[None], sin[None])
    torch.testing.assert_close(rope_(x, cos, sin), stock[0].transpose(0, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_one_rounding_from_the_exact_result(dtype):
    x, (cos, sin) = torch.randn(11, 3, 32).to(dtype), angles(11, 32)
    exact = rope_(x.double(), cos.double(), sin.double())
    turned = rope_(x.clone(), cos, sin)
    torch.testing.assert_close(turned.double(), exact, rtol=torch.finfo(dtype).eps * 0.505, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_partial_rotary_on_a_view_leaves_the_rest_alone(dtype):
    T, H, K, width = 5, 3, 16, 8
    qkv = torch.randn(T, 3 * H * K).to(dtype)
    before, (cos, sin) = qkv.clone(), angles(T, width)
    keys = qkv[:, H * K : 2 * H * K].view(T, H, K)
    alone = rope_(keys[..., :width].clone(), cos, sin)
    assert rope_(keys, cos, sin) is keys
    assert torch.equal(keys[..., :width], alone)
    keys[..., :width] = before[:, H * K : 2 * H * K].view(T, H, K)[..., :width]
    assert torch.equal(qkv, before)


def test_inverse_turns_back_and_is_the_gradient():
    x, (cos, sin) = torch.randn(4, 2, 8, dtype=torch.float64), angles(4, 6, torch.float64)
    torch.testing.assert_close(rope_(rope_(x.clone(), cos, sin), cos, sin, inverse=True), x, rtol=0, atol=1e-14)
    dy, leaf = torch.randn_like(x), x.clone().requires_grad_()
    rotated = torch.cat((-leaf[..., 3:6], leaf[..., :3]), -1)
    turned = leaf[..., :6] * cos[:, None] + rotated * sin[:, None]
    torch.cat((turned, leaf[..., 6:]), -1).backward(dy)
    torch.testing.assert_close(rope_(dy.clone(), cos, sin, inverse=True), leaf.grad, rtol=0, atol=1e-14)


def test_cosines_wider_than_the_head_are_refused():
    with pytest.raises(AssertionError):
        rope_(torch.ones(2, 1, 4), *angles(2, 6))
