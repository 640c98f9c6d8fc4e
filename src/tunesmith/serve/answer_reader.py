"""An answer as it comes, taken apart: what was thought, what is said, and at its end what is called.

A client must never see half a mark, so what may be the beginning of one is held back until more has come: a reasoning's
closing, and, where tools are declared, everything from the first character that a call can begin with. A text without such a
character streams as it comes. Whether it comes in one piece or in a hundred, the parts are the same.

A call that cannot be read stays in the text, as the model wrote it. A call that was demanded is the whole answer.
"""

import re
from dataclasses import dataclass

from tunesmith.rundir.records.calls import Call
from tunesmith.serve.habits import Thinking
from tunesmith.serve.request_tools import Calling

_CALL_BEGINS = re.compile(r"\s*[<\[{`]")


@dataclass(frozen=True)
class Part:
    """A stretch of an answer."""

    reasoning: str = ""
    content: str = ""
    calls: tuple[Call, ...] = ()


class AnswerReader:
    """One answer.

    Args:
        calling: what it may call.
        thinking: how its reasoning is marked; None: it has none.
    """

    def __init__(self, calling: Calling, thinking: Thinking | None):
        self._calling, self._thinking = calling, thinking
        self._place = "said"
        if thinking is not None:
            self._place = "before" if thinking.opening else "thinking" if thinking.closing else "header"
        self._waiting = ""  # what is not decided yet
        self._thought = self._content = ""  # so far
        self._shown = 0  # characters of the content that are out
        self._closed = False  # whether there was a closing

    def feed(self, text: str) -> Part:
        """The next text; what can be shown now."""
        self._waiting += text
        if self._calling.forced is not None:
            return Part()
        reasoning = ""
        if self._place == "before":
            self._open()
        if self._place == "thinking":
            reasoning = self._think()
        if self._place == "header":
            self._begin()
        return Part(reasoning, self._say() if self._place == "said" else "")

    def finish(self) -> Part:
        """What is left when the answer has ended."""
        if self._calling.forced is not None:
            call = self._calling.forced.call(self._waiting)
            return Part(calls=() if call is None else (call,))
        reasoning = ""
        if self._place == "thinking":
            reasoning = self._after_thought(self._waiting.rstrip())
        elif self._place != "said":
            self._content += self._waiting
        self._waiting = ""
        form = self._calling.form
        calls = () if form is None else form.calls(self._content, self._calling.tools).calls
        content = self._content
        if form is not None and calls:
            opening = form.opening.search(content)
            content = content[: opening.start()].rstrip() if opening and self._place != "header" else ""
        rest = content[self._shown :]
        return Part(reasoning, rest, calls[:1] if self._calling.one else calls)

    def _open(self) -> None:
        assert self._thinking is not None
        opening, seen = self._thinking.opening, self._waiting.lstrip()
        if seen.startswith(opening):
            self._place, self._waiting = "thinking", seen[len(opening) :]
        elif not opening.startswith(seen):
            self._place = "header"

    def _begin(self) -> None:
        """Leave out the header of what is said. Where there is another, it may be that of a call: all waits for the end."""
        assert self._thinking is not None
        header, seen = self._thinking.header, self._waiting.lstrip()
        if not header:
            self._place = "said"
        elif seen.startswith(header):
            self._place, self._waiting = "said", seen[len(header) :]

    def _think(self) -> str:
        """What was thought, up to what may be the closing; behind it the answer begins."""
        assert self._thinking is not None
        closing = self._thinking.closing
        before, closed, after = self._waiting.partition(closing)
        if closed:
            self._place, self._waiting, self._closed = "header", after, True
            return self._after_thought(before.rstrip())
        most = min(len(closing) - 1, len(before))
        held = next((n for n in range(most, 0, -1) if closing.startswith(before[-n:])), 0)
        ready = before[: len(before) - held].rstrip()
        self._waiting = before[len(ready) :]
        return self._after_thought(ready)

    def _after_thought(self, text: str) -> str:
        """A stretch of reasoning, without the white space before its first word."""
        text = text if self._thought else text.lstrip()
        self._thought += text
        return text

    def _say(self) -> str:
        """What of the answer can be shown."""
        said, self._waiting = self._waiting, ""
        if self._closed and not self._content:
            said = said.lstrip()  # between a closing and the answer
        self._content += said
        ready = len(self._content)
        if self._calling.form is not None:
            beginning = _CALL_BEGINS.search(self._content, self._shown)
            ready = beginning.start() if beginning else len(self._content.rstrip())
        shown = self._content[self._shown : ready]
        self._shown = max(self._shown, ready)
        return shown
