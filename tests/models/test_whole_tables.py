"""``lora.modules_to_save``: PEFT is the oracle of logits, gradients and files; stock transformers of what is merged."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shared import with_own_head
from tiny_families import TINY
from tunesmith.engines.base import BaseModel
from tunesmith.errors import ExportError, ModelError, RecipeError
from tunesmith.export.gguf.lora import write_lora_gguf
from tunesmith.export.merge import merge
from tunesmith.layers.whole_table import WholeTable
from tunesmith.models.adapter import CONFIG, WEIGHTS
from tunesmith.models.attention import PACKED
from tunesmith.models.load import attention, load_model
from tunesmith.models.swap import add_lora, without_adapters
from tunesmith.models.whole_tables import add_whole_tables
from tunesmith.recipe import Lora, NewToken
from tunesmith.train.documents import make_documents, make_pack
from tunesmith.train.step import mean_loss, step_gradients

LORA = {"r": 4, "alpha": 8.0, "dropout": 0.0}
IDS = torch.tensor([[5, 11, 77, 6, 900, 1200, 31, 5]])
WHERE, PACK = torch.tensor([0, 1, 3, 6]), [0, 1, 1, 0, 1, 0, 0, 1]  # what is predicted


@pytest.fixture(scope="module")
def bases(tiny_dir, tmp_path_factory):
    """Head and embedding are one table, or two."""
    return {"tied": tiny_dir, "two": with_own_head(tiny_dir, tmp_path_factory.mktemp("untied") / "base")}


def _base(directory, **facts):
    return BaseModel(model=str(directory), base="fp32", arithmetic="fp32", **facts)


def _shake(layers):
    """Everything trained is no longer what it was."""
    generator = torch.Generator().manual_seed(1)
    for layer in layers.values():
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad and name != "lora_A":
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def _tuned(base, names):
    tuned = base.add_lora(**LORA, modules_to_save=names)
    _shake(tuned.layers)
    return tuned


@torch.no_grad()
def _logits(model, ids=IDS):
    return model(input_ids=ids).logits


@pytest.mark.parametrize("names", [["embed_tokens", "lm_head"], ["model.embed_tokens"], ["lm_head"]], ids=str)
@pytest.mark.parametrize("kind", ["tied", "two"])
def test_peft_computes_what_was_trained_and_has_its_gradients(bases, kind, names, tmp_path):
    base = _base(bases[kind])
    tuned = _tuned(base, names)
    ours = _logits(tuned.model)
    with without_adapters(tuned.layers):
        assert torch.equal(_logits(tuned.model), _logits(base.load().model))
    adapter = tuned.save_adapter(tmp_path / "adapter")
    oracle = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases[kind]), adapter, is_trainable=True)
    theirs = oracle.eval()(input_ids=IDS).logits
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(_logits(base.load(adapter).model), ours)

    documents = make_documents([(IDS[0].tolist(), PACK)])
    with attention(tuned.model, PACKED):
        pack = make_pack(documents, (0,))
        loss, _ = step_gradients(tuned.model, [pack, pack])  # the second is added to the first
        assert mean_loss(tuned.model.eval(), [pack]) == pytest.approx(loss, rel=1e-6)
    expected = torch.nn.functional.cross_entropy(theirs[0, WHERE], IDS[0, WHERE + 1])
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    grads = {n: p.grad for n, p in oracle.named_parameters() if p.grad is not None and "modules_to_save" in n}
    tables = {name: layer.rows.grad for name, layer in tuned.layers.items() if isinstance(layer, WholeTable)}
    assert len(tables) == len(grads) == (1 if kind == "tied" else len(names))
    for (name, grad), wanted in zip(tables.items(), grads.values(), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6, msg=name)

    record = merge(base.directory, adapter, tmp_path / "merged")
    assert len(record.tables) == len(tables)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.config.tie_word_embeddings == (kind == "tied")
    torch.testing.assert_close(_logits(merged), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying:UserWarning")
@pytest.mark.parametrize("names", [["embed_tokens", "lm_head"], ["embed_tokens"], ["lm_head"]], ids=str)
@pytest.mark.parametrize(("kind", "ensure"), [("tied", False), ("tied", True), ("two", False)])
def test_an_adapter_of_pefts_is_read_and_merged_and_gone_on_from(bases, kind, ensure, names, tmp_path):
    """By default PEFT takes apart what was one table; then the merged model has two."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=[*names], ensure_weight_tying=ensure)
    oracle = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(bases[kind]), config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in oracle.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    oracle.save_pretrained(tmp_path / "theirs")
    base = _base(bases[kind])
    loaded = base.load(tmp_path / "theirs")
    torch.testing.assert_close(_logits(loaded.model), _logits(oracle), rtol=1e-5, atol=1e-5)
    again = base.load(loaded.save_adapter(tmp_path / "ours"))
    assert torch.equal(_logits(again.model), _logits(loaded.model))
    for adapter in ("theirs", "ours"):
        merge(base.directory, tmp_path / adapter, tmp_path / f"merged {adapter}")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / f"merged {adapter}").eval()
        assert merged.config.tie_word_embeddings == (kind == "tied" and ensure)
        torch.testing.assert_close(_logits(merged), _logits(oracle), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "dtype"), [("llama", "bf16"), ("gemma3", "bf16"), ("gemma3", "fp16")])
def test_an_untrained_copy_computes_the_base_to_the_bit(family, dtype, tmp_path):
    """Where rows of the embedding are multiplied by a factor too."""
    AutoModelForCausalLM.from_config(TINY[family].config).to(torch.bfloat16).save_pretrained(tmp_path)
    model, ids = load_model(tmp_path, dtype), torch.tensor([[5, 9, 13, 200]])
    expected = _logits(model, ids)
    add_lora(model, Lora(r=2), 0)
    add_whole_tables(model, ["embed_tokens", "lm_head"])
    assert torch.equal(_logits(model, ids), expected)
    pack = make_pack(make_documents([(ids[0].tolist(), [1] * 4)]), (0,))
    with attention(model, PACKED):
        by_loss = mean_loss(model, [pack])
    by_logits = torch.nn.functional.cross_entropy(expected[0, :-1].float(), ids[0, 1:])
    assert by_loss == pytest.approx(float(by_logits), rel=0.02)


def test_new_tokens_are_rows_of_whole_tables(bases, tmp_path):
    tokens = (NewToken(text="<|tool|>"),)
    tuned = _tuned(_base(bases["two"], new_tokens=tokens), ["embed_tokens", "lm_head"])
    first = tuned.base.grown.first
    assert [len(layer.rows) for layer in tuned.layers.values() if isinstance(layer, WholeTable)] == [first + 1] * 2
    adapter = tuned.save_adapter(tmp_path / "adapter")
    stock = AutoModelForCausalLM.from_pretrained(bases["two"])
    stock.resize_token_embeddings(first + 1)
    oracle = peft.PeftModel.from_pretrained(stock, adapter).eval()
    ids = torch.tensor([[5, first, 77]])
    torch.testing.assert_close(_logits(tuned.model, ids), _logits(oracle, ids), rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelError, match="names one of two tables"):
        _base(bases["two"], new_tokens=tokens).add_lora(**LORA, modules_to_save=["lm_head"])


@pytest.mark.parametrize(
    ("names", "facts", "error", "words"),
    [
        (["norm"], {}, RecipeError, "'norm' is no table .* norms stay frozen"),
        (["wte"], {}, ModelError, "llama has no wte"),
        (["lm_head"], {"base_head": "int8"}, ModelError, "embed_tokens is a FrozenEmbedding"),
    ],
)
def test_what_is_not_trained_whole(bases, names, facts, error, words):
    with pytest.raises(error, match=words):
        _base(bases["tied"], **facts).add_lora(**LORA, modules_to_save=names)


def test_a_head_with_a_bias_is_refused(bases):
    model = load_model(bases["two"], "fp32")
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(model.lm_head.weight)))
    with pytest.raises(ModelError, match="lm_head has a bias"):
        add_whole_tables(model, ["lm_head"])


def test_a_damaged_file_and_llama_cpps_adapters_are_refused(bases, tmp_path):
    base = _base(bases["tied"])
    adapter = _tuned(base, ["lm_head"]).save_adapter(tmp_path / "adapter")
    with pytest.raises(ExportError, match=r"llama.cpp's adapters hold no whole tables"):
        write_lora_gguf(adapter, bases["tied"], tmp_path / "lora.gguf")
    state = load_file(adapter / WEIGHTS)
    head = "base_model.model.lm_head.weight"
    save_file({**state, head: state[head] + 1.0}, adapter / WEIGHTS)
    with pytest.raises(ModelError, match="differ, but ensure_weight_tying says that they are one"):
        base.load(adapter)
    facts = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**facts, "ensure_weight_tying": False}))
    save_file({key: tensor for key, tensor in state.items() if key != head}, adapter / WEIGHTS)
    with pytest.raises(ModelError, match="names lm_head, and its file has no such weight"):
        merge(base.directory, adapter, tmp_path / "merged")
    save_file({**state, head: state[head][:-1].clone()}, adapter / WEIGHTS)
    with pytest.raises(ExportError, match="the base has shape"):
        merge(base.directory, adapter, tmp_path / "merged")
