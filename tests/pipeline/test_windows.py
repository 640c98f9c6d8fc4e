"""Rows beyond a sliding window are counted, and said to be so."""

from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig

from tiny_families import SMALL
from tunesmith.pipeline.windows import Window


def _note(config, tmp_path, tokens):
    config.save_pretrained(tmp_path)
    return Window(tmp_path).note(tokens)


def test_a_row_beyond_the_window_is_told_with_its_layers(tmp_path):
    mixed = Gemma3TextConfig(
        **{**SMALL, "num_hidden_layers": 6}, sliding_window=64, layer_types=["sliding_attention"] * 5 + ["full_attention"]
    )
    assert _note(mixed, tmp_path, 64) == []
    expected = "longer than the model's sliding window of 64 tokens: 5 of 6 layers see no further, the other 1 do"
    assert _note(mixed, tmp_path, 65) == [expected]
    assert "comes through layers alone" in _note(MistralConfig(**SMALL, sliding_window=8), tmp_path, 65)[0]
    assert _note(LlamaConfig(**SMALL), tmp_path, 10**6) == []
