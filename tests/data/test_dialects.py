"""Turns and rows of other programs where ``cases/`` has no file: what is kept, what is said, what is refused and where."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunesmith.data.read import Reader, ReadOptions, read_rows
from tunesmith.errors import DataError

USER, LOW, END = {"role": "user", "content": "a"}, {"role": "tool", "content": "low"}, {"role": "assistant", "content": "b"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}


def blocks(*parts, role="assistant"):
    return {"role": role, "content": list(parts)}


def text(words):
    return {"type": "text", "text": words}


USE = {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [text("lo"), text("w")], "is_error": True}
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}
GEMINI_TOOL = {
    "functionDeclarations": [{"name": "f", "parameters": {"type": "OBJECT", "properties": {"x": {"type": "INTEGER"}}}}]
}


def chat(*turns, **beside):
    return {"messages": list(turns), **beside}


HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
LISTED = f"Be kind. <tools></tools> Here: <tools>\n{json.dumps(FUNCTION)}\n</tools> Go."


# What is read, as what, and a word of what is said of it.
READ = {
    "calls and results in the text": (
        chat(USER, {**END, "content": HERMES_CALL}, {**LOW, "content": "<tool_response>low</tool_response>"}, END),
        chat(USER, {**CALLING, "tool_calls": [CALL]}, LOW, END),
        "<tool_call>",
    ),
    "results in a user's text, who says more": (
        chat(USER, {**END, "content": f"b\n{HERMES_CALL}"}, {**USER, "content": "<tool_response>low</tool_response>a"}, END),
        chat(USER, {**END, "tool_calls": [CALL]}, LOW, USER, END),
        "<tool_response>",
    ),
    "tools in the system text": (
        chat({"role": "system", "content": LISTED}, USER, END),
        chat({"role": "system", "content": "Be kind. <tools></tools> Here:  Go."}, USER, END, tools=[FUNCTION]),
        "taken out of the text",
    ),
    "a result and a question in one turn": (
        chat(USER, blocks(USE), blocks(RESULT, text("a"), role="user"), END),
        chat(USER, {**CALLING, "tool_calls": [{"id": "t", **CALL}]}, {**LOW, "tool_call_id": "t"}, USER, END),
        "is_error",
    ),
    "a result": (
        chat(USER, blocks(USE), blocks(RESULT, role="user"), END),
        chat(USER, {**CALLING, "tool_calls": [{"id": "t", **CALL}]}, {**LOW, "tool_call_id": "t"}, END),
        "is_error",
    ),
    "cached text": (chat(blocks({**text("a"), "cache_control": {"type": "x"}}, role="user"), END), chat(USER, END), "cache"),
    "a rating beside a choice": (
        {"data": {"text": "a", "url": "u"}, "annotations": [{"result": [
            {"value": {"choices": ["b"]}, "type": "choices"}, {"value": {"rating": 2}, "type": "rating"}]}]},
        chat(USER, END),
        "a rating of an annotation is not read",
    ),
    "calls of several turns": (
        chat(USER, *[{"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'}] * 2, LOW, LOW, END),
        chat(USER, {**CALLING, "tool_calls": [CALL, CALL]}, LOW, LOW, END),
        "tool_call",
    ),
    "call of another kit": (
        chat(USER, {**CALLING, "tool_calls": [{"toolCallId": "t", "toolName": "f", "args": {"x": 1}}]}, LOW, END),
        chat(USER, {**CALLING, "tool_calls": [{"id": "t", **CALL}]}, LOW, END),
        "function",
    ),
    "reasoning twice": (
        chat(USER, {**END, "reasoning": "c", "reasoning_content": "c"}),
        chat(USER, {**END, "reasoning_content": "c"}),
        "reasoning is read",
    ),
    "encrypted reasoning": (
        chat(USER, {**END, "reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]}),
        chat(USER, END),
        "encrypted",
    ),
    "a list as result": (
        chat(USER, CALLING, {**LOW, "content": [1]}, END),
        chat(USER, CALLING, {**LOW, "content": "[1]"}, END),
        "JSON text",
    ),
    "tools of Gemini": (chat(USER, END, tools=[GEMINI_TOOL]), chat(USER, END, tools=[FUNCTION]), "functionDeclarations"),
    "tools as texts": (chat(USER, END, tools=[json.dumps(FUNCTION)]), chat(USER, END, tools=[FUNCTION]), ""),
    "calls of Gemini": (
        {
            "contents": [
                {"role": "user", "parts": [{"text": "a"}]},
                {"role": "model", "parts": [{"text": "c", "thought": True}, {"functionCall": {"name": "f", "args": {"x": 1}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"y": 2}}}]},
                {"role": "model", "parts": [{"text": "b"}]},
            ]
        },
        chat(USER, {**CALLING, "reasoning_content": "c"}, {**LOW, "content": '{"y": 2}'}, END),
        "Gemini",
    ),
    "calls of the Responses API": (
        {
            "instructions": "s",
            "input": "a",
            "output": [
                {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "c"}], "summary": []},
                {"type": "function_call", "name": "f", "arguments": '{"x": 1}', "call_id": "1"},
                {"type": "function_call", "name": "f", "arguments": '{"x": 1}', "call_id": "2"},
                {"type": "function_call_output", "call_id": "1", "output": "low"},
                {"type": "function_call_output", "call_id": "2", "output": "low"},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
            ],
        },
        chat(
            {"role": "system", "content": "s"},
            USER,
            {**CALLING, "reasoning_content": "c", "tool_calls": [{"id": "1", **CALL}, {"id": "2", **CALL}]},
            *({**LOW, "tool_call_id": number} for number in "12"),
            END,
        ),
        "summaries",
    ),
    "a logged request": (
        {"request": {"messages": [USER], "tools": [FUNCTION]}, "response": {"choices": [{"message": END}]}},
        chat(USER, END, tools=[FUNCTION]),
        "openai_log",
    ),
    "messages beside choices": (chat(USER, choices=[{"message": END}], model="m"), chat(USER, END), "openai_log"),
    "the best reply of a tree": (
        {
            "prompt": {
                "role": "prompter",
                "text": "a",
                "replies": [
                    {"role": "assistant", "text": "c", "rank": 1, "replies": []},
                    {"role": "assistant", "text": "b", "rank": 0, "replies": [{"role": "prompter", "text": "d"}]},
                ],
            }
        },
        chat(USER, END),
        "OASST",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_what_is_read_of_other_programs(case):
    row, plain, said = READ[case]
    reader = Reader([row])
    (read,) = reader
    assert read == read_rows([plain])[0]
    assert said in "\n".join(reader.summary().notes)


# What is refused, with which code, where, and what the hint names.
REFUSED = {
    "text after a call": (chat(USER, blocks(USE, text("b"))), "block-order", "$.messages[1].content[1]", "split the turn"),
    "text before a result": (
        chat(USER, blocks(USE), blocks(text("c"), RESULT, role="user"), END),
        "block-order",
        "$.messages[2].content[1]",
        "results first",
    ),
    "an image among blocks": (chat(blocks(text("a"), {"type": "image"}), END), "media", "$.messages[0].content[1]", "text"),
    "calls of a user": (chat(blocks(USE, role="user"), END), "misplaced-key", "$.messages[0].content", "assistant's"),
    "loss of a user": (chat({**USER, "train": True}, END), "bad-weight", "$.messages[0].train", "assistant turns"),
    "loss against weight": (chat(USER, {**END, "loss": False, "weight": 1}), "bad-weight", "$.messages[1].loss", "keep one"),
    "reasoning against reasoning": (
        chat(USER, {**END, "reasoning": "c", "reasoning_content": "d"}),
        "unknown-key",
        "$.messages[1].reasoning",
        "",
    ),
    "two schemas": (chat(USER, END, tools=[FUNCTION | {"input_schema": {}}]), "bad-tools", "$.tools[0].input_schema", ""),
    "a tool of the provider": (chat(USER, END, tools=[{"type": "web_search", "name": "w"}]), "bad-tools", "$.tools[0]", ""),
    "annotators who disagree": (
        {"data": {"text": "a"}, "annotations": [{"result": [{"value": {"choices": [word]}}]} for word in "bc"]},
        "several-answers",
        "$.annotations",
        "decide",
    ),
    "two parts of a task": (
        {"data": {"prompt": "a", "text": "c"}, "annotations": [{"result": [{"value": {"text": ["b"]}}]}]},
        "several-questions",
        "$.data",
        "as one text",
    ),
    "two questions answered alike": (
        {
            "data": {"text": "a"},
            "annotations": [{"result": [{"from_name": name, "value": {"choices": ["yes"]}} for name in "xy"]}],
        },
        "several-answers",
        "$.annotations",
        "(x, y)",
    ),
    "two fields of a record": (
        {"instruction": "a", "context": "c", "status": "x", "label.responses": ["b"]},
        "several-questions",
        "$",
        "as one text",
    ),
    "two questions of a record": (
        {"text": "a", "status": "x", "y.responses": ["b"], "z.responses": ["b"]},
        "several-answers",
        "$",
        "y.responses, z.responses",
    ),
    "a response cut off": (
        {"input": "a", "status": "incomplete", "output": [{"type": "message", **END}]},
        "cut-off-answer",
        "$.status",
        "complete the answer",
    ),
    "an item cut off": (
        {"input": "a", "output": [{"type": "message", "status": "incomplete", **END}]},
        "cut-off-answer",
        "$.output[0].status",
        "complete the answer",
    ),
    "a response to what is stored": (
        {"input": "a", "previous_response_id": "r", "output": [{"type": "message", **END}]},
        "no-question",
        "$.previous_response_id",
        "write all turns",
    ),
    "a suggestion alone": (
        {"prompt": "a", "status": "pending", "label.suggestion": "b", "label.responses": []},
        "no-answer",
        "$.label.responses",
        "--column prompt=prompt --column completion=label.suggestion",
    ),
    "no answer in SQuAD": ({"question": "a", "context": "c", "answers": {"text": []}}, "no-answer", "$.answers.text", "remove"),
    "a request of a batch": ({"custom_id": "1", "body": {"messages": [USER]}}, "no-answer", "$.body.messages", "output"),
    "a picture for Gemini": ({"contents": [{"parts": [{"inlineData": {}}]}]}, "media", "$.contents[0].parts[0]", "text"),
    "several choices": (chat(USER, choices=[{"message": END}] * 2), "no-answer", "$.choices", "one choice"),
    "choices of a question": ({"question": "a", "choices": ["b"], "answer": 0}, "unknown-format", "$", "prompt=question"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_of_other_programs(case):
    row, code, path, hint = REFUSED[case]
    with pytest.raises(DataError) as caught:
        read_rows([row])
    assert f"row 1, {path}: " in caught.value.message and f"[{code}]" in caught.value.message
    assert hint in caught.value.message + caught.value.hint


def test_tags_that_are_no_whole_block_stay_text():
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "write <tool_call> before it"}]}
    assert read_rows([row])[0].messages[1] == {"role": "assistant", "content": "write <tool_call> before it"}


def test_numbers_of_a_class_label_are_read_by_name(tmp_path):
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    rows = datasets.Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": -1}], features)
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    options = ReadOptions(columns={"prompt": "text", "completion": "label"}, on_bad_row="quarantine")
    for source in (tmp_path / "rows.parquet", tmp_path / "saved", rows):
        reader = Reader(source, options)
        assert [row.messages[1]["content"] for row in reader] == ["yes"], source
        assert "label: numbers are read as the names of their classes" in reader.summary().notes
        assert reader.summary().problems_by_code == {"missing-column": 1}


def test_json_in_a_table_keeps_its_nulls_and_its_faults_have_a_place(tmp_path):
    arguments = {"unit": None}
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [json.dumps(turn) for turn in (USER, {"role": "assistant", "content": None, "tool_calls": [call]})]
    cells = pa.ExtensionArray.from_storage(pa.json_(), pa.array([*turns, "{", "{}"]))
    column = pa.ListArray.from_arrays([0, 2, 4], cells)
    pq.write_table(pa.table({"messages": column}), tmp_path / "rows.parquet")
    (row,) = read_rows(tmp_path / "rows.parquet", ReadOptions(on_bad_row="quarantine"))
    assert row.messages[1]["tool_calls"][0]["function"]["arguments"] == arguments
    with pytest.raises(DataError, match=r"row 2, \$\.messages\[0\]: JSON inside the text"):
        read_rows(tmp_path / "rows.parquet")


def test_columns_and_speakers_that_a_file_beside_the_rows_names(tmp_path):
    (tmp_path / "pairs.json").write_text(json.dumps([{"q": "a", "a": "b", "x": 1}]))
    (tmp_path / "talk.jsonl").write_text(json.dumps({"talk": [{"who": "me", "says": "a"}, {"who": "it", "says": "b"}]}) + "\n")
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"}
    info = {
        "pairs": {"file_name": "pairs.json", "columns": {"prompt": "q", "response": "a"}},
        "talk": {"file_name": "talk.jsonl", "formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": tags},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    for name in ("pairs.json", "talk.jsonl"):
        reader = Reader(tmp_path / name)
        assert [row.messages for row in reader] == [[USER, END]]
        assert f"of {name} as" in reader.summary().notes[0]
    with pytest.raises(DataError, match="column 'a2' of"):
        read_rows(tmp_path / "pairs.json", ReadOptions(columns={"prompt": "q", "completion": "a2"}))


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": "a", "reply": "b"}, "--column prompt=prompt --column completion=reply"),
        ({"completion": "b", "problem": "a"}, "--column prompt=problem --column completion=completion"),
        ({"Question": "a", "My Label": "b"}, "name two columns of Question, My Label"),
        ({"Frage": "a", "Die Antwort": "b"}, "--column prompt=Frage --column 'completion=Die Antwort'"),
    ],
)
def test_a_refusal_names_the_columns_to_type(row, line):
    with pytest.raises(DataError) as caught:
        read_rows([row])
    assert line in caught.value.message


@pytest.mark.parametrize("kind", [[], {"role": []}, 1])
@pytest.mark.parametrize("role", ["user", "tool"])
def test_types_of_blocks_that_are_no_text_are_faults_of_the_row(kind, role):
    with pytest.raises(DataError, match="row 1, "):
        read_rows([chat({"role": role, "content": [{"type": kind, "text": "a"}]}, END)])


def said_by(name, parent, text, **more):
    role = "prompter" if parent is None or parent.startswith("a") else "assistant"
    return {"message_id": name, "parent_id": parent, "role": role, "text": text, "lang": "en", **more}


def test_messages_of_trees_are_put_together_whatever_their_order(tmp_path):
    rows = [
        said_by("a2", "p1", "best", rank=0),
        said_by("p1", None, "q"),
        said_by("u2", "a2", "thanks"),
        said_by("a1", "p1", "good", rank=1),
        said_by("a3", "p2", "gone", deleted=True, rank=0),
        said_by("p2", None, "r"),
        said_by("a4", "p2", "kept", rank=1),
        said_by("a5", "nobody", "lost"),
    ]
    path = tmp_path / "messages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for options in (ReadOptions(), ReadOptions(format="oasst"), ReadOptions(group_by="lang")):
        reader = Reader(path, options)
        assert [(row.place, [turn["content"] for turn in row.messages]) for row in reader] == [
            ("line 2", ["q", "best"]),
            ("line 6", ["r", "kept"]),
        ]
        notes = "\n".join(reader.summary().notes)
        assert "8 messages, one a row, make 2 trees" in notes and "left out: 3 messages off the best ranked path" in notes
        assert "left out: 1 messages whose parent_id is in no row" in notes
    for bad, reason in ((rows[1], "line 9, .*two messages of message_id p1"), ({**rows[1], "role": "user"}, "OASST tree")):
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, bad]))
        with pytest.raises(DataError, match=reason):
            read_rows(path)
