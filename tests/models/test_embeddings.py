"""Oracles: the stock scaled embedding, and bitsandbytes' dequantised rows."""

import json
import shutil

import pytest
import torch
from torch import nn
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextScaledWordEmbedding

from tunesmith.errors import ModelError
from tunesmith.layers.embedding import FrozenEmbedding, HostEmbedding, known_ids, scale_of
from tunesmith.models.attention import PACKED
from tunesmith.models.embeddings import hold_table, place_of
from tunesmith.models.load import attention, decoder, load_model
from tunesmith.models.placement import Placement
from tunesmith.train.documents import make_documents
from tunesmith.train.step import pack_loss, step_packs

S, F = "sliding_attention", "full_attention"
IDS = torch.tensor([[2, 5, 9, 33, 70], [3, 3, 8, 95, 4]])
TABLE = "model.embed_tokens_per_layer"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A text model whose table has rows of 64: bitsandbytes quantises flat, which is by the row there."""
    torch.manual_seed(0)
    config = Gemma4TextConfig(
        vocab_size=96,
        vocab_size_per_layer_input=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        layer_types=[S, F] * 2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        global_head_dim=16,
        hidden_size_per_layer_input=16,
        num_kv_shared_layers=2,
        pad_token_id=0,
        initializer_range=0.15,
    )
    directory = tmp_path_factory.mktemp("ple")
    Gemma4ForCausalLM(config).save_pretrained(directory)
    return directory


def _logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_from_host_memory_are_those_of_the_stock_embedding(dtype):
    torch.manual_seed(0)
    stock = Gemma4TextScaledWordEmbedding(96, 48, padding_idx=0, embed_scale=7.3).to(dtype)
    ours = FrozenEmbedding(HostEmbedding(stock.weight.detach()), scale_of(stock, "x"))
    assert torch.equal(ours(IDS), stock(IDS)) and ours(IDS).dtype == dtype
    plain = FrozenEmbedding(HostEmbedding(stock.weight.detach()), scale_of(nn.Embedding(2, 3), "x"))
    assert torch.equal(plain(IDS), stock.weight[IDS])


def test_the_table_stays_where_it_is_when_the_model_goes(directory):
    held = FrozenEmbedding(HostEmbedding(torch.randn(9, 4)), torch.tensor(2.0)).to("meta", torch.float16)
    assert held.scale is not None and held.scale.is_meta
    assert held.rows.weight.device.type == "cpu" and held.rows.weight.dtype == torch.float32
    model = load_model(directory, "bf16", device="meta")  # any device but the CPU: the table is left out of the move
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert {name for name, t in tensors if not t.is_meta} == {f"{TABLE}.rows.weight"}


def test_a_training_reads_no_ids_off_the_device(directory, monkeypatch):
    """The meta device stands in for a GPU: nothing can be read off it."""
    model = load_model(directory, "bf16", device="meta")
    (pack,) = step_packs(make_documents([([5, 7, 9, 11], [0, 1, 1, 1])]), [(0,)], 64)
    monkeypatch.setattr("tunesmith.train.step.linear_cross_entropy", lambda hidden_ND, *_: (hidden_ND.sum(), None))
    with attention(model, PACKED):
        loss, _ = pack_loss(model, pack)
        assert loss.is_meta
        with pytest.raises(NotImplementedError, match="meta"):
            decoder(model)(input_ids=pack.ids_1T.to("meta"), spans=pack.spans, use_cache=False)
    table = HostEmbedding(torch.randn(9, 4))
    with known_ids(table, torch.tensor([3, 1])):
        assert torch.equal(table(torch.tensor([8, 8])), table.weight[[3, 1]])
        assert torch.equal(table(torch.tensor([8])), table.weight[[8]])  # of another pass
    assert torch.equal(table(torch.tensor([8, 8])), table.weight[[8, 8]])


@pytest.mark.parametrize("base", [None, "nf4"])
def test_a_model_with_its_table_in_host_memory_is_the_same_model(directory, base):
    expected = _logits(load_model(directory, "fp32", base))
    model = load_model(directory, "fp32", base, placement=Placement(per_layer_embeddings="cpu"))
    assert torch.equal(_logits(model), expected)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("base", [None, "nf4"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_table_in_nf4_has_the_rows_of_bitsandbytes(directory, base, dtype):
    functional = pytest.importorskip("bitsandbytes.functional")
    expected = load_model(directory, dtype, base)
    table = load_model(directory, "fp32").get_submodule(TABLE).get_parameter("weight").detach()
    rounded = functional.dequantize_4bit(*functional.quantize_4bit(table, quant_type="nf4", compress_statistics=True))
    expected.get_submodule(TABLE).get_parameter("weight").data = rounded.to(expected.dtype)
    model = load_model(directory, dtype, base, placement=Placement(per_layer_embeddings="nf4"))
    assert torch.equal(model.get_submodule(TABLE)(IDS), expected.get_submodule(TABLE)(IDS))
    assert torch.equal(_logits(model), _logits(expected))


def test_where_the_table_lies_when_the_recipe_leaves_it_open():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert [place_of("auto", table, device) for table in (None, TABLE) for device in (cpu, gpu)] == ["model"] * 3 + ["cpu"]
    assert [place_of(asked, TABLE, gpu) for asked in ("model", "cpu", "nf4")] == ["model", "cpu", "nf4"]


def test_what_cannot_be_held_elsewhere_is_refused(tmp_path):
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    for base in (None, "nf4"):
        with pytest.raises(ModelError, match="per_layer_embeddings: nf4, but the model has no table"):
            load_model(tmp_path, "fp32", base, placement=Placement(per_layer_embeddings="nf4"))

    class Odd(nn.Embedding):
        pass

    table = torch.randn(32, 16)
    tied = nn.ModuleDict({"table": nn.Embedding(32, 16), "head": nn.Linear(16, 32, bias=False)})
    tied["head"].weight = tied["table"].weight
    for model, name, given, message in [
        (tied, "table", table, "the output head shares this table"),
        (nn.ModuleDict({"odd": Odd(32, 16)}), "odd", table, "its embedding is a Odd"),
        (nn.ModuleDict({"x": nn.Embedding(32, 16)}), "x", table[1:], r"x: shape \(31, 16\), expected \(32, 16\)"),
        (nn.ModuleDict({"x": nn.Embedding(32, 16)}), "x", table * torch.nan, "x: a weight holds NaN"),
    ]:
        with pytest.raises(ModelError, match=message):
            hold_table(model, name, given, torch.float32, "nf4")


@pytest.mark.parametrize("base", [None, "nf4"])
def test_weights_with_a_table_under_a_configuration_without_one_are_refused(directory, tmp_path, base):
    shutil.copytree(directory, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size_per_layer_input": 0}))
    with pytest.raises(ModelError, match=rf"{TABLE}: no such module in the model that config.json describes.*\nhint: "):
        load_model(tmp_path / "base", "fp32", base, placement=Placement(per_layer_embeddings="cpu"))
    with pytest.raises(ModelError, match="x: a Linear in the model"):
        hold_table(nn.ModuleDict({"x": nn.Linear(16, 32)}), "x", torch.randn(32, 16), torch.float32, "cpu")


def test_any_table_can_be_held_and_the_bytes_are_told(talk):
    table = torch.randn(4096, 250)  # rows are filled up to 256
    for place, said in [("cpu", "x stays in host memory, 2.0 MB less"), ("nf4", "kB instead of 2.0 MB")]:
        model = nn.ModuleDict({"x": nn.Embedding(4096, 250, device="meta")})
        hold_table(model, "x", table, torch.bfloat16, place)
        assert said in talk()
        rows = model["x"](IDS)
        assert rows.dtype == torch.bfloat16 and torch.nn.functional.cosine_similarity(rows.float(), table[IDS], -1).min() > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("base", [None, "nf4"])
def test_on_a_gpu_the_table_stays_in_host_memory(directory, base):
    expected = _logits(load_model(directory, "fp32", base))
    model = load_model(directory, "fp32", base, device="cuda")
    assert model.get_submodule(TABLE).get_submodule("rows").get_parameter("weight").device.type == "cpu"
    with torch.no_grad():
        torch.testing.assert_close(model(IDS.cuda()).logits.cpu(), expected, rtol=1e-3, atol=1e-3)
