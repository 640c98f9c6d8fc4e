"""Rule 5: functions of at most 80 lines, files of at most 500, few names looked up by string."""

import ast

import pytest

from conftest import ROOT

FILES = sorted(
    path
    for folder in ("src", "examples", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)  # environments of the peers
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 80, f"{node.name}: {node.end_lineno - node.lineno + 1} lines"


def test_names_looked_up_by_string():
    lines = lookups = 0
    for path in (ROOT / "src").rglob("*.py"):
        lines += len(path.read_text().splitlines())
        for node in ast.walk(ast.parse(path.read_text())):
            lookups += isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr", "setattr"}
    assert lookups <= 2 * lines / 1000


def test_every_module_opens_with_an_essay():
    for path in sorted((ROOT / "src").rglob("*.py")):
        assert ast.get_docstring(ast.parse(path.read_text())), path
