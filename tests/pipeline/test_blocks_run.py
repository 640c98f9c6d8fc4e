"""A run that trains on the blocks of the GGUF that it deploys, from the base file to the deployed arm."""

import pytest

from shared import write_recipe
from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.checkpoints.gguf_write.quantize import quantize
from tunesmith.checkpoints.gguf_write.rewrite import rewrite_gguf
from tunesmith.engines.base import open_base
from tunesmith.errors import ModelError, RecipeError
from tunesmith.layers.blocks import BlockWeight
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import load_recipe
from tunesmith.rundir.records.parity import Parity

ARMS = ["instruction", "tuned", "deployed"]


def _blocks_of(path):
    return {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in GgufReader(path).tensors}


def test_what_is_trained_on_is_what_is_deployed(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = write_recipe(tmp_path, tiny_dir, {"base": "Q8_0", "evaluate.arms": ARMS, "export.gguf": ["F16"]})
    run = api.open_run(recipe, tmp_path / "run")
    api.make(run, ["parity", "evaluate deployed"], all_needed=True)
    base = open_base(run.recipe())
    weights = [module for module in base.load().model.modules() if isinstance(module, BlockWeight)]
    assert len(weights) == 14 and {weight.kind for weight in weights} == {"Q8_0"}
    assert base.blocks is not None
    assert _blocks_of(run.export / "toy-base-Q8_0.gguf") == _blocks_of(base.blocks)
    assert (run.answers("deployed") / "outputs.jsonl").exists()
    parity = Parity.read(run.export / "parity.json")
    forms = {form.form: form for form in parity.forms}
    assert parity.deployed == "LoRA" and forms["merged"].state == forms["F16"].state == "deployable"
    assert forms["LoRA"].checks["adapter"].state == "pass"
    assert forms["LoRA"].figures is not None and forms["LoRA"].figures.kl_mean < 1e-3  # llama.cpp rounds inputs to 8 bits


def test_a_file_that_is_there_is_trained_on_as_it_lies(tiny_gguf, tmp_path):
    recipe = write_recipe(tmp_path, tiny_gguf, {"base": "gguf"})
    assert load_recipe(recipe).export.lora_gguf
    base = open_base(load_recipe(recipe))
    assert base.blocks == tiny_gguf
    with pytest.raises(ModelError, match="is F16, and base names Q4_0"):
        open_base(tiny_gguf, base="Q4_0").blocks  # noqa: B018


@pytest.mark.parametrize("base", ["gguf", "fp32"])
def test_a_file_without_the_template_of_the_run_is_written_with_it(tiny_gguf, tmp_path, base):
    """llama.cpp takes the template from the base; without one it is ChatML for whoever asks."""
    own = tmp_path / "own.gguf"
    quantize(tiny_gguf, tmp_path / "q8.gguf", "Q8_0")
    rewrite_gguf(tmp_path / "q8.gguf", own, "{{ messages[0]['content'] }}")
    changes = {"base": base, "chat.template": "chatml", "export.lora_gguf": True, "export.gguf": ["Q8_0"]}
    run = api.open_run(write_recipe(tmp_path, own, changes), tmp_path / "run")
    api.make(run, ["parity"], all_needed=True)
    lora = next(form for form in Parity.read(run.export / "parity.json").forms if form.form == "LoRA")
    assert lora.checks["template"].state == lora.checks["token ids"].state == "pass"
    written = run.export / ("toy-base.gguf" if base == "gguf" else "toy-base-Q8_0.gguf")
    assert _blocks_of(written) == _blocks_of(own)
    assert f"export/{written.name}" in (run.export / "commands.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "gguf"}, "base: gguf trains on the blocks of a .gguf file"),
        ({"base": "Q4_K_M", "export.lora_gguf": False}, "excludes export.lora_gguf: false"),
        ({"base": "Q4_K_M", "lora.use_dora": True}, "excludes lora.use_dora: true"),
        ({"base": "Q4_K_M", "chat.new_tokens": ["<|a|>"]}, "new_tokens|no rows of new tokens"),
    ],
)
def test_what_a_recipe_may_not_say(tiny_dir, tmp_path, changes, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(write_recipe(tmp_path, tiny_dir, changes))
