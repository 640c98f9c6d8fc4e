"""What cannot end well is refused before a row is read: by a run, a dry run, ``Run``, and verbs that need the base."""

import json
import shutil
from importlib.machinery import ModuleSpec

import pytest

import tunesmith as ts
from shared import write_recipe
from tunesmith.errors import DataError, ExportError, MissingPackage, ModelError, RecipeError, TrainingError
from tunesmith.pipeline import early
from tunesmith.pipeline import verbs as api

HQQ = {"quantization_config": {"quant_method": "hqq", "bits": 4}}
ENDPOINT = {"base_url": "http://localhost:1/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"}
WRITTEN = {"recipe.yaml", "manifest.json", "events.jsonl"}


def _copy(tiny_dir, directory, **settings):
    """The tiny model with other settings."""
    shutil.copytree(tiny_dir, directory)
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return directory


def _written(run):
    return {file.relative_to(run.path).as_posix() for file in run.path.rglob("*") if file.is_file() and file.name[0] != "."}


def _refused(run, verb, error, words):
    with pytest.raises(error, match=words) as caught:
        verb(run)
    assert caught.value.hint
    assert _written(run) <= WRITTEN


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"export.lora_gguf": True, "lora.use_dora": True}, RecipeError, "export.lora_gguf with lora.use_dora"),
        ({"export.num_ctx": 100_000}, RecipeError, "num_ctx: 100,000, the model takes 1,024 tokens"),
        ({"evaluate.forgetting.texts": "nowhere.jsonl"}, RecipeError, r"forgetting.texts: .*nowhere.jsonl: no such file"),
        ({"data.documents": "nowhere"}, RecipeError, r"data.documents: .*nowhere: no such file"),
        ({"chat.template": "./own.jinja"}, RecipeError, r"chat.template: .*own.jinja: no such file"),
        ({"task.json_schema": "nowhere.json"}, RecipeError, r"nowhere.json"),
        ({"lora.target_modules": ["q_prj"]}, TrainingError, "no linear layer is called 'q_prj'"),
        (
            {
                "evaluate.external": {"big": ENDPOINT},
                "evaluate.arms": ["zero_shot", "external:big"],
            },
            RecipeError,
            "the environment variable NO_SUCH_KEY is not set",
        ),
    ],
)
def test_a_recipe_that_cannot_end_well(tmp_path, tiny_dir, changes, error, words):
    _refused(api.open_run(write_recipe(tmp_path, tiny_dir, changes), tmp_path / "run"), api.run, error, words)


@pytest.mark.parametrize("verb", [api.run, api.render, api.train, api.dry_run, lambda run: ts.Run.open(run.path).train()])
def test_a_base_that_cannot_be_trained_is_refused_by_whatever_needs_it(tmp_path, tiny_dir, verb):
    model = _copy(tiny_dir, tmp_path / "hqq", **HQQ)
    run = api.open_run(write_recipe(tmp_path, model), tmp_path / "run")
    _refused(run, verb, ModelError, "quantised by hqq")
    api.data(run)  # which does not read it


def test_shards_that_are_not_there(tmp_path, tiny_dir):
    model = _copy(tiny_dir, tmp_path / "half")
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    run = api.open_run(write_recipe(tmp_path, model), tmp_path / "run")
    _refused(run, api.run, ModelError, "2 of the 2 files")


def test_an_architecture_that_no_gguf_can_hold(tmp_path, tiny_dir):
    model = _copy(tiny_dir, tmp_path / "own", architectures=["OwnForCausalLM"])
    run = api.open_run(write_recipe(tmp_path, model), tmp_path / "run")
    _refused(run, api.run, ExportError, "does not know OwnForCausalLM")


def test_a_package_that_the_end_of_the_run_needs(tmp_path, tiny_dir, monkeypatch):
    installed: dict[str, ModuleSpec | None] = {"xllamacpp": None}
    monkeypatch.setattr(early, "find_spec", lambda name: installed.get(name, ModuleSpec(name, None)))
    run = api.open_run(write_recipe(tmp_path, tiny_dir), tmp_path / "run")
    _refused(run, api.run, MissingPackage, "export.gguf needs the package xllamacpp")


def test_rows_beyond_the_positions_of_the_model_are_refused_when_lengths_are_known(tmp_path, tiny_dir):
    model = _copy(tiny_dir, tmp_path / "short", max_position_embeddings=40)
    run = api.open_run(write_recipe(tmp_path, model), tmp_path / "run")
    with pytest.raises(DataError, match="rows are longer than the 40 tokens that llama has positions for") as caught:
        api.run(run)
    assert "train.max_length: 40" in caught.value.hint
    assert not (run.data / "train.arrow").exists() and not run.evaluation.exists()


def test_what_was_made_from_a_file_stands_without_it(tiny_run, tmp_path):
    """Neither the base nor the texts are there any more; the verdict is made again all the same."""
    shutil.copytree(tiny_run.path, tmp_path / "run")
    run = api.open_run(tmp_path / "run")
    text = run.recipe_file.read_text()
    model = str(run.recipe().model)
    run.recipe_file.write_text(text.replace(f"model: {model}", f"model: {tmp_path / 'gone'}"))
    run.verdict_file.unlink()
    api.verdict(run)
    with pytest.raises(ModelError, match="no such model"):
        api.make(run, ["train"], force=["train"])


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"r": 64, "alpha": 128}, "about 0.25 of that under alpha 32"),
        ({"r": 64, "alpha": 32}, ""),
        ({"r": 32, "alpha": 64}, ""),
        ({"r": 64, "alpha": 128, "use_rslora": True}, ""),
    ],
)
def test_alpha_of_twice_a_high_rank_is_warned_of(tmp_path, tiny_dir, talk, lora, words):
    run = api.open_run(write_recipe(tmp_path, tiny_dir, {"lora": lora}), tmp_path / "run")
    api.dry_run(run)
    said = talk()
    assert ("the best rate is" in said) == bool(words) and words in said
