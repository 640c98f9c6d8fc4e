"""sha256 of files, hashed once while their size and times stay what they were.

A base model of 16 GB takes half a minute to hash, and ``tunesmith status`` has a second. So a large file's hash is kept in the
cache under its path, with size, modification and change time; the last one no program can set. A file that is rewritten with
the same size and an old modification time is hashed anew all the same.

A process remembers every hash by the same facts, since a run asks for those of its base at each stage. What was changed less
than a moment ago is not remembered: a second change within one tick of the file system's clock would leave the times as they
are (git calls such an entry racily clean).
"""

import contextlib
import time
from pathlib import Path

from tunesmith import hardware
from tunesmith.rundir.atomic import fingerprint, read_json, sha256_file, write_json
from tunesmith.rundir.records.stages import FileState

LARGE = 2**26  # bytes from which on a hash is worth keeping in the cache
TICK_NS = 2_000_000_000  # the coarsest clock of a file system in use (FAT)
_memory: dict[tuple[Path, int, int, int], str] = {}


def file_state(path: Path, known: FileState | None = None) -> FileState:
    """Hash and times of a file.

    Args:
        known: an earlier state; taken as it is where size and times are the same.

    Raises:
        OSError: no such file.
    """
    facts = path.stat()
    times = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    if known is not None and times == (known.bytes, known.mtime_ns, known.ctime_ns):
        return known
    return FileState(sha256=_sha256(path, times), bytes=times[0], mtime_ns=times[1], ctime_ns=times[2])


def content_hash(path: Path) -> str:
    """sha256 of a file, from the cache where it is large and unchanged."""
    return file_state(path).sha256


def _sha256(path: Path, times: tuple[int, int, int]) -> str:
    place = path.resolve()
    if (known := _memory.get((place, *times))) is not None:
        return known
    settled = time.time_ns() - times[2] > TICK_NS
    digest = _cached(place, times) if settled and times[0] >= LARGE else sha256_file(path)
    if settled:
        _memory[(place, *times)] = digest
    return digest


def _cached(place: Path, times: tuple[int, int, int]) -> str:
    """The hash in the cache, made when need be."""
    cached = hardware.cache_dir() / "hashes" / f"{fingerprint(str(place))[:24]}.json"
    if cached.exists():
        entry = read_json(cached)
        if entry["times"] == list(times):
            return entry["sha256"]
    digest = sha256_file(place)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, and nothing else
        write_json(cached, {"times": times, "sha256": digest})
    return digest
