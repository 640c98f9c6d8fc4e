"""The weights of the base as training held them, a few rows at a time.

What training held in NF4, or in other forms under a budget of bytes (``bits/mixed.py``), is quantised here from the same
tensors by the same kernels, and dequantised in fp32: the values are those that the adapter was trained on, not yet rounded to
16 bits. Which weights these are is asked of the loader's own rule (``models/nf4_load.py``) on a model without memory. A
checkpoint that lies in NF4 says it itself.

Memory: a weight in 4 bits is made from the mapped file, which is given back before the first row is dequantised; a weight
that is not quantised is never held whole. Experts that are stored one by one are quantised together, as one weight, because
the scales of NF4 are themselves quantised over the whole; that weight is kept until its last part is written.

Shape suffixes: P some of the rows, I in_features.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tunesmith.bits.mixed import MixedBase
from tunesmith.checkpoints.hf import read_config
from tunesmith.checkpoints.names import Naming, checkpoint_files
from tunesmith.checkpoints.quantized.dense import dense_weight
from tunesmith.checkpoints.quantized.layout import layout_of
from tunesmith.checkpoints.quantized.schemes import lies_in_nf4
from tunesmith.checkpoints.shards import DTYPES, Shape, write_model
from tunesmith.errors import ExportError
from tunesmith.export.plan import Stored, Write, plan_merge
from tunesmith.kernels.blocks import Blocks, dequantize_blocks
from tunesmith.kernels.nf4 import BLOCK, NF4, dequantize_nf4, nf4_part, quantize_nf4_parts
from tunesmith.layers.nf4 import QUANT_STATE, NF4Weight
from tunesmith.models.embeddings import per_layer_table
from tunesmith.models.nf4_load import STACKS, quantized_experts, quantized_linears

PIECE = 2**22  # weights computed at a time: 16 MB in fp32


@dataclass(frozen=True)
class QuantizedWeights:
    """The model's names of the weights that training quantised to NF4 as it loaded a dense checkpoint.

    Attributes:
        weights: linear layers and stacks of experts, in blocks over the flat weight.
        tables: embedding tables, whose rows have blocks of their own.
        mixed: which of the weights were not in NF4 after all, and how the others were searched; None for plain NF4.
    """

    weights: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()
    mixed: MixedBase | None = None


def quantized_in_training(base: Path, weights: bool, table: bool, mixed: MixedBase | None = None) -> QuantizedWeights:
    """What the loader quantises.

    Args:
        base: directory of the base model (safetensors).
        weights: whether training used ``base: nf4``.
        table: whether training held the per-layer embeddings in NF4.
        mixed: what was chosen under a budget of bytes.

    Raises:
        ModelError: the configuration cannot be read.
    """
    if weights and lies_in_nf4(base):
        weights = False  # the loader takes what lies in 4 bits there, and quantises nothing else
    if not (weights or table):
        return QuantizedWeights()
    config, _ = read_config(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names: set[str] = set()
    if weights:
        names |= {f"{name}.weight" for name in quantized_linears(model)}
        names |= {f"{name}.{stack}" for name in quantized_experts(model) for stack in STACKS}
    table_name = per_layer_table(config.model_type, model.state_dict()) if table else None
    tables: frozenset[str] = frozenset() if table_name is None else frozenset({f"{table_name}.weight"})
    return QuantizedWeights(frozenset(names), tables, mixed)


def read_stored(base: Path) -> dict[str, Stored]:
    """The weights of a checkpoint by its own names, from the headers; the tensors of a quantised weight are one weight.

    Raises:
        ModelError: no safetensors there, or a damaged file.
        ExportError: a dtype that is not known.
    """
    layout = layout_of(base, dense=False)
    files = layout.files
    four_bit = {name.removesuffix(f".{QUANT_STATE}") for name in files if name.endswith(QUANT_STATE)}
    stored: dict[str, Stored] = {}
    for name, file in files.items():
        if (packed := layout.packed.get(name)) is not None:
            stored[name] = Stored(file, packed.shape, DTYPES[packed.dtype], packed=packed)
            continue
        if name in four_bit:
            weight = _read_nf4(name, files)
            stored[name] = Stored(file, tuple(weight.shape), weight.dtype, is_nf4=True)
            continue
        if f"{name.partition('.weight.')[0]}.weight" in four_bit:
            continue
        with safe_open(file, framework="pt") as opened:
            tensor = opened.get_slice(name)
            if tensor.get_dtype() not in DTYPES:
                raise ExportError(f"{file}: {name} has dtype {tensor.get_dtype()}", f"known: {', '.join(sorted(DTYPES))}")
            stored[name] = Stored(file, tuple(tensor.get_shape()), DTYPES[tensor.get_dtype()])
    return stored


class Base:
    """Reads and, where training did, quantises the weights of a checkpoint.

    Args:
        base: directory of the base model.
        stored: what lies in it.
        writes: the plan.
        mixed: what was chosen under a budget of bytes; None for plain NF4.
    """

    def __init__(self, base: Path, stored: Mapping[str, Stored], writes: Iterable[Write], mixed: MixedBase | None = None):
        self._mixed = mixed
        self._stored, self._files = stored, checkpoint_files(base)
        self._members: dict[str, list[Write]] = {}
        for write in writes:
            self._members.setdefault(write.stack, []).append(write)
        self._quantized = functools.lru_cache(maxsize=1)(self._quantize)  # the parts of a stack come one after another
        self._dense = functools.lru_cache(maxsize=1)(self._dequantize)

    def rows(self, write: Write) -> Iterator[tuple[int, int, torch.Tensor]]:
        """A tensor from front to back: (number of the matrix, first row, rows).

        The rows are in the dtype of the checkpoint, or in fp32 where they come from 4 bits. A tensor with one dimension or
        none is one row; one with more than three comes whole.
        """
        is_packed = self._stored[write.source].packed is not None
        if len(write.shape) not in (2, 3):
            with safe_open(self._stored[write.source].file, framework="pt") as opened:
                yield 0, 0, opened.get_tensor(write.source)
            return
        rows, columns = write.shape[-2:]
        step = max(1, PIECE // max(1, columns))
        places = [
            (number, first, min(first + step, rows))
            for number in range(math.prod(write.shape[:-2]))
            for first in range(0, rows, step)
        ]
        if write.form != "dense":
            q, begin = self._quantized(write.stack), _offset(write)
            width = _width(write)
            for number, first, end in places:
                if isinstance(q, Blocks):
                    yield number, first, dequantize_blocks(q.rows(first, end), torch.float32)
                    continue
                start = begin + (number * rows + first) * width
                run, place = nf4_part(q, start, start + (end - first) * width)
                yield number, first, dequantize_nf4(run, torch.float32)[place:].view(end - first, width)[:, :columns]
            return
        if is_packed:
            matrices = self._dense(write.source).view(-1, rows, columns)
            yield from ((number, first, matrices[number, first:end]) for number, first, end in places)
            return
        with safe_open(self._stored[write.source].file, framework="pt") as opened:
            tensor = opened.get_slice(write.source)
            for number, first, end in places:
                yield number, first, tensor[first:end] if len(write.shape) == 2 else tensor[number : number + 1, first:end][0]

    def _quantize(self, stack: str) -> NF4 | Blocks:
        """A weight as training held it; parts of a stack in the order of its flat run."""
        members = sorted(self._members[stack], key=lambda write: (write.part.expert, write.part.part) if write.part else (0, 0))
        first = members[0]
        if first.form == "nf4":
            return _read_nf4(first.source, self._files).q
        shape = (*first.shape[:-1], _width(first))
        if first.part is not None:
            shape = (len(members) // first.part.parts, first.shape[0] * first.part.parts, first.shape[1])
        pieces = (piece for write in members for piece in self._read(write))
        if self._mixed is not None and first.form == "requantized":
            return self._mixed.quantize(stack.removesuffix(".weight"), pieces, shape, "cpu")
        return quantize_nf4_parts(pieces, shape, "cpu")

    @torch.inference_mode(False)
    def _dequantize(self, name: str) -> torch.Tensor:
        packed = self._stored[name].packed
        assert packed is not None, name
        return dense_weight(packed)

    def _read(self, write: Write) -> Iterator[torch.Tensor]:
        """The stored tensor in pieces; rows of a table are filled up with zeros to whole blocks."""
        if self._stored[write.source].packed is not None:
            tensor = self._dense(write.source)
        else:
            with safe_open(self._stored[write.source].file, framework="pt") as opened:
                tensor = opened.get_tensor(write.source)
        missing = _width(write) - write.shape[-1]
        if not missing:
            yield tensor
            return
        for piece_PI in tensor.split(max(1, PIECE // write.shape[-1])):
            yield torch.nn.functional.pad(piece_PI, (0, missing))


def write_dense(base: Path, target: Path) -> None:
    """Write the weights of a quantised checkpoint as the dense safetensors that they amount to.

    Args:
        base: directory of the base model.
        target: an existing directory.

    Raises:
        ModelError: a weight cannot be read.
        ExportError: a dtype that is not known.
    """
    stored = read_stored(base)
    writes = plan_merge(stored, Naming(), {}, frozenset(), frozenset(), keep_towers=True)
    reader = Base(base, stored, writes.values())
    described = {name: Shape(write.shape, write.dtype) for name, write in writes.items()}
    write_model(target, described, lambda name: (rows for _, _, rows in reader.rows(writes[name])))


def _width(write: Write) -> int:
    """Columns of the quantised weight."""
    columns = write.shape[-1]
    return -(-columns // BLOCK) * BLOCK if write.form == "requantized rows" else columns


def _offset(write: Write) -> int:
    """Where a tensor begins in the flat weight of its stack."""
    if write.part is None:
        return 0
    rows, columns = write.shape
    return (write.part.expert * write.part.parts + write.part.part) * rows * columns


def _read_nf4(name: str, files: Mapping[str, Path]) -> NF4Weight:
    """A weight that lies in NF4 in the checkpoint."""
    parts = {key.removeprefix(name).removeprefix("."): key for key in files if key == name or key.startswith(f"{name}.")}
    state: dict[str, torch.Tensor] = {}
    for part, key in parts.items():
        with safe_open(files[key], framework="pt") as opened:
            state[part] = opened.get_tensor(key)
    return NF4Weight.from_state(name, state)
