"""What llama.cpp computes otherwise is said: of no published model without reason, of a changed one with the number.

That the records are llama.cpp's is held by the GGUF cells of ``test_families.py``: a tiny model with these settings fails
there, and with settings that give no line here it passes.
"""

import json
import shutil

import pytest
from test_families import FIXED
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from shared import write_recipe
from tiny_families import TINY
from tunesmith.models.llama_cpp_limits import llama_cpp_differs
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.export import dry_run
from tunesmith.rundir.records.export import Commands

S, F = "sliding_attention", "full_attention"
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
LONGROPE |= {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48, "factor": 32.0}
ROPE = {F: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, S: {"rope_type": "default", "rope_theta": 1e4}}
GEMMA3 = {"hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128, "query_pre_attn_scalar": 168}
GEMMA3 |= {"num_hidden_layers": 62, "sliding_window": 1024, "rope_parameters": ROPE}
PUBLISHED = {
    "Llama 3.2 1B": LlamaConfig(num_hidden_layers=16),
    "Mistral 7B v0.1": MistralConfig(num_hidden_layers=32, sliding_window=4096),
    "Qwen2.5 7B": Qwen2Config(num_hidden_layers=28, sliding_window=131072, use_sliding_window=False, max_window_layers=28),
    "Phi-4-mini": Phi3Config(
        num_hidden_layers=32,
        hidden_size=3072,
        num_attention_heads=24,
        num_key_value_heads=8,
        sliding_window=262144,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters=LONGROPE,
    ),
    "SmolLM3 3B": SmolLM3Config(num_hidden_layers=36, no_rope_layer_interval=4, use_sliding_window=False),
    "Gemma 2 27B": Gemma2Config(
        num_hidden_layers=46, hidden_size=4608, num_attention_heads=32, head_dim=128, query_pre_attn_scalar=144
    ),
    "Gemma 3 27B": Gemma3TextConfig(**GEMMA3),
    "gpt-oss 20B": GptOssConfig(num_hidden_layers=24),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_in_the_usual_context_has_no_line(name):
    assert llama_cpp_differs(PUBLISHED[name], 4096) == []


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - {"Mistral 7B v0.1", "Phi-4-mini"}))
def test_nor_in_a_long_one(name):
    assert llama_cpp_differs(PUBLISHED[name], 131072) == []


@pytest.mark.parametrize("name", FIXED)
def test_a_tiny_model_that_llama_cpp_computes_otherwise_has_a_line_and_one_that_it_computes_has_none(name):
    """The settings that the GGUF cells of the matrix fail and pass with, at the length of their documents."""
    config = TINY[name].config
    assert llama_cpp_differs(config, 52)
    assert llama_cpp_differs(type(config)(**config.to_dict() | FIXED[name]), 52) == []


@pytest.mark.parametrize("name", sorted(TINY.keys() - FIXED.keys()))
def test_what_passes_as_it_is_has_no_line(name):
    assert llama_cpp_differs(TINY[name].config, 52) == []


def test_a_window_counts_once_more_than_it_is_served():
    (line,) = llama_cpp_differs(PUBLISHED["Mistral 7B v0.1"], 4097)
    assert "sliding_window is 4,096 in 32 of 32 layers and 4,097 tokens are served" in line
    assert "Parity's prompts are shorter than a long window" in line and "export.num_ctx of at most 4,096" in line
    config = Qwen2Config(num_hidden_layers=28, sliding_window=1024, use_sliding_window=True, max_window_layers=21)
    assert "1,024 in 7 of 28 layers" in llama_cpp_differs(config, 2048)[0]
    config = Qwen3MoeConfig(num_hidden_layers=4, sliding_window=1024, use_sliding_window=True)  # without layer_types: in all
    assert "1,024 in 4 of 4 layers" in llama_cpp_differs(config, 2048)[0]


def test_long_factors_count_from_the_context_that_llama_cpp_rounds_up_to():
    (line,) = llama_cpp_differs(PUBLISHED["Phi-4-mini"], 4097)
    assert "a context of 4,352 tokens is more than original_max_position_embeddings, 4,096" in line
    assert "for every prompt, short ones too" in line and "export.num_ctx of at most 4,096" in line


def test_fixed_layers_and_scales_are_told_with_their_numbers():
    (line,) = llama_cpp_differs(SmolLM3Config(num_hidden_layers=36, no_rope_layers=[1] * 36), 64)
    assert "in 9 of 36 layers, first in layer 3" in line
    (line,) = llama_cpp_differs(Gemma3TextConfig(**GEMMA3 | {"num_hidden_layers": 60}), 64)
    assert "square root of 128, head_dim with 60 layers; query_pre_attn_scalar is 168" in line
    (line,) = llama_cpp_differs(Gemma3TextConfig(**GEMMA3 | {"query_pre_attn_scalar": 128}), 64)
    assert "square root of 168, hidden_size / num_attention_heads with 62 layers; query_pre_attn_scalar is 128" in line
    # the kind of a layer says its frequencies too, so it matters below the window; where it says none, above alone
    (line,) = llama_cpp_differs(Gemma3TextConfig(**GEMMA3, layer_types=[S, F] * 31), 64)
    assert "in 21 of 62 layers, first in layer 1" in line
    config = Gemma2Config(num_hidden_layers=4, layer_types=[F, S] * 2, sliding_window=1024)
    assert llama_cpp_differs(config, 1024) == [] and "in 4 of 4 layers" in llama_cpp_differs(config, 1025)[0]


def test_an_export_says_it_before_and_after_and_writes_it_down(tiny_dir, tmp_path, talk):
    base = tmp_path / "base"
    shutil.copytree(tiny_dir, base)
    config = json.loads((base / "config.json").read_text())
    changes = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 300}
    (base / "config.json").write_text(json.dumps(config | changes))
    run = api.open_run(write_recipe(tmp_path, base, {"export.gguf": ["F16"]}), tmp_path / "run")
    line = "sliding_window is 300 in 2 of 2 layers and 1,024 tokens are served"
    dry_run(run)
    assert line in talk()
    for stage in (api.data, api.render, api.train):
        stage(run)
    talk()
    api.export(run)
    assert line in talk()
    (told,) = Commands.read(run.export / "commands.json").differs
    card = (run.export / "merged" / "README.md").read_text()
    assert line in told and told[1:] in card.split("## llama.cpp\n")[1]
    assert "## llama.cpp\n" not in (run.adapter / "README.md").read_text()  # which no GGUF is written of
