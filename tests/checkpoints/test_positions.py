"""More positions: what the configuration then says, what is refused, and that every reader of the directory sees it."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from shared import write_recipe
from tunesmith.checkpoints.facts import base_facts
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.convert import convert
from tunesmith.checkpoints.positions import longer, with_positions
from tunesmith.engines.base import open_base
from tunesmith.errors import ModelError, RecipeError
from tunesmith.export.companions import copy_companions
from tunesmith.models.load import load_model
from tunesmith.recipe import load_recipe

PLAIN = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 1000}
NEW = {**PLAIN, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
OLD = {**PLAIN, "rope_theta": 1e4, "rope_scaling": None}
RAISED = 1e4 * 4 ** (64 / 62)


@pytest.mark.parametrize(
    ("config", "where"),
    [
        (NEW, lambda found: found["rope_parameters"]["rope_theta"]),
        (OLD, lambda found: found["rope_theta"]),
        ({**OLD, "head_dim": 128, "partial_rotary_factor": 0.5}, lambda found: found["rope_theta"]),
        ({"model_type": "gemma3", "text_config": NEW}, lambda found: found["text_config"]["rope_parameters"]["rope_theta"]),
        (
            {**PLAIN, "rope_parameters": {"full_attention": NEW["rope_parameters"], "sliding_attention": {"rope_theta": 5.0}}},
            lambda found: found["rope_parameters"]["full_attention"]["rope_theta"],
        ),
    ],
)
def test_the_slowest_pair_turns_as_far_as_before(config, where):
    found, before, after = longer(config, 4000, "auto")
    assert (before, after, where(found)) == (1e4, pytest.approx(RAISED), after)
    assert 4000 / after ** (62 / 64) == pytest.approx(1000 / before ** (62 / 64))
    assert (found.get("text_config") or found)["max_position_embeddings"] == 4000
    assert where(longer(config, 4000, 123.0)[0]) == 123.0
    assert found.get("rope_parameters", {}).get("sliding_attention") in (None, {"rope_theta": 5.0})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**NEW, "max_position_embeddings": 4000}, "llama has 4,000 positions already"),
        ({**PLAIN, "rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "scaled by llama3 already"),
        ({**OLD, "rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled by linear already"),
        (PLAIN, "names no rope_theta"),
        ({**NEW, "max_position_embeddings": None}, "names no number of positions"),
    ],
)
def test_positions_that_cannot_be_changed_are_refused(config, words):
    with pytest.raises(ModelError, match=words):
        longer(config, 4000, "auto")


def test_what_is_trained_is_what_is_loaded_merged_and_converted(tiny_dir, tmp_path, talk):
    recipe = load_recipe(write_recipe(tmp_path, tiny_dir, {"max_position_embeddings": 4096, "rope_theta": 50000.0}))
    directory = open_base(recipe).directory
    assert "4,096 positions in the place of 1,024, rope_theta 50,000 in the place of 10,000" in talk()
    assert base_facts(directory).max_positions == 4096 and open_base(recipe).directory == directory != tiny_dir
    facts = json.loads((tiny_dir / "config.json").read_text())
    facts["max_position_embeddings"], facts["rope_parameters"]["rope_theta"] = 4096, 50000.0
    stock = AutoModelForCausalLM.from_pretrained(tiny_dir, config=type(load_model(tiny_dir, "fp32").config)(**facts))
    ids = torch.arange(5, 45)[None]
    assert torch.equal(load_model(directory, "fp32")(ids).logits, stock(ids).logits)
    assert not torch.equal(load_model(tiny_dir, "fp32")(ids).logits, stock(ids).logits)
    copy_companions(directory, tmp_path, keep_towers=False)
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_theta"] == 50000.0
    convert(directory, tmp_path / "x.gguf")
    reader = GgufReader(tmp_path / "x.gguf")
    assert (reader.value("llama.rope.freq_base"), reader.value("llama.context_length")) == (50000.0, 4096)


def test_a_copy_whose_files_are_gone_is_made_again(tiny_dir, tmp_path):
    directory = with_positions(tiny_dir, 2048)
    weights = directory / "model.safetensors"
    weights.unlink()
    weights.symlink_to(tmp_path / "gone")
    assert with_positions(tiny_dir, 2048) == directory and weights.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_theta": 5e4}, "read with max_position_embeddings"),
        ({"max_position_embeddings": 4096, "export.lora_gguf": True, "model": "x.gguf"}, "the base of the adapter is the file"),
    ],
)
def test_recipes_that_could_not_be_served_as_trained_are_refused(make_recipe, changes, words, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(RecipeError, match=words):
        make_recipe(changes)
