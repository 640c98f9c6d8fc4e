"""A run that trains onto the grid of the file it deploys."""

import shutil

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared import write_recipe
from tunesmith.checkpoints.gguf_blocks import BlockFile
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.base import grid_gguf
from tunesmith.checkpoints.gguf_write.convert import convert
from tunesmith.checkpoints.gguf_write.imatrix import read_imatrix
from tunesmith.checkpoints.gguf_write.quantize import quantize
from tunesmith.engines.base import open_base
from tunesmith.errors import ModelError, RecipeError
from tunesmith.kernels.blocks import dequantize_blocks
from tunesmith.layers.grid import GridLinear
from tunesmith.models.grids import lay_grids
from tunesmith.models.load import load_model
from tunesmith.models.swap import adaptable_names, add_lora
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.base import base_of
from tunesmith.recipe import Lora, load_recipe
from tunesmith.rundir.records.parity import Parity


@pytest.mark.parametrize(("kind", "weigh"), [("Q4_0", False), ("Q4_K_M", True)])
def test_the_file_holds_what_was_trained(tiny_dir, tmp_path, monkeypatch, kind, weigh):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    changes = {"train.qat": True, "export.gguf": [kind], "export.imatrix": weigh, "train.learning_rate": 0.02}
    run = api.open_run(write_recipe(tmp_path, tiny_dir, changes), tmp_path / "run")
    api.make(run, ["parity"], all_needed=True)
    base = base_of(run, run.recipe())
    loaded = base.load(run.adapter)
    path = run.export / f"toy-{kind}.gguf"
    if weigh:
        check_weighed(run, base, path)
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
        moved += int((layer.blocks().raw != layer.like.raw).any())
    assert moved == 14
    deployed = next(form for form in Parity.read(run.export / "parity.json").forms if form.form == kind)
    assert deployed.checks["adapter"].state == "pass"
    assert deployed.figures is not None and deployed.figures.kl_mean < 1e-2  # llama.cpp rounds inputs to 8 bits


def check_weighed(run, base, path):
    """The grid is that of the base's importance: llama.cpp's bytes with it, and others than without."""
    assert [stage for stage, entry in run.stages().items() if "data/base.imatrix.gguf" in entry.outputs] == ["importance"]
    plain = grid_gguf(base.directory, base.grid)
    with_it, without = ({t.name: bytes(t.data) for t in GgufReader(file).tensors} for file in (base.blocks, plain))
    changed = [name for name in with_it if with_it[name] != without[name]]
    assert changed and all(name.startswith("blk.") for name in changed)
    convert(base.directory, run.path / "half.gguf", "F16")
    quantize(run.path / "half.gguf", run.path / "again.gguf", base.grid, read_imatrix(run.base_imatrix).values)
    assert {t.name: bytes(t.data) for t in GgufReader(run.path / "again.gguf").tensors} == with_it
    assert GgufReader(path).value("quantize.imatrix.file") == "base.imatrix.gguf"
    with pytest.raises(ModelError, match="lies in a run"):
        _ = open_base(run.recipe()).blocks


def test_a_base_that_lies_on_a_grid_keeps_it(tiny_dir, tmp_path, monkeypatch):
    """A release of 16 bits on a Q4_0 grid, then that release as a file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = load_model(tiny_dir, "fp32")
    exact = {}
    for name in adaptable_names(model):
        weight_OI = model.get_submodule(name).weight
        grouped = weight_OI.detach().view(-1, 32)
        scale_N1 = (grouped.abs().amax(1, keepdim=True) / 7).half().float()
        exact[name] = (grouped / scale_N1).round().clamp(-7, 7).mul(scale_N1).view_as(weight_OI).bfloat16()
    release = tmp_path / "release"
    shutil.copytree(tiny_dir, release)
    tensors = load_file(tiny_dir / "model.safetensors")
    save_file({**tensors, **{f"{name}.weight": value for name, value in exact.items()}}, release / "model.safetensors")
    changes = {"train.qat": True, "export.gguf": ["Q4_0"]}
    base = open_base(load_recipe(write_recipe(tmp_path, release, changes)))
    file, plain = BlockFile.of_base(base.blocks, base.directory), tmp_path / "plain.gguf"
    convert(release, tmp_path / "half.gguf", "F16")
    quantize(tmp_path / "half.gguf", plain, "Q4_0")
    lost = BlockFile.of_base(plain, base.directory)
    for name, value in exact.items():
        kept, searched = (
            dequantize_blocks(each.blocks(f"{name}.weight", value.shape), torch.bfloat16) for each in (file, lost)
        )
        assert torch.equal(kept, value) and (searched != value).float().mean() > 0.5
    changes |= {"train.learning_rate": 0.02, "lora.target_modules": ["q_proj"]}
    run = api.open_run(write_recipe(tmp_path, base.blocks, changes), tmp_path / "run")
    api.make(run, ["export"], all_needed=True)
    old, new = (
        {t.name: bytes(t.data) for t in GgufReader(path).tensors} for path in (base.blocks, run.export / "toy-Q4_0.gguf")
    )
    changed = {name for name in old if old[name] != new[name]}
    assert changed and all(name.endswith("attn_q.weight") for name in changed), "nothing else is quantised again"
    with pytest.raises(ModelError, match="an importance matrix has nothing to choose"):
        _ = open_base(load_recipe(write_recipe(tmp_path, base.blocks, {**changes, "export.imatrix": True}))).blocks


def test_a_matrix_that_the_file_holds_in_16_bits_is_rounded_to_them(tiny_dir, tiny_gguf):
    """As rows that no block divides are held in any mixture; here it is all of the file."""
    model = load_model(tiny_dir, "fp32")
    lay_grids(model, tiny_gguf)
    layers = add_lora(model, Lora(r=2), 0)
    file = BlockFile.of_base(tiny_gguf, tiny_dir)
    for name, layer in layers.items():
        assert isinstance(layer, GridLinear)
        assert torch.equal(layer.blocks().raw, layer.like.raw), "a fresh adapter gives the file"
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
