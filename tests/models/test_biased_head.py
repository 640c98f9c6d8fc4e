"""A head with a bias: the loss and every gradient are those of stock transformers with PEFT, and so is the merged model."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, PhiConfig

from tiny_families import adapted, documents, random_model
from tunesmith.errors import ModelError
from tunesmith.export.merge import merge
from tunesmith.models.adapter import adapter_state, save_adapter
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention, load_model
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.health import refuse_other_loss, stock_loss
from tunesmith.train.step import step_gradients

SETTINGS = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SETTINGS |= {"vocab_size": 300, "initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DOCUMENTS = make_documents(documents())


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    directory = tmp_path_factory.mktemp("biased")
    with torch.no_grad():
        model = random_model(PhiConfig(**SETTINGS))
        model.lm_head.bias.mul_(10.0)  # a bias that no rounding hides
    model.save_pretrained(directory)
    return directory


def _peft_gradients(directory, adapter):
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(directory), adapter, is_trainable=True).eval()
    total, supervised = torch.zeros(()), 0
    for ids, flags in documents():
        logits_TV = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        keep = torch.tensor(flags[1:], dtype=torch.bool)
        total = total + F.cross_entropy(logits_TV[keep], torch.tensor(ids[1:])[keep], reduction="sum")
        supervised += int(keep.sum())
    (total / supervised).backward()
    grads = {name.replace(".default", ""): p.grad for name, p in model.named_parameters() if p.requires_grad}
    return float(total.detach()) / supervised, grads, model


def test_loss_gradients_and_merged_model_are_those_of_peft(biased, tmp_path):
    model = load_model(biased, "fp32")
    layers = adapted(model)
    save_adapter(tmp_path, layers, Lora(r=4, alpha=8, dropout=0.0), "base")
    fuse(model)
    with attention(model, PACKED):
        loss, _ = step_gradients(model, [make_pack(DOCUMENTS, (0, 1, 2, 3))])
    parameters = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.grad
    ours = adapter_state(layers)
    expected, grads, oracle = _peft_gradients(biased, tmp_path)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert ours.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()), msg=name)
    merge(biased, tmp_path, tmp_path / "merged")
    assert "lm_head.bias" in load_file(tmp_path / "merged" / "model.safetensors")
    ids = torch.tensor([documents()[0][0]])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
        torch.testing.assert_close(merged, oracle(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", ["fp32", "bf16", "nf4"])
def test_every_storage_trains_it(biased, base):
    model = load_model(biased, "bf16" if base == "nf4" else base, base)
    expected = stock_loss(model)
    add_lora(model, Lora(r=2, alpha=4), seed=0)
    refuse_other_loss(model, expected)
    model.lm_head.bias.data.zero_()
    with pytest.raises(ModelError, match="the stock model says"):
        refuse_other_loss(model, expected)
