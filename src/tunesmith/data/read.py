"""Read ``messages`` JSONL and check every row before anything is built on it.

A row that is wrong is an error with its line, its JSON path and a hint; the first 20 are printed in full, the rest is
counted. Nothing is repaired: a repaired row is a row that nobody looked at. JSON is read strictly (no NaN, no
duplicate keys, no lone surrogates), because the lenient readings differ between the tools that will see the file.

What a row is: ``{"messages": [{"role": "user", "content": "..."}, ..., {"role": "assistant", "content": "..."}]}``,
an optional system turn first, then user and assistant in turn, an assistant at the end.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError

MAX_LINE = 8 * 1024 * 1024  # bytes; a longer line is a file without line breaks, not a row
SHOWN = 20

Message = dict[str, str]


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        id: first 12 hexadecimal digits of the sha256 of its messages; ``-2``, ``-3`` for exact repetitions.
        line: line of the file, from 1.
        messages: the conversation, ending with the assistant's answer.
    """

    id: str
    line: int
    messages: list[Message]

    def as_dict(self) -> dict[str, Any]:
        """The row as it is written in the run directory."""
        return {"id": self.id, "line": self.line, "messages": self.messages}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one row."""

    line: int
    path: str
    code: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.path}: {self.message} [{self.code}]\n    hint: {self.hint}"


class _Bad(Exception):
    def __init__(self, path: str, code: str, message: str, hint: str):
        super().__init__(message)
        self.fields = (path, code, message, hint)


def read_rows(path: Path) -> list[Row]:
    """Read and check a ``messages`` JSONL file.

    Raises:
        DataError: missing, unreadable or empty file, or any bad row (all are listed, 20 of them in full).
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    seen: Counter[str] = Counter()
    for number, raw in enumerate(_lines(path), start=1):
        try:
            messages = _check(_parse(raw))
        except _Bad as bad:
            problems.append(Problem(number, *bad.fields))
            continue
        digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:12]
        seen[digest] += 1
        repeated = f"-{seen[digest]}" if seen[digest] > 1 else ""
        rows.append(Row(digest + repeated, number, messages))
    if problems:
        raise DataError(*_report(path, problems, len(rows)))
    if not rows:
        raise DataError(f"{path}: the file is empty, expected one JSON object a line", "see docs/guides/first_run.md")
    return rows


def _lines(path: Path) -> list[bytes]:
    if not path.exists():
        raise DataError(f"{path}: no such file", "data.path is relative to the recipe file")
    if path.is_dir():
        raise DataError(f"{path}: is a directory, expected a JSONL file", "name the file in data.path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", "check the file's permissions") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return lines[:-1] if lines[-1].strip() == b"" else lines


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = Counter(key for key, _ in pairs)
    twice = [key for key, count in keys.items() if count > 1]
    if twice:
        raise _Bad("$", "duplicate-key", f"key {twice[0]!r} stands twice in one object", "keep one of the two")
    return dict(pairs)


def _constant(name: str) -> None:
    raise _Bad("$", "not-json", f"{name} is not JSON", "write null or a string")


def _parse(raw: bytes) -> Any:
    if len(raw) > MAX_LINE:
        raise _Bad("$", "line-too-long", f"{len(raw):,} bytes in one line", "one JSON object a line, at most 8 MB")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise _Bad("$", "not-utf8", f"byte {error.start} is not UTF-8", "save the file as UTF-8") from error
    except RecursionError as error:
        raise _Bad("$", "too-deep", "nested too deeply", "a row is an object that holds a list of messages") from error
    except ValueError as error:
        where = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        hint = "an empty line is not a row; delete it" if not raw.strip() else "one JSON object a line"
        raise _Bad("$", "not-json", where, hint) from error


def _check(value: Any) -> list[Message]:
    if not isinstance(value, dict):
        raise _Bad("$", "not-object", f"expected an object, found {type(value).__name__}", 'write {"messages": [...]}')
    if "messages" not in value:
        found = ", ".join(sorted(value)) or "no keys"
        raise _Bad("$", "no-messages", f"expected a key messages, found {found}", "only messages JSONL is read so far")
    extra = sorted(set(value) - {"messages"})
    if extra:
        raise _Bad(f"$.{extra[0]}", "unknown-key", "unknown key beside messages", "remove it; nothing would read it")
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise _Bad("$.messages", "no-messages", "expected a list with at least one user and one assistant turn", "add them")
    for index, message in enumerate(messages):
        _check_message(f"$.messages[{index}]", message)
    _check_order(messages)
    return messages


def _check_message(path: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise _Bad(path, "not-object", f"expected an object, found {type(message).__name__}", "write role and content")
    for key in ("role", "content"):
        if key not in message:
            raise _Bad(path, f"no-{key}", f"{key} is missing", "a message has role and content")
        if not isinstance(message[key], str):
            raise _Bad(f"{path}.{key}", "not-text", f"expected text, found {type(message[key]).__name__}", "write a string")
    extra = sorted(set(message) - {"role", "content"})
    if extra:
        raise _Bad(f"{path}.{extra[0]}", "unknown-key", "unknown key in a message", "remove it; nothing would read it")
    if message["role"] not in {"system", "user", "assistant"}:
        raise _Bad(f"{path}.role", "unknown-role", f"unknown role {message['role']!r:.40}", "use system, user or assistant")
    if not message["content"].strip() and message["role"] != "system":
        raise _Bad(f"{path}.content", "empty-turn", f"empty {message['role']} turn", "fill it or remove the row")
    if any("\ud800" <= letter <= "\udfff" for letter in message["content"]):
        raise _Bad(f"{path}.content", "lone-surrogate", "half of a surrogate pair", "the text was cut inside a character")


def _check_order(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    first = 1 if roles[0] == "system" else 0
    for index, role in enumerate(roles[first:], start=first):
        expected = "assistant" if (index - first) % 2 else "user"
        if role != expected:
            path = f"$.messages[{index}].role"
            raise _Bad(path, "role-order", f"expected {expected}, found {role}", "user and assistant take turns")
    if roles[-1] != "assistant":
        raise _Bad("$.messages", "no-answer", "the last turn is not the assistant's", "end with the answer to learn")


def _report(path: Path, problems: list[Problem], good: int) -> tuple[str, str]:
    counts = ", ".join(f"{code} {count}" for code, count in Counter(p.code for p in problems).most_common())
    lines = [f"{path}: {len(problems)} bad rows, {good} good ones ({counts})", *(str(p) for p in problems[:SHOWN])]
    if len(problems) > SHOWN:
        lines.append(f"... and {len(problems) - SHOWN} more")
    return "\n".join(lines), "mend or remove these rows; nothing was written"
