"""events.jsonl: whole lines in order whatever happens to the writer, and any number of readers while it writes."""

import json
import threading
from pathlib import Path

import pytest

from tunesmith.errors import RunError
from tunesmith.rundir.events import EventLog, EventReader, follow, read_events
from tunesmith.rundir.records.events import (
    ArmScore,
    Decision,
    Metric,
    ProcessStart,
    Progress,
    StageEnd,
    StageStart,
    WarningLine,
    parse_event,
)

ONE_OF_EACH = [
    StageStart(stage="train", reason="train.learning_rate 2e-4 -> 1e-3"),
    Progress(stage="train", title="training", done=3, total=60, note="loss 2.1"),
    Metric.of({"step": 3, "loss": 2.1, "grad_norm": float("inf")}),
    WarningLine(logger="tunesmith.train.checkpoint", message="é\ud800 passed over"),
    ArmScore(arm="tuned", rows=40, score=None),
    Decision(verdict="deploy", exit_code=0, reason="because"),
    StageEnd(stage="train", outcome="interrupted", seconds=1.5),
]


def _write(path, *events):
    log = EventLog(path)
    for event in events:
        log.write(event)


def test_every_kind_comes_back_as_it_was_in_order_and_as_plain_json(tmp_path):
    path = tmp_path / "events.jsonl"
    _write(path, *ONE_OF_EACH)
    first, *events = read_events(path)
    assert isinstance(first, ProcessStart)
    expected = list(ONE_OF_EACH)
    expected[3] = WarningLine(at=expected[3].at, logger="tunesmith.train.checkpoint", message="é? passed over")
    assert events == expected
    metric = json.loads(path.read_text().splitlines()[3])
    assert metric["figures"] == {"loss": 2.1, "grad_norm": None} and metric["step"] == 3


def test_a_file_cut_at_any_byte_gives_its_whole_lines_and_the_next_writer_goes_on_behind_them(tmp_path):
    path = tmp_path / "events.jsonl"
    _write(path, *ONE_OF_EACH[:2])
    content = path.read_bytes()
    events = read_events(path)
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        assert read_events(path) == events[:whole]
        _write(path, ONE_OF_EACH[5])
        *earlier, start, last = read_events(path)
        assert earlier == events[:whole] and isinstance(start, ProcessStart) and last == ONE_OF_EACH[5]


def test_a_torn_line_longer_than_a_block_is_cut_off_too(tmp_path):
    path = tmp_path / "events.jsonl"
    _write(path, ONE_OF_EACH[0])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"at": "' + b"x" * 200_000)
    _write(path, ONE_OF_EACH[0])
    assert path.read_bytes().startswith(whole) and len(read_events(path)) == 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{}", "kind"),
        ('{"kind": "progress", "title": "a", "done": "3", "total": 4}', "valid integer"),
        ('{"kind": "progress", "title": "a", "done": 3, "total": 4, "speed": 1}', "unexpected"),
        ('{"kind": "stage end", "outcome": "well", "seconds": 1.0}', "'done', 'failed' or 'interrupted'"),
        (json.dumps(ProcessStart(process=1, version=2).to_json()), "version 2, expected 1"),
    ],
)
def test_what_is_no_event_is_refused_with_its_line(tmp_path, line, words):
    path = tmp_path / "events.jsonl"
    _write(path, ONE_OF_EACH[0])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(RunError, match=r"events\.jsonl, line 3: ") as error:
        read_events(path)
    assert words in str(error.value) and "hint:" in str(error.value)


def test_two_readers_see_every_event_once_and_in_order_while_a_writer_writes(tmp_path):
    path = tmp_path / "events.jsonl"
    is_over = threading.Event()
    seen: list[list[int]] = [[], []]

    def read(steps: list[int]) -> None:
        steps.extend(event.step for event in follow(path, is_over.is_set, seconds=0.001) if isinstance(event, Metric))

    readers = [threading.Thread(target=read, args=[steps]) for steps in seen]
    for reader in readers:
        reader.start()
    log = EventLog(path)
    for step in range(300):
        log.write(Metric(step=step, figures={"loss": step / 3}))
    is_over.set()
    for reader in readers:
        reader.join()
    assert seen == [list(range(300))] * 2


def test_a_reader_starts_again_on_another_file_of_the_name(tmp_path):
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.new() == []
    _write(path, *ONE_OF_EACH[:1])
    assert len(reader.new()) == 2 and reader.new() == []
    other = tmp_path / "other.jsonl"
    _write(other, *ONE_OF_EACH)
    other.replace(path)
    assert len(reader.new()) == 8


def test_a_full_disk_is_an_error_of_ours_and_leaves_whole_lines():
    with pytest.raises(RunError, match=r"/dev/full: cannot be written: No space left"):
        EventLog(Path("/dev/full")).write(ONE_OF_EACH[0])


def test_an_event_of_the_documentation_is_one():
    line = (
        '{"at": "2026-11-28T11:04:05.123+00:00", "stage": "train", "kind": "progress", "title": "training", "done": 12,'
        ' "total": 60, "note": "", "is_last": false}'
    )
    assert parse_event(line, "") == Progress(
        at="2026-11-28T11:04:05.123+00:00", stage="train", title="training", done=12, total=60
    )
