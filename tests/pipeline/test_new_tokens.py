"""A run whose vocabulary gets new tokens, from the rows to the GGUF."""

import json

from shared import toy_rows, write_recipe
from tunesmith.pipeline import verbs as api
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.export import Merge

TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}<|tool|>{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_a_run_with_new_tokens_exports_what_was_trained(tiny_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "tool.jinja").write_text(TEMPLATE)
    changes = {
        "chat": {"template": "tool.jinja", "new_tokens": ["<|tool|>", {"text": "wug", "special": False}, "<|never|>"]},
        "export": {"gguf": ["F16"]},
    }
    recipe = write_recipe(tmp_path, tiny_dir, changes)
    rows = [{"messages": [m | {"content": m["content"].replace("car", "wug")} for m in r["messages"]]} for r in toy_rows()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = api.open_run(recipe, tmp_path / "run")
    api.render(run)
    counts = Rendered.read(run.rendered_file).new_tokens
    print(counts)
    api.train(run)
    api.export(run)
    assert Merge.read(run.export / "merge.json").new_tokens == 3
    report = api.parity(run)
    print(report)
    print(caplog.text[-6000:])
    assert 0
