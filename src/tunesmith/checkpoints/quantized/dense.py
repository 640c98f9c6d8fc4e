"""The dense weights of a quantised checkpoint, exactly as the published formats define them, a tensor at a time.

Every format here is ``(code - zero) * scale`` with another packing of the codes, or a table of values in their place. It is
computed in fp32 and rounded once to the dtype of the dense weight. That is to the bit what the libraries compute that multiply
in 16 bits: a code of at most 8 bits times a scale of at most 11 is exact in fp32, so either way one rounding is left. The tests
hold each against its library where that can be installed, and against the format's text in fp64 where not.

Memory: the packed tensor, which is a mapping of the file, the dense one, and some 2^22 weights in fp32 on their way.

Refused: the libraries themselves, one a format, most of which need a GPU to be installed; transformers' own dequantisers, which
know MXFP4 and FP8 alone and load a whole model.

Sources: OCP Microscaling Formats (MX) 1.0, sections 5.3.3 and 6.3; DeepSeek-V3, ``inference/kernel.py`` (blocks of FP8);
``compressors/pack_quantized`` and ``quantization/lifecycle/forward.py`` of compressed-tensors 0.20; GPTQ (Frantar et al. 2022)
in the layout of AutoGPTQ's ``qlinear_cuda_old.py``; AWQ (Lin et al. 2023) in that of AutoAWQ's ``packing_utils.py``; QLoRA
(Dettmers et al. 2023) and LLM.int8() (Dettmers et al. 2022) in those of bitsandbytes' ``functional.py``.

Shape suffixes: O out_features, I in_features, E experts, P some of the rows; here: G groups of inputs, B bytes of a block, N
bytes of a flat run.
"""

import json
from collections.abc import Callable, Iterator, Mapping

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tunesmith.checkpoints.quantized.layout import Packed
from tunesmith.checkpoints.shards import DTYPES
from tunesmith.errors import ModelError

PIECE = 2**22  # weights on their way at a time
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # place in a word of the codes of eight neighbours
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1; the fourth bit is the sign
E8M0_BIAS = 127
OF_CHECKPOINT = "get the checkpoint again"


def dense_weight(packed: Packed) -> Tensor:
    """The dense weight, in its dtype, on the CPU.

    Raises:
        ModelError: a part cannot be read, or is not of the size that its codes ask for.
    """
    parts = {part: _read(packed, part) for part in packed.parts}
    return FORMS[packed.scheme.method](packed, parts)


def _read(packed: Packed, part: str) -> Tensor:
    file, stored = packed.files[part], packed.parts[part]
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(stored)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: {stored} cannot be read: {error}", OF_CHECKPOINT) from error


def _expect(packed: Packed, parts: Mapping[str, Tensor], part: str, *shapes: tuple[int, ...]) -> Tensor:
    """A part, where it has one of these shapes."""
    found = tuple(parts[part].shape)
    if found not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ModelError(f"{packed.parts[part]}: shape {found}, expected {expected} ({packed.scheme.title})", OF_CHECKPOINT)
    return parts[part]


def _pieces(outputs: int, inputs: int, multiple: int = 1) -> Iterator[slice]:
    """Runs of outputs with about ``PIECE`` weights each."""
    step = max(1, PIECE // max(1, inputs) // multiple) * multiple
    yield from (slice(first, min(first + step, outputs)) for first in range(0, outputs, step))


def _unpack(words: Tensor, bits: int, dim: int, places: tuple[int, ...] | None = None) -> Tensor:
    """Codes of so many bits each out of 32-bit words, the lowest bits first, side by side along a dimension; uint8.

    Args:
        places: place in a word of each code, where they do not stand in order.
    """
    many = 32 // bits
    shifts = torch.tensor([bits * place for place in places or range(many)], dtype=torch.int32)
    codes = (words.unsqueeze(-1) >> shifts).bitwise_and_((1 << bits) - 1).to(torch.uint8)
    if dim == 0:
        codes = codes.movedim(-1, 1)
        return codes.reshape(-1, *words.shape[1:])
    return codes.reshape(*words.shape[:-1], -1)


def _mxfp4(packed: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """Blocks of 32 along the inputs, two codes a byte, the low one first; the experts' weights lie as (E, I, O)."""
    experts, inputs, outputs = packed.shape
    codes = parts["codes"]
    scales_EOG = _expect(packed, parts, "scales", tuple(codes.shape[:-1]))
    values = torch.tensor([*FP4_VALUES, *(-value for value in FP4_VALUES)])
    byte = torch.arange(256)
    pairs = torch.stack([values[byte & 15], values[byte >> 4]], dim=-1)
    powers = _powers()
    dense_EIO = torch.empty(packed.shape, dtype=DTYPES[packed.dtype])
    for expert in range(experts):
        for rows in _pieces(outputs, inputs):
            codes_PGB = codes[expert, rows]
            scale_PG = powers[scales_EOG[expert, rows].int()]
            values_PGB = pairs[codes_PGB.int()].flatten(-2) * scale_PG[..., None]
            dense_EIO[expert, :, rows] = values_PGB.reshape(-1, inputs).T
    return dense_EIO


def _gptq(packed: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """Codes packed along the inputs, zero points along the outputs; ``order`` says which group an input belongs to."""
    outputs, inputs = packed.shape
    scheme, many = packed.scheme, 32 // packed.scheme.bits
    groups = 1 if scheme.group is None else -(-inputs // scheme.group)
    scales_GO = _expect(packed, parts, "scales", (groups, outputs)).float()
    zeros_GO = _unpack(_expect(packed, parts, "zeros", (groups, outputs // many)), scheme.bits, 1).int()
    if scheme.from_one:
        zeros_GO = (zeros_GO + 1) & ((1 << scheme.bits) - 1)
    group_I = _groups(packed, parts, inputs, groups)
    dense_OI = torch.empty(packed.shape, dtype=DTYPES[packed.dtype])
    for rows in _pieces(outputs, inputs):
        codes_IP = _unpack(parts["codes"][:, rows], scheme.bits, 0)
        values_IP = (codes_IP - zeros_GO[:, rows][group_I]).float() * scales_GO[:, rows][group_I]
        dense_OI[rows] = values_IP.T
    return dense_OI


def _awq(packed: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """Codes and zero points packed along the outputs, eight a word, in an order of their own."""
    outputs, inputs = packed.shape
    scheme, many = packed.scheme, 32 // packed.scheme.bits
    groups = 1 if scheme.group is None else -(-inputs // scheme.group)
    scales_GO = _expect(packed, parts, "scales", (groups, outputs)).float()
    zeros_GO = _unpack(_expect(packed, parts, "zeros", (groups, outputs // many)), scheme.bits, 1, AWQ_ORDER).int()
    group_I = _groups(packed, parts, inputs, groups)
    dense_OI = torch.empty(packed.shape, dtype=DTYPES[packed.dtype])
    for rows in _pieces(outputs, inputs, many):
        codes_IP = _unpack(parts["codes"][:, rows.start // many : rows.stop // many], scheme.bits, 1, AWQ_ORDER)
        values_IP = (codes_IP - zeros_GO[:, rows][group_I]).float() * scales_GO[:, rows][group_I]
        dense_OI[rows] = values_IP.T
    return dense_OI


def _packed_integers(packed: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """Signed codes less the smallest one, packed along the inputs; zero points along the outputs."""
    outputs, inputs = packed.shape
    scheme, many = packed.scheme, 32 // packed.scheme.bits
    if parts["shape"].tolist() != [outputs, inputs]:
        raise ModelError(
            f"{packed.parts['shape']}: says {parts['shape'].tolist()}, expected {[outputs, inputs]}", OF_CHECKPOINT
        )
    groups = 1 if scheme.group is None else -(-inputs // scheme.group)
    scales_OG = _expect(packed, parts, "scales", (outputs, groups)).float()
    middle = 1 << (scheme.bits - 1)
    zeros_OG = torch.zeros(scales_OG.shape) + middle
    if "zeros" in parts:
        words = _expect(packed, parts, "zeros", (-(-outputs // many), groups))
        zeros_OG = _unpack(words, scheme.bits, 0)[:outputs].float()  # offset as the codes are
    group_I = _groups(packed, parts, inputs, groups)
    dense_OI = torch.empty(packed.shape, dtype=DTYPES[packed.dtype])
    for rows in _pieces(outputs, inputs):
        codes_PI = _unpack(parts["codes"][rows], scheme.bits, 1).float()
        dense_OI[rows] = (codes_PI - zeros_OG[rows][:, group_I]) * scales_OG[rows][:, group_I]
    return dense_OI


def _groups(packed: Packed, parts: Mapping[str, Tensor], inputs: int, groups: int) -> Tensor:
    """The group of each input."""
    if "order" not in parts:
        return torch.arange(inputs) // (packed.scheme.group or inputs)
    order_I = _expect(packed, parts, "order", (inputs,)).long()
    if bool((order_I == -1).all()):  # of a checkpoint whose columns were left in place
        return torch.arange(inputs) // (packed.scheme.group or inputs)
    if not bool(((order_I >= 0) & (order_I < groups)).all()):
        raise ModelError(f"{packed.parts['order']}: names groups beyond the {groups} that there are", OF_CHECKPOINT)
    return order_I


def _scaled(packed: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """Codes that are numbers already, under a scale for all, a row, a group of inputs or a block; of a stack, by matrix."""
    codes, scales = parts["codes"], _numbers(parts["scales"])
    zeros = _numbers(parts["zeros"]) if "zeros" in parts else torch.zeros(())
    *stack, outputs, inputs = packed.shape
    codes_EOI = codes.reshape(-1, outputs, inputs)
    dense_EOI = torch.empty(codes_EOI.shape, dtype=DTYPES[packed.dtype])
    for number, codes_OI in enumerate(codes_EOI):
        scale, zero = (_of_matrix(values, number, stack) for values in (scales, zeros))
        for rows in _pieces(outputs, inputs):
            codes_PI = codes_OI[rows].float()
            scale_PI, zero_PI = (_spread(packed, values, rows, outputs, inputs) for values in (scale, zero))
            dense_EOI[number, rows] = (codes_PI - zero_PI) * scale_PI
    return dense_EOI.view(packed.shape)


def _numbers(scales: Tensor) -> Tensor:
    """Scales as fp32; bytes are powers of two."""
    return _powers()[scales.int()] if scales.dtype == torch.uint8 else scales.float()


def _powers() -> Tensor:
    """What a byte means as a scale (E8M0): a power of two, and 255 no number."""
    return torch.tensor([*(2.0 ** (byte - E8M0_BIAS) for byte in range(255)), float("nan")])


def _of_matrix(values: Tensor, number: int, stack: list[int]) -> Tensor:
    """The scales of one matrix, two dimensions; those of a stack have as many before."""
    if values.numel() == 1:
        return values.reshape(1, 1)
    of_all = values.ndim == len(stack) + 2
    matrix = values.reshape(-1, *values.shape[-2:])[number] if of_all and stack else values
    if stack and not of_all:  # a number a matrix
        return values.reshape(-1)[number].reshape(1, 1)
    return matrix if matrix.ndim == 2 else matrix.reshape(-1, 1)


def _spread(packed: Packed, values: Tensor, rows: slice, outputs: int, inputs: int) -> Tensor:
    """The values of some rows, to be multiplied with them."""
    many, wide = values.shape
    block = packed.scheme.block or (-(-outputs // many), -(-inputs // wide))
    height, width = (1 if many == outputs else outputs if many == 1 else block[0]), (inputs if wide == 1 else block[1])
    if packed.scheme.block is None and packed.scheme.group is not None and wide > 1:
        width = packed.scheme.group
    if (-(-outputs // height), -(-inputs // width)) != (many, wide):
        part = packed.parts["scales"]
        raise ModelError(f"{part}: shape {(many, wide)} for {outputs} x {inputs} ({packed.scheme.title})", OF_CHECKPOINT)
    row_P, column_I = torch.arange(rows.start, rows.stop) // height, torch.arange(inputs) // width
    return values[row_P] if wide == 1 else values[row_P][:, column_I]


def _bitsandbytes(packed: Packed, parts: Mapping[str, Tensor]) -> Tensor:
    """LLM.int8(): rows under their largest size; else a table of 16 values under a scale a block of the flat run."""
    dense = torch.empty(packed.shape, dtype=DTYPES[packed.dtype])
    if packed.scheme.bits == 8:
        if "order" in parts and int(parts["order"]) != 0:
            raise ModelError(
                f"{packed.name}: its rows do not lie in order (weight_format {int(parts['order'])})", OF_CHECKPOINT
            )
        scales_O = _expect(packed, parts, "scales", packed.shape[:1]).float() / 127
        for rows in _pieces(*packed.shape):
            dense[rows] = parts["codes"][rows].float() * scales_O[rows, None]
        return dense
    facts = json.loads(bytes(parts["facts"].tolist()))
    count, block = dense.numel(), int(facts["blocksize"])
    packed_N, absmax = parts["codes"].view(torch.uint8).view(-1), parts["absmax"].float().view(-1)
    if absmax.numel() != -(-count // block) or packed_N.numel() != -(-count // 2):
        raise ModelError(f"{packed.name}: parts that do not fit {packed.shape} in blocks of {block}", OF_CHECKPOINT)
    if "nested_absmax" in parts:
        of_block = parts["nested_absmax"].float().repeat_interleave(int(facts["nested_blocksize"]))[: absmax.numel()]
        absmax = parts["nested_quant_map"].float()[parts["absmax"].view(-1).long()] * of_block + float(facts["nested_offset"])
    byte = torch.arange(256)
    table = parts["quant_map"].float()
    pairs = torch.stack([table[byte >> 4], table[byte & 15]], dim=-1)
    flat, step = dense.view(-1), -(-PIECE // (2 * block)) * 2 * block
    for first in range(0, count, step):
        end = min(first + step, count)
        values = pairs[packed_N[first // 2 : -(-end // 2)].int()].flatten()[: end - first]
        flat[first:end] = values * absmax[first // block : -(-end // block)].repeat_interleave(block)[: end - first]
    return dense


FORMS: dict[str, Callable[[Packed, Mapping[str, Tensor]], Tensor]] = {
    "mxfp4": _mxfp4,
    "gptq": _gptq,
    "awq": _awq,
    "packed": _packed_integers,
    "fp8": _scaled,
    "scaled": _scaled,
    "bitsandbytes": _bitsandbytes,
}
