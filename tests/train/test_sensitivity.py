"""Scores of a pass: they foretell the KL of a small random rounding, whatever the weights are kept in, and survive a file."""

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig

from tiny_families import GEMMA, SMALL, VOCABULARY, random_model
from tunesmith.bits.sensitivity import load_sensitivity, rounding_cost, save_sensitivity
from tunesmith.errors import RunError
from tunesmith.kernels.nf4 import dequantize_nf4, quantize_nf4
from tunesmith.layers.nf4 import NF4Weight
from tunesmith.layers.quantized import QuantizedLinear
from tunesmith.models.attention import PACKED
from tunesmith.models.load import attention
from tunesmith.models.swap import put_module
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.sensitivity import measure_sensitivity

CONFIGS = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "gemma2": Gemma2Config(**SMALL, **GEMMA, final_logit_softcapping=2.0, attn_logit_softcapping=3.0),  # tied, scaled, capped
}


def _packs(count=8):
    drawn = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, VOCABULARY, (40,), generator=drawn).tolist() for _ in range(2 * count)]
    documents = make_documents([(ids, [0] * 8 + [1] * 32) for ids in rows])
    return [make_pack(documents, (2 * number, 2 * number + 1)) for number in range(count)]


@torch.no_grad()
def _log_probabilities(model, packs):
    found = []
    with attention(model, PACKED):
        for pack in packs:
            logits = model(input_ids=pack.ids_1T, position_ids=pack.position_1T, spans=pack.spans, use_cache=False).logits[0]
            found.append(torch.log_softmax(logits[pack.predict_N].double(), -1))
    return torch.cat(found)


@pytest.mark.parametrize("name", CONFIGS)
def test_half_the_cost_is_the_kl_of_a_small_random_change(name):
    model, packs = random_model(CONFIGS[name]).requires_grad_(False).eval(), _packs()
    sensitivities = measure_sensitivity(model, packs)
    base, ratios = _log_probabilities(model, packs), {}
    drawn = torch.Generator().manual_seed(1)
    for module, sensitivity in sensitivities.items():
        weight = model.get_submodule(module).weight
        if weight is model.get_input_embeddings().weight and model.config.tie_word_embeddings:
            continue  # moves the head too
        kept, foretold, measured = weight.clone(), 0.0, 0.0
        for _ in range(4):
            weight.copy_(kept + 0.01 * kept.std() * torch.randn(kept.shape, generator=drawn))
            foretold += 0.5 * rounding_cost(kept, weight, sensitivity)
            measured += float((base.exp() * (base - _log_probabilities(model, packs))).sum())
        weight.copy_(kept)
        ratios[module] = foretold / measured
    # A value that many tokens read moves them together, which a sum of squares by token does not know: 0.3 there.
    assert len(ratios) >= 14 and all(0.2 < ratio < 2.5 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_pass_that_computes_layers_twice_as_on_a_gpu_gives_the_same_scores(name, quantised, monkeypatch):
    model, packs = random_model(CONFIGS[name]).requires_grad_(False).eval(), _packs(2)
    if quantised:
        _quantise(model)
    expected = measure_sensitivity(model, packs)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))  # that the policy is chosen by; all stays where it is
    found = measure_sensitivity(model, packs)
    assert list(found) == list(expected)
    for module, one in expected.items():
        assert found[module].tokens == one.tokens
        torch.testing.assert_close(found[module].gradient_O, one.gradient_O, rtol=1e-5, atol=0, msg=module)
        torch.testing.assert_close(found[module].input_I, one.input_I, rtol=1e-5, atol=0, msg=module)


def _quantise(model, dense=None):
    """Put the projections into NF4, and their values into another model."""
    for name, module in list(model.named_modules()):
        if name.endswith("_proj"):
            q = quantize_nf4(module.weight)
            put_module(model, name, QuantizedLinear(NF4Weight(q, torch.float32)))
            if dense is not None:
                dense.get_submodule(name).weight.copy_(dequantize_nf4(q, torch.float32))


def test_a_quantised_base_has_the_scores_of_its_dense_values_and_they_survive_a_file(tmp_path):
    dense, packs = random_model(CONFIGS["llama"]).requires_grad_(False).eval(), _packs(2)
    quantised = random_model(CONFIGS["llama"]).requires_grad_(False).eval()
    _quantise(quantised, dense)
    found, expected = measure_sensitivity(quantised, packs), measure_sensitivity(dense, packs)
    save_sensitivity(tmp_path / "s.safetensors", found)
    read = load_sensitivity(tmp_path / "s.safetensors")
    assert list(found) == list(expected) == list(read)
    assert next(iter(found)) == "model.embed_tokens" and list(found)[-1] == "lm_head"
    for name, one in expected.items():
        for gradient_O, input_I, tokens in (found[name], read[name]):
            torch.testing.assert_close(gradient_O, one.gradient_O, rtol=1e-3, atol=0)
            torch.testing.assert_close(input_I, one.input_I, rtol=1e-3, atol=0)
            assert tokens == one.tokens
    assert not any(parameter.grad is not None for parameter in dense.parameters())
    (tmp_path / "s.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="no sensitivities there"):
        load_sensitivity(tmp_path / "s.safetensors")
