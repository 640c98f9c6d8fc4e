"""Shapes of real models, for measurements on random weights.

A file of its own, since the kernels are measured without transformers.
"""

import json
from importlib.resources import files
from typing import Any

KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "tie_word_embeddings"),
)
PUBLISHED = json.loads((files("tunesmith.memory") / "sizes.json").read_text(encoding="utf-8"))["sizes"]
SHAPES: dict[str, dict[str, Any]] = {
    name: {key: PUBLISHED[name]["config"][key] for key in KEYS} for name in ("1B", "8B", "27B")
}
DRIFT_SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
}
SMALL_SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
