"""Files that nobody would write: from seeds, by chance, and the same ones for the same seed of the generator."""

import json
import random
import struct
from typing import Any

NUMBERS = (0, 1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**50, 2**63, 2**64 - 1)
TOKENS = [
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\\u0000",
        b"\r\n",
        b"\n\n",
        b'""',
        b'"',
        b"'",
        b"\\",
    ),
    *(b"{", b"}", b"[", b"]", b"[" * 5_000, b'{"a":' * 3_000, b"null", b"true", b"NaN", b"Infinity", b"-Infinity", b"1e999"),
    *(
        b"9" * 5_000,
        b"-1",
        b"0.1",
        b"1e-999",
        b",",
        b":",
        b"!!python/object:os.system",
        b"&a",
        b"*a",
        b"<<: *a",
        b"%",
        b"- " * 2_000,
    ),
    *(
        b"2020-13-45",
        b"0x" + b"f" * 400,
        b"!!binary",
        b"{{",
        b"}}",
        b"{%",
        b"%}",
        b"a" * 70_000,
        b"(a+)+$",
        b"../../etc/passwd",
    ),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.0, -0.5, 1e308, 1e-308),
    *("", "a", "\x00", "\ud800", "a" * 100_000, "../../x", "http://x/", "1", "none", "é", "<|im_end|>", "[" * 200),
    *([], {}, [[]], {"": {}}, [None], {"a": 1}, [1, "a"], [[[[]]]] * 50, ["a"] * 2_000, {str(n): n for n in range(500)}),
]


def mutated(draw: random.Random, seeds: list[bytes], words: tuple[bytes, ...] = (), most: int = 1 << 20) -> bytes:
    """One of the seeds, changed in one to six places, or in its values where it is JSON."""
    raw = draw.choice(seeds)
    if draw.random() < 0.5 and (changed := _other_values(draw, raw)) is not None:
        raw = changed
        if draw.random() < 0.7:
            return raw[:most]
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        raw = draw.choice(CHANGES)(draw, raw, seeds, words)
    return raw[:most]


def _at(draw: random.Random, raw: bytes) -> int:
    """A place: anywhere, or in the head, where headers lie."""
    return draw.randrange(min(len(raw), 256) + 1) if draw.random() < 0.4 else draw.randrange(len(raw) + 1)


def _flip(draw: random.Random, raw: bytes, seeds: list[bytes], words: tuple[bytes, ...]) -> bytes:
    if not raw:
        return b"\x00"
    at = min(_at(draw, raw), len(raw) - 1)
    return raw[:at] + bytes([raw[at] ^ (1 << draw.randrange(8))]) + raw[at + 1 :]


def _byte(draw: random.Random, raw: bytes, seeds: list[bytes], words: tuple[bytes, ...]) -> bytes:
    at = _at(draw, raw)
    return raw[:at] + draw.randbytes(draw.choice((1, 1, 2, 8))) + raw[at + draw.choice((0, 1, 8)) :]


def _cut(draw: random.Random, raw: bytes, seeds: list[bytes], words: tuple[bytes, ...]) -> bytes:
    at = _at(draw, raw)
    return raw[:at] if draw.random() < 0.5 else raw[:at] + raw[at + draw.randrange(1, 64) :]


def _splice(draw: random.Random, raw: bytes, seeds: list[bytes], words: tuple[bytes, ...]) -> bytes:
    other = draw.choice(seeds)
    return raw[: _at(draw, raw)] + other[_at(draw, other) :]


def _token(draw: random.Random, raw: bytes, seeds: list[bytes], words: tuple[bytes, ...]) -> bytes:
    at, token = _at(draw, raw), draw.choice([*TOKENS, *words * 4])
    return raw[:at] + token + raw[at + (len(token) if draw.random() < 0.3 else 0) :]


def _number(draw: random.Random, raw: bytes, seeds: list[bytes], words: tuple[bytes, ...]) -> bytes:
    at, number = _at(draw, raw), draw.choice(NUMBERS)
    packed = struct.pack("<Q", number) if draw.random() < 0.5 else struct.pack(draw.choice("<>") + "I", number & 0xFFFFFFFF)
    return raw[:at] + packed + raw[at + len(packed) :]


def _repeat(draw: random.Random, raw: bytes, seeds: list[bytes], words: tuple[bytes, ...]) -> bytes:
    at = _at(draw, raw)
    return raw[:at] + raw[at : at + draw.randrange(1, 64)] * draw.choice((2, 10, 1_000)) + raw[at:]


CHANGES = (_flip, _byte, _cut, _splice, _token, _token, _number, _repeat)


def _other_values(draw: random.Random, raw: bytes) -> bytes | None:
    """A document of JSON with values of other types in one to three places; None where it is none."""
    lines = raw.split(b"\n")
    at = draw.randrange(len(lines))
    for part, around in ((raw, None), (lines[at], at)):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        for _ in range(draw.choice((1, 1, 2, 3))):
            value = _changed(draw, value)
        text = json.dumps(value).encode()
        return text if around is None else b"\n".join([*lines[:around], text, *lines[around + 1 :]])
    return None


def _changed(draw: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        if (fate := draw.random()) < 0.1:
            return {name: entry for name, entry in value.items() if name != key}
        if fate < 0.2:
            return {
                **value,
                draw.choice(["", "a", "role", "content", "$ref", "version", "dtype", key * 2]): draw.choice(VALUES),
            }
        return {**value, key: _changed(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], _changed(draw, value[at]), *value[at + 1 :]] if draw.random() < 0.9 else value + value[:at]
    return draw.choice(VALUES)
