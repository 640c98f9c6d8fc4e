"""What a rounded file keeps of a training, on weights that lie on a type's grid and on weights that do not."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.kept import Added, Kept, kept_in_file, kept_of
from tunesmith.checkpoints.gguf_write.quantize import Chosen, quantize
from tunesmith.checkpoints.gguf_write.rounding import rounding_costs
from tunesmith.checkpoints.gguf_write.unpack import values_of
from tunesmith.export.gguf.scores import choose_types, chosen_types

NAME, ROWS, COLUMNS = "blk.0.attn_q.weight", 256, 288


def blocks(weight, kind):
    return gguf.quantize(weight, kind)


def base_on(kind):
    """Weights of a bell curve, on the grid of a type or on none."""
    weight = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    return weight if kind is None else gguf.dequantize(blocks(weight, kind), kind).reshape(weight.shape)


def added(size=0.01):
    draw = torch.Generator().manual_seed(1)
    return Added(size / 2 * torch.randn(ROWS, 4, generator=draw), torch.randn(4, COLUMNS, generator=draw))


def write(path, weight):
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{key}")(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor(NAME, weight.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tuned(tmp_path):
    """The 16-bit file of a base that was trained."""

    def make(kind):
        write(tmp_path / "f16.gguf", base_on(kind) + added().rows(0, ROWS).numpy())
        return tmp_path / "f16.gguf"

    return make


@pytest.mark.parametrize(
    ("base", "kind", "low", "high"),
    [
        (Type.Q4_0, Type.Q4_0, -0.1, 0.1),  # the file is the base again
        (Type.Q4_0, Type.Q8_0, 0.9, 1.1),
        (Type.Q4_1, Type.Q4_0, 0.75, 1.25),  # another grid
        (None, Type.Q4_0, 0.75, 1.25),
    ],
)
def test_a_type_on_whose_grid_the_base_lies_keeps_nothing(base, kind, low, high, tuned, tmp_path):
    source, update = tuned(base), added()
    quantize(source, tmp_path / "q.gguf", "Q4_0", chosen=Chosen({NAME: kind}, {}))
    kept = kept_in_file(source, tmp_path / "q.gguf", {NAME: update})
    assert low < kept.share < high
    assert kept.is_lost == (high < 0.5)
    before, written = (GgufReader(file).tensors[0].data for file in (source, tmp_path / "q.gguf"))
    error = gguf.dequantize(np.asarray(written), kind).reshape(ROWS, COLUMNS) - np.asarray(before, np.float64)
    along = update.rows(0, ROWS).double().numpy()
    assert kept.share == pytest.approx(1 + (error * along).sum() / (along**2).sum(), rel=1e-4)
    if base is None:
        expected = np.sqrt((error**2).mean() / (along**2).mean() / error.size)
        assert kept.noise == pytest.approx(expected, rel=1e-4) and abs(kept.share - 1) < 4 * kept.noise
    assert kept_in_file(source, tmp_path / "q.gguf", {}) == Kept(), "nothing was added"


def test_what_chance_would_do_is_not_called_lost():
    weight, update = torch.from_numpy(base_on(None)), added(1e-4)
    rounded = values_of(blocks(weight.numpy(), Type.Q4_0).reshape(-1), Type.Q4_0, COLUMNS)
    kept = kept_of(weight, rounded, update.rows(0, ROWS))
    assert kept.noise > 0.5 and not kept.is_lost
    halves = [kept_of(weight[rows], rounded[rows], update.rows(0, ROWS)[rows]) for rows in (slice(0, 99), slice(99, ROWS))]
    assert halves[0].plus(halves[1]).share == pytest.approx(kept.share)
    assert halves[0].plus(halves[1]).noise == pytest.approx(kept.noise, rel=0.05)


def test_a_dynamic_type_takes_no_type_that_loses_the_training(tuned):
    """The error is least on the base's own grid, and so is the cost, which does not know its direction."""
    source = tuned(Type.Q4_1)
    scores = {NAME: [Sensitivity(torch.ones(ROWS), torch.ones(COLUMNS), 1)]}
    blind, seeing = rounding_costs(source, scores), rounding_costs(source, scores, updates={NAME: added()})
    assert blind.costs == seeing.costs and not blind.lost and seeing.lost[NAME]["Q4_1"] < 0.1
    assert min((kind for kind in blind.costs[NAME] if kind != "Q8_0"), key=blind.costs[NAME].__getitem__) == "Q4_1"
    taken = {}
    for name, rounding in (("blind", blind), ("seeing", seeing)):
        choice = choose_types(source, rounding, "dynamic-Q4_K_M", False)
        taken[name] = chosen_types(choice).types[NAME].name
        assert choice.bytes <= choice.plain_bytes
    assert taken["blind"] == "Q4_1" and taken["seeing"] not in seeing.lost[NAME]


def test_a_tensor_that_every_type_loses_keeps_the_plain_one(tuned):
    source = tuned(Type.Q4_1)
    scores = {NAME: [Sensitivity(torch.ones(ROWS), torch.ones(COLUMNS), 1)]}
    rounding = rounding_costs(source, scores)
    lost = rounding._replace(lost={NAME: dict.fromkeys(rounding.costs[NAME], 0.0)})
    choice = choose_types(source, lost, "dynamic-Q4_K_M", False)
    assert choice.tensors[NAME].type in rounding.costs[NAME] and choice.bytes <= choice.plain_bytes
