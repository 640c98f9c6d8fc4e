"""The forms in which families write tool calls, and what is read from an answer in one of them.

What a model was trained to write, its runtime looks for, and nothing else: vLLM and llama.cpp have a parser a family. A call in
another family's form reaches nobody, however right it is. So an answer is read in the form of its own template (``probe.py``
finds that out); what begins like that form and is none is *malformed*; a whole call in another form is *lost*. Each is counted
apart, because the remedies differ: a longer budget or more training for the one, another template or parser for the other.

    hermes         <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    function       <tool_call><function=f><parameter=a>...</parameter></function></tool_call>
    keys           <tool_call>f<arg_key>a</arg_key><arg_value>...</arg_value></tool_call>
    invoke         <invoke name="f"><parameter name="a">...</parameter></invoke>, each tag with a prefix or none
    braces         <|tool_call>call:f{a:<|"|>...<|"|>}<tool_call|>
    escapes        <start_function_call>call:f{a:<escape>...<escape>}<end_function_call>
    harmony        to=functions.f<|channel|>commentary json<|message|>{...}
    python         <|tool_call_start|>[f(a='...')]<|tool_call_end|>
    brackets       [TOOL_CALLS][{"name": ..., "arguments": {...}}]
    brackets args  [TOOL_CALLS]f[ARGS]{...}
    deepseek       <｜tool▁call▁begin｜>f<｜tool▁sep｜>{...}<｜tool▁call▁end｜>, or with a kind before and a fence around
    list           <|tool_call|>[{"name": ..., "arguments": {...}}]
    bare           {"name": ..., "parameters": {...}} as the whole answer, behind <|python_tag|> or not
    loose          a list of such objects, or one in a Markdown fence; no runtime reads it, untrained models write it

Whose they are stands in ``docs/explanation/metrics.md``.

Refused: one lenient reader that takes a call wherever it finds one, which scores a model above what its runtime makes of it;
a table from model names to forms, wrong for every tuned or renamed model. What was thought (up to ``</think>``) is no answer.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.chat.calls.values import (
    call_of,
    call_of_braces,
    call_of_tags,
    call_of_text,
    calls_of_python,
    decode,
)
from tunesmith.messages import Tools
from tunesmith.rundir.records.calls import Call, Calls

Read = Callable[[str, re.Match[str], Tools], tuple[list[Call], int]]  # text, opening -> calls, and where they end


@dataclass(frozen=True, kw_only=True)
class CallForm:
    """How a family writes a call.

    Attributes:
        name: for people.
        opening: what a call begins with.
        read: the calls behind an opening and where they end; a ``ValueError`` where there are none.
    """

    name: str
    opening: re.Pattern[str]
    read: Read

    def calls(self, answer: str, tools: Tools) -> Calls:
        """What an answer calls in this form; nothing is counted as lost."""
        text = answer.rpartition("</think>")[2]
        calls: list[Call] = []
        malformed = place = 0
        while opening := self.opening.search(text, place):
            try:
                more, place = self.read(text, opening, tools)
                calls += more
            except ValueError:
                malformed += 1
                place = max(opening.end(), opening.start() + 1)  # an opening may be empty
        return Calls(calls=tuple(calls), malformed=malformed)


def read_calls(answer: str, form: CallForm | None, tools: Tools) -> Calls:
    """What an answer calls.

    Args:
        form: that its runtime looks for; None where an endpoint has taken the calls out and the rest is text.
        tools: what was declared.
    """
    own = Calls() if form is None else form.calls(answer, tools)
    if own.calls or own.malformed:
        return own
    others = (other.calls(answer, tools) for other in FORMS if other is not form)
    return Calls(lost=max(len(other.calls) for other in others))


def _expect(text: str, place: int, *endings: str) -> int:
    """Behind one of these, white space in front of it left out."""
    while place < len(text) and text[place].isspace():
        place += 1
    for ending in endings:
        if text.startswith(ending, place):
            return place + len(ending)
    raise ValueError(f"{endings[0]} is missing")


def _hermes(text: str, opening: re.Match[str], _: Tools) -> tuple[list[Call], int]:
    value, end = decode(text, opening.end())
    calls = [call_of(entry) for entry in (value if isinstance(value, list) else [value])]
    return calls, _expect(text, end, "</tool_call>")


def _tagged(block: re.Pattern[str], argument: re.Pattern[str]) -> Read:
    """A call whose arguments stand between tags; what is between two arguments is white space."""

    def read(text: str, opening: re.Match[str], tools: Tools) -> tuple[list[Call], int]:
        match = block.match(text, opening.start())
        if match is None or argument.sub("", match["arguments"]).strip():
            raise ValueError("a tag is missing")
        pairs = [(entry["key"], entry["value"]) for entry in argument.finditer(match["arguments"])]
        return [call_of_tags(match["name"], pairs, tools)], match.end()

    return read


def _braces(quote: str, closing: str) -> Read:
    def read(text: str, opening: re.Match[str], _: Tools) -> tuple[list[Call], int]:
        if opening["name"] is None:
            raise ValueError("a call has a name")
        call, end = call_of_braces(opening["name"], text, opening.end(), quote)
        return [call], _expect(text, end, closing)

    return read


def _harmony(text: str, opening: re.Match[str], _: Tools) -> tuple[list[Call], int]:
    message = text.find("<|message|>", opening.end())
    if message < 0 or "<|end|>" in text[opening.end() : message]:
        raise ValueError("<|message|> is missing")
    start = message + len("<|message|>")
    ends = [end for mark in ("<|call|>", "<|end|>", "<|start|>") if (end := text.find(mark, start)) >= 0]
    end = min(ends, default=len(text))
    return [call_of_text(opening["name"], text[start:end])], end


def _python(text: str, opening: re.Match[str], _: Tools) -> tuple[list[Call], int]:
    end = text.find("<|tool_call_end|>", opening.end())
    if end < 0:
        raise ValueError("<|tool_call_end|> is missing")
    return calls_of_python(text[opening.end() : end]), end + len("<|tool_call_end|>")


def _list(text: str, opening: re.Match[str], _: Tools) -> tuple[list[Call], int]:
    value, end = decode(text, opening.end())
    if not isinstance(value, list) or not value:
        raise ValueError("calls are a list")
    return [call_of(entry) for entry in value], end


def _args(text: str, opening: re.Match[str], _: Tools) -> tuple[list[Call], int]:
    value, end = decode(text, opening.end())
    return [call_of({"name": opening["name"], "arguments": value})], end


_DEEPSEEK = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>(?P<fenced>[^\n<]+)\n```json\n(?P<json>.*?)\n```"
    r"|(?P<name>[^\n<]+)<｜tool▁sep｜>(?P<bare>.*?))\s*<｜tool▁call▁end｜>",
    re.DOTALL,
)


def _deepseek(text: str, opening: re.Match[str], _: Tools) -> tuple[list[Call], int]:
    match = _DEEPSEEK.match(text, opening.start())
    if match is None:
        raise ValueError("<｜tool▁call▁end｜> is missing")
    name, arguments = (match["fenced"], match["json"]) if match["fenced"] else (match["name"], match["bare"])
    return [call_of_text(name.strip(), arguments)], match.end()


def _bare(text: str, opening: re.Match[str], _: Tools) -> tuple[list[Call], int]:
    """All of the answer: one object, or several with semicolons between."""
    body, place, calls = text.rstrip(), opening.end(), list[Call]()
    while place < len(body):
        value, place = decode(body, place)
        calls.append(call_of(value))
        while place < len(body) and body[place] in "; \t\r\n":
            place += 1
    if not calls:
        raise ValueError("no call")
    return calls, len(text)


def _loose(text: str, opening: re.Match[str], _: Tools) -> tuple[list[Call], int]:
    """A list of calls, or one in a fence, and nothing behind it."""
    value, end = decode(text, opening.end())
    if text[end:].strip().strip("`").strip():
        raise ValueError("text behind the calls")
    return [call_of(entry) for entry in (value if isinstance(value, list) else [value])], len(text)


_FUNCTION = _tagged(
    re.compile(r"<tool_call>\s*<function=(?P<name>[^>\n]+)>(?P<arguments>.*?)</function>\s*</tool_call>", re.DOTALL),
    re.compile(r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>", re.DOTALL),
)
_KEYS = _tagged(
    re.compile(r"<tool_call>\s*(?P<name>[^\s<{]+)\s*(?P<arguments>.*?)</tool_call>", re.DOTALL),
    re.compile(r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>", re.DOTALL),
)
_INVOKE = _tagged(
    re.compile(r'<(?P<prefix>\w+:)?invoke name="(?P<name>[^"\n]+)">(?P<arguments>.*?)</(?P=prefix)?invoke>', re.DOTALL),
    re.compile(r'<(?:\w+:)?parameter name="(?P<key>[^"\n]+)"[^>]*>(?P<value>.*?)</(?:\w+:)?parameter>', re.DOTALL),
)
_TOOL_CALL = re.compile(r"<tool_call>")
_NAMED = r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:'

FORMS = (
    CallForm(name="hermes", opening=_TOOL_CALL, read=_hermes),
    CallForm(name="function", opening=_TOOL_CALL, read=_FUNCTION),
    CallForm(name="keys", opening=_TOOL_CALL, read=_KEYS),
    CallForm(name="invoke", opening=re.compile(r"<(?:\w+:)?invoke\b"), read=_INVOKE),
    CallForm(
        name="braces",
        opening=re.compile(r"<\|tool_call>(?:call:(?P<name>[^\s{]+))?"),
        read=_braces('<|"|>', "<tool_call|>"),
    ),
    CallForm(
        name="escapes",
        opening=re.compile(r"<start_function_call>(?:call:(?P<name>[^\s{]+))?"),
        read=_braces("<escape>", "<end_function_call>"),
    ),
    CallForm(name="harmony", opening=re.compile(r"\bto=functions\.(?P<name>[\w.-]+)"), read=_harmony),
    CallForm(name="python", opening=re.compile(r"<\|tool_call_start\|>"), read=_python),
    CallForm(name="brackets", opening=re.compile(r"\[TOOL_CALLS\]"), read=_list),
    CallForm(name="brackets args", opening=re.compile(r"\[TOOL_CALLS\]\s*(?P<name>[\w.-]*)(?:\[ARGS\])?"), read=_args),
    CallForm(name="deepseek", opening=re.compile(r"<｜tool▁call▁begin｜>"), read=_deepseek),
    CallForm(name="list", opening=re.compile(r"<\|tool_call\|>"), read=_list),
    CallForm(name="bare", opening=re.compile(rf"\A\s*(?:<\|python_tag\|>)?\s*(?={_NAMED})"), read=_bare),
    CallForm(name="loose", opening=re.compile(rf"\A\s*(?:```(?:json)?\s*(?=\[?\s*{_NAMED})|(?=\[\s*{_NAMED}))"), read=_loose),
)
