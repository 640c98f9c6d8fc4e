"""Write any format as OpenAI's ``messages`` JSONL, the one every peer reads.

What is written reads back as equal rows: the same ids, turns and tools. Two things have no place in OpenAI's format.
A plain text is written as a single assistant turn with ``"format": "text"`` beside it, which the reader knows. The
group of a row is a column of the old file and is left out: it decides the split of one reading, not what a row says.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from tunesmith.data.meaning import Meaning
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.data.targets import refuse_target
from tunesmith.errors import DataError
from tunesmith.messages import Message
from tunesmith.rundir.records.check import Conversion
from tunesmith.rundir.rows import Row

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def as_messages(row: Row) -> dict[str, Any]:
    """One row as OpenAI writes it: ``arguments`` as JSON text; ``tools`` and ``format`` beside ``messages`` where there."""
    entry: dict[str, Any] = {"messages": [_message(message) for message in row.messages]}
    if row.tools is not None:
        entry["tools"] = row.tools
    if row.kind == "text":
        entry["format"] = "text"
    return entry


def convert(
    source: str | Path,
    target: Path,
    options: ReadOptions = AS_FOUND,
    rejected: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Conversion:
    """Write a source as ``messages`` JSONL. The target appears whole or not at all.

    Args:
        source: file, directory or hub id.
        target: a name ending in ``.jsonl``; replaced if it is there.
        options: how to read.
        rejected: file for bad rows, with ``quarantine``.
        progress: as in ``Reader``.

    Raises:
        DataError: as the reader's, or a target that is not to be written.
    """
    if target.suffix != ".jsonl":
        raise DataError(f"{target}: the name ends in {target.suffix or 'nothing'}, expected .jsonl", "convert writes JSONL")
    reader = Reader(source, options, rejected, progress)
    others = (options.requests, rejected)
    refuse_target(target, [*(file.path for file in reader.source.files), *(path for path in others if path is not None)])
    meaning = Meaning(reasoning_is_text=options.reasoning == "keep")
    temporary = target.with_name(f"{target.name}.part")
    try:
        with temporary.open("wb") as file:
            for batch in reader.batches():
                file.writelines(_line(row) for row in batch)
                meaning.add(batch)
        temporary.rename(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}", "check the directory and the free space") from error
    finally:
        temporary.unlink(missing_ok=True)
    reading = reader.summary()
    return Conversion(reading=reading, written=str(target), findings=meaning.findings(reading))


def _line(row: Row) -> bytes:
    if row.tools is None and row.kind == "chat" and sum(map(len, row.messages)) == 2 * len(row.messages):
        # The same bytes as below in a quarter of the time: nearly all rows of most files are plain.
        return orjson.dumps({"messages": row.messages}, option=orjson.OPT_APPEND_NEWLINE)
    # Not orjson here: whole numbers past 64 bits are legal in arguments, and it has no place for them.
    return _encode(as_messages(row)).encode() + b"\n"


def _message(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = _encode(call["function"]["arguments"])
        calls.append({**call, "function": {"name": call["function"]["name"], "arguments": arguments}})
    return {**message, "tool_calls": calls}
