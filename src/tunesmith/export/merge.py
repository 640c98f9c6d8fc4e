"""Merge the adapter into the base: ``W + scale * B A`` (or DoRA's weight), tensor by tensor, straight from the files.

No model is built: the base's safetensors are read one tensor at a time, the targets get their update in fp32 and are
rounded once to the base's own dtype, everything else is copied. An update that is zero, or a target that the base does
not have, is an error: an adapter that does nothing is the commonest failure of exports.
"""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tunesmith.errors import ExportError
from tunesmith.layers.dora import dora_weight_OI
from tunesmith.models.adapter import read_adapter, read_scale
from tunesmith.rundir import whole_directory
from tunesmith.track import progress

PREFIX = "base_model.model."
Update = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def merge(base: Path, adapter: Path, target: Path) -> None:
    """Write a merged Hugging Face directory.

    Args:
        base: directory of the base model (safetensors).
        adapter: PEFT adapter directory.
        target: directory to write, whole or not at all.

    Raises:
        ExportError: the adapter does not fit the base, or changes nothing.
    """
    scale = read_scale(adapter)
    updates = _updates(read_adapter(adapter))
    files = sorted(base.glob("*.safetensors"))
    left = set(updates)
    with whole_directory(target) as directory, progress("merging", len(updates)) as bar:
        for file in files:
            tensors: dict[str, torch.Tensor] = {}
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - safe_open is not a mapping
                    weight_OI = opened.get_tensor(name)
                    if name in updates:
                        weight_OI = _merged(name, weight_OI, updates[name], scale)
                        left.discard(name)
                        bar.advance()
                    tensors[name] = weight_OI
            save_file(tensors, directory / file.name, metadata={"format": "pt"})
        if left:
            raise ExportError(f"{base}: the adapter's target {sorted(left)[0]} is not in the base", "is it the same base?")
        for file in base.iterdir():
            if file.suffix in {".json", ".jinja", ".model"}:
                shutil.copy(file, directory / file.name)


def _updates(state: dict[str, torch.Tensor]) -> dict[str, Update]:
    """(A, B, magnitude or None) of every target by the name of its weight in the base."""
    layers = sorted({key.rsplit(".lora_", 1)[0] for key in state})
    return {
        f"{layer.removeprefix(PREFIX)}.weight": (
            state[f"{layer}.lora_A.weight"],
            state[f"{layer}.lora_B.weight"],
            state.get(f"{layer}.lora_magnitude_vector"),
        )
        for layer in layers
    }


def _merged(name: str, weight_OI: torch.Tensor, update: Update, scale: float) -> torch.Tensor:
    A_RI, B_OR, magnitude_O = update
    if weight_OI.shape != (B_OR.shape[0], A_RI.shape[1]):
        raise ExportError(f"{name}: the base has shape {tuple(weight_OI.shape)}, the adapter does not", "another base?")
    if magnitude_O is None:
        merged_OI = (weight_OI.float() + scale * (B_OR @ A_RI)).to(weight_OI.dtype)
    else:
        merged_OI = dora_weight_OI(weight_OI, A_RI, B_OR, magnitude_O, scale).to(weight_OI.dtype)
    if torch.allclose(merged_OI.float(), weight_OI.float(), rtol=1e-6, atol=0.0):  # DoRA's zero update is one to rounding
        raise ExportError(f"{name}: merging changes nothing (the update is zero or below the dtype's rounding)", "train it")
    return merged_OI
