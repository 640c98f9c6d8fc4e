"""Several adapters on one base model, in one call: rows are grouped by adapter, and each group runs with its own weights.

All adapters live in one set of LoRA layers, as wide as the widest of them. Before a group runs, the layers' A and B are
overwritten with that adapter's, ``scale`` folded into B; what an adapter does not have (rank, layers) is zero, and the base
model is an adapter of zeros. Zeros add nothing, so the numbers are those of each adapter alone. The copy is some megabytes
for a group of rows, and the base weights exist once.

Refused: an adapter for each row within one product (stacked A and B, ``bmm``; Punica, arXiv 2310.18547). It pays where
requests for many adapters arrive one by one; an evaluation has hundreds of rows for each, and decoding stays as fast as
with one. Refused by an error: DoRA, whose magnitudes do not add up to nothing, and adapters of experts.

Source: the mixed batches of PEFT 0.21 (``adapter_names`` with ``__base__``), the oracle in the tests.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.layers.lora import LoRALinear
from tunesmith.models.adapter import CONFIG, PREFIX, read_adapter, read_scale
from tunesmith.models.swap import add_lora
from tunesmith.recipe import Lora


class Adapters:
    """The LoRA layers of one model and the adapters that take turns in them.

    Args:
        model: a stock model without LoRA layers; they are swapped in, and all of them begin as zeros.
        directories: PEFT adapter directories by name.

    Raises:
        ModelError: no adapter there, one with DoRA or experts, or one that does not fit the model.
    """

    def __init__(self, model: PreTrainedModel, directories: Mapping[str, Path]):
        if not directories:
            raise ModelError("no adapter is named", "give one directory at least, or use the model without adapters")
        self._states = {name: _read(directory) for name, directory in directories.items()}
        wanted = sorted({layer for state in self._states.values() for layer in state})
        known = {name for name, _ in model.named_modules()}
        if missing := [layer for layer in wanted if layer not in known]:
            raise ModelError(
                f"{missing[0]}: an adapter has weights for it and the model no such layer", "is it the right base?"
            )
        rank = max(len(A_RI) for state in self._states.values() for A_RI, _ in state.values())
        lora = Lora(r=rank, alpha=rank, dropout=0.0, target_modules="|".join(re.escape(layer) for layer in wanted))
        self._layers: dict[str, LoRALinear] = {}
        for name, layer in add_lora(model, lora, seed=0).items():
            assert isinstance(layer, LoRALinear), name
            self._layers[name] = layer
        for adapter, state in self._states.items():
            for name, (A_RI, B_OR) in state.items():
                layer = self._layers[name]
                if (A_RI.shape[1], B_OR.shape[0]) != (layer.in_features, layer.out_features):
                    raise ModelError(f"{directories[adapter]}: {name} has another shape", "is it the right base?")
        self.use(None)

    @property
    def names(self) -> list[str]:
        """The adapters, in the order given."""
        return list(self._states)

    @torch.no_grad()
    def use(self, name: str | None) -> None:
        """Make one adapter, or None for the base model, what the layers compute.

        Raises:
            ModelError: no adapter of this name.
        """
        if name is not None and name not in self._states:
            raise ModelError(f"{name}: no such adapter", f"adapters here: {', '.join(self._states)}")
        state = {} if name is None else self._states[name]
        for target, layer in self._layers.items():
            layer.lora_B.zero_()
            if target in state:
                A_RI, B_OR = state[target]
                layer.lora_A.zero_()
                layer.lora_A[: len(A_RI)] = A_RI.to(layer.lora_A.device)
                layer.lora_B[:, : B_OR.shape[1]] = B_OR.to(layer.lora_B.device)


def _read(directory: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A of shape (R, I), and B of shape (O, R) times the adapter's scale, of every layer; fp32, on the CPU."""
    state = read_adapter(directory)
    config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    for key, what in (("use_dora", "DoRA"), ("target_parameters", "adapters of experts")):
        if config.get(key):
            raise ModelError(f"{directory}: {what} cannot take turns with other adapters", "merge it, or run it alone")
    scale = read_scale(directory)
    found = {}
    for key, A_RI in state.items():
        if key.endswith(".lora_A.weight"):
            layer = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            B_OR = state.get(f"{PREFIX}{layer}.lora_B.weight")
            if B_OR is None:
                raise ModelError(f"{directory}: {layer} has lora_A and no lora_B", "the file is not whole")
            found[layer] = (A_RI.float(), B_OR.float() * scale)
    if not found or 2 * len(found) != len(state):
        odd = sorted(key for key in state if not key.endswith((".lora_A.weight", ".lora_B.weight")))
        raise ModelError(
            f"{directory}: not a plain LoRA adapter ({odd[0] if odd else 'nothing in it'})", "merge it, or run it alone"
        )
    return found
