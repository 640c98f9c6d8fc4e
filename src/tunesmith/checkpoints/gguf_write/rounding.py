"""What rounding each tensor of a GGUF to each type would cost the loss, by what the loss says of its rows and columns.

Every tensor that was scored is quantised to every candidate, with the quantiser and the importance matrix of the file that is
to be written, unpacked, and held against its weights: ``bits.sensitivity.rounding_cost`` of the two. Nothing of the blocks is
kept. The costs of a tensor's pieces are added in order, so that they do not depend on cores.

Candidates are the types that llama.cpp gives files of three to eight bits. Where a row is no multiple of 256 they are those of
32 weights a block. Wider ones would not be chosen at the sizes that are offered, and narrower ones round so coarsely that what
the loss says near the weights no longer tells the cost.

Cost: 0.5 to 0.7 microseconds a weight and core for all candidates together, most of it for the IQ4 types; once for all files
of an export, and kept in ``export/NAME.rounding.json``. Memory: as for quantising.

Shape suffixes: P some of the rows, O out_features, I in_features; here: B bytes.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from tunesmith.bits.sensitivity import Sensitivity, rounding_cost
from tunesmith.checkpoints.gguf_write.quantize import Importance, Piece, aligned, checked, ggml, in_order, pieces_of, read_piece
from tunesmith.checkpoints.gguf_write.types import Source, sources_of
from tunesmith.errors import ExportError
from tunesmith.kernels.ggml import unpacker
from tunesmith.tracking import progress

OF_256 = (Type.Q3_K, Type.IQ4_XS, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.Q8_0)
OF_32 = (Type.Q4_0, Type.IQ4_NL, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0)

Scores = Mapping[str, Sequence[Sensitivity]]  # by tensor; a table that is read twice, as embedding and as head, has two
Costs = dict[str, dict[str, float]]  # by tensor and type


def candidates(columns: int) -> tuple[Type, ...]:
    """The types that a row of so many weights may get; none where no block divides it."""
    return OF_256 if columns % 256 == 0 else OF_32 if columns % 32 == 0 else ()


def rounding_costs(source: Path, scores: Scores, imatrix: Importance | None = None) -> Costs:
    """The cost of every candidate of every tensor that was scored, in nats over the tokens of the pass.

    Args:
        source: a 16-bit GGUF.
        scores: rows as the file has them.
        imatrix: that the file will be quantised with.

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
    with progress("rounding costs", len(sources)) as bar:
        for piece, found in in_order(functools.partial(_costs_of, source, scores), pieces):
            for kind, cost in found.items():
                costs[piece.tensor][kind] += cost
            if piece.is_last:
                bar.advance()
    return costs


def _refuse_other_shape(tensor: Source, scores: Sequence[Sensitivity]) -> None:
    for score in scores:
        found = (len(score.gradient_O), len(score.input_I))
        if found != tensor.shape:
            raise ExportError(
                f"{tensor.name} was scored as {found}, and has shape {tensor.shape}", "score the model that is quantised"
            )


def _costs_of(source: Path, scores: Scores, piece: Piece) -> dict[str, float]:
    """What the rows of a piece cost in each candidate."""
    library = ggml()
    weight_PI = library.widen(read_piece(source, piece), piece.kind, piece.columns)
    rows = slice(piece.first, piece.first + piece.rows)
    parts = [score._replace(gradient_O=score.gradient_O[rows]) for score in scores[piece.tensor]]
    costs: dict[str, float] = {}
    for kind in candidates(piece.columns):
        rounded_PI = values_of(library.quantize(weight_PI, kind, piece.importance_I), kind, piece.columns)
        costs[kind.name] = math.fsum(rounding_cost(torch.from_numpy(weight_PI), rounded_PI, part) for part in parts)
    return costs


def values_of(blocks_B: NDArray[np.uint8], kind: Type, columns: int) -> torch.Tensor:
    """The fp32 values of whole rows of blocks, shape (P, I)."""
    unpack = unpacker(kind.name)
    assert unpack is not None, f"llama.cpp unpacks no {kind.name}"
    block, size = gguf.GGML_QUANT_SIZES[kind]
    values_PI = torch.empty((blocks_B.size // size * block // columns, columns))
    unpack(torch.from_numpy(blocks_B), values_PI)
    return values_PI
