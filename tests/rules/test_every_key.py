"""Rule 6: every recipe key changes behaviour. One observation per key; a key without one fails.

The observations stand in ``keys_of_*.py``, by section of the recipe.
"""

import json

import keys_of_data
import keys_of_evaluation
import keys_of_task
import keys_of_training
import pytest

from shared import toy_rows, write_recipe
from tunesmith.recipe import Recipe, load_recipe

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
OTHER = "{{ 'Think.' if enable_thinking }}" + TURNS + "{{ '<|im_start|>assistant: ' if add_generation_prompt }}"
SECTIONS = (keys_of_data, keys_of_training, keys_of_task, keys_of_evaluation)
OBSERVE = {key: observation for section in SECTIONS for key, observation in section.OBSERVE.items()}
FIXED = {key: beside for section in SECTIONS for key, beside in section.FIXED.items()}  # what a key needs beside it


def _keys(section=Recipe, prefix=""):
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_has_an_observation():
    assert set(_keys()) == set(OBSERVE)


@pytest.mark.parametrize("key", sorted(OBSERVE))
def test_key_changes_behaviour(key, tiny_dir, tmp_path):
    value, observe = OBSERVE[key]
    fixed = FIXED.get(key, {})
    (tmp_path / "x.gguf").write_bytes(b"no model")
    (tmp_path / "other.jinja").write_text(OTHER)
    (tmp_path / "fewer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows()[:40]))
    seen = []
    for changes in (fixed, {**fixed, key: value}):
        recipe = load_recipe(write_recipe(tmp_path, tiny_dir, changes))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            seen.append(observe(recipe, tmp_path))
    assert seen[0] != seen[1], f"{key}: {value!r} changes nothing"
