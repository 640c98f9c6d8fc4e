"""Files that appear whole or not at all, and their hashes.

A file is written under a temporary name in the same directory, flushed to the disk, and renamed; so is a directory. A reader
never sees half of either, whatever kills the writer. A disk that fills up is an error of ours that names the file
(``RunError``), in every stage, because every stage writes through here or through ``full_disk_named``.

Refused: a journal or a database, which other tools could not read. Cost: an fsync a file.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from tunesmith.errors import RunError, TunesmithError
from tunesmith.rundir.file_lock import read_at

LOOKS, PAUSE = 20, 0.05  # at a file that somebody has open on Windows, and seconds between two
_encode = json.JSONEncoder(ensure_ascii=False).encode


def fingerprint(*parts: Any) -> str:
    """sha256 of JSON-able parts, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Parse a JSON file of our own."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with writing_file(path) as file:
        file.write(text.encode())


def write_lines(path: Path, objects: Iterable[object]) -> None:
    """Write a JSONL file whole or not at all."""
    with writing_lines(path) as write:
        write(objects)


@contextmanager
def writing_lines(path: Path) -> Generator[Callable[[Iterable[object]], None], None, None]:
    """A JSONL file that is written bit by bit and appears when the block ends well, or not at all."""
    with writing_file(path) as file:
        yield lambda objects: file.writelines(f"{_encode(value)}\n".encode() for value in objects)


@contextmanager
def writing_file(path: Path) -> Generator[BinaryIO, None, None]:
    """A file that is written bit by bit and appears when the block ends well, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with ExitStack() as failing:
        failing.callback(temporary.unlink, missing_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _put(temporary, path)
        failing.pop_all()


def _put(temporary: Path, path: Path) -> None:
    """Rename a file to its name. On Windows that fails while somebody has the old one open: a page, a scanner of viruses."""
    for _ in range(LOOKS if sys.platform == "win32" else 0):
        try:
            temporary.replace(path)
        except PermissionError:
            time.sleep(PAUSE)
        else:
            return
    temporary.replace(path)


@contextmanager
def atomic_directory(target: Path) -> Generator[Path, None, None]:
    """A directory to fill that takes ``target``'s place when the block ends well, and vanishes when it does not.

    A directory that holds files cannot be renamed over another. So the old one is renamed aside, the new one in, and only
    then the old one removed; a kill between the two renames leaves the old one aside, where ``recover_directory`` finds it.
    """
    recover_directory(target)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        flush(temporary)
        if target.exists():
            target.replace(_aside(target))
        temporary.replace(target)
        shutil.rmtree(_aside(target), ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_directory(target)


def recover_directory(target: Path) -> None:
    """Undo or finish a ``atomic_directory`` that was killed: the old one comes back where the new one is not there."""
    if _aside(target).exists():
        if target.exists():
            shutil.rmtree(_aside(target))
        else:
            _aside(target).replace(target)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def flush(path: Path) -> None:
    """Wait until the disk has a file, or every file of a directory."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file() and not file.is_symlink():
            with file.open("r+b" if sys.platform == "win32" else "rb") as opened:  # Windows flushes for a writer alone
                os.fsync(opened.fileno())


def remove_leftovers(directory: Path) -> None:
    """Remove what writers that were killed have left under temporary names, here and below; nobody else may be writing."""
    for path in sorted(directory.rglob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Bytes that are free where a path lies or will lie."""
    place = next(place for place in (path, *path.absolute().parents) if place.exists())
    return shutil.disk_usage(place).free


def cut_torn_line(descriptor: int) -> None:
    """Cut off what a writer left of a file of lines that was killed within one.

    Args:
        descriptor: open for reading and writing.
    """
    end = size = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65_536)
        last = read_at(descriptor, end - start, start).rfind(b"\n")
        if last >= 0:
            end = start + last + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that the disk is full, also in the words of a child process, of Rust, of SQLite and of NumPy."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    text = str(error)
    words = (os.strerror(errno.ENOSPC), "os error 28", "disk is full", "disk I/O error")
    words += (os.strerror(errno.EFBIG), "os error 27")  # a file system's limit on one file, or a user's
    return any(word in text for word in words) or ("requested and" in text and "written" in text)


class full_disk_named:
    """A disk that fills up within the block is an error of ours that says where and what to do.

    A class, because what libraries raise then has many types and no common one but ``Exception``.

    Raises:
        RunError: the disk is full.
    """

    def __init__(self, directory: Path, what: str):
        self._directory = directory
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and not isinstance(error, TunesmithError) and is_full_disk(error):
            raise RunError(
                f"{self._directory}: {self._what}: the disk is full ({error})",
                "make room and give the same command again; what was finished stays",
            ) from error
