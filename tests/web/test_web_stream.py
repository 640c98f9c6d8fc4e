"""A stream says each event once, from wherever a browser left off, and says what cannot be said as an event."""

import asyncio
import json
import os

import pytest
from web_runs import make_run, step, train, write_events

from tunesmith.rundir import lock
from tunesmith.rundir.records.events import StageStart
from tunesmith.web import stream
from tunesmith.web.life import Feed
from tunesmith.web.runs import Shelf

PACE = stream.Pace(look=0.001, state=0.001, heartbeat=0.005)


def _heard(run, position="", do=lambda: None, until=lambda messages: len(messages) >= 1, source=None):
    """Messages of a stream until they suffice, as (name, data, id); ``do`` happens once the listener is there."""

    async def listen():
        messages, done = [], False

        async def is_gone():
            return until(messages)

        async for block in source(is_gone) if source else stream.run_stream(Feed(run), position, PACE, is_gone):
            fields = dict(line.split(": ", 1) for line in block.strip().split("\n"))
            if "event" in fields:
                messages.append((fields["event"], json.loads(fields["data"]), fields.get("id", "")))
            if not done and (source or any(name == "state" for name, _, _ in messages)):
                done = True
                do()
        return messages

    return asyncio.run(asyncio.wait_for(listen(), 20))


def _has(name, count=1):
    return lambda messages: sum(message[0] == name for message in messages) >= count


def test_every_event_comes_once_whatever_part_was_heard_before(tmp_path):
    run = make_run(tmp_path)
    train(run, 3)
    all_of_them = [message for message in _heard(run, until=_has("state")) if message[0] not in ("state", "heartbeat")]
    assert [name for name, _, _ in all_of_them] == ["process-start", "stage-start", "progress", "metric", "metric", "metric"]
    assert all_of_them[-1][1]["step"] == 3
    for place, (_, _, position) in enumerate(all_of_them):
        rest = [message for message in _heard(run, position, until=_has("state")) if message[0] not in ("state", "heartbeat")]
        assert rest == all_of_them[place + 1 :]


def test_what_is_appended_is_heard_and_a_torn_line_waits_for_its_end(tmp_path):
    run = make_run(tmp_path)
    train(run, 1)
    line = json.dumps(step(2, norm=None).to_json())

    def tear():
        with run.events_file.open("a") as file:
            file.write(line[:40])

    heard = _heard(run, do=tear, until=_has("heartbeat", 2))
    assert [message[1]["step"] for message in heard if message[0] == "metric"] == [1]
    with run.events_file.open("a") as file:
        file.write(line[40:] + "\n")
    last = [message for message in _heard(run, heard[-1][2], until=_has("metric")) if message[0] == "metric"]
    assert [message[1]["figures"]["grad_norm"] for message in last] == [None]


@pytest.mark.parametrize("change", ["replaced", "cut", "an id that is none", "far behind"])
def test_whoever_cannot_go_on_is_told_to_fetch_anew(tmp_path, change, monkeypatch):
    run = make_run(tmp_path)
    train(run, 3)
    position = _heard(run, until=_has("state"))[-1][2]
    if change == "replaced":
        other = tmp_path / "other"
        other.write_bytes(run.events_file.read_bytes() * 2)
        other.replace(run.events_file)
    elif change == "cut":
        os.truncate(run.events_file, 0)
        write_events(run, StageStart(stage="data"))
    elif change == "far behind":
        position = ""
        monkeypatch.setattr(stream, "BEHIND", 200)
    else:
        position = "nonsense"
    messages = _heard(run, position, until=_has("state"))
    assert messages[0][0] == "reset" and [message[0] for message in messages if message[0] == "metric"] == []
    after = _heard(run, messages[0][2], until=_has("state"))
    assert [message[0] for message in after if message[0] != "heartbeat"] == ["state"]


def test_a_run_whose_process_dies_is_said_to_be_killed(tmp_path):
    run = make_run(tmp_path)
    train(run, 1)
    holding = lock.writing(run.path)
    holding.__enter__()
    heard = _heard(run, do=lambda: holding.__exit__(None, None, None), until=_has("state", 2))
    assert [message[1]["state"] for message in heard if message[0] == "state"] == ["running", "killed"]


def test_the_list_is_told_of_runs_that_come_and_change(tmp_path):
    run = make_run(tmp_path)
    shelf = Shelf(tmp_path)
    source = lambda is_gone: stream.list_stream(shelf, PACE, is_gone)  # noqa: E731
    heartbeats = _heard(run, source=source, until=_has("heartbeat"))
    assert [name for name, _, _ in heartbeats] == ["heartbeat"]
    changed = []

    def until(messages):
        if not changed and any(name == "heartbeat" for name, _, _ in messages):
            changed.append(make_run(tmp_path, "other"))
        return _has("runs")(messages)

    assert _heard(run, source=source, until=until)[-1][0] == "runs"
