"""One example, whatever file it came from: OpenAI's ``messages``, and what stands beside them.

Every format becomes this one, so that all that follows (quality, split, templates, evaluation) knows a single shape.
It is the shape of OpenAI's chat fine-tuning files, because every peer reads it, with two differences inside the
program: ``arguments`` of a tool call is the parsed object (templates want it so), and a plain text is a single
assistant turn with ``kind`` set to ``text`` (there is nobody who asks).

A problem is one thing wrong with one row. Nothing is repaired: a repaired row is a row that nobody looked at.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.data.normalize import normalized

Message = dict[str, Any]


@dataclass(slots=True)  # frozen would cost 1.5 us a row, a tenth of reading it
class Row:
    """One example; not altered once made.

    Attributes:
        id: first 12 hexadecimal digits of a hash of its content; ``-2``, ``-3`` for exact repetitions.
        place: where it stands, for people: ``line 12``, ``row 3``, ``part-1.jsonl.gz line 12``.
        messages: the conversation: ``role`` (system, developer, user, assistant, tool), ``content`` (text), and where
            given ``name``, ``weight`` (0 or 1, assistant only), ``reasoning_content``, ``tool_calls`` (each ``{"id"?,
            "type": "function", "function": {"name", "arguments": object}}``), ``tool_call_id``.
        tools: the declared functions (each ``{"type": "function", "function": {...}}``), or None.
        group: value of the ``data.group_by`` column: rows of one group never straddle the split.
        kind: ``chat``, or ``text`` for one plain text held in a single assistant turn.
    """

    id: str
    place: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None = None
    group: str | None = None
    kind: Literal["chat", "text"] = "chat"

    def as_dict(self) -> dict[str, Any]:
        """The row as it is written in the run directory."""
        written: dict[str, Any] = {"id": self.id, "place": self.place, "messages": self.messages}
        if self.tools is not None:
            written["tools"] = self.tools
        if self.group is not None:
            written["group"] = self.group
        if self.kind != "chat":
            written["kind"] = self.kind
        return written


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one row.

    Attributes:
        place: as ``Row.place``.
        path: JSON path of the value, ``$`` for the whole row.
        code: stable name of the kind of problem, e.g. ``role-order``.
        message: what was found, and what was expected.
        hint: the next thing to do.
    """

    place: str
    path: str
    code: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.place}, {self.path}: {self.message} [{self.code}]\n    hint: {self.hint}"


def content_hash(messages: list[Message], tools: list[dict[str, Any]] | None = None, kind: str = "chat") -> bytes:
    """16 bytes that are equal for equal examples. Plain turns take a fast path: JSON only where there is structure."""
    parts = [kind.encode()]
    for message in messages:
        if len(message) == 2:
            parts += (b"\0", message["role"].encode(), b"\1", message["content"].encode("utf-8", "surrogatepass"))
        else:
            parts += (b"\2", json.dumps(message, sort_keys=True).encode())
    if tools:
        parts += (b"\3", json.dumps(tools, sort_keys=True).encode())
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def prompt_hash(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> bytes:
    """8 bytes that are equal for rows that ask the same: every turn but the last, up to case and white space."""
    hashed = hashlib.blake2b(digest_size=8)
    for message in messages[:-1]:
        hashed.update(b"\0" + message["role"].encode() + b"\1" + normalized(message["content"]))
        if "tool_calls" in message:
            hashed.update(b"\2" + json.dumps(message["tool_calls"], sort_keys=True).encode())
    if tools:
        hashed.update(b"\3" + json.dumps(tools, sort_keys=True).encode())
    return hashed.digest()
