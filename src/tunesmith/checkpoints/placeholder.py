"""What lies in the place of weights and is none: a Git LFS pointer, a web page.

Each is what a download leaves that went wrong in a known way, and each has its own remedy. A reader of the format says of both
that bytes are wrong, which sends people to look for a damaged disk.
"""

import shlex
from pathlib import Path

from tunesmith.errors import ModelError

BEGINNING = 512  # bytes; a pointer is shorter
POINTER = b"version https://git-lfs"
PAGES = (b"<!doctype html", b"<html")


def refuse_placeholder(path: Path) -> None:
    """Refuse a file that is not what its name says, by what it is.

    Raises:
        ModelError: a Git LFS pointer, or a web page.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        beginning = file.read(BEGINNING)
    if beginning.startswith(POINTER):
        command = shlex.join(["git", "-C", str(path.parent), "lfs", "pull"])
        raise ModelError(f"{path}: a Git LFS pointer, which stands for the file and is not the file", f"run: {command}")
    if beginning.lstrip().lower().startswith(PAGES):
        raise ModelError(
            f"{path}: a web page, saved under the file's name",
            "get the file again: its own address has /resolve/ where that of its page has /blob/, and may need a login",
        )
