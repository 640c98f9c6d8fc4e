"""The adapter on disk: a PEFT directory, ``adapter_config.json`` and ``adapter_model.safetensors``.

Key names are PEFT's (``base_model.model.<layer>.lora_A.weight``, and ``.lora_magnitude_vector`` for DoRA), so any tool of
the ecosystem reads what we write, and PEFT is the oracle of the round trip. The file is deterministic: same weights,
same bytes.

**Experts** are PEFT's ``target_parameters``. PEFT wraps their module once for ``gate_up_proj`` and that once more for
``down_proj``, so the keys of the first carry a ``.base_layer`` and those of the second are the module's own. All experts lie
in one matrix: A as (E R, I), expert by expert, and B as (O, R E), rank by rank. PEFT refuses ``lora_dropout`` beside such
targets, so the file says 0; dropout has no meaning once training is over.

Source: ``ParamWrapper`` in ``peft/tuners/lora/layer.py`` and ``_inject_parameters`` in ``peft/tuners/tuners_utils.py`` of
PEFT 0.21. Refused: files of our own with a converter, which somebody would have to run.

Shape suffixes: E experts, I in_features, O out_features, R rank.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.layers.dora import DoRALinear
from tunesmith.layers.experts import Adapted, LoRAExpertWeight
from tunesmith.recipe import Lora

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."


class _Slot(NamedTuple):
    """A trained tensor and its form in the file.

    Attributes:
        view: the tensor itself, detached, its dimensions in the order of the file.
        shape: in the file.
    """

    view: Tensor
    shape: tuple[int, ...]


def adapter_state(layers: Mapping[str, Adapted]) -> dict[str, Tensor]:
    """The trained tensors under PEFT's names, detached, fp32, on the CPU."""
    return {key: slot.view.reshape(slot.shape).cpu() for key, slot in _trained(layers).items()}


def load_adapter_state(layers: Mapping[str, Adapted], state: Mapping[str, Tensor]) -> None:
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
            raise ModelError(f"{key}: shape {tuple(tensor.shape)}, expected {own[key].shape}", "check lora.r")
        own[key].view.copy_(tensor.view(own[key].view.shape))


def save_adapter(directory: Path, layers: Mapping[str, Adapted], lora: Lora, base_model: str) -> None:
    """Write a PEFT adapter directory (into an existing, empty directory)."""
    experts = sorted(name for name, layer in layers.items() if isinstance(layer, LoRAExpertWeight))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0 if experts else lora.dropout,
        "target_modules": sorted(set(layers) - set(experts)),
        "bias": "none",
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "inference_mode": True,
    }
    if experts:
        config["target_parameters"] = experts
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(adapter_state(layers), directory / WEIGHTS, metadata={"format": "pt"})


def read_scale(directory: Path) -> float:
    """Factor on ``B A`` that a PEFT adapter directory asks for."""
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    lora = Lora(r=config["r"], alpha=config["lora_alpha"], use_rslora=config.get("use_rslora", False))
    return lora.scale


def read_adapter(directory: Path) -> dict[str, Tensor]:
    """Tensors of a PEFT adapter directory.

    Raises:
        ModelError: no adapter there.
    """
    if not (directory / WEIGHTS).exists():
        raise ModelError(f"{directory}: no {WEIGHTS} there", "run: tunesmith train RUN")
    return load_file(directory / WEIGHTS)


def read_experts(directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Adapters of experts in a PEFT adapter directory.

    Returns:
        ``(A_ERI, B_EOR)``, shapes (E, R, I) and (E, O, R), by the full name of the parameter that they adapt, as
        ``model.layers.0.mlp.experts.gate_up_proj``. Empty where the adapter has none.

    Raises:
        ModelError: no adapter there, or one of its targets has no tensors.
    """
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    targets, state, found = config.get("target_parameters") or [], read_adapter(directory), {}
    for name in targets:
        prefix = _prefix_of(name, targets)
        if f"{prefix}.lora_A.weight" not in state:
            raise ModelError(f"{directory}: no {prefix}.lora_A.weight there", "target_parameters must be full names")
        A, B = state[f"{prefix}.lora_A.weight"], state[f"{prefix}.lora_B.weight"]
        experts = len(A) // config["r"]
        found[name] = (A.view(experts, -1, A.shape[1]), B.view(len(B), -1, experts).permute(2, 0, 1).contiguous())
    return found


def _prefix_of(name: str, names: list[str]) -> str:
    """What PEFT's keys of an adapted parameter begin with: a module is wrapped in the order of its parameters."""
    module, _, leaf = name.rpartition(".")
    inner = leaf == "gate_up_proj" and f"{module}.down_proj" in names
    return f"{PREFIX}{module}{'.base_layer' if inner else ''}"


def _trained(layers: Mapping[str, Adapted]) -> dict[str, _Slot]:
    """The layers' own tensors under PEFT's names, where they are."""
    own: dict[str, _Slot] = {}
    names = list(layers)
    for name, layer in layers.items():
        A, B = layer.lora_A.detach(), layer.lora_B.detach()
        if isinstance(layer, LoRAExpertWeight):
            prefix = _prefix_of(name, names)
            view_ORE = B.permute(1, 2, 0)
            own[f"{prefix}.lora_A.weight"] = _Slot(A, (A.shape[0] * A.shape[1], A.shape[2]))
            own[f"{prefix}.lora_B.weight"] = _Slot(view_ORE, (B.shape[1], B.shape[2] * B.shape[0]))
            continue
        own[f"{PREFIX}{name}.lora_A.weight"] = _Slot(A, tuple(A.shape))
        own[f"{PREFIX}{name}.lora_B.weight"] = _Slot(B, tuple(B.shape))
        if isinstance(layer, DoRALinear):
            magnitude_O = layer.lora_magnitude_vector.detach()
            own[f"{PREFIX}{name}.lora_magnitude_vector"] = _Slot(magnitude_O, tuple(magnitude_O.shape))
    return own
