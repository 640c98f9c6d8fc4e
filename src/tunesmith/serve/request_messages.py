"""Messages of a request, in OpenAI's shapes, as the program's own.

Text parts are joined, ``arguments`` become the object that they are the text of, ``developer`` stays what the renderer makes
of it. What is not text is refused; so is a role that nobody knows, which other servers paste into the prompt as it stands. The
order of turns is the template's to judge, except that results follow the calls they answer, each to one: no template sees a
wrong id.

Beside OpenAI's fields an assistant's turn may have ``reasoning_content``, which this server's answers have too.
"""

from typing import cast

from pydantic import JsonValue

from tunesmith.data.conversation import MEDIA_PARTS, ROLES, nearest
from tunesmith.data.problems import RowError
from tunesmith.data.strict_json import loads_text
from tunesmith.messages import FunctionCall, Message, ToolCall
from tunesmith.serve.fields import Fields, missing, unsupported, unsupported_value, wrong_type, wrong_value

_TOOLS_INSTEAD = "it is OpenAI's form of 2023; write tool_calls and turns of the role tool."


def read_messages(body: Fields) -> list[Message]:
    """The field ``messages``.

    Raises:
        ApiError: the first thing wrong.
    """
    body.needed("messages")
    turns = body.items("messages")
    if not turns:
        raise wrong_value("messages", "the array is empty: a conversation has at least one message.")
    messages = [_message(Fields(turn, f"messages[{number}]")) for number, turn in enumerate(turns)]
    _check_results(messages)
    return messages


def _message(turn: Fields) -> Message:
    role = turn.needed_text("role")
    if role == "function":
        raise unsupported(turn.at("role"), _TOOLS_INSTEAD)
    if role not in ROLES:
        raise wrong_value(turn.at("role"), f"unknown role {role!r:.40}{nearest(role, ROLES)} Known: {', '.join(ROLES)}.")
    message: Message = {"role": role, "content": ""}
    calls = _calls(turn) if role == "assistant" else []
    content = _content(turn, refusals=role == "assistant")
    refusal = turn.text("refusal") if role == "assistant" else None
    if content is None and refusal is None and not calls:
        raise missing(turn.at("content"))
    message["content"] = content if content is not None else (refusal or "")
    if (name := turn.text("name", 64)) is not None:
        message["name"] = name
    if calls:
        message["tool_calls"] = calls
    if role == "assistant":
        turn.refuse({"function_call": _TOOLS_INSTEAD, "audio": "this server knows text only."})
        turn.take("annotations")  # what an answer of this API says of itself, sent back with it
        if reasoning := turn.text("reasoning_content"):
            message["reasoning_content"] = reasoning
    if role == "tool":
        message["tool_call_id"] = turn.needed_text("tool_call_id")
    turn.finish()
    return message


def _content(turn: Fields, *, refusals: bool) -> str | None:
    """The text of a turn; None where it has none."""
    content, where = turn.take("content"), turn.at("content")
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(where, "a string or an array of content parts", content)
    return "".join(_part(Fields(part, f"{where}[{number}]"), refusals) for number, part in enumerate(content))


def _part(part: Fields, refusals: bool) -> str:
    kind = part.needed_text("type")
    if kind in MEDIA_PARTS:
        raise unsupported_value(part.at("type"), f"a part of type {kind!r}; this server's models read text only.")
    if kind not in ("text", "refusal") or (kind == "refusal" and not refusals):
        raise wrong_value(part.at("type"), f"expected 'text', found {kind!r:.40}.")
    part.needed(kind)
    text = part.text(kind)
    part.take("prompt_cache_breakpoint")  # prompts are always cached
    part.finish()
    return text or ""


def _calls(turn: Fields) -> list[ToolCall]:
    calls = [_call(Fields(c, f"{turn.at('tool_calls')}[{n}]")) for n, c in enumerate(turn.items("tool_calls") or [])]
    ids = [call.get("id") for call in calls]
    if len(set(ids)) < len(ids):
        raise wrong_value(turn.at("tool_calls"), "two calls of one turn have the same id.")
    return calls


def _call(call: Fields) -> ToolCall:
    number = call.needed_text("id")
    kind = call.text("type")
    if kind not in ("function", None):
        raise unsupported_value(call.at("type"), f"calls are of type 'function', found {kind!r:.40}.")
    call.needed("function")
    function = call.inner("function")
    assert function is not None
    read: FunctionCall = {"name": function.needed_text("name"), "arguments": _arguments(function)}
    function.finish()
    call.take("index")  # of a streamed call that was gathered
    call.finish()
    return {"id": number, "type": "function", "function": read}


def _arguments(function: Fields) -> dict[str, JsonValue]:
    where = function.at("arguments")
    function.needed("arguments")
    text = function.text("arguments") or ""
    if not text.strip():
        return {}  # what OpenAI's models write for a function without parameters
    try:
        arguments = loads_text(text, where)
    except RowError as bad:
        raise wrong_value(where, f"{bad.message:.200}.") from None
    if not isinstance(arguments, dict):
        raise wrong_value(where, "the JSON text of one object.")
    return cast("dict[str, JsonValue]", arguments)


def _check_results(messages: list[Message]) -> None:
    """Whether each result answers a call of the turn before it, and each call has its result.

    Raises:
        ApiError: one does not.
    """
    open_ids: list[str] = []
    for number, message in enumerate(messages):
        if message["role"] == "tool":
            answered = message.get("tool_call_id", "")
            if answered not in open_ids:
                said = f"no call {answered!r:.60} is open: a turn of the role 'tool' follows the assistant's tool_calls."
                raise wrong_value(f"messages[{number}].tool_call_id", said)
            open_ids.remove(answered)
            continue
        if open_ids:
            said = f"the calls {', '.join(open_ids):.120} have no result: after tool_calls follows a turn 'tool' for each."
            raise wrong_value(f"messages[{number}]", said)
        open_ids = [call.get("id", "") for call in message.get("tool_calls", [])]
    if open_ids:
        said = f"the calls {', '.join(open_ids):.120} have no result: after tool_calls follows a turn 'tool' for each."
        raise wrong_value(f"messages[{len(messages) - 1}].tool_calls", said)
