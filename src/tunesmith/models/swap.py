"""Swap LoRA layers in on one model instance.

Nothing global is patched: the model that comes in is the stock one, and what is adapted is replaced on this instance:
linear layers by ``LoRALinear``, the experts of a mixture by ``LoRAExperts``, which hold the very same weight tensors.
``merge_lora`` puts plain modules back.

**What ``all-linear`` means.** Every linear layer of the text decoder, and its experts: they are most of a mixture's weights,
and PEFT's ``all-linear`` passes over them without a word, because they are no ``nn.Linear``. Not the head; not the towers
of a multimodal model, which text alone does not reach; not routers, whose choice an adapter would unsettle; and not what
the family's record names, as the linear layers of per-layer embeddings. A list or a regular expression adapts what it names.

Adapters of experts have no dropout and no DoRA, because PEFT, which has to read them, has neither for such weights.

Source: LoRA (Hu et al. 2021, section 4.2); ``target_modules`` and ``target_parameters`` of PEFT 0.21.

Shape suffixes: I in_features, O out_features.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.errors import TrainingError
from tunesmith.families import FAMILIES, Family
from tunesmith.layers.dora import DoRALinear, row_norm_O
from tunesmith.layers.experts import Adapted, LoRAExperts, LoRAExpertWeight
from tunesmith.layers.grid import GridBase, GridLinear
from tunesmith.layers.lora import LoRALinear
from tunesmith.layers.new_rows import NewRows
from tunesmith.layers.quantized import QuantizedLinear
from tunesmith.recipe import Lora

logger = logging.getLogger(__name__)


def target_names(model: PreTrainedModel, target_modules: str | tuple[str, ...]) -> list[str]:
    """Full names of what to adapt, in the model's order: linear layers, and the experts of a mixture as one module a layer.

    Args:
        target_modules: ``all-linear`` (every linear layer of the text decoder and all experts, without the head and without
            what the family's record leaves out), ``peft-default``, a list of full names or of their ends (``experts`` among
            them), or a regular expression that matches full names, as in PEFT.

    Raises:
        TrainingError: nothing matches, or the family's PEFT default is not known.
    """
    family = family_of(model)
    known = adaptable_names(model)
    if target_modules == "all-linear":
        decoder = model.get_decoder()
        prefix = next(name for name, module in model.named_modules() if module is decoder)
        never = family.never_adapted if family else ()
        if family and family.experts:
            never = (*never, family.experts.router)
        chosen = [
            name for name in known if name.startswith(f"{prefix}.") and not any(f".{entry}." in f".{name}." for entry in never)
        ]
        if not chosen:
            raise TrainingError(
                f"lora.target_modules: all-linear finds no linear layer in the text decoder of {model.config.model_type}, "
                f"whose layers are {_kinds(decoder)}",
                "docs/reference/families.md lists the models that can be trained",
            )
        return chosen
    if target_modules == "peft-default":
        if family is None or not family.peft_default_targets:
            raise TrainingError(
                f"lora.target_modules: no PEFT default known for model type {model.config.model_type}",
                "name the modules in a list, or use all-linear",
            )
        target_modules = family.peft_default_targets
    if isinstance(target_modules, str):
        try:
            chosen = [name for name in known if re.fullmatch(target_modules, name)]
        except re.error as error:
            raise TrainingError(
                f"lora.target_modules: {target_modules!r} is not a regular expression: {error}",
                "use all-linear, peft-default or a list of names",
            ) from error
    else:
        chosen = [name for name in known if any(f".{name}".endswith(f".{target}") for target in target_modules)]
        unused = [target for target in target_modules if not any(f".{name}".endswith(f".{target}") for name in chosen)]
        if unused:
            raise TrainingError(f"lora.target_modules: no linear layer is called {unused[0]!r}", _hint(known))
    if not chosen:
        raise TrainingError(f"lora.target_modules: {target_modules!r} matches no linear layer", _hint(known))
    return chosen


def adaptable_names(model: PreTrainedModel) -> list[str]:
    """Full names of all linear layers but the head, and of the experts modules that the family's record names."""
    family, head = family_of(model), model.get_output_embeddings()
    experts = f".{family.experts.module}" if family and family.experts else None
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear | QuantizedLinear | LoRALinear) and module is not head)
        or (experts is not None and name.endswith(experts))
    ]


def family_of(model: PreTrainedModel) -> Family | None:
    """The record of the model's text decoder, or None where the family is not known."""
    return FAMILIES.get(model.get_decoder().config.model_type)


def add_lora(model: PreTrainedModel, lora: Lora, seed: int, own: Callable[[str], Lora] | None = None) -> dict[str, Adapted]:
    """Replace the target layers by ``LoRALinear`` (or ``DoRALinear``) and ``LoRAExperts``, initialised from ``seed`` alone.

    Args:
        own: rank and scale of a linear layer by its full name, where they are not those of ``lora``.

    Returns:
        Everything that has an adapter by full name, in the model's order. Experts have two: ``....experts.gate_up_proj`` and
        ``....experts.down_proj``, each with the adapters of all experts of its layer in tensors of three dimensions.

    Raises:
        TrainingError: no targets, or DoRA on experts.
        ModelError: experts of a kind that is not known.
    """
    generator = torch.Generator().manual_seed(seed)
    plain = DoRALinear if lora.use_dora else LoRALinear
    layers: dict[str, Adapted] = {}
    mixtures = 0
    for name in target_names(model, lora.target_modules):
        base = model.get_submodule(name)
        if isinstance(base, nn.Linear | QuantizedLinear):
            here = lora if own is None else own(name)
            drawn = (here.r, here.scale, lora.dropout, generator)
            linear = GridLinear(base, *drawn) if isinstance(base, GridBase) else plain(base, *drawn)
            layers[name] = linear.train(base.training)
            put_module(model, name, linear)
            continue
        if lora.use_dora:
            raise TrainingError(f"lora.use_dora: {name} holds experts, which have no DoRA", "name the linear layers alone")
        experts = LoRAExperts(base, lora.r, lora.scale, generator)
        put_module(model, name, experts)
        layers |= {f"{name}.{part}": adapters for part, adapters in experts.adapters().items()}
        mixtures += 1
    if lora.target_modules == "all-linear" and (left := _other_experts(model)):
        architecture = model.config.model_type
        logger.warning(f"experts of {left} layers get no adapter: model type {architecture} is not known to have any")
    if mixtures and lora.dropout:
        logger.warning(
            f"lora.dropout {lora.dropout} holds for the linear layers; adapters of experts ({mixtures} layers) have none"
        )
    return layers


def merge_lora(model: PreTrainedModel, layers: Mapping[str, Adapted]) -> None:
    """Replace everything adapted by plain modules that hold ``W + scale * B A``, in the base dtype.

    A quantised or fp16 base becomes dense, in fp32. Rows of new tokens stay where they are. The model must not have been
    fused.
    """
    for name, layer in layers.items():
        if isinstance(layer, NewRows):  # they stand in their place: the embedding and the head compute with them
            continue
        if isinstance(layer, LoRAExpertWeight):
            parent = name.rpartition(".")[0]
            experts = model.get_submodule(parent)
            if isinstance(experts, LoRAExperts):  # else its other projection came first
                put_module(model, parent, experts.stock())
            continue
        assert len(layer.group.layers) == 1, f"{name} is computed by a fused module"
        dtype = torch.float32 if layer.weight is None or layer.in_fp16 else layer.weight.dtype
        weight = layer.merged_OI().to(dtype)
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.register_parameter("bias", layer.bias)
        put_module(model, name, plain)


@contextmanager
def without_adapters(layers: Mapping[str, Adapted]) -> Iterator[None]:
    """Within the block the model computes as its base does; afterwards the adapters are on again, to the byte.

    Every update is multiplied by a scale of 0, and DoRA's rows get the lengths of the base's. So one model in memory is both
    sides of a comparison, and both go through the same products. A second copy was refused: it doubles the memory. Fused or
    not makes no difference; a merged layer has no adapter left to switch off. Rows of new tokens are those of the base.
    """
    new_rows = [layer for layer in layers.values() if isinstance(layer, NewRows)]
    adapters = [layer for layer in layers.values() if not isinstance(layer, NewRows)]
    originals = [
        (layer, layer.scale, layer.lora_magnitude_vector.data if isinstance(layer, DoRALinear) else None) for layer in adapters
    ]
    try:
        for rows in new_rows:
            rows.is_on = False
        for layer in adapters:
            if isinstance(layer, DoRALinear):
                weight_OI = layer.base_OI(torch.float16 if layer.in_fp16 else torch.float32)
                layer.lora_magnitude_vector.data = row_norm_O(weight_OI, layer.lora_A.data, layer.lora_B.data, 0.0)
            layer.scale = 0.0
        yield
    finally:
        for rows in new_rows:
            rows.is_on = True
        for layer, scale, lengths_O in originals:
            layer.scale = scale
            if isinstance(layer, DoRALinear) and lengths_O is not None:
                layer.lora_magnitude_vector.data = lengths_O


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the one with this full name."""
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).register_module(child, module)


def _other_experts(model: PreTrainedModel) -> int:
    """How many stock experts modules are left: those of a family that is not known."""
    return sum(
        any(name in ("gate_up_proj", "down_proj") and p.ndim == 3 for name, p in module.named_parameters(recurse=False))
        for module in model.get_decoder().modules()
    )


def _kinds(decoder: nn.Module) -> str:
    """The classes of modules with weights, the most frequent first."""
    kinds = Counter(type(module).__name__ for module in decoder.modules() if dict(module.named_parameters(recurse=False)))
    return ", ".join(f"{name} ({count})" for name, count in kinds.most_common())


def _hint(known: list[str]) -> str:
    return "linear layers and experts here: " + ", ".join(sorted({name.rsplit(".", 1)[-1] for name in known}))
