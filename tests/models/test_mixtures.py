"""Adapters on the experts of three families, against the stock model with PEFT's ``target_parameters``."""

import copy
import json

import pytest
import torch
import transformers

from tunesmith.errors import TrainingError
from tunesmith.families import FAMILIES
from tunesmith.kernels.nf4 import dequantize_nf4, quantize_nf4
from tunesmith.layers.experts import LoRAExperts, NF4Experts
from tunesmith.layers.nf4 import NF4Weight
from tunesmith.models.adapter import CONFIG, adapter_state, load_adapter_state, read_adapter, read_experts, save_adapter
from tunesmith.models.swap import add_lora, merge_lora, put_module, target_names
from tunesmith.recipe import Lora

COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
LORA = Lora(r=3, alpha=6, dropout=0.0)
FAMILIES_WITH_EXPERTS = ("qwen3_moe", "gemma4_text", "gpt_oss")


def _config(family):
    if family == "qwen3_moe":
        return transformers.Qwen3MoeConfig(
            **COMMON, intermediate_size=48, moe_intermediate_size=20, num_experts=5, num_experts_per_tok=2, norm_topk_prob=True
        )
    if family == "gpt_oss":
        facts = {**COMMON, "intermediate_size": 32}  # square, as the real one: only the layout tells in from out
        layers = ["sliding_attention", "full_attention"]
        return transformers.GptOssConfig(
            **facts, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, layer_types=layers, swiglu_limit=0.7
        )
    return transformers.Gemma4TextConfig(
        **COMMON,
        intermediate_size=48,
        layer_types=["sliding_attention", "full_attention"],
        global_head_dim=16,
        sliding_window=8,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=300,
        num_kv_shared_layers=0,
        use_double_wide_mlp=False,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        final_logit_softcapping=30.0,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=24,
    )


@pytest.fixture(params=FAMILIES_WITH_EXPERTS)
def stock(request):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(_config(request.param)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():  # biases and sinks that start at zero would test nothing
        if name.endswith(("_bias", "sinks", "router.bias")):
            parameter.normal_(std=0.3)
    return model


@pytest.fixture
def ids():
    return torch.randint(3, 300, (2, 13), generator=torch.Generator().manual_seed(2))


def _tuned(stock):
    """Our model with a trained-looking adapter."""
    model = copy.deepcopy(stock)
    layers = add_lora(model, LORA, seed=0)
    generator = torch.Generator().manual_seed(3)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.1, generator=generator)
    return model, layers


def _loss(model, ids):
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def test_records_are_those_of_the_stock_modules(stock):
    family = FAMILIES[stock.config.model_type]
    for layer in stock.model.layers:
        experts, _ = layer.get_submodule(family.experts.module), layer.get_submodule(family.experts.router)
        assert experts.is_transposed == (family.experts.layout == "EIO")
        assert experts.is_concatenated == (not family.experts.interleaved)


def test_peft_reads_what_we_write_logits_and_every_gradient(stock, ids, tmp_path):
    import peft

    model, layers = _tuned(stock)
    save_adapter(tmp_path, layers, LORA, "base")
    oracle = peft.PeftModel.from_pretrained(copy.deepcopy(stock), str(tmp_path), is_trainable=True).eval()
    ours, theirs = _loss(model, ids), _loss(oracle, ids)
    assert (ours - _loss(stock, ids)).abs().detach() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    ours.backward()
    theirs.backward()
    for layer in layers.values():  # PEFT's form of our gradients: written where the weights are
        layer.lora_A.data, layer.lora_B.data = layer.lora_A.grad, layer.lora_B.grad
    found = adapter_state(layers)
    expected = {name.replace(".default", ""): p.grad for name, p in oracle.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_we_read_what_peft_writes(stock, ids, tmp_path):
    import peft

    targets = [n for n in target_names(stock, "all-linear") if not n.endswith(".experts")]
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=targets, target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    )
    oracle = peft.get_peft_model(copy.deepcopy(stock), config).eval()
    for name, parameter in oracle.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    oracle.save_pretrained(tmp_path)
    model = copy.deepcopy(stock)
    load_adapter_state(add_lora(model, LORA, seed=5), read_adapter(tmp_path))
    with torch.no_grad():
        expected = oracle(input_ids=ids).logits
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
        assert (expected - stock(input_ids=ids).logits).abs().max() > 0.1


def test_merging_puts_the_stock_module_back(stock, ids, tmp_path):
    model, layers = _tuned(stock)
    save_adapter(tmp_path, layers, LORA, "base")
    with torch.no_grad():
        tuned = model(input_ids=ids).logits
        merge_lora(model, layers)
        torch.testing.assert_close(model(input_ids=ids).logits, tuned, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == stock.state_dict().keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in stock.modules()]
    experts = read_experts(tmp_path, read_adapter(tmp_path))
    for name, (A_ERI, B_EOR) in experts.items():
        delta = B_EOR @ A_ERI * LORA.scale
        delta = delta.transpose(1, 2) if stock.config.model_type == "gpt_oss" else delta
        torch.testing.assert_close(model.get_parameter(name), stock.get_parameter(name) + delta)
    assert set(json.loads((tmp_path / CONFIG).read_text())["target_parameters"]) == experts.keys()


def test_a_fresh_adapter_shares_the_weights_and_changes_nothing(stock, ids):
    name = FAMILIES[stock.config.model_type].experts.module
    experts = stock.model.layers[1].get_submodule(name)
    with torch.no_grad():
        before = stock(input_ids=ids).logits
        layers = add_lora(stock, LORA, seed=0)
        torch.testing.assert_close(stock(input_ids=ids).logits, before, rtol=1e-5, atol=1e-5)
    ours = layers[f"model.layers.1.{name}.gate_up_proj"]
    assert ours.weight.data_ptr() == experts.gate_up_proj.data_ptr()
    assert not any("router" in layer or layer.endswith(".gate") for layer in layers)
    assert sum(p.requires_grad for p in stock.parameters()) == 2 * len(layers)


def test_experts_in_nf4_train_and_merge_like_their_dense_values(stock, ids):
    dense = copy.deepcopy(stock)
    name = FAMILIES[stock.config.model_type].experts.module
    for ours, theirs in zip(stock.model.layers, dense.model.layers, strict=True):
        experts = ours.get_submodule(name)
        weights = [quantize_nf4(w.data) for w in (experts.gate_up_proj, experts.down_proj)]
        put_module(ours, name, NF4Experts(experts, *(NF4Weight(q, torch.float32) for q in weights)))
        values = theirs.get_submodule(name)
        values.gate_up_proj.data, values.down_proj.data = (dequantize_nf4(q, torch.float32) for q in weights)
    with torch.no_grad():
        torch.testing.assert_close(stock(input_ids=ids).logits, dense(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    found = []
    for model in (stock, dense):
        layers = add_lora(model, LORA, seed=0)
        for layer in layers.values():
            layer.lora_B.data.fill_(0.05)
        _loss(model, ids).backward()
        found.append([p.grad for layer in layers.values() for p in layer.parameters() if p.requires_grad])
        with torch.no_grad():
            tuned = model(input_ids=ids).logits
            merge_lora(model, layers)
            torch.testing.assert_close(model(input_ids=ids).logits, tuned, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_lists_and_expressions_adapt_what_they_name_and_dora_is_refused(stock):
    name = FAMILIES[stock.config.model_type].experts.module
    experts = [f"model.layers.{i}.{name}" for i in range(2)]
    assert target_names(stock, ("experts",)) == experts
    assert target_names(stock, r".*\.1\..*experts") == experts[1:]
    assert not set(experts) & set(target_names(stock, ("q_proj", "o_proj")))
    if stock.config.model_type == "gemma4_text":
        assert target_names(stock, r".*\.router\.proj") == [f"model.layers.{i}.router.proj" for i in range(2)]
        assert len(add_lora(copy.deepcopy(stock), Lora(r=2, target_modules=("proj",)), seed=0)) == 2
    with pytest.raises(TrainingError, match="experts, which have no DoRA"):
        add_lora(stock, Lora(r=2, use_dora=True), seed=0)


def test_what_is_left_out_is_said(stock, talk, monkeypatch):
    model = copy.deepcopy(stock)
    assert sum(isinstance(m, LoRAExperts) for m in model.modules()) == 0
    add_lora(model, Lora(r=2), seed=0)
    assert "lora.dropout 0.05 holds for the linear layers" in talk()
    monkeypatch.setattr("tunesmith.models.swap.FAMILIES", {})
    add_lora(stock, Lora(r=2), seed=0)
    assert "experts of 2 layers get no adapter" in talk()
