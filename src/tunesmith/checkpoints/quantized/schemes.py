"""How a checkpoint says that its weights are quantised, and which of the ways are read.

Most large models are published in fewer bits than they are trained in, and some in nothing else. What is trained here is the
dense model that such a checkpoint amounts to: every weight is dequantised as it is read, exactly by its published format, and
then kept as the recipe says (``base``). One way is kept as it is under ``base: nf4``: bitsandbytes' NF4 with double
quantisation, which is what NF4 is here as well.

    method              what is read of it
    mxfp4               experts in blocks of 32, 4-bit floats under a power of two (OCP Microscaling Formats 1.0)
    fp8, fbgemm_fp8     8-bit floats under a scale a tensor, a row or a block
    compressed-tensors  integers of 4 or 8 bits, packed or not, and 8-bit floats; a scale a tensor, row, group or block
    awq                 4 bits a weight in groups, the layout ``gemm``
    gptq                2, 4 or 8 bits a weight in groups, in any order of columns; both conventions for zero points
    bitsandbytes        NF4 and FP4, with and without double quantisation, and LLM.int8()

What else there is (NVFP4, 3 bits, HQQ, AQLM ...) is refused by name. Activations are not rounded as an engine for such a
checkpoint would round them, and scales that are kept for that are left out.

No torch here: a recipe is refused for its base before a row is read.

Sources: ``quantization_config`` of transformers 5.23 (``utils/quantization_config.py``); ``quant_config.py`` of
compressed-tensors 0.20; ``quantize_config.json`` of AutoGPTQ and its successor GPTQModel; AutoAWQ's ``WQLinear_GEMM``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.checkpoints.names import read_settings
from tunesmith.rundir.records import Json

Method = Literal["mxfp4", "fp8", "scaled", "packed", "awq", "gptq", "bitsandbytes"]
NF4_AS_HERE = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
WAYS_ON = (
    "name the 16-bit original as model, or an unquantized QAT release; base: nf4 quantises it as it is read; "
    "docs/how-to/quantised-bases.md lists the formats that are read"
)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A quantisation that is read.

    Attributes:
        method: how the tensors of a weight lie in the files; ``scaled`` and ``packed`` are those of compressed-tensors.
        title: for people.
        bits: of a packed weight.
        group: inputs that share a scale; None for all of them.
        block: rows and columns that share a scale; None where the scale's own shape says it.
        from_one: zero points are stored less one.
        is_nf4: as it lies there it is NF4 as it is here.
    """

    method: Method
    title: str
    bits: int = 8
    group: int | None = None
    block: tuple[int, int] | None = None
    from_one: bool = False
    is_nf4: bool = False


def settings_of(config: Json) -> Json:
    """What a parsed ``config.json`` says of a quantisation; empty for nothing."""
    text = config.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, dict) else None
    found = config.get("quantization_config") or inner or config.get("compression_config") or {}
    return found if isinstance(found, dict) else {"quant_method": str(found)}


def scheme_of(settings: Json) -> Scheme | str | None:
    """The scheme of a ``quantization_config``; None where it says nothing, or a text that says what it is that is not read."""
    if not settings:
        return None
    method = settings.get("quant_method")
    if method is None and "config_groups" in settings:
        method = "compressed-tensors"
    match method:
        case "mxfp4":
            return Scheme(method="mxfp4", title="MXFP4", bits=4)
        case "fp8":
            said = settings.get("weight_block_size")
            block = _block(said)
            if said is not None and block is None:
                return f"fp8 with weight_block_size {said!r}"
            return Scheme(method="fp8", title=f"FP8 in blocks of {block[0]} x {block[1]}" if block else "FP8", block=block)
        case "fbgemm_fp8":
            return Scheme(method="scaled", title="FP8 with a scale a row")
        case "compressed-tensors":
            return _compressed(settings)
        case "awq":
            return _awq(settings)
        case "gptq":
            return _gptq(settings)
        case "bitsandbytes":
            return _bitsandbytes(settings)
        case _:
            return str(method or "a method without a name")


def _compressed(settings: Json) -> Scheme | str:
    """All groups of modules must be quantised alike, since it is the tensors that say what is quantised."""
    sparse = settings.get("sparsity_config") or {}
    if isinstance(sparse, dict) and sparse.get("format", "dense") != "dense":
        return f"compressed-tensors with the sparse format {sparse['format']!r}"
    groups = settings.get("config_groups")
    ways: set[tuple[str, int, str, str, int | None, tuple[int, int] | None]] = set()
    for each in groups.values() if isinstance(groups, dict) else ():
        weights = each.get("weights") if isinstance(each, dict) else None
        if isinstance(each, dict) and isinstance(weights, dict):
            ways.add((str(each.get("format") or settings.get("format")), *_arguments(weights)))
    if len(ways) != 1:
        return f"compressed-tensors with {len(ways) or 'no'} kinds of weights"
    ((form, bits, kind, strategy, group, block),) = ways
    words = f"{form} ({bits} bits, {kind}, {strategy})"
    shared = f", groups of {group}" if strategy == "group" else ""
    if form == "pack-quantized" and kind == "int" and bits in (4, 8) and strategy in ("group", "channel"):
        return Scheme(method="packed", title=f"compressed-tensors INT{bits}{shared}", bits=bits, group=group)
    known = strategy in ("tensor", "channel", "group", "block")
    if form in ("float-quantized", "int-quantized", "naive-quantized") and bits == 8 and known:
        name = "FP8" if kind == "float" else "INT8"
        return Scheme(method="scaled", title=f"compressed-tensors {name}{shared}", group=group, block=block)
    return f"compressed-tensors {words}"


def _arguments(weights: Json) -> tuple[int, str, str, int | None, tuple[int, int] | None]:
    group, block = weights.get("group_size"), weights.get("block_structure")
    strategy = weights.get("strategy") or ("group" if isinstance(group, int) and group > 0 else "tensor")
    shared = group if strategy == "group" and isinstance(group, int) and group > 0 else None
    bits = weights.get("num_bits") or 8
    return bits if isinstance(bits, int) else 0, str(weights.get("type", "int")), str(strategy), shared, _block(block)


def _awq(settings: Json) -> Scheme | str:
    bits = settings.get("bits", settings.get("w_bit", 4))
    group = settings.get("group_size", settings.get("q_group_size", 128))
    version = str(settings.get("version", settings.get("format", "gemm"))).lower()
    if version != "gemm" or not isinstance(bits, int) or bits != 4 or settings.get("zero_point", True) is not True:
        return f"awq (version {version}, {bits} bits, zero_point {settings.get('zero_point', True)})"
    return Scheme(method="awq", title=f"AWQ ({bits} bits{_groups(group)})", bits=bits, group=_group(group))


def _gptq(settings: Json) -> Scheme | str:
    bits, group = settings.get("bits"), settings.get("group_size", -1)
    form = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if form not in ("gptq", "gptq_v2") or not isinstance(bits, int) or bits not in (2, 4, 8):
        return f"gptq (checkpoint_format {form}, {bits} bits)"
    order = ", columns in order of activation" if settings.get("desc_act") else ""
    title = f"GPTQ ({bits} bits{_groups(group)}{order})"
    return Scheme(method="gptq", title=title, bits=bits, group=_group(group), from_one=form == "gptq")


def _bitsandbytes(settings: Json) -> Scheme | str:
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return Scheme(method="bitsandbytes", title="bitsandbytes INT8")
    kind = settings.get("bnb_4bit_quant_type")
    if kind not in ("nf4", "fp4"):
        return f"bitsandbytes (bnb_4bit_quant_type={kind})"
    is_nf4 = all(settings.get(key) == value for key, value in NF4_AS_HERE.items())
    return Scheme(method="bitsandbytes", title=f"bitsandbytes {kind.upper()}", bits=4, is_nf4=is_nf4)


def _group(group: object) -> int | None:
    return group if isinstance(group, int) and group > 0 else None


def _groups(group: object) -> str:
    return "" if _group(group) is None else f", groups of {group}"


def _block(value: object) -> tuple[int, int] | None:
    """Rows and columns; None for anything else."""
    match value:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case _:
            return None


def lies_in_nf4(directory: Path) -> bool:
    """Whether a checkpoint holds its weights in NF4 as it is here.

    Raises:
        ModelError: no configuration there.
    """
    scheme = scheme_of(settings_of(read_settings(directory)))
    return isinstance(scheme, Scheme) and scheme.is_nf4
