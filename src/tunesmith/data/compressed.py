"""Files of text that are compressed: gzip, zstd, bzip2, xz, and a zip archive that holds one file of rows.

Each is read as a stream, so that nothing is unpacked to disk or held in memory. A zip archive with several files is refused
with their names: which of them are rows is not for a program to say.
"""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow

from tunesmith.errors import DataError

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
ARCHIVE = ".zip"
_HIDDEN = ("__MACOSX/", ".")


def decompressed(raw: BinaryIO, path: Path) -> Any:
    """The stream of a file's text; the file itself where its name does not end in one of ``SUFFIXES`` or ``.zip``.

    Raises:
        DataError: a zip archive that holds no file or several, or asks for a password.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if suffix == ".bz2":
        return bz2.BZ2File(raw)
    if suffix == ".xz":
        return lzma.LZMAFile(raw)
    if suffix == ".zst":
        # Not zstandard's own reader: it takes a frame that is cut short for the end of the file.
        return pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")
    if suffix == ARCHIVE:
        archive = zipfile.ZipFile(raw)
        member = _member(archive, path)
        if member.flag_bits & 1:
            raise DataError(f"{path}: {member.filename} asks for a password", "unpack it, and name the file")
        return archive.open(member)
    return raw


def name_inside(path: Path) -> str:
    """The name of the one file in a zip archive.

    Raises:
        DataError: the archive is damaged, or holds no file or several.
    """
    with faults(path), zipfile.ZipFile(path) as archive:
        return PurePosixPath(_member(archive, path).filename).name


def _member(archive: zipfile.ZipFile, path: Path) -> zipfile.ZipInfo:
    files = [file for file in archive.infolist() if not file.is_dir() and not file.filename.startswith(_HIDDEN)]
    if len(files) != 1:
        names = ", ".join(file.filename for file in files[:10]) or "nothing"
        raise DataError(f"{path}: {len(files)} files in the archive, expected one: {names}", "unpack it, and name one of them")
    return files[0]


@contextmanager
def faults(path: Path) -> Generator[None]:
    """Faults of compressed files as errors of ours.

    Raises:
        DataError: the file is damaged or cut short.
    """
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{path}: the compressed file is damaged or cut short ({error})", "copy it again") from error
