"""Oracle of the text-only loads: the stock multimodal model, which reads the same checkpoint with its towers."""

import json
import os
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    Gemma3Config,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4UnifiedConfig,
    LlavaConfig,
    Mistral3Config,
    MistralConfig,
)

from tunesmith.checkpoints.names import naming
from tunesmith.errors import ModelError
from tunesmith.kernels.nf4 import dequantize_nf4, quantize_nf4
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.models.nf4_load import quantized_experts, quantized_linears

S, F = "sliding_attention", "full_attention"
TEXT = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.1, "sliding_window": 8, "pad_token_id": 0}
TEXT |= {"bos_token_id": 2, "eos_token_id": 1, "max_position_embeddings": 128}
GEMMA4 = {**TEXT, "layer_types": [S, F] * 2, "global_head_dim": 32, "hidden_size_per_layer_input": 0}
E2B = {**GEMMA4, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 96, "num_kv_shared_layers": 2}
E2B |= {"use_double_wide_mlp": True}
MIXTURE = {**GEMMA4, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
EYE = {**TOWER, "num_key_value_heads": 2, "head_dim": 16}
SIGLIP = {**TOWER, "image_size": 28, "patch_size": 14}
PIXTRAL = {**TOWER, "image_size": 28, "patch_size": 14, "head_dim": 16, "model_type": "pixtral"}
MULTIMODAL = {
    "gemma4-e2b": Gemma4Config(text_config=E2B, vision_config=EYE, audio_config={**TOWER, "output_proj_dims": 32}),
    "gemma4-moe": Gemma4Config(text_config=MIXTURE, vision_config=EYE, audio_config=None),
    "gemma4-unified": Gemma4UnifiedConfig(
        text_config={k: v for k, v in GEMMA4.items() if k != "hidden_size_per_layer_input"},
        vision_config={"patch_size": 2, "mm_embed_dim": 32, "mm_posemb_size": 8, "output_proj_dims": 32},
        audio_config={"audio_embed_dim": 32},
    ),
    "gemma3": Gemma3Config(text_config=TEXT, vision_config=SIGLIP, mm_tokens_per_image=4),  # names before 4.52 on the disk
    "mistral3": Mistral3Config(  # untied, and the outer configuration decides
        text_config=MistralConfig(**{k: v for k, v in TEXT.items() if k != "sliding_window"}),
        vision_config=PIXTRAL,
        tie_word_embeddings=False,
    ),
}
IDS = torch.tensor([[2, 5, 9, 33, 70, 3, 3, 8, 95, 4, 17, 60]])


def test_a_model_is_loaded_frozen(tiny_dir):
    model = load_model(tiny_dir, "bf16")
    assert model.dtype == torch.bfloat16 and not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_the_workspace_that_train_deterministic_needs_is_there_before_the_first_product(tiny_dir, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    load_model(tiny_dir, "fp32")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    load_model(tiny_dir, "fp32")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_weights_that_are_not_in_the_checkpoint_are_never_made_up(tiny_dir, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_dir, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are not in the checkpoint: model.layers.1.mlp.up_proj.weight"):
        load_model(broken, "fp32")


def test_a_directory_without_a_tokenizer(tmp_path):
    with pytest.raises(ModelError, match="no tokenizer there"):
        load_tokenizer(tmp_path)


def _files(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def _save(tensors, directory):
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module", params=MULTIMODAL)
def multimodal(request, tmp_path_factory):
    """Directory of a checkpoint with towers, and the logits of the stock multimodal model for text."""
    directory = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(MULTIMODAL[request.param]).eval()
    for name, tensor in model.state_dict().items():
        if "norm" in name or "layer_scalar" in name or "per_expert_scale" in name:
            tensor.normal_(0.9, 0.1)
    model.save_pretrained(directory)
    with torch.no_grad():
        return directory, model(input_ids=IDS).logits


def test_the_text_model_of_a_multimodal_checkpoint_is_the_stock_one(multimodal, talk):
    directory, expected = multimodal
    model = load_model(directory, "fp32")
    said = talk()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    towers = sum("language_model" not in name and name != "lm_head.weight" for name in _files(directory))
    assert towers > 0 and f"{towers} tensors of the checkpoint's towers are not loaded" in said and "no place" not in said
    assert not any("tower" in name or "vision" in name or "projector" in name for name, _ in model.named_modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_names_go_both_ways(multimodal):
    names = naming(multimodal[0])
    for stored in _files(multimodal[0]):
        model = names.of_model(stored)
        assert model is None or ((model != stored or model == "lm_head.weight") and names.of_checkpoint(model) == stored)


def test_in_nf4_it_is_the_text_model_with_rounded_weights(multimodal, talk):
    directory, exact = multimodal
    model, rounded = load_model(directory, "fp32", "nf4"), load_model(directory, "fp32")
    assert talk().count("towers are not loaded") == 2
    names = [f"{name}.weight" for name in quantized_linears(rounded)]
    names += [f"{name}.{stack}" for name in quantized_experts(rounded) for stack in ("gate_up_proj", "down_proj")]
    assert len(names) >= 20 and not any("router" in name or "per_layer" in name for name in names)
    with torch.no_grad():
        for name in names:
            rounded.get_parameter(name).copy_(dequantize_nf4(quantize_nf4(rounded.get_parameter(name)), torch.float32))
        got = model(IDS).logits
        torch.testing.assert_close(got, rounded(IDS).logits, rtol=1e-4, atol=1e-4)
    assert (got - exact).abs().max() > 0.01


@pytest.mark.parametrize("base", [None, "nf4"])
def test_a_missing_tensor_of_a_text_model_is_named_and_a_foreign_one_told(multimodal, tmp_path, base, talk):
    directory, _ = multimodal
    copy = shutil.copytree(directory, tmp_path / "copy")
    tensors = _files(copy)
    lost = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    _save({**tensors, "foreign.weight": torch.ones(2)}, copy)
    load_model(copy, "fp32", base)
    assert "1 tensors of the checkpoint have no place in the model (foreign.weight)" in talk()
    _save({name: tensor for name, tensor in tensors.items() if name != lost}, copy)
    with pytest.raises(ModelError, match=r"not in the checkpoint: model\.layers\.1\.mlp\.up_proj\.weight\n"):
        load_model(copy, "fp32", base)


@pytest.fixture
def e2b(tmp_path):
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(MULTIMODAL["gemma4-e2b"]).save_pretrained(tmp_path / "e2b")
    return tmp_path / "e2b"


@pytest.mark.parametrize("base", [None, "nf4"])
def test_keys_of_layers_that_share_them_and_the_older_spelling_of_the_head_size(e2b, base, talk):
    """Original checkpoints hold k_proj of every layer, and name the head size of full layers once."""
    with torch.no_grad():
        expected = load_model(e2b, "fp32", base)(IDS).logits
    talk()
    place = "model.language_model.layers.{}.self_attn.{}.weight"
    vain = {place.format(layer, name): torch.ones(16, 64) for layer in (2, 3) for name in ("k_proj", "v_proj")}
    _save({**_files(e2b), **vain, place.format(3, "k_norm"): torch.ones(32)}, e2b)
    config = json.loads((e2b / "config.json").read_text())
    assert config["text_config"].pop("per_layer_config")["3"] == {"head_dim": 32}
    config["text_config"]["global_head_dim"] = 32
    (e2b / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        assert torch.equal(load_model(e2b, "fp32", base)(IDS).logits, expected)
    assert "no place" not in talk()


@pytest.mark.parametrize("base", [None, "nf4"])
def test_a_text_model_that_was_saved_under_multimodal_names(e2b, base, tmp_path):
    """What transformers writes for the text model that it loaded out of such a checkpoint; naively read, it is random."""
    stock = Gemma4ForCausalLM.from_pretrained(e2b, key_mapping={r"^model\.language_model\.": "model."})
    stock.save_pretrained(tmp_path / "text")
    assert "model.language_model.norm.weight" in _files(tmp_path / "text")
    with torch.no_grad():
        got = load_model(tmp_path / "text", "fp32", base)(IDS).logits
        assert torch.equal(got, load_model(e2b, "fp32", base)(IDS).logits)
        if base is None:
            assert torch.equal(got, stock(IDS).logits)


@pytest.mark.parametrize("base", [None, "nf4"])
def test_a_multimodal_model_that_is_not_known_is_refused(tmp_path, base):
    LlavaConfig().save_pretrained(tmp_path)
    _save({"x": torch.ones(1)}, tmp_path)
    with pytest.raises(ModelError, match=r"multimodal model of type llava, whose text model is not known[^$]*known: gemma3"):
        load_model(tmp_path, "fp32", base)


def test_a_multimodal_checkpoint_of_bitsandbytes(tmp_path):
    """Its towers are in 4 bits too; rows of 64 and 128, which its CPU code quantises right."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    config = Gemma3Config(text_config={**TEXT, "intermediate_size": 128}, vision_config=SIGLIP, mm_tokens_per_image=4)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "dense")
    facts = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = AutoModelForImageTextToText.from_pretrained(
            tmp_path / "dense",
            quantization_config=BitsAndBytesConfig(load_in_4bit=True, **facts),
            dtype=torch.float32,
            device_map="cpu",
        )
        stock.save_pretrained(tmp_path / "nf4")
        expected = stock.train()(input_ids=IDS).logits  # in eval mode its CPU path computes in bf16
    torch.testing.assert_close(load_model(tmp_path / "nf4", "fp32", "nf4")(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("gptq", "config.json says GPTQ .*, but no weight lies there"),
        ("awq", "config.json says AWQ .*, but no weight lies there"),
        ("compressed-tensors", "quantised by compressed-tensors .*, which is not read"),
        ("bitsandbytes", "quantised by bitsandbytes .*, which is not read"),
    ],
)
def test_a_quantised_checkpoint_is_never_loaded_as_a_dense_one(tiny_dir, tmp_path, method, words):
    copy = shutil.copytree(tiny_dir, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method, "bits": 4}}))
    with pytest.raises(ModelError, match=words):
        load_model(copy, "bf16")
