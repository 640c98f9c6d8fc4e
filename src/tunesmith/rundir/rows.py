"""Rows: one example each, whatever file it came from, and the files of the run directory that hold them.

Every format becomes this one, so that all that follows (quality, split, templates, evaluation) knows a single shape.
It is the shape of OpenAI's chat fine-tuning files, because every peer reads it, with two differences inside the
program: ``arguments`` of a tool call is the parsed object (templates want it so), and a plain text is a single
assistant turn with ``kind`` set to ``text`` (there is nobody who asks).

``data/train.jsonl``, ``dev.jsonl`` and ``test.jsonl`` hold one row a line, and are read back as the same class. Refused: the
records of ``rundir/records``, which check every key of every line; there may be a million, and we wrote them ourselves.

What a row asks and what its answer is are asked in many places, and answered here alone.
"""

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Required, TypedDict

from tunesmith.messages import Message, Tool
from tunesmith.rundir.atomic import writing_lines
from tunesmith.rundir.records.calls import Call, Calls


class Example(TypedDict, total=False):
    """What a user's own example has to be: messages, and tools where there are some."""

    messages: Required[list[Message]]
    tools: list[Tool]
    kind: Literal["chat", "text"]


class WrittenRow(Example, total=False):
    """A row as a line of the run directory holds it; what is absent has its default."""

    id: Required[str]
    place: Required[str]
    group: str
    repeats: int


@dataclass(slots=True)  # frozen would cost 1.5 us a row, a tenth of reading it
class Row:
    """One example; nobody alters it.

    Attributes:
        id: first 12 hexadecimal digits of a hash of its content; ``-2``, ``-3`` for exact repetitions.
        place: where it stands, for people: ``line 12``, ``row 3``, ``part-1.jsonl.gz line 12``.
        messages: the conversation.
        tools: the declared functions, or None.
        group: value of the ``data.group_by`` column: rows of one group never straddle the split.
        kind: ``chat``, or ``text`` for one plain text held in a single assistant turn.
        repeats: how often it is trained on; of train rows alone.
    """

    id: str
    place: str
    messages: list[Message]
    tools: list[Tool] | None = None
    group: str | None = None
    kind: Literal["chat", "text"] = "chat"
    repeats: int = 1

    @classmethod
    def from_json(cls, written: WrittenRow) -> "Row":
        """The row of a line."""
        if len(written) == 3:  # nothing but what every row has
            return cls(written["id"], written["place"], written["messages"])
        return cls(**written)

    def to_json(self) -> WrittenRow:
        """The row as it is written in the run directory."""
        written: WrittenRow = {"id": self.id, "place": self.place, "messages": self.messages}
        if self.tools is not None:
            written["tools"] = self.tools
        if self.group is not None:
            written["group"] = self.group
        if self.kind != "chat":
            written["kind"] = self.kind
        if self.repeats != 1:
            written["repeats"] = self.repeats
        return written

    @property
    def reference(self) -> str:
        """The answer that it brings: what its last turn calls, as JSON, or that turn's text."""
        last = self.messages[-1]
        if "tool_calls" not in last:
            return last["content"]
        calls = [call["function"] for call in last["tool_calls"]]
        texts = [Call(name=call["name"], arguments=json.dumps(call["arguments"], ensure_ascii=False)) for call in calls]
        return Calls(calls=tuple(texts)).text

    @property
    def question(self) -> str:
        """What it asks: its last user turn (empty when it has none), as a user of the deployed model would type it."""
        return next((turn["content"] for turn in reversed(self.messages[:-1]) if turn["role"] == "user"), "")

    def why_not_scored(self, calls: bool = False) -> str | None:
        """Why no answer can be compared with its own; None where one can.

        Args:
            calls: whether calls are compared (metric ``tool_calls``), and not texts.
        """
        if self.kind == "text":
            return "a plain text, which asks nothing"
        if "tool_calls" not in self.messages[-1]:
            return None
        if not calls:
            return "ended by a tool call"
        declared = {tool["function"]["name"] for tool in self.tools or ()}
        called = [call["function"]["name"] for call in self.messages[-1]["tool_calls"]]
        unknown = [name for name in called if name not in declared]
        return f"it calls {unknown[0]!r:.60}, which its tools do not declare" if unknown else None


def read_rows(path: Path) -> list[Row]:
    """Rows of a file of the run directory."""
    return list(stream_rows(path))


def stream_rows(path: Path) -> Iterator[Row]:
    """The same, one at a time."""
    with path.open("rb") as file:
        for line in file:
            yield Row.from_json(json.loads(line))


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a file of rows, whole or not at all."""
    with writing_rows(path) as write:
        write(rows)


@contextmanager
def writing_rows(path: Path) -> Generator[Callable[[Iterable[Row]], None], None, None]:
    """A file of rows that is written bit by bit and appears when the block ends well, or not at all."""
    with writing_lines(path) as write:
        yield lambda rows: write(row.to_json() for row in rows)
