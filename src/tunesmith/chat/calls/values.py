"""Arguments of a call, whatever they were written in, as strict JSON text.

Four notations are in use: JSON; the text between two tags, whose type only the declared schema says; objects with bare keys
(``braces``); Python's keyword arguments. Each becomes the JSON text that means the same, with numbers as they were written.
What cannot be read, names a key twice or has no JSON (NaN) is a ``ValueError``.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from tunesmith.messages import Tools
from tunesmith.rundir.records.calls import Call

_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?", re.ASCII)
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_BRACES_STOP = re.compile(r"[,\]}]")
_BRACES_KEY = re.compile(r"\s*([^:{}\[\],]+?)\s*:\s*")


class _Written(str):
    """A number with decimals as it was written; a float would round it."""


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> Any:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise ValueError("a key twice in one object")
    return keys


_DECODER = json.JSONDecoder(parse_float=_Written, parse_constant=_no_constant, object_pairs_hook=_unique)


def decode(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at a place, and where it ends.

    Raises:
        ValueError: no JSON there, or none that means one thing; nesting past Python's limit of recursion.
    """
    while start < len(text) and text[start] in " \t\r\n":
        start += 1
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def encode(value: Any) -> str:
    """A decoded value as JSON text."""
    if isinstance(value, _Written):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)}: {encode(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(encode, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def quoted(text: str) -> str:
    """A JSON string."""
    return json.dumps(text, ensure_ascii=False)


def call_of(value: Any) -> Call:
    """The call of ``{"name": ..., "arguments": {...}}``; ``parameters`` is some templates' word for the latter.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError("a call has a name")
    given = [value[key] for key in ("arguments", "parameters") if key in value]
    if len(given) != 1 or not isinstance(given[0], dict):
        raise ValueError("arguments are one object")
    return _call(value["name"], given[0])


def _call(name: str, arguments: Any) -> Call:
    try:
        return Call(name=name, arguments=encode(arguments))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def call_of_text(name: str, text: str) -> Call:
    """The call of a name and the JSON text of its arguments, with nothing behind it.

    Raises:
        ValueError: no name, or the text is no JSON object.
    """
    value, end = decode(text)
    if not name or not isinstance(value, dict) or text[end:].strip():
        raise ValueError("arguments are one object")
    return _call(name, value)


def call_of_tags(name: str, arguments: Iterable[tuple[str, str]], tools: Tools) -> Call:
    """The call of arguments that stand as plain text between tags.

    A text is a string where the schema says so; elsewhere it is JSON if it can be read as such, and a string if it cannot.

    Raises:
        ValueError: an argument twice.
    """
    types = _types(name, tools)

    def typed(key: str, text: str) -> Any:
        if types.get(key) in ("string", ["string"]):
            return text
        try:
            value, end = decode(text)
        except ValueError:
            return text
        return text if text[end:].strip() else value

    return _call(name, _unique([(key, typed(key, text)) for key, text in arguments]))


def _types(name: str, tools: Tools) -> Any:
    """The declared type of each argument."""
    for tool in tools or ():
        if tool["function"]["name"] == name:
            properties = tool["function"].get("parameters", {}).get("properties")
            if isinstance(properties, dict):
                return {key: schema.get("type") for key, schema in properties.items() if isinstance(schema, dict)}
    return {}


def call_of_braces(name: str, text: str, start: int, quote: str) -> tuple[Call, int]:
    """The call of ``{key:value,...}`` with strings between two ``quote``, and where it ends.

    Raises:
        ValueError: it is not in that notation.
    """

    def item(place: int) -> tuple[Any, int]:
        if text.startswith(quote, place):
            end = text.index(quote, place + len(quote))
            return text[place + len(quote) : end], end + len(quote)
        if text.startswith("{", place):
            return entries(place)
        if text.startswith("[", place):
            items, place = list[Any](), place + 1
            while not text.startswith("]", place):
                value, place = item(place)
                items.append(value)
                place = _next(text, place, "]")
            return items, place + 1
        stop = _BRACES_STOP.search(text, place)
        return _bare(text[place : stop.start() if stop else len(text)].strip()), stop.start() if stop else len(text)

    def entries(place: int) -> tuple[Any, int]:
        pairs, place = list[tuple[str, Any]](), place + 1
        while not text.startswith("}", place):
            if text.startswith(quote, place):  # a key may be quoted too
                end = text.index(quote, place + len(quote))
                key, place = text[place + len(quote) : end], end + len(quote)
                if not text.startswith(":", place):
                    raise ValueError("no colon behind a key")
                place += 1
            elif match := _BRACES_KEY.match(text, place):
                key, place = match[1], match.end()
            else:
                raise ValueError("no key")
            value, place = item(place)
            pairs.append((key, value))
            place = _next(text, place, "}")
        return _unique(pairs), place + 1

    if not text.startswith("{", start):
        raise ValueError("arguments are one object")
    try:
        arguments, end = entries(start)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return _call(name, arguments), end


def _next(text: str, place: int, closing: str) -> int:
    """Behind the comma that follows a value, or at what closes the whole."""
    if text.startswith(",", place):
        return place + 1
    if text.startswith(closing, place):
        return place
    raise ValueError(f"no {closing} and no comma behind a value")


def _bare(word: str) -> Any:
    """A number or a word without quotes."""
    if word in _WORDS or _NUMBER.fullmatch(word):
        return decode(_WORDS.get(word, word))[0]
    raise ValueError(f"{word!r:.40} is no value")


def calls_of_python(text: str) -> list[Call]:
    """The calls of ``[f(a='b', c=2), g()]``, a Python list whose values may be JSON's (``true``, ``null``).

    Raises:
        ValueError: it is no such list.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("no list of calls") from error
    if not isinstance(tree, ast.List):
        raise ValueError("no list of calls")

    def segment(node: ast.expr) -> str:
        return ast.get_source_segment(text.strip(), node) or ""

    calls: list[Call] = []
    for node in tree.elts:
        if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("a call has a name and keywords")
        name = ast.unparse(node.func)  # dotted names are names too
        pairs = [(str(keyword.arg), _python_value(keyword.value, segment)) for keyword in node.keywords]
        calls.append(_call(name, _unique(pairs)))
    return calls


def _python_value(node: ast.expr, segment: Callable[[ast.expr], str]) -> Any:
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.Name(id=word) if word in _WORDS:
            return decode(_WORDS[word])[0]
        case ast.Constant() | ast.UnaryOp():
            return _bare(segment(node))
        case ast.List(elts=items):
            return [_python_value(item, segment) for item in items]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            names = [key.value for key in keys if isinstance(key, ast.Constant)]
            if not all(isinstance(name, str) for name in names):
                raise ValueError("a key is a string")
            return _unique([(str(n), _python_value(v, segment)) for n, v in zip(names, values, strict=True)])
    raise ValueError("no value")
