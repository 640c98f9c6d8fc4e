"""Oracles: the stock model with the same weights rounded to NF4, and bitsandbytes' own model."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GptOssConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tunesmith.errors import ModelError
from tunesmith.families import FAMILIES
from tunesmith.kernels.nf4 import dequantize_nf4, quantize_nf4
from tunesmith.layers.experts import NF4Experts
from tunesmith.layers.quantized import QuantizedLinear
from tunesmith.models.nf4_load import load_nf4, quantized_experts, quantized_linears

pytest.importorskip("bitsandbytes")

SMALL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"head_dim": 16, "initializer_range": 0.1, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, num_hidden_layers=2, tie_word_embeddings=False),
    "rope-scaled": LlamaConfig(
        **SMALL,
        num_hidden_layers=1,
        tie_word_embeddings=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": Qwen2Config(**{k: v for k, v in SMALL.items() if k != "head_dim"}, num_hidden_layers=2),  # biases
    "qwen3": Qwen3Config(**SMALL, num_hidden_layers=2, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(**SMALL, num_hidden_layers=6, pad_token_id=0),  # scaled embeddings, two rotary tables
    "gemma4": Gemma4TextConfig(  # saved buffers, embeddings a layer
        **SMALL,
        vocab_size_per_layer_input=96,
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        global_head_dim=32,
        sliding_window=8,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        pad_token_id=0,
    ),
}
IDS = torch.tensor([[1, 5, 9, 33, 70, 2, 2, 8, 95, 4, 17]])


def _write(config, directory, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, tensor in model.state_dict().items():
        if "norm" in name or "layer_scalar" in name or name.endswith("bias"):
            tensor.normal_(0.9, 0.1)
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(directory, max_shard_size="40KB")
    return directory


def _stock(directory, dtype):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def _rounded(model, names):
    """The stock model with the weights that NF4 leaves of the named layers."""
    for name in names:
        weight = model.get_submodule(name).weight
        weight.data = dequantize_nf4(quantize_nf4(weight), weight.dtype)
    return model


def _keep_dense(monkeypatch, family, *names):
    monkeypatch.setitem(FAMILIES, family, replace(FAMILIES[family], never_quantized=names))


@pytest.fixture(scope="module", params=CONFIGS)
def family(request, tmp_path_factory):
    return _write(CONFIGS[request.param], tmp_path_factory.mktemp(request.param))


def test_logits_are_those_of_the_stock_model_with_rounded_weights(family):
    model, stock = load_nf4(family, dtype=torch.float32), _stock(family, torch.float32)
    names = quantized_linears(stock)
    assert [n for n, m in model.named_modules() if isinstance(m, QuantizedLinear)] == names
    assert not any("lm_head" in name for name in names) and len(names) >= 7
    with torch.no_grad():
        expected, plain = _rounded(stock, names)(IDS).logits, _stock(family, torch.float32)(IDS).logits
        got = model(IDS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (got - plain).abs().max() > 0.01
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.generation_config.eos_token_id == [2, 7]
    assert not [n for n in quantized_linears(model) if n in names]


def test_what_is_not_quantised_is_the_stock_model_bit_for_bit(family):
    model, stock = load_nf4(family), _stock(family, torch.bfloat16)
    for ours, theirs in ((model.named_parameters(), stock.named_parameters()), (model.named_buffers(), stock.named_buffers())):
        ours, theirs = dict(ours), dict(theirs)
        for name, tensor in theirs.items():
            if name.removesuffix(".weight") not in quantized_linears(stock):
                assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert type(head) is nn.Linear
    assert (head.weight is embedding.weight) == model.config.tie_word_embeddings


def test_gradients_flow_through_to_the_input(family):
    model = load_nf4(family, dtype=torch.float32)
    stock = _rounded(_stock(family, torch.float32), quantized_linears(_stock(family, torch.float32)))
    grads = []
    for each in (model, stock):
        norm = next(m for n, m in each.named_modules() if n.endswith("layers.0.input_layernorm"))
        each.requires_grad_(False)
        norm.weight.requires_grad_()
        each(IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append(norm.weight.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)
    assert grads[0].abs().sum() > 0


def test_layers_that_a_family_never_quantises_stay_dense(tmp_path, monkeypatch, talk):
    _write(CONFIGS["llama"], tmp_path)
    _keep_dense(monkeypatch, "llama", "mlp.up_proj", "layers.0", "k_pro")
    model = load_nf4(tmp_path, torch.float32)
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["model.layers.1.mlp.up_proj"] is kinds["model.layers.0.self_attn.q_proj"] is nn.Linear
    assert kinds["model.layers.1.mlp.down_proj"] is kinds["model.layers.1.self_attn.k_proj"] is QuantizedLinear
    said = talk()
    assert "NF4: 6 linear layers, 22,528 weights at 4.134 bits" in said
    assert "not quantised: 9 linear layers (model.layers.0.self_attn.q_proj" in said


def _tensors(directory):
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    return {name: tensor for file in set(index["weight_map"].values()) for name, tensor in load_file(directory / file).items()}


def _rewrite(directory, target, tensors):
    target.mkdir()
    (target / "config.json").write_text((directory / "config.json").read_text())
    save_file(tensors, target / "model.safetensors")
    return target


MIXTURES = {
    "one by one": Qwen3MoeConfig(  # rows of an expert end within a block of 64
        **{**SMALL, "hidden_size": 40}, num_hidden_layers=2, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20
    ),
    "stacked": Gemma4TextConfig(
        **SMALL,
        num_hidden_layers=2,
        global_head_dim=16,
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=24,
        pad_token_id=0,
    ),
    "transposed, with biases": GptOssConfig(
        **SMALL,
        num_hidden_layers=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        attn_implementation="eager",
    ),
}


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request, tmp_path_factory):
    return _write(MIXTURES[request.param], tmp_path_factory.mktemp("mixture"))


def test_experts_are_those_of_the_stacked_dense_model_quantised(mixture, talk):
    model, stock = load_nf4(mixture, dtype=torch.float32), _stock(mixture, torch.float32)
    said = talk()
    names = quantized_experts(stock)
    assert len(names) == 2 and [n for n, m in model.named_modules() if isinstance(m, NF4Experts)] == names
    assert "linear layers and the experts of 2 layers" in said and "no place" not in said
    _rounded(stock, quantized_linears(stock))
    with torch.no_grad():
        for name in names:
            for stack in ("gate_up_proj", "down_proj"):
                weight = stock.get_submodule(name).get_parameter(stack)
                weight.copy_(dequantize_nf4(quantize_nf4(weight), weight.dtype))
        torch.testing.assert_close(model(IDS).logits, stock(IDS).logits, rtol=1e-4, atol=1e-4)


def test_an_expert_that_is_not_in_the_checkpoint_is_no_smaller_mixture(tmp_path):
    directory = _write(MIXTURES["one by one"], tmp_path / "whole")
    lost = "model.layers.1.mlp.experts.5.up_proj.weight"
    for number, names in enumerate([(lost,), (lost, lost.replace("up_", "gate_"))]):
        left = {name: tensor for name, tensor in _tensors(directory).items() if name not in names}
        with pytest.raises(ModelError, match=rf"{12 - len(names)} tensors of .*experts.gate_up_proj, which has 6 experts"):
            load_nf4(_rewrite(directory, tmp_path / str(number), left))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """Rows of 64 and 128: bitsandbytes' AVX-512 path takes wrong absmax for rows of 16, 32 or 48 above a multiple of 64."""
    config = Qwen3Config(**{**SMALL, "intermediate_size": 128}, num_hidden_layers=2, tie_word_embeddings=True)
    return _write(config, tmp_path_factory.mktemp("tied"))


def test_a_damaged_checkpoint_is_refused_and_named(tied, tmp_path):
    whole = _tensors(tied)
    name = "model.layers.1.mlp.up_proj.weight"
    cases = {
        "1 tensors of the model are not in the checkpoint: model.layers.1": {k: v for k, v in whole.items() if k != name},
        f"{name}: shape": {**whole, name: whole[name].T.contiguous()},
        "model.norm.weight: shape": {**whole, "model.norm.weight": torch.ones(3)},
        f"{name}: a weight holds NaN": {**whole, name: whole[name] * torch.nan},
        f"{name}: torch.int8": {**whole, name: whole[name].to(torch.int8)},
    }
    for number, (message, tensors) in enumerate(cases.items()):
        with pytest.raises(ModelError, match=message):
            load_nf4(_rewrite(tied, tmp_path / str(number), tensors))


def test_a_head_of_its_own_is_read_whatever_the_configuration_says(tied, tmp_path):
    whole = _tensors(tied)
    other = whole["model.embed_tokens.weight"] + 1
    model = load_nf4(_rewrite(tied, tmp_path / "x", {**whole, "lm_head.weight": other}))
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight.float(), other.to(model.lm_head.weight.dtype).float())


def test_an_equal_copy_of_a_tied_head_and_extra_tensors_are_no_error(tied, tmp_path, talk):
    whole = _tensors(tied)
    same = {**whole, "lm_head.weight": whole["model.embed_tokens.weight"].clone(), "model.extra": torch.ones(1)}
    model = load_nf4(_rewrite(tied, tmp_path / "x", same))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "1 tensors of the checkpoint have no place in the model (model.extra)" in talk()
    only_head = {k: v for k, v in same.items() if k != "model.embed_tokens.weight"}
    model = load_nf4(_rewrite(tied, tmp_path / "y", only_head), dtype=torch.float32)
    assert torch.equal(model.get_input_embeddings().weight, whole["model.embed_tokens.weight"])


def test_no_checkpoint_a_torn_file_and_an_unknown_quantisation(tied, tmp_path):
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_nf4(tmp_path)
    torn = _rewrite(tied, tmp_path / "torn", _tensors(tied))
    data = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        load_nf4(torn)
    other = _rewrite(tied, tmp_path / "gptq", _tensors(tied))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(ModelError, match="says GPTQ"):
        load_nf4(other)


@pytest.fixture(scope="module")
def theirs(tied, tmp_path_factory):
    """What transformers and bitsandbytes make of the same checkpoint, and what they save."""
    facts = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head", "o_proj"], **facts)
    directory = tmp_path_factory.mktemp("theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(tied, quantization_config=config, dtype=torch.float32, device_map="cpu")
        model.save_pretrained(directory)
    return model, directory


def test_a_checkpoint_of_bitsandbytes_gives_its_logits(theirs, tied, monkeypatch, talk):
    stock, directory = theirs
    model = load_nf4(directory, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = stock.train()(IDS).logits  # in eval mode its CPU path computes in bf16
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert type(model.model.layers[0].self_attn.o_proj) is nn.Linear
    said = talk()
    assert "NF4: 12 linear layers" in said and "o_proj" in said and "no place" not in said
    _keep_dense(monkeypatch, "qwen3", "o_proj")
    ours = load_nf4(tied, torch.float32)
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, model(IDS).logits)
    assert "quantization_config" not in model.config.to_dict()


def test_what_we_save_bitsandbytes_loads(theirs, tied, tmp_path, monkeypatch):
    stock, directory = theirs
    _keep_dense(monkeypatch, "qwen3", "o_proj")
    state = load_nf4(tied, torch.float32).state_dict()
    saved = {name: tensor.contiguous() for name, tensor in state.items() if name != "lm_head.weight"}
    target = _rewrite(directory, tmp_path / "ours", saved)
    file = target / "model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = AutoModelForCausalLM.from_pretrained(target, device_map="cpu", dtype=torch.float32)
        torch.testing.assert_close(loaded.train()(IDS).logits, stock.train()(IDS).logits)


MEASURE = """
import gc, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tunesmith.models.nf4_load import load_nf4
from tunesmith.layers.quantized import QuantizedLinear
def status(key):
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
load_nf4(Path(sys.argv[1]))
gc.collect()
before = status("VmRSS")
assert status("VmHWM") - before < 30e6
model = load_nf4(Path(sys.argv[2]))
peak = status("VmHWM") - before
size = sum(m.weight.nbytes for m in model.modules() if isinstance(m, QuantizedLinear))
size += sum(p.nbytes for p in model.parameters())
print(peak, size)
"""


def _peak(tmp_path, config):
    """Bytes at the peak, bytes of the quantised model, bytes of the largest tensor in bf16."""
    small = _write(CONFIGS["llama"], tmp_path / "small")
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    large = tmp_path / "large"
    large.mkdir()
    config.save_pretrained(large)
    tensors = {n: torch.empty(t.shape, dtype=torch.bfloat16).uniform_(-0.1, 0.1) for n, t in shapes.items()}
    save_file(tensors, large / "model.safetensors")
    largest = max(tensor.nbytes for tensor in tensors.values())
    del tensors
    done = subprocess.run([sys.executable, "-c", MEASURE, str(small), str(large)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, size = map(int, done.stdout.split())
    return peak, size, largest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("hidden", "layers"), [(768, 6), (2048, 19)], ids=["60M", "1B"])
def test_peak_memory_is_the_quantised_model_and_one_tensor(hidden, layers, tmp_path):
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        vocab_size=8192,
        dtype=torch.bfloat16,
        tie_word_embeddings=False,
    )
    peak, size, largest = _peak(tmp_path, config)
    assert size < peak + 8e6
    assert peak <= 1.1 * (size + largest), f"peak {peak / 1e6:.1f} MB, model {size / 1e6:.1f}, tensor {largest / 1e6:.1f}"
