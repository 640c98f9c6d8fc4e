"""Tool calls as an answer holds them: what was read, and what could not be read.

Arguments stay the JSON text that the model wrote. A parsed object has lost what decides whether they are right: a key that
stands twice, ``9007199254740993.0``, ``1e400``. Refused: OpenAI's shape (``messages.ToolCall``), which holds the object.
"""

import json
from dataclasses import dataclass

from tunesmith.rundir.records.base import Record


@dataclass(frozen=True, kw_only=True)
class Call(Record):
    """One call.

    Attributes:
        name: of the function.
        arguments: JSON text of an object.
    """

    name: str
    arguments: str

    @property
    def text(self) -> str:
        """The call as JSON."""
        return f'{{"name": {json.dumps(self.name, ensure_ascii=False)}, "arguments": {self.arguments}}}'


@dataclass(frozen=True, kw_only=True)
class Calls(Record):
    """What an answer calls.

    Attributes:
        calls: in the order in which they stand.
        malformed: places that begin as a call does and are none.
        lost: calls in a form that the model's runtime does not look for, so that nobody would carry them out.
    """

    calls: tuple[Call, ...] = ()
    malformed: int = 0
    lost: int = 0

    @property
    def text(self) -> str:
        """The calls as one JSON object; what a row's reference is where its answer calls functions."""
        return f'{{"tool_calls": [{", ".join(call.text for call in self.calls)}]}}'
