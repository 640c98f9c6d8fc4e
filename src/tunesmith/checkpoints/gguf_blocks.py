"""The matrices of a GGUF file as the blocks that lie there, under the names of the model's parameters.

What is trained on the file that ships is trained on these very bytes. On a CPU they are views of the mapped file, so that every
rank of a run shares the pages; where llama.cpp keeps the rows of a matrix in another order (queries and keys of some families),
the rows are put back, which moves whole blocks and changes none.

Which rows those are is asked of transformers' own processor, with the numbers of the rows in the place of weights.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunesmith.checkpoints.gguf import GgufSource, gguf_sources, open_gguf
from tunesmith.checkpoints.hf import read_config
from tunesmith.errors import ModelError
from tunesmith.kernels.blocks import DENSE, TYPES, Blocks, row_bytes


def refuse_unknown_blocks(path: Path) -> None:
    """Refuse a file that cannot be trained on as it lies, from its header: before its values are written out.

    Raises:
        ModelError: a matrix of a layer whose type is not known here, or a mixture.
    """
    for tensor in open_gguf(path).tensors:
        if not tensor.name.startswith("blk.") or tensor.tensor_type.name in DENSE:
            continue
        if len(tensor.shape) > 2:
            raise _of_experts(path, tensor.name)
        if tensor.tensor_type.name not in TYPES:
            raise _of_unknown_type(path, tensor.name, tensor.tensor_type.name)


class BlockFile:
    """A GGUF file of a model.

    Args:
        path: of the file.
        model: stock, perhaps without memory; its names are those asked for.

    Raises:
        ModelError: the file is not of this model, or is damaged.
    """

    def __init__(self, path: Path, model: PreTrainedModel):
        self._path = path
        self._sources, self._processor = gguf_sources(path, model, model.config, open_gguf(path))

    @classmethod
    def of_base(cls, path: Path, directory: Path) -> "BlockFile":
        """The file of the base in a directory; its weights are not read.

        Raises:
            ModelError: see above, or no configuration there.
        """
        with torch.device("meta"):
            return cls(path, AutoModelForCausalLM.from_config(read_config(directory)[0]))

    def __contains__(self, name: str) -> bool:
        """Whether a parameter lies there quantised."""
        source = self._sources.get(name)
        return source is not None and source.tensors[0].tensor_type.name not in DENSE

    def blocks(self, name: str, shape: torch.Size) -> Blocks:
        """A matrix.

        Args:
            name: of a parameter; one that is not quantised in the file comes as its rows of 16 or 32 bits.
            shape: that it has in the model.

        Raises:
            ModelError: another shape, a type that is not known here, or rows that cannot be put back.
        """
        source = self._sources[name]
        (tensor,) = _whole(self._path, name, source)
        kind = tensor.tensor_type.name
        if kind not in TYPES and kind not in DENSE:
            raise _of_unknown_type(self._path, tensor.name, kind)
        if tuple(tensor.shape) != tuple(shape):
            raise ModelError(f"{self._path}: {tensor.name} has shape {tensor.shape}, expected {tuple(shape)}", "another model?")
        raw_shape = (tensor.shape[0], row_bytes(kind, tensor.shape[1]))
        raw = np.memmap(self._path, np.uint8, "c", offset=int(tensor.data_offset), shape=raw_shape)
        order = self._order(tensor.name, len(raw))
        if (order[1:] < order[:-1]).any():
            raw = raw[order]
        return Blocks(torch.from_numpy(np.asarray(raw)), kind, tuple(shape))

    def tensor_of(self, name: str) -> str:
        """The name in the file of a parameter that is one matrix there."""
        (tensor,) = self._sources[name].tensors
        return tensor.name

    def in_file(self, name: str, raw: torch.Tensor) -> np.ndarray:
        """Rows of a matrix in the order of the file.

        Args:
            name: of a parameter.
            raw: its blocks, rows in the order of the model.
        """
        rows = np.empty(tuple(raw.shape), np.uint8)
        rows[self._order(self.tensor_of(name), len(raw))] = raw.cpu().numpy()
        return rows

    def _order(self, name: str, rows: int) -> np.ndarray:
        """Which row of the file each row of the model is."""
        numbers = np.arange(rows, dtype=np.float32)[:, None]
        found = np.asarray(self._processor.process(numbers, name=name).weights).reshape(-1).astype(np.int64)
        if not np.array_equal(np.sort(found), np.arange(rows)):
            raise ModelError(
                f"{self._path}: {name} is stored in another form than the model has it", "train on the 16-bit model: base: nf4"
            )
        return found


def _whole(path: Path, name: str, source: GgufSource) -> tuple:
    if len(source.tensors) != 1 or len(source.shape.shape) != 2:
        raise _of_experts(path, name)
    return source.tensors


def _of_unknown_type(path: Path, name: str, kind: str) -> ModelError:
    known = f"known: {', '.join(TYPES)}; or base: nf4, which reads the values of any type"
    return ModelError(f"{path}: {name} is {kind}, which is not trained on as it lies", known)


def _of_experts(path: Path, name: str) -> ModelError:
    return ModelError(
        f"{path}: {name} holds the weights of experts, to which llama.cpp applies no adapter",
        "train on the 16-bit model: base: nf4, and deploy the merged GGUF",
    )
