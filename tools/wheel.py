"""Build what is published, the sdist and from it the wheel, and run the wheel as it will be installed.

    make wheel          # what CI runs: python tools/wheel.py --beside .venv/bin/python

An editable installation hides what a wheel lacks: every file of the repository is there. So the wheel is made from the sdist,
its files are held against those of the repository, it is installed from the file into an environment of its own, and answers
there (``smoke.py``). Its dependencies come from the index for the core; for ``[all]``, three gigabytes, those of an environment
that is there already are taken over, without the package itself. ``matrix.py`` installs everything for real.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

from smoke import ROOT, Failure, smoke

PACKAGE = "src/tunesmith/"
# What a distribution is built, checked and read from; a sdist that lacks one is refused.
IN_SDIST = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", "docs/README.md", "tests/shared.py")
LARGEST = {"wheel": 5_000_000, "sdist": 10_000_000}  # bytes; more is a file that does not belong there


class Built(NamedTuple):
    """The files of a build, and the version that they carry."""

    sdist: Path
    wheel: Path
    version: str


def build(out: Path) -> Built:
    """Build the sdist of the working tree and the wheel of the sdist into an empty folder.

    Raises:
        Failure: it cannot be built.
    """
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], capture_output=True, text=True, encoding="utf-8"
    )
    if done.returncode != 0:
        raise Failure(f"python -m build:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Built(sdist, wheel, wheel.name.split("-")[1])


def check_files(built: Built) -> None:
    """Hold the files of wheel and sdist against those of the repository that git does not ignore.

    Raises:
        Failure: one is lacking, or one is there that is none of them, or a distribution is too large.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, encoding="utf-8")
    tracked = set(filter(None, listed.stdout.split("\0")))
    with zipfile.ZipFile(built.wheel) as wheel:
        files = {f"src/{name}" for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    wanted = {name for name in tracked if name.startswith(PACKAGE)}
    _compare("wheel", files, wanted)
    with tarfile.open(built.sdist) as sdist:
        members = {member.name.partition("/")[2] for member in sdist if member.isfile()} - {"PKG-INFO"}
    _compare("sdist", members, wanted | {name for name in tracked if name in IN_SDIST} | (members & tracked))
    if lacking := set(IN_SDIST) - members:
        raise Failure(f"the sdist lacks {', '.join(sorted(lacking))}")
    for file, kind in ((built.wheel, "wheel"), (built.sdist, "sdist")):
        if (size := file.stat().st_size) > LARGEST[kind]:
            raise Failure(f"{file.name}: {size:,} bytes, expected at most {LARGEST[kind]:,}: which file does not belong there?")


def _compare(kind: str, files: set[str], wanted: set[str]) -> None:
    if lacking := wanted - files:
        raise Failure(f"the {kind} lacks {len(lacking)} files: {', '.join(sorted(lacking)[:5])}")
    if more := files - wanted:
        raise Failure(f"the {kind} has {len(more)} files that git does not know: {', '.join(sorted(more)[:5])}")


def fresh(folder: Path, wheel: Path, extra: str = "", beside: Path | None = None) -> Path:
    """A new environment with the wheel.

    Args:
        folder: where it is made.
        wheel: what is installed, from the file.
        extra: of it; nothing for the core.
        beside: Python of an environment whose packages are there too; nothing is then fetched.

    Returns:
        Its Python.

    Raises:
        Failure: it cannot be installed.
    """
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    what = f"{wheel}[{extra}]" if extra else str(wheel)
    options = ["-q", "--disable-pip-version-check", "--no-warn-script-location", "-c", str(ROOT / "constraints.txt")]
    if beside is not None:
        site = subprocess.run(
            [beside, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, check=True, text=True
        )
        own = next(folder.glob("lib*/**/site-packages"))
        # A line of a .pth file is a folder; the .pth files in it, the one of an editable installation too, are not read.
        (own / "beside.pth").write_text(site.stdout.strip() + "\n", encoding="utf-8")
        what, options = str(wheel), [*options, "--no-deps"]
    done = subprocess.run([python, "-m", "pip", "install", *options, what], capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 0:
        raise Failure(f"pip install {what}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return python


def main() -> None:
    """Build, compare, install, run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--beside", type=Path, help="Python of an environment with the packages of [all]; else the core alone")
    parser.add_argument("--out", type=Path, help="an empty folder where the built files stay")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="tunesmith-wheel-") as name:
            folder = Path(name)
            built = build(given.out or folder / "dist")
            check_files(built)
            print(f"built {built.sdist.name} and {built.wheel.name}, {built.wheel.stat().st_size:,} bytes")
            for extra, beside in (("core", None), *([("all", given.beside)] if given.beside else [])):
                python = fresh(folder / extra, built.wheel, beside=beside)
                for answer in smoke(python, extra, built.version):
                    print(f"[{extra}] ok: {answer.command}", flush=True)
    except Failure as error:
        sys.exit(f"failed: {error}")


if __name__ == "__main__":
    main()
