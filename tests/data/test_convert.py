"""Whatever is read is written so that it reads back the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.convert import as_messages, convert
from tunesmith.data.read import ReadOptions, read_rows
from tunesmith.errors import DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FILLED = TEXT.filter(str.strip)
NAME = st.text("abc_", min_size=1, max_size=6)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
EARLIER = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CALL = {"name": "f", "arguments": {}}
ARGUMENTS = st.dictionaries(TEXT, VALUE, max_size=3)


@st.composite
def turn(draw, weights):
    """The turns from one user turn to the answer: calls with results, and perhaps names, weights and reasoning."""
    turns = [{"role": "user", "content": draw(FILLED), **draw(st.just({}) | st.fixed_dictionaries({"name": NAME}))}]
    more = st.fixed_dictionaries({}, optional={"reasoning_content": TEXT, "name": NAME, "weight": st.sampled_from(weights)})
    for _ in range(draw(st.integers(0, 2))):
        ids = draw(st.lists(NAME, min_size=1, max_size=2, unique=True))
        named = draw(st.booleans())
        calls = [{"type": "function", "function": {"name": draw(NAME), "arguments": draw(ARGUMENTS)}} for _ in ids]
        if named:
            calls = [{"id": id_, **call} for id_, call in zip(ids, calls, strict=True)]
        turns.append({"role": "assistant", "content": draw(TEXT), "tool_calls": calls, **draw(more)})
        turns += [{"role": "tool", "content": draw(TEXT), **({"tool_call_id": id_} if named else {})} for id_ in ids]
    return [*turns, {"role": "assistant", "content": draw(FILLED), **draw(more)}]


@st.composite
def conversation(draw):
    head = draw(
        st.just([])
        | st.tuples(st.sampled_from(["system", "developer"]), TEXT).map(
            lambda t: [dict(zip(("role", "content"), t, strict=True))]
        )
    )
    turns = [message for part in draw(st.lists(turn([0, 1]), max_size=2)) for message in part]
    row = {"messages": head + turns + draw(turn([1]))}
    tool = st.fixed_dictionaries({"name": NAME}, optional={"description": TEXT, "parameters": ARGUMENTS})
    tools = draw(st.none() | st.lists(tool.map(lambda f: {"type": "function", "function": f}), min_size=1, max_size=2))
    return row if tools is None else {**row, "tools": tools}


def contents(rows):
    return [(row.id, row.messages, row.tools, row.kind) for row in rows]


@given(st.lists(conversation(), min_size=1, max_size=3))
def test_any_valid_conversation_is_read_as_it_is_and_round_trips(tmp_path_factory, made):
    folder = tmp_path_factory.getbasetemp()
    source, target, again = folder / "made.jsonl", folder / "written.jsonl", folder / "again.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    rows = read_rows(source)
    assert [(row.messages, row.tools) for row in rows] == [(row["messages"], row.get("tools")) for row in made]
    convert(source, target)
    assert contents(read_rows(target)) == contents(rows)
    assert [json.loads(line) for line in target.read_text(encoding="utf-8").split("\n")[:-1]] == list(map(as_messages, rows))
    convert(target, again)
    assert again.read_bytes() == target.read_bytes()


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]},
        {"prompt": [*EARLIER, {"role": "user", "content": "c"}], "completion": "d"},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": json.dumps(CALL)}]},
        {"text": "a\u2028b\U0001f600"},
    ],
)
def test_every_kind_round_trips(tmp_path, row):
    source, target = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text((json.dumps(row) + "\n") * 3)
    summary = convert(source, target)
    assert contents(read_rows(target)) == contents(read_rows(source))
    assert summary.reading.rows == 3 and summary.written == str(target)


def test_arguments_are_written_as_text_as_openai_does(tmp_path):
    path = tmp_path / "a.jsonl"
    call = {"type": "function", "function": {"name": "f", "arguments": {"é": 1}}}
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]}))
    written = as_messages(read_rows(path)[0])["messages"][1]
    assert written["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"é":1}'}


def test_the_target_appears_whole_or_not_at_all(tmp_path):
    source, target = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text('{"text": "a"}\n' * 5000 + "{\n")
    target.write_text("as it was")
    with pytest.raises(DataError, match="1 bad rows"):
        convert(source, target)
    assert target.read_text() == "as it was" and sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]
    summary = convert(source, target, ReadOptions(on_bad_row="quarantine"), tmp_path / "rejected.jsonl")
    assert summary.reading.bad_rows == 1 and len(read_rows(target)) == 5000 and (tmp_path / "rejected.jsonl").exists()


def test_targets_that_are_refused(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "a"}\n')
    for target, words in [
        (tmp_path / "b.csv", "expected .jsonl"),
        (source, "is also the source"),
        (tmp_path / "none" / "b.jsonl", "cannot be written"),
    ]:
        with pytest.raises(DataError, match=words):
            convert(source, target)
    assert source.read_text() == '{"text": "a"}\n'
