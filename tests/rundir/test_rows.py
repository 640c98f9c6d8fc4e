"""Rows come back from their file as they went in, and the file has nothing that a row does not say."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.rundir import Row, read_rows, write_rows

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
CALLS = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": TEXTS, "arguments": st.dictionaries(TEXTS, st.integers() | st.none())}),
    }
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": TEXTS},
    optional={"name": TEXTS, "weight": st.sampled_from([0, 1]), "tool_calls": st.lists(CALLS, min_size=1, max_size=2)},
)
TOOLS = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXTS})}))
ROWS = st.builds(
    Row,
    id=TEXTS,
    place=TEXTS,
    messages=st.lists(MESSAGES, min_size=1, max_size=3),
    tools=st.none() | TOOLS,
    group=st.none() | TEXTS,
    kind=st.sampled_from(["chat", "text"]),
)

ASKED = {"role": "user", "content": "u"}


@given(st.lists(ROWS, max_size=5))
def test_rows_and_their_bytes_come_back(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "a.jsonl", rows)
    again = read_rows(folder / "a.jsonl")
    write_rows(folder / "b.jsonl", again)
    assert again == rows
    assert (folder / "a.jsonl").read_bytes() == (folder / "b.jsonl").read_bytes()


def test_a_line_holds_what_a_row_says_and_no_defaults(tmp_path):
    turns = [{"role": "user", "content": "ü"}, {"role": "assistant", "content": ""}]
    plain, full = Row("a", "line 1", turns), Row("b", "line 2", turns[1:], [], "g", "text")
    write_rows(tmp_path / "rows.jsonl", [plain, full])
    lines = (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()
    assert lines[0] == '{"id": "a", "place": "line 1", "messages": %s}' % json.dumps(turns, ensure_ascii=False)  # noqa: UP031
    assert list(json.loads(lines[1])) == ["id", "place", "messages", "tools", "group", "kind"]


@pytest.mark.parametrize(
    ("row", "question", "why"),
    [
        (Row("a", "", [ASKED, {"role": "assistant", "content": "a"}]), "u", None),
        (Row("a", "", [{"role": "assistant", "content": "t"}], kind="text"), "", "a plain text"),
        (
            Row("a", "", [{"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": []}]),
            "u",
            "tool call",
        ),
    ],
)
def test_what_a_row_asks_and_whether_it_can_be_scored(row, question, why):
    assert row.question == question
    assert row.why_not_scored() is None if why is None else why in row.why_not_scored()
