"""New tokens: their rows are trained and no others, and everybody reads what was trained."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.engines.base import BaseModel
from tunesmith.export.merge import merge
from tunesmith.models.swap import without_adapters
from tunesmith.recipe import NewToken
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import step_gradients

TOKENS = (NewToken(text="<|tool|>"), NewToken(text="wug", special=False))
LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0}


@pytest.fixture(params=["tied", "own head"])
def base_dir(request, tiny_dir, tmp_path):
    """The tiny model, and the same with a head of its own."""
    if request.param == "tied":
        return tiny_dir
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.1 * torch.randn(model.lm_head.weight.shape))
    model.config.tie_word_embeddings = False
    directory = tmp_path / "untied"
    model.save_pretrained(directory)
    for file in tiny_dir.iterdir():
        if not (directory / file.name).exists():
            shutil.copy(file, directory / file.name)
    return directory


def _tuned(base):
    """With an adapter and new rows that are no longer what they were."""
    tuned = base.add_lora(**LORA)
    generator = torch.Generator().manual_seed(1)
    for layer in tuned.layers.values():
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad and name != "lora_A":
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return tuned


@torch.no_grad()
def _logits(model, ids):
    return model(input_ids=ids).logits


def test_peft_and_the_merged_model_compute_what_was_trained(base_dir, tmp_path):
    import peft

    base = BaseModel(model=str(base_dir), base="fp32", arithmetic="fp32", new_tokens=TOKENS)
    first = base.grown.first
    ids = torch.tensor([[5, first, 77, first + 1, 900, first, 31]])
    tuned = _tuned(base)
    ours = _logits(tuned.model, ids)
    adapter = tuned.save_adapter(tmp_path / "adapter")
    with without_adapters(tuned.layers):
        torch.testing.assert_close(_logits(tuned.model, ids), _logits(base.load().model, ids))

    stranger = AutoTokenizer.from_pretrained(adapter)
    assert stranger.convert_tokens_to_ids(["<|tool|>", "wug"]) == [first, first + 1]
    stock = AutoModelForCausalLM.from_pretrained(base_dir)
    stock.resize_token_embeddings(len(stranger))
    oracle = peft.PeftModel.from_pretrained(stock, str(adapter)).eval()
    torch.testing.assert_close(ours, _logits(oracle, ids), rtol=1e-5, atol=1e-5)

    torch.testing.assert_close(_logits(base.load(adapter).model, ids), ours, rtol=0, atol=0)
    merge(base.directory, adapter, tmp_path / "merged")
    torch.testing.assert_close(
        ours, _logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval(), ids), rtol=1e-4, atol=1e-5
    )
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == first + 2


def test_gradients_are_those_of_the_rows_alone(base_dir):
    base = BaseModel(model=str(base_dir), base="fp32", arithmetic="fp32", new_tokens=TOKENS)
    tuned, first = _tuned(base), base.grown.first
    rows = {name: layer.rows for name, layer in tuned.layers.items() if hasattr(layer, "rows")}
    document = [5, first, 77, first + 1, 900, first, 31, 44]
    documents = make_documents([(document, [0, 1, 1, 1, 1, 1, 0, 1])])
    from tunesmith.models.attention import PACKED
    from tunesmith.models.load import attention

    with attention(tuned.model, PACKED):
        step_gradients(tuned.model, [make_pack(documents, (0,))])
    ours = {name: parameter.grad.clone() for name, parameter in rows.items()}

    # The same by autograd through whole tables.
    embed, head = tuned.model.get_input_embeddings(), tuned.model.get_output_embeddings()
    tables = {name: parameter.detach().clone().requires_grad_() for name, parameter in rows.items()}
    leaves = list(tables.values())
    table_VD = embed.base.weight.detach().index_copy(0, torch.arange(first, first + 2), leaves[0])
    head_VD = head.base.weight.detach().index_copy(0, torch.arange(first, first + 2), leaves[-1])
    hidden = tuned.model.model(inputs_embeds=table_VD[torch.tensor([document])]).last_hidden_state[0]
    where = torch.tensor([0, 1, 2, 3, 4, 6])
    logits = hidden[where] @ head_VD.T
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(document)[where + 1])
    for (name, grad), expected in zip(ours.items(), torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6, msg=name)
    frozen = [name for name, p in tuned.model.named_parameters() if p.grad is not None]
    assert all("lora" in name or name.endswith("rows") for name in frozen) and frozen
