"""A lock on an open file that the system gives back when its holder dies, on POSIX and on Windows.

``flock`` where there is one: it locks the file, for readers too if one asks for that, and stands in nobody's way. Windows locks
bytes, and nobody can read a locked one, so there one byte far behind every content is locked; a lock of readers alone there is
none by ``msvcrt``, so whoever only looks takes the whole one and lets go at once.

Both are held by the open file: closing it ends the lock, and so does the end of the process, however that comes. Refused: the
package filelock (an exclusive lock alone, in a file that holds nothing; here the file says who holds it); ``fcntl.lockf``,
which a process loses when it closes any other descriptor of the file.

Sources: flock(2); LockFile and ``_locking`` in Microsoft's documentation of the C library.
"""

import os
import sys
import time

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FAR = 2**30  # where the byte lies that is locked on Windows: behind every content, within what a C long counts
PAUSE = 0.05  # seconds between two looks of who waits


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file if nobody else holds it.

    Args:
        descriptor: of the open file; closing it gives the lock back.
        shared: with others who ask for the same; on Windows nobody shares.

    Returns:
        Whether the lock is held now.

    Raises:
        OSError: the file system has no locks.
    """
    if sys.platform == "win32":
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int) -> None:
    """Lock an open file, and wait for whoever holds it.

    Raises:
        OSError: the file system has no locks.
    """
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    else:
        while not try_lock(descriptor):
            time.sleep(PAUSE)


def read_at(descriptor: int, size: int, start: int) -> bytes:
    """At most so many bytes from a place on, as ``os.pread``, which Windows lacks; the position moves."""
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, size)
