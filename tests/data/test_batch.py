"""Outputs of batches, joined with what was sent."""

import json

import pytest

from tunesmith.data.read import Reader, ReadOptions, read_rows
from tunesmith.errors import DataError

ASK, ANSWER = {"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sent(name, **body):
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body or {"messages": [ASK]}}


def given(name, **more):
    choice = {"message": ANSWER, "finish_reason": "stop"}
    return {"custom_id": name, "response": {"status_code": 200, "body": {"choices": [choice]}}, "error": None, **more}


TWO = [
    (sent("a"), given("a")),
    (
        sent("a", input="2+2", model="m"),
        {"custom_id": "a", "response": {"status_code": 200, "body": {"output": [{"type": "message", **ANSWER}]}}},
    ),
    (
        {"custom_id": "a", "params": {"max_tokens": 9, "messages": [ASK]}},
        {"custom_id": "a", "result": {"type": "succeeded", "message": {"content": [{"type": "text", "text": "4"}]}}},
    ),
]


@pytest.mark.parametrize(("request_", "output"), TWO)
def test_an_answer_is_joined_with_its_request_and_refused_without_it(tmp_path, request_, output):
    outputs, requests = written(tmp_path / "out.jsonl", output), written(tmp_path / "in.jsonl", request_)
    assert [row.messages for row in read_rows(outputs, ReadOptions(requests=requests))] == [[ASK, ANSWER]]
    for alone in (outputs, requests):
        with pytest.raises(DataError, match="batch") as refusal:
            read_rows(alone)
        assert "--requests REQUESTS" in refusal.value.hint


def test_what_cannot_be_joined_is_counted_and_named(tmp_path):
    failed = {"custom_id": "c", "response": {"status_code": 500, "body": {"error": {}}}}
    outputs = written(tmp_path / "out.jsonl", given("b"), failed, given("z"), given("d", error={"code": "x"}), given("a"))
    requests = written(tmp_path / "in.jsonl", *map(sent, "abcde"))
    reader = Reader(outputs, ReadOptions(requests=requests))
    assert [row.place for row in reader] == ["line 1", "line 5"]
    notes = "\n".join(reader.summary().notes)
    assert "left out: 2 failed requests of the batch (c, d)" in notes
    assert "left out: 1 answers whose custom_id is not in in.jsonl (z)" in notes
    assert "left out: 1 requests that the output does not answer (e)" in notes


@pytest.mark.parametrize(
    ("requests", "outputs", "reason"),
    [
        ([sent("a"), sent("a")], [given("a")], "two requests of custom_id 'a'"),
        ([given("a")], [given("a")], "line 1: no request of a batch"),
        ([sent("a")], [given("a"), given("a")], "line 2, $.custom_id: custom_id 'a' is answered twice"),
        ([sent("a")], [{"messages": [ASK, ANSWER]}], "not the output of a batch"),
        ([sent("b")], [given("a")], "no row is left: "),
    ],
)
def test_files_that_are_no_pair_are_refused(tmp_path, requests, outputs, reason):
    options = ReadOptions(requests=written(tmp_path / "in.jsonl", *requests))
    with pytest.raises(DataError) as refusal:
        read_rows(written(tmp_path / "out.jsonl", *outputs), options)
    assert reason in f"{refusal.value.message}"
