"""Tiny random checkpoints, one per variant of a family, and what is expected of each.

A row is a configuration of stock transformers that has every trait of its family: grouped-query attention, windows shorter
than the documents, soft-caps low enough to bend, layers that share keys, layers whose keys are their values. Weights are
drawn with a spread of 0.1 or more; at the usual 0.02 a tiny model hardly depends on its attention, and a test of it would
hold anything. Norms and biases are moved from the ones and zeros of the constructor.

``DOCUMENTS`` are four documents of which three begin with the same 22 tokens, more than any window here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Gemma4UnifiedTextConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from tunesmith.layers.experts import Adapted
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora

VOCABULARY = 300
S, F = "sliding_attention", "full_attention"
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY, "initializer_range": 0.15}
SMALL |= {"max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GEMMA = {"query_pre_attn_scalar": 16, "layer_types": [S, F], "sliding_window": 8}
GEMMA4 = {**SMALL, "num_hidden_layers": 4, "layer_types": [S, F] * 2, "global_head_dim": 16, "sliding_window": 8}
GEMMA4 |= {"final_logit_softcapping": 3.0, "initializer_range": 0.2}
NO_PLE = {"hidden_size_per_layer_input": 0}
WHOLE_LAYERS = ("attention", "MLP", "norm")
NO_MLP = {"ours": ("attention", "norm"), "stock": ("a mixture of experts in place of an MLP",)}
E_MODEL = {"num_key_value_heads": 1, "num_kv_shared_layers": 2}
E_MODEL |= {"use_double_wide_mlp": True, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
K_IS_V = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
MIXTURE = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
YARN |= {"original_max_position_embeddings": 8}
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "short_factor": [1.0, 1.3]}
LONG |= {"long_factor": [2.0, 4.0], "original_max_position_embeddings": 128, "factor": 2.0}


@dataclass(frozen=True)
class Tiny:
    """A variant.

    Attributes:
        title: the models it stands for.
        config: of stock transformers.
        ours: kinds of modules that are replaced by ours.
        stock: reasons, as the run tells them, for which modules stay stock.
        noise: of stock fp32 gradients, against fp64, as a share of the largest element: 1.3e-5 in Gemma 4, whose scores are
            not scaled down, 2e-6 elsewhere. Ours are held to a few times that.
    """

    title: str
    config: PreTrainedConfig
    ours: tuple[str, ...] = ("attention", "MLP", "norm", "last layer")
    stock: tuple[str, ...] = ()
    noise: float = 2e-6

    @property
    def mixture(self) -> bool:
        """Whether it has experts."""
        facts = self.config.to_dict()
        return bool(facts.get("num_local_experts") or facts.get("num_experts"))


TINY: dict[str, Tiny] = {
    "llama": Tiny("Llama 3.x", LlamaConfig(**SMALL, rope_parameters=LLAMA3)),
    "smollm2": Tiny("SmolLM2", LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "smollm3": Tiny("SmolLM3", SmolLM3Config(**SMALL, no_rope_layer_interval=2, tie_word_embeddings=True)),
    "mistral": Tiny("Mistral", MistralConfig(**SMALL, sliding_window=9)),
    "qwen2": Tiny("Qwen2, Qwen2.5", Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=7, max_window_layers=1)),
    "qwen3": Tiny("Qwen3", Qwen3Config(**SMALL)),
    "qwen3_moe": Tiny(
        "Qwen3 mixtures (30B-A3B, 235B-A22B)",
        Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True),
        **NO_MLP,
    ),
    "phi3": Tiny("Phi-3, Phi-4-mini", Phi3Config(**SMALL, sliding_window=9, rope_parameters=LONG)),
    "gemma2": Tiny("Gemma 2", Gemma2Config(**SMALL, **GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    "gemma3": Tiny("Gemma 3 (270M to 27B)", Gemma3TextConfig(**SMALL, **GEMMA)),
    "gemma4-e": Tiny("Gemma 4 E2B, E4B", Gemma4TextConfig(**{**GEMMA4, **E_MODEL}), WHOLE_LAYERS, noise=1.3e-5),
    "gemma4-12b": Tiny("Gemma 4 12B", Gemma4UnifiedTextConfig(**GEMMA4, **K_IS_V), WHOLE_LAYERS, noise=1.3e-5),
    "gemma4-31b": Tiny("Gemma 4 31B", Gemma4TextConfig(**GEMMA4, **NO_PLE, **K_IS_V), WHOLE_LAYERS, noise=1.3e-5),
    "gemma4-26b": Tiny(
        "Gemma 4 26B-A4B", Gemma4TextConfig(**GEMMA4, **NO_PLE, **K_IS_V, **MIXTURE), WHOLE_LAYERS, noise=1.3e-5
    ),
    "gpt_oss": Tiny(
        "gpt-oss",
        GptOssConfig(
            **SMALL, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, layer_types=[S, F], rope_parameters=YARN
        ),
        **NO_MLP,
    ),
    "unknown": Tiny("any other type, here OLMo 2", Olmo2Config(**SMALL), (), ("model type olmo2 is not known",)),
}


def documents() -> list[tuple[list[int], list[int]]]:
    """Pairs of ids and supervised flags; three of four begin with the same 22 tokens."""
    generator = torch.Generator().manual_seed(3)
    prefix = torch.randint(3, VOCABULARY, (22,), generator=generator).tolist()
    pairs = []
    for n in (30, 21, 44, 12):
        ids = (prefix if n != 44 else []) + torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()
        pairs.append((ids, [0] * (len(ids) - 8) + [1] * 8))
    return pairs


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Stock, fp32, frozen; the same for the same configuration."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("norm", "bias", "sinks", "scale")):
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(0.8)
    return model


def adapted(model: PreTrainedModel, target_modules: str | tuple[str, ...] = "all-linear", **lora: Any) -> dict[str, Adapted]:
    """The adapters of a run on ``model``, B drawn and not zero."""
    layers = add_lora(model, Lora(r=4, alpha=8, target_modules=target_modules, **{"dropout": 0.0, **lora}), 0)
    generator = torch.Generator().manual_seed(4)
    for layer in layers.values():
        layer.lora_B.data.normal_(std=0.1, generator=generator)
    return layers
