"""Files that a verb writes at a user's word: never one that it reads, no device, and nobody else's.

A path typed twice by mistake must not cost the rows. What stands there already is replaced where it is what the same option
writes, told by how it begins; anything else is refused.
"""

from collections.abc import Iterable
from pathlib import Path

from tunesmith.errors import DataError

PAGE = b"<!doctype html"  # beginning of a page
SET_ASIDE = b'{"place":'  # of a file of rows set aside


def refuse_target(target: Path, sources: Iterable[str | Path], begins: bytes | None = None) -> None:
    """Refuse a path that must not be written; before anything is read or written.

    Args:
        target: the file to be written.
        sources: what the verb reads or writes otherwise: files, directories, ids of data sets.
        begins: how a file of this kind begins; by default one that is there is replaced, whatever it is.

    Raises:
        DataError: it is one of the sources or inside of one, no regular file, or holds something else.
    """
    path = target.resolve()
    if path.exists() and not path.is_file():
        raise DataError(f"{target}: is no regular file", "name another file")
    for source in map(Path, sources):
        inside = source.is_dir() and path.exists() and path.is_relative_to(source.resolve())
        if path == source.resolve() or inside:
            raise DataError(f"{target}: is also the source, or another file of this command", "write to another file")
    if begins is not None and path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(begins)).lower() != begins:
                raise DataError(f"{target}: is there already and holds something else", "write to another file, or remove it")
