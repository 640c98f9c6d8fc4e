"""Oracle of what the files say: stock transformers, which loads them."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, PhiConfig

from tunesmith.checkpoints.facts import base_facts, model_key
from tunesmith.errors import ModelError

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
TEXT = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "max_position_embeddings": 77}
EYE = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}


def saved(directory, config, auto=AutoModelForCausalLM, **settings):
    """A random model of a configuration on disk, with further settings in its ``config.json``."""
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return directory


PROBE = """
import sys
from pathlib import Path
from tunesmith.checkpoints.content import model_at_hand
from tunesmith.checkpoints.facts import base_facts, model_hashes, model_key
directory = model_at_hand({directory!r})
print(model_key(directory), base_facts(directory).max_positions, len(model_hashes(directory)))
heavy = {{"torch", "transformers", "numpy", "huggingface_hub"}} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_directory_is_known_without_torch(tiny_dir):
    probe = [sys.executable, "-c", PROBE.format(directory=str(tiny_dir))]
    done = subprocess.run(probe, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    positions = AutoConfig.from_pretrained(tiny_dir).max_position_embeddings
    files = sum(file.is_file() for file in tiny_dir.iterdir())
    assert done.stdout.split() == [model_key(tiny_dir), str(positions), str(files)]


def test_facts_of_a_text_model_are_those_of_the_model_that_is_loaded(tmp_path):
    biased = base_facts(saved(tmp_path / "phi", PhiConfig(**SMALL, max_position_embeddings=50)))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "phi")
    assert biased.weights == sum(parameter.numel() for parameter in model.parameters())
    assert biased.nbytes == sum(parameter.nbytes for parameter in model.parameters())
    assert biased.head_bias and biased.own_head and biased.tied is False
    assert (biased.model_type, biased.multimodal, biased.max_positions, biased.scheme) == ("phi", False, 50, None)
    assert biased.architectures == ("PhiForCausalLM",)


def test_facts_of_a_multimodal_model_are_those_of_its_text(tmp_path):
    from transformers import AutoModelForImageTextToText

    config = Gemma3Config(text_config=TEXT, vision_config={**EYE, "patch_size": 14}, mm_tokens_per_image=4)
    settings = {"quantization_config": {"quant_method": "hqq", "modules_to_not_convert": ["lm_head"]}}
    facts = base_facts(saved(tmp_path, config, AutoModelForImageTextToText, **settings))
    assert facts.multimodal and (facts.model_type, facts.text_type) == ("gemma3", "gemma3_text")
    assert facts.max_positions == 77 and not facts.own_head and not facts.head_bias
    assert facts.scheme == "hqq"


def test_a_shard_that_is_not_there_is_named(tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(PhiConfig(**SMALL)).save_pretrained(tmp_path, max_shard_size="20kB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2 and base_facts(tmp_path).own_head
    shards[1].unlink()
    with pytest.raises(
        ModelError, match=f"1 of the {len(shards)} files that model.*json names are not there: {shards[1].name}"
    ):
        base_facts(tmp_path)
