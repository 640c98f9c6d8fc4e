"""Load a base model with its linear layers in NF4, without ever holding the dense model.

The stock model is built with empty parameters on the meta device, and the checkpoint is read tensor by tensor: a linear
weight is quantised as it comes and a ``NF4Linear`` takes the place of its layer, everything else is cast and copied. The
peak is the quantised model and the largest tensor as it lies in the file. A
file is opened anew for each tensor, because pages of a mapping count as resident until it is closed.

**What the checkpoint does not hold.** Frequencies of rotary embeddings, scales of embeddings and other buffers that are
not saved are computed by the model's constructor. ``torch.device("meta")`` would throw them away, and each family has its
own way of making them again. Here only ``torch.empty``, of which parameters are made, goes to the meta device; buffers are
computed for real, so they are the stock model's for any family.

**What is quantised.** Every ``nn.Linear`` but the output head (its loss reads it dense) and what the caller excludes;
embeddings and layers of other classes stay in ``dtype``. A checkpoint that bitsandbytes quantised (NF4, blocks of 64,
double quantisation) is taken as it is, so there the checkpoint decides. A parameter that the checkpoint lacks is an error,
never a random number.

Refused: ``from_pretrained(quantization_config=...)``, which needs bitsandbytes, holds the shards' dense tensors and hides
which layers it skipped.

Source of the format: QLoRA (Dettmers et al. 2023), see ``kernels/nf4.py``.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.kernels.nf4 import quantize_nf4
from tunesmith.layers.nf4 import QUANT_STATE, NF4Linear, NF4Weight
from tunesmith.models.swap import put_module
from tunesmith.track import say

SHOWN = 6  # names in a message


def quantized_linears(model: PreTrainedModel, exclude: Sequence[str] = ()) -> list[str]:
    """Full names of the linear layers to hold in NF4, in the model's order.

    All that are plain ``nn.Linear``, except the output head, a layer whose weight is tied to another's, and those excluded.

    Args:
        exclude: names or runs of name parts: ``router.proj`` excludes ``model.layers.3.router.proj``, ``vision_tower``
            everything within.
    """
    head = model.get_output_embeddings()
    tied = {name for _, names in _tensors_of(model) if len(names) > 1 for name in names}
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and f"{name}.weight" not in tied and not _excluded(name, exclude)
    ]


def load_nf4(directory: Path, exclude: tuple[str, ...] = (), dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """A stock causal language model on the CPU, frozen, with ``NF4Linear`` for its linear layers.

    Args:
        directory: Hugging Face model directory with safetensors, dense or quantised by bitsandbytes to NF4.
        exclude: linear layers to leave in ``dtype``, see ``quantized_linears``.
        dtype: of all that is not quantised.

    Raises:
        ModelError: unknown architecture, no safetensors, a damaged file, a parameter that is missing or of another shape,
            a weight that is not finite, another quantisation.
    """
    checkpoint = _Checkpoint(directory)
    config = _read_config(directory)
    try:
        with _EmptyOnMeta():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, KeyError) as error:
        raise ModelError(f"{directory}: the model cannot be built: {error}", "is its architecture a causal one?") from error
    chosen = _choose(model, checkpoint, exclude)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    tensors = _tensors_of(model)
    _refuse_missing(checkpoint, tensors)
    for name in chosen:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        put_module(model, name, NF4Linear(_read_quantized(checkpoint, name, linear), linear.bias))
    quantized = {f"{name}.weight" for name in chosen}
    for old, names in tensors:
        if names[0] not in quantized:
            _fill(model, old, names, checkpoint)
    _refuse_meta(model)
    if (directory / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(directory)
    known = {name for _, names in tensors for name in names}
    _report(model, checkpoint, known, [name for name in linears if name not in chosen])
    return model.requires_grad_(False).eval()


class _EmptyOnMeta(TorchFunctionMode):
    """Within the block, ``torch.empty`` makes tensors without memory."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _Checkpoint:
    """The safetensors of a model directory, read one tensor at a time.

    Attributes:
        files: the file of each tensor, by its name.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
        if not index.exists() and not single.exists():
            raise ModelError(f"{directory}: no model.safetensors there, nor its index", "get the checkpoint as safetensors")
        try:
            if index.exists():
                files = {directory / file for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            else:
                files = {single}
            self.files = {name: file for file in sorted(files) for name in _names_in(file)}
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"{directory}: the checkpoint cannot be read: {error}", "get the checkpoint again") from error

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def read(self, name: str) -> Tensor:
        """A view of the mapped file; its pages are given back when the tensor dies."""
        try:
            with safe_open(self.files[name], framework="pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{self.files[name]}: {name} cannot be read: {error}", "get the checkpoint again") from error


def _names_in(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _read_config(directory: Path) -> Any:
    """The configuration, without what it says of the quantisation."""
    try:
        config: Any = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory}: the configuration cannot be read: {error}", "is config.json there?") from error
    facts = config.to_dict().get("quantization_config")
    if facts is None:
        return config
    found = {name: facts.get(name) for name in ("quant_method", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")}
    if found != {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}:
        given = ", ".join(f"{name}={value}" for name, value in found.items())
        raise ModelError(
            f"{directory}: the checkpoint is quantised in another way ({given})",
            "start from the original model, or from one in NF4 with double quantisation",
        )
    del config.quantization_config  # the model is no longer bitsandbytes', and what is saved of it is dense
    return config


def _choose(model: PreTrainedModel, checkpoint: _Checkpoint, exclude: Sequence[str]) -> list[str]:
    """The layers to hold in NF4: those that the checkpoint holds so, or else those that the rule names."""
    allowed = quantized_linears(model)
    stored = {name.removesuffix(f".weight.{QUANT_STATE}") for name in checkpoint.files if name.endswith(QUANT_STATE)}
    if not stored:
        return [name for name in allowed if not _excluded(name, exclude)]
    for name in sorted(stored):
        if name not in allowed:
            raise ModelError(f"{name}: 4-bit in the checkpoint, but no plain linear layer of the model", "use the dense model")
        if _excluded(name, exclude):
            raise ModelError(f"{name}: to be left dense, but the checkpoint holds it in 4 bits", "use the dense model")
    return [name for name in allowed if name in stored]


def _tensors_of(model: PreTrainedModel) -> list[tuple[Tensor, list[str]]]:
    """Each parameter and saved buffer once, with all its names: a tied one has several."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    return list(found.values())


def _refuse_missing(checkpoint: _Checkpoint, tensors: list[tuple[Tensor, list[str]]]) -> None:
    missing = [names[0] for _, names in tensors if not any(name in checkpoint for name in names)]
    if missing:
        shown = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        raise ModelError(
            f"{checkpoint.directory}: {len(missing)} tensors of the model are not in the checkpoint: {shown}",
            "they would be random numbers; get the whole checkpoint, and one whose names are those of this architecture",
        )


def _read_quantized(checkpoint: _Checkpoint, name: str, linear: nn.Linear) -> NF4Weight:
    """The weight of a linear layer in NF4, quantised here unless it lies so in the checkpoint."""
    weight = f"{name}.weight"
    if f"{weight}.{QUANT_STATE}" in checkpoint:
        parts = {key.removeprefix(f"{weight}."): key for key in checkpoint.files if key.startswith(f"{weight}.")}
        state = {part: checkpoint.read(key).clone() for part, key in {"": weight, **parts}.items()}
        found = NF4Weight.from_state(weight, state)
        _check_shape(weight, found.shape, linear.weight.shape)
        return found
    tensor = checkpoint.read(weight)
    _check_shape(weight, tensor.shape, linear.weight.shape)
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise ModelError(f"{weight}: {tensor.dtype}, expected 16 or 32 bits a weight", "start from the original model")
    try:
        return NF4Weight(quantize_nf4(tensor), tensor.dtype)
    except ModelError as error:
        raise ModelError(f"{weight}: {error.message}", error.hint) from error


def _fill(model: PreTrainedModel, old: Tensor, names: list[str], checkpoint: _Checkpoint) -> None:
    """Put one tensor of the checkpoint in the place of ``old``, under all the names that it has in the model."""
    present = [name for name in names if name in checkpoint]
    tensor = checkpoint.read(present[0])
    _check_shape(present[0], tensor.shape, old.shape)
    new = tensor.to(old.dtype, copy=True)
    for other in present[1:]:
        if not torch.equal(checkpoint.read(other), tensor):
            raise ModelError(
                f"{checkpoint.directory}: {other} and {present[0]} differ, but the configuration ties them",
                'set "tie_word_embeddings": false in config.json',
            )
    held = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
    for name in names:
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        if isinstance(held, nn.Parameter):
            module.register_parameter(leaf, held)
        else:
            module.register_buffer(leaf, held)


def _refuse_meta(model: PreTrainedModel) -> None:
    """A buffer that is not saved and was made of ``torch.empty`` has no value that anybody could know."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ModelError(f"{name} is neither in the checkpoint nor computed by the model", "load this model in bf16")


def _report(model: PreTrainedModel, checkpoint: _Checkpoint, known: set[str], dense: list[str]) -> None:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, NF4Linear)}
    count = sum(layer.weight.numel() for layer in layers.values())
    size = sum(layer.weight.nbytes for layer in layers.values())
    bits = f" at {8 * size / count:.3f} bits each as measured ({size / 1e6:.1f} MB)" if count else ""
    say(f"NF4: {len(layers)} linear layers, {count:,} weights{bits}")
    say(f"not quantised: {len(dense)} linear layers ({_shorten(dense)}), embeddings and norms")
    extra = [name for name in checkpoint.files if name not in known and name.partition(".weight.")[0] not in layers]
    if extra:
        say(f"{len(extra)} tensors of the checkpoint have no place in the model ({_shorten(extra)})")


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _check_shape(name: str, found: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(found) != tuple(expected):
        raise ModelError(f"{name}: shape {tuple(found)}, expected {tuple(expected)}", "does config.json belong to the weights?")


def _excluded(name: str, exclude: Sequence[str]) -> bool:
    return any(f".{entry}." in f".{name}." for entry in exclude)
