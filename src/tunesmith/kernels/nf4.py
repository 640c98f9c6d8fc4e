"""NF4: frozen weights in 4.13 bits instead of 16, in bitsandbytes' format byte for byte.

QLoRA (Dettmers et al. 2023, sections 3.1-3.2): weights are cut into blocks of 64, a block is divided by its largest
magnitude (``absmax``), and each quotient becomes the nearest of 16 values that are quantiles of a normal distribution, two
to a byte, the first one in the high half. *Double quantisation* stores the absmax themselves in 8 bits: their mean is taken
off, and blocks of 256 of them are divided by their own absmax and rounded to the 256 values of Dettmers' dynamic map
(Dettmers et al. 2022, section 1.3: signed, exponent and fraction share 7 bits). 4 + 8/64 + 32/(64 * 256) = 4.127 bits.
Blocks run over the flat weight, so that they may begin anywhere in a row; the last one may be short.

**Same bytes as bitsandbytes 0.50 on a CPU**, its habits included: full blocks are multiplied by ``1 / absmax``, the short
one is divided; no divisor is less than 1e-38; an absmax finds its code through a grid of 65,536 points in
[-1, 1], and the codes of a block of nothing but zeros are 0. Its CUDA kernels round an absmax to the
nearest code without the grid: the format is the same, and about one absmax code in 700 is a neighbour.

**Quantising without a search.** A binary search among 15 boundaries costs 47 ns a weight here. The upper 16 bits of an fp32
number pick one of 65,536 cells; no cell holds two boundaries, so a table gives the boundaries below the cell and one
comparison settles the rest: 2 ns, the same codes bit for bit.

**Dequantising in two passes.** A byte picks a pair of fp32 values from a table of 256, moved as one int64, and the blocks
are multiplied in place by their absmax. Narrower types are made by the piece from an fp32 scratch, so that there is one
rounding. 1536 x 576 on one core: 0.37 ms in fp32, 0.47 ms in bf16 (bitsandbytes' C++: 0.15). Refused: a table of bf16
quadruples, which is 0.1 ms faster, but rounds values and absmax before their product.

Temporary memory is a few MB whatever the weight; on a GPU, whose launches cost more than its passes, quantising takes
350 MB. The bytes are a CPU's: no step but the mean of the absmax adds numbers up, and that one is taken on the CPU.

Shape suffixes: O out_features, I in_features, T tokens, R rank, Q NF4 blocks; here: b packed bytes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.kernels import triton as on_gpu
from tunesmith.kernels.lora import lora_matmul

BLOCK = 64  # weights under one absmax
NESTED = 256  # absmax under one absmax of theirs
VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)  # QLoRA, appendix E
FEW_TOKENS = 64  # up to here the product reads the packed weight once and never writes a dense one

_QUANTIZE_PIECE = 2**17  # weights; the temporaries of a piece stay in the second-level cache
QUANTIZE_PIECE_GPU = 2**24  # 17 launches each, so 8 billion weights take 10,000 and not a million
_DEQUANTIZE_PIECE = 2**20
_GRID = 65536
_SMALLEST = 1e-38


@dataclass(frozen=True)
class NF4:
    """A quantised tensor.

    Attributes:
        packed: two codes a byte, shape (b,) = (ceil(n / 2),), uint8.
        absmax: code of each block's absmax, shape (Q,) = (ceil(n / 64),), uint8.
        nested_absmax: absmax of each 256 of them, shape (ceil(Q / 256),), fp32.
        nested_map: what the absmax codes mean, shape (256,), fp32, ascending.
        offset: mean of the absmax.
        shape: of the dense tensor.
    """

    packed: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    nested_map: Tensor
    offset: float
    shape: tuple[int, ...]

    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors; the map, which every weight shares, is not counted."""
        return self.packed.nbytes + self.absmax.nbytes + self.nested_absmax.nbytes

    @property
    def bits_per_weight(self) -> float:
        """As stored."""
        return 8 * self.nbytes / self.numel()

    def to(self, device: torch.device | str) -> "NF4":
        """The same on another device."""
        packed, absmax = self.packed.to(device), self.absmax.to(device)
        return NF4(packed, absmax, self.nested_absmax.to(device), self.nested_map.to(device), self.offset, self.shape)


@cache
@torch.inference_mode(False)
def values(device: torch.device) -> Tensor:
    """The 16 values, shape (16,), fp32."""
    return torch.tensor(VALUES, dtype=torch.float32, device=device)


@cache
@torch.inference_mode(False)
def dynamic_map(device: torch.device) -> Tensor:
    """The 256 values of an absmax code, shape (256,), fp32, ascending.

    For each of 7 exponents, 1 to 64 equally spaced fractions of [0.1, 1], of both signs; and 0 and 1.
    """
    parts = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        fractions = (edges[:-1] + edges[1:]) / 2.0 * 10.0 ** (exponent - 6)
        parts += [fractions, -fractions]
    return torch.cat(parts).sort().values.to(device)


@torch.no_grad()
def quantize_nf4(weight: Tensor) -> NF4:
    """The nearest NF4 codes, with double quantisation.

    Args:
        weight: any shape, not empty, fp32, fp16 or bf16.

    Raises:
        ModelError: the weight holds NaN or infinity.
    """
    return quantize_nf4_parts([weight], weight.shape, weight.device)


Encode = Callable[[Tensor, int, Tensor], Tensor]
"""How a piece of whole blocks gets its codes (uint8, one a weight): from the piece, the place of its first weight in the flat
weight, and the places for the absmax of its blocks, which are written."""


@torch.no_grad()
def quantize_nf4_parts(
    parts: Iterable[Tensor], shape: Sequence[int], device: torch.device | str, encode: Encode | None = None
) -> NF4:
    """A tensor that comes in parts, one after the other in its flat order: the bytes that ``quantize_nf4`` makes of the whole.

    The experts of a mixture lie one by one in some checkpoints and are one weight of three dimensions in the model. A part
    may end anywhere in a block.

    Args:
        parts: any shapes, fp32, fp16 or bf16, on ``device``; together as many weights as ``shape``, not empty.
        shape: of the whole.
        device: where the result lies.
        encode: how absmax and codes are found; None for the block's largest magnitude and the nearest codes.

    Raises:
        ModelError: a part holds NaN or infinity.
    """
    count = math.prod(shape)
    assert count, "an empty weight has no absmax"
    packed = torch.empty(math.ceil(count / 2), dtype=torch.uint8, device=device)
    absmax_Q = torch.empty(math.ceil(count / BLOCK), dtype=torch.float32, device=device)
    start = 0
    for piece in _pieces(parts, QUANTIZE_PIECE_GPU if packed.is_cuda else _QUANTIZE_PIECE):
        places = absmax_Q[start // BLOCK : math.ceil((start + len(piece)) / BLOCK)]
        codes = nearest_code(_divide_blocks(piece, places)) if encode is None else encode(piece, start, places)
        if len(codes) % 2:
            codes = torch.cat([codes, nearest_code(codes.new_zeros(1, dtype=torch.float32))])
        packed[start // 2 : start // 2 + len(codes) // 2] = (codes[::2] << 4).bitwise_or_(codes[1::2])
        start += len(piece)
    assert start == count, f"parts of {start} weights for the shape {tuple(shape)}"
    there_Q = absmax_Q.to("cpu")  # of a GPU's, the one thing that the host waits for
    if not bool(there_Q.isfinite().all()):
        raise ModelError("a weight holds NaN or infinity, which has no 4-bit code", "is the checkpoint damaged?")
    offset = float(there_Q.mean())
    absmax, nested_absmax = _quantize_absmax(absmax_Q.sub_(offset))
    return NF4(packed, absmax, nested_absmax, dynamic_map(packed.device), offset, tuple(shape))


def dequantize_nf4(q: NF4, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The dense tensor, each element the fp32 product of value and absmax, rounded once.

    Args:
        q: quantised tensor.
        dtype: of the result.
        out: where to write, shape ``q.shape``, ``dtype``; rows may lie apart, all at one distance. A new tensor when None.
    """
    if out is None:
        out = torch.empty(q.shape, dtype=dtype, device=q.packed.device)
    assert out.shape == q.shape and out.dtype == dtype
    if q.packed.is_cuda:
        return on_gpu.dequantize_nf4(q, dtype, out)
    if not out.is_contiguous():
        return out.copy_(dequantize_nf4(q, dtype))
    absmax_Q = dequantize_absmax(q)
    flat = out.view(-1)
    if dtype == torch.float32:
        _write_products(q.packed, absmax_Q, flat)
        return out
    for start in range(0, q.numel(), _DEQUANTIZE_PIECE):
        piece = flat[start : start + _DEQUANTIZE_PIECE]
        scratch = torch.empty(len(piece), dtype=torch.float32, device=flat.device)
        _write_products(q.packed[start // 2 :], absmax_Q[start // BLOCK :], scratch)
        piece.copy_(scratch)
    return out


def dequantize_absmax(q: NF4) -> Tensor:
    """The absmax of each block, shape (Q,), fp32."""
    absmax_Q = q.nested_map.index_select(0, q.absmax.to(torch.int32))
    whole = len(absmax_Q) // NESTED
    absmax_Q[: whole * NESTED].view(whole, NESTED).mul_(q.nested_absmax[:whole, None])
    if len(absmax_Q) % NESTED:
        absmax_Q[whole * NESTED :].mul_(q.nested_absmax[whole])
    return absmax_Q.add_(q.offset)


def dequantize_nf4_rows(q: NF4, rows_T: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a quantised matrix, shape (T, I), without the rest of it.

    Args:
        q: shape (rows, I), I a multiple of 64, so that every row has blocks of its own.
        rows_T: int64, shape (T,).
        dtype: of the result.
    """
    rows, width = q.shape
    assert width % BLOCK == 0
    blocks = width // BLOCK
    packed_Tb = q.packed.view(rows, width // 2).index_select(0, rows_T)
    codes_TQ = q.absmax.view(rows, blocks).index_select(0, rows_T)
    nested_TQ = (rows_T[:, None] * blocks + torch.arange(blocks, device=rows_T.device)) // NESTED
    absmax_TQ = q.nested_map.index_select(0, codes_TQ.view(-1).to(torch.int32))
    absmax_TQ = absmax_TQ.mul_(q.nested_absmax.index_select(0, nested_TQ.view(-1))).add_(q.offset)
    out = torch.empty(len(rows_T), width, dtype=torch.float32, device=q.packed.device)
    _write_products(packed_Tb.view(-1), absmax_TQ, out.view(-1))
    return out.to(dtype)


def nf4_part(q: NF4, start: int, stop: int) -> tuple[NF4, int]:
    """A run of the flat weight, as views of the parts of the whole: nothing is copied.

    The run is widened to the left up to the next boundary of the double quantisation, that is by 16,383 weights at most,
    so that every kernel can read it as a weight of its own.

    Args:
        q: quantised tensor.
        start: first weight.
        stop: one past the last weight.

    Returns:
        The run, of shape (its length,), and the place of ``start`` in it.
    """
    assert 0 <= start < stop <= q.numel(), (start, stop, q.numel())
    nested = start // (BLOCK * NESTED)
    first = nested * BLOCK * NESTED
    packed, absmax = q.packed[first // 2 : -(-stop // 2)], q.absmax[nested * NESTED : -(-stop // BLOCK)]
    nested_absmax = q.nested_absmax[nested : -(-stop // (BLOCK * NESTED))]
    return NF4(packed, absmax, nested_absmax, q.nested_map, q.offset, (stop - first,)), start - first


class Update(NamedTuple):
    """What an adapter adds to a product: ``scale * xA B^T``.

    Attributes:
        xA_TR: the narrow product ``x A^T``, in the dtype of x; rows may be strided, here and in B.
        B_OR: shape (O, R), any floating dtype; it is rounded to the dtype of x.
        scale: ``alpha / r``.
    """

    xA_TR: Tensor
    B_OR: Tensor
    scale: float


def nf4_matmul(
    x_TI: Tensor, q: NF4, update: Update | None = None, bias_O: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """``x @ W.T + scale * xA B.T + b`` with a quantised W, for few tokens: added up in fp32 and rounded once.

    The weight is rounded to the dtype of x before the product, as ``dequantize_nf4`` does.

    Args:
        x_TI: shape (T, I), last dimension contiguous.
        q: shape (O, I).
        update: what an adapter adds.
        bias_O: shape (O,).
        out: shape (T, O), dtype of x, to be written; rows may be strided.

    Returns:
        Shape (T, O), dtype of x; ``out`` where it is given.
    """
    assert x_TI.shape[1] == q.shape[1]
    if x_TI.is_cuda:
        return on_gpu.nf4_matmul(x_TI, q, update, bias_O, out)
    weight_OI, bias_O = dequantize_nf4(q, x_TI.dtype), None if bias_O is None else bias_O.to(x_TI.dtype)
    if update is not None:
        return lora_matmul(x_TI, weight_OI, update.xA_TR, update.B_OR.to(x_TI.dtype), update.scale, bias_O, out)
    y_TO = torch.nn.functional.linear(x_TI, weight_OI, bias_O)
    return y_TO if out is None else out.copy_(y_TO)


def _pieces(parts: Iterable[Tensor], most: int) -> Iterator[Tensor]:
    """The flat parts in fp32, cut again into about ``most`` weights: whole blocks each, but for the last one."""
    rest = torch.empty(0)
    for part in parts:
        for piece in part.detach().reshape(-1).split(most):
            piece = torch.cat([rest, piece.float()]) if len(rest) else piece.float()
            whole = len(piece) - len(piece) % BLOCK
            rest = piece[whole:]
            if whole:
                yield piece[:whole]
    if len(rest):
        yield rest


def _divide_blocks(piece: Tensor, absmax_Q: Tensor) -> Tensor:
    """Quotients of magnitude 1 at most; the absmax of the blocks are written to ``absmax_Q``."""
    whole = len(piece) // BLOCK
    blocks, rest = piece[: whole * BLOCK].view(whole, BLOCK), piece[whole * BLOCK :]
    torch.amax(blocks.abs(), 1, out=absmax_Q[:whole])
    quotients = blocks.mul(1.0 / absmax_Q[:whole, None].clamp(min=_SMALLEST)).view(-1)
    if len(rest):
        absmax_Q[whole:] = rest.abs().max().clamp(min=_SMALLEST)
        quotients = torch.cat([quotients, rest / absmax_Q[whole:]])
    return quotients.clamp_(-1, 1)


@cache
@torch.inference_mode(False)
def _cells(device: torch.device) -> tuple[Tensor, Tensor]:
    """For each upper half of an fp32 number: boundaries below the cell (uint8), and the one inside it (infinity if none)."""
    table = torch.tensor(VALUES)  # on the CPU, as the map below: the same tables on every device
    bounds = (table[:-1] + table[1:]) / 2
    upper = torch.arange(_GRID, dtype=torch.int32) << 16
    ends = torch.stack([upper.view(torch.float32), (upper | 0xFFFF).view(torch.float32)])
    below = torch.bucketize(ends.amin(0), bounds)
    within = torch.bucketize(ends.amax(0), bounds, right=True) > below
    bound = torch.where(within, bounds[below.clamp(max=len(bounds) - 1)], torch.inf)
    return below.to(torch.uint8).to(device), bound.to(device)


def nearest_code(quotients: Tensor) -> Tensor:
    """The code of the nearest value: how many boundaries lie below each quotient, uint8."""
    below, bound = _cells(quotients.device)
    cell = (quotients.view(torch.int32) >> 16).bitwise_and_(0xFFFF)
    return below.index_select(0, cell).add_((quotients > bound.index_select(0, cell)).view(torch.uint8))


@cache
@torch.inference_mode(False)
def _absmax_codes(device: torch.device) -> Tensor:
    """The nearest absmax code of each point of the grid over [-1, 1], uint8."""
    nested_map = dynamic_map(torch.device("cpu"))
    points = -1.0 + (2.0 * torch.arange(_GRID, dtype=torch.float32)) / (_GRID - 1)
    return torch.bucketize(points, (nested_map[:-1] + nested_map[1:]) * 0.5).to(torch.uint8).to(device)


def _quantize_absmax(centred_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (Q,) and absmax of each 256 of them."""
    count = len(centred_Q)
    blocks = torch.nn.functional.pad(centred_Q, (0, -count % NESTED)).view(-1, NESTED)
    absmax = blocks.abs().amax(1, keepdim=True)
    # 1 / absmax overflows for a subnormal absmax, and 0 * infinity has no grid point.
    quotients = (blocks * (1.0 / absmax)).nan_to_num_(0.0).clamp_(-1, 1)
    point = ((quotients + 1.0) * 0.5 * (_GRID - 1) + 0.5).to(torch.int32)
    codes = _absmax_codes(centred_Q.device).index_select(0, point.view(-1)).view_as(point)
    codes = codes.masked_fill_(absmax == 0, 0)
    return codes.view(-1)[:count].clone(), absmax[:, 0]


@cache
@torch.inference_mode(False)
def _pairs(device: torch.device) -> Tensor:
    """The two fp32 values of each byte, shape (256,), as one int64."""
    byte = torch.arange(256, device=device)
    pairs = torch.stack([values(device)[byte >> 4], values(device)[byte & 15]], 1)
    return pairs.view(torch.int64).view(-1)


def _write_products(packed: Tensor, absmax_Q: Tensor, out: Tensor) -> None:
    """Value times absmax into ``out``, fp32, flat, beginning with a block; the sources may reach beyond it."""
    count = len(out)
    even, whole = count - count % 2, count // BLOCK
    torch.index_select(_pairs(out.device), 0, packed[: even // 2].to(torch.int32), out=out[:even].view(torch.int64))
    if count % 2:
        out[even:] = values(out.device)[int(packed[even // 2]) >> 4]
    out[: whole * BLOCK].view(whole, BLOCK).mul_(absmax_Q[:whole, None])
    if count % BLOCK:
        out[whole * BLOCK :].mul_(absmax_Q[whole])
