"""Swap LoRA layers in on one model instance.

Nothing global is patched: the model that comes in is the stock one, and the linear layers that are adapted are replaced
on this instance by ``LoRALinear`` that hold the very same weight tensors. ``unload`` puts plain layers back.
"""

import re

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import TrainingError
from tunesmith.layers.dora import DoRALinear
from tunesmith.layers.lora import LoRALinear
from tunesmith.layers.nf4 import NF4Linear
from tunesmith.models.families import FAMILIES
from tunesmith.recipe import Lora


def target_names(model: PreTrainedModel, target_modules: str | tuple[str, ...]) -> list[str]:
    """Full names of the linear layers to adapt, in the model's order.

    Args:
        target_modules: ``all-linear`` (every linear layer but the head), ``peft-default``, a list of last name parts,
            or a regular expression that matches full names, as in PEFT.

    Raises:
        TrainingError: nothing matches, or the family's PEFT default is not known.
    """
    head = model.get_output_embeddings()
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | NF4Linear | LoRALinear) and m is not head]
    if target_modules == "all-linear":
        return linears
    if target_modules == "peft-default":
        family = FAMILIES.get(model.config.model_type)
        if family is None:
            raise TrainingError(
                f"lora.target_modules: no PEFT default known for model type {model.config.model_type}",
                "name the modules in a list, or use all-linear",
            )
        target_modules = family.peft_default_targets
    if isinstance(target_modules, str):
        try:
            chosen = [name for name in linears if re.fullmatch(target_modules, name)]
        except re.error as error:
            raise TrainingError(
                f"lora.target_modules: {target_modules!r} is not a regular expression: {error}",
                "use all-linear, peft-default or a list of names",
            ) from error
    else:
        chosen = [name for name in linears if name.rsplit(".", 1)[-1] in target_modules]
        unused = [t for t in target_modules if not any(name.rsplit(".", 1)[-1] == t for name in chosen)]
        if unused:
            raise TrainingError(f"lora.target_modules: no linear layer is called {unused[0]!r}", _known(linears))
    if not chosen:
        raise TrainingError(f"lora.target_modules: {target_modules!r} matches no linear layer", _known(linears))
    return chosen


def add_lora(model: PreTrainedModel, lora: Lora, seed: int) -> dict[str, LoRALinear]:
    """Replace the target layers by ``LoRALinear`` (or ``DoRALinear``), initialised from ``seed`` alone.

    Returns:
        The new layers by full name, in the model's order.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = DoRALinear if lora.use_dora else LoRALinear
    layers: dict[str, LoRALinear] = {}
    for name in target_names(model, lora.target_modules):
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear | NF4Linear)
        layers[name] = kind(base, lora.r, lora.scale, lora.dropout, generator).train(base.training)
        put_module(model, name, layers[name])
    return layers


def merge_lora(model: PreTrainedModel, layers: dict[str, LoRALinear]) -> None:
    """Replace every ``LoRALinear`` by a plain linear layer that holds ``W + scale * B A``, in the base dtype.

    A quantised base becomes dense, in fp32. The model must not have been fused.
    """
    for name, layer in layers.items():
        assert len(layer.group.layers) == 1, f"{name} is computed by a fused module"
        dtype = torch.float32 if layer.weight is None else layer.weight.dtype
        weight = (layer.base_OI(dtype).float() + layer.delta_OI()).to(dtype)
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.register_parameter("bias", layer.bias)
        put_module(model, name, plain)


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the one with this full name."""
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).register_module(child, module)


def _known(linears: list[str]) -> str:
    return "linear layers here: " + ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linears}))
