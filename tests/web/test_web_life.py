"""What a page knows of a run follows from its events, whenever it looks and however the file was written."""

import math
import os

import pytest
from web_runs import make_run, step, train, warn, write_events

from tunesmith.rundir import lock
from tunesmith.rundir.events import LineReader
from tunesmith.rundir.records.events import Decision, StageEnd, StageStart
from tunesmith.web.life import Feed, place_reader, position_of


def _steps(feed):
    with feed.look() as (life, _):
        return list(life.steps.steps), list(life.steps.columns["loss"])


def test_looks_in_between_know_what_one_look_at_the_end_knows(tmp_path):
    run = make_run(tmp_path)
    feed = Feed(run)
    train(run)
    assert _steps(feed) == ([1, 2, 3], [2.0, 1.9, 1.8])
    write_events(run, step(4, 9.0), step(5, 8.0), step(3, 1.5), step(4, 1.4))  # it went back after a spike
    assert _steps(feed) == ([1, 2, 3, 4], [2.0, 1.9, 1.5, 1.4]) == _steps(Feed(run))
    write_events(run, StageStart(stage="seeds/train"), StageStart(stage="train"), step(1, 3.0))  # trained anew
    assert _steps(feed) == ([1], [3.0]) == _steps(Feed(run))


def test_a_figure_that_was_not_measured_is_none_of_those_that_are_no_number(tmp_path):
    run = make_run(tmp_path)
    write_events(run, StageStart(stage="train"), step(1, norm=None), step(2, dev=0.7))
    with Feed(run).look() as (life, _):
        columns = life.steps.columns
        assert math.isinf(columns["grad_norm"][0]) and math.isnan(columns["dev_loss"][0]) and columns["dev_loss"][1] == 0.7


@pytest.mark.parametrize(
    ("ends", "word"),
    [
        ([], "not begun"),
        ([StageStart(stage="data"), StageEnd(stage="data", outcome="done", seconds=1.0)], "not finished"),
        ([StageStart(stage="data"), StageEnd(stage="data", outcome="failed", seconds=1.0, error="no")], "failed"),
        ([StageStart(stage="data"), StageEnd(stage="data", outcome="interrupted", seconds=1.0)], "stopped"),
        ([StageStart(stage="data")], "killed"),  # nobody holds the lock
    ],
)
def test_how_a_run_stands_when_nobody_writes(tmp_path, ends, word):
    run = make_run(tmp_path)
    if ends:
        write_events(run, *ends)
    assert Feed(run).standing() == word
    with lock.writing(run.path):
        assert Feed(run).standing() == "running"


def test_a_new_process_finds_the_stages_of_a_killed_one_killed(tmp_path):
    run = make_run(tmp_path)
    train(run)
    write_events(run, StageStart(stage="data"))
    with Feed(run).look() as (life, _):
        assert life.stages["train"].outcome == "killed" and not life.bars and life.process == os.getpid()
        assert [stage.name for stage in life.open_stages()] == ["data"]


def test_a_verdict_is_forgotten_when_its_stage_begins_again(tmp_path):
    run = make_run(tmp_path)
    write_events(run, StageStart(stage="verdict"), Decision(stage="verdict", verdict="deploy", exit_code=0, reason="it is"))
    feed = Feed(run)
    with feed.look() as (life, _):
        assert life.decision is not None
    write_events(run, StageStart(stage="verdict"))
    with feed.look() as (life, _):
        assert life.decision is None


def test_a_damaged_line_is_said_and_what_stands_behind_it_is_read(tmp_path):
    run = make_run(tmp_path)
    train(run, 1)
    with run.events_file.open("a") as file:
        file.write("{no event}\n")
    warn(run, "after it")
    with Feed(run).look() as (life, _):
        assert "line 5" in life.damage and [line.message for line in life.warnings] == ["after it"]


@pytest.mark.parametrize("change", ["cut", "replaced", "not at a line's end"])
def test_a_place_in_a_file_that_is_another_one_is_known_as_such(tmp_path, change):
    path = tmp_path / "events.jsonl"
    path.write_text("one\ntwo\nthree\n")
    reader = LineReader(path)
    assert reader.new() == (False, [b"one", b"two", b"three"])
    place = position_of(reader)
    if change == "cut":
        os.truncate(path, 4)
    elif change == "replaced":
        other = tmp_path / "other"
        other.write_text("one\ntwo\nthree\nfour\n")
        other.replace(path)
    else:
        path.write_text("one\ntwo and three, and so on\n")
    later = LineReader(path)
    assert place_reader(later, place)
    is_anew, lines = later.new()
    assert is_anew and lines == path.read_bytes().splitlines()
    assert not place_reader(later, "not a place")


def test_a_line_longer_than_a_block_is_read_whole_and_a_torn_one_waits(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 100 + b"\ntorn")
    reader = LineReader(path)
    assert reader.new(10) == (False, [b"x" * 100]) and reader.new(10) == (False, [])
    with path.open("ab") as file:
        file.write(b" no more\n")
    assert reader.new(10) == (False, [b"torn no more"])
