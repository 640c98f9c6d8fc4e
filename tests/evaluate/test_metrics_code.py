import json
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics import make_metric
from tunesmith.evaluate.metrics.code_tests import extract_code, passes
from tunesmith.evaluate.metrics.sandbox import run_program
from tunesmith.recipe import Task

ADD = "def add(a, b):\n    return a + b"
TESTS = "assert add(2, 3) == 5\nassert add('a', 'b') == 'ab'"


def test_pass_at_1_runs_the_references_tests(tmp_path):
    file = tmp_path / "tests.jsonl"
    file.write_text(json.dumps({"reference": ADD, "tests": TESTS}) + "\n")
    metric = make_metric(Task(metric="code", tests=file, allow_code=True))
    assert metric.fits(ADD) and not metric.fits("def add(a, b): return 5") and metric.binary
    assert metric.score(f"Here it is:\n```python\n{ADD}\n```\nDone.", ADD) == {"score": 1.0, "strict": 0.0}
    assert metric.score("def add(a, b):\n    return a - b", ADD)["score"] == 0.0
    with pytest.raises(RecipeError, match="runs programs that a model wrote"):
        make_metric(Task(metric="code", tests=file))
    file.write_text(file.read_text() + json.dumps({"reference": ADD, "tests": "assert True"}) + "\n")
    with pytest.raises(RecipeError, match=r"tests.jsonl:2: other tests"):
        make_metric(Task(metric="code", tests=file, allow_code=True))
    file.write_text('{"reference": 1}\n')
    with pytest.raises(RecipeError, match=r"tests.jsonl:1: KeyError\('tests'\)"):
        make_metric(Task(metric="code", tests=file, allow_code=True))
    with pytest.raises(RecipeError, match="cannot be read"):
        make_metric(Task(metric="code", tests=tmp_path / "none", allow_code=True))


@pytest.mark.parametrize("cheat", ["import os; os._exit(0)", "raise SystemExit", "def add(:", "\ud800"])
def test_a_program_that_does_not_reach_the_end_of_its_tests_fails(cheat):
    assert not passes(cheat, TESTS)


def test_code_is_what_stands_in_fences():
    assert extract_code("text\n```py\na = 1\n```\nmore\n```\nb = 2\n```") == "a = 1\n\nb = 2"
    assert extract_code("a = 1") == "a = 1" and extract_code("```python\na = 1") == "a = 1"


def test_programs_are_confined(tmp_path):
    outside = tmp_path / "outside"
    finished = run_program(
        "import os, socket, pathlib\n"
        "def tried(what, *args):\n"
        "    try:\n        what(*args)\n        return 'done'\n"
        "    except (OSError, MemoryError) as error:\n        return type(error).__name__\n"
        "print(tried(pathlib.Path('inside').write_text, 'x'))\n"
        f"print(tried(pathlib.Path({str(outside)!r}).write_text, 'x'))\n"
        "print(tried(socket.create_connection, ('127.0.0.1', 9), 1))\n"
        "print(tried(bytearray, 2**31))\n"
        "print(tried(pathlib.Path('large').write_bytes, bytes(2**21)))\n"
        "print(sorted(os.environ))\n"
        "print(os.getpid())\n"
    )
    assert finished.code == 0, finished.output
    inside, beyond, network, memory, large, environment, process = finished.output.split("\n")[:7]
    assert (inside, memory, large) == ("done", "MemoryError", "OSError")
    assert environment == "['LC_CTYPE']"  # Python's own, in an empty environment
    if "files" not in finished.lacking:
        assert beyond == "PermissionError" and not outside.exists()
    if "network" not in finished.lacking:
        assert network in ("OSError", "ConnectionRefusedError") and process == "1"


def test_programs_end_in_time_and_leave_no_process_behind():
    assert run_program("while True: pass", cpu_seconds=1).code not in (0, None)
    sleeping = "import os, time\nif os.fork() == 0: os.setsid()\nprint(os.getcwd(), flush=True)\ntime.sleep(60)"
    finished = run_program(sleeping, wall_seconds=2.0)
    folder = finished.output.splitlines()[0]
    assert finished.code is None and not Path(folder).exists()
    deadline = time.monotonic() + 10
    while "processes" not in finished.lacking and (left := _running(folder)):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _running(text):
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += [process] if text.encode() in process.read_bytes() else []
    return found
