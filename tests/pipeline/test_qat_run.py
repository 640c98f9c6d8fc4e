"""A run that trains onto the grid of the file it deploys."""

import gguf
import pytest
import torch

from shared import write_recipe
from tunesmith.checkpoints.gguf_blocks import BlockFile
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.engines.base import open_base
from tunesmith.errors import RecipeError
from tunesmith.kernels.blocks import dequantize_blocks
from tunesmith.layers.grid import GridLinear
from tunesmith.models.grids import lay_grids
from tunesmith.models.load import load_model
from tunesmith.models.swap import add_lora
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import Lora, load_recipe
from tunesmith.rundir.records.parity import Parity


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M"])
def test_the_file_holds_what_was_trained(tiny_dir, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path, tiny_dir, {"train.qat": True, "export.gguf": [kind], "train.learning_rate": 0.02})
    run = api.open_run(recipe, tmp_path / "run")
    api.make(run, ["parity"], all_needed=True)
    base = open_base(run.recipe())
    loaded = base.load(run.adapter)
    path = run.export / f"toy-{kind}.gguf"
    file = BlockFile.of_base(path, base.directory)
    assert len(loaded.layers) == 14
    moved = 0
    for name, layer in loaded.layers.items():
        assert isinstance(layer, GridLinear)
        found_OI = dequantize_blocks(file.blocks(f"{name}.weight", layer.weight.shape), torch.float32)
        assert torch.equal(found_OI, layer.rounded_OI(torch.float32)), name
        tensor = next(each for each in GgufReader(path).tensors if each.name == file.tensor_of(f"{name}.weight"))
        llama_cpps = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(llama_cpps.sort(0).values, found_OI.sort(0).values), "rows of queries and keys lie in another order"
        moved += int((layer.blocks().raw != layer.like_raw).any())
    assert moved == 14
    deployed = next(form for form in Parity.read(run.export / "parity.json").forms if form.form == kind)
    assert deployed.checks["adapter"].state == "pass"
    assert deployed.figures is not None and deployed.figures.kl_mean < 1e-2  # llama.cpp rounds inputs to 8 bits


def test_a_matrix_that_the_file_holds_in_16_bits_is_rounded_to_them(tiny_dir, tiny_gguf):
    """As rows that no block divides are held in any mixture; here it is all of the file."""
    model = load_model(tiny_dir, "fp32")
    lay_grids(model, tiny_gguf)
    layers = add_lora(model, Lora(r=2), 0)
    file = BlockFile.of_base(tiny_gguf, tiny_dir)
    for name, layer in layers.items():
        assert isinstance(layer, GridLinear)
        assert torch.equal(layer.blocks().raw, layer.like_raw), "a fresh adapter gives the file"
        torch.nn.init.normal_(layer.lora_B)
        half_OI = (layer.weight + (layer.lora_B @ layer.lora_A) * layer.scale).half()
        assert torch.equal(layer.rounded_OI(torch.float32), half_OI.float())
        (tensor,) = (each for each in GgufReader(tiny_gguf).tensors if each.name == file.tensor_of(f"{name}.weight"))
        assert file.in_file(f"{name}.weight", layer.blocks().raw).nbytes == tensor.n_bytes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "nf4"}, "not with base: nf4"),
        ({"export.gguf": ["F16"]}, "not with export.gguf that ends with F16"),
        ({"lora.use_dora": True}, "not with lora.use_dora"),
    ],
)
def test_what_a_recipe_may_not_say(tiny_dir, tmp_path, changes, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(write_recipe(tmp_path, tiny_dir, {"train.qat": True, "export.gguf": ["Q4_0"], **changes}))
