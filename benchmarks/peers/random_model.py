"""A model of random weights that every contestant can read, written once: safetensors, configuration, tokenizer, an adapter.

    python benchmarks/peers/random_model.py FOLDER DEVICE < SHAPE

16 bits a weight, a file a layer, drawn on the device where there is one: 8B are 16 GB and about as many seconds. The tokenizer
knows bytes, since the race is about ids that are given. The adapter's B is not zero, as a fresh one's is: else a contestant
that ignores it would have the same first loss.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>")
SPREAD, ADAPTER_SPREAD = 0.02, 0.005
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def linears(shape: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a layer's linear layers, by name."""
    h, f = shape["hidden_size"], shape["intermediate_size"]
    q, k = (shape[f"num_{kind}_heads"] * shape["head_dim"] for kind in ("attention", "key_value"))
    attention = {"q_proj": (q, h), "k_proj": (k, h), "v_proj": (k, h), "o_proj": (h, q)}
    mlp = {"gate_proj": (f, h), "up_proj": (f, h), "down_proj": (h, f)}
    return {f"self_attn.{n}": s for n, s in attention.items()} | {f"mlp.{n}": s for n, s in mlp.items()}


def write_weights(folder: Path, shape: dict[str, Any], device: str) -> None:
    """One file a layer, one for the rest, and the index of them."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device=device).normal_(0, SPREAD, generator=generator).cpu()

    h, vocabulary, placed = shape["hidden_size"], shape["vocab_size"], {}
    ones = torch.ones(h, dtype=torch.bfloat16)
    for layer in range(shape["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        tensors = {f"{at}.{name}.weight": drawn(*size) for name, size in linears(shape).items()}
        tensors |= {f"{at}.{name}.weight": ones.clone() for name in ("input_layernorm", "post_attention_layernorm")}
        save_file(tensors, folder / f"model-{layer}.safetensors", {"format": "pt"})
        placed |= dict.fromkeys(tensors, f"model-{layer}.safetensors")
    tensors = {"model.embed_tokens.weight": drawn(vocabulary, h), "model.norm.weight": ones.clone()}
    if not shape["tie_word_embeddings"]:
        tensors["lm_head.weight"] = drawn(vocabulary, h)
    save_file(tensors, folder / "model-rest.safetensors", {"format": "pt"})
    placed |= dict.fromkeys(tensors, "model-rest.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def write_config(folder: Path, shape: dict[str, Any]) -> None:
    """As the checkpoint of such a model has it."""
    config = {
        **shape,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "max_position_embeddings": 16384,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def write_tokenizer(folder: Path) -> None:
    """Three special tokens and the bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate([*SPECIAL, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    said = {**names, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16384, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def write_adapter(folder: Path, shape: dict[str, Any], lora: dict[str, Any], model: Path) -> None:
    """In PEFT's form, the same bytes for all."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        for name, (outputs, inputs) in linears(shape).items():
            at = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{at}.lora_A.weight"] = torch.randn(lora["r"], inputs, generator=generator) / inputs**0.5
            tensors[f"{at}.lora_B.weight"] = torch.randn(outputs, lora["r"], generator=generator) * ADAPTER_SPREAD
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
        "r": lora["r"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [name.rpartition(".")[2] for name in linears(shape)],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main() -> None:
    """Write all of it."""
    folder, device = Path(sys.argv[1]), sys.argv[2]
    given = json.load(sys.stdin)
    model = folder / "model"
    model.mkdir(parents=True)
    write_weights(model, given["shape"], device)
    write_config(model, given["shape"])
    write_tokenizer(model)
    write_adapter(folder / "adapter", given["shape"], given["lora"], model)


if __name__ == "__main__":
    main()
