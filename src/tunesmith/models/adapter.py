"""The adapter on disk: a PEFT directory, ``adapter_config.json`` and ``adapter_model.safetensors``.

Key names are PEFT's (``base_model.model.<layer>.lora_A.weight``, and ``.lora_magnitude_vector`` for DoRA), so any tool of
the ecosystem reads what we write, and PEFT is the oracle of the round trip. The file is deterministic: same weights,
same bytes.

**Experts** are PEFT's ``target_parameters``. PEFT wraps their module once for ``gate_up_proj`` and that once more for
``down_proj``, so the keys of the first carry a ``.base_layer`` and those of the second are the module's own. All experts lie
in one matrix: A as (E R, I), expert by expert, and B as (O, R E), rank by rank. PEFT refuses ``lora_dropout`` beside such
targets, so the file says 0; dropout has no meaning once training is over.

**Adapters of others** are read with suspicion. The header is scanned before it is parsed (``checkpoints/prescan.py``), factors
must be finite numbers, and what the configuration asks for and we do not do (a rank of its own for some layers, whole modules
saved beside the adapter) is an error, because leaving it out gives another model. Pickles (``adapter_model.bin``, ``.pt``) run
code while they are read; they are refused with the command that converts them.

Source: ``ParamWrapper`` in ``peft/tuners/lora/layer.py`` and ``_inject_parameters`` in ``peft/tuners/tuners_utils.py`` of
PEFT 0.21. Refused: files of our own with a converter, which somebody would have to run.

Shape suffixes: E experts, O out_features, R rank.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jiter
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunesmith.checkpoints.prescan import ADAPTER, check_safetensors
from tunesmith.errors import ModelError
from tunesmith.layers.dora import DoRALinear
from tunesmith.layers.experts import Adapted, LoRAExpertWeight
from tunesmith.models.nf4_load import shorten
from tunesmith.recipe import Lora

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
CONFIG_BYTES = 2**22
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
NOT_APPLIED = (  # keys of PEFT's that change what the tensors mean
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
    "lora_bias",
    "alora_invocation_tokens",
)
OTHER_BASE = ("pissa", "olora", "corda")  # initialisations that take something out of the base before training


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


def adapter_shapes(layers: Mapping[str, Adapted]) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained tensors in the file, under PEFT's names."""
    return {key: slot.shape for key, slot in _trained(layers).items()}


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


def save_adapter(
    directory: Path, layers: Mapping[str, Adapted], lora: Lora, base_model: str, revision: str | None = None
) -> None:
    """Write a PEFT adapter directory (into an existing, empty directory).

    Args:
        base_model: hub id or path, as the recipe says it.
        revision: commit of a hub id; None for a path.
    """
    experts = sorted(name for name, layer in layers.items() if isinstance(layer, LoRAExpertWeight))
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "revision": revision,
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


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The configuration of a PEFT adapter directory, of an adapter that can be applied here.

    Raises:
        ModelError: none there, no LoRA, or one that asks for what we do not do.
    """
    path = directory / CONFIG
    try:
        text = path.read_bytes() if path.stat().st_size <= CONFIG_BYTES else b""
        config = jiter.from_json(text, catch_duplicate_keys=True, allow_inf_nan=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}", "give a directory that PEFT or tunesmith train wrote") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ModelError(f"{path}: peft_type is {found!r}, expected 'LORA'", "other kinds of adapters are not read")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or alpha <= 0:
        raise ModelError(f"{path}: r is {rank!r} and lora_alpha {alpha!r}", "a rank is a whole number, both are positive")
    asked = [key for key in NOT_APPLIED if config.get(key)]
    if config.get("bias", "none") != "none":
        asked.append("bias")
    if asked:
        raise ModelError(f"{path}: asks for {', '.join(asked)}, which is not applied here", "merge it with PEFT")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(OTHER_BASE):
        raise ModelError(
            f"{path}: init_lora_weights is {start}, so the adapter belongs to a base that was changed before training",
            "save it again as a plain adapter: save_pretrained(..., path_initial_model_for_weight_conversion=...) in PEFT",
        )
    return config


def read_scale(directory: Path) -> float:
    """Factor on ``B A`` that a PEFT adapter directory asks for.

    Raises:
        ModelError: see ``read_adapter_config``.
    """
    config = read_adapter_config(directory)
    return Lora(r=config["r"], alpha=config["lora_alpha"], use_rslora=bool(config.get("use_rslora"))).scale


def read_adapter(directory: Path) -> dict[str, Tensor]:
    """Tensors of a PEFT adapter directory.

    Raises:
        ModelError: no adapter there, a pickle, a file that is not whole, or weights that are not finite numbers.
    """
    path = directory / WEIGHTS
    if not path.exists():
        _refuse_pickle(directory)
        raise ModelError(f"{directory}: no {WEIGHTS} there", "run: tunesmith train RUN")
    try:
        check_safetensors(path, ADAPTER)
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read: {error}", "get the file again") from error
    if odd := sorted(name for name, tensor in state.items() if not tensor.is_floating_point()):
        raise ModelError(f"{path}: {shorten(odd)}: {state[odd[0]].dtype}, expected floating point", "is it an adapter?")
    if odd := sorted(name for name, tensor in state.items() if not torch.isfinite(tensor.float()).all()):
        raise ModelError(
            f"{path}: NaN or infinity in {len(odd)} of {len(state)} tensors: {shorten(odd)}", "train it again, at a lower rate"
        )
    return state


def read_experts(directory: Path, state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Adapters of experts in a PEFT adapter directory.

    Args:
        state: from ``read_adapter``.

    Returns:
        ``(A_ERI, B_EOR)``, shapes (E, R, I) and (E, O, R), by the full name of the parameter that they adapt, as
        ``model.layers.0.mlp.experts.gate_up_proj``. Empty where the adapter has none.

    Raises:
        ModelError: one of its targets has no tensors, or tensors whose shapes are not those of the rank.
    """
    config, found = read_adapter_config(directory), {}
    rank, targets = config["r"], config.get("target_parameters") or []
    for name in targets:
        prefix = _prefix_of(name, targets)
        A, B = (state.get(f"{prefix}.lora_{side}.weight") for side in "AB")
        if A is None or B is None:
            raise ModelError(f"{directory}: no {prefix}.lora_A.weight there", "target_parameters must be full names")
        if A.ndim != 2 or B.ndim != 2 or not len(A) or len(A) % rank or B.shape[1] != len(A):
            shapes = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
            raise ModelError(f"{directory}: {name} has {shapes}, which is no stack of rank {rank}", "get the adapter again")
        experts = len(A) // rank
        found[name] = (A.view(experts, -1, A.shape[1]), B.view(len(B), -1, experts).permute(2, 0, 1).contiguous())
    return found


def _refuse_pickle(place: Path) -> None:
    """Refuse an adapter that is a pickle, or a directory with nothing else, and say how to convert it."""
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    pickles = [file for file in files if file.suffix in PICKLES and file.is_file()]
    if not pickles:
        return
    file = next((file for file in pickles if file.stem == "adapter_model"), pickles[0])
    load = f"torch.load('{file.name}', weights_only=True, map_location='cpu')"
    raise ModelError(
        f"{file}: a pickle, which may run code while it is read; adapters are read from {WEIGHTS} alone",
        "convert it in an environment that you can lose:\n"
        f"  cd {file.parent}\n"
        f'  python -c "import torch, safetensors.torch as s; '
        f"s.save_file({{k: v.clone() for k, v in {load}.items()}}, '{WEIGHTS}')\"",
    )


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
