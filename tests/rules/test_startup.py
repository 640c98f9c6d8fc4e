"""Rule 3: help and data checks start without torch; help answers in under half a second."""

import json
import subprocess
import sys

from shared import toy_rows

PROBE = """
import sys
from tunesmith import cli
sys.argv = ["tunesmith", *{arguments!r}]
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"torch", "transformers", "matplotlib", "gguf", "xllamacpp"}} & set(sys.modules)
assert not heavy, heavy
"""


COST = """
import resource, sys
from tunesmith import cli
sys.argv = ["tunesmith", "--help"]
try:
    cli.main()
except SystemExit:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime)
"""


def _run(*arguments):
    done = subprocess.run([sys.executable, "-c", PROBE.format(arguments=arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_help_schema_and_check_import_nothing_heavy(tmp_path):
    assert "Usage" in _run("--help").stdout
    assert json.loads(_run("schema").stdout)["title"] == "Recipe"
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in toy_rows()))
    assert _run("check", str(rows)).stdout.splitlines()[1].startswith("64 rows")


def test_help_costs_under_half_a_second_of_cpu():
    """Wall time is the machine's mood; CPU seconds of the child are the program's own."""
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True)
        seconds.append(float(done.stdout.split()[-1]))
    assert min(seconds) < 0.5


def test_a_training_needs_no_package_of_the_extra_gguf():
    lacking = "import sys; sys.modules |= dict.fromkeys(('gguf', 'xllamacpp')); import tunesmith.pipeline.train"
    done = subprocess.run([sys.executable, "-c", lacking], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
