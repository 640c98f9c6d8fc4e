import json

import pytest
import yaml

from conftest import write_recipe
from tunesmith.errors import RecipeError
from tunesmith.recipe import dump_recipe, json_schema, load_recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.learing_rate": 1}, "unknown key train.learing_rate\nhint: did you mean learning_rate"),
        ({"lora.rank": 4}, "unknown key lora.rank"),
        ({"modle": "x"}, "did you mean model"),
        ({"learning_rate": 1}, "unknown key learning_rate\nhint: learning_rate is a key of the section train"),
        ({"learnin_rate": 1}, "hint: learning_rate is a key of the section train"),
        ({"lora.r": 0}, "lora.r: .*greater than or equal to 1"),
        ({"lora.r": "many"}, "lora.r: .*integer.*'many'"),
        ({"data.test_fraction": 0.9, "data.dev_fraction": 0.2}, "leave nothing to train on"),
        ({"evaluate.arms": ["tuned"]}, "at least one prompt arm"),
        ({"evaluate.arms": ["zero_shot", "zero_shot"]}, "named twice"),
        ({"task.metric": "exact_match"}, "json_schema is read by metric: json or judge alone"),
        ({"name": "../x"}, "name: "),
        ({"model_sha256": "abc"}, "model_sha256: "),
    ],
)
def test_wrong_values_are_named_with_their_key(tmp_path, changes, words):
    with pytest.raises(RecipeError, match=f"(?s){words}") as caught:
        load_recipe(write_recipe(tmp_path, tmp_path, changes))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found an empty file"),
        ("a: [", "cannot be read as YAML"),
        ("- 1", "found a list"),
        ("base: fp32", "task is missing"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, words):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_resolved_recipe_writes_every_default_and_reads_back_the_same(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, tmp_path, {"train.learning_rate": "2e-4"}))
    assert recipe.name == "toy" and recipe.data.path == str(tmp_path / "rows.jsonl") and recipe.train.learning_rate == 2e-4
    again = tmp_path / "elsewhere" / "recipe.yaml"
    again.parent.mkdir()
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe
    assert set(yaml.safe_load(again.read_text())["train"]) == set(type(recipe.train).model_fields)


def test_paths_are_relative_to_the_recipe_and_hub_ids_stay_ids(tmp_path):
    (tmp_path / "local").mkdir()
    for written, resolved in [
        ("./x", str(tmp_path / "x")),
        ("m.gguf", str(tmp_path / "m.gguf")),
        ("local", str(tmp_path / "local")),
        ("org/name", "org/name"),
    ]:
        assert load_recipe(write_recipe(tmp_path, tmp_path, {"model": written})).model == resolved


def test_schema_for_editors_knows_every_section():
    schema = json.loads(json_schema())
    assert schema["additionalProperties"] is False and {"data", "task", "train"} <= set(schema["properties"])
