"""Keys, values and tensors are those that the package ``gguf`` reads."""

import gguf
import numpy as np
import pytest

from tunesmith.checkpoints.gguf_reader import GgufReader


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """A file with every kind of value, arrays of them, and tensors of several types."""
    path = tmp_path_factory.mktemp("kinds") / "kinds.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        vars(gguf.GGUFWriter)[f"add_{kind}"](writer, f"a.{kind}", 5)
    writer.add_float32("a.float32", 0.1)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "größer ½")
    writer.add_array("a.strings", ["", "ä", "x" * 300])
    writer.add_array("a.numbers", [-1, 0, 70_000])
    writer.add_array("a.floats", [0.5, -2.25])
    writer.add_array("a.bools", [True, False])
    writer.add_custom_alignment(64)
    for kind in (np.float32, np.float16, np.int8, np.int32):
        writer.add_tensor(f"t.{np.dtype(kind)}", np.arange(24, dtype=kind).reshape(2, 3, 4))
    blocks = gguf.quants.quantize(np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 64), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("t.q8", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", ["kinds", "model"])
def test_a_file_is_what_the_package_reads(name, every_kind, tiny_gguf):
    path = every_kind if name == "kinds" else tiny_gguf
    ours, stock = GgufReader(path), gguf.GGUFReader(path)
    expected = {key: field for key, field in stock.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.fields) == list(expected)
    for key, field in expected.items():
        value = field.contents()
        assert ours.value(key) == value and type(ours.value(key)) is type(value), key
        assert bytes(ours.fields[key].raw) == b"".join(part.tobytes() for part in field.parts), key
    assert ours.alignment == stock.alignment and ours.value("no.such.key", 7) == 7
    assert [tensor.name for tensor in ours.tensors] == [tensor.name for tensor in stock.tensors]
    for mine, theirs in zip(ours.tensors, stock.tensors, strict=True):
        assert (mine.tensor_type, mine.n_elements, mine.n_bytes) == (theirs.tensor_type, theirs.n_elements, theirs.n_bytes)
        assert mine.data_offset == theirs.data_offset and mine.shape == tuple(reversed(theirs.shape.tolist()))
        assert mine.data.dtype == theirs.data.dtype and np.array_equal(mine.data, theirs.data)
