"""A run whose vocabulary gets new tokens, from the rows to the GGUF."""

import json

import pytest

from shared import write_recipe
from tunesmith.errors import RecipeError
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import load_recipe
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.export import Merge

TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}<|tool|>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOKENS = ["<|tool|>", {"text": "wug", "special": False}, "<|never|>"]


def test_a_run_with_new_tokens_exports_what_was_trained(tiny_dir, tmp_path, talk):
    (tmp_path / "tool.jinja").write_text(TEMPLATE)
    chat = {"template": "tool.jinja", "new_tokens": TOKENS}
    recipe = write_recipe(tmp_path, tiny_dir, {"chat": chat, "export.gguf": ["F16"]})
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text.replace("car", "wug"))
    run = api.open_run(recipe, tmp_path / "run")
    api.render(run)
    counts = Rendered.read(run.rendered_file).new_tokens
    train = [json.loads(line)["messages"][1]["content"] for line in (run.data / "train.jsonl").read_text().splitlines()]
    assert counts == {"<|tool|>": len(train), "wug": sum("wug" in answer for answer in train), "<|never|>": 0}
    assert "<|never|> is supervised nowhere in train" in talk()
    api.train(run)
    assert "LoRA on 14 layers and rows of 3 new tokens" in talk()
    api.export(run)
    assert Merge.read(run.export / "merge.json").new_tokens == 3
    assert [(form.form, form.state) for form in api.parity(run).forms] == [("merged", "deployable"), ("F16", "deployable")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chat.new_tokens": ["a", {"text": "a"}]}, "'a' is named twice"),
        ({"chat.new_tokens": ["a"], "export.lora_gguf": True}, "no rows of new tokens"),
        ({"chat.new_tokens": [" a"]}, "white space"),
        ({"chat.new_tokens": [{"txt": "a"}]}, r"chat.new_tokens.0.txt"),
    ],
)
def test_what_a_recipe_may_not_say(tiny_dir, tmp_path, changes, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(write_recipe(tmp_path, tiny_dir, changes))
