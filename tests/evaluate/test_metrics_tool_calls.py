"""Calls compared by structure, and a run whose answers are calls from the data to the verdict."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared import COLOURS, THINGS, write_recipe
from tunesmith.chat.render import Renderer
from tunesmith.data.conversation import check_messages
from tunesmith.errors import DataError, ModelError
from tunesmith.evaluate.arms import read_outputs
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.metrics.tool_calls import calls_score
from tunesmith.evaluate.references import check_references
from tunesmith.pipeline import verbs as api
from tunesmith.recipe import Task
from tunesmith.rundir.records.calls import Call, Calls
from tunesmith.rundir.rows import Row

PAIR = '{"tool_calls": [{"name": "f", "arguments": {"a": 1, "b": "é"}}, {"name": "g", "arguments": {}}]}'
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object", "properties": {}}}}
    for name in ("paint", "list_colours")
]


def score(*calls: tuple[str, str], reference: str = PAIR, **counts: int):
    return calls_score(Calls(calls=tuple(Call(name=n, arguments=a) for n, a in calls), **counts), reference)


def test_equal_is_the_same_calls_in_any_order_by_value():
    right = {"score": 1.0, "name": 1.0, "arguments": 1.0, "parsed": 1.0, "malformed": 0.0, "lost": 0.0}
    assert score(("g", "{}"), ("f", '{"b": "e\u0301", "a": 1.0}')) == right
    assert score(("f", '{"b": "é", "a": true}'), ("g", "{}"))["score"] == 0.0
    assert score(("f", '{"b": "é", "a": 1}'))["score"] == 0.0  # one is missing
    assert score(("f", '{"b": "é", "a": 1}'), ("g", "{}"), ("g", "{}"))["score"] == 0.0  # one too many
    assert score(("f", '{"b": "é", "a": 1}'), ("g", "{}"), malformed=1)["score"] == 0.0
    assert score(lost=2) == {**dict.fromkeys(right, 0.0), "lost": 1.0}


def test_names_and_arguments_are_counted_apart():
    wrong = score(("f", '{"a": 2, "b": "é"}'), ("g", "{}"))
    assert (wrong["score"], wrong["name"], wrong["arguments"]) == (0.0, 1.0, pytest.approx(2 * 2 / 6))  # b and the empty g
    other = score(("h", '{"a": 1, "b": "é"}'), ("g", "{}"))
    assert (other["name"], other["arguments"]) == (0.0, pytest.approx(2 * 1 / 6))  # the fields of another function are not f's


def test_where_no_call_is_right_every_answer_without_one_is():
    for reference in ("No function does that.", '{"tool_calls": 3}', '["tool_calls"]'):
        assert score(reference=reference)["score"] == score(reference=reference)["arguments"] == 1.0
        assert score(("f", "{}"), reference=reference)["score"] == 0.0
        assert score(reference=reference, lost=1)["score"] == score(reference=reference, malformed=1)["score"] == 0.0


def _rows() -> list[dict]:
    rows = []
    for number, (colour, thing) in enumerate((colour, thing) for colour in COLOURS for thing in THINGS):
        function = {"name": "paint", "arguments": json.dumps({"colour": colour, "thing": thing})}
        answer = {"content": "", "tool_calls": [{"type": "function", "function": function}]}
        answer = {"content": "No function does that."} if number % 8 == 0 else answer
        question = {"role": "user", "content": f"a {colour} {thing}"}
        rows.append({"messages": [question, {"role": "assistant", **answer}], "tools": TOOLS})
    return rows


def test_rows_whose_calls_cannot_be_scored_are_refused():
    function = {"name": "fly", "arguments": {}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}]
    row = Row("1", "line 1", messages, TOOLS)
    with pytest.raises(DataError, match="it calls 'fly', which its tools do not declare"):
        check_references([row], make_metric(Task(metric="tool_calls")))
    function["name"] = "paint"
    check_references([row], make_metric(Task(metric="tool_calls")))
    with pytest.raises(DataError, match="ended by a tool call"):
        check_references([row], make_metric(Task(metric="exact_match")))


def _recipe(directory: Path, tiny_dir: Path, changes: dict) -> Path:
    task = {"metric": "tool_calls", "prompt": "Call the function that does it.", "max_new_tokens": 8}
    train = {"tokens_per_step": 512, "max_length": 512, "num_train_epochs": 1, "learning_rate": 0.002}
    recipe = write_recipe(directory, tiny_dir, {"task": task, "train": train, **changes})
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows()[::3]))
    return recipe


def test_a_template_without_tools_is_refused_before_anything_is_trained(tmp_path, tiny_dir):
    run = api.open_run(_recipe(tmp_path, tiny_dir, {}), tmp_path / "run")
    with pytest.raises(ModelError, match="tool calls cannot be scored"):
        api.run(run)
    assert "train" not in run.stages()


def _learned(tiny_dir: Path, template: Path, target: Path, steps: int) -> Path:
    """The tiny model after so many steps on the rows, all tokens; its tokens write the marks of calls letter by letter."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_dir), AutoTokenizer.from_pretrained(tiny_dir)
    renderer = Renderer(tokenizer, template.read_text())
    read = [check_messages(row["messages"]) for row in _rows()[:16]]
    torch.manual_seed(0)
    ids = [torch.tensor(renderer.render(messages, TOOLS).ids) for messages in read]
    ids_NT = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    for step in range(steps):
        labels_BT = ids_NT[step % 8 :: 8]
        model(input_ids=labels_BT.clamp(min=0), labels=labels_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def test_a_run_from_rows_with_calls_to_a_verdict(tmp_path, tiny_dir):
    """Qwen's template on the tiny model, which has seen such rows a few times."""
    trl = importlib.util.find_spec("trl")
    assert trl is not None and trl.submodule_search_locations
    template = Path(trl.submodule_search_locations[0]) / "chat_templates" / "qwen2_5.jinja"
    tiny_dir = _learned(tiny_dir, template, tmp_path / "learned", 4)
    arms = ["instruction", "few_shot", "tuned"]
    changes = {
        "chat.template": str(template),
        "evaluate.arms": arms,
        "evaluate.few_shot": {"k": [1], "draws": 1},
        "export.gguf": ["Q8_0"],
    }
    run = api.open_run(_recipe(tmp_path, tiny_dir, changes), tmp_path / "run")
    verdict = api.run(run)
    assert set(verdict.arm("tuned").figures) == {"name", "arguments", "parsed", "malformed", "lost"}
    for arm in arms:
        outputs = read_outputs(run.answers(arm))
        assert all(output.calls is not None for output in outputs)
        longest = max(output.prompt_tokens for output in outputs)
        shown = [m for output in outputs for m in output.prompt if "tool_calls" in m]
        assert bool(shown) <= (arm == "few_shot") and longest > 200  # the declared functions are in every prompt
    references = [output.reference for output in read_outputs(run.answers("tuned"))]
    assert any(json.loads(text)["tool_calls"][0]["name"] == "paint" for text in references if text.startswith("{"))
    before = run.stages()
    assert api.run(run).decision == verdict.decision and run.stages() == before
