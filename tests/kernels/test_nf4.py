"""The oracle is bitsandbytes; its way for odd rows is compiled unless told otherwise.

Its AVX-512 path (0.50.2) takes wrong absmax where rows are a multiple of 16 and not of 64: there its generic path serves.
"""

import pytest
import torch

from tunesmith.errors import ModelError
from tunesmith.kernels import nf4
from tunesmith.kernels.nf4 import dequantize_nf4, dequantize_nf4_rows, nf4_matmul, quantize_nf4

functional = pytest.importorskip("bitsandbytes.functional")
_dequantize_4bit_compute = pytest.importorskip("bitsandbytes.backends.default.ops")._dequantize_4bit_compute
CPU = torch.device("cpu")
# One weight, an odd number, rows that share blocks, a short last block, a last block of one, several nested blocks, 3-D.
SHAPES = [(1, 1), (3, 7), (5, 64), (4, 70), (13, 5), (301, 299), (300, 256), (6, 80), (2, 5, 130)]


def _theirs(weight):
    return functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)


def _their_values(packed, state, dtype):
    state.dtype = dtype
    if state.shape[-1] % 16 or state.shape[-1] % 64 == 0:
        with torch.compiler.set_stance("force_eager"):
            return functional.dequantize_4bit(packed, state).view(state.shape)
    absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    table = functional.get_4bit_type("nf4", device="cpu")
    with torch.compiler.set_stance("force_eager"):
        return _dequantize_4bit_compute(packed.view(-1), absmax, table, 64, state.shape, dtype).view(state.shape)


def _weight(shape, kind, dtype=torch.float32):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    if kind == "zero row":
        weight[0] = 0.0
    if kind == "zeros":
        weight.zero_()
    if kind == "constant":
        weight.fill_(0.3)
    if kind == "outlier":
        weight.view(-1)[-1] = -3000.0
    return weight.to(dtype)


@pytest.mark.parametrize("kind", ["normal", "zero row", "zeros", "constant", "outlier"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_and_values_are_those_of_bitsandbytes(shape, kind):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = _weight(shape, kind, dtype)
        q, (packed, state) = quantize_nf4(weight), _theirs(weight)
        assert torch.equal(q.packed, packed.view(-1))
        assert torch.equal(q.absmax, state.absmax)
        assert torch.equal(q.nested_absmax, state.state2.absmax)
        assert q.offset == float(state.offset) and q.shape == tuple(state.shape)
        for target in (torch.float32, torch.bfloat16, torch.float16):
            assert torch.equal(dequantize_nf4(q, target), _their_values(packed, state, target))


def test_maps_are_those_of_bitsandbytes():
    assert torch.equal(nf4.dynamic_map(CPU), functional.create_dynamic_map())
    assert torch.equal(nf4.values(CPU), functional.get_4bit_type("nf4", device="cpu"))


def test_pieces_make_no_difference(monkeypatch):
    weight = _weight((37, 53), "normal")
    whole = quantize_nf4(weight)
    dense = dequantize_nf4(whole, torch.bfloat16)
    monkeypatch.setattr(nf4, "_QUANTIZE_PIECE", 128)
    monkeypatch.setattr(nf4, "_DEQUANTIZE_PIECE", 256)
    pieces = quantize_nf4(weight)
    assert torch.equal(pieces.packed, whole.packed) and torch.equal(pieces.absmax, whole.absmax)
    assert torch.equal(dequantize_nf4(pieces, torch.bfloat16), dense)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_from_a_gpu_are_those_of_the_cpu(dtype, monkeypatch):
    monkeypatch.setattr(nf4, "QUANTIZE_PIECE_GPU", 2**17)
    weight = _weight((517, 1031), "normal", dtype)
    here, there = quantize_nf4(weight), quantize_nf4(weight.to("cuda"))
    assert there.offset == here.offset
    for name in ("packed", "absmax", "nested_absmax", "nested_map"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name


def test_every_fp32_finds_the_nearest_value():
    """Around each boundary, to the last bit, and over the whole range."""
    table = nf4.values(CPU)
    bounds = (table[:-1] + table[1:]) / 2
    around = torch.cat([bounds, bounds.nextafter(torch.tensor(2.0)), bounds.nextafter(torch.tensor(-2.0))])
    tiny = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0])
    x = torch.cat([around, tiny, torch.linspace(-1, 1, 100_001)])
    assert torch.equal(nf4.nearest_code(x), torch.bucketize(x, bounds).to(torch.uint8))


def test_a_column_view_is_quantised_as_its_copy():
    weight = _weight((20, 40), "normal")
    assert torch.equal(quantize_nf4(weight.T).packed, quantize_nf4(weight.T.contiguous()).packed)


def test_bits_per_weight_are_measured():
    q = quantize_nf4(_weight((512, 256), "normal"))
    assert q.nbytes == 512 * 256 // 2 + 2048 + 8 * 4
    assert q.bits_per_weight == pytest.approx(4 + 8 / 64 + 32 / (64 * 256))


def test_out_is_filled_and_double_holds_the_fp32_values():
    q = quantize_nf4(_weight((9, 11), "normal"))
    out = torch.full((9, 11), torch.nan)
    assert dequantize_nf4(q, torch.float32, out) is out
    assert torch.equal(out, dequantize_nf4(q, torch.float32))
    assert torch.equal(dequantize_nf4(q, torch.float64), out.double())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 70])
def test_what_is_not_finite_is_refused(bad, place):
    weight = torch.ones(1, 71)
    weight[0, place] = bad
    with pytest.raises(ModelError, match="NaN or infinity"):
        quantize_nf4(weight)


def test_rows_are_those_of_the_whole():
    q = quantize_nf4(_weight((50, 128), "normal"))
    rows = torch.tensor([49, 0, 7, 7])
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(dequantize_nf4_rows(q, rows, dtype), dequantize_nf4(q, dtype)[rows])
    assert dequantize_nf4_rows(q, rows[:0], torch.float32).shape == (0, 128)


def test_product_is_that_of_the_dense_weight():
    q, x = quantize_nf4(_weight((33, 50), "normal")), torch.randn(3, 50)
    torch.testing.assert_close(nf4_matmul(x, q), x @ dequantize_nf4(q, torch.float32).T)
