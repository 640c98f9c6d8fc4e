"""The estimate of a step on a CPU against a count of the storages of a real one."""

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config

from memory.cpu_trace import trace
from tunesmith.memory.cpu_layer import Blocks
from tunesmith.memory.dials import Dials
from tunesmith.memory.estimate import estimate
from tunesmith.memory.shape import Shape, shape_of

SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 6}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 1024}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=32),
}
SHORT = {"base": "bf16", "compute": "bf16", "r": 8, "dropout": 0.0, "tokens": 256, "rows": 64, "documents": 1}
SHORT |= {"recompute": "none"}
WIDE = {"base": "fp32", "compute": "fp32"}
CASES = [
    ("llama", {"dropout": 0.05}),
    ("llama", {**WIDE, "recompute": "attention"}),
    ("llama", {"base": "nf4", "recompute": "layer"}),
    ("llama", {"tokens": 768}),
    ("llama", {"tokens": 768, "recompute": "layer", "mlp_tile": 128}),
    ("llama", {"tokens": 768, "recompute": "layer", "mlp_tile": 128, **WIDE, "dropout": 0.05}),
    ("gemma3", {"tokens": 512, "recompute": "layer", "mlp_tile": 200}),
    ("qwen3", {"base": "nf4", "compute": "fp32", "documents": 8}),
    ("gemma3", {"recompute": "mlp"}),
    ("llama", {"qat": True}),
    ("gemma3", {"qat": True, **WIDE, "dropout": 0.05, "recompute": "layer"}),
]


@pytest.mark.parametrize(("name", "changed"), CASES, ids=lambda part: part if isinstance(part, str) else "-".join(part))
def test_the_estimate_is_what_a_step_has_alive(name, changed, tmp_path):
    case = {**SHORT, **changed}
    traced = trace(CONFIGS[name], tmp_path, case)
    shape = shape_of(traced["config"])
    assert isinstance(shape, Shape)
    longest = case["tokens"] // case.pop("documents")
    found = estimate(shape, Dials(**case, longest=longest, device="cpu"))
    assert found.peak == pytest.approx(traced["peak"], rel=0.02), (found.where, found.terms)


@pytest.mark.parametrize(
    ("tokens", "longest", "window", "kept", "largest"),
    [
        (512, 512, None, 64 * 64 * 36, 64 * 512),  # of eight blocks, each of one to eight times 64 keys
        (512, 32, None, 512 * 128, 128 * 128),  # four documents a block
        (512, 512, 64, 64 * (64 + 7 * 127), 64 * 127),
        (1024, 1024, None, 0, 64 * 1024),  # long: made again
    ],
)
def test_probabilities_of_short_documents_are_kept(tokens, longest, window, kept, largest):
    found = Blocks.of(tokens, longest, window)
    assert (found.kept, found.largest) == (kept, largest)
