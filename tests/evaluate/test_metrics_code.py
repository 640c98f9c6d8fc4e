import json

import pytest

from tunesmith.errors import RecipeError
from tunesmith.evaluate.metrics import code_tests, make_metric
from tunesmith.evaluate.metrics.code_tests import extract_code, passes
from tunesmith.evaluate.metrics.sandbox import Finished
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


CHEATS = {
    "ends early": "import os; os._exit(0)",
    "ends": "raise SystemExit",
    "is no Python": "def add(:",
    "is no text": "\ud800",
    "prints what its own source holds": "import os\nprint(open(__file__).read(), flush=True)\nos._exit(0)",
    "prints what waits in its files": (
        "import os\nfor number in range(3, 20):\n"
        "    try: print(os.read(number, 99).decode(), flush=True)\n    except OSError: pass\n"
        "os._exit(0)"
    ),
    "answers before it is asked": (
        "import os\nfor number in range(3, 20):\n"
        '    try: os.write(number, b\'{"add": ["function"]}\\n{"value": true}\\n\')\n    except OSError: pass\n'
        "os._exit(0)"
    ),
    "is equal to everything": "class All:\n    def __eq__(self, other): return True\ndef add(a, b): return All()",
    "is a number equal to everything": (
        "class All(int):\n    def __eq__(self, other): return True\ndef add(a, b): return All(0)"
    ),
    "ends when it is called": "import os\ndef add(a, b): os._exit(0)",
    "leaves when it is called": "def add(a, b): raise SystemExit(0)",
    "shadows what tests use": "def isinstance(*_): return True\ndef add(a, b): return a - b",
}
CLASSES = "class Sum:\n    def __init__(self, a): self.a = a\n    def __eq__(self, other): return self.a == other.a\n"
SHARING = "assert Sum(1) == Sum(1) and not Sum(1) == Sum(2) and Sum(3).a == 3"
CLASS_CHEATS = {
    "ends early": CHEATS["ends early"],
    "prints what waits in its files": CHEATS["prints what waits in its files"],
    "holds what is equal to everything": (
        "class All:\n    def __eq__(self, other): return True\n"
        "class Sum:\n    def __init__(self, a): self.a, self.b = All(), a\n"
        "    def __eq__(self, other): return self.b == other.b\n"
    ),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_program_cannot_pass_tests_but_by_their_results(cheat):
    assert not passes(CHEATS[cheat], TESTS, ADD)


@pytest.mark.parametrize("cheat", CLASS_CHEATS)
def test_a_program_beside_its_tests_does_not_pass_them_by_leaving(cheat):
    assert not passes(CLASS_CHEATS[cheat], SHARING, CLASSES)


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (f"{ADD}\nif __name__ == '__main__':\n    print(add(1, 2))\n    raise SystemExit(0)", TESTS),
        (f"{ADD}\nimport unittest\nunittest.main()", TESTS),
        (
            "def grow(a):\n    a[0].append(1)\n    a.append(2)",
            "a = [[]]\ninner = a[0]\ngrow(a)\nassert a == [[1], 2] and inner == [1]",
        ),
        ("import math\ndef root(a): return math.sqrt(a)", "assert math.isclose(root(2) ** 2, 2) and root(4) == 2"),
        (
            "def check(a):\n    if a < 0: raise ValueError(f'{a} is negative')\n    return {(1, 2): {3.5, None, True, b'x'}}",
            "assert check(1) == {(1, 2): {3.5, None, True, b'x'}}\n"
            "try:\n    check(-1)\nexcept ValueError as error:\n    assert str(error) == '-1 is negative'\n"
            "else:\n    assert False",
        ),
        (
            "def double(a): return 2 * a",
            "import unittest\nclass Tests(unittest.TestCase):\n"
            "    def test(self): self.assertEqual(double(10**5000), 2 * 10**5000)\n"
            "assert unittest.main(exit=False).result.wasSuccessful()",
        ),
        ("def count(n):\n    yield from range(n)", "assert list(count(3)) == [0, 1, 2]"),
        ("def twice(f, a): return f(f(a))", "assert twice(lambda a: a + 1, 1) == 3"),
        ("from math import gcd", "assert gcd(12, 8) == 4"),
        (CLASSES, SHARING),
        ("limit = 3", "assert limit == 3"),
    ],
)
def test_right_programs_pass(program, tests):
    assert passes(program, tests, program)
    assert not passes(program, f"{tests}\nassert False", program)


def test_programs_run_where_they_are_confined_or_somebody_agreed(tmp_path, monkeypatch):
    file = tmp_path / "tests.jsonl"
    file.write_text(json.dumps({"reference": ADD, "tests": TESTS}) + "\n")
    lacking = Finished(code=0, output="", lacking=("network", "files"))
    monkeypatch.setattr(code_tests, "run_program", lambda source: lacking)
    with pytest.raises(RecipeError, match="does not confine the network, the files of programs under test"):
        make_metric(Task(metric="code", tests=file, allow_code=True))
    assert make_metric(Task(metric="code", tests=file, allow_code="unconfined")).fits(ADD)


def test_code_is_what_stands_in_fences():
    assert extract_code("text\n```py\na = 1\n```\nmore\n```\nb = 2\n```") == "a = 1\n\nb = 2"
    assert extract_code("a = 1") == "a = 1" and extract_code("```python\na = 1") == "a = 1"
