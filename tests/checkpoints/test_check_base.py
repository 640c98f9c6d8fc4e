"""What is refused before the first stage, each with a way on."""

import re
from dataclasses import replace

import pytest

from tunesmith.checkpoints.check_base import check_base, check_lengths
from tunesmith.checkpoints.facts import base_facts
from tunesmith.checkpoints.quantized.schemes import Scheme
from tunesmith.errors import DataError, ModelError, RecipeError


@pytest.mark.parametrize(
    ("changes", "words", "hint"),
    [
        ({"scheme": "hqq"}, "quantised by hqq, which is not read", "16-bit original"),
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


@pytest.mark.parametrize("base", ["auto", "nf4"])
def test_a_base_that_comes_quantised_is_taken(tiny_dir, make_recipe, base):
    check_base(make_recipe({"base": base}), replace(base_facts(tiny_dir), scheme=Scheme(method="gptq", title="GPTQ")))


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


def test_a_budget_for_weights_that_have_no_more_bits(tiny_dir, make_recipe):
    scheme = Scheme(method="bitsandbytes", title="NF4", bits=4, is_nf4=True)
    with pytest.raises(RecipeError, match=r"base_budget: \+10%, but the weights of .* lie in NF4 already"):
        check_base(make_recipe({"base": "nf4", "base_budget": "+10%"}), replace(base_facts(tiny_dir), scheme=scheme))


def test_rows_beyond_the_models_positions_are_named(tiny_dir):
    facts = replace(base_facts(tiny_dir), max_positions=64)
    check_lengths({"a": 64, "b": 3}, facts)
    check_lengths({}, facts)
    check_lengths({"a": 10**6}, replace(facts, max_positions=None))
    with pytest.raises(DataError, match=r"1 rows are longer than the 64 tokens that .*: b \(65\)") as caught:
        check_lengths({"a": 64, "b": 65}, facts)
    assert "train.max_length: 64" in caught.value.hint
