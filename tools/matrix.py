"""Install the wheel on every Python that is here, with core, [train] and [all], and resolve it for every system that is not.

    make matrix                                   # python tools/matrix.py --out benchmarks/results/installs-DATE.json
    python tools/matrix.py --python python3.14 --extra core --wheel dist/tunesmith-0.1.0-py3-none-any.whl

Two kinds of rows. *Installed*: a fresh environment, the wheel from the file, its dependencies from the index within
``constraints.txt``, and then ``smoke.py``. *Resolved*: for macOS, Windows, ARM and Pythons that are not on this machine the
resolver of uv looks for a wheel of every dependency by its tags, so a package that would have to be compiled there, or is not
to be had, is named; nothing runs. A row says which of the two it is, and a page says no more than its row.

Rows of an earlier call with the same ``--out`` stay, unless this one makes them anew: a Python in a container adds its own.
Sources: PEP 425 and PEP 600 on tags; uv, "Resolution, platform-specific".
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smoke import EXTRAS, ROOT, Failure, environment, smoke
from wheel import build

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# uv's names of systems; of Linux the oldest C library for which every dependency of [all] has a wheel.
SYSTEMS = {
    "Linux, x86-64, glibc 2.31": "x86_64-manylinux_2_31",
    "Linux, ARM64, glibc 2.31": "aarch64-manylinux_2_31",
    "macOS 14, Apple silicon": "aarch64-apple-darwin",
    "macOS 14, Intel": "x86_64-apple-darwin",
    "Windows, x86-64": "x86_64-pc-windows-msvc",
}
SOURCE_ONLY = ("rouge-score",)  # pure Python of which nobody has published a wheel


@dataclass(frozen=True)
class Row:
    """An installation or a resolution.

    Attributes:
        kind: ``installed`` or ``resolved``.
        python: version, to the patch where it ran.
        system: that it ran on, or was resolved for.
        extra: ``core``, ``train`` or ``all``.
        result: ``ok``, or what went wrong.
        packages: that were installed or chosen.
        megabytes: of the environment; None where nothing was installed.
        seconds: of the installation, downloads included.
        date: of the day.
    """

    kind: str
    python: str
    system: str
    extra: str
    result: str
    packages: int
    megabytes: int | None
    seconds: float
    date: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What is replaced by a newer row."""
        return self.kind, ".".join(self.python.split(".")[:2]), self.system, self.extra


def uv_program() -> Path:
    """The program uv, beside this Python or on the path.

    Raises:
        Failure: it is not there.
    """
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise Failure("uv is not installed; run: pip install uv")
    return Path(found)


def uv(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run uv; its settings come from this machine's environment."""
    command = [str(uv_program()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=ROOT, env={**os.environ, **more})


def pythons() -> list[str]:
    """Pythons of ``PYTHONS`` on this machine, one a version."""
    listed = uv("python", "list", "--only-installed", "--output-format", "json")
    known: dict[str, str] = {}
    for entry in json.loads(listed.stdout or "[]"):
        version = ".".join(entry["version"].split(".")[:2])
        if version in PYTHONS and entry["implementation"] == "cpython" and "t" not in entry["version"]:
            known.setdefault(version, entry["path"])
    return [known[version] for version in PYTHONS if version in known]


def install(python: str, extra: str, wheel: Path) -> Row:
    """Install the wheel into a fresh environment and run it there."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-matrix-") as name:
        folder = Path(name) / "env"
        began = time.monotonic()
        made = uv("venv", "-q", "--python", python, str(folder))
        inside = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        what = str(wheel) if extra == "core" else f"{wheel}[{extra}]"
        options = ("-q", "--python", str(inside), "-c", "constraints.txt")
        done = uv("pip", "install", *options, what) if made.returncode == 0 else made
        seconds = time.monotonic() - began
        result, version, packages = done.stderr.strip()[-1000:], python, 0
        if done.returncode == 0:
            version = _version(inside)
            packages = len(uv("pip", "list", "-q", "--format", "freeze", "--python", str(inside)).stdout.splitlines())
            result = _answers(inside, extra, wheel.name.split("-")[1])
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
        system = f"{platform.system()}, {platform.machine()}, {' '.join(platform.libc_ver())}"
        return Row("installed", version, system, extra, result, packages, size // 10**6, round(seconds, 1), _today())


def _version(python: Path) -> str:
    script = "import platform; print(platform.python_version())"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def _answers(python: Path, extra: str, version: str) -> str:
    try:
        for answer in smoke(python, extra, version):
            print(f"  ok: {answer.command}", flush=True)
    except Failure as error:
        return str(error)[:2000]
    return "ok"


def as_tools(wheel: Path) -> Iterator[Row]:
    """The two lines by which uv runs a program without an environment of one's own."""
    with tempfile.TemporaryDirectory(prefix="tunesmith-tool-") as name:
        places = {"UV_TOOL_DIR": f"{name}/tools", "UV_TOOL_BIN_DIR": f"{name}/bin"}
        began = time.monotonic()
        done = uv("tool", "install", "-q", str(wheel), **places)
        program = Path(name) / "bin" / ("tunesmith.exe" if sys.platform == "win32" else "tunesmith")
        if done.returncode == 0:
            command, place = [str(program), "--version"], environment(Path(name))
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=place)
        yield _tool("uv tool install", done, began)
        began = time.monotonic()
        yield _tool("uvx --from", uv("tool", "run", "-q", "--from", str(wheel), "tunesmith", "--version", **places), began)


def _tool(name: str, done: subprocess.CompletedProcess[str], began: float) -> Row:
    result = "ok" if done.returncode == 0 else done.stderr.strip()[-1000:]
    return Row("installed", name, platform.system(), "core", result, 0, None, round(time.monotonic() - began, 1), _today())


def resolve(system: str, python: str, extra: str) -> Row:
    """Find a wheel of every dependency for another system."""
    began = time.monotonic()
    options = ["--python-platform", SYSTEMS[system], "--python-version", python, "--only-binary", ":all:"]
    for package in SOURCE_ONLY:
        options += ["--no-binary", package]
    if extra != "core":
        options += ["--extra", extra]
    done = uv("pip", "compile", "-q", *options, "pyproject.toml", MACOSX_DEPLOYMENT_TARGET="14.0")
    cause = re.search(r"cause: (.*?)(?:\n\n|\Z)", done.stderr, re.DOTALL)
    reason = " ".join((cause[1] if cause else done.stderr).split())
    packages = len(re.findall(r"^[\w.-]+==", done.stdout, re.MULTILINE))
    result = "ok" if done.returncode == 0 else reason
    return Row("resolved", python, system, extra, result, packages, None, round(time.monotonic() - began, 1), _today())


def _today() -> str:
    return datetime.datetime.now().astimezone().date().isoformat()


def rows_of(given: argparse.Namespace, wheel: Path) -> Iterator[Row]:
    """All rows that were asked for, as they come."""
    for python in given.python or pythons():
        for extra in given.extra:
            yield install(python, extra, wheel)
    if not given.python:
        yield from as_tools(wheel)
    if not given.no_resolve:
        for system in SYSTEMS:
            for python in PYTHONS:
                for extra in given.extra:
                    yield resolve(system, python, extra)


def main() -> None:
    """Make the rows, print each, keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--python", action="append", help="a Python to install on; every one that is found when not given")
    parser.add_argument("--extra", action="append", choices=EXTRAS, help="all three when not given")
    parser.add_argument("--wheel", type=Path, help="built before; built here when not given")
    parser.add_argument("--no-resolve", action="store_true", help="leave the other systems out")
    parser.add_argument("--out", type=Path, help="JSON file in which the rows are kept")
    given = parser.parse_args()
    given.extra = given.extra or list(EXTRAS)
    known = [Row(**entry) for entry in json.loads(given.out.read_text())] if given.out and given.out.exists() else []
    bad = 0
    try:
        with tempfile.TemporaryDirectory(prefix="tunesmith-dist-") as folder:
            wheel = given.wheel.absolute() if given.wheel else build(Path(folder)).wheel
            for row in rows_of(given, wheel):
                print(
                    f"{row.kind} {row.python:16} {row.system:28} {row.extra:6} {row.seconds:7.1f} s  {row.result[:300]}",
                    flush=True,
                )
                bad += row.kind == "installed" and row.result != "ok"
                known = [other for other in known if other.key != row.key] + [row]
                if given.out:
                    given.out.write_text(json.dumps([dataclasses.asdict(entry) for entry in known], indent=1) + "\n")
    except Failure as error:
        sys.exit(f"failed: {error}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
