"""What each key of where the model and the rows come from changes: name, model, data, chat."""

import hashlib
import json

import pytest

from shared import toy_rows
from tunesmith.chat.fit import fit as fit_lengths
from tunesmith.chat.render import Conversation
from tunesmith.checkpoints import resolve
from tunesmith.checkpoints.resolve import find_model
from tunesmith.data.read import Reader
from tunesmith.data.split import SplitFacts, split
from tunesmith.engines.base import open_base
from tunesmith.errors import DataError, ModelError, RunError
from tunesmith.evaluate import prompts
from tunesmith.export.companions import merged_config
from tunesmith.pipeline import verbs as api
from tunesmith.pipeline.reading import reader_of
from tunesmith.pipeline.render import _refuse_left_out
from tunesmith.pipeline.table import table_of
from tunesmith.recipe import dump_recipe
from tunesmith.retrieval.store import build_store
from tunesmith.rundir.records.data import LeftOut
from tunesmith.rundir.rows import Row

GREETED = [{"role": role, "content": text} for role, text in (("assistant", "hi"), ("user", "é?"), ("assistant", "é"))]
ROWS = [Row(str(i), f"line {i}", row["messages"]) for i, row in enumerate(toy_rows())]


def _find(recipe, tmp):
    try:
        return find_model(recipe.model, recipe.revision, recipe.model_sha256)
    except ModelError as error:
        return error.message


def _split(recipe, tmp):
    facts = SplitFacts()
    for row in Reader(recipe.data.path):
        facts.add(row)
    parts = split(facts, recipe.data.test_fraction, recipe.data.dev_fraction, recipe.seed)
    return dict(zip(facts.ids.tolist(), parts.tolist(), strict=True))


def _tested(recipe, tmp):
    api.data(run := api.open_run(tmp / "toy.yaml", tmp / f"run-{recipe.data.trained_on is None}"))
    return (run.data / "test.jsonl").read_text()


def _downloads(recipe, tmp):
    asked = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            resolve,
            "snapshot_download",
            lambda model, revision, dry_run=False, **_: asked.update(r=revision) or ([] if dry_run else str(tmp)),
        )
        find_model("org/name", recipe.revision)
    return asked


def _data(recipe, tmp):
    """What the data stage says or writes for rows made to meet every policy."""
    turns = [{"role": "user", "content": "What is the colour of the third house on the left side of the road?"}]
    kinds = {"question": "a red car", "answer": "red", "prompt": "a red car", "completion": "red", "kind": "x"}
    rows = [{**kinds, "prompt": f"{i} {i * i} a {i % 7} thing", "question": f"q{i}", "kind": f"k{i % 9}"} for i in range(60)]
    rows += [{**kinds, "prompt": f"{turns[0]['content']} {'!' * i}", "question": f"r{i}"} for i in range(30)]
    rows += [{**kinds, "prompt": "a thought", "completion": "<think>why</think>red"}]
    rows += [{**kinds, "prompt": ""}] * (recipe.data.on_bad_row == "quarantine")
    (tmp / "every.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = api.open_run(tmp / "toy.yaml", tmp / f"run-{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]}")
    changed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(tmp / "every.jsonl")})})
    run.recipe_file.write_text(dump_recipe(changed))
    try:
        api.data(run)
    except (DataError, RunError) as error:
        return error.message.replace(str(tmp), "")
    return [(run.data / f"{part}.jsonl").read_text() for part in ("train", "test")], (run.data / "rejected.jsonl").exists()


def _read(recipe, tmp):
    """Turns of a table in Windows-1252 with bars, of which one row is a string of questions."""
    path = tmp / "every.csv"
    path.write_bytes(f"conversations|completion\n{json.dumps(GREETED)}|a\n".encode("cp1252") + "é;b|c;d\n".encode("cp1252"))
    settings = recipe.data.model_copy(update={"path": str(path), "on_bad_row": "quarantine"})
    try:
        reader = reader_of(recipe.model_copy(update={"data": settings}))
        return [row.messages for row in reader], reader.summary().notes
    except DataError as error:
        return error.message


def _rendered(recipe, tmp):
    """Rows around the limit, rendered under the recipe's policy and template."""
    turns = [m for i in range(4) for m in ({"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"})]
    renderer = open_base(recipe).renderer
    fitted = fit_lengths(renderer, [Conversation(turns), Conversation(turns[:2])], 60, recipe.data.on_too_long)
    return [(f.rendered and f.rendered.ids, f.dropped_turns) for f in fitted]


def _rendered_token(recipe, tmp):
    return open_base(recipe).renderer.tokenizer.tokenize("<|tool|>")


def _refused(recipe, tmp):
    try:
        _refuse_left_out(recipe, "train", [LeftOut(id="a", place="line 1", reason="", hint="", tokens=9)], [9])
    except DataError as error:
        return error.message
    return None


def prompt_book(recipe, tmp):
    texts, ids = [row.messages[0]["content"] for row in ROWS[:40]], [row.id for row in ROWS[:40]]
    store = build_store(tmp / "questions.sqlite", texts, ids)
    return prompts.PromptBook(recipe, ROWS[:40], ROWS[40:], lambda _: store, lambda: store)


OBSERVE = {
    "name": ("other", lambda r, t: api.open_run(t / "toy.yaml").path),
    "model": ("elsewhere.gguf", _find),
    "revision": ("abc", _downloads),
    "model_sha256": ("0" * 64, _find),
    "towers": ("keep", lambda r, t: merged_config({"model_type": "gemma3", "text_config": {}}, r.towers == "keep", True)),
    "seed": (1, _split),
    "tuned": ({"adapter": "out"}, lambda r, t: [stage.name for stage in table_of(r).stages]),
    "data.path": ("fewer.jsonl", _split),
    "data.format": ("alpaca", _data),
    "data.columns": ({"prompt": "question", "completion": "answer"}, _data),
    "data.group_by": ("kind", _data),
    "data.on_bad_row": ("quarantine", _data),
    "data.encoding": ("latin-2", _read),
    "data.delimiter": (";", _read),
    "data.turns": ("trim", _read),
    "data.reasoning": ("split", _data),
    "data.take": ("chosen", _data),
    "data.on_too_long": ("drop_oldest_turns", lambda r, t: (_rendered(r, t), _refused(r, t))),
    "data.on_leak": ("refuse", _data),
    "data.limit": (50, _data),
    "data.split": ("given", _data),
    "data.earlier_split": ("none.json", _data),
    "data.trained_on": ("fewer.jsonl", _tested),
    "chat.template": ("other.jinja", _rendered),
    "chat.enable_thinking": (True, _rendered),
    "chat.new_tokens": (["<|tool|>"], _rendered_token),
    "data.test_fraction": (0.5, _split),
    "data.dev_fraction": (0.5, _split),
}
FIXED = {"chat.enable_thinking": {"chat.template": "other.jinja"}, "model_sha256": {"model": "./x.gguf"}}
