"""Fused models against stock transformers with PEFT: loss and every adapter gradient, for every family that is fused."""

import copy
from collections import Counter

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Gemma4UnifiedTextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from tiny_families import adapted
from tunesmith.errors import ModelError
from tunesmith.families import FAMILIES
from tunesmith.kernels import attention as attention_kernel
from tunesmith.layers.attention import FusedAttention
from tunesmith.layers.context import StepContext, at_step
from tunesmith.layers.lora import LoRALinear
from tunesmith.layers.mlp import FusedMLP
from tunesmith.models.adapter import adapter_state, load_adapter_state
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse, narrows
from tunesmith.models.load import attention
from tunesmith.models.nf4_load import load_nf4
from tunesmith.models.recompute import recompute
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import pack_loss, step_gradients, step_packs

VOCABULARY = 300
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY, "initializer_range": 0.15}
SMALL |= {"max_position_embeddings": 256, "pad_token_id": 0}
WINDOWED = ["sliding_attention", "full_attention"]
GEMMA = {"query_pre_attn_scalar": 16, "layer_types": WINDOWED}
# Half of a head is turned; documents are longer than what the short factors are for.
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE |= {"partial_rotary_factor": 0.5, "short_factor": [1.0, 1.5], "long_factor": [2.0, 5.0]}
SIX = {**SMALL, "num_hidden_layers": 6, "layer_types": WINDOWED * 3, "global_head_dim": 16, "sliding_window": 8}
SIX |= {"final_logit_softcapping": 3.0, "initializer_range": 0.1}
FOUR = {**SIX, "num_hidden_layers": 4, "layer_types": WINDOWED * 2}
# Fewer features than that are now and then all near zero; the norm after them then makes rounding large.
PER_LAYER = {"hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": VOCABULARY}
KEYS_ARE_VALUES = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
MIXTURE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
KNOWN = {
    "llama": LlamaConfig(**SMALL),
    "llama-biased": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "mistral": MistralConfig(**SMALL, sliding_window=9),
    "qwen2": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "qwen3": Qwen3Config(**SMALL, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    "gemma3_text": Gemma3TextConfig(**SMALL, **GEMMA, sliding_window=8),
    "gemma3_text-capped": Gemma3TextConfig(**SMALL, **GEMMA, sliding_window=8, final_logit_softcapping=3.0),
    "gemma2": Gemma2Config(**SMALL, **GEMMA, sliding_window=8, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma2-uncapped": Gemma2Config(**SMALL, **GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None),
    "smollm3": SmolLM3Config(**SMALL, no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=7, layer_types=WINDOWED),
    "phi3": Phi3Config(**SMALL, sliding_window=9, rope_parameters=LONGROPE),
    "phi3-whole": Phi3Config(**SMALL, tie_word_embeddings=True),
}
LAYERED = {
    "gemma4_text-shared": Gemma4TextConfig(**SIX, **PER_LAYER, num_kv_shared_layers=3, use_double_wide_mlp=True),
    "gemma4_text-values": Gemma4TextConfig(**FOUR, hidden_size_per_layer_input=0, **KEYS_ARE_VALUES),
    "gemma4_text-mixture": Gemma4TextConfig(**FOUR, hidden_size_per_layer_input=0, **KEYS_ARE_VALUES, **MIXTURE),
    "gemma4_unified_text": Gemma4UnifiedTextConfig(**FOUR, **KEYS_ARE_VALUES),
}
MIXTURES = {
    "qwen3_moe": Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "gpt_oss": GptOssConfig(
        **SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, layer_types=WINDOWED, attention_bias=True
    ),
}
BARE = {name: value for name, value in SMALL.items() if name not in ("num_key_value_heads", "head_dim")}
UNKNOWN = {
    "olmo2": Olmo2Config(**SMALL),  # norms after the blocks, q and k normed over all heads
    "gpt_neox": GPTNeoXConfig(**BARE),  # layer norms with biases, q, k and v in one layer
}
TARGETS = {"all-linear": "all-linear", "some": r".*\.(q|v|qkv)_proj"}


def _documents():
    """Pairs of ids and supervised; three of four begin with the same 22 tokens, more than any sliding window here."""
    generator = torch.Generator().manual_seed(3)
    prefix = torch.randint(1, VOCABULARY, (22,), generator=generator).tolist()
    pairs = []
    for n in (30, 21, 44, 12):
        ids = (prefix if n != 44 else []) + torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()
        pairs.append((ids, [0] * (len(ids) - 8) + [1] * 8))
    return pairs


PAIRS = _documents()
DOCUMENTS = make_documents(PAIRS)
WHOLE = [make_pack(DOCUMENTS, (0, 1, 2, 3))]
SHARED = step_packs(DOCUMENTS, [(0, 1), (2, 3)], 200)


def _stock(config, dtype=torch.float32):
    """A random model whose norms and biases are not those of the constructor."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("norm", "bias", "sinks")):
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        if "q_norm" in name:
            parameter.mul_(0.3)  # scores that are not scaled are large, and rounding grows with them
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.8)
    return model


def _gradients(model, layers, packs, context=None):
    """Loss of a step and its gradients under PEFT's names."""
    for layer in layers.values():
        layer.zero_grad()
    with attention(model, PACKED):
        loss, _ = step_gradients(model, packs, context)
    return loss, {f"{n}.{k}": p.grad for n, layer in layers.items() for k, p in layer.named_parameters() if p.requires_grad}


def _oracle(stock, targets, state):
    """Loss and gradients of stock transformers and PEFT, a document at a time."""
    targets = targets if isinstance(targets, str) else list(targets)
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(stock, config)
    peft.set_peft_model_state_dict(model, state)
    total, count = torch.zeros(()), 0
    for ids, supervised in PAIRS:
        ids = torch.tensor(ids)
        labels = torch.where(torch.tensor(supervised) == 1, ids, -100)
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        count += sum(supervised)
    (total / count).backward()
    named = [(n, p.grad) for n, p in model.named_parameters() if p.requires_grad]
    return total.item() / count, {n.removeprefix("base_model.model.").removesuffix(".default.weight"): g for n, g in named}


def _assert_same(found, expected, tolerance=2e-5):
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        largest = float(grad.abs().max())
        assert largest > 0, name
        torch.testing.assert_close(
            found[1][name], grad, rtol=0, atol=tolerance * largest, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("config", KNOWN.values(), ids=KNOWN)
def test_a_fused_model_equals_stock_transformers_and_peft(config, targets):
    model = _stock(config)
    stock = copy.deepcopy(model)
    layers = adapted(model, targets)
    fused = fuse(model)
    assert fused.replaced["attention"] == fused.replaced["MLP"] == 2 and not fused.stock_reasons
    expected = _oracle(stock, targets, adapter_state(layers))
    for packs in (WHOLE, SHARED):
        _assert_same(_gradients(model, layers, packs), expected)
    assert sum(p.ids_1T.shape[1] for p in SHARED) == sum(p.ids_1T.shape[1] for p in WHOLE) - 2 * 22


def test_every_known_family_is_tested():
    assert {config.model_type for config in (*KNOWN.values(), *LAYERED.values(), *MIXTURES.values())} == FAMILIES.keys()
    assert not {config.model_type for config in UNKNOWN.values()} & FAMILIES.keys()


@pytest.mark.parametrize("stock_layers", [("2", "3"), ("1", "5")], ids=["writer-reader", "writer-readers"])
def test_stock_and_fused_layers_read_each_others_keys_and_values(stock_layers):
    """Layers 1 and 2 write, 3 to 5 read; an attention whose adapters differ in dropout stays stock."""
    config = LAYERED["gemma4_text-shared"]
    model = _stock(config)
    stock = copy.deepcopy(model)
    layers = adapted(model, LAYERS)
    for number in stock_layers:
        layers[f"model.layers.{number}.self_attn.q_proj"].dropout = 0.1  # no layer is in training here
    summary = fuse(model).summary()
    assert summary.startswith("fused 4 attention") and summary.endswith("; adapters with different dropout (2 stock)")
    expected = _oracle(stock, LAYERS, adapter_state(layers))
    for packs in (WHOLE, SHARED):
        _assert_same(_gradients(model, layers, packs), expected)


def test_a_last_layer_is_narrowed_where_there_is_nothing_else_to_it():
    dropped = Phi3Config(**SMALL, resid_pdrop=0.1)
    whole = [*LAYERED.values(), *MIXTURES.values(), *UNKNOWN.values(), dropped]
    for config, expected in [(c, True) for c in KNOWN.values()] + [(c, False) for c in whole]:
        model = _stock(config)
        adapted(model, LAYERS if config.model_type != "gpt_neox" else "all-linear")
        assert fuse(model).replaced["last layer"] == narrows(model) == expected, config.model_type
        with torch.no_grad(), attention(model, PACKED):
            pack = WHOLE[0]
            found = model.base_model(
                input_ids=pack.ids_1T, position_ids=pack.position_1T, spans=pack.spans, rows_N=pack.predict_N, use_cache=False
            )
        rows = pack.predict_N.shape if expected else pack.ids_1T.shape[1:]
        assert found.last_hidden_state.shape[1:2] == rows, config.model_type


def test_what_was_fused_is_told():
    model = _stock(KNOWN["gemma3_text"])
    adapted(model)
    fused = fuse(model)
    # Two layers with two norms each after attention and MLP, and the last norm; those before are taken in.
    assert fused.summary().startswith("fused 2 attention, 2 MLP, 5 norm") and "stock" not in fused.summary()
    kinds = Counter(type(module).__name__ for module in model.modules())
    assert kinds["FusedAttention"] == kinds["FusedMLP"] == 2 and kinds["FusedRMSNorm"] == 5
    assert not any("Gemma3RMSNorm" in kind for kind in kinds)


def test_the_adapted_layers_stay_the_same_objects_under_the_same_names():
    model = _stock(KNOWN["qwen2"])
    layers = adapted(model, ("q_proj", "v_proj"))
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    fuse(model)
    _gradients(model, layers, WHOLE)
    for name, layer in layers.items():
        assert model.get_submodule(name) is layer
        assert torch.equal(layer.weight, before[name])
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained >= {id(p) for layer in layers.values() for p in (layer.lora_A, layer.lora_B)}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
        layer.lora_A.numel() + layer.lora_B.numel() for layer in layers.values()
    )


LAYERS = r".*\.(self_attn|mlp)\.\w+_proj"
LAYERED_TARGETS = {"layers": LAYERS, "some": ("q_proj", "v_proj", "up_proj")}


@pytest.mark.parametrize("targets", LAYERED_TARGETS.values(), ids=LAYERED_TARGETS)
@pytest.mark.parametrize("config", LAYERED.values(), ids=LAYERED)
def test_a_model_whose_layers_differ_equals_stock_transformers_and_peft(config, targets):
    """Packed documents see themselves alone: the oracle runs each by itself."""
    model = _stock(config)
    stock = copy.deepcopy(model)
    layers = adapted(model, targets)
    fused = fuse(model)
    assert fused.replaced["attention"] == fused.replaced["MLP"] == config.num_hidden_layers and not fused.stock_reasons
    expected = _oracle(stock, targets, adapter_state(layers))
    for packs in (WHOLE, SHARED):
        _assert_same(_gradients(model, layers, packs), expected)


@pytest.mark.parametrize("config", MIXTURES.values(), ids=MIXTURES)
def test_a_mixture_keeps_its_experts_and_has_our_attention(config):
    model = _stock(config)
    stock = copy.deepcopy(model)
    targets = r".*\.self_attn\.\w+_proj"
    layers = adapted(model, targets)
    summary = fuse(model).summary()
    assert summary == "fused 2 attention, 1 norm; a mixture of experts in place of an MLP (2 stock)"
    expected = _oracle(stock, targets, adapter_state(layers))
    for packs in (WHOLE, SHARED):
        _assert_same(_gradients(model, layers, packs), expected)


@pytest.mark.parametrize("config", UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_model_keeps_its_modules_says_so_and_trains_right(config):
    model = _stock(config)
    stock = copy.deepcopy(model)
    layers = adapted(model)
    kinds = [type(module) for module in model.modules()]
    assert fuse(model).summary() == f"fused nothing; model type {config.model_type} is not known (2 stock)"
    assert [type(module) for module in model.modules()] == kinds
    expected = _oracle(stock, "all-linear", adapter_state(layers))
    for packs in (WHOLE, SHARED):
        _assert_same(_gradients(model, layers, packs), expected)


def test_an_unknown_model_of_another_build_is_named_too():
    config = OPTConfig(hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4)
    model = AutoModelForCausalLM.from_config(config)  # its layers lie deeper
    assert fuse(model).summary() == "fused nothing; model type opt is not known (3 stock)"


def test_a_configuration_without_a_real_scale_is_refused_and_the_layer_named():
    """The square root of a negative ``query_pre_attn_scalar`` is complex."""
    model = _stock(Gemma3TextConfig(**SMALL, query_pre_attn_scalar=-16))
    add_lora(model, Lora(r=2), seed=0)
    with pytest.raises(
        ModelError, match=r"attention of layer 0: head_dim 8 and scale \(.*j\) of the scores.*\nhint: .*config.json"
    ):
        fuse(model)


def test_dora_is_not_fused_and_trains_as_before():
    model = _stock(KNOWN["llama"])
    layers = adapted(model, use_dora=True)
    expected = _gradients(model, layers, SHARED)
    fused = fuse(model)
    assert fused.summary() == "fused 1 norm; DoRALinear is not plain LoRA (4 stock)"
    assert not any(isinstance(module, FusedAttention | FusedMLP) for module in model.modules())
    _assert_same(_gradients(model, layers, SHARED), expected)


def test_where_attention_alone_has_dora_the_mlp_is_fused():
    model = _stock(KNOWN["llama"])
    layers = adapted(model, ("q_proj", "v_proj"), use_dora=True)
    expected = _gradients(model, layers, SHARED)
    summary = fuse(model).summary()
    assert summary.startswith("fused 2 MLP, 1 norm") and summary.endswith("; DoRALinear is not plain LoRA (2 stock)")
    _assert_same(_gradients(model, layers, SHARED), expected)


def test_an_activation_that_is_not_ours_keeps_its_mlp():
    model = _stock(LlamaConfig(**SMALL, hidden_act="relu"))
    layers = adapted(model)
    expected = _gradients(model, layers, SHARED)
    summary = fuse(model).summary()
    assert summary.startswith("fused 2 attention, 1 norm") and summary.endswith("; activation relu (2 stock)")
    _assert_same(_gradients(model, layers, SHARED), expected)


BLOCKS = {"hidden_size": 64, "intermediate_size": 80, "head_dim": 16}  # whole blocks of NF4 and a part of one
IN_BLOCKS = {
    "llama-biased": LlamaConfig(**{**SMALL, **BLOCKS}, attention_bias=True, mlp_bias=True),
    "gemma3_text": Gemma3TextConfig(**{**SMALL, **GEMMA, **BLOCKS}, sliding_window=8),
    "phi3": Phi3Config(**{**SMALL, **BLOCKS}, sliding_window=9),
    "gemma4_text": Gemma4TextConfig(**{**SIX, **PER_LAYER, **KEYS_ARE_VALUES, **BLOCKS}, num_kv_shared_layers=3),
}


@pytest.mark.parametrize("targets", [LAYERS, TARGETS["some"]], ids=["layers", "some"])
@pytest.mark.parametrize("config", IN_BLOCKS.values(), ids=IN_BLOCKS)
def test_an_nf4_model_fused_equals_itself_unfused(tmp_path, config, targets):
    _stock(config).save_pretrained(tmp_path)
    found = []
    for fused in (False, True):
        model = load_nf4(tmp_path, dtype=torch.float32)
        layers = adapted(model, targets)
        assert all(layer.quantized is not None and layer.weight is None for layer in layers.values())
        if fused:
            assert fuse(model).replaced["attention"] == config.num_hidden_layers
        found.append(_gradients(model, layers, SHARED))
    _assert_same(found[1], found[0])


def _saved_bytes(model, pack):
    """Bytes of storage that the graph of one pack keeps, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    groups = [layer.group for layer in model.modules() if isinstance(layer, LoRALinear)]
    weights |= {group._augmented_weight.untyped_storage().data_ptr() for group in groups}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = pack_loss(model, pack)
    del loss
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", ["llama-biased", "gemma3_text"])
def test_a_fused_model_recomputed_keeps_less_and_gives_the_same_gradients(name, dropout):
    model = _stock(KNOWN[name])
    layers = adapted(model, dropout=dropout)
    fuse(model)
    context = StepContext(seed=6, step=0)

    def saved_bytes():
        with attention(model, PACKED), at_step(model, context) as enter:
            enter(0)
            return _saved_bytes(model, WHOLE[0])

    expected = _gradients(model, layers, SHARED, context)
    usual = saved_bytes()
    for policy in ("attention", "mlp", "layer", 1, 2):
        with recompute(model, policy):
            _assert_same(_gradients(model, layers, SHARED, context), expected, 1e-6)
            assert saved_bytes() < 0.95 * usual, policy


@pytest.mark.parametrize("config", [KNOWN["llama"], KNOWN["phi3"], *LAYERED.values()], ids=["llama", "phi3", *LAYERED])
def test_a_fused_model_keeps_less_than_a_stock_one(config, monkeypatch):
    monkeypatch.setattr(attention_kernel, "JOINED", 0)  # or probabilities, the same in both, weigh most
    model = _stock(config)
    adapted(model, LAYERS)
    twin = copy.deepcopy(model)
    fuse(twin)
    with attention(model, PACKED), attention(twin, PACKED):
        for either in (model, twin):
            pack_loss(either, WHOLE[0])  # the first pass makes the groups' weights
        # The loss, the same in both, weighs much in a model this narrow.
        assert _saved_bytes(twin, WHOLE[0]) < 0.85 * _saved_bytes(model, WHOLE[0])


def test_dropout_of_a_fused_model_ends_with_training():
    model = _stock(KNOWN["llama"])
    layers = adapted(model, dropout=0.5)
    fuse(model)
    contexts = [StepContext(seed=0, step=0), StepContext(seed=0, step=1), None, None]
    drawn = [_gradients(model, layers, WHOLE, context)[0] for context in contexts]
    assert drawn[0] != drawn[1] and drawn[2] == drawn[3] != drawn[0]


class _UsualLoRA(nn.Module):
    """A layer as it is usually written: the base product is rounded, and so is the update before it is added."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        layer, dtype = self.layer, x.dtype
        update = (x @ layer.lora_A.to(dtype).T) @ layer.lora_B.to(dtype).T
        return F.linear(x, layer.weight, layer.bias) + layer.scale * update


def _losses(dtype, usual=False):
    """Losses of 20 optimizer steps on random tokens; the base weights are the same numbers in every dtype."""
    config = LlamaConfig(**{**SMALL, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4})
    config.head_dim, config.vocab_size, config.initializer_range = 64, 128, 0.05
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randint(128, (25,), generator=generator).tolist(), [0] * 3 + [1] * 22) for _ in range(8)]
    documents = make_documents(pairs)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).bfloat16().to(dtype).requires_grad_(False).eval()
    layers = add_lora(model, Lora(r=4, alpha=8, dropout=0.0), 0)
    if usual:
        for name, layer in layers.items():
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent).register_module(child, _UsualLoRA(layer))
    else:
        fuse(model)
    parameters = [p for layer in layers.values() for p in (layer.lora_A, layer.lora_B)]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
    losses = []
    with attention(model, PACKED):
        for step in range(20):
            chosen = [(4 * step + n) % 8 for n in range(4)]
            losses.append(step_gradients(model, [make_pack(documents, chosen)])[0])
            optimizer.step()
            optimizer.zero_grad()
    return torch.tensor(losses)


def test_training_in_bf16_follows_fp32_and_the_usual_order_lags():
    exact = _losses(torch.float32)
    assert exact[0] - exact[-1] > 0.05  # it learns
    ours, usual = (_losses(torch.bfloat16, usual) - exact for usual in (False, True))
    assert abs(ours.mean()) <= 0.003 and ours.abs().mean() <= 0.0015
    assert usual.mean() > 2 * ours.abs().mean()  # behind, not merely apart


def test_a_saved_adapter_gives_a_fused_model_its_function_again():
    config = KNOWN["qwen3"]
    losses = []
    state = None
    for _ in range(2):
        model = _stock(config)
        layers = add_lora(model, Lora(r=4, alpha=8, dropout=0.0), 7)
        fuse(model)
        if state is None:
            with torch.no_grad(), attention(model, PACKED):
                pack_loss(model, WHOLE[0])  # the groups have their weights before the adapter comes
            for layer in layers.values():
                layer.lora_B.data.normal_()
            state = adapter_state(layers)
        else:
            load_adapter_state(layers, state)
        losses.append(_gradients(model, layers, WHOLE)[0])
    assert losses[0] == losses[1]
