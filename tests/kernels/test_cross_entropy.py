import pytest
import torch
from torch.nn import functional as F

from tunesmith.kernels.cross_entropy import BLOCK, CHUNK, TrainedRows, cross_entropy_rows_, linear_cross_entropy


def _cap(logits, softcap):
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def oracle(logits, target, softcap=None):
    """Loss of each row, gradient and correctness by autograd in fp64."""
    leaf = logits.double().clone().requires_grad_()
    capped = _cap(leaf, softcap)
    loss = F.cross_entropy(capped, target, reduction="none")
    loss.sum().backward()
    return loss.detach(), leaf.grad, capped.argmax(-1) == target


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_equals_stock_cross_entropy_and_its_gradient(rows, softcap):
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 24, requires_grad=True)
    head, target = torch.randn(501, 24), torch.randint(501, (rows,))
    loss, correct = linear_cross_entropy(hidden, head, target, softcap=softcap)
    (loss * 0.5).backward()
    stock = hidden.detach().clone().requires_grad_()
    logits = _cap(stock @ head.T, softcap)
    expected = F.cross_entropy(logits, target, reduction="sum")
    (expected * 0.5).backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(hidden.grad, stock.grad, rtol=1e-5, atol=1e-6)
    assert int(correct) == int((logits.argmax(-1) == target).sum())


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck_in_double(softcap):
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    head, target = torch.randn(9, 4, dtype=torch.float64), torch.randint(9, (5,))
    assert torch.autograd.gradcheck(lambda h: linear_cross_entropy(h, head, target, softcap)[0], hidden)


@pytest.mark.parametrize(("softcap", "biased"), [(None, False), (2.0, True)])
def test_trained_rows_take_the_place_of_frozen_ones_and_get_their_gradient(softcap, biased):
    torch.manual_seed(0)
    hidden, rows = torch.randn(CHUNK + 5, 4).double().requires_grad_(), torch.randn(3, 4).double().requires_grad_()
    head, bias = torch.randn(9, 4).double(), torch.randn(9).double() if biased else None
    target = torch.randint(9, (len(hidden),))
    loss, _ = linear_cross_entropy(hidden, head, target, softcap, bias_V=bias, trained=TrainedRows(5, rows))
    whole = head.index_copy(0, torch.arange(5, 8), rows)
    expected = F.cross_entropy(_cap(F.linear(hidden, whole, bias), softcap), target, reduction="sum")
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(x * 0.5, (hidden, rows)) for x in (loss, expected))
    for grad, autograd in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad, autograd)
    alone = rows.detach().requires_grad_()  # of hidden states that nobody asks about
    linear_cross_entropy(hidden.detach(), head, target, softcap, bias_V=bias, trained=TrainedRows(5, alone))[0].backward()
    torch.testing.assert_close(alone.grad, 2 * theirs[1])


def test_large_logits_do_not_overflow():
    hidden, head = torch.full((1, 2), 300.0), torch.tensor([[300.0, 300.0], [-300.0, -300.0]])
    assert float(linear_cross_entropy(hidden, head, torch.tensor([0]))[0]) == 0.0
    # The target's probability underflows in fp32; its loss must not.
    assert float(linear_cross_entropy(hidden, head, torch.tensor([1]))[0]) == pytest.approx(360_000)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("C", "V"), [(1, 2), (3, 37), (BLOCK + 1, 5003), (2, 49152)])
def test_rows_equal_autograd(C, V, dtype, softcap):
    torch.manual_seed(V)
    logits, target = (torch.randn(C, V) * 4).to(dtype), torch.randint(V, (C,))
    expected_loss, expected_grad, expected_correct = oracle(logits, target, softcap)
    loss, correct = cross_entropy_rows_(logits, target, softcap)
    assert loss.dtype == torch.float32 and correct.dtype == torch.bool
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)
    rtol = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps * 0.51
    torch.testing.assert_close(logits.double(), expected_grad, rtol=rtol, atol=1e-7)
    assert torch.equal(correct, expected_correct)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_may_be_strided(dtype):
    room = torch.randn(5, 100).to(dtype)
    before, logits, target = room.clone(), room[:, 20:57], torch.randint(37, (5,))
    alone = logits.clone()
    loss, _ = cross_entropy_rows_(logits, target)
    # Sums of strided rows may be taken in another order.
    torch.testing.assert_close(loss, cross_entropy_rows_(alone, target)[0])
    torch.testing.assert_close(logits, alone)
    assert torch.equal(room[:, :20], before[:, :20]) and torch.equal(room[:, 57:], before[:, 57:])


@pytest.mark.parametrize("gap", [10.0, 17.0, 20.0, 40.0])
def test_a_target_far_ahead_keeps_its_loss_and_gradient(gap):
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(0)).clamp_(-2, 2)
    target = torch.tensor([0, 350, 699])
    logits[torch.arange(3), target] = logits.amax(-1) + gap
    exact = logits.double().requires_grad_()
    loss = F.cross_entropy(exact, target, reduction="none")
    loss.sum().backward()
    others = exact.grad.scatter(1, target[:, None], 0.0)
    work = logits.clone()
    found, correct = cross_entropy_rows_(work, target)
    lacking = others.sum(-1)  # fp64 itself rounds 1 - p at a lead of 36
    torch.testing.assert_close(found.double(), -torch.log1p(-lacking), rtol=2e-6, atol=0.0)
    torch.testing.assert_close(work.double(), others.scatter(1, target[:, None], -lacking[:, None]), rtol=2e-6, atol=0.0)
    assert correct.all()


def test_ties_go_to_the_first_index_as_in_argmax():
    logits = torch.tensor([[1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [2.0, 2.0, 2.0], [3.0, 2.0, 2.0]])
    _, correct = cross_entropy_rows_(logits, torch.tensor([1, 2, 0, 1]))
    assert correct.tolist() == [True, False, True, False]


def test_not_a_number_shows():
    logits = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 1.0, 2.0]])
    loss, correct = cross_entropy_rows_(logits, torch.tensor([0, 2]))
    assert loss.isnan().tolist() == [True, False] and correct.tolist() == [False, True]


def test_half_precision_hidden_states_keep_the_gradient_of_exact_logits():
    torch.manual_seed(0)
    hidden = torch.randn(CHUNK + 3, 32).bfloat16().requires_grad_()
    head, target = torch.randn(301, 32).bfloat16(), torch.randint(301, (CHUNK + 3,))
    loss, _ = linear_cross_entropy(hidden, head, target)
    loss.backward()
    exact = hidden.detach().double().requires_grad_()
    expected = F.cross_entropy(exact @ head.double().T, target, reduction="sum")
    expected.backward()
    assert loss.dtype == torch.float32 and hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=0)
    assert (hidden.grad.double() - exact.grad).norm() < 0.01 * exact.grad.norm()


def test_two_runs_give_the_same_bits_and_no_rows_give_zero():
    hidden, head, target = torch.randn(CHUNK + 9, 16), torch.randn(77, 16), torch.randint(77, (CHUNK + 9,))
    once, again = (linear_cross_entropy(hidden, head, target)[0] for _ in range(2))
    assert torch.equal(once, again)
    loss, correct = linear_cross_entropy(hidden[:0], head, target[:0])
    assert float(loss) == 0.0 and int(correct) == 0


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_an_fp16_head_under_hidden_states_beyond_fp16(softcap):
    torch.manual_seed(0)
    hidden, head = torch.randn(CHUNK + 3, 32) * 1e6, (torch.randn(301, 32) * 2e-6).half()
    target = torch.randint(301, (CHUNK + 3,))
    loss, correct = linear_cross_entropy(hidden.requires_grad_(), head, target, softcap)
    (loss * 1e-6).backward()  # the gradient of a large step, far below what fp16 can hold
    exact = hidden.detach().double().requires_grad_()
    logits = _cap(exact @ head.double().T, softcap)
    expected = F.cross_entropy(logits, target, reduction="sum")
    (expected * 1e-6).backward()
    assert loss.dtype == hidden.grad.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=0)
    assert (hidden.grad.double() - exact.grad).norm() < 1e-3 * exact.grad.norm()
    assert abs(int(correct) - int((logits.argmax(-1) == target).sum())) <= 1
