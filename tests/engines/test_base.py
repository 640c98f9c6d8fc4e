"""A base opened once: by recipe or by name, with an adapter whose facts are its own."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from shared import toy_rows
from tunesmith.engines.base import open_base
from tunesmith.engines.open import context_for, open_in_process
from tunesmith.errors import DataError, ModelError, RecipeError, RunError, TunesmithError

IDS_1T = torch.arange(20, 60)[None]


def _logits(model):
    with torch.no_grad():
        return model(input_ids=IDS_1T).logits


def _peft_adapter(tiny_dir, directory, **changes):
    """A drawn adapter as PEFT itself writes it."""
    torch.manual_seed(3)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **changes}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_dir), LoraConfig(**settings))
    model.save_pretrained(directory)
    return _logits(model.eval())


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"use_dora": True, "target_modules": "all-linear", "r": 2}])
def test_facts_of_an_adapter_are_its_own(tiny_dir, make_recipe, tmp_path, changes):
    """The recipe says rank 4, alpha 8, every layer; the adapter came from elsewhere and says otherwise."""
    expected = _peft_adapter(tiny_dir, tmp_path / "adapter", **changes)
    loaded = open_base(make_recipe()).load(tmp_path / "adapter")
    torch.testing.assert_close(_logits(loaded.model), expected, rtol=1e-4, atol=1e-4)
    merged = open_in_process(loaded.base, tmp_path / "adapter", 2)
    torch.testing.assert_close(_logits(merged.model), expected, rtol=1e-4, atol=1e-4)


def test_what_is_saved_is_what_peft_reads(tiny_dir, tmp_path):
    loaded = open_base(tiny_dir, base="fp32").add_lora(r=4, alpha=8, dropout=0.0, seed=5)
    torch.testing.assert_close(_logits(loaded.model), _logits(loaded.base.load().model), rtol=0, atol=0)
    for layer in loaded.layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    target = loaded.save_adapter(tmp_path / "adapter")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_dir), target).eval()
    torch.testing.assert_close(_logits(loaded.model.eval()), _logits(peft), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(_logits(loaded.base.load(target).model), _logits(loaded.model), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "shape", "kind", "message"),
    [
        ("blk.0.attn_q.weight", (2, 64), GGMLQuantizationType.IQ4_NL, "attn_q.weight is IQ4_NL, which is not trained on"),
        ("blk.0.ffn_up_exps.weight", (3, 2, 64), GGMLQuantizationType.Q8_0, "ffn_up_exps.weight holds the weights of experts"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_refused_before_it_is_converted(tmp_path, monkeypatch, name, shape, kind, message):
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    block, size = GGML_QUANT_SIZES[kind]
    writer.add_tensor(name, np.zeros((*shape[:-1], shape[-1] // block * size), np.uint8), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    monkeypatch.setattr("tunesmith.engines.base.find_model", lambda *_: pytest.fail("converted"))
    with pytest.raises(ModelError, match=message):
        assert open_base(str(tmp_path / "x.gguf"), base="gguf").source


def test_refusals_are_ours_and_nothing_is_lost(tiny_dir, tmp_path):
    base = open_base(str(tiny_dir), base="fp32")
    with pytest.raises(RecipeError, match=r"add_lora: unknown key rank\nhint: known keys there: alpha"):
        base.add_lora(rank=4)
    with pytest.raises(RunError, match="no adapter to save"):
        base.load().save_adapter(tmp_path / "adapter")
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(RunError, match="holds files that are no adapter"):
        base.add_lora(r=2).save_adapter(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "all of it"
    with pytest.raises(TunesmithError, match="no such model"):
        _ = open_base(tmp_path / "nowhere").renderer


def test_rows_are_rendered_by_number(tiny_dir):
    base, rows = open_base(tiny_dir), toy_rows()
    assert base.render(rows[:3])[2].ids == base.renderer.render(rows[2]["messages"]).ids
    with pytest.raises(DataError, match="row 2: no token is supervised"):
        base.render([rows[0], {"messages": rows[1]["messages"][:1]}])


def test_settings_of_the_recipe_arrive(make_recipe, tmp_path):
    template = tmp_path / "own.jinja"
    template.write_text("{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}")
    with_file = make_recipe({"chat.template": str(template), "base": "nf4", "train.compute": "fp32"})
    base = open_base(with_file)
    assert base.renderer.template == template.read_text() and (base.storage, base.compute) == ("nf4", "fp32")
    frozen = template.read_text().replace(": ", " ")
    assert open_base(with_file, frozen).renderer.template == frozen  # what a run directory keeps comes before the file
    assert base.answering_key != open_base(make_recipe({"train.compute": "fp32", "base": "auto"})).answering_key


def test_context_holds_the_longest_prompt(tiny_dir):
    renderer = open_base(tiny_dir).renderer
    prompts = [[{"role": "user", "content": "word " * count}] for count in (3, 50, 7)]
    assert context_for(renderer, prompts, 12) == len(renderer.prompt_ids(prompts[1])) + 12 + 64
