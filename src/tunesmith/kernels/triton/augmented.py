"""``[W | scale B]`` of a group in one launch in Triton; the specification is ``tunesmith/kernels/augmented.py``.

A program writes either a piece of a weight, as ``dequantize_nf4`` does, or the columns beside some rows: B times its scale in
those of its layer and zeros in the others. Up to three layers have their own pointers; which of them a program serves follows
from its number. Refused: keeping the quantised weights of a group in one tensor, whose blocks of absmax would begin in the
middle of one another's.

Cost over one launch a weight: thirty arguments, that is some 2 us of the host.

Shape suffixes: M outputs of a group, Z features and ranks.
"""

# Triton's types do not say how a kernel is launched, nor that a kernel may call another.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false, reportGeneralTypeIssues=false

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from tunesmith.kernels.nf4 import BLOCK, values
from tunesmith.kernels.triton.nf4 import BYTES, COMMON, write_dense

if TYPE_CHECKING:
    from tunesmith.kernels.augmented import Part

LAYERS = 3  # of a group, at most
TILE = 4096  # elements of the columns beside some rows, of a program


@triton.jit
def _pick(second, third, of_0, of_1, of_2):
    return tl.where(third, of_2, tl.where(second, of_1, of_0))


@triton.jit
def _fill(
    values_ptr,
    out_ptr,
    packed_0,
    absmax_0,
    nested_0,
    map_0,
    B_0,
    packed_1,
    absmax_1,
    nested_1,
    map_1,
    B_1,
    packed_2,
    absmax_2,
    nested_2,
    map_2,
    B_2,
    offset_0,
    scale_0,
    O_0,
    R_0,
    nbytes_0,
    offset_1,
    scale_1,
    O_1,
    R_1,
    nbytes_1,
    offset_2,
    scale_2,
    O_2,
    R_2,
    nbytes_2,
    end_0,
    end_1,
    inputs,
    columns,
    stride,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
    NESTED: tl.constexpr,
    BYTES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    program = tl.program_id(0)
    second, third = (program >= end_0) & (program < end_1), program >= end_1
    program -= _pick(second, third, 0, end_0, end_1)
    outputs, rank = _pick(second, third, O_0, O_1, O_2), _pick(second, third, R_0, R_1, R_2)
    out_ptr += _pick(second, third, 0, O_0, O_0 + O_1).to(tl.int64) * stride
    tiles = tl.cdiv(outputs, ROWS)
    if program < tiles:  # the columns of a layer come first, then its weight
        before = _pick(second, third, 0, R_0, R_0 + R_1)
        row, col = program * ROWS + tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
        own = (row < outputs) & (col >= before) & (col < before + rank)
        B_ptr = _pick(second, third, B_0, B_1, B_2)
        B = tl.load(B_ptr + row * rank + (col - before), own, other=0.0)
        place = out_ptr + row.to(tl.int64) * stride + inputs + col
        columns_live = (row < outputs) & (col < columns)
        tl.store(place, (B * _pick(second, third, scale_0, scale_1, scale_2)).to(out_ptr.dtype.element_ty), columns_live)
    else:
        count = outputs.to(tl.int64) * inputs
        write_dense(
            program - tiles,
            _pick(second, third, packed_0, packed_1, packed_2),
            _pick(second, third, absmax_0, absmax_1, absmax_2),
            _pick(second, third, nested_0, nested_1, nested_2),
            _pick(second, third, map_0, map_1, map_2),
            values_ptr,
            out_ptr,
            _pick(second, third, offset_0, offset_1, offset_2),
            _pick(second, third, nbytes_0, nbytes_1, nbytes_2),
            count,
            inputs,
            stride,
            WHOLE,
            BLOCK,
            NESTED,
            BYTES,
        )


def fill_augmented_(out_MZ: Tensor, inputs: int, parts: "Sequence[Part]") -> Tensor:
    """As ``tunesmith.kernels.augmented.fill_augmented_``; three parts at most."""
    rows, width = out_MZ.shape
    assert out_MZ.stride(1) == 1 and out_MZ.dtype != torch.float64 and len(parts) <= LAYERS, (out_MZ.dtype, len(parts))
    assert rows == sum(len(part.B_OR) for part in parts) and width - inputs >= sum(part.B_OR.shape[1] for part in parts)
    quantized = [part.q for part in parts if part.q is not None]
    pointers: list[Any] = []
    columns = triton.next_power_of_2(max(width - inputs, 16))
    height = max(1, TILE // columns)
    numbers: list[Any] = []
    ends = [0]
    for part in parts:
        outputs, rank = part.B_OR.shape
        assert part.B_OR.is_contiguous() and (part.q is None or part.q.shape == (outputs, inputs)), part.B_OR.stride()
        q = part.q or next(iter(quantized), None)  # a pointer that nobody follows has the type of the others
        tables = (out_MZ,) * 4 if q is None else (q.packed, q.absmax, q.nested_absmax, q.nested_map)
        pointers += [*tables, part.B_OR]
        numbers += [
            0.0 if part.q is None else float(part.q.offset),
            float(part.scale),
            outputs,
            rank,
            0 if q is None else len(q.packed),
        ]
        ends.append(ends[-1] + triton.cdiv(outputs, height) + (0 if part.q is None else triton.cdiv(len(part.q.packed), BYTES)))
    spare = LAYERS - len(parts)
    pointers += pointers[-5:] * spare
    numbers += numbers[-5:] * spare
    grid, blocks = (ends[-1],), {"WHOLE": inputs % BLOCK == 0, "ROWS": height, "COLUMNS": columns, "BYTES": BYTES}
    ends += [ends[-1]] * spare
    sizes = (ends[1], ends[2], inputs, width - inputs, out_MZ.stride(0))
    _fill[grid](values(out_MZ.device), out_MZ, *pointers, *numbers, *sizes, **blocks, **COMMON)
    return out_MZ
