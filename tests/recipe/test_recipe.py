import copy
import json
import math
import re
from collections.abc import Iterator

import pytest
import yaml

from shared import write_recipe
from tunesmith.errors import RecipeError
from tunesmith.recipe import Recipe, dump_recipe, json_schema, load_recipe, recipe_from
from tunesmith.recipe.section import Section


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.learing_rate": 1}, "unknown key train.learing_rate\nhint: did you mean learning_rate"),
        ({"lora.rank": 4}, "unknown key lora.rank"),
        ({"modle": "x"}, "did you mean model"),
        ({"learning_rate": 1}, "unknown key learning_rate\nhint: learning_rate is a key of the section train"),
        ({"learnin_rate": 1}, "hint: learning_rate is a key of the section train"),
        ({"lora.r": 0}, "lora.r: expected 1 or more, found 0"),
        ({"lora.r": "many"}, "lora.r: expected a whole number, found 'many'"),
        ({"data.test_fraction": 0.9, "data.dev_fraction": 0.2}, "leave nothing to train on"),
        ({"evaluate.arms": ["tuned"]}, "at least one prompt arm"),
        ({"evaluate.arms": ["zero_shot", "zero_shot"]}, "named twice"),
        ({"task.metric": "exact_match"}, "json_schema is read by metric: json or judge alone"),
        ({"name": "../x"}, r"name: expected at most 64 letters .*, found '\.\./x'"),
        ({"model_sha256": "abc"}, "model_sha256: expected 64 hexadecimal digits"),
        ({"task.metric": "jsn"}, "task.metric: found 'jsn': no such metric; did you mean json"),
        (
            {"evaluate.external": {"ab": {"base_url": "x"}}},
            "external.ab: base_url and model are needed",
        ),
        ({"evaluate.external": {"a b": {"base_url": "x", "model": "y"}}}, "external.a b: expected letters without accents"),
        ({"data.path": ["a", {"path": "b", "wieght": 2}]}, "unknown key data.path.1.wieght\nhint: did you mean weight"),
        ({"data.path": [{"path": "b", "weight": -2}]}, "data.path.0.weight: expected more than 0, found -2"),
        ({"data.path": [{"count": 2}]}, "data.path.0.path is missing"),
        ({"data.path": []}, "path: nothing is named"),
        ({"data.split": "given", "data.on_leak": "move"}, "on_leak: move would change the parts"),
        ({"data.split": "given", "data.earlier_split": "x"}, "earlier_split is for parts that are drawn"),
        ({"train.resident_layers": 0}, "and base is fp32; write base: nf4, or train.resident_layers: all"),
        ({"train.resident_layers": 0, "base": "bf16"}, "streams layers in NF4, and base is bf16"),
        ({"train.resident_layers": "some"}, "train.resident_layers: expected 'all', or a whole number"),
        ({"train.resident_layers": -1, "base": "nf4"}, "train.resident_layers: expected"),
        ({"task.allow_code": "perhaps"}, "task.allow_code: expected true or false, or 'unconfined', found 'perhaps'"),
    ],
)
def test_wrong_values_are_named_with_their_key(tmp_path, changes, words):
    with pytest.raises(RecipeError, match=f"(?s){words}") as caught:
        load_recipe(write_recipe(tmp_path, tmp_path, changes))
    assert caught.value.hint


TWO = [{"adapter": "one"}, {"gguf": "two.gguf"}]
AWAY = [{"adapter": "one"}, {"endpoint": "http://here/v1", "model": "far"}]
JUDGE = {"metric": "judge", "judge": {"base_url": "http://here/v1", "model": "large", "rubric": "Is it right?"}}


@pytest.mark.parametrize(
    ("changes", "arms", "words"),
    [
        ({"tuned": TWO}, ["tuned", "deployed"], None),
        ({"tuned": TWO}, ["tuned:one", "deployed"], None),
        ({"tuned": TWO}, ["deployed"], "deployed: it is chosen by answers of the tuned models, and none is an arm; add tuned"),
        ({"tuned": TWO}, ["tuned_retrieval"], "there are 2 tuned models; gate one of them alone for it"),
        ({"tuned": AWAY}, ["tuned", "deployed"], "deployed: far is behind an endpoint"),
        ({"tuned": TWO, "task": JUDGE}, ["tuned", "deployed"], "deployed: the judge scores all arms at once"),
        ({"tuned": AWAY[1]}, ["tuned", "deployed"], "deployed: the tuned model is of the form endpoint"),
    ],
)
def test_which_arms_several_tuned_models_can_have(tmp_path, changes, arms, words):
    """One that cannot be is left out where nobody asked for it."""
    named = write_recipe(tmp_path, tmp_path, {**changes, "evaluate.arms": ["few_shot", *arms]})
    if words is None:
        assert load_recipe(named).chooses
    else:
        with pytest.raises(RecipeError, match=words):
            load_recipe(named)
        by_default = load_recipe(write_recipe(tmp_path, tmp_path, changes))
        assert by_default.chooses is (words.startswith(("deployed: it is", "there are")))


@pytest.mark.parametrize(
    ("key", "entries"),
    [
        ("export.gguf", ["Q9"]),
        ("evaluate.few_shot.k", [2.5]),
        ("lora.target_modules", [3, "q"]),
        ("task.labels", ["", "b"]),
    ],
)
def test_a_wrong_entry_of_a_list_is_one_line(tmp_path, key, entries):
    """And no second one that says that the list, its wrong entries taken away, is too short or of another type."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(tmp_path, tmp_path, {key: entries}))
    [line] = caught.value.message.splitlines()
    assert f"{key}.0: expected" in line


def leaves(section: type[Section], place: str = "") -> Iterator[str]:
    """Dotted keys of a section and of those below it."""
    for name, field in section.model_fields.items():
        yield f"{place}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{place}{name}.")


ODD = [None, -1, 1e300, math.nan, 0.5, "", " ?", True, [], [None], ["", ""], {}, {"a b": 1}, {" ": {}}]
OF_PYDANTIC = re.compile(r"Value error|Input |should|valid |\^\[|<class|\[key\]|tuple|dict|literal\[|\.(str|bool|int|float)\b")


def test_no_wrong_value_of_any_key_shows_the_words_of_pydantic(tmp_path):
    plain = yaml.safe_load(write_recipe(tmp_path, tmp_path).read_text())
    refused: dict[str, int] = {}
    for key in leaves(Recipe):
        for value in ODD:
            raw = copy.deepcopy(plain)
            *sections, last = key.split(".")
            place = raw
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
            try:
                recipe_from(raw, tmp_path, "toy.yaml")
            except RecipeError as error:
                refused[key] = refused.get(key, 0) + 1
                assert not OF_PYDANTIC.search(error.message), (key, value)
                assert key.split(".")[0] in error.message, (key, value)
    assert set(refused) == set(leaves(Recipe))


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
    several = load_recipe(write_recipe(tmp_path, tmp_path, {"data.path": ["rows.jsonl", {"path": "org/rows", "count": 3}]}))
    assert [rows.path for rows in several.data.paths] == [str(tmp_path / "rows.jsonl"), "org/rows"]
    assert recipe_from(yaml.safe_load(dump_recipe(several)), tmp_path, "") == several
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
