import json

import pytest
import torch
from torch import nn

from tunesmith.errors import ModelError
from tunesmith.kernels.nf4 import dequantize_nf4, quantize_nf4, quantize_nf4_parts
from tunesmith.layers import dense_buffer, quantized
from tunesmith.layers.nf4 import QUANT_STATE, NF4Embedding, NF4Weight
from tunesmith.layers.quantized import QuantizedLinear

bnb = pytest.importorskip("bitsandbytes")


def _weight(rows, width, dtype=torch.float32):
    dense = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).to(dtype)
    return NF4Weight(quantize_nf4(dense), dtype)


def _linear(rows, width, bias=True):
    return QuantizedLinear(_weight(rows, width), nn.Parameter(torch.randn(rows), requires_grad=False) if bias else None)


def _theirs(layer):
    """bitsandbytes' layer from the dense weight that ``layer`` was made of."""
    rows, width = layer.weight.shape
    dense = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
    theirs = bnb.nn.Linear4bit(width, rows, layer.bias is not None, torch.float32, quant_type="nf4")
    theirs.weight = bnb.nn.Params4bit(dense, requires_grad=False, quant_type="nf4", module=theirs)
    if layer.bias is not None:
        theirs.bias = nn.Parameter(layer.bias.data)
    return theirs.to("cpu")


@pytest.fixture(autouse=True)
def no_buffers(monkeypatch):
    monkeypatch.setattr(dense_buffer.DENSE, "runs", {})


def test_dense_weights_share_one_buffer_that_grows():
    small, large = _weight(3, 50), _weight(20, 70)
    held = small.dense(torch.float32)
    assert torch.equal(held, dequantize_nf4(small.q, torch.float32))
    large.dense(torch.float32)
    again = small.dense(torch.float32)
    assert again.data_ptr() == large.dense(torch.float32).data_ptr()
    assert [t.numel() for t in dense_buffer.DENSE.runs.values()] == [1400]
    assert small.dense(torch.bfloat16).dtype == torch.bfloat16 and len(dense_buffer.DENSE.runs) == 2


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_product_and_gradient_are_those_of_bitsandbytes(tokens, bias):
    layer = _linear(6, 70, bias)
    theirs = _theirs(layer)
    x = torch.randn(tokens, 70, requires_grad=True)
    x_ = x.detach().clone().requires_grad_()
    y, y_ = layer(x), theirs(x_)
    torch.testing.assert_close(y, y_)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (y_ * weights).sum().backward()
    torch.testing.assert_close(x.grad, x_.grad)


def test_gradcheck_in_double_with_a_trained_bias_and_leading_dimensions():
    layer = _linear(5, 7)
    layer.bias.requires_grad_()
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    bias = layer.bias.detach().double().requires_grad_()

    def product(x, bias):
        return quantized._Product.apply(x.view(-1, 7), layer.weight, bias)

    assert torch.autograd.gradcheck(product, (x, bias))
    assert layer(x).shape == (2, 3, 5)


def test_nothing_is_saved_for_the_backward_pass():
    layer, saved = _linear(8, 64), []
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        y = layer(x)
    assert saved == []
    other = _linear(9, 90)  # overwrites the buffer between forward and backward
    other(torch.randn(1, 90))
    y.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.dense(torch.float32).sum(0).expand(3, -1))


def test_a_buffer_born_in_inference_mode_serves_training():
    layer = _linear(4, 64)
    with torch.inference_mode():
        layer(torch.randn(2, 64))
    x = torch.randn(2, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_is_that_of_bitsandbytes_and_is_read_back(dtype):
    ours = {"weight": _linear(300, 70), "odd": _linear(3, 7, bias=False)}[("weight", "odd")[dtype == torch.bfloat16]]
    state, theirs = ours.state_dict(), _theirs(ours).state_dict()
    assert state.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype, name
    parts = {name.removeprefix("weight").removeprefix("."): t for name, t in theirs.items() if name != "bias"}
    read = NF4Weight.from_state("weight", parts)
    assert torch.equal(read.dense(dtype), ours.weight.dense(dtype)) and read.dtype == torch.float32


def test_a_foreign_format_is_refused():
    state = {n.removeprefix("weight").removeprefix("."): t for n, t in _linear(3, 70, bias=False).state_dict().items()}

    def changed(**facts):
        old = json.loads(bytes(state[QUANT_STATE].tolist()))
        return {**state, QUANT_STATE: torch.tensor(list(json.dumps({**old, **facts}).encode()), dtype=torch.uint8)}

    for broken, message in [
        ({k: v for k, v in state.items() if k != "nested_absmax"}, "nested_absmax is not in the checkpoint"),
        (changed(quant_type="fp4"), "4-bit format"),
        (changed(blocksize=128), "4-bit format"),
        ({**state, "quant_map": state["quant_map"] * 0.5}, "4-bit format"),
        (changed(shape=[4, 70]), "parts of"),
        (changed(dtype="float8"), "float8"),
    ]:
        with pytest.raises(ModelError, match=message):
            NF4Weight.from_state("w", broken)


def test_statistics_stay_fp32_and_load_state_dict_is_refused():
    layer = _linear(5, 64)
    before = layer.weight.dense(torch.float32).clone()
    layer.to(torch.bfloat16)
    assert layer.weight.nested_absmax.dtype == layer.weight.nested_map.dtype == torch.float32
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.weight.dense(torch.float32), before)
    assert layer(torch.randn(1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.to("meta").weight.device.type == "meta"
    with pytest.raises(RuntimeError, match="quantised and frozen"):
        _linear(5, 64).load_state_dict(_linear(5, 64).state_dict())


@pytest.mark.parametrize("width", [64, 100, 7])
def test_embedding_gathers_rows_quantised_each_by_itself(width):
    table = torch.randn(11, width)
    embedding = NF4Embedding(table)
    ids = torch.tensor([[3, 0, 10], [3, 3, 1]])
    got = embedding(ids)
    for row in range(11):  # blocks of a row know nothing of the others, but for the common double quantisation
        (ours,) = embedding(torch.tensor([row]))
        alone = dequantize_nf4(quantize_nf4(table[row : row + 1]), torch.float32)[0]
        torch.testing.assert_close(ours, alone, rtol=0.02, atol=0)
    assert torch.equal(got, torch.stack([embedding(row) for row in ids]))
    assert got.shape == (2, 3, width) and NF4Embedding(table.bfloat16())(ids).dtype == torch.bfloat16
    assert embedding(ids[:0]).shape == (0, 3, width)


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 64, 320), (3, 129, 131), (1, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_expert_is_its_part_of_the_whole(shape, dtype):
    weight = NF4Weight(quantize_nf4(torch.randn(shape, generator=torch.Generator().manual_seed(0))), torch.float32)
    whole = weight.dense(dtype).clone()
    for number, expected in enumerate(whole):
        found = weight.expert(number, dtype)
        assert torch.equal(found, expected) and found.is_contiguous()
    assert max(len(t) for t in dense_buffer.DENSE.runs.values()) == whole.numel()  # made once by dense(); no expert needed more


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 64, 320), (2, 400, 401)])
def test_parts_give_the_bytes_of_the_whole(shape):
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole = quantize_nf4(dense)
    for parts in (
        dense,
        dense.view(-1).split([1, 62, dense.numel() - 63]),
        (half for e in dense for half in e.tensor_split(2)),
    ):
        found = quantize_nf4_parts(parts, shape, "cpu")
        for name in ("packed", "absmax", "nested_absmax", "offset", "shape"):
            assert torch.equal(torch.as_tensor(vars(found)[name]), torch.as_tensor(vars(whole)[name])), name
    packed, state = bnb.functional.quantize_4bit(dense, quant_type="nf4", compress_statistics=True)
    assert torch.equal(packed.view(-1), whole.packed)
    assert torch.equal(bnb.functional.dequantize_4bit(packed, state), dequantize_nf4(whole, torch.float32))
