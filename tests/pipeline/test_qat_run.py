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
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import load_recipe
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
