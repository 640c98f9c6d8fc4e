"""Which form a model's tool calls have: the one that reads back what its own template writes.

The template writes a conversation that ends with known calls, and every form reads what stands there as the assistant's answer;
the one that finds exactly these calls is the model's. Two calls first, then one, since some templates write no more. Nothing is
known of names of models. A template that cannot write calls, or writes what no form reads, has none; where calls are scored
that is an error before anything is run.

Refused: marks in the template's text (``"<tool_call>" in template``), which stand there for what it reads as well.
"""

import json
from functools import lru_cache
from typing import Any

from tunesmith.chat.calls.forms import FORMS, CallForm
from tunesmith.chat.render import Renderer
from tunesmith.errors import DataError, ModelError
from tunesmith.messages import Message, Tool, ToolCall

QUESTION: Message = {"role": "user", "content": "a"}
_ARGUMENTS: tuple[Any, ...] = (
    {"text": 'a "b" {c} é', "code": "7", "count": 2, "items": [1.5, True, {"x": "y"}]},
    {"text": "d"},
)


def _tool(name: str) -> Tool:
    types = {"text": "string", "code": "string", "count": "integer", "items": "array"}
    properties: Any = {key: {"type": kind, "description": "e"} for key, kind in types.items()}
    properties["items"]["items"] = {"type": "string"}
    parameters: Any = {"type": "object", "properties": properties, "required": ["text"]}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


TOOLS = [_tool("first_one"), _tool("second_one")]
CALLS: list[ToolCall] = [
    {"id": f"call0000{number}", "type": "function", "function": {"name": tool["function"]["name"], "arguments": arguments}}
    for number, (tool, arguments) in enumerate(zip(TOOLS, _ARGUMENTS, strict=True))
]


@lru_cache(maxsize=8)
def call_form(renderer: Renderer) -> CallForm | None:
    """The form of a model's calls; None where its template writes none that can be read."""
    return _probe(renderer)[0]


def check_call_form(renderer: Renderer, shown: bool) -> CallForm:
    """The form of a model's calls, where calls are scored.

    Args:
        shown: whether some prompts hold examples that end with calls.

    Raises:
        ModelError: the template has none, or it cannot write what a prompt with such examples holds.
    """
    form, reason = _probe(renderer)
    if form is None:
        raise ModelError(
            f"the chat template's tool calls cannot be scored: {reason}", "name a model or a chat.template that knows tools"
        )
    if shown:
        example: list[Message] = [QUESTION, {"role": "assistant", "content": "", "tool_calls": CALLS[:1]}, QUESTION]
        try:
            renderer.prompt_ids(example, TOOLS)
        except DataError as error:
            raise ModelError(
                f"the chat template writes no example that ends with a call before the next question: {error.message}",
                "leave few_shot and optimized_prompt out of evaluate.arms, or name another chat.template",
            ) from error
    return form


def _probe(renderer: Renderer) -> tuple[CallForm | None, str]:
    """The form, or why there is none."""
    reason = ""
    for count in (2, 1):
        try:
            text = _written(renderer, CALLS[:count])
        except DataError as error:
            reason = error.message
            continue
        reason = f"no known form reads back what it writes: {text[:200]!r}"
        for form in FORMS:
            calls = form.calls(text, TOOLS)
            functions = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in calls.calls]
            if not calls.malformed and functions == [call["function"] for call in CALLS[:count]]:
                return form, ""
    return None, reason


def _written(renderer: Renderer, calls: list[ToolCall]) -> str:
    """What the template writes as an answer of these calls, as an engine returns it: without the token that ends it."""
    pieces = renderer.pieces([QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}], TOOLS)
    supervised = [piece for piece in pieces if piece.supervised]
    while supervised and supervised[-1].control and supervised[-1].ids[0] in renderer.stop_ids:
        supervised.pop()
    return "".join(piece.text for piece in supervised)
