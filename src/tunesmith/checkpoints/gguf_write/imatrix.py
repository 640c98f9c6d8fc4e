"""llama.cpp's file of an importance matrix: the squares of what arrived at each column of each weight, added up.

``NAME.in_sum2`` and ``NAME.counts`` in a GGUF of type imatrix, which ``llama-quantize --imatrix`` takes; and a file of
``llama-imatrix`` can be read in the place of ours. Values are divided as ``llama-quantize`` divides them, in fp32, so that
either way the bytes are the same. What is added up is ``export/gguf/imatrix.py``'s.

Sources: llama.cpp b10605, ``common/imatrix-loader.cpp``, ``tools/quantize/quantize.cpp``.

Shape suffixes: I in_features; here: M matrices of a weight (one, or the experts of a stack).
"""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.errors import ExportError, ModelError

CHUNK = 512  # tokens that llama.cpp's file counts in; its default context
SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Importance:
    """Inputs of the weights of a model, by GGUF tensor name.

    Attributes:
        sums: squares of each input column added up, fp32, shape (M, I).
        counts: tokens that each matrix met, fp32, shape (M,).
        tokens: that the model read.
    """

    sums: dict[str, NDArray[np.float32]]
    counts: dict[str, NDArray[np.float32]]
    tokens: int

    @property
    def chunks(self) -> int:
        """Whole chunks of text, as the file counts them; 1 at least."""
        return max(1, self.tokens // CHUNK)

    @property
    def values(self) -> dict[str, NDArray[np.float32]]:
        """Mean square of each input column, fp32: shape (I,), or (M, I) for a stack of experts.

        An expert that met no token gets 1 everywhere, as in ``llama-quantize``: its columns are alike.
        """
        means = {}
        for name, sums_MI in self.sums.items():
            counts_M1 = self.counts[name][:, None]
            mean_MI = np.where(counts_M1 > 0, sums_MI / np.maximum(counts_M1, 1), np.float32(1))
            means[name] = mean_MI[0] if len(mean_MI) == 1 else mean_MI
        return means


def write_imatrix(path: Path, importance: Importance, dataset: str) -> None:
    """Write llama.cpp's imatrix file, whole or not at all.

    Args:
        dataset: what was read, for ``imatrix.datasets``.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    writer = _Writer(temporary, "")
    writer.add_type("imatrix")
    writer.add_array(gguf.Keys.IMatrix.DATASETS, [dataset])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, importance.chunks)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, CHUNK)
    for name in sorted(importance.sums):
        sums_MI, counts_M = importance.sums[name], importance.counts[name]
        stacked = len(counts_M) > 1  # ggml drops a last dimension of one
        writer.add_tensor(name + SUMS, sums_MI if stacked else sums_MI[0])
        writer.add_tensor(name + COUNTS, counts_M[:, None] if stacked else counts_M)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_imatrix(path: Path) -> Importance:
    """Read an imatrix file of ours or of ``llama-imatrix``.

    Raises:
        ExportError: no such file, or another kind of file, or one that contradicts itself.
    """
    try:
        reader = GgufReader(path)
    except (OSError, ModelError) as error:
        reason = error.message if isinstance(error, ModelError) else f"{path}: {error}"
        hint = "an imatrix in the old format: llama-imatrix --in-file OLD.dat -o NEW.gguf"
        raise ExportError(f"not a GGUF imatrix file: {reason}", hint) from error
    if reader.value("general.type") != "imatrix":
        raise ExportError(f"{path}: general.type is not imatrix", "give the file that llama-imatrix wrote")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    sums: dict[str, NDArray[np.float32]] = {}
    counts: dict[str, NDArray[np.float32]] = {}
    for name in tensors:
        weight = name.removesuffix(SUMS).removesuffix(COUNTS)
        pair = [tensors.get(weight + suffix) for suffix in (SUMS, COUNTS)]
        if any(part is None or part.tensor_type != gguf.GGMLQuantizationType.F32 for part in pair):
            raise ExportError(f"{path}: {weight} has no sums and counts in F32", "the file is damaged; make it again")
        sums_, counts_M = (np.array(part.data).reshape(-1) for part in pair if part is not None)
        if not counts_M.size or sums_.size % counts_M.size or not np.isfinite(sums_).all() or (counts_M < 0).any():
            raise ExportError(f"{path}: {weight} has {sums_.size} sums of {counts_M.size} counts", "make the file again")
        sums[weight], counts[weight] = sums_.reshape(counts_M.size, -1), counts_M
    if not sums:
        raise ExportError(f"{path}: holds no importance", "make the file again")
    return Importance(sums, counts, int(max(count.max() for count in counts.values())))


class _Writer(gguf.GGUFWriter):
    """A GGUF without an architecture, as llama.cpp's imatrix files are."""

    def add_architecture(self) -> None:
        """Nothing to add."""
