"""What is counted as a candidate, over runs, seeds of the split, and folders that are not there."""

import shutil

import pytest

from tunesmith import hardware
from tunesmith.models.adapter import WEIGHTS
from tunesmith.pipeline.booking import adapter_key, book, tries_of
from tunesmith.rundir import RunDir
from tunesmith.rundir.ledger import Ledger
from tunesmith.rundir.rows import Row


def _rows(numbers):
    return [
        Row(str(k), f"line {k}", [{"role": "user", "content": f"q{k}"}, {"role": "assistant", "content": "a"}]) for k in numbers
    ]


ROWS, OTHER_SEED, OTHER_TASK = _rows(range(20)), _rows(range(15, 35)), _rows(range(90, 99))


@pytest.fixture
def run_of(tmp_path):
    """A function: a run directory with an adapter of these bytes, which has answered some rows."""

    def make(name, adapter, rows=ROWS):
        run = RunDir(tmp_path / name)
        run.adapter.mkdir(parents=True)
        (run.adapter / WEIGHTS).write_bytes(adapter)
        book(run, rows, "few_shot", "prompt", "the prompt")
        for arm in ("tuned", "deployed"):
            book(run, rows, arm, "tuned", adapter_key(run))
        return run

    return make


def _places(run, rows=ROWS):
    tries = tries_of(run, rows, [adapter_key(run)])
    return tries.place, tries.tuned, tries.prompts, tries.runs


def test_forms_and_reruns_of_an_adapter_are_one_candidate_and_others_are_counted_over_runs(run_of):
    first = run_of("first", b"1")
    assert _places(first) == (1, 1, 1, 1) and tries_of(first, ROWS, [adapter_key(first)]).lacking is None
    again = run_of("again", b"1")
    assert _places(again) == (1, 1, 1, 2)
    second, seed, task = run_of("second", b"2"), run_of("seed", b"3", OTHER_SEED), run_of("task", b"4", OTHER_TASK)
    assert _places(second) == (2, 3, 1, 4) and _places(seed, OTHER_SEED)[:2] == (3, 3)
    assert _places(task, OTHER_TASK)[:2] == (1, 1)
    assert _places(first)[:2] == (1, 3)  # what is tried later takes nothing back


def test_the_same_adapter_on_another_test_part_is_another_try(run_of):
    run_of("first", b"1")
    assert _places(run_of("seed", b"1", OTHER_SEED), OTHER_SEED)[:2] == (2, 2)


def test_an_adapter_that_nobody_booked_comes_behind_all_others(run_of):
    run_of("first", b"1")
    run = run_of("second", b"2", OTHER_TASK)
    assert _places(run)[:2] == (2, 2) == _places(run)[:2]


def test_a_folder_that_was_deleted_is_said_and_the_run_counts_what_it_knows(run_of):
    run_of("first", b"1")
    run = run_of("second", b"2")
    (run.adapter / WEIGHTS).write_bytes(b"3")
    book(run, ROWS, "tuned", "tuned", adapter_key(run))
    assert _places(run)[:2] == (3, 3)
    shutil.rmtree(hardware.data_dir())
    tries = tries_of(run, ROWS, [adapter_key(run)])
    assert (tries.place, tries.tuned) == (2, 2) and "deleted" in tries.lacking and "at least so many" in tries.line
    assert tries_of(run, ROWS, [adapter_key(run)]).lacking is None  # it was put back
    assert _places(run_of("fourth", b"4"))[:2] == (3, 3)


def test_a_folder_that_cannot_be_written_never_fails_a_run(run_of, talk, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    run = run_of("first", b"1")
    assert "cannot be written" in talk()
    tries = tries_of(run, ROWS, [adapter_key(run)])
    assert (tries.place, tries.tuned, tries.prompts) == (1, 1, 1) and str(tmp_path / "file") in tries.lacking


def test_a_kill_between_the_two_books_is_no_sign_of_a_deletion(run_of, monkeypatch):
    run = run_of("first", b"1")
    whole = Ledger.book

    def killed(self, part, *readings):
        if self.directory == run.readings:
            raise KeyboardInterrupt
        whole(self, part, *readings)

    (run.adapter / WEIGHTS).write_bytes(b"2")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "book", killed)
        book(run, ROWS, "tuned", "tuned", adapter_key(run))
    book(run, ROWS, "tuned", "tuned", adapter_key(run))
    tries = tries_of(run, ROWS, [adapter_key(run)])
    assert (tries.tuned, tries.lacking) == (2, None)
