"""macOS and Windows, as far as they can be had on Linux: the light path answers, and needs nothing that Linux alone has.

``tests/foreign.py`` says what is emulated and what is not. Neither system has run these tests (docs/how-to/install.md).
"""

import ast
import json
import subprocess
import sys

import pytest
from source_tree import SOURCE, dotted, modules

from shared import ROOT, toy_rows

POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "pty"}  # what Windows' Python cannot import
LINUX = {  # programs and parts that say themselves that they need Linux, or never run elsewhere
    "evaluate/metrics/sandbox_child.py": "a program of its own, whose failure is an answer: nothing is confined here",
}
SESSION = """
import json, os, sys
sys.path[:] = [{tests!r}, *map(os.path.abspath, sys.path)]
os.chdir({place!r})
import foreign
foreign.become({system!r})
from tunesmith import cli, hardware
for arguments in {commands!r}:
    sys.argv = ["tunesmith", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        print(json.dumps([arguments[0], stop.code or 0]), file=sys.stderr)
from pathlib import Path
from tunesmith.errors import RunError
from tunesmith.rundir import RunDir, lock
run = RunDir(Path("runs/recipe"))
with run.writing():
    try:
        with lock.writing(run.path):
            raise AssertionError("two writers")
    except RunError as error:
        assert "is being written by process" in error.message, error.message
    assert lock.writer_of(run.path).startswith("process")
assert lock.writer_of(run.path) is None and run.answers("few_shot:2").name == {folder!r}
assert hardware.cpu_count() >= hardware.physical_cores() >= 1 and hardware.peak_memory() >= 2**20
assert hardware.total_memory() >= hardware.available_memory() >= 2**20
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
COMMANDS = {
    ("check", "rows.jsonl"): 0,
    ("convert", "rows.jsonl", "messages.jsonl"): 0,
    ("schema",): 0,
    ("advise", "recipe.yaml", "--quick"): 23,
    ("status", "recipe.yaml"): 0,
    ("runs", "runs"): 0,
    ("verify", "runs/recipe"): 7,
}


@pytest.mark.parametrize(("system", "folder"), [("darwin", "few_shot:2"), ("win32", "few_shot=2")])
def test_the_light_path_answers_on_other_systems(system, folder, tmp_path):
    """Rows and recipe with the line ends of Windows; what is written has ours."""
    rows = b"".join(json.dumps(row).encode() + b"\r\n" for row in toy_rows())
    (tmp_path / "rows.jsonl").write_bytes(rows)
    recipe = b"model: some/model\r\ndata: {path: rows.jsonl}\r\ntask:\r\n  metric: exact_match\r\n"
    (tmp_path / "recipe.yaml").write_bytes(recipe)
    session = SESSION.format(
        tests=str(ROOT / "tests"), place=str(tmp_path), system=system, commands=list(COMMANDS), folder=folder
    )
    done = subprocess.run([sys.executable, "-c", session], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    assert codes == [[command[0], code] for command, code in COMMANDS.items()], done.stderr
    assert len((tmp_path / "messages.jsonl").read_bytes().splitlines()) == len(toy_rows())
    assert b"\r" not in (tmp_path / "messages.jsonl").read_bytes() + (tmp_path / "runs/recipe/advice.json").read_bytes()


def test_a_child_ends_with_its_parent_where_no_signal_of_linux_says_so(tmp_path):
    """And a child that ended by itself leaves nobody behind who would kill its number."""
    session = """
import subprocess, sys
sys.platform = "darwin"
from tunesmith.hardware import Child, run_child
assert run_child([sys.executable, "-c", "print('out')"]).stdout == "out\\n"
child = Child([sys.executable, "-c", "import time; time.sleep(600)"], stdout=subprocess.DEVNULL)
print(child.pid, child._watcher.pid, flush=True)
import os; os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", session], capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    for pid in done.stdout.split():  # the pipe of stdout is closed by now: both were waited for by nobody but the system
        assert _ends(int(pid)), f"process {pid} goes on"


def _ends(pid: int) -> bool:
    look = f"import os, time\nfor _ in range(300):\n    os.kill({pid}, 0); time.sleep(0.1)"
    return "ProcessLookupError" in subprocess.run([sys.executable, "-c", look], capture_output=True, text=True).stderr


def _guarded(tree: ast.Module) -> set[ast.AST]:
    """What stands under a question for the system: ``if sys.platform ...``."""
    questions = [
        node for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp) and "sys.platform" in ast.unparse(node.test)
    ]
    return {inner for question in questions for inner in ast.walk(question)}


def test_modules_of_posix_are_imported_where_the_system_was_asked_for():
    offenders = []
    for module in modules():
        guarded = _guarded(module.tree)
        for node in ast.walk(module.tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if POSIX_ONLY & set(names) and node not in guarded and module.relative not in LINUX:
                offenders.append(f"{module.at(node)}: {ast.unparse(node)} without a question for sys.platform")
    assert not offenders, "\n".join(offenders)


WRITES = {"w", "a", "x", "w+", "a+", "x+", "wt", "at"}


def test_text_is_read_and_written_in_one_encoding_with_one_line_end():
    """The encoding of a machine is what its owner chose, and Windows writes other line ends: hashes would differ."""
    offenders = []
    for module in modules():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            keys = {key.arg for key in node.keywords}
            modes = {argument.value for argument in node.args if isinstance(argument, ast.Constant)} & WRITES
            takes_path = isinstance(node.func, ast.Attribute)
            if name == "read_text" and "encoding" not in keys:
                offenders.append(f"{module.at(node)}: read_text without an encoding")
            if name in ("open", "fdopen") and modes and not {"encoding", "newline"} <= keys:
                offenders.append(f"{module.at(node)}: {name} for text without encoding and newline")
            if name == "write_text" and takes_path and not _is_ours(node) and not {"encoding", "newline"} <= keys:
                offenders.append(f"{module.at(node)}: write_text without encoding and newline")
    assert not offenders, "\n".join(offenders)


def _is_ours(node: ast.Call) -> bool:
    """``atomic.write_text(path, text)``, which settles both."""
    return dotted(node.func) == "atomic.write_text"


def test_nothing_on_this_machine_is_asked_by_way_of_a_proxy():
    """``urlopen`` and a client of httpx take the proxy of the environment, for loopback too where NO_PROXY does not say so."""
    offenders = []
    for module in modules():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            called = dotted(node.func)
            if called.endswith("urlopen") or (called.endswith("build_opener") and "ProxyHandler({})" not in ast.unparse(node)):
                offenders.append(f"{module.at(node)}: {called}")
            if called in ("httpx2.Client", "httpx2.AsyncClient") and "trust_env" not in {key.arg for key in node.keywords}:
                offenders.append(f"{module.at(node)}: {called} without trust_env")
    assert not offenders, "\n".join(offenders)


def test_no_two_files_differ_by_case_alone():
    """One of them would vanish on a disk of macOS or Windows; nor has any a name that Windows keeps for devices."""
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in ("src", "tests", "docs", "recipes", "examples")
        for path in (ROOT / folder).rglob("*")
    ]
    lower = [file.casefold() for file in files]
    assert len(set(lower)) == len(lower)
    devices = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
    strange = [
        file
        for file in files
        if any(part.split(".")[0] in devices or set(part) & set('<>:"|?*\\') for part in file.casefold().split("/"))
    ]
    assert not strange and SOURCE.is_dir(), strange
