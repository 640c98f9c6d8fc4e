"""Recomputation changes memory and nothing else: gradients, dropout and the model afterwards are the same."""

import contextlib

import pytest
import torch
from torch import nn
from transformers import DynamicCache, Gemma4ForCausalLM, Gemma4TextConfig

from tunesmith.errors import ModelError
from tunesmith.layers.context import StepContext
from tunesmith.layers.lora import LoRAGroup
from tunesmith.models import recompute as module
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention, load_model
from tunesmith.models.recompute import Recomputed, decoder_layers, recompute, recomputed_names
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import step_gradients

POLICIES = ["attention", "mlp", "layer", 2, 3]


MIXTURE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}


def _gemma4(**changes):
    """Six layers, the last three of which read the keys and values of layers 1 and 2."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 256,
        "vocab_size_per_layer_input": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": 8,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "initializer_range": 0.1,
    }
    return Gemma4ForCausalLM(Gemma4TextConfig(**{**settings, **changes})).requires_grad_(False).eval()


def _adapted(model, **lora):
    layers = add_lora(model, Lora(r=4, alpha=8, **lora), seed=0)
    generator = torch.Generator().manual_seed(1)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.05, generator=generator)
    return layers


def _taken(layers):
    """Gradients so far, which are cleared."""
    grads = {}
    for name, layer in layers.items():
        for key, parameter in layer.named_parameters():
            if parameter.requires_grad:
                grads[f"{name}.{key}"], parameter.grad = parameter.grad, None
    return grads


def _assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, grad in expected.items():
        assert grad is not None and grad.abs().sum() > 0, key
        torch.testing.assert_close(
            found[key], grad, rtol=0, atol=1e-6 * float(grad.abs().max()), msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_layers_that_share_keys_and_values_get_exact_gradients(implementation):
    model = _gemma4()
    model.set_attn_implementation(implementation)
    layers = _adapted(model, target_modules=r".*\.(self_attn|mlp)\.\w+_proj", dropout=0.0)
    ids = torch.randint(5, 256, (2, 19), generator=torch.Generator().manual_seed(2))

    def gradients(policy):
        with recompute(model, policy):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return _taken(layers)

    expected = gradients("none")
    assert any("layers.2.self_attn.k_proj" in key for key in expected)
    assert not any("layers.4.self_attn.k_proj" in key for key in expected)
    for policy in POLICIES:
        _assert_same(gradients(policy), expected)


def _in_other_memory():
    """What is kept for the backward pass is moved away and back, as to the CPU and back: the tensors are not the same."""
    return torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone)


OFFLOADS = {
    "kept": contextlib.nullcontext,
    "on the cpu": torch.autograd.graph.save_on_cpu,
    "in other memory": _in_other_memory,
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
@pytest.mark.parametrize("fused", [False, True])
def test_shared_keys_and_values_of_a_pack_get_exact_gradients_wherever_activations_lie(fused, offload):
    _check_a_pack(_gemma4(), fused, offload)


def test_experts_beside_an_mlp_are_recomputed_exactly():
    _check_a_pack(_gemma4(**MIXTURE), True, contextlib.nullcontext)


def _check_a_pack(model, fused, offload):
    layers = _adapted(model, target_modules=r".*\.(self_attn|mlp)\.\w+_proj", dropout=0.3)
    if fused:
        assert fuse(model).replaced["attention"] == 6
    generator = torch.Generator().manual_seed(2)
    pairs = [(torch.randint(5, 256, (n,), generator=generator).tolist(), [0] * 4 + [1] * (n - 4)) for n in (30, 9, 17)]
    pack = make_pack(make_documents(pairs), (0, 1, 2))

    def gradients(policy, where):
        with attention(model, PACKED), recompute(model, policy), where():
            loss, _ = step_gradients(model, [pack], StepContext(seed=3, step=0))
        return loss, _taken(layers)

    loss, expected = gradients("none", contextlib.nullcontext)
    assert len(expected) == 2 * (3 * 4 + 3 * 2 + 6 * 3)  # readers have no k and v
    for policy in ("none", *POLICIES):
        again, found = gradients(policy, offload)
        assert again == pytest.approx(loss, rel=1e-6)
        _assert_same(found, expected)


def test_two_forwards_before_one_backward_are_exact():
    model = _gemma4()
    layers = _adapted(model, target_modules=r".*\.(self_attn|mlp)\.\w+_proj", dropout=0.0)
    chosen, rejected = torch.randint(5, 256, (2, 1, 17), generator=torch.Generator().manual_seed(2))

    def gradients(policy):
        with recompute(model, policy):
            losses = [model(input_ids=ids, labels=ids, use_cache=False).loss for ids in (chosen, rejected)]
            nn.functional.softplus(losses[0] - losses[1]).backward()
        return _taken(layers)

    expected = gradients("none")
    for policy in POLICIES:
        _assert_same(gradients(policy), expected)


def _packed(tiny_dir, dropout, **lora):
    model = load_model(tiny_dir, "fp32")
    layers = _adapted(model, dropout=dropout, **lora)
    generator = torch.Generator().manual_seed(0)
    lengths = (30, 1, 22, 7)
    documents = make_documents(
        [(torch.randint(5, 900, (n,), generator=generator).tolist(), [0] * (n // 2) + [1] * (n - n // 2)) for n in lengths]
    )

    def gradients(policy):
        packs = [make_pack(documents, pack) for pack in ((0, 1, 2), (3,))]
        with attention(model, PACKED), recompute(model, policy):
            loss, _ = step_gradients(model, packs, StepContext(seed=5, step=0))
        return loss, _taken(layers)

    return gradients


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("use_dora", [False, True])
def test_packed_training_is_exact_and_dropout_strikes_the_same_places(tiny_dir, dropout, use_dora):
    gradients = _packed(tiny_dir, dropout, use_dora=use_dora)
    loss, expected = gradients("none")
    for policy in POLICIES:
        again, found = gradients(policy)
        assert again == pytest.approx(loss, rel=1e-6)
        _assert_same(found, expected)


@pytest.mark.parametrize(("policy", "again"), [("layer", 3), ("mlp", 1), ("attention", 2)])
def test_the_product_that_ends_a_layer_is_not_computed_again(tiny_dir, policy, again, monkeypatch):
    model = load_model(tiny_dir, "fp32")
    _adapted(model, dropout=0.0)
    fuse(model)
    products, multiply = [], LoRAGroup.multiply
    monkeypatch.setattr(LoRAGroup, "multiply", lambda *given: products.append(given) or multiply(*given))

    def count(policy):
        products.clear()
        with recompute(model, policy), attention(model, PACKED):
            step_gradients(model, [make_pack(make_documents([([5, 6, 7], [0, 1, 1])]), (0,))])
        return len(products)

    assert count(policy) - count("none") == again * len(recomputed_names(model, policy)) > 0


def _saved_bytes(run, parameters):
    """Bytes of storage that the graph of ``run()`` keeps, weights not counted."""
    with torch.no_grad():
        run()  # the first product lays the weights of a group together: their old places are free for activations then
    weights = {p.untyped_storage().data_ptr() for p in parameters}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(size for size, _ in kept.values())


def test_every_policy_keeps_fewer_bytes():
    model = _gemma4()
    _adapted(model, target_modules=r".*\.(self_attn|mlp)\.\w+_proj", dropout=0.0)
    ids = torch.randint(5, 256, (1, 64), generator=torch.Generator().manual_seed(2))

    def kept(policy):
        with recompute(model, policy):
            return _saved_bytes(lambda: model.model(input_ids=ids, use_cache=False).last_hidden_state, model.parameters())

    none, *rest = (kept(policy) for policy in ("none", "attention", "mlp", 3, 2, "layer"))
    attention_, mlp, third, second, layer = rest
    assert max(attention_, mlp) < 0.9 * none
    assert layer < second < third < none
    # A layer keeps its input (64 tokens of 64 numbers); the rest is what stands outside of the layers.
    assert layer < 0.2 * none


def test_the_model_is_as_it_was_even_after_an_error(tiny_model):
    before = dict(tiny_model.named_modules())
    keys = list(tiny_model.state_dict())
    with pytest.raises(KeyboardInterrupt), recompute(tiny_model.train(), "layer"):
        wrapped = tiny_model.model.layers[0]
        assert isinstance(wrapped, Recomputed) and wrapped.self_attn is before["model.layers.0.self_attn"]
        with pytest.raises(AttributeError, match="no_such_thing"):
            _ = wrapped.no_such_thing
        tiny_model.eval()
        raise KeyboardInterrupt
    assert dict(tiny_model.named_modules()) == before and list(tiny_model.state_dict()) == keys
    assert not any(m.training for m in tiny_model.modules())


def test_without_gradients_nothing_is_recomputed_and_a_cache_is_allowed(tiny_model, monkeypatch):
    monkeypatch.setattr(module, "checkpoint", None)
    ids = torch.randint(5, 900, (1, 6))
    with torch.no_grad():
        expected = tiny_model(ids, use_cache=True).logits
        with recompute(tiny_model, "attention"):
            assert torch.equal(tiny_model(ids, use_cache=True).logits, expected)


def test_a_cache_is_refused_under_gradients(tiny_model):
    _adapted(tiny_model)
    with recompute(tiny_model, "attention"), pytest.raises(ModelError, match="cannot run with a key/value cache"):
        tiny_model(torch.randint(5, 900, (1, 6)), past_key_values=DynamicCache(config=tiny_model.config))


def test_policies_name_the_parts(tiny_model):
    assert recomputed_names(tiny_model, "none") == []
    assert recomputed_names(tiny_model, "attention") == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert recomputed_names(tiny_model, "mlp") == ["model.layers.0.mlp", "model.layers.1.mlp"]
    assert recomputed_names(tiny_model, "layer") == recomputed_names(tiny_model, 1) == list(decoder_layers(tiny_model))
    assert recomputed_names(_gemma4(), 4) == ["model.layers.0", "model.layers.4"]
    assert recomputed_names(_gemma4(), (3, 1)) == ["model.layers.1", "model.layers.3"]
    with pytest.raises(ModelError, match="no layer 2"):
        recomputed_names(tiny_model, (0, 2))
    assert recomputed_names(_gemma4(**MIXTURE), "mlp")[:2] == ["model.layers.0.mlp", "model.layers.0.experts"]
    tiny_model.model.layers[1].register_module("odd", tiny_model.model.layers[1].mlp)
    del tiny_model.model.layers[1].mlp
    with pytest.raises(ModelError, match=r"model\.layers\.1 has no mlp among self_attn"):
        recomputed_names(tiny_model, "mlp")
