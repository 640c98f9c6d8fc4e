"""New tokens: their rows are trained and no others, and everybody reads what was trained."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared import with_own_head
from tunesmith.engines.base import BaseModel
from tunesmith.export.merge import merge
from tunesmith.layers.new_rows import NewRows, RowsEmbedding, RowsHead
from tunesmith.models.attention import PACKED
from tunesmith.models.load import attention, decoder
from tunesmith.models.swap import without_adapters
from tunesmith.recipe import NewToken
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import step_gradients

TOKENS = (NewToken(text="<|tool|>"), NewToken(text="wug", special=False))
LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0}


@pytest.fixture(params=["tied", "own head"])
def base_dir(request, tiny_dir, tmp_path):
    """The tiny model, and the same with a head of its own."""
    return tiny_dir if request.param == "tied" else with_own_head(tiny_dir, tmp_path / "untied")


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
    rows = {name: layer.rows for name, layer in tuned.layers.items() if isinstance(layer, NewRows)}
    document = [5, first, 77, first + 1, 900, first, 31, 44]
    documents = make_documents([(document, [0, 1, 1, 1, 1, 1, 0, 1])])
    with attention(tuned.model, PACKED):
        step_gradients(tuned.model, [make_pack(documents, (0,))])

    # The same by autograd through whole tables.
    embedding, head = tuned.model.get_input_embeddings(), tuned.model.get_output_embeddings()
    assert isinstance(embedding, RowsEmbedding) and isinstance(head, RowsHead)
    leaves = [parameter.detach().clone().requires_grad_() for parameter in rows.values()]
    new = torch.arange(first, first + 2)
    table_VD = embedding.base.get_parameter("weight").detach().index_copy(0, new, leaves[0])
    head_VD = head.weight.detach().index_copy(0, new, leaves[-1])
    hidden = decoder(tuned.model)(inputs_embeds=table_VD[torch.tensor([document])]).last_hidden_state[0]
    where = torch.tensor([0, 1, 2, 3, 4, 6])
    loss = torch.nn.functional.cross_entropy(hidden[where] @ head_VD.T, torch.tensor(document)[where + 1])
    for (name, parameter), expected in zip(rows.items(), torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6, msg=name)
    trained = [name for name, parameter in tuned.model.named_parameters() if parameter.grad is not None]
    assert trained and all("lora_" in name or name.endswith(".rows") for name in trained)
