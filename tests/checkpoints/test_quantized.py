"""Quantised checkpoints: names, shapes and numbers are those of the dense model that they amount to."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, LlamaConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tiny_families import SMALL, TINY, random_model
from tiny_quantised import FORMATS, quantise
from tunesmith.checkpoints.facts import base_facts
from tunesmith.checkpoints.hf import Checkpoint
from tunesmith.checkpoints.quantized.layout import layout_of
from tunesmith.checkpoints.quantized.schemes import scheme_of
from tunesmith.errors import ModelError
from tunesmith.export.base import write_dense
from tunesmith.export.merge import merge
from tunesmith.layers.quantized import QuantizedLinear
from tunesmith.models.adapter import save_adapter
from tunesmith.models.load import load_model
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora

LINEAR = [name for name in FORMATS if name != "mxfp4"]
MIXTURE = {**SMALL, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A tiny model, whose sizes are no multiple of the uneven blocks, and one with experts."""
    folder = tmp_path_factory.mktemp("dense")
    random_model(LlamaConfig(**SMALL)).half().save_pretrained(folder / "linear")
    whole = {**SMALL, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32}  # bitsandbytes' CPU code errs on other rows
    random_model(LlamaConfig(**whole)).save_pretrained(folder / "blocks")
    random_model(GptOssConfig(**MIXTURE)).bfloat16().save_pretrained(folder / "experts")
    random_model(TINY["qwen3_moe"].config).bfloat16().save_pretrained(folder / "apart")
    return folder


def _quantised(dense, tmp_path, name):
    return quantise(dense / ("experts" if name == "mxfp4" else "linear"), tmp_path / name, name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_is_what_its_format_defines_to_the_bit(dense, tmp_path, name):
    weights = _quantised(dense, tmp_path, name)
    checkpoint = Checkpoint(tmp_path / name)
    assert checkpoint.files.keys() == weights.keys()
    for key, expected in weights.items():
        found = checkpoint.read(key)
        assert found.dtype == expected.dtype and torch.equal(found, expected), key
        assert checkpoint.layout.tensors[key].shape == tuple(expected.shape)
    facts = base_facts(tmp_path / name)
    assert facts.weights == sum(weight.numel() for weight in weights.values()) and not isinstance(facts.scheme, str)


def test_mxfp4_and_fp8_are_what_transformers_dequantises(dense, tmp_path):
    _quantised(dense, tmp_path, "mxfp4")
    stored, checkpoint = load_file(tmp_path / "mxfp4" / "model.safetensors"), Checkpoint(tmp_path / "mxfp4")
    for name in checkpoint.layout.packed:
        theirs = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"])
        assert torch.equal(checkpoint.read(name), theirs)
    for form in ("fp8", "fp8-powers", "fp8-tensor"):
        _quantised(dense, tmp_path, form)
        stored, checkpoint = load_file(tmp_path / form / "model.safetensors"), Checkpoint(tmp_path / form)
        for name in checkpoint.layout.packed:
            scales = stored[f"{name}_scale_inv"]
            theirs = Fp8Dequantize(None)._dequantize_one(stored[name], scales.reshape(1, 1) if scales.ndim < 2 else scales)
            assert torch.equal(checkpoint.read(name), theirs.bfloat16())


OF_LIBRARY = [name for name in FORMATS if name.startswith(("int", "float8")) and name != "int4-order"]  # gone since 0.20


@pytest.mark.parametrize("name", OF_LIBRARY)
def test_compressed_tensors_agrees(dense, tmp_path, name):
    library = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    settings = FORMATS[name][2]
    _quantised(dense, tmp_path, name)
    stored, checkpoint = load_file(tmp_path / name / "model.safetensors"), Checkpoint(tmp_path / name)
    scheme = QuantizationScheme(**settings["config_groups"]["group_0"])
    compressor = BaseCompressor.get_value_from_registry(settings["format"])
    for weight in checkpoint.layout.packed:
        stem = weight.removesuffix("weight")
        state = {key.removeprefix(stem): tensor for key, tensor in stored.items() if key.startswith(stem)}
        theirs = compressor.decompress(state, scheme)["weight"]
        assert torch.equal(checkpoint.read(weight), theirs.bfloat16()), library.__version__


@pytest.mark.parametrize(("kind", "nested"), [("nf4", True), ("nf4", False), ("fp4", False), ("fp4", True), ("int8", False)])
def test_bitsandbytes_agrees(dense, tmp_path, kind, nested):
    functional = pytest.importorskip("bitsandbytes.functional")
    base = shutil.copytree(dense / "blocks", tmp_path / "base")
    written, theirs = {}, {}
    for name, tensor in load_file(base / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            written[name] = tensor
        elif kind == "int8":
            codes, sizes, _ = functional.int8_vectorwise_quant(tensor.half())
            written |= {name: codes, name.replace("weight", "SCB"): sizes}
            theirs[name] = functional.int8_vectorwise_dequant(codes, sizes).half()
        else:
            packed, state = functional.quantize_4bit(tensor, quant_type=kind, compress_statistics=nested, blocksize=64)
            written |= {name: packed, **{f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}}
            theirs[name] = functional.dequantize_4bit(packed, state)
    save_file(written, base / "model.safetensors", metadata={"format": "pt"})
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested}
    _configure(base, {"quant_method": "bitsandbytes", **({"load_in_8bit": True} if kind == "int8" else four)})
    checkpoint = Checkpoint(base)
    for name, expected in theirs.items():
        torch.testing.assert_close(checkpoint.read(name), expected, rtol=1e-6, atol=1e-7)
    assert load_model(base, "fp32").model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert isinstance(load_model(base, "fp32", "nf4").model.layers[0].mlp.up_proj, QuantizedLinear)


def _configure(directory, settings):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": settings}))


@pytest.mark.parametrize(("name", "of"), [("gptq-order", "linear"), ("fp8", "apart"), ("mxfp4", "experts")])
@pytest.mark.parametrize("base", [None, "nf4"])
def test_both_loaders_build_the_dense_model(dense, tmp_path, name, of, base, caplog):
    """Experts that lie one by one in the file among them."""
    weights = quantise(dense / of, tmp_path / name, name)
    plain = shutil.copytree(dense / of, tmp_path / "plain")
    save_file({key: weight.contiguous() for key, weight in weights.items()}, plain / "model.safetensors", {"format": "pt"})
    with caplog.at_level("INFO"):
        ours = load_model(tmp_path / name, "fp32", base)
    assert f"the base comes in {layout_of(tmp_path / name).words}" in caplog.text
    expected = load_model(plain, "fp32", base)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_a_merge_is_onto_the_dense_weights_and_says_nothing_of_quantisation(dense, tmp_path):
    weights = _quantised(dense, tmp_path, "awq")
    base = tmp_path / "awq"
    (base / "quant_config.json").write_text("{}")
    model = load_model(base, "fp32")
    lora = Lora(r=2, alpha=4, target_modules=("q_proj",))
    layers = add_lora(model, lora, 0)
    for layer in layers.values():
        layer.lora_B.data.fill_(0.1)
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", layers, lora, "base")
    for into in ("trained", "original"):
        merge(base, tmp_path / "adapter", tmp_path / into, into=into)
        merged = load_file(tmp_path / into / "model.safetensors")
        assert merged.keys() == weights.keys()
        assert all(torch.equal(merged[name], weights[name]) == ("q_proj" not in name) for name in weights)
        assert "quantization_config" not in json.loads((tmp_path / into / "config.json").read_text())
        assert not (tmp_path / into / "quant_config.json").exists()
    (tmp_path / "dense").mkdir()
    write_dense(base, tmp_path / "dense")  # for llama.cpp's converter
    written = load_file(tmp_path / "dense" / "model.safetensors")
    assert written.keys() == weights.keys() and all(torch.equal(written[name], weights[name]) for name in weights)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "trained", dtype=torch.float32)(input_ids=ids).logits
        torch.testing.assert_close(theirs, model(input_ids=ids).logits, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "gptq", "bits": 3}, r"gptq \(checkpoint_format gptq, 3 bits\)"),
        ({"quant_method": "awq", "version": "gemv"}, "awq .version gemv"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "no kinds of weights"),
        (
            {
                "format": "nvfp4-pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group"}}},
            },
            "nvfp4-pack-quantized",
        ),
        ({"bits": 4}, "a method without a name"),
    ],
)
def test_a_scheme_that_is_not_read_is_named(dense, tmp_path, settings, words):
    base = shutil.copytree(dense / "linear", tmp_path / "base")
    _configure(base, settings)
    with pytest.raises(ModelError, match=f"quantised by .*{words}.* not read") as caught:
        load_model(base, "fp32")
    assert "16-bit original" in caught.value.hint and isinstance(base_facts(base).scheme, str)


def test_nothing_said_is_nothing_quantised():
    assert scheme_of({}) is None


@pytest.mark.parametrize(
    ("form", "change", "words"),
    [
        ("gptq", lambda tensors, stem: tensors.pop(f"{stem}.scales"), "no .*q_proj.scales beside it"),
        (
            "gptq",
            lambda tensors, stem: tensors.update({f"{stem}.scales": torch.ones(3, 3).half()}),
            r"shape \(3, 3\), expected",
        ),
        ("gptq", lambda tensors, stem: tensors[f"{stem}.g_idx"].fill_(99), "names groups beyond the 2"),
        ("int4", lambda tensors, stem: tensors[f"{stem}.weight_shape"].fill_(7), r"says \[7, 7\], expected"),
        ("fp8", lambda tensors, stem: tensors.update({f"{stem}.weight_scale_inv": torch.ones(3, 3)}), "for 32 x 32"),
        ("fp8", lambda tensors, stem: tensors.pop(f"{stem}.weight_scale_inv"), "has 8 bits and no scale"),
    ],
)
def test_a_damaged_checkpoint_says_which_part(dense, tmp_path, form, change, words):
    _quantised(dense, tmp_path, form)
    file = tmp_path / form / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors, "model.layers.0.self_attn.q_proj")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=words) as caught:
        load_model(tmp_path / form, "fp32")
    assert caught.value.hint
