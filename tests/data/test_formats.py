"""Every kind of row, and the same conversation written in several kinds."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.formats import draft, kind_of
from tunesmith.data.problems import RowError
from tunesmith.data.read import Reader, ReadOptions, read_rows
from tunesmith.errors import DataError
from tunesmith.rundir.records.check import IgnoredColumn

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


def read_one(folder, row, **options):
    path = folder / "one.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (found,) = read_rows(path, ReadOptions(**options))
    return found


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


PAIR = [("user", "a"), ("assistant", "b")]
HUMAN = ("human", "a")


def shared(*pairs):
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in pairs]}


KINDS = {
    "messages": [
        {"messages": turns(("user", "a"), ("assistant", "b"))},
        {"conversations": turns(("user", "a"), ("assistant", "b"))},
        {"messages": json.dumps(turns(("user", "a"), ("assistant", "b")))},
    ],
    "sharegpt": [
        {"conversations": [{"from": human, "value": "a"}, {"from": model, "value": "b"}]}
        for human, model in [("human", "gpt"), ("user", "assistant"), ("human", "bing"), ("human", "bard"), ("user", "model")]
    ]
    + [
        {
            "messages": [{"from": "human", "value": "a"}, {"from": "chatgpt", "value": "b", "name": None}],
            "system": "",
            "tools": "[]",
        }
    ],
    "alpaca": [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": "", "output": "b", "system": "", "history": []},
        {"instruction": "", "input": "a", "output": "b", "text": "both together"},
    ],
    "prompt_completion": [
        {"prompt": "a", "completion": "b"},
        {"prompt": turns(("user", "a")), "completion": turns(("assistant", "b"))},
        {"prompt": turns(("user", "a")), "completion": "b"},
    ],
}


@pytest.mark.parametrize(("kind", "row"), [(kind, row) for kind, rows in KINDS.items() for row in rows])
def test_each_kind_gives_the_same_row(tmp_path, kind, row):
    assert kind_of(row) == kind
    plain = read_one(tmp_path, KINDS["messages"][0])
    assert read_one(tmp_path, row) == plain == read_one(tmp_path, row, format=kind)


def test_text_is_another_kind_of_row(tmp_path):
    row = read_one(tmp_path, {"text": "b"})
    assert row.kind == "text" and row.messages == turns(("assistant", "b"))
    assert row.id != read_one(tmp_path, KINDS["messages"][0]).id


def test_tool_calls_of_sharegpt(tmp_path):
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": '{"x": 2}'}]
    row = {
        "system": "s",
        "tools": json.dumps([function]),
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": json.dumps(calls)},
            {"from": "observation", "value": "1"},
            {"from": "function_response", "value": "2"},
            {"from": "gpt", "value": "b"},
        ],
    }
    whole = {
        "messages": [
            *turns(("system", "s"), ("user", "a")),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                    {"type": "function", "function": {"name": "f", "arguments": '{"x": 2}'}},
                ],
            },
            *turns(("tool", "1"), ("tool", "2"), ("assistant", "b")),
        ],
        "tools": [{"type": "function", "function": function}],
    }
    assert read_one(tmp_path, row) == read_one(tmp_path, whole)


def test_assistant_turns_of_a_prompt_are_context(tmp_path):
    prompt = turns(("user", "a"), ("assistant", "b"), ("user", "c"))
    row = read_one(tmp_path, {"prompt": prompt, "completion": turns(("assistant", "d"))})
    assert [message.get("weight") for message in row.messages] == [None, 0, None, None]
    kept = read_one(tmp_path, {"prompt": [prompt[0], {**prompt[1], "weight": 1}, prompt[2]], "completion": "d"})
    assert [message.get("weight") for message in kept.messages] == [None, 1, None, None]


@given(
    st.none() | TEXT,
    st.lists(st.tuples(TEXT, TEXT), max_size=3),
    TEXT,
    TEXT,
    st.sampled_from(["messages", "conversations"]),
)
def test_one_conversation_written_four_ways_is_one_row(tmp_path_factory, system, history, asked, answer, key):
    folder = tmp_path_factory.getbasetemp()
    head = [("system", system)] if system is not None else []
    pairs = [*history, (asked, answer)]
    flat = head + [turn for q, a in pairs for turn in (("user", q), ("assistant", a))]
    speaker = {"system": "system", "user": "human", "assistant": "gpt"}
    system_column = {"system": system} if system is not None else {}
    plain = read_one(folder, {"messages": turns(*flat)})
    sharegpt = [{"from": speaker[role], "value": content} for role, content in flat]
    first, newline, second = asked.partition("\n")
    # A break at either end is not one that joining made.
    parts = (first, second) if newline and first and second else (asked, "")
    for row in (
        {key: sharegpt},
        {key: sharegpt[len(head) :], **system_column},
        {"instruction": parts[0], "input": parts[1], "output": answer, "history": history, **system_column},
    ):
        assert read_one(folder, row) == plain
    weighted = turns(*flat)
    for message in weighted[:-1]:
        if message["role"] == "assistant":
            message["weight"] = 0
    split = {"prompt": turns(*flat[:-1]), "completion": turns(*flat[-1:])}
    assert read_one(folder, split) == read_one(folder, {"messages": weighted})
    if not history:
        assert read_one(folder, {"prompt": asked, "completion": answer, **system_column}) == plain


def test_any_columns_through_a_map(tmp_path):
    row = {"question": "a", "answer": "b", "about": "s", "prompt": "something else"}
    columns = {"prompt": "question", "completion": "answer", "system": "about"}
    found = read_one(tmp_path, row, columns=columns)
    assert found.messages == turns(("system", "s"), ("user", "a"), ("assistant", "b"))
    reader = Reader(tmp_path / "one.jsonl", ReadOptions(columns=columns))
    list(reader)
    assert reader.summary().ignored_columns == {"prompt": IgnoredColumn(rows=1, nearest=None)}
    for changed, words in [
        ({"prompt": "question", "completion": "anwser"}, "'anwser' of data.columns stands in no row.*'answer'"),
        ({"promt": "question"}, "unknown name 'promt' in data.columns; did you mean 'prompt'"),
    ]:
        with pytest.raises(DataError) as caught:
            read_one(tmp_path, row, columns=changed)
        assert re.search(words, str(caught.value), re.DOTALL), caught.value


def test_unknown_format_is_an_option_error(tmp_path):
    with pytest.raises(DataError, match="unknown format 'sharegtp'; did you mean 'sharegpt'"):
        read_one(tmp_path, {"text": "a"}, format="sharegtp")


@pytest.mark.parametrize(
    ("code", "path", "row", "options"),
    [
        ("unknown-format", "$", {"mesages": []}, {}),
        ("missing-column", "$.output", {"instruction": "a", "input": "b"}, {}),
        ("missing-column", "$.output", {"instruction": "a", "output": None}, {}),
        ("missing-column", "$.completion", {"prompt": "a"}, {}),
        ("missing-column", "$.text", {"messages": []}, {"format": "text"}),
        ("missing-column", "$.topic", {"text": "a"}, {"group_by": "topic"}),
        ("not-text", "$.prompt", {"prompt": 1, "completion": "b"}, {}),
        ("not-text", "$.q", {"q": 1, "a": "b"}, {"columns": {"prompt": "q", "completion": "a"}}),
        ("empty-turn", "$.output", {"instruction": "a", "output": " "}, {}),
        ("empty-turn", "$.instruction", {"instruction": "", "output": "b", "system": "s"}, {}),
        ("empty-turn", "$.text", {"text": "\n"}, {}),
        ("empty-turn", "$.history[1][0]", {"instruction": "a", "output": "b", "history": [["c", "d"], ["", "e"]]}, {}),
        ("not-object", "$.history[0]", {"instruction": "a", "output": "b", "history": [["c"]]}, {}),
        ("unknown-role", "$.conversations[0].from", {"conversations": [{"from": "humn", "value": "a"}]}, {}),
        ("no-content", "$.conversations[0]", {"conversations": [{"from": "human"}]}, {}),
        ("unknown-key", "$.conversations[0].x", {"conversations": [{"from": "human", "value": "a", "x": 1}]}, {}),
        ("role-order", "$.conversations[1].value", shared(HUMAN, HUMAN, ("gpt", "b")), {}),
        ("bad-tool-call", "$.conversations[1].value", shared(HUMAN, ("function_call", '"f"')), {}),
        ("not-json", "$.conversations[1].value", shared(HUMAN, ("function_call", "f()")), {}),
        ("arguments-not-object", "$.conversations[1].value", shared(HUMAN, ("function_call", '{"name": "f"}')), {}),
        ("two-systems", "$.messages[0].role", {"system": "s", "messages": turns(("system", "t"), *PAIR)}, {}),
        ("no-content", "$.prompt[0]", {"prompt": [{"role": "user"}], "completion": "b"}, {}),
        ("legacy-function-call", "$.functions", {"messages": turns(*PAIR), "functions": []}, {}),
        ("bad-tools", "$.t", {"m": turns(*PAIR), "t": {}}, {"columns": {"messages": "m", "tools": "t"}}),
        ("not-json", "$.messages", {"messages": "[{"}, {}),
    ],
)  # fmt: skip
def test_faults_are_told_where_they_stand_in_the_file(tmp_path, code, path, row, options):
    with pytest.raises(DataError) as caught:
        read_one(tmp_path, row, **options)
    assert f"line 1, {path}: " in caught.value.message and f"[{code}]" in caught.value.message


def test_preference_data_is_refused_by_name(tmp_path):
    for row in ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"chosen_messages": [], "rejected_messages": []}):
        with pytest.raises(DataError, match=r"1 rows of preference data .chosen\w* and rejected"):
            read_one(tmp_path, row)


MEDIA_ROWS = [
    ("$.images", {**shared(HUMAN, ("gpt", "b")), "images": ["a.png"]}),
    ("$.image", {"prompt": "a", "completion": "b", "image": {"bytes": None, "path": "a.png"}}),
    ("$.audio", {"text": "a", "audio": "a.wav"}),
    ("$.image", {"image": "a.png", "caption": "a"}),
    ("$.prompt[0].content[1]", {"prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
                                "completion": "b"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "row"), MEDIA_ROWS)
def test_rows_with_pictures_or_sound_are_refused_where_these_stand(tmp_path, path, row):
    with pytest.raises(DataError) as caught:
        read_one(tmp_path, row)
    assert f"line 1, {path}: " in caught.value.message and "text only [media]" in caught.value.message


def test_media_rows_are_counted_and_empty_media_columns_are_nothing(tmp_path):
    good = {"messages": turns(*PAIR), "images": [], "audio": {"bytes": None, "path": ""}}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (good, good | {"image": "x"})))
    reader = Reader(tmp_path / "a.jsonl", ReadOptions(on_bad_row="quarantine"))
    assert len(list(reader)) == 1
    summary = reader.summary()
    assert summary.problems_by_code == {"media": 1} and not summary.ignored_columns and not summary.notes


def test_the_text_of_media_rows_is_read_when_its_columns_are_named(tmp_path):
    row = {"question": "a", "answer": "b", "image": "a.png"}
    columns = {"prompt": "question", "completion": "answer"}
    assert read_one(tmp_path, row, columns=columns).messages == turns(*PAIR)
    reader = Reader(tmp_path / "one.jsonl", ReadOptions(columns=columns))
    list(reader)
    assert "image: 1 rows have more than text, and only their text is read" in reader.summary().notes


def test_pictures_in_a_table_are_refused_and_set_aside_without_their_bytes(tmp_path):
    rows = [{"prompt": "a", "completion": "b", "image": {"bytes": picture, "path": None}} for picture in (b"\xff" * 900, None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    reader = Reader(tmp_path / "a.parquet", ReadOptions(on_bad_row="quarantine"), tmp_path / "rejected.jsonl")
    assert [row.place for row in reader] == ["row 2"]
    assert '"bytes": "900 bytes"' in (tmp_path / "rejected.jsonl").read_text()


def test_draft_does_not_change_the_row_it_is_given():
    row = {"prompt": turns(("user", "a"), ("assistant", "b"), ("user", "c")), "completion": "d"}
    before = json.dumps(row)
    draft(row, "prompt_completion", {}, set())
    assert json.dumps(row) == before
    with pytest.raises(RowError):
        draft({"prompt": "a"}, "prompt_completion", {}, set())
