"""Limits on what a chat template may compute: it is a stranger's program, and a sandbox bounds neither its time nor its memory.

transformers compiles templates in Jinja's sandbox, which keeps them away from files and from Python's insides, and lets them
write ``'a' * 10**9`` or turn two nested loops of 100,000. Here that sandbox gets limits, in the place where transformers takes
it from, so every template of the process has them, whoever renders it:

- a text, a list or a number beyond ``LONGEST``, ``ELEMENTS`` or ``BITS`` is refused before it is made, and texts beyond
  ``ALTOGETHER`` in one rendering: operators, ``~``, filters and methods that make more of what they are given, and the output;
- turns of loops and calls are counted; from ``FREE_STEPS`` on the processor's time counts too, and ends after ``SECONDS``.

Within them a template writes what it writes without, character for character.

Cost: 0.1 us a turn of a loop, 0.5 us an operator or a filter that is watched. Refused: a child process with limits, which would
cost every row a message to and fro, and whose death cannot say what it was about; ``signal.setitimer``, which works in the main
thread alone and never within one operator; a copy of transformers' rendering, which would drift from it.

Not bounded: what a template holds on to in texts of four-byte characters, which is up to four times ``ALTOGETHER``.
"""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

LONGEST, ALTOGETHER = 2**24, 2**28  # characters of a text, and of all that one rendering makes
ELEMENTS, BITS = 2**20, 2**16  # of a list, of a number
FREE_STEPS, SECONDS = 20_000, 0.5  # steps that nobody times; of the processor, for the others
STEPS_A_LOOK = 256
CHARACTERS_A_STEP = 4_096  # that are copied in the time of some turns
USUAL_INDENT = 16
SMALL = 512  # characters or a number, of which no step of a template makes much
WIDE = re.compile(r"\d{6,}|\{[^{}]*\{|%[-+ #0]*\*")  # a format of a million columns, or of as many as an argument says
JOINED, COUNTED = "_joined", "_counted"
METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs", "replace", "join", "format", "format_map", "translate")
FILTERS = ("center", "replace", "join", "format", "indent", "wordwrap", "batch", "slice", "tojson", "urlize", "xmlattr")


class TooMuch(jinja2.TemplateRuntimeError):
    """A template that computes more than any chat template has a reason to."""


class _Budget(threading.local):
    """What the rendering that a thread is at has taken so far."""

    steps = 0
    characters = 0
    ends = 0.0

    def begin(self) -> None:
        """A rendering begins."""
        self.steps = self.characters = 0

    def step(self, number: int = 1) -> None:
        """Turns of a loop, or what takes as long."""
        before, self.steps = self.steps, self.steps + number
        if before < FREE_STEPS:
            if self.steps >= FREE_STEPS:
                self.ends = time.thread_time() + SECONDS
        elif before // STEPS_A_LOOK != self.steps // STEPS_A_LOOK and time.thread_time() > self.ends:
            raise TooMuch(f"it computes for more than {SECONDS:g} s ({self.steps:,} turns of loops and calls)")

    def text(self, characters: int) -> None:
        """A text that is about to be made."""
        if characters > LONGEST:
            raise TooMuch(f"it makes a text of {characters:,} characters, {LONGEST:,} are the limit")
        self.characters += characters
        if self.characters > ALTOGETHER:
            raise TooMuch(f"it makes texts of {self.characters:,} characters altogether, {ALTOGETHER:,} are the limit")
        self.step(1 + characters // CHARACTERS_A_STEP)

    def grown(self, characters: int) -> None:
        """A text that is about to be made of less; it counts twice, since nothing that was given bounds it."""
        self.text(characters)
        self.characters += characters

    def elements(self, number: int) -> None:
        """A list that is about to be made."""
        if number > ELEMENTS:
            raise TooMuch(f"it makes a list of {number:,} elements, {ELEMENTS:,} are the limit")
        self.step(1 + number // STEPS_A_LOOK)


_budget = _Budget()


class _Watch(NodeTransformer):
    """A template's program with its loops counted, and ``~`` as a filter of ours."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        node = self.generic_visit(node)  # type: ignore[assignment]
        node.iter = nodes.Filter(node.iter, COUNTED, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        node = self.generic_visit(node)  # type: ignore[assignment]
        pieces = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(pieces, JOINED, [], [], None, None, lineno=node.lineno)


class LimitedTemplate(jinja2.Template):
    """A template whose every rendering begins with a new budget."""

    def render(self, *arguments: Any, **variables: Any) -> str:
        """Its text."""
        _budget.begin()
        return super().render(*arguments, **variables)

    def generate(self, *arguments: Any, **variables: Any) -> Iterator[str]:
        """Its text, piece by piece."""
        _budget.begin()
        return super().generate(*arguments, **variables)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    template_class = LimitedTemplate

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        del self.globals["lipsum"]  # which writes as much Latin as it is asked for
        self.concat = _concat

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        if JOINED not in self.filters:  # the first template of an environment, whose maker has given it its filters by now
            self.filters |= {name: _watched(name, self.filters[name]) for name in FILTERS}
            self.filters |= {JOINED: _joined, COUNTED: _counted}
        return super()._generate(_Watch().visit(source), *arguments, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator, where it is not too large."""
        if operator == "+" and type(left) is str and type(right) is str:
            if (size := len(left) + len(right)) > SMALL:
                _budget.text(size)
            return left + right
        if type(left) is not int or type(right) is not int or left > SMALL or right > 8:
            _watch_operator(operator, left, right)
        return self.binop_table[operator](left, right)

    def call(__self, __context: Any, __obj: Any, *arguments: Any, **options: Any) -> Any:
        """The result of a call, where it is not too large."""
        _budget.step()
        text = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)  # ``str.format`` comes wrapped
        if isinstance(text, str):
            name = __obj.__name__
            if name in METHODS:
                arguments = _watch_maker(name, text, arguments, options)
        return super().call(__context, __obj, *arguments, **options)


def _watch_operator(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int | float) and isinstance(right, int | float):
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > BITS:
                raise TooMuch(f"it computes a number of {bits:,} bits, {BITS:,} are the limit")
    elif operator == "+":
        size = _size(left) + _size(right)
        (_budget.text if isinstance(left, str) else _budget.elements)(size)
    elif operator == "*":
        thing, times = (right, left) if isinstance(left, int) else (left, right)
        _grow(thing, _size(thing) * times if isinstance(times, int) else 0)
    elif operator == "%" and isinstance(left, str):
        _watch_format(left, right if isinstance(right, tuple) else (right,), {})


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _grow(thing: Any, size: int) -> None:
    (_budget.grown if isinstance(thing, str | bytes) else _budget.elements)(size)


def _watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is asked first how large its result can be."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # what jinja2 itself gives, before what the template gives

    def watched(*arguments: Any, **options: Any) -> Any:
        value, *others = arguments[first:]
        if name == "join":
            value = list(value)
        others = _watch_maker(name, value, tuple(others), options)
        return function(*arguments[:first], value, *others, **options)

    if first:
        watched.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return watched


def _watch_maker(name: str, value: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, ...]:
    """Refuse what would make too much of a value; the arguments, where an iterable among them had to be taken apart."""
    given = (*arguments, *options.values())
    widest = max((number for number in given if isinstance(number, int)), default=0)
    longest = max((len(text) for text in given if isinstance(text, str)), default=0)
    text = value if isinstance(value, str) else ""
    if name == "join":
        pieces = list(arguments[0]) if isinstance(value, str) and arguments else value if isinstance(value, list) else []
        _budget.text(sum(map(_size, pieces)) + len(pieces) * (len(text) + longest))
        return (pieces, *arguments[1:]) if isinstance(value, str) and arguments else arguments
    if name == "replace":
        old = str(given[0]) if given else ""
        _budget.grown(len(text) + (text.count(old) if text else 0) * longest)
    elif name in ("format", "format_map"):
        _watch_format(text, arguments, options)
    elif name in ("indent", "expandtabs", "translate", "wordwrap", "urlize", "xmlattr"):
        _budget.grown(len(text) + (1 + text.count("\n") + text.count("\t")) * max(widest, longest))
    elif name in ("batch", "slice"):
        _budget.elements(widest)
    elif name == "tojson":
        indent = max(widest, longest)
        _budget.text(_nested(value) * (indent if indent > USUAL_INDENT else 1))
    else:
        _budget.grown(max(len(text), widest))
    return arguments


def _watch_format(text: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    if WIDE.search(text):
        raise TooMuch(f"it fills a format with columns: {text[:60]!r}")
    given = (*arguments, *options.values())
    _budget.grown(len(text) + (text.count("{") + text.count("%")) * max(map(_size, given), default=0))


def _nested(value: Any) -> int:
    """Characters and elements of a value, roughly as JSON writes them."""
    if isinstance(value, dict):
        return 2 + sum(_size(key) + _nested(entry) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return 2 + sum(map(_nested, value))
    return 2 + _size(value)


def _joined(pieces: list[Any]) -> str:
    """What ``~`` does."""
    return _concat(map(str, pieces))


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """What a loop turns over."""
    step = _budget.step
    for item in items:
        step()
        yield item


def _concat(pieces: Iterable[str]) -> str:
    """The output of a template, a macro or a block."""
    texts: list[str] = []
    characters = 0
    for text in pieces:
        characters += len(text)
        if characters > LONGEST:
            break
        texts.append(text)
    if characters > SMALL:
        _budget.text(characters)
    return "".join(texts)


chat_template_utils.ImmutableSandboxedEnvironment = LimitedEnvironment  # type: ignore[misc] - there it is made, template by template
