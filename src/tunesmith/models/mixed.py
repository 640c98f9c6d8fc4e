"""The linear layers of a base in NF4 priced in every form, and put into other ones to be measured.

A model that is loaded in NF4 is taken: as each weight is read from the checkpoint, all its forms are made, their errors are
priced by the sensitivities (``bits/sensitivity.py``), and the searched NF4 takes the place of the plain one. So the model that
is left is the one that a budget of nothing would give, and each of its layers can be raised alone.

Shape suffixes: O out_features, I in_features.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.bits.choose import Option
from tunesmith.bits.mixed import MixedBase, form_bytes, forms_of
from tunesmith.bits.sensitivity import Sensitivity, rounding_cost
from tunesmith.checkpoints.hf import Checkpoint
from tunesmith.errors import ModelError
from tunesmith.kernels.blocks import Blocks, dequantize_blocks
from tunesmith.kernels.blocks_quantize import BF16, quantize_blocks
from tunesmith.kernels.nf4 import NF4, dequantize_nf4
from tunesmith.layers.blocks import BlockWeight
from tunesmith.layers.nf4 import QUANT_STATE, NF4Weight
from tunesmith.layers.quantized import QuantizedLinear


def quantized_layers(model: PreTrainedModel) -> dict[str, QuantizedLinear]:
    """The linear layers that may get other forms, by full name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def frozen_bytes(model: PreTrainedModel) -> int:
    """Bytes of a frozen model: parameters, tables and quantised weights."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


@torch.no_grad()
def price(model: PreTrainedModel, directory: Path, sensitivity: Mapping[str, Sensitivity]) -> dict[str, tuple[Option, ...]]:
    """The options of every linear layer, in the order of ``forms_of``; the searched NF4 stays in the model.

    Args:
        model: in NF4, of a checkpoint that is not quantised to NF4 itself.
        directory: of that checkpoint.
        sensitivity: by full name; a layer without one costs nothing in any form.
    """
    checkpoint, mixed = Checkpoint(directory), MixedBase({}, sensitivity)
    options: dict[str, tuple[Option, ...]] = {}
    for name, layer in quantized_layers(model).items():
        device = layer.weight.device
        weight_OI = _dense(checkpoint, name, layer, device)
        shape = (layer.out_features, layer.in_features)
        found: list[Option] = []
        for form in forms_of(shape):
            q = mixed._replace(forms={name: form}).quantize(name, [weight_OI], shape, device)
            if isinstance(q, NF4):
                layer.weight = NF4Weight(q, weight_OI.dtype)
            known = sensitivity.get(name)
            cost = 0.0 if known is None else rounding_cost(weight_OI, dequantized(q), known)
            found.append(Option(form, form_bytes(form, shape), cost))
        options[name] = tuple(found)
    return options


def dequantized(q: NF4 | Blocks) -> Tensor:
    """The fp32 values of a weight in any form."""
    return dequantize_nf4(q, torch.float32) if isinstance(q, NF4) else dequantize_blocks(q, torch.float32)


@contextlib.contextmanager
def in_16_bits(model: PreTrainedModel, name: str, directory: Path) -> Iterator[None]:
    """Within the block one linear layer has its weight in 16 bits."""
    layer = quantized_layers(model)[name]
    before = layer.weight
    weight_OI = _dense(Checkpoint(directory), name, layer, before.device)
    shape = (layer.out_features, layer.in_features)
    layer.weight = BlockWeight(quantize_blocks([weight_OI], BF16, shape, before.device), before.dtype)
    try:
        yield
    finally:
        layer.weight = before


def refuse_nf4(checkpoint: Checkpoint) -> None:
    """Bits can be given to weights that still have them.

    Raises:
        ModelError: they lie in NF4.
    """
    if any(name.endswith(QUANT_STATE) for name in checkpoint.files):
        raise ModelError(
            f"{checkpoint.directory}: its weights lie in NF4 already, so base_budget has no bits to give them",
            "leave base_budget out, or name the 16-bit original as model",
        )


def _dense(checkpoint: Checkpoint, name: str, layer: QuantizedLinear, device: torch.device) -> Tensor:
    """The weight as the checkpoint has it, shape (O, I)."""
    shape = torch.Size((layer.out_features, layer.in_features))
    parts = [part.reshape(-1).to(device) for _, part in checkpoint.read_parts(f"{name}.weight", shape)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(shape)
