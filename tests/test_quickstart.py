"""The notebook of the examples runs from its first cell to its last, and what its cells end with shows itself.

The cells run in one namespace as a kernel runs them; a kernel itself would be four more packages for the same lines.
"""

import ast
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from shared import ROOT

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
MODEL = '"HuggingFaceTB/SmolLM2-135M-Instruct"'
DAYS = "draw.sample(range(15_000), 240)"  # a third of these rows is trained on here
PICTURES = {"run.training": "<svg", "verdict": "<svg", "run": "<table", "run.advise(quick=True)": "<table"}


def _last_value(source: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Run a cell; the expression that it ends with, and its value."""
    body = ast.parse(source).body
    last = body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(source, "cell", "exec"), names)  # noqa: S102
        return "", None
    exec(compile(ast.Module(body[:-1], []), "cell", "exec"), names)  # noqa: S102
    return ast.unparse(last), eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307


def test_quickstart_runs_and_shows_what_it_says(tiny_dir: Path, tmp_path: Path, monkeypatch):
    notebook = json.loads(NOTEBOOK.read_text())
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    for text in (MODEL, DAYS):
        assert sum(source.count(text) for source in sources) == 1
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    meant = {MODEL: repr(str(tiny_dir)), DAYS: DAYS.replace("240", "80")}
    for written, here in meant.items():
        sources = [source.replace(written, here) for source in sources]
    values = dict(_last_value(source, names) for source in sources)
    for expression, mark in PICTURES.items():
        shown = values[expression]._repr_html_().replace("&nbsp;", " ")
        assert mark in shown, expression
        ET.fromstring(f"<div>{shown}</div>")
    assert values["run.export()"].files.keys() == {"Q8_0"}
    assert {stage.state for stage in names["run"].status().stages if stage.stage != "report"} == {"done"}
