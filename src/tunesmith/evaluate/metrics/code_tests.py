"""Programs: a row is right when the tests of its reference run through on the answer's code (pass@1).

``task.tests`` is a JSONL file of ``{"reference": ..., "tests": ...}``: the tests belong to a reference and not to a row,
since that is what every arm's answer is scored against; the reference must pass its own. What of an answer
is its code stands in ``code_blocks.py``. Code and tests are one program that ends by printing a random token: without it an
answer that leaves early with status 0 would pass. Programs run confined (``sandbox.py``), and only with
``task.allow_code: true``.

Refused: pass@k of several drawn answers. Every arm answers once and greedily, as the deployed model will.
"""

import json
import logging
import secrets
from functools import lru_cache
from pathlib import Path

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.code_blocks import extract_code
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.evaluate.metrics.sandbox import run_program
from tunesmith.recipe import Task

logger = logging.getLogger(__name__)


def code(task: Task) -> Metric:
    """The metric of a file of tests.

    Raises:
        RecipeError: nobody agreed to run programs; or the file cannot be read, lacks a key, or gives one reference two sets of
            tests.
    """
    if not task.allow_code:
        raise RecipeError(
            "task.metric: code runs programs that a model wrote, on this machine",
            "they run confined, without network; agree with task.allow_code: true",
        )
    tests_file = task.tests
    assert tests_file is not None  # the recipe sees to it
    tests = load_tests(tests_file)

    def score(answer: str, reference: str) -> Score:
        if reference not in tests:
            raise ValueError(f"{tests_file} has no tests for {reference[:80]!r}")
        return {"score": float(passes(extract_code(answer), tests[reference])), "strict": float(answer == reference)}

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


def passes(program: str, tests: str) -> bool:
    """Whether a program and then its tests run to their end, confined."""
    token = secrets.token_hex(16)
    finished = run_program(f"{program}\n\n{tests}\n\nprint({token!r}, flush=True)\n")
    if finished.lacking:
        _warn(finished.lacking)
    return finished.code == 0 and finished.output.rstrip().endswith(token)


@lru_cache
def _warn(lacking: tuple[str, ...]) -> None:
    logger.warning(f"evaluate: this kernel does not confine the {' and the '.join(lacking)} of programs under test")
