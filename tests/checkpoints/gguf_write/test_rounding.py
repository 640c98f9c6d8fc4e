"""What rounding costs, against the file that the quantiser writes and the formula in fp64; and the types chosen by it."""

import gguf
import numpy as np
import pytest
import torch
from llama_quantize_oracle import write_source

from tunesmith import hardware
from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write import quantize as quantize_module
from tunesmith.checkpoints.gguf_write.quantize import Chosen, quantize
from tunesmith.checkpoints.gguf_write.rounding import candidates, rounding_costs
from tunesmith.errors import ExportError
from tunesmith.export.gguf.scores import KEY, choose_types, chosen_types

NAMES = {"dense, 2 layers, two queries a key": "blk.0.ffn_down.weight", "dense, 288 columns": "blk.3.attn_q.weight"}


def score(rows, columns, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Sensitivity(torch.rand(rows, generator=draw), torch.rand(columns, generator=draw), 7)


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("weighed", [False, True])
def test_costs_are_those_of_the_blocks_that_are_written(case, weighed, tmp_path):
    source, name = tmp_path / "f16.gguf", NAMES[case]
    write_source(source, case)
    weight = next(tensor for tensor in GgufReader(source).tensors if tensor.name == name).data.astype(np.float64)
    scores = [score(*weight.shape), score(*weight.shape, seed=1)]
    imatrix = {name: np.linspace(0.1, 5, weight.shape[1]).astype(np.float32)} if weighed else None
    costs = rounding_costs(source, {name: scores}, imatrix).costs
    kinds = candidates(weight.shape[1])
    assert list(costs) == [name] and list(costs[name]) == [kind.name for kind in kinds]
    for kind in kinds:
        quantize(source, tmp_path / "q.gguf", "Q4_K_M", imatrix, chosen=Chosen({name: kind}, {}))
        tensor = next(tensor for tensor in GgufReader(tmp_path / "q.gguf").tensors if tensor.name == name)
        assert tensor.tensor_type == kind
        error = gguf.dequantize(np.asarray(tensor.data), kind).reshape(weight.shape) - weight
        expected = sum(7 * s.gradient_O.double().numpy() @ error**2 @ s.input_I.double().numpy() for s in scores)
        assert costs[name][kind.name] == pytest.approx(expected, rel=1e-4), kind.name


def test_cores_change_no_cost_and_what_no_block_divides_has_none(tmp_path, monkeypatch):
    source = tmp_path / "f16.gguf"
    write_source(source, "dense, rows of 80")
    shapes = {tensor.name: tensor.shape for tensor in GgufReader(source).tensors if len(tensor.shape) == 2}
    scores = {name: [score(*shape)] for name, shape in shapes.items()}
    found = []
    monkeypatch.setattr(quantize_module, "PIECE", 300)
    for threads in (1, 3):
        monkeypatch.setattr(hardware, "cpu_count", lambda threads=threads: threads)
        found.append(rounding_costs(source, scores).costs)
    assert found[0] == found[1]
    assert set(shapes) - set(found[0]) == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}


def test_a_score_of_another_model_is_refused(tmp_path):
    write_source(tmp_path / "f16.gguf", "dense, 288 columns")
    with pytest.raises(ExportError, match=r"blk\.0\.attn_q\.weight was scored as \(5, 288\), and has shape \(4, 288\)"):
        rounding_costs(tmp_path / "f16.gguf", {"blk.0.attn_q.weight": [score(5, 288)]})


@pytest.mark.parametrize("case", ["dense, 16 layers, untied, grouped", "dense, 576 columns, untied", "dense, 288 columns"])
@pytest.mark.parametrize("plain", ["Q4_K_M", "Q3_K_M"])
def test_a_dynamic_file_is_no_larger_than_the_plain_one_and_loses_less(case, plain, tmp_path):
    source = tmp_path / "f16.gguf"
    write_source(source, case)
    rng = np.random.default_rng(0)
    scores = {}
    for tensor in GgufReader(source).tensors:
        if len(tensor.shape) == 2 and tensor.name != "blk.1.attn_output.weight":
            strength = torch.tensor(10.0 ** rng.uniform(-3, 3))
            rows, columns = tensor.shape
            scores[tensor.name] = [Sensitivity(torch.ones(rows) * strength, torch.ones(columns), 5)]
    choice = choose_types(source, rounding_costs(source, scores), f"dynamic-{plain}", False)
    quantize(source, tmp_path / "plain.gguf", plain)
    quantize(source, tmp_path / "dynamic.gguf", plain, chosen=chosen_types(choice))
    sizes = [(tmp_path / f"{name}.gguf").stat().st_size for name in ("dynamic", "plain")]
    assert sizes[0] <= sizes[1] and choice.bytes < choice.plain_bytes and choice.cost < 0.9 * choice.plain_cost
    file = GgufReader(tmp_path / "dynamic.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in file.tensors}
    rule = {tensor.name: tensor.tensor_type.name for tensor in GgufReader(tmp_path / "plain.gguf").tensors}
    assert types == {**rule, **{name: tensor.type for name, tensor in choice.tensors.items()}}
    assert {name: tensor.plain for name, tensor in choice.tensors.items()} == {name: rule[name] for name in scores}
    assert types["blk.1.attn_output.weight"] == rule["blk.1.attn_output.weight"], "what was not scored is as it was"
    assert f"tensors otherwise than {plain}" in file.value(KEY)
    assert file.value("general.file_type") == GgufReader(tmp_path / "plain.gguf").value("general.file_type")
