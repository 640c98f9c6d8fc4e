"""What one decoder layer allocates and frees on a CPU: the same modules as on a GPU (``gpu_layer.py``), other tensors.

A CPU lays queries, keys and values out by head, keeps the probabilities of short documents, widens rows to fp32 for norms and
scores, draws masks of dropout into memory, and keeps no cast of an adapter from pass to pass; a weight in NF4 is dequantised
one at a time, and in 16 bits once more beside its B. Held against a count of storages in a real step (``tests/memory``).
"""

from dataclasses import dataclass, replace

from tunesmith.memory.gpu_layer import ATTENTION, GRADIENTS, MLP, WORK, GpuLayer
from tunesmith.memory.tape import Tape

# Of kernels/attention.py: queries of a block, tokens of several spans in one, tokens up to which probabilities are kept.
BLOCK, JOINED, KEPT = 64, 128, 512
GLU_BLOCK = 2**17  # elements of a block of kernels/glu.py


@dataclass(frozen=True)
class Blocks:
    """Scores of a pack, in pairs of a query and a key that one head computes.

    Attributes:
        kept: whose probabilities are kept.
        largest: of the largest block.
        keys: of that block.
    """

    kept: int
    largest: int
    keys: int

    @classmethod
    def of(cls, tokens: int, longest: int, window: int | None) -> "Blocks":
        """Of documents of equal length."""
        longest = max(1, min(longest, tokens))
        if longest <= JOINED // 2:
            rows = JOINED // longest * longest
            return cls(kept=tokens * rows, largest=rows * rows, keys=rows)
        pairs = []
        for start in range(0, longest, BLOCK):
            end = min(start + BLOCK, longest)
            pairs.append((end - start, end - (0 if window is None else max(0, start - window + 1))))
        rows, keys = max(pairs, key=lambda pair: pair[0] * pair[1])
        kept = sum(queries * seen for queries, seen in pairs) * tokens // longest if longest <= KEPT else 0
        return cls(kept=kept, largest=rows * keys, keys=keys)


@dataclass(frozen=True)
class CpuLayer(GpuLayer):
    """One layer under some dials."""

    @property
    def short(self) -> bool:
        """Whether activations are in 16 bits."""
        return self.dials.width == 2

    def norm(self, tape: Tape, name: str, rows: int, width: int, term: str) -> None:
        """Rows normed into a tensor of their own, by way of fp32."""
        if self.short:
            tape.hold("wide", 4 * rows * width, WORK)
            tape.hold("wide normed", 4 * rows * width, WORK)
            tape.free("wide")
        tape.hold(name, self.size(rows, width), term)
        tape.free("wide normed")

    def norm_back(self, tape: Tape, name: str, rows: int, width: int) -> None:
        """The gradient of a norm's input."""
        if self.short:
            tape.hold("wide", 4 * rows * width, WORK)
            tape.hold("wide gradient", 4 * rows * width, WORK)
            tape.hold("wide product", 4 * rows * width, WORK)
            tape.free("wide gradient")
        tape.hold(name, self.size(rows, width), WORK)
        tape.free("wide", "wide product")

    def mask(self, tape: Tape, rows: int, width: int) -> None:
        """A mask of dropout, of a byte an element first."""
        if self.dials.dropout:
            tape.hold("drawn", rows * width, WORK)
            tape.hold("mask", self.size(rows, width), WORK)
            tape.free("drawn")

    def cast(self, tape: Tape, inputs: int, ranks: int, layers: int) -> None:
        """All A of a group in the dtype of the products; ends with ``A``."""
        if layers > 1:
            tape.hold("A together", 4 * ranks * inputs, WORK)
        if self.short:
            tape.hold("A", self.size(ranks, inputs), WORK)
            tape.free("A together")

    def product(self, tape: Tape, name: str, rows: int, inputs: int, outs: tuple[int, ...], term: str) -> None:
        """From ``[x | x A^T]`` to the outputs."""
        r = self.dials.r
        tape.hold(f"{name} out", self.size(rows, sum(outs)), term)
        if self.dials.quantised and self.short:
            for width in outs:
                tape.hold("B", self.size(width, r), WORK)
                tape.hold("x and xA", self.size(rows, inputs + r), WORK)
                tape.hold("B scaled", self.size(width, r), WORK)
                tape.hold("W and B", self.size(width, inputs + r), WORK)
                tape.free("B", "x and xA", "B scaled", "W and B")

    def project(self, tape: Tape, name: str, rows: int, inputs: int, outs: tuple[int, ...], term: str) -> None:
        """Dropout, the products with A, the products with W and B; the input lies in ``xz``."""
        ranks = self.dials.r * len(outs)
        self.mask(tape, rows, inputs)
        if self.dials.dropout:
            tape.hold("dropped", self.size(rows, inputs), WORK)
        self.cast(tape, inputs, ranks, len(outs))
        tape.hold(f"{name} xA", self.size(rows, ranks), term)
        tape.free("dropped", "A", "A together")
        self.product(tape, name, rows, inputs, outs, term)
        tape.free("mask")

    def group(self, tape: Tape, name: str, rows: int, inputs: int, outs: tuple[int, ...], term: str, norm: bool) -> None:
        """Forwards through a group: keeps ``rstd``, ``xA`` and its output."""
        if norm:
            tape.hold(f"{name} rstd", 4 * rows, term)
            self.norm(tape, "normed", rows, inputs, WORK)
        tape.hold("xz", self.size(rows, inputs + self.dials.r * len(outs)), WORK)
        self.project(tape, name, rows, inputs, outs, term)
        tape.free("normed", "xz")

    def input_back(self, tape: Tape, name: str, rows: int, inputs: int, outs: tuple[int, ...]) -> None:
        """Gradients of an input and of its products with A, side by side in ``d``."""
        ranks = self.dials.r * len(outs)
        tape.hold(f"{name} d", self.size(rows, inputs + ranks), WORK)
        self.cast(tape, inputs, ranks, len(outs))
        if self.dials.dropout:
            tape.hold("through A", self.size(rows, inputs), WORK)
            tape.hold("dropped", self.size(rows, inputs), WORK)
        tape.free("A", "A together", "through A", "dropped")

    def adapters_back(self, tape: Tape, name: str, rows: int, inputs: int, outs: tuple[int, ...]) -> None:
        """Gradients of A and B."""
        if self.dials.dropout:
            tape.hold("dropped", self.size(rows, inputs), WORK)
        self.gradients(tape, name, inputs, outs)
        tape.free("dropped")

    def gradients(self, tape: Tape, name: str, inputs: int, outs: tuple[int, ...]) -> None:
        """Gradients of the adapters."""
        r = self.dials.r
        for key, number in (("dA", r * len(outs) * inputs), *((f"dB{n}", width * r) for n, width in enumerate(outs))):
            if self.short:
                tape.hold("rounded", self.size(number, 1), WORK)
            tape.hold(f"{name} {key}", 4 * number, GRADIENTS)
            tape.free("rounded")

    def group_back(self, tape: Tape, name: str, rows: int, inputs: int, outs: tuple[int, ...], norm: bool) -> None:
        """Backwards: leaves ``dx`` (or ``d``, where there is no norm) and the gradients."""
        skip = self.first and name == "qkv"
        if norm:
            self.norm(tape, "normed", rows, inputs, WORK)
        self.mask(tape, rows, inputs)
        if not skip:
            self.input_back(tape, name, rows, inputs, outs)
        self.adapters_back(tape, name, rows, inputs, outs)
        if norm and not skip:
            self.norm_back(tape, f"{name} dx", rows, inputs)
            tape.free(f"{name} d")
        tape.free("normed", "mask", f"{name} xA", f"{name} rstd")

    def heads(self, tape: Tape, name: str, heads: int) -> None:
        """Heads normed, out of the columns of ``qkv``."""
        width = heads * self.layer.head_dim
        tape.hold("columns", self.size(self.dials.tokens, width), WORK)
        self.norm(tape, f"{name} normed", self.dials.tokens, width, WORK)
        tape.free("columns")
        tape.hold(f"{name} rstd", 4 * self.dials.tokens * heads, ATTENTION)

    def turn(self, tape: Tape, width: int) -> None:
        """Positions, by way of fp32."""
        if self.short:
            tape.hold("wide", 4 * self.dials.tokens * width, WORK)
        tape.hold("crossed", 2 * self.dials.tokens * width, WORK)
        tape.free("wide", "crossed")

    @property
    def blocks(self) -> Blocks:
        """Of its scores."""
        return Blocks.of(self.dials.tokens, self.dials.longest or self.dials.tokens, self.layer.window)

    def exact(self, tape: Tape, q: int, seen: int) -> None:
        """Queries scaled in fp32, and keys in it."""
        if self.short:
            tape.hold("wide", 4 * self.dials.tokens * q, WORK)
        tape.hold("scaled", 4 * self.dials.tokens * q, WORK)
        tape.free("wide")
        if self.short:
            tape.hold("exact", 4 * self.dials.tokens * seen, WORK)

    def attention(self, tape: Tape) -> None:
        """Forwards: keeps what its gradients read, and ``o out``."""
        layer, T, q, seen = self.layer, self.dials.tokens, self.layer.query, self.layer.seen_kv_heads * self.layer.head_dim
        self.group(tape, "qkv", T, self.hidden, layer.inputs, ATTENTION, norm=True)
        if layer.qk_norm:
            self.heads(tape, "q", layer.heads)
            if layer.kv_heads:
                self.heads(tape, "k", layer.kv_heads)
        if layer.v_norm:
            self.heads(tape, "v", layer.kv_heads)
        self.turn(tape, q)
        self.turn(tape, layer.key_value)
        several = layer.seen_kv_heads > 1
        tape.hold("q heads", self.size(T, q) * (several or not layer.qk_norm), ATTENTION)
        tape.hold("k heads", self.size(T, seen) * (several or not layer.qk_norm), ATTENTION)
        tape.hold("v heads", self.size(T, seen) * (several or not layer.v_norm), ATTENTION)
        tape.hold("heads out", self.size(T, q), ATTENTION)
        self.exact(tape, q, seen)
        blocks = self.blocks
        last = blocks.largest if blocks.kept else 0
        tape.hold("probabilities", self.size(layer.heads, blocks.kept - last), ATTENTION)
        tape.hold("scores", 4 * layer.heads * blocks.largest, WORK)
        tape.hold("weights", 4 * layer.heads * blocks.largest, WORK)
        if blocks.kept:
            tape.free("scores")
        if self.short:
            tape.hold("rounded", self.size(layer.heads, blocks.largest), WORK)
        if blocks.kept:
            tape.free("weights", "rounded")
        tape.hold("last probabilities", self.size(layer.heads, last), ATTENTION)
        tape.hold("o rows", self.size(T, q) * several, ATTENTION)
        tape.free("scaled", "exact", "scores", "weights", "rounded")
        if several:
            tape.free("q normed", "k normed", "v normed")
        if self.narrow:
            tape.hold("rows of heads", self.size(self.rows, q), ATTENTION)
        self.group(tape, "o", self.rows, q, (self.hidden,), ATTENTION, norm=False)
        if not layer.qk_norm:
            tape.free("qkv out")
        if self.narrow:
            tape.free("o rows")
        if layer.after:
            tape.hold("o after rstd", 4 * self.rows, ATTENTION)
            self.norm(tape, "o after", self.rows, self.hidden, WORK)

    def mlp(self, tape: Tape) -> None:
        """Forwards: keeps what its gradients read, and ``down out``."""
        layer, rows, f = self.layer, self.rows, self.layer.intermediate
        if self.tile:
            tape.hold("down out", self.size(rows, self.hidden), MLP)
            self._in_tile(tape, is_backward=False)
            return
        self.group(tape, "gate_up", rows, self.hidden, layer.gates, MLP, norm=True)
        tape.hold("xz", self.size(rows, f + self.dials.r), WORK)
        self.project(tape, "down", rows, f, (self.hidden,), MLP)
        tape.free("xz")
        if layer.after:
            tape.hold("down after rstd", 4 * rows, MLP)
            self.norm(tape, "down after", rows, self.hidden, WORK)

    def _in_tile(self, tape: Tape, is_backward: bool) -> None:
        """What stands while a tile is computed (``layers/tiled_mlp.py``): an MLP of fewer rows."""
        dials = replace(self.dials, tokens=self.tile, rows=self.tile, mlp_tile=0)
        part = replace(self, layer=replace(self.layer, after=0), dials=dials)
        outside, tape.prefix = tape.prefix, f"{tape.prefix}tile "
        part.mlp(tape)
        if is_backward:
            tape.free("down out")
            part.mlp_back(tape)
        tape.prefix = outside
        tape.end("tile ")

    def drop(self, tape: Tape, attention: bool, mlp: bool) -> None:
        """Forget what a recomputed part would have kept."""
        super().drop(tape, attention, mlp)
        if attention:
            tape.free("q heads", "k heads", "v heads", "probabilities", "last probabilities", "o rows", "q normed", "k normed")

    def mlp_back(self, tape: Tape) -> None:
        """Backwards from the gradient of the output."""
        rows, f = self.rows, self.layer.intermediate
        if self.layer.after:
            self.norm_back(tape, "g down", rows, self.hidden)
            tape.free("down out", "down after rstd")
        if self.tile:
            tape.hold("gate_up dx", self.size(rows, self.hidden), WORK)
            self.gradients(tape, "gate_up", self.hidden, self.layer.gates)
            self.gradients(tape, "down", f, (self.hidden,))
            self._in_tile(tape, is_backward=True)
            tape.free("g down", "x2", "gate_up dx")
            return
        self.mask(tape, rows, f)
        self.input_back(tape, "down", rows, f, (self.hidden,))
        tape.hold("dgate_dup", self.size(rows, 2 * f), WORK)
        part = 2 * min(rows, max(1, GLU_BLOCK // max(1, f)))
        tape.hold("activated", self.size(part, f), WORK)
        tape.free("activated")
        self.adapters_back(tape, "down", rows, f, (self.hidden,))
        tape.free("mask", "down d", "gate_up out", "down xA", "g down")
        self.group_back(tape, "gate_up", rows, self.hidden, self.layer.gates, norm=True)
        tape.free("dgate_dup", "x2", "gate_up dx")

    def attention_back(self, tape: Tape) -> None:
        """Backwards from the gradient of the output."""
        layer, T, rows, q = self.layer, self.dials.tokens, self.rows, self.layer.query
        if layer.after:
            self.norm_back(tape, "g o", rows, self.hidden)
            tape.free("o out", "o after rstd")
        self.group_back(tape, "o", rows, q, (self.hidden,), norm=False)
        tape.free("g o", "o rows")
        if self.narrow:
            tape.hold("g heads", self.size(T, q), WORK)
            tape.free("o d", "rows of heads")
        tape.hold("dqkv", self.size(T, sum(layer.inputs)), WORK)
        self.scores_back(tape)
        self.heads_back(tape)
        tape.free("o d", "g heads", "q heads", "k heads", "v heads", "heads out", "probabilities", "last probabilities")
        tape.free("q normed", "k normed", "v normed", "qkv out", "q rstd", "k rstd", "v rstd", "dq", "dk", "dv")
        self.group_back(tape, "qkv", T, self.hidden, layer.inputs, norm=True)
        tape.free("dqkv", "qkv dx")
        if self.narrow:
            tape.hold("g of rows", self.size(T, self.hidden), WORK)
            tape.free("g of rows")

    def scores_back(self, tape: Tape) -> None:
        """Through the scores; leaves ``dq``, ``dk`` and ``dv``."""
        layer, T, q, seen = self.layer, self.dials.tokens, self.layer.query, self.layer.seen_kv_heads * self.layer.head_dim
        parts, blocks, several = 2 if self.short else 1, self.blocks, layer.seen_kv_heads > 1
        wide = seen + layer.seen_kv_heads * parts
        tape.hold("do and D", self.size(T, q + layer.heads * parts), WORK)
        tape.hold("do times o", self.size(T, q), WORK)
        tape.free("do times o")
        tape.hold("D", 4 * T * layer.heads, WORK)
        tape.hold("v and 1", self.size(T, wide), WORK)
        tape.hold("dq by head", self.size(T, q), WORK)
        tape.hold("wide dk", 4 * T * seen, WORK)
        tape.hold("wide dv", 4 * T * wide, WORK)
        if not blocks.kept:
            self.exact(tape, q, seen)
            # Memory of the largest block, for all in turn (kernels/scratch.py).
            tape.hold("weights", 4 * layer.heads * blocks.largest, WORK)
            tape.hold("scores", 4 * layer.heads * blocks.largest, WORK)
            tape.hold("rounded", self.size(layer.heads, blocks.largest) * self.short, WORK)
        tape.hold("ds", self.size(layer.heads, blocks.largest), WORK)
        tape.hold("part", self.size(blocks.keys, wide), WORK)
        if blocks.kept:
            tape.free("part")
        else:
            tape.hold("other part", self.size(blocks.keys, seen), WORK)
        tape.hold("dq", self.size(T, q) * several, WORK)
        tape.hold("dk", self.size(T, seen) * self.short, WORK)
        tape.hold("dv", self.size(T, seen) * self.short, WORK)
        tape.free("do and D", "D", "v and 1", "scaled", "exact", "weights", "rounded", "ds")
        tape.free("scores", "part", "other part")
        if several:
            tape.free("dq by head")
        if self.short:
            tape.free("wide dk", "wide dv")

    def heads_back(self, tape: Tape) -> None:
        """Turned back, and through the norms of the heads."""
        layer, T = self.layer, self.dials.tokens
        widest = max(layer.query, layer.key_value)
        self.turn(tape, widest)
        if layer.qk_norm:
            if not self.short:  # a copy in 16 bits is gone when the wide one is there
                tape.hold("columns", self.size(T, widest), WORK)
                tape.hold("columns of gradients", self.size(T, widest), WORK)
            self.norm_back(tape, "normed back", T, widest)
            tape.free("columns", "columns of gradients", "normed back")
        tape.free("wide dk", "wide dv", "dq by head")
