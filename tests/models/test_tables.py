"""The embedding in host memory and the head in 8 bits: the same model, and the model with a rounded head."""

import pytest
import torch
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from tunesmith.engines.decode import StopRule, greedy
from tunesmith.engines.score import Scorer
from tunesmith.errors import ModelError
from tunesmith.kernels import sliced
from tunesmith.kernels.cross_entropy import linear_cross_entropy
from tunesmith.layers.embedding import FrozenEmbedding, HostEmbedding
from tunesmith.layers.int8 import Int8Embedding, Int8Head, Int8Table
from tunesmith.models.attention import PACKED
from tunesmith.models.fuse import fuse
from tunesmith.models.load import attention, load_model
from tunesmith.models.placement import Placement
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora
from tunesmith.train.documents import make_documents
from tunesmith.train.step import mean_loss, step_gradients, step_packs

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 96}
SHAPE |= {"num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.15, "pad_token_id": 0}


@pytest.fixture(scope="module", params=["untied", "tied"])
def directory(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tied":  # and its rows are scaled
        Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, sliding_window=8)).bfloat16().save_pretrained(folder)
    else:
        LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)).bfloat16().save_pretrained(folder)
    return folder


def _figures(model):
    """Dev loss, loss and gradients of a step, tokens and log-probabilities."""
    documents = make_documents([([5, 7, 9, 11, 13 + n], [0, 0, 1, 1, 1]) for n in range(3)])
    packs = step_packs(documents, [(0, 1, 2)], 64)
    prompts = [[5, 9, 3], [8, 2, 7, 4]]
    generated = [result.ids for result in greedy(model, prompts, StopRule(4, [0]), 2)]
    scores = [scored.logprob for scored in Scorer(model).continuation_logprobs([([5, 9, 3], [8, 2])])]
    layers = add_lora(model, Lora(r=2, dropout=0.0), 0)
    for layer in layers.values():
        layer.lora_B.data.normal_(generator=torch.Generator().manual_seed(1))
    fuse(model)
    with attention(model, PACKED):
        dev = mean_loss(model, packs)
        loss = step_gradients(model, packs)
    return (dev, loss, generated, scores), [layer.lora_A.grad for layer in layers.values()]


def _rounded(model, tied):
    """The stock model with a head of 8 bits' numbers in its head, and in its embedding where that shares it."""
    head = model.get_output_embeddings()
    table = Int8Table(head.weight.detach())
    if not tied:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    head.weight.data.copy_(table.rows(0, 96, torch.float32))
    return model


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("base", [None, "nf4"])
def test_an_embedding_in_host_memory_changes_no_number(directory, dtype, base):
    tied = "untied" not in directory.name
    kept = {"base_head": "int8"} if tied else {}
    model = load_model(directory, dtype, base, placement=Placement(embedding_on="host", **kept))
    held = model.get_input_embeddings()
    assert isinstance(held, FrozenEmbedding) and isinstance(held.rows, HostEmbedding)
    other = load_model(directory, dtype, base, placement=Placement(**kept))
    if tied:  # that has the embedding's own rows, and not those of the head
        other.set_input_embeddings(load_model(directory, dtype, base).get_input_embeddings())
    (figures, grads), (expected, expected_grads) = _figures(model), _figures(other)
    assert figures == expected and all(map(torch.equal, grads, expected_grads))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("base", [None, "nf4"])
def test_a_head_in_8_bits_is_a_stock_head_with_its_numbers(directory, dtype, base):
    tied = "untied" not in directory.name
    model = load_model(directory, dtype, base, placement=Placement(base_head="int8"))
    assert isinstance(model.get_output_embeddings(), Int8Head)
    assert isinstance(getattr(model.get_input_embeddings(), "rows", None), Int8Embedding) == tied
    other = _rounded(load_model(directory, dtype, base), tied)
    (figures, grads), (expected, expected_grads) = _figures(model), _figures(other)
    assert figures == expected and all(map(torch.equal, grads, expected_grads))


@pytest.mark.parametrize("in_fp16", [False, True])
@pytest.mark.parametrize("bias", [None, 0.5])
def test_a_head_in_slices_is_the_whole_head(in_fp16, bias, monkeypatch):
    monkeypatch.setattr(sliced, "SLICE", 40)  # of 96: three, the last shorter
    torch.manual_seed(0)
    table = Int8Table(torch.randn(96, 24))
    table.in_fp16 = in_fp16
    dense = table.rows(0, 96, torch.float32).clone()
    bias_V = None if bias is None else nn.Parameter(torch.full((96,), bias), requires_grad=False)
    x, target = torch.randn(5, 24), torch.randint(96, (5,))
    ours, stock, whole = (x.clone().requires_grad_() for _ in range(3))
    loss, correct = linear_cross_entropy(ours, table, target, bias_V=bias_V)
    expected, right = linear_cross_entropy(stock, dense, target, bias_V=bias_V)
    logits = Int8Head(table, bias_V)(whole)
    nn.functional.cross_entropy(logits, target, reduction="sum").backward()
    (loss + expected).backward()
    close = {"rtol": 1e-2, "atol": 1e-2} if in_fp16 else {}
    torch.testing.assert_close(loss, expected, **close)
    assert int(correct) == int(right)
    torch.testing.assert_close(logits, nn.functional.linear(x, dense, bias_V), **close)
    for grad in (ours.grad, whole.grad):
        torch.testing.assert_close(grad, stock.grad, **close)


def test_rows_of_a_table_are_within_half_a_step_and_bf16():
    torch.manual_seed(0)
    dense = torch.randn(70, 33)
    dense[3] = 0
    table = Int8Table(dense)
    rows = table.rows(2, 70, torch.float32).clone()
    step = dense[2:].abs().amax(1, keepdim=True) / 127
    assert ((rows - dense[2:]).abs() <= step / 2 + dense[2:].abs() / 256 + 1e-9).all()
    assert torch.equal(table.picked(torch.arange(2, 70)).float(), rows) and torch.equal(rows, rows.bfloat16().float())
    assert table.nbytes == 70 * (33 + 4)
    assert table.to(torch.bfloat16).scale_V1.dtype == torch.float32


def test_what_cannot_be_placed_is_refused(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).save_pretrained(tmp_path)
    for base in (None, "nf4"):
        with pytest.raises(ModelError, match=r"the same table, and a step reads all of it\nhint: add base_head: int8"):
            load_model(tmp_path, "fp32", base, placement=Placement(embedding_on="host"))
    with pytest.raises(ModelError, match="a weight holds NaN"):
        Int8Table(torch.full((2, 2), torch.nan))
