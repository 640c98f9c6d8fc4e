import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    GptOssConfig,
    LlamaConfig,
    Qwen3MoeConfig,
)

from tunesmith.checkpoints import shards
from tunesmith.errors import ExportError, ModelError
from tunesmith.export import base as export_base
from tunesmith.export import merge as export_merge
from tunesmith.export.base import quantized_in_training
from tunesmith.export.merge import merge
from tunesmith.layers.quantized import QuantizedLinear
from tunesmith.models.adapter import WEIGHTS, save_adapter
from tunesmith.models.load import load_model
from tunesmith.models.placement import Placement
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora

S, F = "sliding_attention", "full_attention"
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300, "initializer_range": 0.15}
SMALL |= {"max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GEMMA4 = {**SMALL, "num_hidden_layers": 4, "layer_types": [S, F] * 2, "global_head_dim": 16, "sliding_window": 8}
GEMMA4 |= {"num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300}
MIXTURE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IDS = torch.tensor([[5, 9, 200, 31, 7, 8, 90, 33, 4, 6, 250, 17]])


@pytest.fixture(params=[{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def adapter(tiny_model, tmp_path, request):
    lora = Lora(r=4, alpha=12, **request.param)
    layers = add_lora(tiny_model, lora, seed=0)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.05)
        if lora.use_dora:
            layer.lora_magnitude_vector.data.mul_(1.3)
    directory = tmp_path / "adapter"
    directory.mkdir()
    save_adapter(directory, layers, lora, "base")
    return directory


def checkpoint(directory, config, kind=None, dtype=torch.float32):
    """A random checkpoint."""
    torch.manual_seed(0)
    model = kind(config) if kind else AutoModelForCausalLM.from_config(config)
    model.to(dtype).save_pretrained(directory)
    return directory


def trained(base, directory, form=None, targets="all-linear", **options):
    """A model with a random adapter, which is also saved to ``directory``."""
    lora = Lora(r=4, alpha=12, target_modules=targets)
    model = load_model(base, "fp32", form, **options)
    layers = add_lora(model, lora, seed=0)
    torch.manual_seed(1)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.05)
    directory.mkdir()
    save_adapter(directory, layers, lora, "base")
    return model, layers


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits.float()


def stock(directory, kind=AutoModelForCausalLM):
    """Stock from_pretrained, which must find every tensor and know every one that it finds."""
    model, info = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model


def test_merged_model_equals_base_plus_adapter_in_stock_transformers(tiny_model, tiny_dir, adapter, tmp_path):
    facts = merge(tiny_dir, adapter, tmp_path / "merged")
    ids = torch.randint(5, 8000, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(stock(tmp_path / "merged")(ids).logits, tiny_model(ids).logits, rtol=1e-4, atol=1e-4)
    assert {"tokenizer.json", "chat_template.jinja", "config.json"} <= {f.name for f in (tmp_path / "merged").iterdir()}
    assert (facts.dtype, facts.targets, facts.dequantized) == ("float32", 14, 0)
    assert facts.nbytes == sum(t.nbytes for t in load_file(tmp_path / "merged" / "model.safetensors").values())


def test_an_adapter_that_does_nothing_or_fits_nothing_is_refused_and_leaves_nothing(tiny_dir, adapter, tmp_path):
    state = load_file(adapter / WEIGHTS)
    key = next(k for k in state if "lora_B" in k)
    good = state[key].clone()
    length = key.replace("lora_B.weight", "lora_magnitude_vector")
    if length in state:  # a DoRA layer does nothing when its rows also keep the base's length
        state[length] = state[length] / 1.3
    for name, tensor, words in [(key, torch.zeros_like(good), "changes nothing"), (key, good[:-1], "the adapter is for")]:
        save_file({**state, name: tensor.contiguous()}, adapter / WEIGHTS)
        with pytest.raises(ExportError, match=words):
            merge(tiny_dir, adapter, tmp_path / "merged")
    renamed = {k.replace("q_proj", "z_proj"): v for k, v in state.items()}
    save_file(renamed, adapter / WEIGHTS)
    with pytest.raises(ExportError, match="is not in the base"):
        merge(tiny_dir, adapter, tmp_path / "merged")
    assert [f.name for f in tmp_path.iterdir()] == ["adapter"]


def test_an_adapter_of_nf4_is_merged_into_the_weights_that_it_was_trained_on(tmp_path):
    base = checkpoint(tmp_path / "base", LlamaConfig(**SMALL), dtype=torch.bfloat16)
    model, layers = trained(base, tmp_path / "adapter", "nf4", targets=("q_proj", "up_proj"))
    quantized = quantized_in_training(base, weights=True, table=False)
    facts = merge(base, tmp_path / "adapter", tmp_path / "merged", quantized)
    assert (facts.dtype, facts.targets, facts.dequantized) == ("bfloat16", 4, 14)
    written = load_file(tmp_path / "merged" / "model.safetensors")
    for name, layer in layers.items():
        expected = (layer.base_OI(torch.float32) + layer.delta_OI()).to(torch.bfloat16)
        torch.testing.assert_close(written[f"{name}.weight"], expected, rtol=2**-7, atol=1e-5)
    plain = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(plain) == 10
    for name, module in plain.items():
        assert torch.equal(written[f"{name}.weight"], module.weight.dense(torch.bfloat16)), name
    merge(base, tmp_path / "adapter", tmp_path / "other", quantized, into="original")
    goal = logits(model)
    own, original = ((logits(stock(tmp_path / name)) - goal).norm() / goal.norm() for name in ("merged", "other"))
    assert own < 0.01 and original > 10 * own, (own, original)


def test_a_4bit_checkpoint_is_dequantised_and_has_no_original(tmp_path):
    dense = checkpoint(tmp_path / "dense", LlamaConfig(**SMALL), dtype=torch.bfloat16)
    base = tmp_path / "base"
    shutil.copytree(dense, base)
    save_file(load_model(dense, "bf16", "nf4").state_dict(), base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    facts = {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": facts}))
    model, _ = trained(base, tmp_path / "adapter", "nf4")
    with pytest.raises(ExportError, match="14 weights lie in 4 bits") as caught:
        merge(base, tmp_path / "adapter", tmp_path / "merged", into="original")
    assert "export.merge_into: trained" in caught.value.hint
    assert merge(base, tmp_path / "adapter", tmp_path / "merged").dtype == "bfloat16"
    merge(dense, tmp_path / "adapter", tmp_path / "same", quantized_in_training(dense, weights=True, table=False))
    torch.testing.assert_close(logits(stock(tmp_path / "merged")), logits(model), rtol=0.05, atol=0.05)
    ours, same = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "same"))
    assert ours.keys() == same.keys() and all(torch.equal(ours[name], same[name]) for name in ours)


WRAPPED = {
    "gemma3": (
        Gemma3ForConditionalGeneration,
        Gemma3Config(
            text_config={**SMALL, "query_pre_attn_scalar": 16, "layer_types": [S, F], "sliding_window": 8},
            vision_config={**VISION, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            initializer_range=0.15,
        ),
    ),
    "gemma4": (
        Gemma4ForConditionalGeneration,
        Gemma4Config(
            text_config=GEMMA4,
            vision_config={**VISION, "num_key_value_heads": 2, "head_dim": 8},
            audio_config=None,
            initializer_range=0.15,
        ),
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_towers_are_dropped_or_kept_and_the_text_model_is_the_same(name, tmp_path):
    kind, config = WRAPPED[name]
    base = checkpoint(tmp_path / "base", config, kind)
    (base / "preprocessor_config.json").write_text("{}")
    model, _ = trained(base, tmp_path / "adapter")
    for towers in ("drop", "keep"):
        merge(base, tmp_path / "adapter", tmp_path / towers, towers=towers)
    text = stock(tmp_path / "drop")
    assert type(text) is type(model) and not (tmp_path / "drop" / "preprocessor_config.json").exists()
    torch.testing.assert_close(logits(text), logits(model), rtol=1e-4, atol=1e-4)
    whole = stock(tmp_path / "keep", AutoModelForImageTextToText)
    assert isinstance(whole, kind) and (tmp_path / "keep" / "preprocessor_config.json").exists()
    torch.testing.assert_close(logits(whole), logits(model), rtol=1e-4, atol=1e-4)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "keep" / "model.safetensors")
    towers = [key for key in before if "vision" in key or "multi_modal" in key]
    assert before.keys() == after.keys() and towers and all(torch.equal(before[key], after[key]) for key in towers)
    assert json.loads((base / "config.json").read_text()) == json.loads((tmp_path / "keep" / "config.json").read_text())


MIXTURES = {
    "one by one": Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "stacked": Gemma4TextConfig(**{**GEMMA4, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}, **MIXTURE),
    "transposed": GptOssConfig(
        **{**SMALL, "intermediate_size": 32}, num_local_experts=4, num_experts_per_tok=2, layer_types=[S, F], sliding_window=8
    ),
}


@pytest.mark.parametrize("form", [None, "nf4"])
@pytest.mark.parametrize("name", MIXTURES)
def test_adapters_of_experts_are_merged_in_the_form_of_the_checkpoint(name, form, tmp_path):
    base = checkpoint(tmp_path / "base", MIXTURES[name])
    model, layers = trained(base, tmp_path / "adapter", form)
    quantized = quantized_in_training(base, weights=form == "nf4", table=False)
    facts = merge(base, tmp_path / "adapter", tmp_path / "merged", quantized)
    assert facts.targets == len(layers) and (facts.dequantized > 0) == (form == "nf4")
    torch.testing.assert_close(logits(stock(tmp_path / "merged")), logits(model), rtol=1e-3, atol=1e-3)
    before, after = (load_file(directory / "model.safetensors") for directory in (base, tmp_path / "merged"))
    assert len(before) == len(after) and any("experts.3.up_proj" in key for key in after) == (name == "one by one")


def test_an_expert_without_tokens_may_stay_but_not_a_whole_stack(tmp_path):
    base = checkpoint(tmp_path / "base", MIXTURES["one by one"])
    _, layers = trained(base, tmp_path / "adapter")
    stack = layers["model.layers.0.mlp.experts.down_proj"]
    for experts, fails in ((3, False), (4, True)):
        stack.lora_B.data[:experts] = 0.0
        save_adapter(tmp_path / "adapter", layers, Lora(r=4, alpha=12), "base")
        if fails:
            with pytest.raises(ExportError, match=r"layers.0.mlp.experts.down_proj: merging changes nothing"):
                merge(base, tmp_path / "adapter", tmp_path / "merged")
        else:
            merge(base, tmp_path / "adapter", tmp_path / "merged")


def test_a_table_that_was_in_nf4_is_merged_as_it_was(tmp_path):
    base = checkpoint(tmp_path / "base", Gemma4TextConfig(**GEMMA4))
    model, _ = trained(base, tmp_path / "adapter", "nf4", placement=Placement(per_layer_embeddings="nf4"))
    merge(base, tmp_path / "adapter", tmp_path / "merged", quantized_in_training(base, weights=True, table=True))
    torch.testing.assert_close(logits(stock(tmp_path / "merged")), logits(model), rtol=1e-3, atol=1e-3)


def test_small_pieces_and_several_files_give_the_same_model(tmp_path, monkeypatch):
    base, adapter = checkpoint(tmp_path / "base", LlamaConfig(**SMALL)), tmp_path / "adapter"
    trained(base, adapter)
    quantized = quantized_in_training(base, weights=True, table=False)
    merge(base, adapter, tmp_path / "one", quantized)
    monkeypatch.setattr(export_base, "PIECE", 200)
    monkeypatch.setattr(export_merge, "write_model", lambda *args: shards.write_model(*args, limit=20_000))
    merge(base, adapter, tmp_path / "many", quantized)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3 and {f.name for f in files} == set(index["weight_map"].values())
    whole = load_file(tmp_path / "one" / "model.safetensors")
    parts = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert whole.keys() == parts.keys() == index["weight_map"].keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-5, atol=1e-6)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    merge(tmp_path / "many", adapter, tmp_path / "again")  # what was written is read
    stock(tmp_path / "many")


def test_what_is_killed_or_finds_no_room_leaves_the_old_directory(tmp_path, monkeypatch):
    base, adapter = checkpoint(tmp_path / "base", LlamaConfig(**SMALL)), tmp_path / "adapter"
    trained(base, adapter)
    target = tmp_path / "merged"
    merge(base, adapter, target)
    before = (target / "model.safetensors").read_bytes()
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ExportError, match=r"the model takes [\d.]+ kB, 1\.0 kB are free"):
        merge(base, adapter, target)
    monkeypatch.undo()
    writes = []

    def killed(self, name):
        writes.append(name)
        if len(writes) > 5:
            raise KeyboardInterrupt
        return original(self, name)

    original = export_merge._Merging.pieces
    monkeypatch.setattr(export_merge._Merging, "pieces", killed)
    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter, target)
    assert (target / "model.safetensors").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter", "base", "merged"]


def test_the_template_that_was_trained_with_is_the_only_one(tiny_dir, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_dir, base)
    facts = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**facts, "chat_template": "{{ 'old' }}"}))
    trained(base, adapter, targets=("q_proj",))
    merge(base, adapter, tmp_path / "merged", template="{{ 'trained with' }}")
    turns = [{"role": "user", "content": "a"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "trained with"
    assert "chat_template" not in json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())


def test_what_the_base_says_wrongly_of_its_head_and_its_tokenizer_is_mended(tiny_dir, tmp_path):
    """A head of its own under ``tie_word_embeddings: true``, and a tokenizer class that transformers 4 does not know."""
    base, merged = tmp_path / "base", tmp_path / "merged"
    shutil.copytree(tiny_dir, base)
    weights = load_file(base / "model.safetensors")
    head = weights["model.embed_tokens.weight"] + 1
    save_file({**weights, "lm_head.weight": head}, base / "model.safetensors", metadata={"format": "pt"})
    facts = {name: json.loads((base / name).read_text()) for name in ("config.json", "tokenizer_config.json")}
    assert facts["config.json"]["tie_word_embeddings"] is True
    backend = facts["tokenizer_config.json"] | {"tokenizer_class": "TokenizersBackend"}
    (base / "tokenizer_config.json").write_text(json.dumps(backend))
    trained(base, tmp_path / "adapter", targets=("q_proj",))
    merge(base, tmp_path / "adapter", merged)
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(stock(merged).lm_head.weight, head)
    mended = json.loads((merged / "tokenizer_config.json").read_text())
    assert mended == backend | {"tokenizer_class": "PreTrainedTokenizerFast"}
    ids = [AutoTokenizer.from_pretrained(place)("A red ball <|im_end|>")["input_ids"] for place in (base, merged)]
    assert ids[0] == ids[1]


def test_a_base_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no model\.safetensors there"):
        merge(tmp_path / "empty", tmp_path / "adapter", tmp_path / "merged")
