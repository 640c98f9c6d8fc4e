"""Load a base model with its large weights in NF4, without ever holding the dense model.

The stock model is built with empty parameters on the meta device, and the checkpoint is read tensor by tensor: a weight is
quantised as it comes, on the device where it stays, and a ``QuantizedLinear`` or ``NF4Experts`` takes the place of its layer;
everything else is cast and copied. The peak is the quantised model and the largest tensor as it lies in the file.

**What the checkpoint does not hold.** Frequencies of rotary embeddings, scales of embeddings and other buffers that are
not saved are computed by the model's constructor. ``torch.device("meta")`` would throw them away, and each family has its
own way of making them again. Here only ``torch.empty``, of which parameters are made, goes to the meta device; buffers are
computed for real, so they are the stock model's for any family.

**What is quantised.** Every ``nn.Linear`` but the output head (its loss reads it dense), what the family's record names
(``Family.never_quantized`` and the router); and the experts of a mixture, both weights of all experts, whether they lie in the
file as one tensor or one by one. Embeddings stay in ``dtype``, but for a per-layer table that the recipe puts elsewhere
(``models/embeddings.py``). With a GGUF file it is what lies there in blocks (``layers/blocks.py``). A checkpoint that
bitsandbytes quantised (NF4, blocks of 64, double quantisation) is taken as it is, so there the checkpoint decides; one that is
quantised in another way is dequantised as it is read. A parameter that the checkpoint lacks is an error, never a random
number.

Refused: ``from_pretrained(quantization_config=...)``, which needs bitsandbytes, holds the shards' dense tensors, leaves
experts in 16 bits and hides which layers it skipped.

Source of the format: QLoRA (Dettmers et al. 2023), see ``kernels/nf4.py``.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.filesize import decimal
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tunesmith.bits.mixed import MixedBase
from tunesmith.checkpoints.gguf_blocks import BlockFile
from tunesmith.checkpoints.hf import Checkpoint, check_shape, read_config
from tunesmith.errors import ModelError
from tunesmith.families import FAMILIES
from tunesmith.kernels.nf4 import NF4, quantize_nf4_parts
from tunesmith.kernels.upload import upload
from tunesmith.layers.blocks import BlockWeight
from tunesmith.layers.experts import NF4Experts
from tunesmith.layers.nf4 import QUANT_STATE, NF4Weight
from tunesmith.layers.quantized import QuantizedLinear
from tunesmith.models.embeddings import hold_table, per_layer_table, place_of
from tunesmith.models.mixed import refuse_nf4
from tunesmith.models.placement import EVERYTHING_HERE, Placement
from tunesmith.models.staging import staged
from tunesmith.models.streaming import streamed_weights
from tunesmith.models.swap import put_module
from tunesmith.models.tables import place_tables

logger = logging.getLogger(__name__)

SHOWN = 6  # names in a message
STACKS = {"gate_up_proj", "down_proj"}  # the weights of a module of experts


def quantized_linears(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers to hold in NF4, in the model's order.

    All that are plain ``nn.Linear``, except the output head, a layer whose weight is tied to another's, and those that the
    family's record names by runs of name parts: ``router.proj`` is ``model.layers.3.router.proj``, ``mlp`` everything within
    every ``mlp``.
    """
    never = _never(model)
    return [name for name in _plain_linears(model) if not any(f".{entry}." in f".{name}." for entry in never)]


def quantized_experts(model: PreTrainedModel) -> list[str]:
    """Full names of the stock modules of experts to hold in NF4, in the model's order; none in a family without."""
    family = FAMILIES.get(model.config.model_type)
    if family is None or family.experts is None:
        return []
    ending = f".{family.experts.module}"
    return [
        name
        for name, module in model.named_modules()
        if name.endswith(ending) and dict(module.named_parameters()).keys() >= STACKS
    ]


def load_nf4(
    directory: Path,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    placement: Placement = EVERYTHING_HERE,
    *,
    quantize: bool = True,
    gguf: Path | None = None,
    mixed: MixedBase | None = None,
) -> PreTrainedModel:
    """A stock causal language model, frozen, with ``QuantizedLinear`` for its linear layers and ``NF4Experts`` for its experts.

    Args:
        directory: Hugging Face model directory with safetensors, dense or quantised; of a multimodal one the text model.
        dtype: of all that is not quantised.
        device: where the model is made.
        placement: which parts of it lie elsewhere; layers are streamed where they are held in NF4.
        quantize: hold them in NF4; else the whole model is in ``dtype``, for what stock transformers does not read.
        gguf: hold them in the blocks of this file instead, whose values are those of ``directory``.
        mixed: which of them are not in NF4, and by what those are searched that are; None for NF4 as bitsandbytes has it.

    Raises:
        ModelError: unknown architecture, no safetensors, a damaged file, a parameter that is missing or of another shape,
            a weight that is not finite, another quantisation; of a streamed model no layers, or no room on the disk.
    """
    device = torch.device(device)
    checkpoint = Checkpoint(directory, dense=not quantize)
    config, _ = read_config(directory)
    try:
        with _EmptyOnMeta():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, KeyError) as error:
        raise ModelError(f"{directory}: the model cannot be built: {error}", "is its architecture a causal one?") from error
    linears, experts = _choose(model, checkpoint) if quantize else ([], [])
    file = None if gguf is None else BlockFile(gguf, model)
    linears = linears if file is None else _in_blocks(gguf, file, linears, experts)
    _say_dequantized(checkpoint, dtype, quantize)
    tensors = _tensors_of(model)
    _refuse_missing(checkpoint, tensors)
    unexpected = _unexpected(model, checkpoint, tensors)
    later = {f"{name}.weight" for name in linears} | {f"{name}.{stack}" for name in experts for stack in STACKS}
    table = per_layer_table(model.config.model_type, checkpoint.files)
    place = place_of(placement.per_layer_embeddings, table, device)
    if table is not None and place != "model":
        later.add(f"{table}.weight")
        _hold(model, checkpoint, table, dtype, place)
    alias = {name: names[0] for _, names in tensors for name in names}
    places = place_tables(model, lambda name: _read_any(checkpoint, alias[name], tensors), dtype, device, placement)
    plain = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in linears]
    for old, names in tensors:
        if names[0] not in later and not places.issuperset(names):
            _fill(model, old, names, checkpoint, device)
    if mixed is not None:
        _refuse_other_forms(mixed, linears, checkpoint)
    read = partial(_read_quantized, checkpoint, device=device)
    streamed: dict[str, NF4Weight] = {}
    if placement.streams:
        shapes = {name: model.get_parameter(name).shape for name in sorted(later) if name != f"{table}.weight"}
        streamed = streamed_weights(model, shapes, read, directory, device, placement)
    weight_of = partial(_weight, read, streamed) if file is None else partial(_read_blocks, file, dtype=dtype, device=device)
    if mixed is not None:
        weight_of = partial(_read_mixed, checkpoint, mixed, dtype=dtype, device=device)
    _put_quantized(model, linears, experts, weight_of)  # with biases that are filled by now
    _refuse_meta(model)
    if (directory / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    _report(model, plain, unexpected, quantize)
    model._apply(lambda tensor: upload(tensor, device))  # the parameters are there; this takes the computed buffers
    return model.requires_grad_(False).eval()


def _hold(model: PreTrainedModel, checkpoint: Checkpoint, table: str, dtype: torch.dtype, place: Literal["cpu", "nf4"]) -> None:
    """Put the table of per-layer embeddings where it lies."""
    dense = checkpoint.read(f"{table}.weight")
    hold_table(model, table, dense.to(dtype, copy=True) if place == "cpu" else dense, dtype, place)


def _in_blocks(gguf: Path | None, file: BlockFile, linears: Sequence[str], experts: Sequence[str]) -> list[str]:
    """The linear layers that a GGUF holds in blocks.

    Raises:
        ModelError: it holds experts.
    """
    if experts:
        raise ModelError(f"{gguf}: holds a mixture, to whose experts llama.cpp applies no adapter", "base: nf4")
    return [name for name in linears if f"{name}.weight" in file]


class _EmptyOnMeta(TorchFunctionMode):
    """Within the block, ``torch.empty`` makes tensors without memory."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _plain_linears(model: PreTrainedModel) -> list[str]:
    """Full names of what can be a ``QuantizedLinear``."""
    head = model.get_output_embeddings()
    tied = {name for _, names in _tensors_of(model) if len(names) > 1 for name in names}
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and f"{name}.weight" not in tied
    ]


def _never(model: PreTrainedModel) -> tuple[str, ...]:
    """What the family's record keeps in 16 bits."""
    family = FAMILIES.get(model.config.model_type)
    if family is None:
        return ()
    return family.never_quantized + (() if family.experts is None else (family.experts.router,))


def _choose(model: PreTrainedModel, checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """The linear layers and the experts to hold in NF4: what the checkpoint holds so, or else what the rule names."""
    stored = {name.removesuffix(f".weight.{QUANT_STATE}") for name in checkpoint.files if name.endswith(QUANT_STATE)}
    if not stored:
        return quantized_linears(model), quantized_experts(model)
    allowed = _plain_linears(model)
    for name in sorted(stored):
        if name not in allowed:
            raise ModelError(f"{name}: 4-bit in the checkpoint, but no plain linear layer of the model", "use the dense model")
    return [name for name in allowed if name in stored], []


def _tensors_of(model: PreTrainedModel) -> list[tuple[Tensor, list[str]]]:
    """Each parameter and saved buffer once, with all its names: a tied one has several."""
    by_id: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        by_id.setdefault(id(tensor), (tensor, []))[1].append(name)
    return list(by_id.values())


def _refuse_missing(checkpoint: Checkpoint, tensors: list[tuple[Tensor, list[str]]]) -> None:
    missing = [names[0] for _, names in tensors if not any(name in checkpoint for name in names)]
    if missing:
        raise ModelError(
            f"{checkpoint.directory}: {len(missing)} tensors of the model are not in the checkpoint: {shorten(missing)}",
            "they would be random numbers; get the whole checkpoint, and one whose names are those of this architecture",
        )


def _unexpected(model: PreTrainedModel, checkpoint: Checkpoint, tensors: list[tuple[Tensor, list[str]]]) -> list[str]:
    """Tensors of the checkpoint that have no place in the model and are not known to be superfluous.

    A stock model lists what its checkpoints hold in vain: keys and values of layers that read those of others.
    """
    known = {name for _, names in tensors for name in names}
    known |= {part for stacked, parts in checkpoint.stacks.items() if stacked in known for part in parts}
    vain = [
        f"{name}.{pattern}".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
        for pattern in module._keys_to_ignore_on_load_unexpected or ()
    ]
    return [
        name
        for name in checkpoint.files
        if name not in known
        and f"{name.partition('.weight.')[0]}.weight" not in known
        and not any(re.search(pattern, name) for pattern in vain)
    ]


def _weight(
    read: Callable[[str, torch.Size], NF4Weight], streamed: Mapping[str, NF4Weight], name: str, shape: torch.Size
) -> NF4Weight:
    return streamed[name] if name in streamed else read(name, shape)


def _put_quantized(
    model: PreTrainedModel,
    linears: list[str],
    experts: list[str],
    weight_of: Callable[[str, torch.Size], Any],
) -> None:
    """Put quantised modules in the places of the stock ones."""
    for name in linears:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weight = weight_of(f"{name}.weight", linear.weight.shape)
        put_module(model, name, QuantizedLinear(weight, linear.bias))
    for name in experts:
        stock = model.get_submodule(name)
        gate_up, down = (
            weight_of(f"{name}.{stack}", stock.get_parameter(stack).shape) for stack in ("gate_up_proj", "down_proj")
        )
        put_module(model, name, NF4Experts(stock, gate_up, down))


def _read_quantized(checkpoint: Checkpoint, weight: str, shape: torch.Size, device: torch.device) -> NF4Weight:
    """A weight in NF4 on the device, quantised there unless it lies so in the checkpoint."""
    if f"{weight}.{QUANT_STATE}" in checkpoint:
        parts = {key.removeprefix(f"{weight}."): key for key in checkpoint.files if key.startswith(f"{weight}.")}
        state = {part: checkpoint.read(key).clone() for part, key in {"": weight, **parts}.items()}
        quantized = NF4Weight.from_state(weight, state)
        check_shape(weight, quantized.shape, shape)
        return quantized.to(device)
    dtypes: list[torch.dtype] = []
    with _named(weight):
        return NF4Weight(quantize_nf4_parts(_dense_parts(checkpoint, weight, shape, device, dtypes), shape, device), dtypes[0])


def _read_mixed(
    checkpoint: Checkpoint, mixed: MixedBase, weight: str, shape: torch.Size, dtype: torch.dtype, device: torch.device
) -> NF4Weight | BlockWeight:
    """A weight in the form that was chosen for its module."""
    dtypes: list[torch.dtype] = []
    with _named(weight):
        parts = _dense_parts(checkpoint, weight, shape, device, dtypes)
        q = mixed.quantize(weight.removesuffix(".weight"), parts, shape, device)
    return NF4Weight(q, dtypes[0]) if isinstance(q, NF4) else BlockWeight(q, dtype)


def _dense_parts(
    checkpoint: Checkpoint, weight: str, shape: torch.Size, device: torch.device, dtypes: list[torch.dtype]
) -> Iterator[Tensor]:
    """A weight of the checkpoint in pieces on the device; the dtype of each part is added to ``dtypes``."""
    for name, tensor in checkpoint.read_parts(weight, shape):
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ModelError(f"{name}: {tensor.dtype}, expected 16 or 32 bits a weight", "start from the original model")
        dtypes.append(tensor.dtype)
        yield from staged(tensor, device)


@contextlib.contextmanager
def _named(weight: str) -> Iterator[None]:
    """Within the block an error says of which weight it speaks."""
    try:
        yield
    except ModelError as error:
        raise ModelError(error.message if weight in error.message else f"{weight}: {error.message}", error.hint) from error


def _refuse_other_forms(mixed: MixedBase, linears: Sequence[str], checkpoint: Checkpoint) -> None:
    refuse_nf4(checkpoint)
    if missing := sorted(mixed.forms.keys() - set(linears)):
        raise ModelError(
            f"{checkpoint.directory}: forms were chosen for {shorten(missing)}, which it has not", "was it another model?"
        )


def _read_blocks(file: BlockFile, weight: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> BlockWeight:
    """A weight in the blocks of a file, on the device."""
    q = file.blocks(weight, shape)
    return BlockWeight(q._replace(raw=upload(q.raw, device)), dtype)


def _fill(model: PreTrainedModel, old: Tensor, names: list[str], checkpoint: Checkpoint, device: torch.device) -> None:
    """Put one tensor of the checkpoint in the place of ``old``, under all the names that it has in the model."""
    present = [name for name in names if name in checkpoint]
    new = torch.empty(old.shape, dtype=old.dtype, device=device)
    flat, start = new.view(-1), 0
    for _, part in checkpoint.read_parts(present[0], old.shape):
        for piece in staged(part, device):
            flat[start : start + piece.numel()].copy_(piece.reshape(-1))
            start += piece.numel()
    _refuse_untied(checkpoint, present[0], present[1:])
    tensor = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
    for name in names:
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(leaf, tensor)
        else:
            module.register_buffer(leaf, tensor)


def _read_any(checkpoint: Checkpoint, first: str, tensors: list[tuple[Tensor, list[str]]]) -> Tensor:
    """A tensor of the model under whichever of its names the checkpoint holds, once all that it holds are known to agree."""
    old, names = next((old, names) for old, names in tensors if names[0] == first)
    (name, *others) = [name for name in names if name in checkpoint]
    tensor = checkpoint.read(name)
    check_shape(name, tensor.shape, old.shape)
    _refuse_untied(checkpoint, name, others)
    return tensor


def _refuse_untied(checkpoint: Checkpoint, first: str, others: Sequence[str]) -> None:
    for other in others:
        if not torch.equal(checkpoint.read(other), checkpoint.read(first)):
            raise ModelError(
                f"{checkpoint.directory}: {other} and {first} differ, but the configuration ties them",
                'set "tie_word_embeddings": false in config.json',
            )


def _refuse_meta(model: PreTrainedModel) -> None:
    """A buffer that is not saved and was made of ``torch.empty`` has no value that anybody could know."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ModelError(f"{name} is neither in the checkpoint nor computed by the model", "load this model in bf16")


def _say_dequantized(checkpoint: Checkpoint, dtype: torch.dtype, quantize: bool) -> None:
    layout = checkpoint.layout
    if layout.packed:
        kept = "and most of it quantised to NF4" if quantize else f"to {str(dtype).removeprefix('torch.')}"
        size = decimal(sum(tensor.numel for tensor in layout.tensors.values()) * dtype.itemsize)
        whole = f"{size} whole" if quantize else size
        logger.info(f"the base comes in {layout.words}: {len(layout.packed)} weights are dequantised {kept} ({whole})")
    if layout.left_out:
        logger.info(f"scales of activations and caches are not used: {len(layout.left_out)} ({shorten(layout.left_out)})")


def _report(model: PreTrainedModel, plain: list[str], unexpected: list[str], quantize: bool) -> None:
    if unexpected:
        logger.warning(f"{len(unexpected)} tensors of the checkpoint have no place in the model ({shorten(unexpected)})")
    if not quantize:
        return
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    experts = [module for module in model.modules() if isinstance(module, NF4Experts)]
    weights = [layer.weight for layer in layers]
    weights += [weight for each in experts for weight in each.modules() if isinstance(weight, NF4Weight)]
    kinds = sorted({weight.kind if isinstance(weight, BlockWeight) else "NF4" for weight in weights})
    count, size = sum(weight.numel() for weight in weights), sum(weight.nbytes for weight in weights)
    bits = f" at {8 * size / count:.3f} bits each as measured ({decimal(size)})" if count else ""
    mixture = f" and the experts of {len(experts)} layers" if experts else ""
    logger.info(f"{', '.join(kinds) or 'NF4'}: {len(layers)} linear layers{mixture}, {count:,} weights{bits}")
    left = f", the experts of {len(dense)} layers" if (dense := quantized_experts(model)) else ""
    logger.info(f"not quantised: {len(plain)} linear layers ({shorten(plain)}){left}, embeddings and norms")


def shorten(names: Sequence[str]) -> str:
    """The first few names and the number of the others."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
