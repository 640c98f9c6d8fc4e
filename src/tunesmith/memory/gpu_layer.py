"""What one decoder layer allocates and frees on a GPU, forwards and backwards, as our modules compute it.

The order is that of ``layers/lora.py``, ``layers/attention.py`` and ``layers/mlp.py``, tensor by tensor; names on the tape are
the variables there. Which of these moments is the worst depends on widths and tokens, so all are written down and the tape
tells; a formula for the worst alone is wrong for the next shape. Held against a trace of the code itself by
``tests/memory/test_gpu_trace.py``.

Not counted, because it lies within one operation of PyTorch: fp32 sums of the flash kernel's backward pass (6 bytes a token
and feature of the queries or so), which are there when the MLP's tensors, of more, are not.

Mixtures: an expert's tokens are the pack's, each ``chosen`` times.
"""

from dataclasses import dataclass

from tunesmith.memory.dials import Dials, auto_tile
from tunesmith.memory.shape import Layer
from tunesmith.memory.tape import Tape

ALIGNED = 16  # elements of a row that an input and its ranks are filled up to (layers/lora.py)
ATTENTION, MLP, INPUTS, WORK, GRADIENTS = "kept: attention", "kept: MLP", "kept: inputs of layers", "in work", "gradients"

PARTS = ("normed", "rstd", "xz", "xA", "gate_up", "hz", "hA", "out", "dgate_dup", "d", "of down", "of gate_up")
TILE = tuple(f"t {part}" for part in PARTS)


def columns(inputs: int, ranks: int, padded: bool = True) -> int:
    """Columns beside an input of this width: one a rank, and what aligns the rows."""
    return ranks + (-(inputs + ranks) % ALIGNED if padded else 0)


@dataclass(frozen=True)
class GpuLayer:
    """One layer under some dials.

    Attributes:
        layer, hidden, dials: what is computed.
        narrow: the output is computed for the supervised rows alone.
        first: its input wants no gradient.
    """

    layer: Layer
    hidden: int
    dials: Dials
    narrow: bool = False
    first: bool = False

    @property
    def rows(self) -> int:
        """Tokens behind attention."""
        return self.dials.rows if self.narrow else self.dials.tokens

    def size(self, rows: int, width: int) -> int:
        """Bytes of activations."""
        return rows * width * self.dials.width

    def group(self, tape: Tape, name: str, rows: int, inputs: int, outs: tuple[int, ...], term: str, norm: bool) -> None:
        """Forwards through a group: keeps ``rstd``, ``xA`` and its output."""
        cols = columns(inputs, self.dials.r * len(outs))
        tape.hold(f"{name} xz", self.size(rows, inputs + cols), WORK)
        if norm:
            tape.hold(f"{name} rstd", 4 * rows, term)
        tape.hold(f"{name} xA", self.size(rows, cols), term)
        tape.hold(f"{name} out", self.size(rows, sum(outs)), term)
        tape.free(f"{name} xz")

    def group_back(self, tape: Tape, name: str, rows: int, inputs: int, outs: tuple[int, ...], norm: bool) -> None:
        """Backwards: leaves ``dx`` and the gradients."""
        cols = columns(inputs, self.dials.r * len(outs))
        tape.hold(f"{name} d", self.size(rows, inputs + cols), WORK)
        self.gradients(tape, name, inputs, outs)
        if norm:
            tape.hold(f"{name} dx", self.size(rows, inputs), WORK)
            tape.free(f"{name} d")
        tape.free(f"{name} xA", f"{name} rstd")

    def gradients(self, tape: Tape, name: str, inputs: int, outs: tuple[int, ...]) -> None:
        """Gradients of the adapters; from the second micro-batch on they are added to and end."""
        cols = columns(inputs, self.dials.r * len(outs))
        tape.hold(f"{name} dA", 4 * cols * inputs, GRADIENTS)
        for number, width in enumerate(outs):
            tape.hold(f"{name} dB{number}", 4 * width * self.dials.r, GRADIENTS)

    def attention(self, tape: Tape) -> None:
        """Forwards: keeps what its gradients read, and ``o out``."""
        layer, T = self.layer, self.dials.tokens
        q, kv, heads = layer.query, layer.key_value, layer.heads
        self.group(tape, "qkv", T, self.hidden, layer.inputs, ATTENTION, norm=True)
        if layer.qk_norm:
            tape.hold("q normed", self.size(T, q), ATTENTION)
            tape.hold("q rstd", 4 * T * heads, ATTENTION)
            if kv:
                tape.hold("k normed", self.size(T, kv), ATTENTION)
                tape.hold("k rstd", 4 * T * layer.kv_heads, ATTENTION)
        if layer.v_norm:
            tape.hold("v normed", self.size(T, kv), ATTENTION)
            tape.hold("v rstd", 4 * T * layer.kv_heads, ATTENTION)
        if layer.writes:
            tape.hold("k shared", self.size(T, kv), ATTENTION)
            tape.hold("v shared", self.size(T, kv), ATTENTION)
            tape.free("k normed", "v normed")
        tape.hold("heads out", self.size(T, q), ATTENTION)
        tape.hold("logsumexp", 4 * T * heads, ATTENTION)
        if self.narrow:
            tape.hold("rows of heads", self.size(self.rows, q), ATTENTION)
        self.group(tape, "o", self.rows, q, (self.hidden,), ATTENTION, norm=False)
        if self.layer.after:
            tape.hold("o after", self.size(self.rows, self.hidden), WORK)
            tape.hold("o after rstd", 4 * self.rows, ATTENTION)

    def mlp(self, tape: Tape) -> None:
        """Forwards: keeps what its gradients read, and ``down out``."""
        if self.tile:
            tape.hold("down out", self.size(self.rows, self.hidden), MLP)
            self._tile(tape)
            tape.free(*TILE)
            return
        layer, rows, f = self.layer, self.rows, self.layer.intermediate
        self.group(tape, "gate_up", rows, self.hidden, layer.gates, MLP, norm=True)
        cols = columns(f, self.dials.r)
        tape.hold("hz", self.size(rows, f + cols), WORK)
        tape.hold("down xA", self.size(rows, cols), MLP)
        tape.hold("down out", self.size(rows, self.hidden), MLP)
        tape.free("hz")
        if self.layer.after:
            tape.hold("down after", self.size(rows, self.hidden), WORK)
            tape.hold("down after rstd", 4 * rows, MLP)

    @property
    def tile(self) -> int:
        """Tokens that pass the MLP at a time, 0 for all."""
        if not (self.layer.intermediate and self.dials.plain):
            return 0
        tile = auto_tile(self.layer.intermediate) if self.dials.mlp_tile == "auto" else self.dials.mlp_tile
        return tile if self.rows > tile else 0

    def _tile(self, tape: Tape) -> None:
        """What stands while a tile is computed (``layers/tiled_mlp.py``)."""
        P, f, hidden = self.tile, self.layer.intermediate, self.hidden
        wide, narrow = columns(hidden, self.dials.r * len(self.layer.gates)), columns(f, self.dials.r)
        tape.hold("t normed", self.size(P, hidden), WORK)
        tape.hold("t rstd", 4 * P, WORK)
        tape.hold("t xz", self.size(P, hidden + wide), WORK)
        tape.hold("t xA", self.size(P, wide), WORK)
        tape.hold("t gate_up", self.size(P, 2 * f), WORK)
        tape.free("t xz")
        tape.hold("t hz", self.size(P, f + narrow), WORK)
        tape.hold("t hA", self.size(P, narrow), WORK)
        tape.hold("t out", self.size(P, hidden), WORK)

    def _tiles_back(self, tape: Tape) -> None:
        """All tiles backwards: ``gate_up dx`` of all rows, and the adapters' gradients, twice while they are added."""
        P, f, hidden = self.tile, self.layer.intermediate, self.hidden
        wide, narrow = columns(hidden, self.dials.r * len(self.layer.gates)), columns(f, self.dials.r)
        tape.hold("gate_up dx", self.size(self.rows, hidden), WORK)
        self.gradients(tape, "gate_up", hidden, self.layer.gates)
        self.gradients(tape, "down", f, (hidden,))
        tape.hold("t normed", self.size(P, hidden), WORK)
        tape.hold("t rstd", 4 * P, WORK)
        tape.hold("t xA", self.size(P, wide), WORK)
        tape.hold("t gate_up", self.size(P, 2 * f), WORK)
        tape.hold("t dh", self.size(P, f + narrow), WORK)
        tape.hold("t dgate_dup", self.size(P, 2 * f), WORK)  # the activated product takes the place of dh
        if self.dials.dropout:
            tape.hold("t dropped", self.size(P, f), WORK)
            tape.free("t dropped")
        tape.hold("t hA", self.size(P, narrow), WORK)
        tape.hold("t of down", 4 * (self.dials.r * hidden + narrow * f), WORK)
        tape.free("t dh", "t hA", "t gate_up")
        tape.hold("t d", self.size(P, hidden + wide), WORK)
        tape.hold("t dx", self.size(P, hidden), WORK)
        tape.free("t dx")
        tape.hold("t of gate_up", 4 * (self.dials.r * sum(self.layer.gates) + wide * hidden), WORK)
        tape.free(*TILE)

    def forward(self, tape: Tape) -> None:
        """The whole layer, its input alive; ends with ``out`` and what is kept."""
        self.attention(tape)
        if self.narrow:
            tape.hold("rows of input", self.size(self.rows, self.hidden), WORK)
        tape.hold("x2", self.size(self.rows, self.hidden), MLP)
        tape.free("o after", "rows of input", *(() if self.layer.after else ("o out",)))
        self.mlp(tape)
        tape.hold("out", self.size(self.rows, self.hidden), INPUTS)
        tape.free("down after", *(() if self.layer.after else ("down out",)))

    def drop(self, tape: Tape, attention: bool, mlp: bool) -> None:
        """Forget what a recomputed part would have kept."""
        if attention:
            tape.free("qkv rstd", "qkv xA", "qkv out", "q normed", "q rstd", "k normed", "k rstd", "v normed")
            tape.free("v rstd", "heads out", "logsumexp", "rows of heads", "o xA")
        if mlp:
            tape.free("gate_up rstd", "gate_up xA", "gate_up out", "down xA")

    def drop_all(self, tape: Tape) -> None:
        """Forget all but the input."""
        self.drop(tape, True, True)
        tape.free("x2", "o out", "o after rstd", "down out", "down after rstd", "k shared", "v shared")

    def backward(self, tape: Tape, policy: str) -> None:
        """Backwards through the layer after ``forward``, from the gradient of its output, which lies elsewhere.

        Args:
            policy: what of it is computed a second time first.
        """
        after = self.layer.after
        if policy == "layer":
            self.attention(tape)
            tape.hold("x2", self.size(self.rows, self.hidden), MLP)
            tape.free("o after", *(() if after else ("o out",)))
        elif policy == "mlp" and after:
            tape.free("down out", "down after rstd")
        if policy in ("layer", "mlp"):
            self.mlp(tape)
            tape.free("down after", *(() if after else ("down out",)))
        self.mlp_back(tape)
        if policy == "attention":
            tape.free("o out", "o after rstd")
            self.attention(tape)
            tape.free("o after", *(() if after else ("o out",)))
        self.attention_back(tape)

    def mlp_back(self, tape: Tape) -> None:
        """Backwards from ``g``, the gradient of the output; leaves ``g`` of what came in."""
        rows, f, hidden = self.rows, self.layer.intermediate, self.hidden
        if self.layer.after:
            tape.hold("g down", self.size(rows, hidden), WORK)
            tape.free("down out", "down after rstd")
        if self.tile:
            self._tiles_back(tape)
            tape.free("g down", "x2", "gate_up dx")
            return
        cols = columns(f, self.dials.r)
        tape.hold("down d", self.size(rows, f + cols), WORK)
        tape.hold("dgate_dup", self.size(rows, 2 * f), WORK)
        self.gradients(tape, "down", f, (hidden,))
        tape.free("down d", "gate_up out", "down xA", "g down")
        self.group_back(tape, "gate_up", rows, hidden, self.layer.gates, norm=True)
        tape.free("dgate_dup", "x2")
        tape.free("gate_up dx")

    def attention_back(self, tape: Tape) -> None:
        """Backwards from ``g``."""
        layer, T, rows, q = self.layer, self.dials.tokens, self.rows, self.layer.query
        if layer.after:
            tape.hold("g o", self.size(rows, self.hidden), WORK)
            tape.free("o out", "o after rstd")
        self.group_back(tape, "o", rows, q, (self.hidden,), norm=False)
        tape.free("g o")
        if self.narrow:
            tape.hold("g heads", self.size(T, q), WORK)
            tape.free("o d", "rows of heads")
        seen = layer.seen_kv_heads * layer.head_dim
        tape.hold("dq", self.size(T, q), WORK)
        tape.hold("dk", self.size(T, seen), WORK)
        tape.hold("dv", self.size(T, seen), WORK)
        tape.free("o d", "g heads", "heads out", "logsumexp", "k normed", "q normed", "v normed")
        tape.free("k shared", "v shared")
        if not layer.qk_norm:
            tape.free("qkv out")
        tape.hold("dqkv", self.size(T, sum(layer.inputs)), WORK)
        if layer.qk_norm:
            tape.hold("turned back", self.size(T, q), WORK)
            tape.free("turned back")
        tape.free("dq", "dk", "dv", "qkv out", "q rstd", "k rstd", "v rstd")
        self.group_back(tape, "qkv", T, self.hidden, layer.inputs, norm=True)
        tape.free("dqkv")
        if self.narrow:
            tape.hold("g of rows", self.size(T, self.hidden), WORK)
            tape.free("g of rows")
        tape.free("qkv dx")
