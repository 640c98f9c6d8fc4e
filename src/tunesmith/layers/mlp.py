"""Gated MLP of a decoder layer: norm, gate and up in one product, activation and down in one step of the graph.

It takes the place of a stock MLP on one model instance, together with the norm before it. What the backward pass keeps
are the outputs of gate and up; the activated product, three times as wide as the hidden state, is made again in the very
pass that takes its gradient (``kernels/glu.py``).

Shape suffixes: T tokens, D hidden size, F features of the hidden layer, S ranks of a group, Z features and ranks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.kernels.glu import glu_backward, glu_forward
from tunesmith.layers.dropout import draw_mask
from tunesmith.layers.lora import LoRAGroup, LoRALinear, Norm, join
from tunesmith.layers.tiled_mlp import Parts, tiled_mlp


class FusedMLP(nn.Module):
    """``down(act(gate(norm(x))) * up(norm(x)))`` with adapters on all three.

    Args:
        inputs: the layers that make gate and up, or the one that makes both side by side, by their stock names; one group.
        down: the layer after them.
        activation: ``silu`` or ``gelu_tanh``.
        norm: the norm before the layer.

    Attributes:
        is_read: whether anybody looks at the output; not where only gradients are wanted (``models/recompute.py``).
        ends_layer: whether the decoder layer does nothing with the output but add it.
        tile: tokens that pass at a time (``layers/tiled_mlp.py``); 0 for all.
    """

    is_read = True
    ends_layer = False
    tile: int = 0

    def __init__(self, inputs: Mapping[str, LoRALinear], down: LoRALinear, activation: str, norm: Norm):
        super().__init__()
        for name, layer in inputs.items():
            self.register_module(name, layer)
        self.down_proj = down
        self.gate_up = join(list(inputs.values()))
        self.activation, self.norm = activation, norm

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., D) to (..., D)."""
        if 0 < self.tile < x.numel() // x.shape[-1]:
            return self._tiled(x)
        gate_up_T2F = self.gate_up(x.reshape(-1, x.shape[-1]), self.norm)
        down = self.down_proj
        if down.group.answers(gate_up_T2F):
            gate_TF, up_TF = gate_up_T2F.chunk(2, dim=1)
            return down.group.answer(glu_forward(gate_TF, up_TF, self.activation)).view(x.shape)
        dropout = down.dropout if down.training else 0.0
        seed = down.dropout_seed() if dropout else 0
        settings = (down.group, self.activation, dropout, seed, self.is_read)
        return _DownFunction.apply(gate_up_T2F, *settings, down.lora_A, down.lora_B).view(x.shape)  # type: ignore[union-attr]

    def _tiled(self, x: Tensor) -> Tensor:
        first = self.gate_up.layers[0]
        dropouts = [max(layer.dropout for layer in self.gate_up.layers) if first.training else 0.0]
        dropouts.append(self.down_proj.dropout if self.down_proj.training else 0.0)
        seeds = [layer.dropout_seed() if p else 0 for layer, p in zip((first, self.down_proj), dropouts, strict=True)]
        parts = Parts(
            gate_up=self.gate_up,
            down=self.down_proj.group,
            norm=self.norm,
            activation=self.activation,
            dropout=(dropouts[0], dropouts[1]),
            seeds=(seeds[0], seeds[1]),
            tile=self.tile,
        )
        return tiled_mlp(x.reshape(-1, x.shape[-1]), parts).view(x.shape)


class _DownFunction(torch.autograd.Function):
    """Activation and down projection."""

    @staticmethod
    def forward(
        ctx: Any, gate_up_T2F: Tensor, group: LoRAGroup, activation: str, dropout: float, seed: int, is_read: bool, *_: Tensor
    ) -> Tensor:
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=1)
        h_TZ, h_TF = group.augmented_input(gate_TF)
        glu_forward(gate_TF, up_TF, activation, out=h_TF)
        mask = draw_mask(h_TF, dropout, seed) if dropout else None
        y_TD, hA_TS = group.outputs(h_TF, h_TZ, mask, 1.0 - dropout, is_read)
        ctx.save_for_backward(gate_up_T2F, hA_TS)
        ctx.group, ctx.activation, ctx.dropout, ctx.seed = group, activation, dropout, seed
        return y_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate_up_T2F, hA_TS = ctx.saved_tensors
        group, keep, dy_TD = ctx.group, 1.0 - ctx.dropout, grads[0]
        gate_TF, up_TF = gate_up_T2F.chunk(2, dim=1)
        mask = draw_mask(gate_TF, ctx.dropout, ctx.seed) if ctx.dropout else None
        dh_TF, dhA_TS = group.input_gradients(dy_TD, mask, keep)
        h_TF, dgate_dup_T2F = glu_backward(dh_TF, gate_TF, up_TF, ctx.activation)
        grads_adapter = group.adapter_gradients(dy_TD, h_TF, hA_TS, dhA_TS, mask, keep)
        return dgate_dup_T2F, None, None, None, None, None, *grads_adapter
