"""A directory of many files that is exchanged as a whole: staged beside the old content, put in its place by one rename.

``atomic.atomic_directory`` renames one directory over another. Here the old content has files that stay and files that go,
readers may be in the middle of them, and the new content takes hours to make; so it is staged in ``.next/``, decided by one
rename to ``.ready/``, and moved in name by name, by this process or by the next one that writes.
"""

import shutil
from pathlib import Path

from tunesmith.rundir.atomic import flush
from tunesmith.rundir.records.stages import Journal, Parts

NEXT, READY, PREVIOUS = ".next", ".ready", ".previous"
JOURNAL = "whole.json"


def swap_in(directory: Path, inputs: Parts) -> None:
    """Put what was staged in ``directory/.next`` in the place of all that ``directory`` holds.

    One rename decides: before it the old content stands, after it the new one does, and ``finish_swap`` moves it in,
    now or when the run is opened next. The journal, which says what belongs to the new content, stays until
    ``forget_journal``, so that the books can be mended too.
    """
    staged = directory / NEXT
    Journal(inputs=inputs, names=tuple(sorted(entry.name for entry in staged.iterdir()))).write(staged / JOURNAL)
    flush(staged)
    staged.replace(directory / READY)
    finish_swap(directory)


def finish_swap(directory: Path) -> Journal | None:
    """Move in what was published, whatever moves are done already.

    Each move takes a name out of ``.ready`` for good, so a name that is not there is in its place, and the order of the
    moves does not matter. What the new content does not name goes first: it speaks of files that are about to change.

    Returns:
        The journal; None where nothing was published since ``forget_journal``.
    """
    ready, previous = directory / READY, directory / PREVIOUS
    if not (ready / JOURNAL).exists():
        return None
    journal = Journal.read(ready / JOURNAL)
    previous.mkdir(exist_ok=True)
    for entry in sorted(directory.iterdir()):
        if entry.name not in {READY, NEXT, PREVIOUS, *journal.names}:
            entry.replace(previous / entry.name)
    for name in journal.names:
        if (ready / name).exists():
            if (directory / name).exists():
                (directory / name).replace(previous / name)
            (ready / name).replace(directory / name)
    shutil.rmtree(previous)
    return journal


def forget_journal(directory: Path) -> None:
    """Forget the journal, once what was published is in the books."""
    shutil.rmtree(directory / READY, ignore_errors=True)
