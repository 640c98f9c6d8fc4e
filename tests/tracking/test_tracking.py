"""Events reach those who listen around the call and nobody else; what they look like is the terminal's matter."""

import contextvars
import io
import logging
import threading

import pytest
from rich.console import Console

from tunesmith.rundir.records.events import Metric, Progress, StageEnd, StageStart, WarningLine
from tunesmith.tracking import attached, emit, progress, stage, terminal

logger = logging.getLogger("tunesmith.tests")


class Recorder(list):
    """A sink that keeps what it takes."""

    write = list.append


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_events_go_to_the_sinks_around_them_with_the_stage_as_each_knows_it():
    outer, inner = Recorder(), Recorder()
    emit(Metric(step=0, figures={}))
    with attached(outer), stage("seeds"):
        with attached(inner), stage("train", "seed 2 is not there"):
            emit(Metric(step=1, figures={}))
        emit(Metric(step=2, figures={}))
    emit(Metric(step=3, figures={}))
    assert [event.stage for event in inner] == ["train"] * 3
    assert [(type(event).__name__, event.stage) for event in outer] == [
        ("StageStart", "seeds"),
        ("StageStart", "seeds/train"),
        ("Metric", "seeds/train"),
        ("StageEnd", "seeds/train"),
        ("Metric", "seeds"),
        ("StageEnd", "seeds"),
    ]
    assert inner[0] == StageStart(at=inner[0].at, stage="train", reason="seed 2 is not there")


@pytest.mark.parametrize(("error", "outcome"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_a_stage_that_does_not_end_well_says_how(error, outcome):
    events = Recorder()
    with pytest.raises(error), attached(events), stage("train"):
        raise error("loss is nan")
    end = events[-1]
    assert isinstance(end, StageEnd) and (end.outcome, end.error) == (outcome, "loss is nan") and end.seconds >= 0


def test_warnings_are_events_of_the_run_in_which_they_are_logged(talk):
    mine, other = Recorder(), Recorder()

    def elsewhere() -> None:
        with attached(other):
            logger.warning("of the other")

    with attached(mine), stage("data"):
        logger.info("not one")
        logger.warning("3 rows \x1b[2J left out")
        thread = threading.Thread(target=contextvars.Context().run, args=[elsewhere])
        thread.start()
        thread.join()
    warnings = [event for event in mine if isinstance(event, WarningLine)]
    assert [(event.stage, event.logger, event.message) for event in warnings] == [
        ("data", "tunesmith.tests", "3 rows \\x1b[2J left out")
    ]
    assert [event.message for event in other] == ["of the other"] and len(talk().splitlines()) == 3


def test_a_bar_says_its_first_and_last_state_and_between_them_one_a_second():
    events, clock = Recorder(), Clock()
    with attached(events), progress("rendering", 1000, 10, clock) as bar:
        for k in range(100):
            clock.now += 0.25
            bar.advance(2, f"note {k}")
    states = [(event.done, event.note, event.is_last) for event in events]
    assert states[0] == (10, "", False) and states[-1] == (210, "note 99", True)
    assert [done for done, *_ in states[1:-1]] == list(range(18, 211, 8))


def test_a_bar_that_breaks_off_is_closed_where_it_was():
    events = Recorder()
    with attached(events), pytest.raises(ValueError), progress("merging", 9) as bar:
        bar.advance(4)
        raise ValueError
    assert [(event.done, event.is_last) for event in events] == [(0, False), (4, True)]


def test_a_bar_counts_for_its_opener_wherever_it_is_advanced():
    events = Recorder()
    with attached(events), progress("asking", 5) as bar:
        thread = threading.Thread(target=bar.close)  # a thread has none of the sinks that its starter has
        thread.start()
        thread.join()
    assert [event.is_last for event in events] == [False, True, True]


def test_without_anyone_listening_nothing_is_printed(capfd):
    with stage("train"), progress("training", 3) as bar:
        bar.advance(3)
        logging.getLogger("tunesmith.train").warning("damaged")
        logging.getLogger("tunesmith.train").info("resuming")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [(-1, ["bad"]), (0, ["a [red]b[/red] \\x1b", "bad"]), (1, ["a [red]b[/red] \\x1b", "fine", "bad"])],
)
def test_a_session_shows_lines_as_they_are_and_leaves_nothing_behind(verbosity, expected, capsys):
    with terminal.session():
        terminal.set_verbosity(verbosity)
        logger.info("a [red]b[/red] \x1b")
        logger.debug("fine")
        logger.warning("bad")
    logger.error("after")
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == expected


def test_a_long_line_is_one_line(capsys):
    with terminal.session():
        logger.info("x" * 500)
    assert capsys.readouterr().err == "x" * 500 + "\n"


def _event(done: int, total: int = 100, title: str = "training", **changes) -> Progress:
    return Progress(title=title, done=done, total=total, **changes)


def test_without_a_terminal_a_bar_is_a_line_at_most_every_ten_seconds():
    output, clock = io.StringIO(), Clock()
    clock.now = 1000.0
    lines = terminal.ProgressLines(Console(file=output, width=120, highlight=False), clock)
    lines.write(_event(20))  # resumed: what an earlier call did tells nothing of the speed
    for second in range(1, 36):
        clock.now += 1.0
        lines.write(_event(20 + second, note="loss 1.23"))
    assert output.getvalue().splitlines() == [
        "training: 30/100  loss 1.23  0:10, 1:10 left",
        "training: 40/100  loss 1.23  0:20, 1:00 left",
        "training: 50/100  loss 1.23  0:30, 0:50 left",
    ]


def test_without_a_terminal_short_bars_are_silent_and_many_of_them_share_the_ten_seconds():
    output, clock = io.StringIO(), Clock()
    lines = terminal.ProgressLines(Console(file=output, width=120), clock)
    for k in range(40):
        lines.write(_event(0, 2, f"part {k}"))
        clock.now += 1.0
        lines.write(_event(2, 2, f"part {k}", is_last=True))
    assert output.getvalue() == ""
    lines.write(_event(0, 8, "long"))
    for _ in range(4):
        clock.now += 6.0
        lines.write(_event(4, 8, "long"))
        lines.write(_event(1, 2, "short"))
    assert output.getvalue().splitlines() == ["long: 4/8  0:12, 0:12 left", "long: 4/8  0:24, 0:24 left"]


def test_on_a_terminal_bars_are_drawn_with_lines_above_and_the_last_state_stays():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100, highlight=False, color_system=None)
    bars = terminal.DrawnBars(console)
    bars.write(_event(0, title="outer [1/2]"))
    bars.write(_event(3, 4, "inner", note="dev 1.5"))
    console.print("a line")
    bars.write(_event(4, 4, "inner", note="dev 1.4", is_last=True))
    bars.write(_event(57, title="outer [1/2]", is_last=True))
    screen = output.getvalue()
    assert "a line" in screen and screen.endswith("\x1b[?25h")  # the cursor is back
    last = screen[screen.rindex("outer [1/2]") :]
    assert "57/100" in last and "4/4" in last and "dev 1.4" in last


def test_quiet_draws_no_bar(capsys):
    with terminal.session():
        terminal.set_verbosity(-1)
        with progress("training", 3, clock=iter(range(0, 1000, 50)).__next__) as bar:
            bar.advance()
    assert capsys.readouterr() == ("", "")
