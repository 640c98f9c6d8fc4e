"""What two runs of one recipe must agree on: every file, byte for byte, but for what was measured.

A record in JSON loses the figures of the clock and of the memory, by their names; the page has them in words, so it loses its
numbers. What tells of the process and not of its result (events, the lock, the books of stages and of readings) is not
compared byte by byte: of ``stages.json`` the names of stages and outputs are.
"""

import json
import re
from pathlib import Path
from typing import Any

MEASURED = {"seconds", "ms", "tokens_per_second", "resident", "at", "began", "peak_bytes", "mtime_ns", "ctime_ns"}
MEASURED |= {"measured", "predicted"}  # memory of the process that trained last, which may have had a few steps to do
HASHED = ("outputs.jsonl", "scores.json", "training.json", "selection.json")  # whose hash follows from what was measured
TIMES = rb'<tr><th scope="row">[^<]*</th><td>#</td><td># GB</td></tr>\n'
OF_THE_PROCESS = {"events.jsonl", ".lock"}


def content(directory: Path) -> dict[str, bytes]:
    """The files of a run by their path, without what was measured."""
    files: dict[str, bytes] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in OF_THE_PROCESS:
            files[path.relative_to(directory).as_posix()] = _content(path)
    return files


def differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Every file that is not what it is in an undisturbed run."""
    lines = [f"{name}: is not there" for name in expected if name not in found]
    lines += [f"{name}: is left over" for name in found if name not in expected]
    lines += [
        f"{name}: {_first(expected[name], found[name])}"
        for name in expected
        if expected[name] != found.get(name, expected[name])
    ]
    return sorted(lines)


def _content(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.name == "stages.json":
        return _books(raw)
    if "readings" in path.parts:  # a reading that nobody saw is counted, so that none is lost; each is there at least once
        return b"\n".join(sorted({_without(line) for line in raw.splitlines()}))
    if path.suffix == ".json":
        return _without(raw)
    if path.suffix == ".jsonl":
        return b"\n".join(_without(line) for line in raw.splitlines())
    if path.suffix == ".html":
        raw = re.sub(rb"\d[\d.,:]*( (m|)s\b)?", b"#", raw)
        return re.sub(TIMES, b"", raw)  # in the order in which stages were made, and none of the page's own the first time
    return raw


def _books(raw: bytes) -> bytes:
    stages = json.loads(raw)["stages"]
    return json.dumps({name: sorted(record["outputs"]) for name, record in sorted(stages.items())}).encode()


def _without(raw: bytes) -> bytes:
    try:
        return json.dumps(_stripped(json.loads(raw)), sort_keys=True).encode()
    except ValueError:
        return raw


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(entry) for key, entry in value.items() if key not in MEASURED and not key.endswith(HASHED)}
    return [_stripped(entry) for entry in value] if isinstance(value, list) else value


def _first(expected: bytes, found: bytes) -> str:
    """Where two contents differ first."""
    at = next((n for n, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), min(len(expected), len(found)))
    around = slice(max(0, at - 40), at + 40)
    return f"differs at byte {at:,}: {expected[around]!r} became {found[around]!r}"
