"""Groups of adapted layers on the way of a GPU: our kernels in Triton's interpreter, everything else as PyTorch has it."""

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from torch import nn

from tunesmith.checkpoints.gguf_write.quantize import ggml
from tunesmith.kernels.blocks import Blocks
from tunesmith.kernels.nf4 import quantize_nf4
from tunesmith.layers.context import StepContext, at_step
from tunesmith.layers.dropout import SeededMask
from tunesmith.layers.grid import GridBase, GridLinear
from tunesmith.layers.lora import LoRAGroup, LoRALinear, Norm, join
from tunesmith.layers.mlp import FusedMLP
from tunesmith.layers.nf4 import NF4Weight
from tunesmith.layers.quantized import QuantizedLinear


@pytest.fixture
def on_gpu(monkeypatch):
    """A function that lets every tensor say that it is on a GPU; masks are those of a GPU before, too."""
    monkeypatch.setattr("tunesmith.layers.lora.draw_mask", lambda _, p, seed: SeededMask(seed, round(p * 2**16)))
    return lambda: monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))


def _layers(ranks, inputs, dropout=0.0, quantised=(True, True, True), widths=(5, 24, 7)):
    torch.manual_seed(0)
    layers = []
    for r, outputs, nf4 in zip(ranks, widths, quantised, strict=False):
        base = nn.Linear(inputs, outputs, bias=outputs != 24)
        if nf4:
            base = QuantizedLinear(NF4Weight(quantize_nf4(base.weight.data), torch.float32), base.bias)
        layers.append(LoRALinear(base, r, 2.0, dropout, torch.Generator().manual_seed(1)))
        layers[-1].lora_B.data.normal_()
    return layers


def _results(layers, x, norm, seen=None):
    """Output and gradients of a group in a step of two packs."""
    group, x = join(layers), x.clone().requires_grad_()
    parameters = [p for layer in layers for p in (layer.lora_A, layer.lora_B) if p.numel()]
    with at_step(nn.ModuleList(layers), StepContext(seed=3, step=0)) as enter:
        for pack in (0, 1):
            enter(pack)
            y = group(x, norm)
            found = [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]
    if seen is not None:
        seen += [group.augmented_input(x)[0], group._augmented(x.dtype, 1.0)]
    return found


def _without_input_gradient(layers, x, norm):
    return torch.autograd.grad(LoRAGroup(layers)(x, norm).square().sum(), [layer.lora_B for layer in layers])


def _assert_close(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5 * max([1e-6, *theirs.abs().flatten().tolist()]))


def _on_grids(dropout):
    torch.manual_seed(0)
    layers = []
    for kind, outputs, r in (("Q4_0", 5, 4), ("Q4_1", 24, 3)):
        base = nn.Linear(64, outputs)
        raw = torch.from_numpy(ggml().quantize(base.weight.detach().numpy(), Type[kind], None)).view(outputs, -1)
        grid = GridBase(base, Blocks(raw, kind, (outputs, 64)))
        layers.append(GridLinear(grid, r, 2.0, dropout, torch.Generator().manual_seed(1)))
        layers[-1].lora_B.data.normal_()
    return layers


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_group_that_trains_onto_grids_gives_what_the_cpu_gives(dropout, on_gpu):
    x, norm, layers, twins = torch.randn(9, 64), Norm(torch.rand(64) + 0.5, 1e-5, 0.0), _on_grids(dropout), _on_grids(dropout)
    expected = _results(layers, x, norm)
    on_gpu()
    _assert_close(_results(twins, x, norm), expected)


# Inputs of whole NF4 blocks, of an even number that shares blocks between rows, of an odd one that shares bytes.
@pytest.mark.parametrize(
    ("inputs", "ranks", "dropout"),
    [
        (64, (1,), 0.0),
        (70, (4, 4, 4), 0.4),
        (128, (8,), 0.4),
        (33, (12, 12), 0.0),
        (64, (16, 16), 0.0),
        (70, (64, 0), 0.4),
        (33, (0,), 0.0),
    ],
)
def test_one_product_of_a_quantised_group_gives_what_the_cpu_gives(inputs, ranks, dropout, on_gpu):
    x, norm = torch.randn(9, inputs), Norm(torch.rand(inputs) + 0.5, 1e-5, 0.0)
    expected = _results(_layers(ranks, inputs, dropout), x, norm)
    alone = _without_input_gradient(_layers(ranks, inputs), x, norm)
    on_gpu()
    seen = []
    _assert_close(_results(_layers(ranks, inputs, dropout), x, norm, seen), expected)
    _assert_close(_without_input_gradient(_layers(ranks, inputs), x, norm), alone)
    assert all(tensor.stride(0) % 16 == 0 for tensor in seen), [tensor.stride() for tensor in seen]


@pytest.mark.parametrize("quantised", [(False, False), (True, False), (False, True)])
def test_dense_weights_are_padded_too_and_may_stand_beside_quantised_ones(quantised, on_gpu):
    x = torch.randn(9, 64)
    expected = _results(_layers((3, 2), 64, 0.0, quantised), x, None)
    on_gpu()
    seen = []
    _assert_close(_results(_layers((3, 2), 64, 0.0, quantised), x, None, seen), expected)
    assert seen[0].stride(0) == seen[1].stride(0) == 80


def test_a_fused_mlp_gives_what_the_cpu_gives(on_gpu):
    x, norm = torch.randn(9, 24), Norm(torch.ones(24), 1e-5, 0.0)

    def results():
        gate, up = _layers((8, 8), 24, widths=(40, 40))
        (down,) = _layers((4,), 40, widths=(24,))
        mlp, leaf = FusedMLP({"gate_proj": gate, "up_proj": up}, down, "silu", norm), x.clone().requires_grad_()
        y = mlp(leaf)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [leaf, gate.lora_A, up.lora_B, down.lora_A, down.lora_B])]

    expected = results()
    on_gpu()
    _assert_close(results(), expected)


def test_adapters_are_cast_once_a_step_and_never_outlive_it(on_gpu, monkeypatch):
    on_gpu()
    layers = _layers((4, 4), 64)
    casts, cast = [], torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda to, those: casts.append(len(those)) or cast(to, those))
    group, x = LoRAGroup(layers), torch.randn(3, 64)
    for step in (0, 1):
        with at_step(nn.ModuleList(layers), StepContext(seed=3, step=step)) as enter:
            for pack in (0, 1):
                enter(pack)
                group(x).sum().backward()
    assert casts == [2, 2]
    before = group(x)
    layers[0].lora_B.data.mul_(2.0)  # unseen by a version counter
    assert not torch.equal(group(x)[:, :5], before[:, :5]) and torch.equal(group(x)[:, 5:], before[:, 5:])
