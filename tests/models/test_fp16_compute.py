"""A model in fp16 whose activations pass 65,504, against fp32; what half, autocast and clamping make of the same model."""

import contextlib
import copy
import math

import peft
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen3MoeConfig,
)

from tunesmith.errors import ModelError
from tunesmith.layers.context import StepContext
from tunesmith.layers.half import HalfLinear
from tunesmith.models.adapter import adapter_state, load_adapter_state
from tunesmith.models.attention import PACKED
from tunesmith.models.fp16_compute import keep_residual_in_fp32
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention, load_model
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import step_gradients

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, "initializer_range": 0.12}
SMALL |= {"max_position_embeddings": 256, "pad_token_id": 0}
BARE = {name: value for name, value in SMALL.items() if name not in ("num_key_value_heads", "head_dim")}
S, A = "sliding_attention", "full_attention"
CONFIGS = {
    "gemma3": Gemma3TextConfig(**SMALL, query_pre_attn_scalar=16, layer_types=[S, A, A], sliding_window=8),
    "llama": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "gemma4": Gemma4TextConfig(
        **{**SMALL, "num_hidden_layers": 4},
        vocab_size_per_layer_input=300,
        layer_types=[S, A, S, A],
        global_head_dim=32,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        sliding_window=8,
        final_logit_softcapping=30.0,
    ),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, num_experts=3, num_experts_per_tok=3, moe_intermediate_size=32),  # no choice to tip
    "opt": OPTConfig(**BARE, ffn_dim=96, word_embed_proj_dim=64, init_std=0.12),
    "gpt_neox": GPTNeoXConfig(**BARE),
}
LARGE = 160.0  # on the weights of gate and up: their product passes 65,504


def _documents():
    generator = torch.Generator().manual_seed(3)
    return [(torch.randint(1, 300, (n,), generator=generator).tolist(), [0] * (n - 9) + [1] * 9) for n in (30, 21, 40)]


PAIRS = _documents()


def _stock(name, factor=1.0):
    """A random fp32 model; ``factor`` on the weights of gate and up."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).requires_grad_(False).eval()
    for key, parameter in model.named_parameters():
        if "norm" in key or "bias" in key:
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        if "gate_proj.weight" in key or "up_proj" in key:
            parameter.mul_(factor)
    return model


def _in_half(model):
    model = copy.deepcopy(model).half()
    keep_residual_in_fp32(model)
    return model


def _trained(model, fused=False, state=None, **lora):
    """Loss and all adapter gradients of a step of ours, the adapter, and how many rows were rescued."""
    layers = add_lora(model, Lora(r=4, alpha=8, **{"dropout": 0.0, **lora}), 0)
    if state is not None:
        load_adapter_state(layers, state)
    else:
        generator = torch.Generator().manual_seed(4)
        for layer in layers.values():
            layer.lora_B.data.normal_(std=0.1, generator=generator)
    if fused:
        assert not fuse(model).stock_reasons
    context = StepContext(seed=7, step=0)
    with attention(model, PACKED):
        loss, _ = step_gradients(model, [make_pack(make_documents(PAIRS), (0, 1, 2))], context)
    grads = [p.grad for layer in layers.values() for p in layer.parameters() if p.requires_grad]
    return (loss, grads), adapter_state(layers), context.counters.overflow.total()


def _clamp(model):
    """Clamping as peers do it: the product of gate and up to 65,280 before down_proj, what is not a number to zero after."""
    for layer in model.get_base_model().model.layers:
        down = layer.mlp.down_proj
        down.register_forward_pre_hook(lambda _, given: (given[0].float().clamp(-65280, 65280).nan_to_num(0.0),))
        down.register_forward_hook(lambda _, given, out: out.float().clamp(-65280, 65280).nan_to_num(0.0))


def _by_peft(model, state, context=None, clamp=False):
    """The same by stock transformers and PEFT, a document at a time."""
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    peft.set_peft_model_state_dict(model, state)
    if clamp:
        _clamp(model)
    total = torch.zeros(())
    for ids, supervised in PAIRS:
        ids = torch.tensor(ids)
        labels = torch.where(torch.tensor(supervised) == 1, ids, -100)
        with context or contextlib.nullcontext():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits.float(), labels[1:], ignore_index=-100, reduction="sum") / 27
    total.backward()
    return float(total.detach()), [p.grad for p in model.parameters() if p.requires_grad]


def _agree(found, truth):
    """Loss within the rounding of fp16, and the direction of all gradients together."""
    ours, theirs = (torch.cat([g.detach().double().flatten() for g in grads]) for _, grads in (found, truth))
    cosine = float(F.cosine_similarity(ours, theirs, dim=0))
    # A comparison with NaN is false.
    return abs(found[0] - truth[0]) <= 2**-10 * truth[0] and cosine >= 0.999 and bool(ours.isfinite().all())


@pytest.mark.parametrize("factor", [1.0, LARGE])
@pytest.mark.parametrize("name", ["gemma3", "llama"])
@pytest.mark.parametrize("fused", [False, True])
def test_loss_and_gradients_are_those_of_fp32(name, factor, fused):
    found, state, rescued = _trained(_in_half(_stock(name, factor)), fused)
    assert (rescued > 0) == (factor == LARGE)
    assert _agree(found, _by_peft(_stock(name, factor), state))


@pytest.mark.parametrize("way", ["half", "autocast", "clamped"])
def test_the_usual_ways_fail_the_same_comparison(way):
    _, state, _ = _trained(_in_half(_stock("gemma3", LARGE)))
    truth = _by_peft(_stock("gemma3", LARGE), state)
    model = _stock("gemma3", LARGE)
    if way == "half":
        found = _by_peft(model.half(), state)
    else:
        found = _by_peft(model, state, torch.autocast("cpu", torch.float16), clamp=way == "clamped")
    assert not _agree(found, truth)
    assert math.isfinite(found[0]) == (way == "clamped")  # a loss that looks right, over gradients that are not


@pytest.mark.parametrize("base", ["fp16", "nf4"])
@pytest.mark.parametrize("lora", [{"dropout": 0.3}, {"use_dora": True}, {"use_dora": True, "dropout": 0.3}], ids=str)
def test_loaded_dense_or_quantised_with_dropout_and_dora(base, lora, tmp_path):
    _stock("gemma3", LARGE).save_pretrained(tmp_path)
    fused = not lora.get("use_dora")
    truth, state, rescued = _trained(load_model(tmp_path, "fp32", base if base == "nf4" else "fp32"), fused, **lora)
    assert rescued is None
    found, _, rescued = _trained(load_model(tmp_path, "fp16", base), fused, state, **lora)
    assert rescued > 0
    assert _agree(found, truth)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_shared_keys_and_per_layer_inputs(targets, fused):
    # Attention without a scale is so steep here that rounding the weights alone turns gradients by 4 degrees.
    stock = _stock("gemma4", LARGE).half().float()
    found, state, rescued = _trained(_in_half(stock), fused, target_modules=targets)
    assert rescued > 0
    assert _agree(found, _trained(stock, False, state, target_modules=targets)[0])


@pytest.mark.parametrize("base", ["fp16", "nf4"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")], ids=str)
def test_experts(base, targets, tmp_path):
    _stock("qwen3_moe", LARGE).save_pretrained(tmp_path)
    truth, state, _ = _trained(load_model(tmp_path, "fp32", base if base == "nf4" else "fp32"), target_modules=targets)
    found, _, rescued = _trained(load_model(tmp_path, "fp16", base), state=state, target_modules=targets)
    assert _agree(found, truth)
    # Experts in 16 bits are made fp32, those in NF4 are dense in fp16.
    assert (rescued > 0) == (base == "nf4")


@pytest.mark.parametrize("name", list(CONFIGS))
def test_stock_modules_compute_in_fp32(name):
    stock, ids = _stock(name), torch.tensor([PAIRS[0][0]])
    model = _in_half(stock)
    expected, found = (m(input_ids=ids, use_cache=False).logits for m in (stock, model))
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 4e-3
    # Inputs that ask for a gradient get it through every frozen layer.
    slopes = []
    for m in (stock, model):
        embedded = m.get_input_embeddings()(ids).detach().float().requires_grad_()
        more = {"per_layer_inputs": m.model.get_per_layer_inputs(ids)} if name == "gemma4" else {}
        logits = m(inputs_embeds=embedded, use_cache=False, **more).logits
        slopes.append(torch.autograd.grad(logits.square().mean(), embedded)[0].flatten())
    assert float(F.cosine_similarity(*slopes, dim=0)) > 0.999


def test_large_weights_stay_in_fp16_and_ties_hold():
    model = _in_half(_stock("llama"))
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, HalfLinear) and head.weight is table.weight
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float16 if parameter.ndim == 2 else torch.float32), name
    before = dict(model.named_modules())
    keep_residual_in_fp32(model)
    assert all(module is before[name] for name, module in model.named_modules())


def test_the_scale_of_embeddings_is_not_rounded():
    stock, ids = _stock("gemma3"), torch.arange(300)[None]
    stock.model.embed_tokens.weight.data = stock.model.embed_tokens.weight.half().float()
    stock.model.embed_tokens.scalar_embed_scale = 33.941123  # of hidden size 1,152: 33.9375 in fp16
    stock.model.embed_tokens.embed_scale.fill_(33.941123)
    assert torch.equal(_in_half(stock).model.embed_tokens(ids), stock.model.embed_tokens(ids))


def test_a_weight_beyond_fp16_is_refused():
    model = _stock("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = 1e5
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight: a value beyond 65,504"):
        _in_half(model)
