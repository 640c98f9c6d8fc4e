"""Ten ways in which training Gemma 4 goes wrong in silence, and that none of them happens here.

Each test is named for its trap. Where the trap can be sprung cheaply it is, with PEFT or stock transformers as people use
them, so that the test shows the difference and not only our side.
"""

import warnings
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText, Gemma4Config, Gemma4ForCausalLM
from transformers.utils.chat_template_utils import render_jinja_template

from tiny_families import GEMMA4, TINY, VOCABULARY, documents, random_model
from tunesmith.chat.template_choice import template_text
from tunesmith.checkpoints.names import naming
from tunesmith.export.forms.vllm_adapter import vllm_state
from tunesmith.families import FAMILIES
from tunesmith.layers.lora import LoRALinear
from tunesmith.layers.mlp import FusedMLP
from tunesmith.layers.nf4 import NF4Weight
from tunesmith.models.adapter import adapter_state
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention, decoder, load_model
from tunesmith.models.recompute import recompute
from tunesmith.models.swap import add_lora, target_names
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import step_gradients

DOCUMENTS = make_documents(documents())
WHOLE = make_pack(DOCUMENTS, (0, 1, 2, 3))
IDS = torch.tensor([documents()[0][0]])
EYE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
EYE |= {"num_key_value_heads": 2, "head_dim": 16}
EAR = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Directory of a tiny model of this name, saved once."""
    made = {}

    def save(name) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            random_model(TINY[name].config).save_pretrained(made[name])
        return made[name]

    return save


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    """A checkpoint with eye and ear as the official ones have them, and the text logits of the stock model."""
    directory = tmp_path_factory.mktemp("multimodal")
    torch.manual_seed(0)
    text = TINY["gemma4-e"].config.to_dict()
    model = AutoModelForImageTextToText.from_config(Gemma4Config(text_config=text, vision_config=EYE, audio_config=EAR)).eval()
    model.save_pretrained(directory)
    with torch.no_grad():
        return directory, model(input_ids=IDS, use_cache=False).logits


def _trained(model, **lora):
    layers = add_lora(model, Lora(r=4, alpha=8, dropout=0.0, **lora), 0)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.1, generator=torch.Generator().manual_seed(4))
    fuse(model)
    return layers


def _gradients(model, layers, policy):
    for layer in layers.values():
        layer.zero_grad()
    with attention(model, PACKED), recompute(model, policy):
        step_gradients(model, [WHOLE])
    return torch.cat([p.grad.flatten() for layer in layers.values() for p in (layer.lora_A, layer.lora_B)])


def test_bite_1_layers_that_share_keys_get_exact_gradients_under_recompute(checkpoint):
    """``prepare_model_for_kbit_training`` turns on reentrant checkpointing, which loses the readers' part of the gradient."""
    model = load_model(checkpoint("gemma4-e"), "fp32")
    layers = _trained(model, target_modules=r".*\.(self_attn|mlp)\.\w+_proj")
    assert "model.layers.0.self_attn.k_proj" in layers and "model.layers.2.self_attn.k_proj" not in layers
    expected = _gradients(model, layers, "none")
    for policy in ("attention", "mlp", "layer", 2):
        torch.testing.assert_close(_gradients(model, layers, policy), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))

    def theirs(prepare):
        stock = random_model(TINY["gemma4-e"].config)
        stock.is_loaded_in_4bit = True  # in name: its weights are exact, so that checkpointing is all that differs
        stock = prepare(stock).train()
        wrapped = peft.get_peft_model(stock, peft.LoraConfig(r=4, target_modules=["k_proj"], init_lora_weights=False))
        for p in wrapped.parameters():
            if p.requires_grad:
                p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) * 0.1
        wrapped(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return torch.cat([p.grad.flatten() for p in wrapped.parameters() if p.requires_grad])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong, right = theirs(peft.prepare_model_for_kbit_training), theirs(lambda model: model)
    assert float((wrong - right).abs().max()) > 0.05 * float(right.abs().max())


@pytest.mark.parametrize("base", [None, "nf4"])
@pytest.mark.parametrize("name", ["gemma4-e", "gemma4-26b"])
def test_bite_2_nothing_frozen_becomes_fp32(checkpoint, name, base):
    model = load_model(checkpoint(name), "bf16", base)
    layers = _trained(model)
    _gradients(model, layers, "layer")
    frozen = {n: p.dtype for n, p in model.named_parameters() if not p.requires_grad}
    assert set(frozen.values()) <= {torch.bfloat16, torch.uint8}, [n for n, d in frozen.items() if d == torch.float32]
    assert frozen["model.embed_tokens.weight"] == torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), r".*\.[qv]_proj"])
def test_bite_3_targets_reach_the_text_model_alone(multimodal, targets):
    """PEFT crashes on the towers' own kind of linear layer for a list, and trains the towers for ``all-linear``."""
    model = load_model(multimodal[0], "fp32")
    names = target_names(model, targets)
    assert names and all(name.startswith("model.layers.") for name in names)
    stock = AutoModelForImageTextToText.from_pretrained(multimodal[0])
    towers = [n for n, m in stock.named_modules() if isinstance(m, torch.nn.Linear) and ("vision" in n or "audio" in n)]
    assert any(name.endswith("q_proj.linear") for name in towers)
    assert all(type(layer) is LoRALinear for layer in add_lora(model, Lora(r=2, target_modules=targets), 0).values())


def test_bite_4_a_text_only_load_is_never_random(multimodal):
    directory, expected = multimodal
    naive, info = Gemma4ForCausalLM.from_pretrained(directory, output_loading_info=True)
    with torch.no_grad():
        assert info["missing_keys"] and float((naive(IDS, use_cache=False).logits - expected).abs().max()) > 0.1
        found = load_model(directory, "fp32")(IDS, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma4-e", "gemma4-31b"])
def test_bite_5_packed_documents_do_not_see_each_other(checkpoint, name):
    """Position ids alone tell stock transformers where documents end, unless a cache or a mask comes along."""
    model = load_model(checkpoint(name), "fp32")
    _trained(model)

    def hidden(pack):
        with torch.no_grad(), attention(model, PACKED):
            return decoder(model)(
                input_ids=pack.ids_1T,
                position_ids=pack.position_1T,
                spans=pack.spans,
                rows_N=torch.arange(pack.ids_1T.shape[1]),
                use_cache=False,
            ).last_hidden_state[0]

    pairs = documents()
    first = len(pairs[0][0])
    other = [([(i + 7) % VOCABULARY for i in pairs[0][0]], pairs[0][1]), *pairs[1:]]
    before, after = hidden(WHOLE), hidden(make_pack(make_documents(other), (0, 1, 2, 3)))
    assert not torch.equal(before[:first], after[:first])
    torch.testing.assert_close(before[first:], after[first:], rtol=0, atol=1e-6)


def test_bite_6_no_adapter_where_llama_cpp_applies_none(checkpoint):
    """llama.cpp's adapters do nothing on ``per_layer_model_projection``; the other linears of its kind and routers go along."""
    model = load_model(checkpoint("gemma4-e"), "fp32")
    kinds = {name.rsplit(".", 1)[-1] for name in target_names(model, "all-linear")}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert target_names(model, ("per_layer_model_projection",)) == ["model.per_layer_model_projection"]  # named, so meant
    mixture = target_names(load_model(checkpoint("gemma4-26b"), "fp32"), "all-linear")
    assert any(name.endswith(".experts") for name in mixture) and not any("router" in name for name in mixture)


def test_bite_7_keys_that_are_values_keep_their_adapter_in_vllm(checkpoint):
    """vLLM puts the keys' weight into both slots, and the adapter only where it finds one by that name."""
    directory = checkpoint("gemma4-31b")
    model = load_model(directory, "fp32")
    state = adapter_state(add_lora(model, Lora(r=4), 0))
    lacking = [n for n, m in model.named_modules() if n.endswith("self_attn") and "v_proj" not in dict(m.named_children())]
    assert [name.split(".")[2] for name in lacking] == ["1", "3"]
    names = naming(directory)
    doubled = vllm_state(state, names, lacking)
    for part in ("lora_A", "lora_B"):
        for name in lacking:
            key = "base_model.model." + names.of_checkpoint(f"{name}.k_proj.{part}.weight")
            assert torch.equal(doubled[key], doubled[key.replace("k_proj", "v_proj")])
    assert len(doubled) == len(state) + 4


def test_bite_8_recompute_still_recomputes_after_fusing(checkpoint):
    """A replaced ``forward`` of a decoder layer switches stock checkpointing off without a word."""
    model = load_model(checkpoint("gemma4-e"), "fp32")
    layers = _trained(model)
    calls = []
    blocks = [module for module in model.modules() if isinstance(module, FusedMLP)]
    for block in blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    counted = []
    for policy in ("none", "layer"):
        calls.clear()
        _gradients(model, layers, policy)
        counted.append(len(calls))
    assert len(blocks) == 4 and counted == [4, 8]


@pytest.mark.parametrize("name", ["gemma4-e", "gemma4-26b"])
def test_bite_9_what_is_quantised_and_what_is_not(checkpoint, name):
    """bitsandbytes quantises routers and the per-layer linears, and leaves the experts, most of the model, in 16 bits."""
    model = load_model(checkpoint(name), "bf16", "nf4")
    held = {n.removesuffix(".quantized").removesuffix(".weight") for n, m in model.named_modules() if isinstance(m, NF4Weight)}
    assert not any(part in n for n in held for part in ("router", "per_layer", "embed_tokens", "lm_head"))
    assert {n.rsplit(".", 1)[-1] for n in held} >= {"q_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    experts = {n for n in held if ".experts." in n}
    layers = range(GEMMA4["num_hidden_layers"]) if name == "gemma4-26b" else ()
    assert experts == {f"model.layers.{i}.experts.{part}" for i in layers for part in ("gate_up_proj", "down_proj")}


def test_bite_10_the_turn_tokens_are_its_own():
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    ]
    text = template_text(Path("gemma4"))
    (rendered,), _ = render_jinja_template([messages], chat_template=text, bos_token="<bos>")
    assert rendered == "<bos><|turn>system\nS<turn|>\n<|turn>user\nU<turn|>\n<|turn>model\nA<turn|>\n"
    assert FAMILIES["gemma4_text"].turn_ends == FAMILIES["gemma4_unified_text"].turn_ends == ("<turn|>",)
    (older,), _ = render_jinja_template([messages[1:]], chat_template=template_text(Path("gemma3")), bos_token="<bos>")
    assert "<start_of_turn>user\nU<end_of_turn>" in older and FAMILIES["gemma3_text"].turn_ends == ("<end_of_turn>",)
