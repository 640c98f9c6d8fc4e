"""The keys and tensors of a GGUF file, each decoded when somebody asks for it.

The reader of the package ``gguf`` makes three numpy views of every string that a file holds. A vocabulary of 49,152 with its
merges and types takes it 2.6 s, and an export opens six files. Here an array is stepped over, 45 ms in all, and most
readers never ask for the vocabulary. Names are the package's, which is the oracle of the tests.

The header is walked twice: ``prescan.check_gguf`` has found every length, type and name in order before this file believes
one. Tensors are views of the mapped file. Refused: a subclass of the package's reader, whose methods for this are private.

Source: ``docs/gguf.md`` in the ggml repository.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checkpoints.prescan import ALIGNMENT, ARRAY, STRING, WIDTHS, check_gguf
from tunesmith.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
DENSE = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_u32, _u64 = struct.Struct("<I").unpack_from, struct.Struct("<Q").unpack_from


@dataclass(frozen=True, kw_only=True)
class GgufField:
    """A key and its value.

    Attributes:
        raw: the whole entry as it lies in the file, key and type included.
        begin: of the value in ``raw``.
        kind: value type of the format.
        place: file and key, for an error.
    """

    raw: memoryview
    begin: int
    kind: int
    place: str = ""

    def contents(self) -> Any:
        """The value: a number, a truth value, a string, or a list of them.

        Raises:
            ModelError: a string in a list is not UTF-8, which ``prescan`` does not look at.
        """
        if self.kind != ARRAY:
            return next(_values(self.raw, self.begin, self.kind, 1))
        (kind,), (count,) = _u32(self.raw, self.begin), _u64(self.raw, self.begin + 4)
        try:
            return list(_values(self.raw, self.begin + 12, kind, count))
        except UnicodeDecodeError as error:
            raise ModelError(
                f"{self.place}: a string in it is not UTF-8: {error.object[:32]!r}",
                "get the file again, from a source you trust",
            ) from error


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A tensor and where it lies.

    Attributes:
        shape: rows first, the reverse of the file's order.
        n_elements, n_bytes: of the whole tensor.
        data_offset: bytes from the start of the file.
        data: the values where the type is dense, shape ``shape``; else blocks, uint8, shape (..., bytes of a row).
    """

    name: str
    tensor_type: "GGMLQuantizationType"
    shape: tuple[int, ...]
    n_elements: int
    n_bytes: int
    data_offset: int
    data: NDArray[Any]


class GgufReader:
    """A GGUF file of version 2 or 3.

    Attributes:
        fields: by key, in the file's order.
        tensors: in the file's order.
        alignment: bytes.

    Raises:
        ModelError: the file is not whole and in order.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path):
        check_gguf(path)
        self._path = path
        self._mapped: NDArray[np.uint8] = np.asarray(np.memmap(path, np.uint8, mode="r"))
        self._view = self._mapped.data
        (tensors,), (keys,) = _u64(self._view, 8), _u64(self._view, 16)
        self.fields: dict[str, GgufField] = {}
        end = self._read_fields(24, keys)
        self.alignment = int(self.value("general.alignment", ALIGNMENT))
        self.tensors = self._read_tensors(end, tensors)

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key, ``default`` where the file has none."""
        field = self.fields.get(key)
        return default if field is None else field.contents()

    def _read_fields(self, at: int, count: int) -> int:
        """Returns where the tensors' names begin."""
        for _ in range(count):
            begin = at
            key, at = _text(self._view, at)
            (kind,) = _u32(self._view, at)
            value = at + 4
            at = _after(self._view, value, kind)
            self.fields[key] = GgufField(
                raw=self._view[begin:at], begin=value - begin, kind=kind, place=f"{self._path}: {key!a:.100}"
            )
        return at

    def _read_tensors(self, at: int, count: int) -> list[GgufTensor]:
        from gguf import GGMLQuantizationType

        places: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]] = []
        for _ in range(count):
            name, at = _text(self._view, at)
            (axes,) = _u32(self._view, at)
            shape = struct.unpack_from(f"<{axes}Q", self._view, at + 4)
            kind, offset = struct.unpack_from("<IQ", self._view, at + 4 + 8 * axes)
            at += 16 + 8 * axes
            places.append((name, tuple(reversed(shape)), GGMLQuantizationType(kind), offset))
        start = -(-at // self.alignment) * self.alignment
        return [self._tensor(name, shape, kind, start + offset) for name, shape, kind, offset in places]

    def _tensor(self, name: str, shape: tuple[int, ...], kind: "GGMLQuantizationType", begin: int) -> GgufTensor:
        from gguf.constants import GGML_QUANT_SIZES
        from gguf.quants import quant_shape_to_byte_shape

        elements = math.prod(shape)
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
        nbytes = elements // per_block * block_bytes
        raw = self._mapped[begin : begin + nbytes]
        rows = shape if kind.name in DENSE else quant_shape_to_byte_shape(shape, kind)
        data = raw.view(DENSE.get(kind.name, np.uint8)).reshape(rows)
        return GgufTensor(
            name=name,
            tensor_type=kind,
            shape=shape,
            n_elements=elements,
            n_bytes=nbytes,
            data_offset=begin,
            data=data,
        )


def _text(view: memoryview, at: int) -> tuple[str, int]:
    """A string, and where it ends."""
    (length,) = _u64(view, at)
    end = at + 8 + length
    return str(view[at + 8 : end], "utf-8"), end


def _after(view: memoryview, at: int, kind: int) -> int:
    """Where a value ends."""
    if kind == ARRAY:
        (kind,), (count,) = _u32(view, at), _u64(view, at + 4)
        at += 12
        if kind != STRING:
            return at + count * WIDTHS[kind]
        for _ in range(count):
            at += 8 + _u64(view, at)[0]
        return at
    return at + (8 + _u64(view, at)[0] if kind == STRING else WIDTHS[kind])


def _values(view: memoryview, at: int, kind: int, count: int) -> Iterator[Any]:
    if kind != STRING:
        yield from np.frombuffer(view, NUMBERS[kind], count, at).tolist()
        return
    for _ in range(count):
        text, at = _text(view, at)
        yield text
