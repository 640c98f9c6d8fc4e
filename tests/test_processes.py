"""A team gives what one process gives; whoever dies is named, and nobody outlives the others."""

import os
import signal
import time
from pathlib import Path

import pytest

from tunesmith.errors import DataError, TrainingError
from tunesmith.processes import Team


def _team(size, work, begin=lambda: None):
    return Team(size, "worker", work, begin, TrainingError, "give workers: 1")


def _stat(pid):
    """State, and user and system time in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], sum(map(int, fields[11:13]))


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_item_once_and_its_own_result(size):
    """Also of results larger than a pipe, and of more items than a pipe holds tickets for."""
    with _team(size, lambda job, item: job * item) as team:
        for job, count in ((b"ab", 5000), (b"x" * 1000, 300), (b"", 3), (b"c", 0)):
            done = []
            assert team.run(job, range(count), done.append) == {item: job * item for item in range(count)}
            assert sorted(done) == list(range(count))
        pids = team.pids
        assert len(pids) == size - 1
    assert not any(_alive(pid) for pid in pids)


def test_items_are_dealt_out():
    """One that waits for another's item would wait for ever in one process."""
    first, second = os.pipe(), os.pipe()

    def meet(job, item):
        mine, other = (first, second) if item == 0 else (second, first)
        os.write(other[1], b"x")
        return os.read(mine[0], 1) + str(os.getpid()).encode()

    with _team(2, meet) as team:
        results = team.run(b"", [0, 1])
        assert {int(answer[1:]) for answer in results.values()} == {os.getpid(), *team.pids}


def test_whoever_waits_sleeps():
    def work(job, item):
        if os.getpid() == parent:
            time.sleep(0.3)
        return b""

    parent = os.getpid()
    with _team(2, work) as team:
        team.run(b"", range(2))
        time.sleep(0.3)
        assert _stat(team.pids[0])[1] / os.sysconf("SC_CLK_TCK") < 0.15


def test_an_error_is_the_one_that_was_raised():
    """Ours as it was, another with its traceback; the first process's own passes through."""
    parent = os.getpid()

    def work(job, item):
        if (os.getpid() == parent) == (job == b"parent"):
            raise {b"ours": DataError("row 7", "mend it"), b"parent": KeyError("k")}.get(job, ValueError("odd"))
        time.sleep(0.05)
        return b""

    with _team(2, work) as team, pytest.raises(DataError) as ours:
        team.run(b"ours", range(4))
    assert (ours.value.message, ours.value.hint) == ("row 7", "mend it")
    with _team(2, work) as team, pytest.raises(RuntimeError, match="worker 2 of 2: ValueError: odd") as other:
        team.run(b"other", range(4))
    assert "in work" in other.value.__notes__[0]
    with _team(2, work) as team, pytest.raises(KeyError):
        team.run(b"parent", range(4))


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, r"9 \(SIGKILL\).*memory runs out"), (signal.SIGTERM, r"15 \(SIGTERM\)")]
)
@pytest.mark.parametrize("when", ["between", "within"])
def test_a_dead_process_is_named_and_the_others_end(number, words, when):
    parent = os.getpid()

    def work(job, item):
        if when == "within" and os.getpid() != parent:
            os.kill(os.getpid(), number)
        time.sleep(0.01)
        return b""

    with _team(3, work) as team:
        pids = team.pids
        if when == "between":
            os.kill(pids[1], number)
            while _stat(pids[1])[0] != "Z":
                time.sleep(0.01)
        with pytest.raises(
            TrainingError, match=rf"worker [23] of 3 \(process \d+\) was killed by signal .*{words[-7:]}"
        ) as caught:
            team.run(b"", range(40))
        assert "workers: 1" in caught.value.hint
    assert not any(_alive(pid) for pid in pids)


def test_no_orphan_stays_when_the_first_process_is_killed():
    """Whether the others sleep or compute."""
    told, tell = os.pipe()
    first = os.fork()
    if first == 0:

        def work(job, item):
            os.write(tell, b"%8d" % os.getpid())
            while True:
                sum(range(10000))

        with _team(3, work) as team:
            os.write(tell, b"%8d" % team.pids[0])
            team.run(b"", range(2))
    computing = {int(os.read(told, 8)) for _ in range(3)}
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in computing - {first}):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.02)
