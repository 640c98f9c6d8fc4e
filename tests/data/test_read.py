import json

import pytest

from tunesmith.data.read import read_rows
from tunesmith.errors import DataError

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def _row(*turns):
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}).encode()


def test_good_rows_keep_content_and_get_ids_by_content(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + b"\r\n".join([json.dumps(GOOD).encode(), _row(("user", "é\n"), ("assistant", " b "))] * 2)
    )
    rows = read_rows(path)
    assert [row.line for row in rows] == [1, 2, 3, 4]
    assert rows[1].messages[0]["content"] == "é\n" and rows[1].messages[1]["content"] == " b "
    assert rows[2].id == f"{rows[0].id}-2" and rows[0].id != rows[1].id


BAD = {
    "not-json": [b"{", b"", b'{"messages": NaN}', b"[1," * 5],
    "duplicate-key": [b'{"messages": [], "messages": []}'],
    "not-utf8": [b'{"messages": "\xff"}'],
    "not-object": [b"[]", b'{"messages": ["a"]}'],
    "too-deep": [b"[" * 100_000],
    "no-messages": [b"{}", b'{"messages": []}', b'{"text": "a"}'],
    "unknown-key": [
        json.dumps({**GOOD, "mesages": 1}).encode(),
        b'{"messages": [{"role": "user", "content": "a", "weight": 1}]}',
    ],
    "no-content": [b'{"messages": [{"role": "user"}]}'],
    "not-text": [b'{"messages": [{"role": "user", "content": 3}]}'],
    "unknown-role": [_row(("human", "a"), ("assistant", "b"))],
    "empty-turn": [_row(("user", "a"), ("assistant", " "))],
    "lone-surrogate": [b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "b"}]}'],
    "role-order": [_row(("assistant", "b")), _row(("user", "a"), ("user", "a"), ("assistant", "b"))],
    "no-answer": [_row(("user", "a")), _row(("system", "s"))],
}


@pytest.mark.parametrize(("code", "line"), [(code, line) for code, lines in BAD.items() for line in lines])
def test_bad_row_is_an_error_with_line_path_code_and_hint(tmp_path, code, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n" + json.dumps(GOOD).encode() + b"\n")
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert f"[{code}]" in caught.value.message
    assert "line 2, $" in caught.value.message and "hint:" in caught.value.message
    assert "1 bad rows, 2 good ones" in caught.value.message


def test_twenty_problems_in_full_then_a_count(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n" * 25)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert caught.value.message.count("line ") == 20 and "and 5 more" in caught.value.message


def test_places_that_hold_no_rows(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    for path, words in [
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "is a directory"),
        (tmp_path / "empty.jsonl", "is empty"),
    ]:
        with pytest.raises(DataError, match=words):
            read_rows(path)
