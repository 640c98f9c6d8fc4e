"""Programs: a row is right when the tests of its reference run through on the answer's code (pass@1).

``task.tests`` is a JSONL file of ``{"reference": ..., "tests": ...}``: the tests belong to a reference and not to a row,
since that is what every arm's answer is scored against; the reference must pass its own. What of an answer
is its code stands in ``code_blocks.py``.

The tests run in one confined process and the answer in another (``sandbox.py``, ``code_sides.py``), so that no answer can
end the tests early, read what they compare with, or claim that they passed. Where the reference itself does not pass its
tests that way, since they need more than plain data of it, answer and tests share a process, and the answer is right when it
passes its tests and, run a second time, does not pass the same tests with a failing line at their end. How many references
need that is said.

Programs run only with ``task.allow_code: true``, and only where the kernel holds all that the sandbox promises;
``unconfined`` agrees to what it lacks as well.

Refused: pass@k of several drawn answers. Every arm answers once and greedily, as the deployed model will.
"""

import ast
import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import FileIO
from pathlib import Path

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.code_blocks import extract_code
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.evaluate.metrics.sandbox import WALL_SECONDS, run_program, running
from tunesmith.recipe import Task

logger = logging.getLogger(__name__)

_SIDES = Path(__file__).with_name("code_sides.py")


def code(task: Task) -> Metric:
    """The metric of a file of tests.

    Raises:
        RecipeError: nobody agreed to run programs; or the file cannot be read, lacks a key, or gives one reference two sets of
            tests; or this kernel does not confine programs and nobody agreed to that.
    """
    if not task.allow_code:
        raise RecipeError(
            "task.metric: code runs programs that a model wrote, on this machine",
            "they run confined, without network; agree with task.allow_code: true",
        )
    if (lacking := run_program("").lacking) and task.allow_code != "unconfined":
        raise RecipeError(
            f"task.allow_code: this kernel does not confine the {', the '.join(lacking)} of programs under test",
            "use Linux 6.2 or later on x86-64 or ARM, or agree with task.allow_code: unconfined",
        )
    tests_file = task.tests
    assert tests_file is not None  # the recipe sees to it
    tests = load_tests(tests_file)

    def score(answer: str, reference: str) -> Score:
        if reference not in tests:
            raise ValueError(f"{tests_file} has no tests for {reference[:80]!r}")
        right = passes(extract_code(answer), tests[reference], extract_code(reference))
        return {"score": float(right), "strict": float(answer == reference)}

    return Metric(name="code", score=score, tie_break="strict", binary=True)


def load_tests(file: Path) -> dict[str, str]:
    """Tests by reference.

    Raises:
        RecipeError: the file cannot be read, lacks a key, or gives one reference two sets of tests.
    """
    tests: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"task.tests: {file} cannot be read: {error}", "give a JSONL file") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            reference, source = row["reference"], row["tests"]
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"task.tests: {file}:{number}: {error!r}", 'each line is {"reference": ..., "tests": ...}'
            ) from error
        if tests.setdefault(reference, source) != source:
            raise RecipeError(f"task.tests: {file}:{number}: other tests for a reference that came before", "join both")
    return tests


def passes(program: str, tests: str, reference: str) -> bool:
    """Whether a program passes tests, the way that their reference passes them."""
    if _is_apart(tests, reference):
        return passes_apart(program, tests, reference)
    return _passes_sharing(program, tests) and not _passes_sharing(program, f"{tests}\n\nassert False\n")


@cache
def _is_apart(tests: str, reference: str) -> bool:
    """Whether these tests can judge from another process, which their reference shows; said once where they cannot."""
    if passes_apart(reference, tests, reference):
        return True
    logger.warning(
        f"evaluate: tests that need more than plain data of a program run beside it, and cannot hold back an answer written "
        f"to deceive them: those of {reference[:60]!r}"
    )
    return False


def passes_apart(program: str, tests: str, reference: str) -> bool:
    """Whether tests pass that ask a program in another process; ``reference`` gives the imports that they rely on."""
    imports = _imports(reference)
    with _pipe() as (asked, asking), _pipe() as (answered, answering):
        answer = _side("answer", (program,), asked, answering)
        examine = _side("examine", (tests, imports), asking, answered)
        with (
            running(answer, (asked.fileno(), answering.fileno())),
            running(examine, (asking.fileno(), answered.fileno())) as examination,
        ):
            for end in (asked, asking, answered, answering):
                end.close()  # so that each side sees the other end
            return examination.wait(WALL_SECONDS).code == 0


@contextmanager
def _pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Both ends of a pipe: where it is read, where it is written."""
    reading, writing = os.pipe()
    with FileIO(reading, "rb") as read, FileIO(writing, "wb") as write:
        yield read, write


def _side(function: str, texts: tuple[str, ...], *pipes: FileIO) -> str:
    """A program that calls a function of ``code_sides.py`` with texts and then with pipes."""
    files = [f"open({end.fileno()}, {'r' if end.readable() else 'w'!r}, encoding='utf-8')" for end in pipes]
    return f"{_SIDES.read_text(encoding='utf-8')}\n\n{function}({', '.join([*map(ascii, texts), *files])})\n"


def _imports(reference: str) -> str:
    """The import lines of a program, which its tests may rely on without saying so."""
    try:
        lines = ast.parse(reference).body
    except (SyntaxError, ValueError):
        return ""
    return "\n".join(ast.unparse(line) for line in lines if isinstance(line, ast.Import | ast.ImportFrom))


def _passes_sharing(program: str, tests: str) -> bool:
    """Whether tests run to their end in the program's own process, and then print what waits in a pipe."""
    token = secrets.token_hex(16)
    with _pipe() as (read, write):
        write.write(token.encode())
        with running(_side("share", (program, tests), read), (read.fileno(),)) as program_and_tests:
            finished = program_and_tests.wait(WALL_SECONDS)
    return finished.code == 0 and finished.output.rstrip().endswith(token)
