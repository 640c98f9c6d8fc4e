"""The adapter on disk: a PEFT directory, ``adapter_config.json`` and ``adapter_model.safetensors``.

Key names are PEFT's (``base_model.model.<layer>.lora_A.weight``, and ``.lora_magnitude_vector`` for DoRA), so any tool of
the ecosystem reads what we write, and PEFT is the oracle of the round trip. The file is deterministic: same weights,
same bytes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ModelError
from tunesmith.layers.dora import DoRALinear
from tunesmith.layers.lora import LoRALinear
from tunesmith.recipe import Lora

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def adapter_state(layers: dict[str, LoRALinear]) -> dict[str, torch.Tensor]:
    """The trained tensors under PEFT's names, detached, fp32, on the CPU."""
    return {key: tensor.cpu() for key, tensor in _trained(layers).items()}


def load_adapter_state(layers: dict[str, LoRALinear], state: dict[str, torch.Tensor]) -> None:
    """Copy tensors into the layers.

    Raises:
        ModelError: a tensor is missing, extra, or of another shape.
    """
    own = _trained(layers)
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
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "inference_mode": True,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(adapter_state(layers), directory / WEIGHTS, metadata={"format": "pt"})


def read_scale(directory: Path) -> float:
    """Factor on ``B A`` that a PEFT adapter directory asks for."""
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    lora = Lora(r=config["r"], alpha=config["lora_alpha"], use_rslora=config.get("use_rslora", False))
    return lora.scale


def _trained(layers: dict[str, LoRALinear]) -> dict[str, torch.Tensor]:
    """The layers' own tensors under PEFT's names, detached, where they are."""
    own: dict[str, torch.Tensor] = {}
    for name, layer in layers.items():
        own[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A.detach()
        own[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B.detach()
        if isinstance(layer, DoRALinear):
            own[f"base_model.model.{name}.lora_magnitude_vector"] = layer.lora_magnitude_vector.detach()
    return own


def read_adapter(directory: Path) -> dict[str, torch.Tensor]:
    """Tensors of a PEFT adapter directory.

    Raises:
        ModelError: no adapter there.
    """
    if not (directory / WEIGHTS).exists():
        raise ModelError(f"{directory}: no {WEIGHTS} there", "run: tunesmith train RUN")
    return load_file(directory / WEIGHTS)
