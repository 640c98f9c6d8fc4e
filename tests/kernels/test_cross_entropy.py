import pytest
import torch
from torch.nn import functional as F

from tunesmith.kernels.cross_entropy import CHUNK, linear_cross_entropy


@pytest.mark.parametrize("rows", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_equals_stock_cross_entropy_and_its_gradient(rows):
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 24, requires_grad=True)
    head, target = torch.randn(501, 24), torch.randint(501, (rows,))
    loss, correct = linear_cross_entropy(hidden, head, target)
    (loss * 0.5).backward()
    stock = hidden.detach().clone().requires_grad_()
    logits = stock @ head.T
    expected = F.cross_entropy(logits, target, reduction="sum")
    (expected * 0.5).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(hidden.grad, stock.grad, rtol=1e-5, atol=1e-6)
    assert int(correct) == int((logits.argmax(-1) == target).sum())


def test_gradcheck_in_double():
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    head, target = torch.randn(9, 4, dtype=torch.float64), torch.randint(9, (5,))
    # logits are taken to fp32 inside, so the finite difference is coarse
    assert torch.autograd.gradcheck(lambda h: linear_cross_entropy(h, head, target)[0], hidden, eps=1e-2, atol=1e-2)


def test_large_logits_do_not_overflow():
    hidden, head = torch.full((1, 2), 300.0), torch.tensor([[300.0, 300.0], [-300.0, -300.0]])
    loss, _ = linear_cross_entropy(hidden, head, torch.tensor([0]))
    assert float(loss) == 0.0
