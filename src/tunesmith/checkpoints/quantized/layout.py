"""Which tensors of a quantised checkpoint make which weight, and what its dense shape is: from headers, no weight read.

A quantised weight lies in the files as several tensors: codes, scales, zero points, an order of columns. Here they are brought
together under the name that the weight has in the dense checkpoint, so that everything above (the loaders, the merge, the
plan of an export) sees names and shapes of an ordinary one. The tensors decide what is quantised, not the configuration's lists
of modules: those are regular expressions over names of classes, in a syntax of each library's own.

The dtype of a dense weight is that of its scales where they have 16 bits, which is what the libraries that wrote the checkpoint
compute in, and bf16 else.

Cost: the headers. Of bitsandbytes' 4 bits also the small tensor beside each weight that says its shape, as JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tunesmith.checkpoints.names import read_settings, stored_tensors
from tunesmith.checkpoints.prescan import StoredTensor
from tunesmith.checkpoints.quantized.schemes import WAYS_ON, Scheme, scheme_of, settings_of
from tunesmith.errors import ModelError

BITSANDBYTES = "quant_state.bitsandbytes__"
NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
FLOATS_8 = ("F8_E4M3", "F8_E5M2")
# The tensors of a weight by what they are, after the name that they begin with; those in the second table may be lacking.
PARTS = {
    "mxfp4": {"codes": "_blocks", "scales": "_scales"},
    "gptq": {"codes": ".qweight", "scales": ".scales", "zeros": ".qzeros"},
    "awq": {"codes": ".qweight", "scales": ".scales", "zeros": ".qzeros"},
    "packed": {"codes": ".weight_packed", "scales": ".weight_scale", "shape": ".weight_shape"},
    "fp8": {"codes": "", "scales": "_scale_inv"},
    "scaled": {"codes": "", "scales": "_scale"},
}
MAYBE = {
    "gptq": {"order": ".g_idx"},
    "packed": {"zeros": ".weight_zero_point", "order": ".weight_g_idx"},
    "scaled": {"zeros": "_zero_point"},
}
# What an engine rounds activations and caches with; a dense model has none of it.
LEFT_OUT = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "activation_scale", "k_scale", "v_scale")


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A weight that lies in the files in parts.

    Attributes:
        name: of the dense weight, as the checkpoint would call it.
        scheme: how it is quantised.
        parts: what a tensor is (``codes``, ``scales`` ...) -> its name in the files.
        shape: of the dense weight.
        dtype: of the dense weight, as safetensors spells it.
        files: file of each part.
    """

    name: str
    scheme: Scheme
    parts: Mapping[str, str]
    shape: tuple[int, ...]
    dtype: str
    files: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A checkpoint under the names that its dense weights have.

    Attributes:
        scheme: None where nothing is quantised.
        tensors: every weight, as a dense checkpoint would have it.
        files: file of each; of a packed one, that of its codes.
        packed: those that lie in parts.
        left_out: names in the files that belong to no weight.
    """

    scheme: Scheme | None
    tensors: dict[str, StoredTensor]
    files: dict[str, Path]
    packed: dict[str, Packed] = field(default_factory=dict[str, Packed])
    left_out: tuple[str, ...] = ()

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense weights that lie in parts."""
        return sum(self.tensors[name].nbytes for name in self.packed)

    @property
    def words(self) -> str:
        """For people."""
        return "" if self.scheme is None else self.scheme.title


def layout_of(directory: Path, *, dense: bool = True) -> Layout:
    """The weights of a model directory.

    Args:
        dense: also of a checkpoint whose NF4 is what NF4 is here; else that one stays as it lies there.

    Raises:
        ModelError: no configuration or safetensors there, a quantisation that is not read, or that no weight has, or a weight
            that lacks a part.
    """
    by_file = stored_tensors(directory)
    scheme = scheme_of(settings_of(read_settings(directory)))
    if isinstance(scheme, str):
        raise ModelError(f"{directory}: the checkpoint is quantised by {scheme}, which is not read", WAYS_ON)
    tensors = {name: tensor for stored in by_file.values() for name, tensor in stored.items()}
    files = {name: file for file, stored in by_file.items() for name in stored}
    if scheme is None or (scheme.is_nf4 and not dense):
        return Layout(scheme=scheme, tensors=tensors, files=files)
    packed = _packed(scheme, tensors, files)
    if not packed:
        raise ModelError(
            f"{directory}: config.json says {scheme.title}, but no weight lies there in that form",
            "get the checkpoint again; or, where its weights are dense, take quantization_config out of config.json",
        )
    taken = {part for weight in packed.values() for part in weight.parts.values()}
    left_out = tuple(name for name in tensors if name not in taken and name.rpartition(".")[2].endswith(LEFT_OUT))
    plain = {name: tensor for name, tensor in tensors.items() if name not in taken and name not in left_out}
    plain |= {name: StoredTensor(weight.dtype, weight.shape) for name, weight in packed.items()}
    if odd := [name for name, tensor in plain.items() if name not in packed and tensor.dtype in FLOATS_8]:
        raise ModelError(f"{directory}: {odd[0]} has 8 bits and no scale beside it", "get the whole checkpoint again")
    places = {name: packed[name].files["codes"] if name in packed else files[name] for name in plain}
    return Layout(scheme=scheme, tensors=plain, files=places, packed=packed, left_out=left_out)


def _packed(scheme: Scheme, tensors: Mapping[str, StoredTensor], files: Mapping[str, Path]) -> dict[str, Packed]:
    if scheme.method == "bitsandbytes":
        found = _of_bitsandbytes(scheme, tensors, files)
    else:
        found = {}
        for name, parts in _gathered(scheme, tensors).items():
            codes, scales = tensors[parts["codes"]], tensors[parts["scales"]]
            dtype = scales.dtype if scales.dtype in ("F16", "BF16") else "BF16"
            found[name] = (parts, _shape(scheme, codes.shape), dtype)
    return {
        name: Packed(
            name=name,
            scheme=scheme,
            parts=parts,
            shape=shape,
            dtype=dtype,
            files={part: files[stored] for part, stored in parts.items()},
        )
        for name, (parts, shape, dtype) in found.items()
    }


def _gathered(scheme: Scheme, tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, str]]:
    """The parts of every quantised weight, by the name of the dense one."""
    needed, maybe = PARTS[scheme.method], MAYBE.get(scheme.method, {})
    ending = needed["codes"]
    found: dict[str, dict[str, str]] = {}
    for stored, tensor in tensors.items():
        if not (stored.endswith(ending) if ending else _is_8bit(stored, tensor, tensors, needed["scales"])):
            continue
        stem = stored.removesuffix(ending)
        parts = {part: f"{stem}{suffix}" for part, suffix in needed.items()}
        if lacking := [name for name in parts.values() if name not in tensors]:
            raise ModelError(f"{stored}: no {lacking[0]} beside it", "get the whole checkpoint again")
        parts |= {part: f"{stem}{suffix}" for part, suffix in maybe.items() if f"{stem}{suffix}" in tensors}
        found[f"{stem}.weight" if ending.startswith(".") else stem] = parts
    return found


def _is_8bit(stored: str, tensor: StoredTensor, tensors: Mapping[str, StoredTensor], scale: str) -> bool:
    """Whether a tensor holds codes of 8 bits; scales may have such a dtype too."""
    return tensor.dtype in (*FLOATS_8, "I8") and f"{stored}{scale}" in tensors


def _shape(scheme: Scheme, codes: tuple[int, ...]) -> tuple[int, ...]:
    """Of the dense weight, from that of its codes."""
    many = 32 // scheme.bits
    match scheme.method, codes:
        case "mxfp4", (experts, outputs, blocks, half):
            return experts, blocks * half * 2, outputs
        case "gptq", (words, outputs):
            return outputs, words * many
        case "awq", (inputs, words):
            return words * many, inputs
        case "packed", (outputs, words):
            return outputs, words * many
        case "fp8" | "scaled", _:
            return codes
        case _:
            raise ModelError(f"codes of shape {codes}, which {scheme.title} has not", "get the checkpoint again")


def _of_bitsandbytes(
    scheme: Scheme, tensors: Mapping[str, StoredTensor], files: Mapping[str, Path]
) -> dict[str, tuple[dict[str, str], tuple[int, ...], str]]:
    found: dict[str, tuple[dict[str, str], tuple[int, ...], str]] = {}
    if scheme.bits == 8:
        for stored, tensor in tensors.items():
            stem = stored.removesuffix(".weight")
            if tensor.dtype == "I8" and f"{stem}.SCB" in tensors:
                parts = {"codes": stored, "scales": f"{stem}.SCB"}
                if f"{stem}.weight_format" in tensors:
                    parts["order"] = f"{stem}.weight_format"
                found[stored] = (parts, tensor.shape, "F16")
        return found
    for stored in tensors:
        weight, _, kind = stored.partition(f".{BITSANDBYTES}")
        if kind:
            shape, dtype = _shape_and_dtype(files[stored], stored)
            parts = {"codes": weight, "facts": stored}
            names = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
            parts |= {name: f"{weight}.{name}" for name in names if f"{weight}.{name}" in tensors}
            if weight not in tensors or not {"absmax", "quant_map"} <= parts.keys():
                raise ModelError(f"{weight}: a part of it is not in the checkpoint", "get the whole checkpoint again")
            found[weight] = (parts, shape, dtype)
    return found


def _shape_and_dtype(file: Path, stored: str) -> tuple[tuple[int, ...], str]:
    """What the small tensor beside a weight of bitsandbytes says of it, in JSON."""
    try:
        with safe_open(file, framework="numpy") as opened:
            facts = json.loads(opened.get_tensor(stored).tobytes())
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{file}: {stored} cannot be read: {error}", "get the checkpoint again") from error
    shape = facts.get("shape") if isinstance(facts, dict) else None
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape) or facts.get("dtype") not in NAMES:
        raise ModelError(f"{file}: {stored} says no shape and dtype", "get the checkpoint again")
    return tuple(shape), NAMES[facts["dtype"]]
