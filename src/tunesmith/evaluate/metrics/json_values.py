"""JSON as values: read strictly, compared by what it means, and counted field by field.

**Numbers by value.** ``1``, ``1.0`` and ``1e0`` are one number, and so are ``-0.0`` and ``0``; they are kept as digits and an
exponent and never become binary floats, so 9007199254740993 is not ...992 and 1e400 is not 1e500. Strings and keys are
compared in Unicode's NFC, since nobody sees the difference. ``true`` is not 1 and ``"1"`` is not 1.

**Strict.** A key that stands twice in one object, NaN and Infinity are no JSON here, as in the rows (``data/strict_json.py``):
readers differ in what they make of them, so nobody can say that such an answer was right.

**Every value is a number.** Equal values get the same place in one table (hash consing), so that equality, and finding equal
items of two lists, is comparing integers. Nothing here recurses: nesting of 100,000 is a wrong answer like any other.
``json.loads`` ends at a depth of a thousand with an error that lost all answers of an arm.

**Shared fields.** Objects share what they share under equal keys, lists what their items share as items: equal items are
paired first, then those that share the field which is rarest among the rest, in order of their place. That is a greedy
choice, in n log n; the best assignment (Hungarian) takes n cubed, and differs where two items share little with several
others. The order of items is not asked here: it is for the headline, equality.

Sources: RFC 8259; Unicode Annex 15.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, NamedTuple

_TOKEN = re.compile(
    r'[ \t\n\r]*(?:(?P<mark>[\[\]{},:])|(?P<string>"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*")'
    r"|(?P<number>-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w.])|(?P<word>true|false|null)(?!\w))",
    re.ASCII,
)
_NUMBER = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:[eE]([-+]?\d+))?", re.ASCII)
_BLANK = re.compile(r"[ \t\n\r]*")
_EXPONENT_DIGITS = 18  # of an exponent; no number that anybody means has more

Kind = Literal["leaf", "object", "list"]


class _Node(NamedTuple):
    """A value: a leaf (an empty object or list is one too), or its children with their keys, sorted, or in order."""

    kind: Kind
    keys: tuple[str, ...]
    children: tuple[int, ...]
    leaves: int


class Values:
    """A table of JSON values: equal values have the same number."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}
        self._nodes: list[_Node] = []
        self._paths: dict[tuple[int, str | None], int] = {}

    def read(self, text: str) -> int:
        """The number of the value of one JSON text.

        Raises:
            ValueError: not JSON, a key twice in one object, or an exponent of more than 18 digits.
        """
        return _Parser(self, text).value()

    def leaves(self, value: int) -> int:
        """How many fields a value has: scalars, and objects and lists that are empty."""
        return self._nodes[value].leaves

    def shared(self, value: int, other: int) -> int:
        """How many fields two values share: the same path and the same scalar, with items of lists taken as items."""
        total, pairs = 0, [(value, other)]
        while pairs:
            a, b = pairs.pop()
            ours, theirs = self._nodes[a], self._nodes[b]
            if a == b:
                total += ours.leaves
            elif ours.kind == theirs.kind == "object":
                under = dict(zip(theirs.keys, theirs.children, strict=True))
                pairs += [(x, under[key]) for key, x in zip(ours.keys, ours.children, strict=True) if key in under]
            elif ours.kind == theirs.kind == "list":
                pairs += self._paired(ours.children, theirs.children)
        return total

    def leaf(self, kind: str, value: object) -> int:
        """The number of a scalar, or of an empty object or list."""
        return self._number((kind, value), _Node("leaf", (), (), 1))

    def node(self, kind: Kind, keys: tuple[str, ...], children: tuple[int, ...]) -> int:
        """The number of an object or list that is not empty."""
        leaves = sum(self._nodes[child].leaves for child in children)
        return self._number((kind, keys, children), _Node(kind, keys, children, leaves))

    def _number(self, identity: object, node: _Node) -> int:
        number = self._numbers.setdefault(identity, len(self._nodes))
        if number == len(self._nodes):
            self._nodes.append(node)
        return number

    def _paired(self, ours: tuple[int, ...], theirs: tuple[int, ...]) -> list[tuple[int, int]]:
        """Items of two lists that belong together; items that share nothing are left out."""
        same = Counter(ours) & Counter(theirs)
        pairs = [(item, item) for item in same.elements()]
        a, b = _without(ours, same), _without(theirs, same)
        if len(a) == 1 == len(b):
            return [*pairs, (a[0], b[0])]
        if not a or not b:
            return pairs
        holders: dict[tuple[int, int], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for side, items in enumerate((a, b)):
            for place, item in enumerate(items):
                for field in self._fields(item):
                    holders[field][side].append(place)
        free_a, free_b = set(range(len(a))), set(range(len(b)))
        for in_a, in_b in sorted(holders.values(), key=lambda places: len(places[0]) * len(places[1])):
            for x, y in zip([x for x in in_a if x in free_a], [y for y in in_b if y in free_b], strict=False):
                pairs.append((a[x], b[y]))
                free_a.remove(x)
                free_b.remove(y)
        return pairs

    def _fields(self, value: int) -> set[tuple[int, int]]:
        """Paths and scalars of a value; items of a list share a path."""
        fields, waiting = set[tuple[int, int]](), [(0, value)]
        while waiting:
            path, number = waiting.pop()
            node = self._nodes[number]
            if node.kind == "leaf":
                fields.add((path, number))
            elif node.kind == "object":
                waiting += [(self._path(path, key), child) for key, child in zip(node.keys, node.children, strict=True)]
            else:
                below = self._path(path, None)
                waiting += [(below, child) for child in node.children]
        return fields

    def _path(self, parent: int, key: str | None) -> int:
        return self._paths.setdefault((parent, key), len(self._paths) + 1)


def _without(items: tuple[int, ...], same: Counter[int]) -> list[int]:
    supply, rest = same.copy(), list[int]()
    for item in items:
        if supply[item] > 0:
            supply[item] -= 1
        else:
            rest.append(item)
    return rest


@dataclass
class _Open:
    """An object or list whose end has not been read."""

    is_object: bool
    keys: dict[str, None]
    children: list[int]


class _Parser:
    """One pass over the tokens with a stack of what is open."""

    def __init__(self, values: Values, text: str):
        self._values, self._text, self._place = values, text, 0

    def value(self) -> int:
        """The number of the one value of the text."""
        stack: list[_Open] = []
        while True:
            value = self._begin(stack)
            while value is not None:
                if not stack:
                    if _BLANK.fullmatch(self._text, self._place) is None:
                        raise ValueError(f"text after the value, at character {self._place}")
                    return value
                value = self._follow(stack, value)

    def _begin(self, stack: list[_Open]) -> int | None:
        """Read the beginning of a value; its number where that is all of it."""
        token = self._next()
        kind, text = token.lastgroup, token.group().lstrip(" \t\n\r")
        if kind == "string":
            return self._values.leaf("string", _text(text))
        if kind == "number":
            return self._values.leaf("number", number_of(text))
        if kind == "word":
            return self._values.leaf("word", text)
        if text not in "{[":
            raise ValueError(f"{text!r} where a value is expected, at character {token.start()}")
        closing = "}" if text == "{" else "]"
        ahead = _TOKEN.match(self._text, self._place)
        if ahead is not None and ahead["mark"] == closing:
            self._place = ahead.end()
            return self._values.leaf("empty", text)
        stack.append(_Open(text == "{", {}, []))
        if text == "{":
            self._key(stack[-1])
        return None

    def _follow(self, stack: list[_Open], child: int) -> int | None:
        """Put a value into what is open; the number of that where it ends here."""
        top = stack[-1]
        top.children.append(child)
        token = self._next()
        if token["mark"] == ",":
            if top.is_object:
                self._key(top)
            return None
        if token["mark"] != ("}" if top.is_object else "]"):
            raise ValueError(f"{token.group().strip()!r} where the next item or the end is expected, at {token.start()}")
        stack.pop()
        if not top.is_object:
            return self._values.node("list", (), tuple(top.children))
        fields = sorted(zip(top.keys, top.children, strict=True), key=itemgetter(0))
        return self._values.node("object", tuple(key for key, _ in fields), tuple(number for _, number in fields))

    def _key(self, top: _Open) -> None:
        token = self._next()
        if token["string"] is None:
            raise ValueError(f"{token.group().strip()!r} where a key is expected, at character {token.start()}")
        key = _text(token["string"])
        if key in top.keys:
            raise ValueError(f"the key {key!r} twice in one object")
        top.keys[key] = None
        if self._next()["mark"] != ":":
            raise ValueError(f"no colon behind the key {key!r}")

    def _next(self) -> re.Match[str]:
        token = _TOKEN.match(self._text, self._place)
        if token is None:
            raise ValueError(f"{self._text[self._place : self._place + 20]!r} is no JSON, at character {self._place}")
        self._place = token.end()
        return token


def _text(string: str) -> str:
    return unicodedata.normalize("NFC", json.loads(string))


def number_of(text: str) -> tuple[bool, str, int]:
    """A number of JSON by value: whether it is below zero, its digits without zeros at either end, and its power of ten.

    Raises:
        ValueError: an exponent of more than 18 digits.
    """
    minus, whole, decimals, exponent = _NUMBER.fullmatch(text).groups()  # pyright: ignore[reportOptionalMemberAccess]
    written = (whole + (decimals or "")).lstrip("0")
    digits = written.rstrip("0")
    if not digits:
        return False, "0", 0
    if len((exponent or "").lstrip("+-0")) > _EXPONENT_DIGITS:
        raise ValueError(f"the exponent {exponent[:20]} is out of all reason")
    return bool(minus), digits, int(exponent or 0) - len(decimals or "") + len(written) - len(digits)
