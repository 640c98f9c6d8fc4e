"""JSON read strictly, and what is wrong with it said in our words.

No NaN, no duplicate keys, no lone surrogates, no numbers of thousands of digits, no nesting past 200: the lenient
readings of these differ between the tools that will see the file, so a file that needs them means different things to
different people. The parser is ``jiter``: 5.8 us for a 1 KB row where ``json.loads`` with a hook for duplicate keys
takes 30, and it refuses all of the above by itself. It stops at the first fault with a short text; the slow second
look that names the fault happens for bad rows only.
"""

import json
import math
import re
from typing import Any

import jiter

from tunesmith.data.problems import RowError

MAX_LINE = 8 * 1024 * 1024  # bytes; a longer line is a file without line breaks, not a row
MAX_DEPTH = 100  # of a value held in a row (arguments, parameters); the row itself may be 200 deep
_LINE_HINT = "one JSON object a line; a row that spans lines belongs into one"
_CONSTANT = re.compile(rb"-?(?:NaN|Infinity)")
_UTF8_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]")
_COLUMN = re.compile(r"line (\d+) column (\d+)$")
_REPR = re.compile(r"\s*[\[{][\s\[{]*'")  # a list or dictionary of Python whose first text is in single quotes
SURROGATE_HINT = "the text was cut inside a character; mend the program that wrote it"


def loads(raw: bytes) -> Any:
    """The value of one JSON text.

    Raises:
        RowError: codes ``line-too-long``, ``not-json``, ``not-finite``, ``duplicate-key``, ``too-deep``, ``number-too-long``,
            ``not-utf8``, ``nul-byte``, ``lone-surrogate``.
    """
    if len(raw) > MAX_LINE:
        raise too_long(len(raw))
    try:
        return jiter.from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise diagnosed(raw, str(error)) from None


def loads_text(text: str, path: str) -> Any:
    """The value of JSON held in a string of a row; problems are told at ``path``."""
    try:
        return loads(text.encode())
    except UnicodeEncodeError:
        raise lone_surrogate(path) from None
    except RowError as bad:
        if bad.code == "not-json" and _REPR.match(text):
            hint = "write it with json.dumps: rows.to_csv and str() write Python's repr"
            raise RowError(path, bad.code, f"Python's repr, not JSON: {text:.40}", hint) from None
        raise RowError(path, bad.code, f"JSON inside the text: {bad.message}", bad.hint) from None


def has_surrogate(text: str) -> bool:
    """Whether ``text`` holds half of a surrogate pair, which no UTF-8 file and no tokenizer can hold."""
    try:
        text.encode()  # a third of the time of a search
    except UnicodeEncodeError:
        return True
    return False


def too_long(size: int) -> RowError:
    """The problem of a row past the limit."""
    return RowError(
        "$", "line-too-long", f"{size:,} bytes in one row, the limit is {MAX_LINE:,}", "one row a line; cut or remove it"
    )


def lone_surrogate(path: str) -> RowError:
    """The problem of half a surrogate pair."""
    return RowError(path, "lone-surrogate", "half of a surrogate pair, which is no character", SURROGATE_HINT)


def sound(value: Any, path: str, depth: int = 0) -> None:
    """Check a value that is carried along as it is (arguments, parameters of a function).

    Raises:
        RowError: it cannot be written as JSON and read back the same.
    """
    if depth > MAX_DEPTH:
        raise RowError(
            path.split("[")[0], "too-deep", f"nested deeper than {MAX_DEPTH}", "flatten it; no template renders this"
        )
    if isinstance(value, str):
        if has_surrogate(value):
            raise lone_surrogate(path)
    elif isinstance(value, dict):
        for key, member in value.items():
            if not isinstance(key, str):
                raise RowError(path, "not-json", f"a key is {type(key).__name__}, expected text", "store it as JSON text")
            if has_surrogate(key):
                raise lone_surrogate(path)
            sound(member, f"{path}.{key}", depth + 1)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            sound(member, f"{path}[{index}]", depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RowError(path, "not-finite", "a number beyond double precision, or not a number", "write null or a string")
    elif value is not None and not isinstance(value, int):
        raise RowError(path, "not-json", f"{type(value).__name__} is no JSON type", "store it as text or number")


def diagnosed(raw: bytes, message: str) -> RowError:
    """What is wrong with a text that the parser refused, saying ``message``."""
    if b"\0" in raw:
        hint = "the file was damaged (a crash, a full disk) or is UTF-16; write it again as UTF-8"
        return RowError("$", "nul-byte", f"NUL byte at column {raw.index(0) + 1}", hint)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if _UTF8_SURROGATE.match(raw, error.start):
            return RowError("$", "lone-surrogate", f"half of a surrogate pair at byte {error.start + 1}", SURROGATE_HINT)
        hint = "save the file as UTF-8; Latin-1 or Windows-1252 text was probably pasted in"
        return RowError("$", "not-utf8", f"byte {error.start + 1} ({raw[error.start]:#04x}) is not UTF-8", hint)
    if message.startswith("recursion limit"):
        return RowError("$", "too-deep", "nested deeper than 200", "flatten it; a row is a handful of levels")
    if message.startswith("number out of range"):
        return RowError("$", "number-too-long", f"a whole number of more than 4,300 digits ({message})", "write it as a string")
    if message.startswith("Detected duplicate key"):
        return RowError(
            "$", "duplicate-key", f"{message.removeprefix('Detected ')}: two values of one name", "keep one of the two"
        )
    if "hex escape" in message or "surrogate" in message:
        path = _path_of("lone-surrogate", raw)
        if path is not None:
            return lone_surrogate(path)
    position = _COLUMN.search(message)
    if position is not None:
        offset = sum(len(line) + 1 for line in raw.split(b"\n")[: int(position[1]) - 1]) + int(position[2])
        constant = _CONSTANT.search(raw, max(0, offset - 3), offset + 9)
        if constant is not None:
            return RowError(
                _path_of("not-finite", raw) or "$",
                "not-finite",
                f"{constant[0].decode()} is not JSON ({message})",
                "write null or a string",
            )
        return _fault_at(raw, offset, message)
    return RowError("$", "not-json", message, _LINE_HINT if message.startswith("EOF") else "mend the JSON there")


def _fault_at(raw: bytes, offset: int, message: str) -> RowError:
    """The fault that the parser met at ``offset``, by name where it is one that people make."""
    at = max(0, offset - 1)
    rest = raw[at:].lstrip()
    if message.startswith("trailing comma"):
        return RowError("$", "not-json", f"a comma before the closing bracket ({message})", "remove the comma")
    if message.startswith("trailing characters") and rest[:1] == b",":
        hint = "a line is one object: remove the comma, or make the file one array, [...], with a name in .json"
        return RowError("$", "not-json", f"a comma after the object ({message})", hint)
    if message.startswith("trailing characters") and rest[:1] == b"{":
        return RowError("$", "not-json", f"a second object on the line ({message})", "put each object on a line of its own")
    if rest[:1] == b"'":
        hint = "write it with json.dumps: str() writes Python's repr, which is not JSON"
        return RowError("$", "not-json", f"single quotes where JSON has double ones ({message})", hint)
    word = re.match(rb"True|False|None|undefined|//|#", rest)
    if word is not None:
        named = word[0].decode()
        return RowError("$", "not-json", f"{named} is not JSON ({message})", "write true, false or null, and no comments")
    return RowError("$", "not-json", message, _LINE_HINT if message.startswith("EOF") else "mend the JSON there")


def _path_of(code: str, raw: bytes) -> str | None:
    """Where a fault of a value stands that Python's parser lets through; None when something else is wrong as well."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    try:
        sound(value, "$")
    except RowError as bad:
        return bad.path if bad.code == code else None
    return None
