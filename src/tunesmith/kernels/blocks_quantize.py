"""Blocks of a weight that nobody has quantised yet: Q8_0, and 16 bits.

Q8_0 as llama.cpp rounds it (``ggml-quants.c``, ``quantize_row_q8_0_ref``): 32 weights share ``d = max |w| / 127`` in fp16, and
a code is ``w / d`` rounded half away from zero, with d before it was rounded to fp16. Other types are made by llama.cpp itself
(``checkpoints/gguf_write/quantize.py``), which a training does not need.

Shape suffixes: P some of the rows, I in_features.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.kernels.blocks import Blocks, row_bytes

Q8_0, BF16 = "Q8_0", "BF16"
WEIGHTS = 32  # of a block of Q8_0


@torch.no_grad()
def quantize_q8_0(weight_PI: Tensor) -> Tensor:
    """Rows in Q8_0: uint8, shape (P, bytes of a row).

    Args:
        weight_PI: fp32, fp16 or bf16; I a multiple of 32.
    """
    blocks = weight_PI.float().reshape(-1, WEIGHTS)
    scale = blocks.abs().amax(1, keepdim=True).div_(127.0)
    scaled = blocks * torch.where(scale > 0, 1.0 / scale, 0.0)
    codes = (scaled.abs() + 0.5).floor_().copysign_(scaled).to(torch.int8)
    raw = torch.cat([scale.half().view(torch.uint8).view(-1, 2), codes.view(torch.uint8)], 1)
    return raw.view(len(weight_PI), -1)


@torch.no_grad()
def quantize_blocks(parts: Iterable[Tensor], kind: str, shape: tuple[int, int], device: torch.device | str) -> Blocks:
    """A matrix in blocks, from runs of its flat weight that come one after another.

    Args:
        parts: any shapes, fp32, fp16 or bf16, on ``device``; together as many weights as ``shape``.
        kind: ``Q8_0``, whose rows are multiples of 32, or ``BF16``.
        shape: (O, I).
        device: where the result lies.

    Raises:
        ModelError: a part holds NaN or infinity.
    """
    rows, columns = shape
    block = WEIGHTS if kind == Q8_0 else 1
    raw = torch.empty(rows, row_bytes(kind, columns), dtype=torch.uint8, device=device)
    flat, at, rest = raw.view(-1), 0, torch.empty(0)
    for part in parts:
        if not bool(part.isfinite().all()):
            raise ModelError("a weight holds NaN or infinity, which has no code", "is the checkpoint damaged?")
        piece = torch.cat([rest, part.reshape(-1)]) if len(rest) else part.reshape(-1)
        whole = len(piece) - len(piece) % block
        rest = piece[whole:].clone()  # the part may lie where the next one will
        blocks = piece[:whole].view(-1, block)
        packed = quantize_q8_0(blocks) if kind == Q8_0 else blocks.to(torch.bfloat16).view(torch.uint8)
        flat[at : at + packed.numel()] = packed.view(-1)
        at += packed.numel()
    assert at == len(flat) and not len(rest), f"parts of another size than {shape}"
    return Blocks(raw, kind, shape)
