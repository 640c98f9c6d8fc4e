"""Calls of tools, and tools, that stay words of a text: what was no whole block, or has another model's tags.

The blocks of Hermes models are read as calls (``dialects/hermes.py``). What is left in the text after that, on a line of its
own, would be learnt as letters: the model writes a call that no server reads. A tag within a sentence is prose about tags.
"""

import re
from collections.abc import Sequence

from tunesmith.data.finding import SHOWN, Example, Finding, excerpt
from tunesmith.rundir.rows import Row

_CALL = re.compile(
    r"^[ \t]*(<tool_call>|<tool_response>|\[TOOL_CALLS\]|<\|python_tag\|>|<function=\w|<function_calls?>|<\|tool_call\|?>)",
    re.MULTILINE,
)
_TOOLS = re.compile(r"(<tools>|\[AVAILABLE_TOOLS\])\s*[\[{]\s*[\"'{\w]")
_TRACES = (b"<tool", b"TOOL", b"<|python_tag|>", b"<function", b"<|tool_call")


def may_hold(texts: bytes) -> bool:
    """Whether a tag could stand anywhere in many texts joined."""
    return any(trace in texts for trace in _TRACES)


class TextCalls:
    """Collects the rows in whose texts calls or tools are left; ``findings`` names them."""

    def __init__(self) -> None:
        self._calls: list[Example] = []
        self._tools: list[Example] = []
        self._rows = [0, 0]
        self._tags: set[str] = set()

    def add(self, rows: Sequence[Row], first: int) -> None:
        """Look at rows in some of which a tag stands; ``first`` is the number of the first one."""
        for number, row in enumerate(rows, first):
            if row.kind == "text":
                continue
            spoken = (turn["content"] for turn in row.messages if turn["role"] not in ("system", "developer"))
            call = next(filter(None, map(_CALL.search, spoken)), None)
            head = row.messages[0]["content"] if row.messages[0]["role"] in ("system", "developer") else ""
            tools = _TOOLS.search(head) if row.tools is None else None
            for kind, match, examples in ((0, call, self._calls), (1, tools, self._tools)):
                if match is None:
                    continue
                self._rows[kind] += 1
                self._tags |= {match[1]} if kind == 0 else set()
                if len(examples) < SHOWN:
                    examples.append(Example(number, excerpt(match.string[match.start() :])))

    def findings(self, of: int) -> list[Finding]:
        """Those that there are."""
        found: list[Finding] = []
        if self._rows[0]:
            text = f"rows with calls or results of tools left in the text ({', '.join(sorted(self._tags))}): trained as letters"
            hint = (
                "Write them as tool_calls and tool turns. Whole blocks of JSON that end a turn are read so: "
                '<tool_call>{"name": ..., "arguments": {...}}</tool_call>.'
            )
            found.append(Finding("call-in-text", "wrong", text, self._rows[0], of, hint, self._calls))
        if self._rows[1]:
            text = "rows whose system text lists tools, and that declare none: the list is words, not the model's own form"
            hint = "Write them as tools beside messages; one list of JSON objects in <tools>...</tools> is read so."
            found.append(Finding("tools-in-text", "wrong", text, self._rows[1], of, hint, self._tools))
        return found
