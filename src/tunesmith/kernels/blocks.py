"""The blocks of a GGUF file: frozen weights in 4.5 to 8.5 bits, as llama.cpp will hold them.

A row is cut into blocks of 32 or 256 weights. Every weight has a code, every 16 or 32 weights share a scale and, in some types,
a minimum, and the value is ``code * scale - minimum``, each step rounded to fp32. So a block is a *grid* (scales and minima)
and *codes* on it, and both are had apart here: what is frozen is their product, and what is trained onto a file that ships
keeps the grid and chooses codes.

====== ======= ====== ======================================================================================
type   weights bytes  grid
====== ======= ====== ======================================================================================
Q4_0   32      18     fp16 scale; codes -8 to 7
Q4_1   32      20     fp16 scale, fp16 minimum (added); codes 0 to 15
Q5_0   32      22     fp16 scale; codes -16 to 15
Q5_1   32      24     fp16 scale, fp16 minimum (added); codes 0 to 31
Q8_0   32      34     fp16 scale; codes -128 to 127
Q4_K   256     144    per 32: fp16 times 6 bits for the scale, fp16 times 6 bits for the minimum; codes 0 to 15
Q5_K   256     176    the same; codes 0 to 31
Q6_K   256     210    per 16: fp16 times int8; codes -32 to 31
====== ======= ====== ======================================================================================

The values are llama.cpp's to the bit (``ggml-quants.c``, ``dequantize_row_*``), whose order of operations is kept. F16, BF16
and F32 stand beside them as types without a grid, for tensors of a file that are not quantised. On a CPU llama.cpp itself
unpacks, where it is installed (``kernels/ggml.py``); the torch of this file is the specification and the way without it.

Blocks are handed around as (n, bytes of a block), their codes as (n, weights of a block), scales as (n, scales of a block).

Shape suffixes: O out_features, I in_features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tunesmith.kernels import triton as on_gpu
from tunesmith.kernels.ggml import unpacker

PIECE = 2**16  # weights that are unpacked at a time on a CPU, where they stay in the cache

DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Grid(NamedTuple):
    """Scales and minima of blocks, fp32: the values that codes stand for are ``code * scale - minimum``.

    Attributes:
        scale: shape (n, s).
        minimum: shape (n, s); None where the type has none.
    """

    scale: Tensor
    minimum: Tensor | None


@dataclass(frozen=True)
class BlockType:
    """How the blocks of a type lie.

    Attributes:
        name: llama.cpp's.
        weights: of a block.
        nbytes: of a block.
        group: weights that share a scale.
        low, high: the smallest and the largest code.
        unpack: from blocks (n, nbytes), uint8, to codes (n, weights), int8.
        pack: from codes (n, weights), int8, and blocks whose grid is kept, to blocks.
        grid: from blocks to scales and minima.
    """

    name: str
    weights: int
    nbytes: int
    group: int
    low: int
    high: int
    unpack: Callable[[Tensor], Tensor]
    pack: Callable[[Tensor, Tensor], Tensor]
    grid: Callable[[Tensor], Grid]


class Blocks(NamedTuple):
    """A matrix, or a stack of them, in blocks.

    Attributes:
        raw: uint8, shape (rows, bytes of a row), the rows of all matrices under each other.
        kind: llama.cpp's name of the type.
        shape: of the dense tensor.
    """

    raw: Tensor
    kind: str
    shape: tuple[int, ...]

    def numel(self) -> int:
        """Number of weights."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """As stored."""
        return self.raw.nbytes

    def rows(self, first: int, end: int) -> "Blocks":
        """Rows of a matrix, as a view."""
        return Blocks(self.raw[first:end], self.kind, (end - first, self.shape[1]))

    def to(self, device: torch.device | str) -> "Blocks":
        """The same on another device."""
        return self._replace(raw=self.raw.to(device))


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row.

    Args:
        kind: llama.cpp's name of a type.
        columns: weights of the row, a multiple of the type's block.
    """
    if kind in DENSE:
        return columns * DENSE[kind].itemsize
    of = TYPES[kind]
    assert columns % of.weights == 0, f"rows of {columns} weights in {kind}, whose blocks hold {of.weights}"
    return columns // of.weights * of.nbytes


@torch.no_grad()
def dequantize_blocks(q: Blocks, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The dense tensor: llama.cpp's fp32 values, rounded once.

    Args:
        q: any type of ``TYPES`` or ``DENSE``.
        dtype: of the result.
        out: where to write, shape ``q.shape``; rows may lie apart, all at one distance. A new tensor when None.
    """
    if out is None:
        out = torch.empty(q.shape, dtype=dtype, device=q.raw.device)
    assert out.shape == q.shape and out.dtype == dtype
    rows, columns = len(q.raw), q.shape[-1]
    if q.kind in DENSE:
        return out.copy_(q.raw.view(DENSE[q.kind]).view(q.shape))
    out_OI = out.view(rows, columns) if len(q.shape) != 2 else out
    if q.raw.is_cuda:
        on_gpu.dequantize_blocks(q, out_OI)
        return out
    of, unpack = TYPES[q.kind], unpacker(q.kind)
    if unpack is not None and dtype == torch.float32 and out_OI.is_contiguous() and q.raw.is_contiguous():
        unpack(q.raw, out_OI)
        return out
    step = max(1, PIECE // columns)
    scratch_OI = torch.empty(step, columns) if unpack is not None else None
    for first in range(0, rows, step):
        raw = q.raw[first : first + step].contiguous()
        if unpack is not None and scratch_OI is not None:
            values_OI = scratch_OI[: len(raw)]
            unpack(raw, values_OI)
        else:
            blocks = raw.view(-1, of.nbytes)
            values_OI = values_of(of, of.unpack(blocks), of.grid(blocks)).view(-1, columns)
        out_OI[first : first + step].copy_(values_OI)
    return out


def values_of(of: BlockType, codes: Tensor, grid: Grid) -> Tensor:
    """What codes stand for on a grid, fp32, shape (n, weights).

    Args:
        of: the type.
        codes: any integer or floating dtype.
        grid: of the same blocks.
    """
    grouped = codes.view(len(codes), -1, of.group)
    values = grouped * grid.scale[..., None]
    if grid.minimum is not None:
        values.sub_(grid.minimum[..., None])
    return values.view(len(codes), of.weights)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The fp16 number at a place of every block, fp32, shape (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(bytes_: Tensor) -> Tensor:
    """The low halves of some bytes, then the high ones, uint8."""
    return torch.cat([bytes_ & 15, bytes_ >> 4], 1)


def _from_nibbles(codes: Tensor) -> Tensor:
    low, high = codes.chunk(2, 1)
    return low | (high << 4)


def _fifth_bits(bytes_: Tensor) -> Tensor:
    """32 bits of every block, each as 16 or 0, uint8, shape (n, 32)."""
    places = torch.arange(8, dtype=torch.uint8, device=bytes_.device)
    return (((bytes_[:, :, None] >> places) & 1) << 4).view(len(bytes_), 32)


def _from_fifth_bits(codes: Tensor) -> Tensor:
    places = torch.arange(8, dtype=torch.uint8, device=codes.device)
    bits = ((codes >> 4) & 1).view(len(codes), 4, 8) << places
    return bits.sum(2, dtype=torch.uint8)


def _of_32(name: str, *, bits: int, has_minimum: bool) -> BlockType:
    """A type of 32 weights: scale, perhaps a minimum, perhaps the fifth bits, then the codes."""
    head = 4 if has_minimum else 2
    fifth = 4 if bits == 5 else 0
    offset = 0 if has_minimum else 1 << (bits - 1)

    def unpack(blocks: Tensor) -> Tensor:
        codes = _nibbles(blocks[:, head + fifth :])
        if fifth:
            codes |= _fifth_bits(blocks[:, head : head + 4])
        return codes.view(torch.int8).sub_(offset) if offset else codes.view(torch.int8)

    def pack(codes: Tensor, like: Tensor) -> Tensor:
        codes = (codes + offset).view(torch.uint8)
        parts = [like[:, :head], *([_from_fifth_bits(codes)] if fifth else []), _from_nibbles(codes & 15)]
        return torch.cat(parts, 1)

    def grid(blocks: Tensor) -> Grid:
        return Grid(_half(blocks, 0), -_half(blocks, 2) if has_minimum else None)

    return BlockType(name, 32, head + fifth + 16, 32, -offset, (1 << bits) - 1 - offset, unpack, pack, grid)


def _q8_0() -> BlockType:
    return BlockType(
        "Q8_0",
        32,
        34,
        32,
        -128,
        127,
        unpack=lambda blocks: blocks[:, 2:].view(torch.int8),
        pack=lambda codes, like: torch.cat([like[:, :2], codes.view(torch.uint8)], 1),
        grid=lambda blocks: Grid(_half(blocks, 0), None),
    )


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The eight scales and the eight minima of K-blocks, six bits each, uint8, shape (n, 8)."""
    first, second, third = packed.split(4, 1)
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], 1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], 1)
    return scales, minima


def _k_grid(blocks: Tensor) -> Grid:
    scales, minima = _six_bits(blocks[:, 4:16])
    return Grid(scales * _half(blocks, 0), minima * _half(blocks, 2))


def _q4_k() -> BlockType:
    def unpack(blocks: Tensor) -> Tensor:
        bytes_ = blocks[:, 16:].reshape(-1, 32)  # low halves are 32 weights, high halves the next
        return _nibbles(bytes_).view(len(blocks), 256).view(torch.int8)

    def pack(codes: Tensor, like: Tensor) -> Tensor:
        packed = _from_nibbles(codes.view(torch.uint8).reshape(-1, 64)).view(-1, 128)
        return torch.cat([like[:, :16], packed], 1)

    return BlockType("Q4_K", 256, 144, 32, 0, 15, unpack, pack, _k_grid)


def _q5_k() -> BlockType:
    def unpack(blocks: Tensor) -> Tensor:
        codes = _nibbles(blocks[:, 48:].reshape(-1, 32)).view(-1, 8, 32)
        places = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
        codes |= ((blocks[:, None, 16:48] >> places) & 1) << 4
        return codes.view(len(blocks), 256).view(torch.int8)

    def pack(codes: Tensor, like: Tensor) -> Tensor:
        codes = codes.view(torch.uint8)
        places = torch.arange(8, dtype=torch.uint8, device=codes.device)[:, None]
        fifth = ((codes.view(-1, 8, 32) >> 4) << places).sum(1, dtype=torch.uint8)
        packed = _from_nibbles((codes & 15).reshape(-1, 64)).view(-1, 128)
        return torch.cat([like[:, :16], fifth, packed], 1)

    return BlockType("Q5_K", 256, 176, 32, 0, 31, unpack, pack, _k_grid)


def _q6_k() -> BlockType:
    """Twice 128 weights: 64 bytes of low halves, 32 bytes of two bits each for four runs of 32."""

    def unpack(blocks: Tensor) -> Tensor:
        low = _nibbles(blocks[:, :128].reshape(-1, 64)).view(-1, 2, 4, 32)
        places = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
        low |= ((blocks[:, 128:192].reshape(-1, 2, 1, 32) >> places) & 3) << 4
        return low.view(len(blocks), 256).view(torch.int8).sub_(32)

    def pack(codes: Tensor, like: Tensor) -> Tensor:
        codes = (codes + 32).view(torch.uint8)
        places = torch.arange(0, 8, 2, dtype=torch.uint8, device=codes.device)[:, None]
        high = ((codes.view(-1, 2, 4, 32) >> 4) << places).sum(2, dtype=torch.uint8).view(-1, 64)
        low = _from_nibbles((codes & 15).reshape(-1, 128)).view(-1, 128)
        return torch.cat([low, high, like[:, 192:]], 1)

    def grid(blocks: Tensor) -> Grid:
        return Grid(blocks[:, 192:208].view(torch.int8) * _half(blocks, 208), None)

    return BlockType("Q6_K", 256, 210, 16, -32, 31, unpack, pack, grid)


TYPES = {
    of.name: of
    for of in (
        _of_32("Q4_0", bits=4, has_minimum=False),
        _of_32("Q4_1", bits=4, has_minimum=True),
        _of_32("Q5_0", bits=5, has_minimum=False),
        _of_32("Q5_1", bits=5, has_minimum=True),
        _q8_0(),
        _q4_k(),
        _q5_k(),
        _q6_k(),
    )
}
