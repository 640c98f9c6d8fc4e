"""A release, step by step, each of which refuses rather than goes on: nothing is tagged that was not built, checked and run.

    python tools/release.py 0.2.0 --dry-run     # every check, and nothing is written
    python tools/release.py 0.2.0               # and the tag v0.2.0, with the files in dist/

The version stands in one place, ``src/tunesmith/__init__.py``; the wheel and the site take it from there, the citation and the
changelog are held to it here. Before: set it, head the newest section of ``CHANGELOG.md`` with it, commit. After:
``git push origin v0.2.0`` and ``twine upload dist/*``, which nobody can take back, so a person does both.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from smoke import ROOT, Failure, smoke
from wheel import build, check_files, fresh

PLACES = {  # where the version stands beside the package, and what is left of it to be found
    "src/tunesmith/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
    "CHANGELOG.md": r"^## (\S+)",  # of the newest section, which may have no version yet
}
VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")


def check_version(version: str) -> None:
    """The version is one, and every file that names one names it.

    Raises:
        Failure: it is none, or a file names another.
    """
    if not VERSION.fullmatch(version):
        raise Failure(f"{version} is no version; expected three numbers, and a, b or rc with a number behind them at most")
    for place, pattern in PLACES.items():
        named = re.findall(pattern, (ROOT / place).read_text(encoding="utf-8"), re.MULTILINE)
        if not named or named[0] != version:
            raise Failure(f"{place} names {named[0] if named else 'no version'}, expected {version}; write it there and commit")


def check_changelog(version: str) -> None:
    """The section of the version says something.

    Raises:
        Failure: it has no line.
    """
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)[1]
    if not re.search(r"^- ", section, re.MULTILINE):
        raise Failure(f"CHANGELOG.md: the section {version} has no line that says what a user can now do")


def check_tree(version: str) -> None:
    """Nothing is uncommitted, and the version is not tagged yet.

    Raises:
        Failure: something is, or it is.
    """
    if changed := _git("status", "--porcelain").splitlines():
        raise Failure(f"{len(changed)} files are not committed ({changed[0].strip()}); commit them or put them aside")
    if f"v{version}" in _git("tag", "--list").split():
        raise Failure(f"v{version} is tagged already; take the next version")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 0:
        raise Failure(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def make_files(version: str, keep: Path | None) -> None:
    """Build, hold against the repository, check what an index will ask, install the core from the file and run it.

    Args:
        version: that the files have to carry.
        keep: where they stay; nowhere when None.

    Raises:
        Failure: one of these.
    """
    with tempfile.TemporaryDirectory(prefix="tunesmith-release-") as name:
        folder = Path(name)
        built = build(folder / "dist")
        if built.version != version:
            raise Failure(f"{built.wheel.name} carries {built.version}, expected {version}")
        check_files(built)
        checked = subprocess.run(
            [sys.executable, "-m", "twine", "check", "--strict", str(built.wheel), str(built.sdist)],
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if checked.returncode != 0:
            raise Failure(f"twine check: {(checked.stdout + checked.stderr).strip()[-2000:]}")
        for answer in smoke(fresh(folder / "env", built.wheel), "core", version):
            print(f"  ok: {answer.command}")
        if keep is not None:
            shutil.rmtree(keep, ignore_errors=True)
            shutil.copytree(folder / "dist", keep)


def release(version: str, dry_run: bool) -> None:
    """Every step of a release.

    Raises:
        Failure: one does not hold; what comes after it was not done.
    """
    keep = None if dry_run else ROOT / "dist"
    steps: dict[str, Callable[[], None]] = {
        "one version in all files": lambda: check_version(version),
        "the changelog says what is new": lambda: check_changelog(version),
        "a clean tree and a new tag": lambda: check_tree(version),
        "sdist and wheel, checked and run": lambda: make_files(version, keep),
    }
    for name, step in steps.items():
        step()
        print(f"ok: {name}", flush=True)
    if dry_run:
        print(f"dry run: v{version} could be tagged; nothing was written")
        return
    _git("tag", "--annotate", f"v{version}", "--message", f"tunesmith {version}")
    print(f"tagged v{version}; the files are in dist/. Now: git push origin v{version}, and twine upload dist/*")


def main() -> None:
    """Carry out a release, or say what is in its way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("version", help="such as 0.2.0")
    parser.add_argument("--dry-run", action="store_true", help="check everything and write nothing")
    given = parser.parse_args()
    try:
        release(given.version, given.dry_run)
    except Failure as error:
        sys.exit(f"refused: {error}")


if __name__ == "__main__":
    main()
