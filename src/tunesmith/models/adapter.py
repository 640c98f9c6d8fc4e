"""The adapter on disk: a PEFT directory, ``adapter_config.json`` and ``adapter_model.safetensors``.

Key names are PEFT's (``base_model.model.<layer>.lora_A.weight``), so any tool of the ecosystem reads what we write, and
PEFT is the oracle of the round trip. The file is deterministic: same weights, same bytes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ModelError
from tunesmith.layers.lora import LoRALinear
from tunesmith.recipe import Lora

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def adapter_state(layers: dict[str, LoRALinear]) -> dict[str, torch.Tensor]:
    """The trained tensors under PEFT's names, detached, fp32, on the CPU."""
    state: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        state[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach().cpu()
        state[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach().cpu()
    return state


def load_adapter_state(layers: dict[str, LoRALinear], state: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the layers.

    Raises:
        ModelError: a tensor is missing, extra, or of another shape.
    """
    own = adapter_state(layers)
    if own.keys() != state.keys():
        odd = sorted(own.keys() ^ state.keys())[0]
        raise ModelError(f"the adapter does not fit the model: {odd} is on one side only", "is it the base it was trained on?")
    for key, tensor in state.items():
        if own[key].shape != tensor.shape:
            raise ModelError(f"{key}: shape {tuple(tensor.shape)}, expected {tuple(own[key].shape)}", "check lora.r")
        own[key].copy_(tensor)


def save_adapter(directory: Path, layers: dict[str, LoRALinear], lora: Lora, base_model: str) -> None:
    """Write a PEFT adapter directory (into an existing, empty directory)."""
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(layers) if layers else [],
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(adapter_state(layers), directory / WEIGHTS, metadata={"format": "pt"})


def read_adapter(directory: Path) -> dict[str, torch.Tensor]:
    """Tensors of a PEFT adapter directory.

    Raises:
        ModelError: no adapter there.
    """
    if not (directory / WEIGHTS).exists():
        raise ModelError(f"{directory}: no {WEIGHTS} there", "run: tunesmith train RUN")
    return load_file(directory / WEIGHTS)
