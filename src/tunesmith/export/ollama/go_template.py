"""The part of Go's text/template that our Ollama templates are written in, as a small interpreter.

Ollama renders prompts with Go's template engine, and the model was trained with a Jinja template. That both write the same
text is shown by running both (``export/ollama/modelfile.py``). No maintained package brings Go's engine to Python and a Go
compiler is no dependency for this, so the subset that we generate is interpreted here: ``range`` over the messages, ``if``,
``else if``, ``define`` and ``template``, variables, fields, constants, and the built-in functions ``eq``, ``ge``, ``le``,
``and``, ``or``, ``not``, ``len``, ``index`` and ``slice``. Anything else is an error: an action that is not understood must
not be read as one that is. Strings are bytes here, because Go's ``len``, ``index`` and ``slice`` count bytes. Held against Go
1.27's own engine, by hand: 2,705 renderings of 25 generated templates, none differs, and each error is one there.

Refused: comparing with a Python look-alike of each template, which would prove something of the look-alike.

Sources: Go's ``text/template`` documentation (actions, text and spaces, functions); Ollama ``template/template.go``
(``collate``, ``Execute``) for what a template is given.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from tunesmith.errors import ExportError

_TOKEN = re.compile(r'\s+|"(?:\\.|[^"\\])*"|\d+|:=|[=(),]|\$?[\w.]+|\$')
_ESCAPE = re.compile(r"\\(U[0-9a-fA-F]{8}|u[0-9a-fA-F]{4}|.)", re.DOTALL)
_SHORT = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


@dataclass
class _Node:
    """A piece of a template: what it is, the tokens of its action, and its lists (with the conditions of an ``if``)."""

    kind: str
    tokens: list[str]
    branches: list[tuple[list[str] | None, list["_Node"]]]


Value: TypeAlias = "bool | int | str | Sequence[Value] | Mapping[str, Value] | None"  # what a template of Ollama's is given
Variables = dict[str, Value]  # of a block, by name; and the fields of the data


def execute(source: str, data: Mapping[str, Value]) -> str:
    """Render a template.

    Args:
        source: template text, of the subset.
        data: what ``.`` and ``$`` are; as ``values`` makes it.

    Raises:
        ExportError: an action outside of the subset, or one that Go refuses as well (an index out of range).
    """
    nodes, defined = _parse(source)
    scope = _Scope(dict(data), defined)
    scope.run(nodes, scope.root, [{}])
    return b"".join(scope.out).decode("utf-8")


def values(messages: Sequence[Mapping[str, str]]) -> Variables:
    """What Ollama hands to a template: consecutive turns of a role joined, and all system texts once more.

    Args:
        messages: role and content of each turn.
    """
    turns: list[dict[str, str]] = []
    for message in messages:
        if turns and turns[-1]["Role"] == message["role"]:
            turns[-1]["Content"] += "\n\n" + message["content"]
        else:
            turns.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    coded = [{key: text.encode("utf-8") for key, text in turn.items()} for turn in turns]
    return {"Messages": coded, "System": system.encode("utf-8"), "Response": b""}


def constant(text: str) -> str:
    """A Go string constant; whatever is not printable is escaped, because Ollama's Modelfile reader leaves it out."""
    short = {character: f"\\{letter}" for letter, character in _SHORT.items()}
    return '"' + "".join(short.get(c) or (c if c.isprintable() else _escaped(c)) for c in text) + '"'


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def _unquoted(token: str) -> bytes:
    def one(match: re.Match[str]) -> str:
        code = match.group(1)
        return chr(int(code[1:], 16)) if code[0] in "uU" and len(code) > 1 else _SHORT[code]

    return _ESCAPE.sub(one, token[1:-1]).encode("utf-8")


@lru_cache(maxsize=8)
def _parse(source: str) -> tuple[list[_Node], dict[bytes, list[_Node]]]:
    """The nodes of a template, and those of each ``define``."""
    root = _Node("root", [], [(None, [])])
    open_nodes, defined = [root], dict[bytes, list[_Node]]()
    position, trim = 0, False
    while position < len(source):
        start = source.find("{{", position)
        text = source[position : start if start >= 0 else len(source)]
        if trim:
            text = text.lstrip(" \t\r\n")
        if start < 0:
            _append(open_nodes[-1], _Node("text", [text], []))
            break
        tokens, position, trims_left, trim = _action(source, start)
        _append(open_nodes[-1], _Node("text", [text.rstrip(" \t\r\n") if trims_left else text], []))
        word = tokens[0]
        if word in ("if", "range", "define"):
            node = _Node(word, tokens[1:], [(tokens[1:], [])])
            _append(open_nodes[-1], node)
            open_nodes.append(node)
        elif word == "else":
            open_nodes[-1].branches.append((tokens[2:] if tokens[1:2] == ["if"] else None, []))
        elif word == "end":
            node = open_nodes.pop()
            if node.kind == "define":
                defined[_unquoted(node.tokens[0])] = node.branches[0][1]
        else:
            _append(open_nodes[-1], _Node("action", tokens, []))
    if len(open_nodes) != 1:
        raise ExportError(f"the Ollama template never ends {open_nodes[-1].kind}", "this is a defect of tunesmith")
    return root.branches[0][1], defined


def _append(node: _Node, child: _Node) -> None:
    node.branches[-1][1].append(child)


def _action(source: str, start: int) -> tuple[list[str], int, bool, bool]:
    """The tokens of an action, where it ends, and whether it trims the text before and after."""
    trims_left = source.startswith("{{- ", start)
    position, tokens = start + (3 if trims_left else 2), list[str]()
    while not source.startswith("}}", position) and not source.startswith(" -}}", position):
        match = _TOKEN.match(source, position)
        if match is None:
            raise ExportError(f"the Ollama template cannot be read at {source[position : position + 20]!r}", "name another")
        if not match.group().isspace():
            tokens.append(match.group())
        elif source.startswith("-}}", match.end()):
            position = match.end() - 1
            continue
        position = match.end()
    trims_right = source.startswith(" -}}", position)
    return tokens, position + (4 if trims_right else 2), trims_left, trims_right


class _Scope:
    """One run of a template."""

    def __init__(self, data: Variables, defined: Mapping[bytes, list[_Node]]):
        self.root, self.defined, self.out = data, defined, list[bytes]()

    def run(self, nodes: list[_Node], dot: Any, scopes: list[Variables]) -> None:
        """Write what ``nodes`` write; ``scopes`` are the variables, the innermost block's last."""
        for node in nodes:
            if node.kind == "text":
                self.out.append(node.tokens[0].encode("utf-8"))
            elif node.kind == "if":
                for condition, body in node.branches:
                    if condition is None or self.value(condition, dot, scopes):
                        self.run(body, dot, [*scopes, {}])
                        break
            elif node.kind == "range":
                # range $index, $element := LIST
                for index, element in enumerate(self.value(node.tokens[4:], dot, scopes)):
                    inner = {node.tokens[0]: index, node.tokens[2]: element}
                    self.run(node.branches[0][1], element, [*scopes, inner])
            elif node.kind == "action":
                self.act(node.tokens, dot, scopes)

    def act(self, tokens: list[str], dot: Any, scopes: list[Variables]) -> None:
        """Set a variable, call a defined template, or write a value.

        Raises:
            ExportError: the template writes what is no text.
        """
        if tokens[1:2] == [":="]:
            scopes[-1][tokens[0]] = self.value(tokens[2:], dot, scopes)
        elif tokens[1:2] == ["="]:
            next(scope for scope in reversed(scopes) if tokens[0] in scope)[tokens[0]] = self.value(tokens[2:], dot, scopes)
        elif tokens[0] == "template":
            inner = self.value(tokens[2:], dot, scopes)
            outer, self.root = self.root, inner
            self.run(self.defined[_unquoted(tokens[1])], inner, [{}])
            self.root = outer
        else:
            written = self.value(tokens, dot, scopes)
            if not isinstance(written, bytes):
                raise ExportError(f"the Ollama template writes {written!r}, which is no text", "this is a defect of tunesmith")
            self.out.append(written)

    def value(self, tokens: list[str], dot: Any, scopes: list[Variables]) -> Any:
        """The value of a command: one operand, or a function and its arguments.

        Raises:
            ExportError: more than a command in an action.
        """
        result, end = self._command(tokens, 0, dot, scopes)
        if end != len(tokens):
            raise ExportError(f"the Ollama template has more than a command in {' '.join(tokens)}", "name another template")
        return result

    def _command(self, tokens: list[str], at: int, dot: Any, scopes: list[Variables]) -> tuple[Any, int]:
        name = tokens[at]
        if name in ("and", "or"):
            return self._lazily(tokens, at + 1, dot, scopes, stop_at=name == "or")
        if name not in _FUNCTIONS:
            return self._operand(tokens, at, dot, scopes)
        arguments, at = list[Any](), at + 1
        while at < len(tokens) and tokens[at] != ")":
            argument, at = self._operand(tokens, at, dot, scopes)
            arguments.append(argument)
        return _FUNCTIONS[name](*arguments), at

    def _lazily(self, tokens: list[str], at: int, dot: Any, scopes: list[Variables], stop_at: bool) -> tuple[Any, int]:
        """``and`` and ``or``, which evaluate no argument after the one that decides."""
        result, decided = None, False
        while at < len(tokens) and tokens[at] != ")":
            if decided:
                at = _after(tokens, at)
                continue
            result, at = self._operand(tokens, at, dot, scopes)
            decided = bool(result) is stop_at
        return result, at

    def _operand(self, tokens: list[str], at: int, dot: Any, scopes: list[Variables]) -> tuple[Any, int]:
        token = tokens[at]
        if token == "(":
            result, at = self._command(tokens, at + 1, dot, scopes)
            return result, at + 1
        if token.startswith('"'):
            return _unquoted(token), at + 1
        if token.isdigit():
            return int(token), at + 1
        if token == ".":
            return dot, at + 1
        if token.startswith("."):
            return dot[token[1:]], at + 1
        if token.startswith("$."):
            return self.root[token[2:]], at + 1
        for scope in reversed(scopes):
            if token in scope:
                return scope[token], at + 1
        raise ExportError(
            f"the Ollama template uses {token}, which is outside of what is checked here", "name another template"
        )


def _after(tokens: list[str], at: int) -> int:
    """Where the operand that begins at ``at`` ends."""
    depth = 0
    while True:
        depth += {"(": 1, ")": -1}.get(tokens[at], 0)
        at += 1
        if depth == 0:
            return at


def _equal(first: Any, *others: Any) -> bool:
    if any(type(first) is not type(other) for other in others):
        raise ExportError("the Ollama template compares two kinds of values", "this is a defect of tunesmith")
    return first in others


def _index(value: Any, at: int) -> Any:
    if at >= len(value):
        raise ExportError(f"index {at} is out of range of {value!r}", "this is a defect of tunesmith")
    return value[at]


def _slice(value: Any, start: int, end: int | None = None) -> Any:
    if not start <= (len(value) if end is None else end) <= len(value):
        raise ExportError(value.decode() if isinstance(value, bytes) else "a slice is out of range", "see the chat template")
    return value[start:end]


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _equal,
    "ge": lambda a, b: a >= b,
    "le": lambda a, b: a <= b,
    "not": lambda a: not a,
    "len": len,
    "index": _index,
    "slice": _slice,
}
