"""A bounded look at the header of a GGUF or safetensors file that somebody else wrote, before any library parses it.

A header is a list of lengths, and a parser that believes them can be made to hang or to fill the memory by a file of a few
bytes. The package ``gguf`` 0.19 loops over an array of 2^50 elements that the file does not have; ``safetensors`` took 42 s and
1.9 GB for 81 MB of names of empty tensors (both measured). So every length is compared here with the bytes that are left, and
with a limit, before anything is done with it; a file that breaks a rule is a ``ModelError`` that says what and at which byte.
What passes is a file in which each tensor has a name of its own, a known type, and bytes of its own inside the file.

**GGUF** is walked through a window of 1 MB: keys and tensor names are read, the rest is stepped over. Arrays of arrays are
refused, as llama.cpp refuses them, which leaves nothing to nest. **safetensors** has a header in JSON; its brackets and commas
are counted before it is parsed, since each of them may cost a Python object.

Cost: 0.16 us a string, 43 ms for a vocabulary of 262,144; 5 us a tensor. The limits are several times what the largest
published models have: a vocabulary of 262,144 with its scores, types and merges makes 1.3 million elements and 20 MB in GGUF.
The worst that can be written within them takes 0.5 s and, in safetensors, 140 MB (tests/models/test_prescan.py).

Refused: a mapping of the file (its pages count as resident), a child process with limits (it takes 50 ms to start, and a
killed child cannot say at which byte), and the libraries' own checks alone, which come after the allocation.

Sources: ``docs/gguf.md`` in the ggml repository; README of the ``safetensors`` repository, section "Format";
``ggml/src/gguf.cpp`` of llama.cpp for what its own reader refuses.
"""

import codecs
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jiter

from tunesmith.checkpoints.placeholder import refuse_placeholder
from tunesmith.errors import ModelError

WINDOW = 2**20  # bytes of a GGUF header held at a time
HEADER_BYTES = 2**28  # of a GGUF header
KEYS, KEY_BYTES = 4_096, 256
TENSORS, NAME_BYTES = 65_536, 64  # the format's own limit on a tensor's name
STRING_BYTES = 2**26  # a tokenizer that is stored as one string takes 35 MB
ELEMENTS_OF_ONE, ELEMENTS = 2**20, 3 * 2**20  # of one array, and of all
DIMENSIONS = 4
ALIGNMENT, ALIGNMENTS = 32, (8, 65_536)  # when the file does not say; what it may say
STRING, ARRAY, UINT32 = 8, 9, 4
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, UINT32: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # GGUF's value types, bytes

# Bits of an element in safetensors.
DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
AXES, LARGEST = 8, 2**63 - 1
_u32, _u64 = struct.Struct("<I").unpack, struct.Struct("<Q").unpack
_length_at = struct.Struct("<Q").unpack_from


@dataclass(frozen=True)
class Limits:
    """What a safetensors header may have.

    Attributes:
        header_bytes: of the JSON.
        tensors: names in one file.
    """

    header_bytes: int
    tensors: int


MODEL = Limits(2**24, 65_536)
ADAPTER = Limits(2**22, 20_000)


def check_gguf(path: Path) -> None:
    """Refuse a GGUF file that is not whole and in order.

    Raises:
        ModelError: another format, version or byte order; a length, count, type, name or place that cannot be.
        OSError: the file cannot be read.
    """
    refuse_placeholder(path)
    with path.open("rb") as file:
        header = _Header(file, path)
        if (magic := header.take(4, "the magic")) != b"GGUF":
            raise header.wrong(f"it begins with {magic!r} and not with b'GGUF'")
        (version,) = _u32(header.take(4, "the version"))
        if version not in (2, 3):
            swapped = version & 0xFFFF == 0
            raise header.wrong("big-endian" if swapped else f"version {version}, known are 2 and 3")
        tensors, keys = header.count(TENSORS, 33, "tensors"), header.count(KEYS, 13, "keys")
        alignment = _walk_keys(header, keys)
        _walk_tensors(header, tensors, alignment)


@dataclass(frozen=True)
class StoredTensor:
    """What a safetensors header says of a tensor.

    Attributes:
        dtype: as the format spells it, ``BF16``.
        shape: of the tensor.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * DTYPE_BITS[self.dtype] // 8


def check_safetensors(path: Path, limits: Limits = MODEL) -> None:
    """Refuse a safetensors file that is not whole and in order.

    Args:
        limits: ``MODEL``, or ``ADAPTER`` for a file that has no business being large.

    Raises:
        ModelError: a header that is too large or no JSON of the format, a name that is there twice, a dtype that is not
            known, a tensor whose bytes are not those of its shape, or that lie elsewhere than right after the last one.
        OSError: the file cannot be read.
    """
    _sound_header(path, limits)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a model's safetensors file by name, sorted, from its header alone.

    Raises:
        ModelError: see ``check_safetensors``.
        OSError: the file cannot be read.
    """
    header = _sound_header(path, MODEL)
    return {name: StoredTensor(header[name]["dtype"], tuple(header[name]["shape"])) for name in sorted(header)}


def _sound_header(path: Path, limits: Limits) -> dict[str, Any]:
    """The header of a file that was found whole and in order, without its notes."""
    refuse_placeholder(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > size - 8:
            raise _unsound(path, f"{size:,} bytes, {8 + length:,} for the header alone")
        if length > limits.header_bytes:
            raise _unsound(path, f"a header of {length:,} bytes, {limits.header_bytes:,} are the limit")
        text = file.read(length)
    most = limits.tensors
    for count, most_of, what in [
        (text.count(b"{") + text.count(b"["), 3 * most, "brackets"),
        (text.count(b","), 16 * most, "commas"),
    ]:
        if count > most_of + 64:
            raise _unsound(path, f"{count:,} {what} in the header, {most_of + 64:,} are the limit ({most:,} tensors)")
    try:
        header = jiter.from_json(text, catch_duplicate_keys=True, allow_inf_nan=False)
    except ValueError as error:
        raise _unsound(path, f"the header is no JSON of the format: {_named(str(error))}") from error
    if not isinstance(header, dict):
        raise _unsound(path, f"the header is a {type(header).__name__}, not an object")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise _unsound(path, "__metadata__ is not an object of strings")
    if len(header) > most:
        raise _unsound(path, f"{len(header):,} tensors, {most:,} are the limit")
    _check_places(path, header, size - 8 - length)
    return header


def _check_places(path: Path, header: Mapping[str, Any], nbytes: int) -> None:
    """The tensors fill the data one after another."""
    places = sorted((*_place(path, name, facts), name) for name, facts in header.items())
    before = 0
    for begin, end, name in places:
        if begin != before:
            how = "overlaps the one before it" if begin < before else "leaves a hole before it"
            raise _unsound(path, f"{_named(name)} begins at byte {begin:,} of the data and {how}, which ends at {before:,}")
        before = end
    if before != nbytes:
        raise _unsound(path, f"the tensors end at byte {before:,} of the data, the file at {nbytes:,}")


def _place(path: Path, name: str, facts: Any) -> tuple[int, int]:
    """Begin and end of one tensor in the data, checked against its dtype and shape."""
    if not isinstance(facts, dict) or facts.keys() != {"dtype", "shape", "data_offsets"}:
        raise _unsound(path, f"{_named(name)} has other keys than dtype, shape and data_offsets")
    dtype, shape, ends = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _unsound(path, f"{_named(name)} has the unknown dtype {_named(dtype)}")
    if not _are_sizes(shape) or len(shape) > AXES:
        raise _unsound(path, f"{_named(name)} has the shape {_named(shape)}, expected at most {AXES} sizes")
    if not _are_sizes(ends) or len(ends) != 2 or ends[0] > ends[1]:
        raise _unsound(path, f"{_named(name)} has data_offsets {_named(ends)}")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (ends[1] - ends[0]):
        raise _unsound(path, f"{_named(name)} has {ends[1] - ends[0]:,} bytes, {dtype} of shape {shape} takes {bits / 8:,.10g}")
    return ends[0], ends[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= LARGEST for n in value)


def _named(value: Any) -> str:
    """Somebody else's value for a message: quoted, and not longer than a line."""
    text = ascii(value if not isinstance(value, str | list) else value[:100])
    return text if len(text) <= 120 else f"{text[:120]}..."


def _unsound(path: Path, what: str) -> ModelError:
    return ModelError(f"{path}: not a whole safetensors file: {what}", "get the file again, from a source that you trust")


def _walk_keys(header: "_Header", keys: int) -> int:
    """Step over the keys and their values; the alignment that they ask for."""
    seen: set[str] = set()
    alignment = ALIGNMENT
    for number in range(keys):
        key = header.name(KEY_BYTES, f"key {number}", seen)
        (kind,) = _u32(header.take(4, f"the type of {key!r}"))
        if key == "general.architecture" and kind != STRING:
            raise header.wrong(f"general.architecture has value type {kind}, not a string")
        if key == "general.alignment":
            if kind != UINT32:
                raise header.wrong(f"general.alignment has value type {kind}, not uint32")
            (alignment,) = _u32(header.take(4, key))
            if not ALIGNMENTS[0] <= alignment <= ALIGNMENTS[1] or alignment & (alignment - 1):
                raise header.wrong(f"an alignment of {alignment:,}, not a power of two from 8 to 65,536")
        elif kind == STRING:
            header.text(key)
        elif kind == ARRAY:
            header.array(key)
        elif kind in WIDTHS:
            header.skip(WIDTHS[kind], repr(key))
        else:
            raise header.wrong(f"{key!r} has the unknown value type {kind}")
    return alignment


def _walk_tensors(header: "_Header", tensors: int, alignment: int) -> None:
    """Names, shapes and types of the tensors; each has bytes of its own inside the file."""
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items()}
    seen: set[str] = set()
    places: list[tuple[int, int, str]] = []
    for number in range(tensors):
        name = header.name(NAME_BYTES, f"tensor {number}", seen)
        (axes,) = _u32(header.take(4, f"the dimensions of {name!r}"))
        if not 1 <= axes <= DIMENSIONS:
            raise header.wrong(f"{name!r} has {axes:,} dimensions, expected 1 to {DIMENSIONS}")
        shape = struct.unpack(f"<{axes}Q", header.take(8 * axes, f"the shape of {name!r}"))
        kind, offset = struct.unpack("<IQ", header.take(12, f"the place of {name!r}"))
        if not all(0 < n <= LARGEST for n in shape):
            raise header.wrong(f"{name!r} has the shape {shape}")
        if kind not in sizes:
            raise header.wrong(f"{name!r} has the unknown tensor type {kind}")
        title, weights, width = sizes[kind]
        if shape[0] % weights:
            raise header.wrong(f"{name!r} has rows of {shape[0]:,}, {title} has blocks of {weights}")
        if offset % alignment:
            raise header.wrong(f"{name!r} begins at byte {offset:,} of the data, not a multiple of {alignment}")
        places.append((offset, offset + math.prod(shape) // weights * width, name))
    begin = -(-header.place // alignment) * alignment
    before, last = 0, ""
    for offset, end, name in sorted(places):
        if offset < before:
            raise header.wrong(f"{name!r} and {last!r} overlap in byte {begin + offset:,}")
        if end > header.size - begin:
            raise header.wrong(f"{name!r} ends at byte {begin + end:,}")
        before, last = end, name


class _Header:
    """A GGUF header from front to back, a window at a time. Nothing is believed before the bytes for it are there."""

    def __init__(self, file: BinaryIO, path: Path):
        self.size = path.stat().st_size
        self._file, self._path = file, path
        self._window, self._begin, self._at = b"", 0, 0
        self._elements = 0

    @property
    def place(self) -> int:
        """Bytes from the start of the file."""
        return self._begin + self._at

    def wrong(self, what: str) -> ModelError:
        """The error for what was found up to here."""
        where = f"(byte {self.place:,} of {self.size:,})"
        return ModelError(
            f"{self._path}: not a whole GGUF file: {what} {where}", "get the file again, from a source that you trust"
        )

    def skip(self, nbytes: int, what: str) -> None:
        """Step over bytes that must be in the file, and in a header of bearable length."""
        left = self.size - self.place
        if nbytes > left:
            raise self.wrong(f"{what} takes {nbytes:,} bytes, {left:,} are left")
        if self.place + nbytes > HEADER_BYTES:
            raise self.wrong(f"with {what} the header has more than {HEADER_BYTES:,} bytes")
        self._at += nbytes

    def take(self, nbytes: int, what: str) -> bytes:
        """Read up to a window of bytes."""
        self.skip(nbytes, what)
        if self._at > len(self._window):
            self._move(self.place - nbytes)
            self._at = nbytes
        return self._window[self._at - nbytes : self._at]

    def count(self, limit: int, least: int, what: str) -> int:
        """A number of things that take ``least`` bytes each."""
        (number,) = _u64(self.take(8, f"the number of {what}"))
        if number > limit or number * least > self.size - self.place:
            raise self.wrong(f"{number:,} {what}, {min(limit, (self.size - self.place) // least):,} are the limit here")
        return number

    def name(self, limit: int, what: str, seen: set[str]) -> str:
        """A name that was not there before; it is added to ``seen``."""
        (length,) = _u64(self.take(8, f"the name of {what}"))
        if not 1 <= length <= limit:
            raise self.wrong(f"the name of {what} has {length:,} bytes, expected 1 to {limit}")
        raw = self.take(length, f"the name of {what}")
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise self.wrong(f"the name of {what} is not UTF-8: {raw[:32]!r}") from error
        if name in seen:
            raise self.wrong(f"{name!r} is there twice")
        seen.add(name)
        return name

    def text(self, key: str) -> None:
        """Step over a string, which must be UTF-8."""
        (length,) = _u64(self.take(8, f"the length of {key!r}"))
        if length > STRING_BYTES:
            raise self.wrong(f"{key!r} has {length:,} bytes, {STRING_BYTES:,} are the limit")
        decoder = codecs.getincrementaldecoder("utf-8")()
        for begin in range(0, length, WINDOW):
            piece = self.take(min(WINDOW, length - begin), repr(key))
            try:
                decoder.decode(piece, final=begin + WINDOW >= length)
            except UnicodeDecodeError as error:
                raise self.wrong(f"{key!r} is not UTF-8") from error

    def array(self, key: str) -> None:
        """Step over an array of numbers or strings."""
        (kind,) = _u32(self.take(4, f"the type of {key!r}"))
        (length,) = _u64(self.take(8, f"the length of {key!r}"))
        if kind == ARRAY:
            raise self.wrong(f"{key!r} is an array of arrays")
        if kind != STRING and kind not in WIDTHS:
            raise self.wrong(f"{key!r} has elements of the unknown value type {kind}")
        self._elements += length
        if length > ELEMENTS_OF_ONE or self._elements > ELEMENTS:
            raise self.wrong(
                f"{key!r} is an array of {length:,}, {ELEMENTS_OF_ONE:,} are the limit ({ELEMENTS:,} in the arrays of a file)"
            )
        if kind == STRING:
            self._strings(length, repr(key))
        else:
            self.skip(length * WIDTHS[kind], repr(key))

    def _strings(self, left: int, what: str) -> None:
        if 8 * left > self.size - self.place:
            raise self.wrong(f"{what} has {left:,} strings, {self.size - self.place:,} bytes are left")
        while left:
            window, at, last = self._window, self._at, len(self._window) - 8
            while left and at <= last:  # beyond the window the slow path below takes over
                after = at + 8 + _length_at(window, at)[0]
                if after > last + 8:
                    break
                at, left = after, left - 1
            self._at = at
            if left:
                (length,) = _u64(self.take(8, f"a string of {what}"))
                self.skip(length, f"a string of {what}")
                self._move(self.place)
                left -= 1

    def _move(self, place: int) -> None:
        """Put the window where the walk is."""
        self._file.seek(place)
        self._window, self._begin, self._at = self._file.read(WINDOW), place, 0
