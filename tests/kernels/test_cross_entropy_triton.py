import pytest
import torch

from tunesmith.kernels import cross_entropy as reference
from tunesmith.kernels.triton.cross_entropy import BLOCK, cross_entropy_rows_

# One row, a vocabulary that fills no block, exactly one block, one entry more, and a real one.
SHAPES = [(1, 2), (3, 37), (2, BLOCK), (2, BLOCK + 1), (3, 49152)]


def _operands(C, V, dtype, device):
    torch.manual_seed(V)
    return (torch.randn(C, V + 7) * 4).to(dtype).to(device)[:, 3 : V + 3], torch.randint(V, (C,)).to(device)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("C", "V"), SHAPES)
def test_equals_the_reference(C, V, dtype, softcap, device):
    logits, target = _operands(C, V, dtype, device)
    target[0] = int(logits[0].argmax())
    exact = logits.double().cpu()
    expected_loss, expected_correct = reference.cross_entropy_rows_(exact, target.cpu(), softcap)
    loss, correct = cross_entropy_rows_(logits, target, softcap)
    assert loss.dtype == torch.float32 and correct.dtype == torch.bool
    torch.testing.assert_close(loss.double().cpu(), expected_loss, rtol=2e-6, atol=2e-6)
    rtol = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(logits.double().cpu(), exact, rtol=rtol, atol=1e-6)
    # Soft-capping in fp32 makes neighbours equal that differ in fp64; only the row of the certain maximum is compared.
    assert correct[0] and (softcap is not None or torch.equal(correct.cpu(), expected_correct))


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("V", [37, BLOCK, 3 * BLOCK + 2])
def test_a_narrow_gradient_takes_the_place_of_its_own_row(V, softcap, device):
    torch.manual_seed(V)
    logits, target = torch.randn(3, V, device=device) * 4, torch.randint(V, (3,), device=device)
    wide = logits.clone()
    loss, correct = cross_entropy_rows_(wide, target, softcap)
    for function in (cross_entropy_rows_, reference.cross_entropy_rows_):
        work = logits.clone()
        out = reference.narrow_view(work, torch.float16)
        found, same = function(work, target, softcap, out)
        torch.testing.assert_close(found, loss)
        assert torch.equal(same, correct)
        torch.testing.assert_close(out.float(), wide, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("gap", [10.0, 17.0, 20.0, 40.0])
def test_a_target_far_ahead_keeps_its_loss_and_gradient(gap, device):
    logits, target = _operands(2, BLOCK + 9, torch.float32, device)
    logits.clamp_(-3, 3)
    logits[[0, 1], target] = logits.amax(-1) + gap
    exact = logits.double().cpu()
    expected, _ = reference.cross_entropy_rows_(exact, target.cpu())
    loss, _ = cross_entropy_rows_(logits, target)
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=2e-6, atol=0.0)
    torch.testing.assert_close(logits.double().cpu(), exact, rtol=3e-6, atol=0.0)


def test_ties_go_to_the_first_index_within_and_across_blocks(device):
    logits = torch.zeros(4, BLOCK + 5, device=device)
    logits[:, [7, 9, BLOCK + 2]] = 1.0
    logits[3, BLOCK + 3] = 2.0
    _, correct = cross_entropy_rows_(logits, torch.tensor([7, 9, BLOCK + 2, BLOCK + 3], device=device))
    assert correct.tolist() == [True, False, False, True]


def test_a_block_of_minus_infinity_and_a_nan(device):
    logits = torch.full((2, BLOCK + 2), -torch.inf, device=device)
    logits[0, BLOCK:] = 0.0
    logits[1] = 0.0
    logits[1, 5] = torch.nan
    loss, _ = cross_entropy_rows_(logits, torch.tensor([BLOCK, 0], device=device))
    assert float(loss[0]) == pytest.approx(0.693147) and bool(loss[1].isnan())
    assert logits[0, [0, BLOCK, BLOCK + 1]].tolist() == pytest.approx([0.0, -0.5, 0.5])


def test_the_largest_vocabulary(device):
    logits, target = _operands(1, 262144, torch.float32, device)
    expected = torch.nn.functional.cross_entropy(logits.double(), target, reduction="none")
    loss, _ = cross_entropy_rows_(logits, target)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    assert abs(float(logits.double().sum())) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_bf16_on_the_device_against_fp64(softcap):
    torch.manual_seed(0)
    N, D, V = reference.CHUNK + 5, 576, 49152
    hidden = torch.randn(N, D).bfloat16()
    head, target = (torch.randn(V, D) / 8).bfloat16(), torch.randint(V, (N,))
    exact = hidden.double().requires_grad_()
    expected, _ = reference.linear_cross_entropy(exact, head.double(), target, softcap)
    expected.backward()
    leaf = hidden.cuda().requires_grad_()
    loss, _ = reference.linear_cross_entropy(leaf, head.cuda(), target.cuda(), softcap)
    loss.backward()
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=1e-5, atol=0)
    assert (leaf.grad.double().cpu() - exact.grad).norm() < 0.01 * exact.grad.norm()
