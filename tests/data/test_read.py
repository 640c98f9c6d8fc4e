"""RowError input, the two ways with bad rows, and what is said of the whole source."""

import json
import re

import pytest

from tunesmith.data.read import NAMES, Reader, ReadOptions, _Seen, read_rows
from tunesmith.errors import DataError
from tunesmith.rundir.records.check import IgnoredColumn, Reading

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
LINE = json.dumps(GOOD).encode() + b"\n"
QUARANTINE = ReadOptions(on_bad_row="quarantine")


def in_answer(text):
    return LINE.replace(b'"b"', text).strip()


BAD = {
    "not-json": [b"{", b"nonsense", LINE.strip() * 2, in_answer(b"01"), in_answer(b'"\n"'), in_answer(b"'b'")],
    "not-finite": [in_answer(b"NaN"), in_answer(b"Infinity"), in_answer(b"-Infinity")],
    "duplicate-key": [b'{"messages": [], "messages": []}', in_answer(b'"b", "role": "user"')],
    "not-utf8": [in_answer(b'"\xff"'), in_answer('"é"'.encode("latin-1"))],
    "nul-byte": [b"\0" * 100, in_answer(b'"\0"')],
    "lone-surrogate": [in_answer(b'"\\ud800"'), in_answer(b'"\xed\xa0\x80"'), b'{"\\udc00": 1}'],
    "number-too-long": [in_answer(b"1" * 8_000_000), in_answer(b"-" + b"1" * 5_000)],
    "too-deep": [b"[" * 100_000, b"[" * 300 + b"]" * 300, b'{"a":' * 100_000],
    "not-object": [b"[]", b"3", b"[" * 100 + b"]" * 100],
    "line-too-long": [in_answer(b"1" * 10_000_000), in_answer(b'"' + b"x" * 9_000_000 + b'"')],
    "unknown-format": [b"{}", b'{"mesages": []}'],
    "no-messages": [b'{"messages": []}', b'{"messages": 3}'],
    "role-order": [json.dumps({"messages": [GOOD["messages"][0]] * 2 + GOOD["messages"][1:]}).encode()],
}


@pytest.mark.parametrize(
    ("code", "line"), [(code, line) for code, rows in BAD.items() for line in rows], ids=lambda v: str(v)[:30]
)
def test_a_bad_row_is_told_and_the_rows_around_it_live(tmp_path, code, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINE + line.replace(b"\n", b"\\q") + b"\n" + LINE)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert f"1 bad rows, 2 good ones ({code} 1)" in caught.value.message
    assert re.search(r"^line 2, \$.*: .+\n    hint: .+", caught.value.message, re.MULTILINE)
    assert [row.place for row in read_rows(path, QUARANTINE)] == ["line 1", "line 3"]


@pytest.mark.parametrize(("value", "fault"), [(b'"\\ud83d!"', "half of a surrogate pair"), (b"NaN", "NaN is not JSON")])
def test_path_of_what_only_a_lenient_parser_reads(tmp_path, value, fault):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(in_answer(value))
    with pytest.raises(DataError, match=rf"line 1, \$\.messages\[1\]\.content: {fault}"):
        read_rows(path)


def test_whole_surrogate_pairs_and_nul_escapes_are_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(in_answer(b'"\\ud83d\\ude00\\u0000"'))
    assert read_rows(path)[0].messages[1]["content"] == "\U0001f600\0"


def test_crlf_bom_empty_lines_and_spaces_are_no_problem(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + LINE.strip() + b"\r\n\r\n  \n " + LINE.strip() + b" \r\n\n")
    reader = Reader(path)
    assert [row.place for row in reader] == ["line 1", "line 4"]
    assert reader.summary().notes == ("3 empty lines were passed over",)


def test_quarantine_keeps_bad_rows_with_reasons_and_forgets_old_ones(tmp_path):
    path, rejected = tmp_path / "rows.jsonl", tmp_path / "out" / "rejected.jsonl"
    bad = [b"{", b'{"messages": []}', b'"\xff"', b'{"text": "\\ud800"}']
    path.write_bytes(LINE + b"\n".join(bad) + b"\n" + LINE)
    reader = Reader(path, QUARANTINE, rejected)
    assert len(list(reader)) == 2
    kept = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [record["place"] for record in kept] == [f"line {n}" for n in (2, 3, 4, 5)]
    assert [record["raw"] for record in kept] == ["{", '{"messages": []}', '"\\xff"', '{"text": "\\ud800"}']
    codes = [record["problems"][0]["code"] for record in kept]
    assert codes == ["not-json", "no-messages", "not-utf8", "lone-surrogate"]
    assert reader.summary().problems_by_code == dict.fromkeys(codes, 1) and reader.summary().bad_rows == 4
    path.write_bytes(LINE)
    list(Reader(path, QUARANTINE, rejected))
    assert not rejected.exists()


def test_quarantine_of_every_row_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{\n{\n")
    with pytest.raises(DataError, match="2 bad rows, 0 good ones"):
        read_rows(path, QUARANTINE)


def test_twenty_problems_in_full_then_counts(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINE + b"{\n" * 30 + b'{"messages": []}\n' * 3000)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    message = caught.value.message
    assert "3,030 bad rows, 1 good ones (no-messages 3,000, not-json 30)" in message
    assert message.count("\n    hint:") == 20 and "line 21," in message and "line 22," not in message
    assert "and 3,010 more" in message


@pytest.mark.parametrize("options", [ReadOptions(), QUARANTINE])
def test_mixed_formats_are_counted_to_the_last_row(tmp_path, options):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINE * 10_000 + b'{"instruction": "a", "output": "b"}\n{"text": "a"}\n')
    words = r"messages 10,000 rows .first: line 1., alpaca 1 rows .first: line 10001., text 1 rows .first: line 10002."
    with pytest.raises(DataError, match=words):
        read_rows(path, options)
    named = ReadOptions(format="messages", on_bad_row="quarantine")
    assert len(read_rows(path, named)) == 10_000


def test_columns_missing_in_some_rows_are_those_rows_problem(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,answer,topic\na,b,x\nc,,x\nd,e,\n")
    options = {"columns": {"prompt": "question", "completion": "answer"}, "on_bad_row": "quarantine"}
    assert [row.place for row in read_rows(path, ReadOptions(**options))] == ["line 2", "line 4"]
    assert [row.group for row in read_rows(path, ReadOptions(**options, group_by="topic"))] == ["x"]


def test_roles_first_seen_late_are_as_good_as_early_ones(tmp_path):
    path = tmp_path / "rows.jsonl"
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    late = [
        {"role": "developer", "content": "s"},
        GOOD["messages"][0],
        call,
        {"role": "tool", "content": ""},
        GOOD["messages"][1],
    ]
    path.write_bytes(LINE * 10_000 + json.dumps({"messages": late}).encode())
    assert [message["role"] for message in read_rows(path)[-1].messages] == [message["role"] for message in late]


def test_ids_are_of_content_and_repetitions_are_numbered(tmp_path):
    path = tmp_path / "rows.jsonl"
    other = LINE.replace(b'"b"', b'"c"')
    path.write_bytes((LINE + other) * 2500 + LINE.replace(b'"a"}', b'"a", "name": null}').replace(b'"b"', b'"\\u0062"'))
    rows = read_rows(path)
    first, second = rows[0].id, rows[1].id
    assert first != second and re.fullmatch("[0-9a-f]{12}", first)
    repeated = [f"{name}-{n}" for n in range(2, 2501) for name in (first, second)]
    assert [row.id for row in rows] == [first, second, *repeated, f"{first}-2501"]
    path.write_bytes(other + LINE)
    assert [row.id for row in read_rows(path)] == [second, first]


def test_repetitions_are_counted_across_the_sorted_and_the_new():
    seen = _Seen()
    digests = [i.to_bytes(6, "big") + bytes(10) for i in range(100_000)]
    for start in range(0, 100_000, 2048):
        assert set(seen.add(digests[start : start + 2048])) == {1}
    assert len(seen._old) > 0 and len(seen._new) > 0
    assert seen.add([digests[0], digests[-1], digests[0], bytes(b"\xff" * 16), bytes(16)]) == [2, 2, 3, 1, 4]
    assert seen.add([]) == []


def test_summary_tells_what_was_read_and_what_was_not(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"instruction": "a", "imput": "x", "output": "b", "source": "y", "score": None}
    path.write_bytes(json.dumps(row).encode() + b"\n" + b'{"instruction": "a", "output": "b"}\n')
    reader = Reader(path)
    list(reader)
    assert reader.summary() == Reading(
        rows=2,
        bad_rows=0,
        problems_by_code={},
        format="alpaca",
        kinds={"alpaca": 2},
        files=("rows.jsonl",),
        ignored_columns={"imput": IgnoredColumn(rows=1, nearest="input"), "source": IgnoredColumn(rows=1, nearest=None)},
        notes=("alpaca: instruction and input are joined by a line break",),
    )


def test_names_of_ignored_columns_do_not_fill_the_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": "a", f"key {i}": 1}) + "\n" for i in range(NAMES + 50)))
    reader = Reader(path)
    list(reader)
    assert len(reader.summary().ignored_columns) == NAMES + 1


def test_batches_stream_and_a_reader_reads_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINE * 5000 + b"{\n")
    reader = Reader(path)
    for _ in range(2):
        batches = reader.batches()
        assert 0 < len(next(batches)) <= 2048  # before the bad row is known
        with pytest.raises(DataError, match="1 bad rows, 5,000 good ones"):
            list(batches)
