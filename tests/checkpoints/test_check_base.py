"""What is refused before the first stage, each with a way on."""

import re
from dataclasses import replace

import pytest

from tunesmith.checkpoints.check_base import check_base, check_lengths
from tunesmith.checkpoints.facts import base_facts
from tunesmith.errors import DataError, ModelError, RecipeError

NF4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "load_in_4bit": True}


@pytest.mark.parametrize(
    ("changes", "words", "hint"),
    [
        ({"quant_method": "mxfp4"}, "quantised by mxfp4", r"Mxfp4Config\(dequantize=True\)"),
        ({"quant_method": "fp8"}, "quantised by fp8", r"FineGrainedFP8Config\(dequantize=True\)"),
        ({"quant_method": "gptq"}, "quantised by gptq", "16-bit original"),
        ({"quant_method": "bitsandbytes", "quant_settings": {"load_in_8bit": True}}, "quantised by bitsandbytes", "16-bit"),
        ({"quant_method": "bitsandbytes", "quant_settings": NF4}, "lie in NF4, and the recipe says base: auto", "base: nf4"),
        ({"encoder_decoder": True}, "answers with another", "families.md"),
        ({"model_type": "llava"}, r"multimodal, and its text model \(llama\)", "known: gemma3"),
        ({"text_type": "gpt2", "model_type": "gpt2"}, "Conv1D", "families.md"),
    ],
)
def test_a_base_that_cannot_be_trained(tiny_dir, make_recipe, changes, words, hint):
    recipe, facts = make_recipe({"base": "auto"}), base_facts(tiny_dir)
    check_base(recipe, facts)
    with pytest.raises(ModelError, match=words) as caught:
        check_base(recipe, replace(facts, **changes))
    assert re.search(hint, caught.value.hint)


def test_a_base_in_nf4_is_taken_as_it_is(tiny_dir, make_recipe):
    check_base(make_recipe({"base": "nf4"}), replace(base_facts(tiny_dir), quant_method="bitsandbytes", quant_settings=NF4))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"export.lora_gguf": True, "lora.use_dora": True}, "export.lora_gguf with lora.use_dora"),
        ({"export.num_ctx": 100_000_000}, "export.num_ctx: 100,000,000, the model takes"),
    ],
)
def test_a_recipe_that_asks_for_what_cannot_be(tiny_dir, make_recipe, changes, words):
    with pytest.raises(RecipeError, match=words):
        check_base(make_recipe(changes), base_facts(tiny_dir))


def test_rows_beyond_the_models_positions_are_named(tiny_dir):
    facts = replace(base_facts(tiny_dir), max_positions=64)
    check_lengths({"a": 64, "b": 3}, facts)
    check_lengths({}, facts)
    check_lengths({"a": 10**6}, replace(facts, max_positions=None))
    with pytest.raises(DataError, match=r"1 rows are longer than the 64 tokens that .*: b \(65\)") as caught:
        check_lengths({"a": 64, "b": 65}, facts)
    assert "train.max_length: 64" in caught.value.hint
