"""Programs: a row is right when the tests of its reference run through on the answer's code (pass@1).

``task.tests`` is a JSONL file of ``{"reference": ..., "tests": ...}``: the tests belong to a reference and not to a row,
since that is what every arm's answer is scored against; the reference must pass its own. The answer's code is what stands
in its Markdown fences, or all of it. Code and tests are one program that ends by printing a random token: without it an
answer that leaves early with status 0 would pass. Programs run confined (``sandbox.py``), and only with
``task.allow_code: true``.

Source: pass@k, Chen et al. 2021 (section 2.1), in the product form that does not overflow.
"""

import json
import logging
import math
import re
import secrets
from functools import lru_cache
from pathlib import Path

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.evaluate.metrics.sandbox import run_program

logger = logging.getLogger(__name__)

_FENCE = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)


def code_metric(tests_file: Path) -> Metric:
    """The metric of a file of tests.

    Raises:
        RecipeError: the file cannot be read, lacks a key, or gives one reference two sets of tests.
    """
    tests = load_tests(tests_file)

    def score(answer: str, reference: str) -> Score:
        if reference not in tests:
            raise ValueError(f"{tests_file} has no tests for {reference[:80]!r}")
        finished = passes(extract_code(answer), tests[reference])
        return {"score": float(finished), "strict": float(answer == reference)}

    return Metric("code", score, None, tie_break="strict", binary=True)


def load_tests(file: Path) -> dict[str, str]:
    """Tests by reference."""
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


def extract_code(answer: str) -> str:
    """What stands in Markdown fences, joined; the whole answer when there is none."""
    return "\n\n".join(_FENCE.findall(answer)) or answer


def passes(code: str, tests: str) -> bool:
    """Whether code and then its tests run to their end, confined."""
    token = secrets.token_hex(16)
    finished = run_program(f"{code}\n\n{tests}\n\nprint({token!r}, flush=True)\n")
    if finished.lacking:
        _warn(finished.lacking)
    return finished.code == 0 and finished.output.rstrip().endswith(token)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased chance that one of ``k`` answers is right, when ``right`` of ``n`` drawn ones were.

    ``1 - prod_(i = n - right + 1 .. n) (1 - k / i)``, Chen et al. 2021.
    """
    assert 0 <= right <= n and 1 <= k <= n
    if n - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - right + 1, n + 1))


@lru_cache
def _warn(lacking: tuple[str, ...]) -> None:
    logger.warning(f"evaluate: this kernel does not confine the {' and the '.join(lacking)} of programs under test")
