"""A 16-bit GGUF quantised: the very file that ``llama-quantize`` writes, made with llama.cpp's own blocks.

Which type a tensor gets is planned first (``checkpoints/gguf_write/types.py``). Blocks are then made by ``ggml_quantize_chunk``
of the llama.cpp that will run them: the shared object of ``xllamacpp``, through ctypes, which lets go of the interpreter lock,
so that rows are quantised on all cores. Metadata is copied as bytes and not decoded, but for the keys that say how the file was
quantised. Writing blocks in numpy was refused: they would be a second implementation, and slower.

An importance matrix weighs each column of a weight by the mean of its squared input, so that rounding errors go where the
inputs are small. A stack of experts has one row of weights an expert. An entry of another width than its tensor is refused;
llama.cpp overlooks it where the tensor is an embedding.

Memory: the mapped file serves for its header alone. Rows are read, widened to fp32, quantised and written about a million
weights at a time, two such pieces a thread in flight, whatever the size of a tensor. Rows do not depend on each other, so the
pieces change no byte.

Sources: llama.cpp ``src/llama-quant.cpp``, ``llama_model_quantize_impl``; ``tools/quantize/quantize.cpp`` for the keys of the
importance matrix; ``ggml/src/gguf.cpp``, ``gguf_write_out`` for the layout (build b10605).

Shape suffixes: E experts, P some of the rows, I in_features; here: B bytes.
"""

import ctypes
import functools
import logging
import math
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType
from numpy.typing import NDArray

from tunesmith import hardware
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.types import (
    DENSE,
    EMBEDDINGS,
    FILE_TYPE,
    Source,
    metadata_of,
    nbytes,
    plan_types,
    row_bytes,
    sources_of,
)
from tunesmith.errors import ExportError
from tunesmith.kernels.llama_cpp import open_shared_object
from tunesmith.rundir.records.export import GgufFile
from tunesmith.tracking import progress

logger = logging.getLogger(__name__)


PIECE = 2**20  # weights of a piece: 4 MB in fp32, 20 ms in Q4_K
ALIGNMENT = 32  # of tensors in the file; llama-quantize writes no other
LONGEST_TEXT = 127  # bytes of a key about the importance matrix, as llama-quantize cuts them

Importance = Mapping[str, NDArray[np.float32]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class ImatrixOrigin:
    """What the quantised file says of its importance matrix; what is empty or 0 is not written.

    Attributes:
        file: name of the imatrix file.
        dataset: what it was collected on.
        chunks: of text, as the imatrix file counts them.
    """

    file: str = ""
    dataset: str = ""
    chunks: int = 0


@dataclass(frozen=True)
class Chosen:
    """Types in the place of those that the rule of a file type gives.

    Attributes:
        types: by the name of the tensor.
        keys: what the file says of it.
    """

    types: Mapping[str, Type]
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one matrix.

    Attributes:
        tensor: its name.
        kind, target: the type in the source, and the one to make.
        offset: in the source, in bytes.
        first: number of the first row.
        importance_I: of the columns, or None.
        is_last: of the tensor.
    """

    tensor: str
    kind: Type
    target: Type
    offset: int
    first: int
    rows: int
    columns: int
    importance_I: NDArray[np.float32] | None
    is_last: bool


def quantize(
    source: Path,
    target: Path,
    file_type: str,
    imatrix: Importance | None = None,
    origin: ImatrixOrigin | None = None,
    chosen: Chosen | None = None,
) -> GgufFile:
    """Quantise a 16-bit GGUF as ``llama-quantize [--imatrix FILE] SOURCE TARGET FILE_TYPE`` does.

    Args:
        source: tensors in fp32, fp16 or bf16.
        target: the file, written whole or not at all.
        file_type: F16, BF16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, IQ4_XS, Q3_K_M or MXFP4_MOE.
        imatrix: name of a tensor -> mean squared input of each column, fp32: (columns,), or (experts, columns) for a stack.
            A tensor without an entry is quantised without weights; the number of them is said.
        origin: what the file says of the matrix.
        chosen: types in the place of the rule's.

    Returns:
        What ``convert.describe`` finds in the file.

    Raises:
        ExportError: a type or row length that the rule does not know; a weight that is not finite; an entry of the matrix
            that does not fit its tensor, or none that fits any.
    """
    reader = aligned(source)
    sources = {tensor.name: tensor for tensor in sources_of(reader)}
    types = plan_types(sources.values(), file_type, metadata_of(reader), bool(imatrix))
    keys = _quantization_keys(file_type, imatrix or {}, origin or ImatrixOrigin())
    if chosen is not None:
        types |= chosen.types
        keys |= chosen.keys
    importance = checked(imatrix or {}, sources, types)
    head = header(reader, sources, types, keys)
    offsets = {tensor.name: tensor.data_offset for tensor in reader.tensors}
    pieces = (
        piece for name, kind in types.items() for piece in pieces_of(sources[name], kind, offsets[name], importance.get(name))
    )
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with temporary.open("wb") as file, progress(f"quantising {file_type}", len(types)) as bar:
            file.write(head)
            for piece, blocks_B in in_order(functools.partial(_bytes_of, source), pieces):
                file.write(blocks_B.data)
                if piece.is_last:
                    file.write(bytes(-file.tell() % ALIGNMENT))
                    bar.advance()
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return _described(target, [sources[name] for name in types], types)


def aligned(source: Path) -> GgufReader:
    """A file to quantise, opened.

    Raises:
        ExportError: its tensors lie otherwise than in the files that are written here.
    """
    reader = GgufReader(source)
    if reader.alignment != ALIGNMENT:
        raise ExportError(
            f"{source}: tensors are aligned to {reader.alignment} bytes, expected {ALIGNMENT}", "convert it again"
        )
    return reader


def _described(target: Path, sources: list[Source], types: Mapping[str, Type]) -> GgufFile:
    """As ``convert.describe``, without parsing the file again, which takes seconds for a large vocabulary."""
    by_type: dict[str, int] = {}
    for tensor in sources:
        kind = types[tensor.name].name
        by_type[kind] = by_type.get(kind, 0) + math.prod(tensor.shape)
    weights = sum(by_type.values())
    bits = round(8 * nbytes(sources, types) / weights, 3)
    return GgufFile(bytes=target.stat().st_size, weights=weights, bits_per_weight=bits, types=by_type)


def checked(imatrix: Importance, sources: Mapping[str, Source], types: Mapping[str, Type]) -> dict[str, NDArray[np.float32]]:
    """The entries of an importance matrix that are used, as (experts, columns).

    Raises:
        ExportError: one that does not fit its tensor or is not finite, or none that fits any.
    """
    quantised = [sources[name] for name, kind in types.items() if kind != sources[name].kind]
    fitting: dict[str, NDArray[np.float32]] = {}
    for tensor in quantised:
        values = imatrix.get(tensor.name)
        if values is None:
            continue
        shape_EI = (math.prod(tensor.shape[:-2]), tensor.shape[-1])
        if values.shape not in ((shape_EI, shape_EI[1:]) if shape_EI[0] == 1 else (shape_EI,)):
            raise ExportError(
                f"importance of {tensor.name} has shape {values.shape}, its tensor {shape_EI} (experts, columns)",
                "collect it with the model that is quantised",
            )
        if not np.isfinite(values).all():
            raise ExportError(f"importance of {tensor.name} is not finite", "collect it again")
        fitting[tensor.name] = np.ascontiguousarray(values, np.float32).reshape(shape_EI)
    if imatrix and quantised and not fitting:
        raise ExportError(
            f"no entry of the importance matrix is for a tensor of this file; its first is {next(iter(imatrix))}",
            f"entries are named as tensors are, such as {quantised[0].name}",
        )
    missing = [tensor.name for tensor in quantised if tensor.name not in {*fitting, *EMBEDDINGS}]
    if imatrix and missing:
        logger.warning(f"quantising: {len(missing)} of {len(quantised)} tensors without importance, first {missing[0]}")
    return fitting


def _quantization_keys(file_type: str, imatrix: Importance, origin: ImatrixOrigin) -> dict[str, int | str]:
    """The keys that say how the file was quantised, in llama-quantize's order."""
    keys: dict[str, int | str] = {
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.file_type": int(FILE_TYPE[file_type]),
    }
    if imatrix:
        about: dict[str, int | str] = {
            "quantize.imatrix.file": _cut(origin.file),
            "quantize.imatrix.dataset": _cut(origin.dataset),
            "quantize.imatrix.entries_count": len(imatrix),
            "quantize.imatrix.chunks_count": origin.chunks,
        }
        keys |= {key: value for key, value in about.items() if value}
    return keys


def _cut(text: str) -> str:
    return text.encode()[:LONGEST_TEXT].decode(errors="ignore")


def header(
    reader: GgufReader, sources: Mapping[str, Source], types: Mapping[str, Type], keys: Mapping[str, int | str]
) -> bytes:
    """All before the tensors: keys of the source as they lie there, those that are said anew last, and the tensors' places.

    Args:
        reader: of the source.
        sources: the tensors by name.
        types: of each tensor, in the order in which the tensors lie in the file.
        keys: that are written in the place of the source's.
    """
    fields = [field for key, field in reader.fields.items() if key not in keys]
    parts = [b"GGUF", struct.pack("<IQQ", gguf.GGUF_VERSION, len(types), len(fields) + len(keys))]
    parts += [bytes(field.raw) for field in fields]
    for key, value in keys.items():
        if isinstance(value, str):
            parts += [_text(key), struct.pack("<I", GGUFValueType.STRING), _text(value)]
        else:
            parts += [_text(key), struct.pack("<II", GGUFValueType.UINT32, value)]
    start = 0
    for name, kind in types.items():
        shape = sources[name].shape
        parts += [_text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, start)]
        start += math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
        start += -start % ALIGNMENT
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT)


def _text(text: str) -> bytes:
    """A string of the format: its length, then its bytes."""
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def pieces_of(tensor: Source, target: Type, offset: int, importance_EI: NDArray[np.float32] | None) -> Iterator[Piece]:
    """A tensor from front to back, matrix by matrix.

    Raises:
        ExportError: it is quantised already.
    """
    if target != tensor.kind and tensor.kind not in DENSE:
        raise ExportError(f"{tensor.name} is {tensor.kind.name} already", "quantise the 16-bit file")
    *_, columns = tensor.shape
    rows, matrices = (tensor.shape[-2] if len(tensor.shape) > 1 else 1), math.prod(tensor.shape[:-2])
    step, width = max(1, PIECE // columns), row_bytes(tensor.kind, columns)
    for matrix in range(matrices):
        importance_I = None if importance_EI is None else importance_EI[matrix]
        for first in range(0, rows, step):
            taken = min(step, rows - first)
            is_last = matrix == matrices - 1 and first + taken == rows
            yield Piece(
                tensor.name,
                tensor.kind,
                target,
                offset + (matrix * rows + first) * width,
                first,
                taken,
                columns,
                importance_I,
                is_last,
            )


def in_order(work: Callable[[Piece], Result], pieces: Iterator[Piece]) -> Iterator[tuple[Piece, Result]]:
    """The pieces with what is made of each, on all cores, no more than two a core ahead."""
    threads = hardware.cpu_count()
    pending: deque[tuple[Piece, Future[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for piece in pieces:
            pending.append((piece, pool.submit(work, piece)))
            if len(pending) > 2 * threads:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()


def _bytes_of(source: Path, piece: Piece) -> NDArray[np.uint8]:
    """The rows as the target holds them."""
    library, blocks_B = ggml(), read_piece(source, piece)
    if piece.target == piece.kind:
        return blocks_B
    blocks_B = library.quantize(library.widen(blocks_B, piece.kind, piece.columns), piece.target, piece.importance_I)
    if not library.is_valid(blocks_B, piece.target):
        raise _not_finite(source, piece)
    return blocks_B


def read_piece(source: Path, piece: Piece) -> NDArray[np.uint8]:
    """The bytes of the rows as the source holds them.

    Raises:
        ExportError: a weight is not finite.
    """
    # From the file and not from its mapping, whose pages would stay resident.
    size = piece.rows * row_bytes(piece.kind, piece.columns)
    blocks_B = np.fromfile(source, np.uint8, count=size, offset=piece.offset)
    if not ggml().is_valid(blocks_B, piece.kind):  # first: scales of blocks may come out finite where a weight is not
        raise _not_finite(source, piece)
    return blocks_B


def _not_finite(source: Path, piece: Piece) -> ExportError:
    return ExportError(f"{source}: {piece.tensor} has weights that are not finite", "look at the merged model")


class Ggml:
    """The functions of llama.cpp's shared object that make blocks."""

    def __init__(self, library: ctypes.CDLL):
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._quantize = library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        self._quantize.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
        self._is_valid = library.ggml_validate_row_data
        self._is_valid.restype = ctypes.c_bool
        self._is_valid.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
        self._widen = {Type.F16: library.ggml_fp16_to_fp32_row, Type.BF16: library.ggml_bf16_to_fp32_row}
        for function in self._widen.values():
            function.restype, function.argtypes = None, [pointer, pointer, number]

    def widen(self, raw_B: NDArray[np.uint8], kind: Type, columns: int) -> NDArray[np.float32]:
        """Rows (P, I) in fp32."""
        if kind == Type.F32:
            return raw_B.view(np.float32).reshape(-1, columns)
        rows_PI = np.empty((raw_B.size // 2 // columns, columns), np.float32)
        self._widen[kind](raw_B.ctypes.data, rows_PI.ctypes.data, rows_PI.size)
        return rows_PI

    def quantize(self, rows_PI: NDArray[np.float32], kind: Type, importance_I: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        """Blocks of the rows, as bytes."""
        rows, columns = rows_PI.shape
        blocks_B = np.empty(rows * row_bytes(kind, columns), np.uint8)
        weights = None if importance_I is None else importance_I.ctypes.data
        written = self._quantize(int(kind), rows_PI.ctypes.data, blocks_B.ctypes.data, 0, rows, columns, weights)
        assert written == blocks_B.nbytes
        return blocks_B

    def is_valid(self, blocks_B: NDArray[np.uint8], kind: Type) -> bool:
        """Whether no number among the weights and scales is infinite or NaN."""
        return bool(self._is_valid(int(kind), blocks_B.ctypes.data, blocks_B.nbytes))


@functools.cache
def ggml() -> Ggml:
    """The installed llama.cpp's; loaded once.

    Raises:
        MissingPackage: it is not installed.
    """
    return Ggml(open_shared_object())
