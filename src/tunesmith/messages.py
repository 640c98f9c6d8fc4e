"""The shapes of OpenAI's chat messages and tools, in the one form in which the program passes them on.

Every room speaks of messages: data reads them, templates write them, engines ask them, pages show them. They stay the plain
dictionaries that templates, endpoints and files want, and are typed here, so that a checker knows their keys. Two things
are settled before they come here (``data/conversation.py``): parts of a content are one text, and the arguments of a call
are the parsed object.

Refused: a class for a message. Jinja templates read and compare keys, and every crossing of a border (file, worker process,
endpoint) would turn it into a dictionary and back. Cost: none at run time.

Source: OpenAI's chat completions, and the names that templates on the hub have for what that lacks (``reasoning_content``).
"""

from typing import Literal, NotRequired, Required  # pydantic reads those of typing from Python 3.12 on only

from pydantic import JsonValue
from typing_extensions import TypedDict


class FunctionCall(TypedDict):
    """Which function is called, with what."""

    name: str
    arguments: dict[str, JsonValue]


class ToolCall(TypedDict):
    """One call of an assistant turn; ``id`` is what the turn with its result names."""

    id: NotRequired[str]
    type: Literal["function"]
    function: FunctionCall


class Message(TypedDict, total=False):
    """One turn of a conversation.

    Attributes:
        role: system, developer, user, assistant or tool.
        content: its text; empty where only calls stand.
        name: of the speaker.
        weight: 0 or 1, whether an assistant turn is trained on; 1 where nothing is said.
        reasoning_content: what an assistant thought before it answered.
        tool_calls: what an assistant calls.
        tool_call_id: of the call that a tool turn answers.
    """

    role: Required[str]
    content: Required[str]
    name: str
    weight: int
    reasoning_content: str
    tool_calls: list[ToolCall]
    tool_call_id: str


class Function(TypedDict, total=False):
    """A declared function; ``parameters`` is a JSON schema. A file may say more of it, which templates see as it is."""

    name: Required[str]
    description: str
    parameters: dict[str, JsonValue]


class Tool(TypedDict):
    """A function that the assistant may call."""

    type: Literal["function"]
    function: Function


Tools = list[Tool] | None
