import json
import multiprocessing
from pathlib import Path

import pytest

from tunesmith.rundir.ledger import Ledger, part_of
from tunesmith.rundir.records.readings import TestReading
from tunesmith.rundir.rows import Row


def _row(number, system=None, answer="yes"):
    turns = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": answer}]
    head = [] if system is None else [{"role": "system", "content": system}]
    return Row(f"id{number}-{system}", f"line {number}", [*head, *turns])


def _part(numbers, **more):
    return part_of([_row(number, **more) for number in numbers])


def _reading(part, candidate, at="2026-01-01"):
    return TestReading(part=part.key, kind="tuned", candidate=candidate, arm="tuned", run="/run", at=at)


def _candidates(ledger, part):
    return {reading.candidate for reading in ledger.find(part).readings}


def test_parts_that_share_a_row_are_the_same_test_and_others_are_not(tmp_path):
    ledger = Ledger(tmp_path / "readings")
    assert ledger.find(_part(range(5))).readings == [] and not ledger.directory.exists()
    one, next_seed, elsewhere = _part(range(10)), _part(range(9, 19)), _part(range(100, 110))
    for part, candidate in ((one, "a"), (next_seed, "b"), (elsewhere, "c")):
        ledger.book(part, _reading(part, candidate))
    assert _candidates(ledger, one) == {"a", "b"} == _candidates(ledger, next_seed)
    assert _candidates(ledger, elsewhere) == {"c"} and _candidates(ledger, _part(range(40, 50))) == set()


def test_neither_the_order_nor_a_reworded_system_turn_makes_another_part():
    assert _part(range(9, -1, -1), system="be kind") == _part(range(10))
    assert _part(range(10), answer="no") != _part(range(10))


def test_a_torn_line_loses_no_other_and_is_named(tmp_path):
    ledger, part = Ledger(tmp_path), _part(range(3))
    ledger.book(part, _reading(part, "a"))
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    for cut in (5, len(whole) - 7):  # within the line of the rows, and within the reading
        path.write_bytes(whole[:cut])
        ledger.book(part, _reading(part, "b"))
        found = ledger.find(part)
        assert [reading.candidate for reading in found.readings] == ["b"] and len(found.unreadable) == 1
        assert _candidates(ledger, _part([2, 50])) == {"b"} and _candidates(ledger, _part([60])) in (set(),)


def test_a_line_of_another_version_is_named(tmp_path):
    ledger, part = Ledger(tmp_path), _part(range(3))
    ledger.book(part, _reading(part, "a"), _reading(part, "b"))
    (path,) = tmp_path.glob("*.jsonl")
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "version": 2})
    path.write_text("\n".join(lines) + "\n")
    found = ledger.find(part)
    assert [reading.candidate for reading in found.readings] == ["b"] and found.unreadable == [f"{path}:2"]


def _book_many(directory, name):
    part = _part(range(200))
    for number in range(20):
        Ledger(Path(directory)).book(part, _reading(part, f"{name}-{number}"))


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_book_many, args=(str(tmp_path), str(k))) for k in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = Ledger(tmp_path).find(_part(range(200)))
    assert len({reading.candidate for reading in found.readings}) == 40 and found.unreadable == []


def test_a_place_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    part = _part(range(3))
    with pytest.raises(OSError, match="file"):
        Ledger(tmp_path / "file" / "readings").book(part, _reading(part, "a"))
