"""Blocks of a weight that nobody has quantised yet: Q8_0, and 16 bits.

Q8_0 as llama.cpp rounds it (``ggml-quants.c``, ``quantize_row_q8_0_ref``): 32 weights share ``d = max |w| / 127`` in fp16, and
a code is ``w / d`` rounded half away from zero, with d before it was rounded to fp16. Other types are made by llama.cpp itself
(``checkpoints/gguf_write/quantize.py``), which a training does not need.

Shape suffixes: O out_features, I in_features, P some of the rows.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tunesmith.kernels.blocks import Blocks, row_bytes

Q8_0 = "Q8_0"
_WEIGHTS = 32  # of a block


@torch.no_grad()
def quantize_q8_0(weight_PI: Tensor) -> Tensor:
    """Rows in Q8_0: uint8, shape (P, bytes of a row).

    Args:
        weight_PI: fp32, fp16 or bf16; I a multiple of 32.
    """
    blocks = weight_PI.float().reshape(-1, _WEIGHTS)
    scale = blocks.abs().amax(1, keepdim=True).div_(127.0)
    inverse = torch.where(scale > 0, 1.0 / scale, 0.0)
    scaled = blocks * inverse
    codes = (scaled.abs() + 0.5).floor_().copysign_(scaled).to(torch.int8)
    raw = torch.cat([scale.half().view(torch.uint8).view(-1, 2), codes.view(torch.uint8)], 1)
    return raw.view(len(weight_PI), -1)


@torch.no_grad()
def dense_rows(weight_PI: Tensor) -> Tensor:
    """Rows in 16 bits as they are stored: uint8, shape (P, 2 I). What is wider becomes bf16."""
    half = weight_PI if weight_PI.dtype == torch.float16 else weight_PI.to(torch.bfloat16)
    return half.contiguous().view(torch.uint8).view(len(weight_PI), -1)


def blocks_of(parts: Iterable[Tensor], kind: str, shape: tuple[int, int], device: torch.device) -> Blocks:
    """A matrix in blocks, from runs of its flat weight that come one after another.

    Args:
        parts: any shapes, on ``device``; together as many weights as ``shape``.
        kind: ``Q8_0``, ``BF16`` or ``F16``.
        shape: (O, I).
    """
    rows, columns = shape
    pack: Callable[[Tensor], Tensor] = quantize_q8_0 if kind == Q8_0 else dense_rows
    raw = torch.empty(rows, row_bytes(kind, columns), dtype=torch.uint8, device=device)
    flat, at, rest = raw.view(-1), 0, torch.empty(0, device=device)
    for part in parts:
        piece = torch.cat([rest.to(part.dtype), part.reshape(-1)]) if len(rest) else part.reshape(-1)
        whole = len(piece) - len(piece) % _WEIGHTS
        rest = piece[whole:]
        packed = pack(piece[:whole].view(-1, _WEIGHTS)).view(-1)
        flat[at : at + len(packed)] = packed
        at += len(packed)
    assert at == len(flat) and not len(rest), f"parts of another size than {shape}"
    return Blocks(raw, kind, shape)
