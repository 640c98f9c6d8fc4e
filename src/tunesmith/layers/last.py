"""The last decoder layer, computed where somebody looks.

After the last layer only the positions that predict a supervised token are read, one in eight of an ordinary chat. Its
keys and values need every token; its output projection, its MLP and both residual sums do not. So they run on the rows
that are asked for: the layer costs a quarter of the others, and no number changes.

It takes the place of a stock decoder layer whose attention and MLP are already ours (``models/fuse.py``), under the same
names.

Shape suffixes: T tokens, N rows that are asked for, D hidden size.
"""

from typing import Any

from torch import Tensor, nn

from tunesmith.layers.attention import FusedAttention
from tunesmith.layers.mlp import FusedMLP


class LastLayer(nn.Module):
    """A decoder layer for some rows.

    Args:
        self_attn, mlp: as in the other layers.
        after_attention, after_mlp: names and modules of the norms that stand before the residual is added, where the
            family has them.
    """

    def __init__(
        self,
        self_attn: FusedAttention,
        mlp: FusedMLP,
        after_attention: tuple[str, nn.Module] | None = None,
        after_mlp: tuple[str, nn.Module] | None = None,
    ):
        super().__init__()
        self.self_attn, self.mlp = self_attn, mlp
        self._after: list[str | None] = []
        for named in (after_attention, after_mlp):
            self._after.append(None if named is None else named[0])
            if named is not None:
                self.register_module(*named)

    def forward(self, hidden_states: Tensor, rows_N: Tensor, **arguments: Any) -> Tensor:
        """Shape (1, T, D) to (1, N, D).

        Args:
            rows_N: the positions that are asked for, int64, in the order of the result; may repeat.
            arguments: what the stock layer hands to its attention.
        """
        out, _ = self.self_attn(hidden_states=hidden_states, only_N=rows_N, **arguments)
        hidden = hidden_states[:, rows_N] + self._normed(0, out)
        return hidden + self._normed(1, self.mlp(hidden))

    def _normed(self, which: int, x: Tensor) -> Tensor:
        name = self._after[which]
        return x if name is None else self.get_submodule(name)(x)
