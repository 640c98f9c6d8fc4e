import copy

import pytest
import torch
from torch import nn
from transformers import GptOssConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from tunesmith.errors import ModelError
from tunesmith.kernels.nf4 import quantize_nf4
from tunesmith.layers.experts import LoRAExperts, NF4Experts
from tunesmith.layers.gate import Gate
from tunesmith.layers.nf4 import NF4Weight

E, D, F, R = 5, 8, 6, 2
KINDS = ("silu", "gelu", "clamped")


def _stock(kind, seed=0, width=D, features=F):
    """A stock experts module with random weights."""
    torch.manual_seed(seed)
    if kind == "clamped":  # the limit is met by about a third of the values
        config = GptOssConfig(hidden_size=width, intermediate_size=features, num_local_experts=E, swiglu_limit=0.9)
        stock = GptOssExperts(config)
    else:
        act = {"silu": "silu", "gelu": "gelu_pytorch_tanh"}[kind]
        config = Qwen3MoeConfig(hidden_size=width, moe_intermediate_size=features, num_experts=E, hidden_act=act)
        stock = Qwen3MoeExperts(config)
    config._experts_implementation = "eager"
    for parameter in stock.parameters():
        parameter.data.normal_(std=width**-0.5)
    return stock.requires_grad_(False)


def _routing(tokens=7, chosen=(0, 1, 3, 4)):
    """Two of the chosen experts a token; expert 2 gets none."""
    torch.manual_seed(tokens)
    index_TK = torch.stack([torch.tensor(chosen)[torch.randperm(len(chosen))[:2]] for _ in range(tokens)])
    return index_TK, torch.rand(tokens, 2)


def _adapted(stock, seed=0):
    experts = LoRAExperts(stock, R, 1.5, torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    for part in experts.adapters().values():
        part.lora_B.data.normal_(std=0.3)
    return experts


def _merged(experts, stock):
    """The stock module over merged weights, with a graph down to the adapters."""
    plain = copy.deepcopy(stock)
    for name, part in experts.adapters().items():
        delta = 1.5 * part.lora_B @ part.lora_A
        del plain._parameters[name]
        setattr(plain, name, part.weight + (delta.transpose(1, 2) if part.transposed else delta))
    return plain


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_finite_differences(kind):
    experts = _adapted(_stock(kind).double()).double()
    index_TK, weights_TK = _routing()
    names = [f"{part}.{tensor}" for part in experts.adapters() for tensor in ("lora_A", "lora_B")]

    def forward(x, weights, *adapters):
        return torch.func.functional_call(experts, dict(zip(names, adapters, strict=True)), (x, index_TK, weights))

    x = torch.randn(7, D, dtype=torch.float64, requires_grad=True)
    adapters = [experts.get_parameter(name) for name in names]
    assert torch.autograd.gradcheck(forward, (x, weights_TK.double().requires_grad_(), *adapters))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_the_stock_module_with_merged_weights(kind):
    stock = _stock(kind)
    experts = _adapted(stock)
    index_TK, weights_TK = _routing()
    x, dout = torch.randn(7, D), torch.randn(7, D)
    found = []
    for module in (experts, _merged(experts, stock)):
        x_, weights_ = x.clone().requires_grad_(), weights_TK.clone().requires_grad_()
        out = module(x_, index_TK, weights_)
        experts.zero_grad()
        out.backward(dout)
        adapters = [p.grad.clone() for part in experts.adapters().values() for p in (part.lora_A, part.lora_B)]
        found.append([out.detach(), x_.grad, weights_.grad, *adapters])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert all(not gradient[2].any() and gradient[[0, 1, 3, 4]].any() for gradient in found[0][3:])


@pytest.mark.parametrize("wanted", ["x", "weights", "adapters"])
def test_gradients_that_nobody_wants_are_not_made(wanted):
    experts = _adapted(_stock("clamped"))
    index_TK, weights_TK = _routing()
    x, full = torch.randn(7, D), {}
    for everything in (True, False):
        x_, weights_ = (t.clone().requires_grad_(everything or wanted == n) for t, n in ((x, "x"), (weights_TK, "weights")))
        experts.zero_grad()
        for part in experts.adapters().values():
            part.lora_A.requires_grad_(everything or wanted == "adapters")
            part.lora_B.requires_grad_(everything or wanted == "adapters")
        experts(x_, index_TK, weights_).square().sum().backward()
        grads = {"x": x_.grad, "weights": weights_.grad, "adapters": experts.down_proj.lora_B.grad}
        full = full or {name: gradient.clone() for name, gradient in grads.items()}
        if not everything:
            assert [name for name, gradient in grads.items() if gradient is not None] == [wanted]
            assert torch.equal(grads[wanted], full[wanted])


def test_experts_without_tokens_are_not_read_and_nothing_dense_is_saved(monkeypatch):
    stock = _stock("silu", width=64, features=32)
    parts = [NF4Weight(quantize_nf4(p.data), torch.float32) for p in (stock.gate_up_proj, stock.down_proj)]
    experts = _adapted(NF4Experts(stock, *parts))
    read, saved = [], []
    whole = NF4Weight.expert
    monkeypatch.setattr(NF4Weight, "expert", lambda self, e, dtype: read.append(e) or whole(self, e, dtype))
    index_TK, weights_TK = _routing(tokens=40)
    x = torch.randn(40, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = experts(x, index_TK, weights_TK.requires_grad_())
    assert set(read) == {0, 1, 3, 4}
    own = {p.data_ptr() for p in experts.parameters()} | {x.data_ptr(), weights_TK.data_ptr(), index_TK.data_ptr()}
    # the outputs of gate and up, and two rank-r products, of each pair; the outputs of the experts are not among them
    assert sum(t.numel() for t in saved if t.data_ptr() not in own) == 80 * (2 * 32 + 2 * R)
    out.sum().backward()
    assert set(read) == {0, 1, 3, 4}


@pytest.mark.parametrize("kind", ["silu", "clamped"])
def test_nf4_experts_are_the_stock_module_over_bitsandbytes_values(kind):
    functional = pytest.importorskip("bitsandbytes.functional")
    stock = _stock(kind, width=24, features=10)  # 480 weights an expert: blocks of 64 reach over experts
    quantized = NF4Experts(stock, *(NF4Weight(quantize_nf4(p.data), p.dtype) for p in (stock.gate_up_proj, stock.down_proj)))
    values = copy.deepcopy(stock)
    for parameter in (values.gate_up_proj, values.down_proj):
        packed, state = functional.quantize_4bit(parameter.data, quant_type="nf4", compress_statistics=True)
        parameter.data = functional.dequantize_4bit(packed, state)
    for ours, theirs in zip(
        (quantized.gate_up_proj, quantized.down_proj), (values.gate_up_proj, values.down_proj), strict=True
    ):
        assert torch.equal(ours.quantized.dense(torch.float32), theirs)
        for expert in range(E):
            dense = theirs[expert].T if kind == "clamped" else theirs[expert]
            assert torch.equal(ours.base_OI(expert, torch.float32), dense)
    index_TK, weights_TK = _routing()
    x, found = torch.randn(7, 24), []
    for module in (quantized, values):
        x_, weights_ = x.clone().requires_grad_(), weights_TK.clone().requires_grad_()
        out = module(x_, index_TK, weights_)
        out.square().sum().backward()
        found.append((out.detach(), x_.grad, weights_.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in quantized.parameters())


@pytest.mark.parametrize("kind", ["silu", "clamped"])
def test_bf16_keeps_updates_that_are_lost_in_the_weights_grid(kind):
    stock = _stock(kind, width=64, features=48).to(torch.bfloat16)
    experts = _adapted(stock)
    for part in experts.adapters().values():
        part.lora_B.data.mul_(0.001)  # 0.07 % of the output, as after the first steps
    fresh = _adapted(stock)
    for part in fresh.adapters().values():
        part.lora_B.data.zero_()
    index_TK, weights_TK = _routing(tokens=200)
    x = torch.randn(200, 64, dtype=torch.bfloat16)
    usual = _merged(experts, stock)  # the sum of weight and update, rounded: what PEFT multiplies with
    for name in experts.adapters():
        setattr(usual, name, getattr(usual, name).detach().to(torch.bfloat16))
    with torch.no_grad():
        base = copy.deepcopy(stock).double()(x.double(), index_TK, weights_TK.double())
        exact = copy.deepcopy(experts).double()(x.double(), index_TK, weights_TK.double())
        ours, theirs = experts(x, index_TK, weights_TK), usual(x, index_TK, weights_TK)
        before, stock_before = fresh(x, index_TK, weights_TK), stock(x, index_TK, weights_TK)
    update = exact - base

    def kept(after, before):
        """Share of the update that arrives, by projection on it."""
        return float(((after.double() - before.double()) * update).sum() / update.square().sum())

    assert ours.dtype == torch.bfloat16 and (ours.double() - exact).norm() < (theirs.double() - exact).norm()
    assert 0.9 < kept(ours, before) < 1.1 and kept(theirs, stock_before) < 0.5


@pytest.mark.parametrize("kind", ["silu", "clamped"])
@pytest.mark.parametrize("nf4", [False, True])
def test_fp16_weights_take_any_fp32_input(kind, nf4):
    stock = _stock(kind, width=64, features=32)
    for name in ("gate_up_proj", "down_proj"):  # values that fp16 holds
        stock.get_parameter(name).data = stock.get_parameter(name).data.half().float()
    exact = stock
    if nf4:
        parts = [NF4Weight(quantize_nf4(p.data), torch.float16) for p in (stock.gate_up_proj, stock.down_proj)]
        exact, half = NF4Experts(stock, *parts), NF4Experts(stock, *parts)
        half.gate_up_proj.in_fp16 = half.down_proj.in_fp16 = True
    else:
        half = copy.deepcopy(stock)
        half.gate_up_proj.data, half.down_proj.data = half.gate_up_proj.data.half(), half.down_proj.data.half()
    index_TK, weights_TK = _routing(tokens=40)
    x = torch.randn(40, 64) * 10.0 ** (torch.arange(40) % 7 - 1)[:, None]  # of every size, some beyond 65,504
    assert x.half().isinf().any()
    found = []
    for base in (exact, half):
        experts = _adapted(base)
        x_, weights_ = x.clone().requires_grad_(), weights_TK.clone().requires_grad_()
        out = experts(x_, index_TK, weights_)
        (out / x.norm(dim=1, keepdim=True)).sum().backward()
        adapters = [p.grad for part in experts.adapters().values() for p in (part.lora_A, part.lora_B)]
        found.append([out.detach(), x_.grad, weights_.grad, *adapters])
    for theirs, ours in zip(*found, strict=True):
        assert ours.dtype == torch.float32 and theirs.norm() > 0
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.9999
    # a row of every size: not each one, since a gate of 0.5 as the difference of two of 10,000 has no digits in fp16
    assert ((found[0][0] - found[1][0]).norm(dim=1) / found[0][0].norm(dim=1)).median() < 2e-3


def test_the_same_result_on_every_run_and_for_tokens_in_any_order():
    experts = _adapted(_stock("gelu"))
    index_TK, weights_TK = _routing(tokens=30)
    x, order = torch.randn(30, D), torch.randperm(30)
    with torch.no_grad():
        out = experts(x, index_TK, weights_TK)
        assert torch.equal(experts(x, index_TK, weights_TK), out)
        torch.testing.assert_close(experts(x[order], index_TK[order], weights_TK[order]), out[order])
        assert experts(x[:0], index_TK[:0], weights_TK[:0]).shape == (0, D)


def test_gates_with_turns_equal_gates_in_halves():
    torch.manual_seed(0)
    halves_N2F, dh_NF = torch.randn(4, 2 * F), torch.randn(4, F)
    turns_N2F = torch.stack(halves_N2F.chunk(2, 1), -1).flatten(1)
    for activation in ("silu", "gelu_tanh", "clamped"):
        halves, turns = (Gate(activation, interleaved, 1.7, 0.8) for interleaved in (False, True))
        # The exponential of a vector and that of a number alone may differ in the last bit.
        torch.testing.assert_close(halves.forward(halves_N2F), turns.forward(turns_N2F))
        (h, d), (h_, d_) = halves.backward(dh_NF.clone(), halves_N2F), turns.backward(dh_NF.clone(), turns_N2F)
        torch.testing.assert_close(h, h_)
        torch.testing.assert_close(torch.stack(d.chunk(2, 1), -1).flatten(1), d_)


def test_experts_of_another_kind_are_refused():
    config = Qwen3MoeConfig(hidden_size=D, moe_intermediate_size=F, num_experts=E, hidden_act="relu")
    with pytest.raises(ModelError, match="activation 'relu'"):
        LoRAExperts(Qwen3MoeExperts(config), R, 1.0)
    ungated = _stock("silu")
    ungated.has_gate = False
    with pytest.raises(ModelError, match="not known"):
        LoRAExperts(ungated, R, 1.0)
    with pytest.raises(ModelError, match="not known"):
        LoRAExperts(nn.Linear(3, 3), R, 1.0)
