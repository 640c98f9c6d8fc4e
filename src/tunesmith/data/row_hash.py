"""The numbers by which rows are compared: a hash of all that a row says, and one of what it asks.

They are blake2b over its texts and not built-in hashes, because ids and splits are made of them and have to be the same on
every machine.
"""

import hashlib
import json

from tunesmith.data.normalize import normalized
from tunesmith.messages import Message, Tools


def content_hash(messages: list[Message], tools: Tools = None, kind: str = "chat") -> bytes:
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


def prompt_hash(messages: list[Message], tools: Tools = None) -> bytes:
    """8 bytes that are equal for rows that ask the same: every turn but the last, up to case and white space."""
    hashed = hashlib.blake2b(digest_size=8)
    for message in messages[:-1]:
        hashed.update(b"\0" + message["role"].encode() + b"\1" + normalized(message["content"]))
        if "tool_calls" in message:
            hashed.update(b"\2" + json.dumps(message["tool_calls"], sort_keys=True).encode())
    if tools:
        hashed.update(b"\3" + json.dumps(tools, sort_keys=True).encode())
    return hashed.digest()
