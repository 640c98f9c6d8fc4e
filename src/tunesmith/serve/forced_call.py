"""A call that a request demands (``tool_choice: required``, or a function by name): the model begins it because it must.

The template itself says how a call begins. One is rendered with known arguments, and what stands before them goes behind the
prompt as token ids, control tokens included; the arguments are then bound to the function's own schema, token by token. So the
call is written in the form that the model was trained in, and its arguments are never wrong by their schema. Where there are
several functions to choose from, the prompt ends before the name, and names are part of the grammar.

It works for the families that write arguments as a JSON object; the others are told so. Refused: to ask for bare JSON in the
place of an answer, as other servers do, which no tuned model has ever been asked for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from tunesmith.chat.render import Piece, Renderer
from tunesmith.chat.vocabulary import AFTER, MIDDLE
from tunesmith.engines.constraint import OPTIONS, as_text
from tunesmith.errors import DataError, RecipeError
from tunesmith.messages import Message, Tool
from tunesmith.rundir.records.calls import Call
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.fields import unsupported_value

_KNOWN: dict[str, JsonValue] = {"a": "b1b"}


@dataclass(frozen=True)
class Forced:
    """The beginning of a call.

    Attributes:
        ids: behind the prompt.
        grammar: of what follows.
        openings: of each function its name, and what is written before its arguments.
    """

    ids: tuple[int, ...]
    grammar: str
    openings: tuple[tuple[str, str], ...]

    def call(self, text: str) -> Call | None:
        """The call that an answer is; None where it ends before its arguments begin."""
        for name, opening in self.openings:
            if text.startswith(opening) and text[len(opening) :].strip():
                return Call(name=name, arguments=text[len(opening) :].strip())
        return None


def forced_call(renderer: Renderer, tools: Sequence[Tool]) -> Forced:
    """The beginning of a call of one of these functions.

    Raises:
        ApiError: this model's calls cannot be begun for it, or a schema cannot be enforced.
    """
    grammars = [_arguments(tool, number) for number, tool in enumerate(tools)]
    names = [tool["function"]["name"] for tool in tools]
    try:
        written = [_written(renderer, tool) for tool in tools]
    except DataError:
        raise _not_here() from None
    pieces, before = written[0]
    starts = [len(before)] if len(tools) == 1 else _places_of_name(names, [text for _, text in written])
    for start in starts:
        end = len(before[:start].rstrip())
        openings = [text[end:] for _, text in written]
        if end and not any(renderer.vocabulary.tokens(opening) for opening in openings):
            pairs = enumerate(zip(openings, grammars, strict=True))
            rules = [f"c{n}: {json.dumps(opening)} {rest}" if opening else f"c{n}: {rest}" for n, (opening, rest) in pairs]
            choice = " | ".join(f"c{number}" for number in range(len(tools)))
            grammar = "\n".join(["%llguidance {}", f"start: {choice}", *rules, ""])
            return Forced(_ids(renderer, pieces, end), grammar, tuple(zip(names, openings, strict=True)))
    raise _not_here()


def _not_here() -> ApiError:
    return unsupported_value(
        "tool_choice", "this model's template writes calls in a form that cannot be begun for it; name one function, or 'auto'."
    )


def _arguments(tool: Tool, number: int) -> str:
    """The grammar of a function's arguments."""
    nothing: dict[str, JsonValue] = {"type": "object", "properties": {}, "additionalProperties": False}
    schema = tool["function"].get("parameters") or nothing
    where = f"tools[{number}].function.parameters"
    try:
        as_text(schema)
    except RecipeError as error:
        raise ApiError(400, f"Invalid schema for '{where}': {error.message:.400}", "invalid_json_schema", where) from None
    return f"%json {json.dumps({**schema, 'x-guidance': OPTIONS})}"


def _written(renderer: Renderer, tool: Tool) -> tuple[list[Piece], str]:
    """A turn that calls a function, and its text before the arguments.

    Raises:
        DataError: the template writes no calls, or their arguments in another form.
    """
    question: Message = {"role": "user", "content": "a"}
    name = tool["function"]["name"]
    calls: Message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call00000", "type": "function", "function": {"name": name, "arguments": _KNOWN}}],
    }
    pieces = renderer.pieces([question, calls], [tool])
    text = "".join(piece.text for piece in pieces if piece.supervised)
    for place, character in enumerate(text):
        if character == "{":
            try:
                value, _ = json.JSONDecoder().raw_decode(text, place)
            except ValueError:
                continue
            if value == _KNOWN:
                return pieces, text[:place]
    raise DataError("the template writes arguments as no JSON object", "name another function")


def _places_of_name(names: Sequence[str], texts: Sequence[str]) -> list[int]:
    """Where in the first text the name of the function is all that differs from the others."""
    first, places, start = texts[0], list[int](), texts[0].find(names[0])
    while start >= 0:
        after = first[start + len(names[0]) :]
        if all(text == f"{first[:start]}{name}{after}" for name, text in zip(names, texts, strict=True)):
            places.append(start)
        start = first.find(names[0], start + 1)
    return places


def _ids(renderer: Renderer, pieces: list[Piece], end: int) -> tuple[int, ...]:
    """Token ids of the first ``end`` characters of the turn."""
    ids: list[int] = []
    position, begins = 0, AFTER
    for piece in pieces:
        if piece.supervised and position < end:
            whole = position + len(piece.text) <= end
            text = piece.text[: end - position]
            ids += piece.ids if whole else renderer.vocabulary.encode([(text, begins)])[0]
            position += len(text)
        begins = AFTER if piece.control else MIDDLE
    return tuple(ids)
