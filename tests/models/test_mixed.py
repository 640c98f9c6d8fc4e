"""A base whose layers lie in three forms computes, and teaches, what the dense model of the same values does."""

import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from tiny_families import SMALL, documents
from tunesmith.bits.mixed import MixedBase
from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.errors import ModelError
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention, load_model
from tunesmith.models.mixed import in_16_bits, price, quantized_layers
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import step_gradients

FORMS = {"self_attn.q_proj": "Q8_0", "self_attn.v_proj": "BF16", "mlp.up_proj": "BF16", "mlp.down_proj": "Q8_0"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("mixed") / "model"
    AutoModelForCausalLM.from_config(LlamaConfig(**SMALL | {"intermediate_size": 64})).save_pretrained(target)
    return target


def _gradients(model):
    layers = add_lora(model, Lora(r=3, dropout=0.0), seed=1)
    drawn = torch.Generator().manual_seed(2)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.1, generator=drawn)
    fuse(model)
    rows = make_documents(documents())
    with attention(model, PACKED):
        loss, _ = step_gradients(model, [make_pack(rows, range(len(rows)))])
    return loss, {name: (layer.lora_A.grad, layer.lora_B.grad) for name, layer in layers.items()}


def test_adapters_on_a_mixed_base_get_the_gradients_of_its_dense_values(directory):
    forms = {f"model.layers.0.{name}": form for name, form in FORMS.items()}
    known = Sensitivity(torch.rand(32), torch.rand(32), 10)
    mixed = load_model(directory, "fp32", "nf4", mixed=MixedBase(forms, {"model.layers.1.self_attn.q_proj": known}))
    dense = load_model(directory, "fp32")
    original = dense.get_submodule("model.layers.0.self_attn.v_proj").weight.clone()
    for name, layer in quantized_layers(mixed).items():
        dense.get_submodule(name).weight.copy_(layer.weight.dense(torch.float32))
    assert torch.equal(dense.get_submodule("model.layers.0.self_attn.v_proj").weight, original.bfloat16().float())
    (loss, found), (expected_loss, expected) = _gradients(mixed), _gradients(dense)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, pair in expected.items():
        for ours, theirs in zip(found[name], pair, strict=True):
            assert float((ours - theirs).norm()) < 1e-4 * float(theirs.norm()), name


def test_prices_fall_with_bits_and_a_layer_that_was_raised_goes_back(directory):
    model = load_model(directory, "fp32", "nf4")
    name = "model.layers.0.mlp.up_proj"
    layer = quantized_layers(model)[name]
    plain = layer.weight.dense(torch.float32).clone()
    options = price(model, directory, {name: Sensitivity(torch.rand(64), torch.rand(32), 10)})[name]
    assert [option.form for option in options] == ["nf4", "Q8_0", "BF16"]
    assert options[0].cost > 50 * options[1].cost > 50 * options[2].cost > 0
    assert [option.bytes for option in options] == [layer.weight.nbytes, 64 * 34, 64 * 64]
    searched = layer.weight.dense(torch.float32).clone()
    assert not torch.equal(searched, plain)
    with in_16_bits(model, name, directory):
        assert not torch.equal(layer.weight.dense(torch.float32), searched)
    assert torch.equal(layer.weight.dense(torch.float32), searched)


def test_weights_that_lie_in_nf4_get_no_bits(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "nf4")
    state = load_model(directory, "bf16", "nf4").state_dict()
    save_file(state, tmp_path / "nf4" / "model.safetensors", metadata={"format": "pt"})
    load_model(tmp_path / "nf4", "fp32", "nf4")
    with pytest.raises(ModelError, match="its weights lie in NF4 already"):
        load_model(tmp_path / "nf4", "fp32", "nf4", mixed=MixedBase({}, {}))


def test_forms_of_another_model_are_refused(directory):
    with pytest.raises(ModelError, match=r"forms were chosen for model.layers.7.mlp.up_proj, which it has not"):
        load_model(directory, "fp32", "nf4", mixed=MixedBase({"model.layers.7.mlp.up_proj": "Q8_0"}, {}))
