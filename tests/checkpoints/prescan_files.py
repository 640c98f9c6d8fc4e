"""Honest and forged headers for the tests of ``checkpoints/prescan.py``, and the property that holds for every file.

What the scan lets through, the library behind it reads without an error; what it does not is a ``ModelError``.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from hypothesis import strategies as st
from safetensors import safe_open

from tunesmith.checkpoints.prescan import check_gguf, check_safetensors
from tunesmith.errors import ModelError

NUMBERS = (0, 1, 7, 255, 2**16, 2**31, 2**32 - 1, 2**50, 2**63, 2**64 - 1)
F32, Q8_0 = 0, 8


def text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(name: bytes, kind: int, length: int, values: bytes = b"") -> bytes:
    return key(name, 9, struct.pack("<IQ", kind, length) + values)


def tensor(name: bytes, shape: tuple[int, ...], kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_bytes(keys: list[bytes], tensors: list[bytes], data: int = 64, version: int = 3, counts=None) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys)))) + b"".join(keys + tensors)
    return head + bytes(-len(head) % 32 + data)


def safetensors_bytes(header: object, data: int = 8) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(data)


def place(dtype: object = "F32", shape: object = (2,), ends: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": ends}


def honest_gguf(path: Path) -> Path:
    """Every value type, arrays, an alignment of its own, and tensors of three types."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    for bits in (8, 16, 32, 64):
        writer.add_key_value(f"a.u{bits}", bits, gguf.GGUFValueType[f"UINT{bits}"])
        writer.add_key_value(f"a.i{bits}", -bits, gguf.GGUFValueType[f"INT{bits}"])
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_chat_template("{{ messages }} – ü")
    writer.add_token_list(["<s>", "a", "ü" * 40])
    writer.add_token_scores([0.0, 1.0, 2.0])
    writer.add_tensor("a.weight", np.ones((3, 5), np.float32))
    writer.add_tensor("b.weight", np.ones((2, 32), np.float16))
    eight = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("c.weight", gguf.quants.quantize(np.ones((2, 64), np.float32), eight), raw_dtype=eight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@st.composite
def changes(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """One to four changes of a file: a byte, a number of 4 or 8 bytes, a cut, or bytes put in."""
    chosen = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["byte", "u32", "u64", "cut", "put"]),
                st.integers(0, 10_000),
                st.sampled_from(NUMBERS),
                st.binary(min_size=1, max_size=16),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def change(raw: bytes) -> bytes:
        for how, where, number, put in chosen:
            at = where % max(1, len(raw))
            if how == "cut":
                raw = raw[:at]
            elif how == "put":
                raw = raw[:at] + put + raw[at:]
            else:
                new = {"byte": put[:1], "u32": struct.pack("<I", number % 2**32), "u64": struct.pack("<Q", number)}[how]
                raw = raw[:at] + new + raw[at + len(new) :]
        return raw

    return change


def _passes(check: Callable[[Path], None], path: Path) -> bool:
    try:
        check(path)
    except ModelError as error:
        assert len(str(error)) < 2_000
        return False
    return True


def gguf_holds(path: Path) -> bool:
    """Whether a file passed the scan; the property is asserted."""
    if not _passes(check_gguf, path):
        return False
    reader = gguf.GGUFReader(path)
    assert all(int(t.data_offset + t.n_bytes) <= path.stat().st_size for t in reader.tensors)
    for field in reader.fields.values():
        if field.types[0] == gguf.GGUFValueType.STRING:
            field.contents()
    return True


def safetensors_holds(path: Path) -> bool:
    """The same for safetensors."""
    if not _passes(check_safetensors, path):
        return False
    with safe_open(path, framework="np") as opened:
        for name in opened.keys():  # noqa: SIM118
            opened.get_slice(name).get_shape()
    return True
