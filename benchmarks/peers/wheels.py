"""The packages of a race on a GPU as one small file, for a machine that can install nothing.

    python benchmarks/peers/wheels.py gather OUT.tar.xz --python 3.12 --cuda 130   # here, where the package index is
    python benchmarks/peers/wheels.py unpack OUT.tar.xz FOLDER                     # there

``gather`` downloads the wheels of ``wheels.list`` for a Linux machine of that Python, unpacks them, leaves out what a
training step never reads, and packs them into one archive. ``unpack`` makes FOLDER/site-packages/common, .../trl and
.../unsloth: a contestant's environment is that machine's own Python (with its torch, triton and numpy) and two of them on
PYTHONPATH (``environment``). The name is not for show: dill, and so datasets, writes modules out by value that lie elsewhere.

Wheels one by one, each stripped, would be some 105 MB. In one archive of 59 the two releases of transformers, which are
nearly the same text, cost one. Refused: virtual environments on that machine. They take a minute of a lease, and isolate
from nothing, since torch has to come from outside of them.

Standard library and pip only.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LIST = Path(__file__).with_name("wheels.list")
COMMON = "common"
SITE = "site-packages"
PEERS = ("trl", "unsloth")
LIMIT = 60_000_000  # bytes of the archive: what a machine without a network is given at a time
PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2_5")
# What is left out, by its path in a tree of packages. A pattern says why it may.
UNREAD = re.compile(
    r"^pyarrow/_(flight|s3fs|gcsfs|azurefs|hdfs|orc|dataset_orc|pyarrow_cpp_tests|(dataset_)?parquet_encryption)\."
    r"|^pyarrow/lib(arrow_flight|arrow_s3|arrow_python_flight|arrow_python_parquet_encryption)\."  # _substrait is linked
    r"|^pyarrow/(include|src|tests)/"
    r"|^pyarrow/libarrow_python\.so(\.\d+\.\d+\.\d+)?$"  # two more copies of libarrow_python.so.NUMBER
    r"|^(pandas|diffusers|torchao|accelerate|aiohttp|numpy|peft|unsloth_zoo|xformers)/(tests|test_utils/scripts|benchmarks)/"
    r"|^(studio|unsloth_cli|test|tests|benchmarks|examples|docs)/"  # Unsloth's web page; other packages' strays
    r"|^PIL/_(avif|imagingft)|^pillow\.libs/lib(avif|harfbuzz|freetype)"
    r"|\.pyx$|\.pxd$|\.pyi$|\.h$|\.cuh?$|\.c$|\.cpp$"
)
BITSANDBYTES = re.compile(r"^bitsandbytes/libbitsandbytes_(cuda|rocm|xpu|hpu)")


def sections(text: str) -> dict[str, list[str]]:
    """Requirements by the section of the list that they stand in."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            found[name] = []
        elif line and not line.startswith("#"):
            found[name].append(line)
    return found


def environment(folder: Path, peer: str) -> dict[str, str]:
    """Variables under which a Python has a peer's packages; ours are TRL's."""
    return {"PYTHONPATH": os.pathsep.join(str(folder / SITE / part) for part in (peer, COMMON))}


def is_read(path: str, cuda: str) -> bool:
    """Whether a file of a tree of packages may be read in a training step on that release of CUDA (``130``)."""
    if BITSANDBYTES.match(path):
        return path.startswith(f"bitsandbytes/libbitsandbytes_cuda{cuda}.")
    return not UNREAD.search(path)


def gather(archive: Path, python: str, cuda: str) -> int:
    """Download, strip, pack; returns the bytes of the archive.

    Raises:
        SystemExit: no library of bitsandbytes for that release of CUDA.
    """
    with tempfile.TemporaryDirectory(prefix="peers-wheels-") as name:
        folder = Path(name)
        for section, requirements in sections(LIST.read_text(encoding="utf-8")).items():
            download(requirements, folder / "wheels" / section, python)
            for wheel in sorted((folder / "wheels" / section).glob("*.whl")):
                unpack_wheel(wheel, folder / "tree" / section, cuda)
        if not list((folder / "tree" / COMMON / "bitsandbytes").glob("*_cuda*.so")):
            raise SystemExit(f"bitsandbytes has no library for CUDA {cuda}; try --cuda 130, 132, 128 or 126")
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for path in sorted((folder / "tree").rglob("*"), key=lambda path: together(path.relative_to(folder / "tree"))):
                if path.is_file():
                    tar.add(path, str(path.relative_to(folder / "tree")))
    return archive.stat().st_size


def together(path: Path) -> tuple[str, ...]:
    """An order in which a file stands beside its other release, so that the second costs nothing."""
    return (path.suffix, *path.parts[1:], path.parts[0])


def download(requirements: list[str], folder: Path, python: str) -> None:
    """Wheels of these requirements and of nothing that they require."""
    platforms = [f"manylinux_{glibc}_x86_64" for glibc in PLATFORMS] + ["manylinux2014_x86_64", "manylinux1_x86_64", "any"]
    tags = [
        "--implementation",
        "cp",
        *(word for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)),
    ]
    tags += [word for platform in platforms for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, "--only-binary", ":all:", "--python-version", python, *tags, *requirements], check=True)


def unpack_wheel(wheel: Path, tree: Path, cuda: str) -> None:
    """The files of a wheel that are read, as an installer lays them."""
    with zipfile.ZipFile(wheel) as opened:
        for entry in opened.infolist():
            path = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", entry.filename)
            if entry.is_dir() or re.match(r"^[^/]+\.data/", path) or not is_read(path, cuda):
                continue
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(opened.read(entry))


def unpack(archive: Path, folder: Path) -> None:
    """Lay the trees."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder / SITE, filter="data")


def main() -> None:
    """Gather or unpack."""
    parser = argparse.ArgumentParser(description="Carry the packages of a race to a machine that can install nothing.")
    commands = parser.add_subparsers(dest="command", required=True)
    gathering = commands.add_parser("gather", help="download and strip")
    gathering.add_argument("archive", type=Path)
    gathering.add_argument(
        "--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="that machine's Python"
    )
    gathering.add_argument("--cuda", default="130", help="release of CUDA that its torch was built for, without the dot")
    unpacking = commands.add_parser("unpack", help="lay the trees of packages")
    unpacking.add_argument("archive", type=Path)
    unpacking.add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.command == "unpack":
        unpack(given.archive, given.folder)
        return
    size = gather(given.archive, given.python, given.cuda)
    print(f"{given.archive}: {size / 1e6:.1f} MB")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT / 1e6:.0f} MB: it has to be carried in two parts")


if __name__ == "__main__":
    main()
