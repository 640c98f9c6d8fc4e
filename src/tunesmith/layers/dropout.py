"""Dropout of single elements by a seed, as PEFT defines it for LoRA: drawn again in the backward pass, never kept.

A mask is an integer as wide as the element, all its bits set where the element stays, and dropping is a bitwise *and*. Both
are memory-speed passes. ``bernoulli_`` takes 12 ns an element on a CPU; a boolean mask and ``where`` take 1.6, most of it in
two conversions that ATen does not vectorise; this takes 0.5 beside the 0.8 of the random numbers, which are 64 bits wide
and cut in four. The probability is rounded to a multiple of 2^-16 (0.05 becomes 0.050003).
"""

import math

import torch
from torch import Tensor

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integer of an element's bytes


def draw_mask(x: Tensor, probability: float, seed: int) -> Tensor:
    """Which elements of ``x`` stay: shape of x, integers of its element's width, -1 or 0; the same for the same seed."""
    generator = torch.Generator(x.device).manual_seed(seed)
    words = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=generator)
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
    mask = torch.empty(x.shape, dtype=BITS[x.element_size()], device=x.device)
    return torch.ge(drawn, -(2**15) + round(probability * 2**16), out=mask).neg_()


def drop(x: Tensor, mask: Tensor | None) -> Tensor:
    """``x`` with zeros where ``mask`` (see ``draw_mask``) is 0; ``x`` itself without dropout."""
    return x if mask is None else torch.bitwise_and(x.view(mask.dtype), mask).view(x.dtype)
