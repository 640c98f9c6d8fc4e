"""What rounding each tensor of a GGUF to each type would cost the loss, by what the loss says of its rows and columns.

Every tensor that was scored is quantised to every candidate, with the quantiser and the importance matrix of the file that is
to be written, unpacked, and held against its weights: ``bits.sensitivity.rounding_cost`` of the two. Nothing of the blocks is
kept. The costs of a tensor's pieces are added in order, so that they do not depend on cores.

**What the cost does not see** is an error that points along what training added (``kept.py``): it takes each weight alone, and
these add up. A type on whose grid the base lies has next to no cost, and takes the whole training back. So the share that is
kept is measured beside the cost, and types that keep too little or too much are named ``lost``, for nobody to choose.

Candidates are the types that llama.cpp gives files of three to eight bits. Where a row is no multiple of 256 they are those of
32 weights a block. Wider ones would not be chosen at the sizes that are offered, and narrower ones round so coarsely that what
the loss says near the weights no longer tells the cost.

Cost: 0.5 to 0.7 microseconds a weight and core for all candidates together, most of it for the IQ4 types; once for all files
of an export, and kept in ``export/NAME.rounding.json``. Memory: as for quantising.

Shape suffixes: P some of the rows, O out_features, I in_features.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from gguf import GGMLQuantizationType as Type

from tunesmith.bits.sensitivity import Sensitivity, rounding_cost
from tunesmith.checkpoints.gguf_write.kept import Kept, Updates, kept_of
from tunesmith.checkpoints.gguf_write.quantize import Importance, Piece, aligned, checked, ggml, in_order, pieces_of, read_piece
from tunesmith.checkpoints.gguf_write.types import Source, sources_of
from tunesmith.checkpoints.gguf_write.unpack import values_of
from tunesmith.errors import ExportError
from tunesmith.tracking import progress

OF_256 = (Type.Q3_K, Type.IQ4_XS, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.Q8_0)
OF_32 = (Type.Q4_0, Type.IQ4_NL, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0)

Scores = Mapping[str, Sequence[Sensitivity]]  # by tensor; a table that is read twice, as embedding and as head, has two
Costs = dict[str, dict[str, float]]  # by tensor and type
Lost = dict[str, dict[str, float]]  # by tensor and type, the share of what training added that is kept


class Rounding(NamedTuple):
    """What rounding does.

    Attributes:
        costs: of every candidate of every tensor that was scored, in nats over the tokens of the pass.
        lost: the candidates among them that take back, or enlarge, what training added.
    """

    costs: Costs
    lost: Lost


def candidates(columns: int) -> tuple[Type, ...]:
    """The types that a row of so many weights may get; none where no block divides it."""
    return OF_256 if columns % 256 == 0 else OF_32 if columns % 32 == 0 else ()


def rounding_costs(source: Path, scores: Scores, imatrix: Importance | None = None, updates: Updates | None = None) -> Rounding:
    """The cost of every candidate of every tensor that was scored, and which of them lose what training added.

    Args:
        source: a 16-bit GGUF.
        scores: rows as the file has them.
        imatrix: that the file will be quantised with.
        updates: what training added to its tensors, rows as the file has them.

    Raises:
        ExportError: a score of another shape than its tensor, or a weight that is not finite.
    """
    reader = aligned(source)
    sources = {tensor.name: tensor for tensor in sources_of(reader) if tensor.name in scores}
    kinds = {name: candidates(tensor.shape[-1]) for name, tensor in sources.items()}
    sources = {name: tensor for name, tensor in sources.items() if kinds[name]}
    for name, tensor in sources.items():
        _refuse_other_shape(tensor, scores[name])
    importance = checked(imatrix or {}, sources, {name: kinds[name][0] for name in sources})
    offsets = {tensor.name: tensor.data_offset for tensor in reader.tensors}
    pieces = (
        piece
        for name, tensor in sources.items()
        for piece in pieces_of(tensor, tensor.kind, offsets[name], importance.get(name))
    )
    costs: Costs = {name: dict.fromkeys((kind.name for kind in kinds[name]), 0.0) for name in sources}
    kept = {name: dict.fromkeys(of, Kept()) for name, of in costs.items()}
    with progress("rounding costs", len(sources)) as bar:
        for piece, found in in_order(functools.partial(_of_piece, source, scores, updates or {}), pieces):
            for kind, (cost, share) in found.items():
                costs[piece.tensor][kind] += cost
                kept[piece.tensor][kind] = kept[piece.tensor][kind].plus(share)
            if piece.is_last:
                bar.advance()
    lost = {name: {kind: one.share for kind, one in of.items() if one.is_lost} for name, of in kept.items()}
    return Rounding(costs, {name: of for name, of in lost.items() if of})


def _refuse_other_shape(tensor: Source, scores: Sequence[Sensitivity]) -> None:
    for score in scores:
        found = (len(score.gradient_O), len(score.input_I))
        if found != tensor.shape:
            raise ExportError(
                f"{tensor.name} was scored as {found}, and has shape {tensor.shape}", "score the model that is quantised"
            )


def _of_piece(source: Path, scores: Scores, updates: Updates, piece: Piece) -> dict[str, tuple[float, Kept]]:
    """What the rows of a piece cost in each candidate, and what is kept of what was added to them."""
    library = ggml()
    weight_PI = library.widen(read_piece(source, piece), piece.kind, piece.columns)
    weight = torch.from_numpy(weight_PI)
    rows = slice(piece.first, piece.first + piece.rows)
    parts = [score._replace(gradient_O=score.gradient_O[rows]) for score in scores[piece.tensor]]
    update = updates.get(piece.tensor)
    added_PI = None if update is None else update.rows(piece.first, piece.rows)
    found: dict[str, tuple[float, Kept]] = {}
    for kind in candidates(piece.columns):
        rounded_PI = values_of(library.quantize(weight_PI, kind, piece.importance_I), kind, piece.columns)
        kept = Kept() if added_PI is None else kept_of(weight, rounded_PI, added_PI)
        found[kind.name] = math.fsum(rounding_cost(weight, rounded_PI, part) for part in parts), kept
    return found
