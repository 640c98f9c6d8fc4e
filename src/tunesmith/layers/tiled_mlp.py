"""The MLP of a decoder layer over tiles of tokens: what grows with the length of a pack is its input alone.

Gate, up and the gradients of both are 94 KB a token in an 8B model, whose hidden state is 8. Every token passes an MLP by
itself, so the pack can go through in tiles: forward writes the output tile by tile and keeps the input; backward makes gate
and up of a tile again, writes the tile's part of the input's gradient and adds what the adapters get in their own dtype
(fp32), r wide. There are no gradients of weights to add up, which cost peers 23 GiB.

**No second forward pass.** Backward makes again what it needs: under ``train.recompute: layer`` the forward pass over the MLP
need not run again. Two steps of the graph see to it: the first keeps the input and has the whole gradient, the second computes
and keeps nothing. PyTorch's recomputation ends with the last tensor that was kept, which is that input unless a norm
follows; the products after it never run. A layer without a norm after its MLP so saves the down product of the recomputed pass.

**Equal to the whole.** Rows of a product do not depend on each other, so outputs and gradients of the input are those of the
whole to rounding (a library may add up in another order where there are fewer rows); the adapters' gradients are a sum in
another order. Dropout is the mask of the whole pack, drawn tile by tile (``layers/dropout.py``).

Every product of a tile unpacks its quantised weight anew, so tiles should be as large as memory allows; ``auto`` is
``memory.dials.auto_tile``.

Refused: tiles of experts (each expert's rows are a tile already, and their number is known on the GPU alone); a tile of the
whole layer (attention needs all keys).

Sources: ALST (arXiv 2506.13996, tiled MLP); the two steps are ours.

Shape suffixes: T tokens, P some of the rows (a tile's), D hidden size, F features of the hidden layer, I in_features, S ranks
of a group, Z features and ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.kernels.glu import glu_backward, glu_forward
from tunesmith.kernels.rms_norm import rms_norm_backward, rms_norm_forward
from tunesmith.layers.dropout import Mask, MaskRows, drop
from tunesmith.layers.lora import LoRAGroup, Norm


@dataclass(frozen=True, kw_only=True)
class Parts:
    """An MLP as the tiles need it.

    Attributes:
        gate_up, down: its groups.
        norm: before it.
        activation: ``silu`` or ``gelu_tanh``.
        dropout: of the common input of gate and up, and of that of down.
        seeds: of their masks.
        tile: tokens.
    """

    gate_up: LoRAGroup
    down: LoRAGroup
    norm: Norm
    activation: str
    dropout: tuple[float, float]
    seeds: tuple[int, int]
    tile: int

    def slices(self, tokens: int) -> Iterator[tuple[slice, "Masks"]]:
        """Rows of each tile, and what draws its masks: in turn, first of the one input, then of the other."""
        masks = Masks(*(MaskRows(p, seed) if p else None for p, seed in zip(self.dropout, self.seeds, strict=True)))
        for start in range(0, tokens, self.tile):
            yield slice(start, min(start + self.tile, tokens)), masks


@dataclass(frozen=True)
class Masks:
    """What draws the masks of the two inputs, or None without dropout."""

    x: MaskRows | None
    h: MaskRows | None


def tiled_mlp(x_TD: Tensor, parts: Parts) -> Tensor:
    """Shape (T, D) to (T, D), recorded by autograd."""
    adapters = [p for group in (parts.gate_up, parts.down) for layer in group.layers for p in (layer.lora_A, layer.lora_B)]
    kept_TD = _Gradient.apply(x_TD, parts, *adapters)
    return _Output.apply(kept_TD, parts)  # type: ignore[return-value]


class _Output(torch.autograd.Function):
    """The value; keeps nothing, and hands the gradient on as it is."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, parts: Parts) -> Tensor:
        y_TD = torch.empty_like(x_TD)
        for rows, masks in parts.slices(len(x_TD)):
            tile = _Tile(x_TD[rows], parts, masks)
            y_TD[rows] = parts.down.outputs(tile.h_PF(), tile.h_PZ, tile.h_mask, 1.0 - parts.dropout[1])[0]
        return y_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Gradient(torch.autograd.Function):
    """The input itself, which is kept before ``_Output`` computes; backward, the gradients of the whole MLP."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, parts: Parts, *_: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD)
        ctx.parts = parts
        return x_TD.view_as(x_TD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_TD,), dy_TD, parts = ctx.saved_tensors, grads[0], ctx.parts
        dx_TD = torch.empty_like(x_TD) if ctx.needs_input_grad[0] else None
        sums: list[Tensor] = []
        for rows, masks in parts.slices(len(x_TD)):
            found = _Tile(x_TD[rows], parts, masks).gradients(dy_TD[rows], None if dx_TD is None else dx_TD[rows])
            sums = [total.add_(grad) for total, grad in zip(sums, found, strict=True)] if sums else found
            del found  # else those of a tile are there while the next one is computed
        return dx_TD, None, *sums


class _Tile:
    """Gate and up of some tokens, with the masks of their inputs; an empty ``[h | h A^T]`` beside them."""

    def __init__(self, x_PD: Tensor, parts: Parts, masks: Masks):
        self._parts, self._x_PD = parts, x_PD
        self._normed_PD, self._rstd_P = rms_norm_forward(x_PD, parts.norm.weight_I, parts.norm.eps, parts.norm.offset)
        x_PZ, input_PD = parts.gate_up.augmented_input(x_PD)
        input_PD.copy_(self._normed_PD)
        self._x_mask = None if masks.x is None else masks.x.draw(x_PD)
        outputs = parts.gate_up.outputs(self._normed_PD, x_PZ, self._x_mask, 1.0 - parts.dropout[0])
        self._gate_up_P2F, self._xA_PS = outputs
        del x_PZ, input_PD
        self._gate_PF, self._up_PF = self._gate_up_P2F.chunk(2, dim=1)
        self.h_mask: Mask | None = None if masks.h is None else masks.h.draw(self._gate_PF)
        self.h_PZ = x_PD.new_empty(0)

    def h_PF(self) -> Tensor:
        """The activated product, in the first columns of ``h_PZ``."""
        self.h_PZ, h_PF = self._parts.down.augmented_input(self._gate_PF)
        return glu_forward(self._gate_PF, self._up_PF, self._parts.activation, out=h_PF)

    def gradients(self, dy_PD: Tensor, dx_PD: Tensor | None) -> list[Tensor]:
        """Gradients of all adapters, A and B of each layer in turn; those of the input go to ``dx_PD``."""
        parts = self._parts
        keep_x, keep_h = (1.0 - p for p in parts.dropout)
        dh_PF, dhA_PS = parts.down.input_gradients(dy_PD, self.h_mask, keep_h)
        h_PF, d_P2F = glu_backward(dh_PF, self._gate_PF, self._up_PF, parts.activation)
        hA_PS = drop(h_PF, self.h_mask) @ parts.down.A_SI(h_PF.dtype).T
        of_down = parts.down.adapter_gradients(dy_PD, h_PF, hA_PS, dhA_PS, self.h_mask, keep_h)
        del dh_PF, dhA_PS, h_PF, hA_PS, self._gate_PF, self._up_PF, self._gate_up_P2F
        if dx_PD is None:
            dxA_PS = parts.gate_up.grad_xA(d_P2F, keep_x)
        else:
            dnormed_PD, dxA_PS = parts.gate_up.input_gradients(d_P2F, self._x_mask, keep_x)
            norm = parts.norm
            dx_PD.copy_(rms_norm_backward(dnormed_PD, self._x_PD, norm.weight_I, self._rstd_P, norm.offset))
        x_PD, x_mask = self._normed_PD, self._x_mask
        return [*parts.gate_up.adapter_gradients(d_P2F, x_PD, self._xA_PS, dxA_PS, x_mask, keep_x), *of_down]
