"""What a conversation must be, and the one form in which the program keeps it.

The rules are OpenAI's for fine-tuning files, read strictly: at most one system (or developer) turn, and only first;
then the user; user and assistant in turn; tool results after the assistant's calls, and after them the assistant, or a
user who says more before it answers (Anthropic's results beside text); the last turn is the assistant's. Templates differ in
what they do with anything else (drop it, raise, forge a turn), which is why it is refused here and not left to them.

Nearly all rows of most files are plain: ``role`` and ``content``, nothing else. ``is_plain`` settles these in about a
microsecond; whatever it is unsure of goes the general way, which finds the fault and names it. Refused: one general
way for all (a schema validator took 40 us a row).

Form kept: nulls are absent, text parts are joined without a separator, ``arguments`` is the parsed object, ``weight`` is
an int, an empty ``tool_calls`` is absent, and ``content`` is always there (empty where only calls stand).
"""

import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, cast

from pydantic import JsonValue

from tunesmith.data.problems import RowError
from tunesmith.data.strict_json import has_surrogate, loads_text, lone_surrogate, sound
from tunesmith.messages import Function, Message, Tool, ToolCall, Tools

ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM = ("system", "developer")
KEYS = ("role", "content", "name", "weight", "reasoning_content", "tool_calls", "tool_call_id")
_ONLY = {"reasoning_content": "assistant", "tool_calls": "assistant", "tool_call_id": "tool"}
MEDIA_PARTS = ("image", "image_url", "input_image", "audio", "input_audio", "video", "video_url", "file")  # types in use
_MAY_BE_EMPTY = ("tool_calls", "images", "audios", "videos")  # an empty list of these says nothing
MEDIA = ("image", "images", "audio", "audios", "video", "videos")  # columns, or keys of a message, that hold media


def is_plain(messages: Any) -> bool:
    """Whether every turn is just ``role`` and ``content`` and all is right. False: ask ``check_messages``.

    Lone surrogates are not looked for: no parser here lets one through, and looking is a tenth of reading.
    """
    if type(messages) is not list:
        return False
    try:
        contents = [message["content"] for message in messages]
        in_order = _in_order(tuple([message["role"] for message in messages]))
        return in_order and sum(map(len, messages)) == 2 * len(messages) and all(map(str.strip, contents))
    except (TypeError, KeyError):  # no object, no text, or a key that is not there
        return False


@lru_cache(4096)
def _in_order(roles: tuple[str, ...]) -> bool:
    """Perhaps a system turn, then user and assistant in turn, the last word the assistant's."""
    turns = roles[1:] if roles[:1] in (("system",), ("developer",)) else roles
    return bool(turns) and len(turns) % 2 == 0 and turns == ("user", "assistant") * (len(turns) // 2)


def check_messages(messages: Any) -> list[Message]:
    """The conversation in the form kept.

    Args:
        messages: as parsed from the file, of any type.

    Raises:
        RowError: the first thing wrong, with a path under ``$.messages``.
    """
    if not isinstance(messages, list) or not messages:
        kind = "an empty list" if messages == [] else type(messages).__name__
        raise RowError(
            "$.messages", "no-messages", f"expected a list of turns, found {kind}", "add a user and an assistant turn"
        )
    checked = [_message(message, f"$.messages[{index}]") for index, message in enumerate(messages)]
    _check_roles([message["role"] for message in checked])
    _check_turns(checked)
    weights = [message.get("weight", 1) for message in checked if message["role"] == "assistant"]
    if not any(weights):
        raise RowError(
            "$.messages", "all-weights-zero", "every assistant turn has weight 0", "give weight 1 to a turn to learn"
        )
    return checked


def check_text(messages: Any) -> list[Message]:
    """A plain text: one assistant turn of ``role`` and ``content``.

    Raises:
        RowError: it is something else, or empty.
    """
    turn = messages[0]
    if not isinstance(turn, dict) or turn.get("role") != "assistant" or set(turn) != {"role", "content"}:
        raise RowError("$.messages[0]", "not-text", f"expected one assistant turn, found {turn!s:.60}", "remove format: text")
    if not _text(turn["content"], "$.messages[0].content").strip():
        raise RowError("$.messages[0].content", "empty-turn", "empty text", "fill it or remove the row")
    return messages


def check_tools(tools: Any, path: str = "$.tools") -> Tools:
    """The declared functions, each ``{"type": "function", "function": {...}}``; None when there are none.

    Args:
        tools: a list of these, or of bare functions (``name``, ``parameters``), or either as JSON text.
        path: where they stand.

    Raises:
        RowError: code ``bad-tools``, or what is wrong with the JSON.
    """
    if isinstance(tools, str):
        tools = loads_text(tools, path) if tools.strip() else None
    if tools is None or tools == []:
        return None
    hint = 'write [{"type": "function", "function": {"name": ..., "parameters": {...}}}]'
    if not isinstance(tools, list):
        raise RowError(path, "bad-tools", f"expected a list of functions, found {type(tools).__name__}", hint)
    declared: list[Tool] = []
    for index, tool in enumerate(tools):
        where = f"{path}[{index}]"
        function = tool.get("function") if isinstance(tool, dict) and "function" in tool else tool
        if not isinstance(tool, dict) or not isinstance(function, dict):
            raise RowError(where, "bad-tools", "expected an object that describes a function", hint)
        if function is not tool:
            extra = [key for key in tool if key not in ("type", "function") and tool[key] is not None]
            if extra or tool.get("type", "function") not in ("function", None):
                raise RowError(where, "bad-tools", f"only functions are known, found {extra or tool['type']!r:.60}", hint)
        function = {key: value for key, value in function.items() if value is not None}
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise RowError(f"{where}.name", "bad-tools", "the function has no name", hint)
        if not isinstance(function.get("parameters", {}), dict):
            raise RowError(f"{where}.parameters", "bad-tools", "parameters are a JSON schema, an object", hint)
        sound(function, where)
        declared.append({"type": "function", "function": cast("Function", function)})
    return declared


def is_media(value: Any) -> bool:
    """Whether a value of a media column holds something: a path, an address, bytes, or a list or object with one in it.

    An Arrow column of images has an object in every row, all nulls where there is none.
    """
    if isinstance(value, list):
        return any(map(is_media, value))
    if isinstance(value, dict):
        return any(map(is_media, value.values()))
    return bool(value) if isinstance(value, str | bytes) else False


def media(path: str, what: str, hint: str = "remove the row, or the part if its text says all without it") -> RowError:
    """The problem of a row that is not text alone."""
    return RowError(path, "media", f"{what}; tunesmith trains on text only", hint)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``; did you mean x?``, or nothing when no known word is as near as ``cutoff`` (1: the same)."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def _message(raw: Any, path: str) -> Message:
    if not isinstance(raw, dict):
        raise RowError(path, "not-object", f"expected an object, found {type(raw).__name__}", "write role and content")
    fields = {key: value for key, value in raw.items() if value is not None and not (value == [] and key in _MAY_BE_EMPTY)}
    role = _role(fields, path)
    for key in fields:
        if key in MEDIA and is_media(fields[key]):
            raise media(f"{path}.{key}", f"{key} beside the text of a message")
        if key not in KEYS:
            raise RowError(
                f"{path}.{key}", "unknown-key", f"unknown key in a message{nearest(key, KEYS)}", "nothing would read it"
            )
        if key in _ONLY and role != _ONLY[key]:
            raise RowError(f"{path}.{key}", "misplaced-key", f"{key} on a turn of {role}", f"it belongs to {_ONLY[key]} turns")
    message: Message = {"role": role, "content": _content(fields.get("content"), path, called="tool_calls" in fields)}
    if "name" in fields:
        message["name"] = _filled(fields["name"], f"{path}.name")
    if "reasoning_content" in fields:
        message["reasoning_content"] = _text(fields["reasoning_content"], f"{path}.reasoning_content")
    if "tool_call_id" in fields:
        message["tool_call_id"] = _filled(fields["tool_call_id"], f"{path}.tool_call_id")
    if "tool_calls" in fields:
        message["tool_calls"] = _tool_calls(fields["tool_calls"], f"{path}.tool_calls")
    if "weight" in fields:
        weight = fields["weight"]
        if isinstance(weight, bool) or weight not in (0, 1):
            raise RowError(f"{path}.weight", "bad-weight", f"weight {weight!r:.40}, expected 0 or 1", "0: context, 1: learned")
        if role != "assistant":
            raise RowError(f"{path}.weight", "bad-weight", f"weight on a turn of {role}", "only assistant turns are learned")
        message["weight"] = int(weight)
    if role in ("user", "assistant") and not message["content"].strip() and "tool_calls" not in message:
        raise RowError(f"{path}.content", "empty-turn", f"empty {role} turn", "fill it or remove the row")
    return message


def _role(fields: Mapping[str, JsonValue], path: str) -> str:
    if "role" not in fields:
        raise RowError(
            path, "no-role", f"role is missing, found {', '.join(map(str, fields)) or 'no keys'}", "a message has a role"
        )
    role = fields["role"]
    if "function_call" in fields or role == "function":
        hint = 'write tool_calls: [{"type": "function", "function": {"name": ..., "arguments": ...}}] and the role tool'
        raise RowError(path, "legacy-function-call", "function_call is OpenAI's form of 2023, replaced by tool_calls", hint)
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(
            f"{path}.role", "unknown-role", f"unknown role {role!r:.40}{nearest(str(role), ROLES)}", f"use {', '.join(ROLES)}"
        )
    return role


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise RowError(path, "not-text", f"expected text, found {type(value).__name__}", "write a string")
    if has_surrogate(value):
        raise lone_surrogate(path)
    return value


def _filled(value: Any, path: str) -> str:
    text = _text(value, path)
    if not text:
        raise RowError(path, "empty-text", f"{path.rpartition('.')[2]} is empty", "fill it, or leave it out")
    return text


def _content(content: Any, path: str, *, called: bool) -> str:
    where = f"{path}.content"
    if content is None:
        if called:
            return ""
        raise RowError(path, "no-content", "content is missing", "a message has role and content")
    if not isinstance(content, list):
        return _text(content, where)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        # Some write a part without a type: {"image": "a.png"}.
        named = next((key for key in part if key in MEDIA_PARTS), None) if isinstance(part, dict) and kind is None else kind
        if isinstance(named, str) and named in MEDIA_PARTS:
            raise media(f"{where}[{index}]", f"a part of type {named}")
        if kind != "text" or {key for key, value in part.items() if value is not None} != {"type", "text"}:
            hint = 'write {"type": "text", "text": "..."}'
            raise RowError(f"{where}[{index}]", "not-text", f"expected a text part, found {part!s:.60}", hint)
        texts.append(_text(part["text"], f"{where}[{index}].text"))
    return "".join(texts)


def _tool_calls(calls: Any, path: str) -> list[ToolCall]:
    hint = 'write [{"type": "function", "function": {"name": ..., "arguments": "{...}"}}]'
    if not isinstance(calls, list):
        raise RowError(path, "bad-tool-call", f"expected a list of calls, found {type(calls).__name__}", hint)
    parsed: list[ToolCall] = []
    for index, call in enumerate(calls):
        where = f"{path}[{index}]"
        fields = {k: v for k, v in call.items() if v is not None} if isinstance(call, dict) else {}
        function = fields.get("function")
        if (
            not isinstance(function, dict)
            or fields.get("type", "function") != "function"
            or set(fields) - {"id", "type", "function"}
        ):
            raise RowError(where, "bad-tool-call", f"expected id, type and function, found {call!s:.60}", hint)
        function = {k: v for k, v in function.items() if v is not None}
        if set(function) - {"name", "arguments"} or not isinstance(function.get("name"), str) or not function["name"]:
            raise RowError(f"{where}.function", "bad-tool-call", f"expected name and arguments, found {function!s:.60}", hint)
        call_id = _text(fields["id"], f"{where}.id") if "id" in fields else None
        name = _text(function["name"], f"{where}.function.name")
        arguments = _arguments(function.get("arguments"), f"{where}.function.arguments")
        checked: ToolCall = {"type": "function", "function": {"name": name, "arguments": arguments}}
        parsed.append(checked if call_id is None else {"id": call_id, **checked})
    ids = [call["id"] for call in parsed if "id" in call]
    if len(set(ids)) != len(ids):
        raise RowError(path, "bad-tool-call", "two calls of one turn have the same id", "give each call its own id")
    return parsed


def _arguments(arguments: Any, path: str) -> dict[str, JsonValue]:
    if isinstance(arguments, str):
        try:
            arguments = loads_text(arguments, path)
        except RowError as bad:
            if bad.code == "not-json":
                raise RowError(path, "arguments-not-json", bad.message, 'write an object as JSON text: "{}" for none') from None
            raise
    if not isinstance(arguments, dict):
        kind = "nothing" if arguments is None else type(arguments).__name__
        raise RowError(path, "arguments-not-object", f"expected an object of arguments, found {kind}", 'write "{}" for none')
    sound(arguments, path)
    return arguments


def _check_roles(roles: list[str]) -> None:
    if "assistant" not in roles:
        raise RowError("$.messages", "no-assistant", "no turn of the assistant: nothing to learn", "add the answer to learn")
    systems = [index for index, role in enumerate(roles) if role in SYSTEM]
    if len(systems) > 1:
        path = f"$.messages[{systems[1]}].role"
        raise RowError(
            path, "two-systems", f"{len(systems)} system or developer turns, expected at most one", "join them into the first"
        )
    if systems and systems[0]:
        path = f"$.messages[{systems[0]}].role"
        raise RowError(
            path, "system-not-first", f"a {roles[systems[0]]} turn after others", "put it first, or make it a user turn"
        )
    if roles == ["assistant"]:
        hint = "add what was asked; a plain text that nobody asks for is named: --format text (data.format: text)"
        raise RowError("$.messages[0].role", "assistant-first", "the assistant speaks, and nobody asks", hint)
    if roles[len(systems)] == "assistant":
        path = f"$.messages[{len(systems)}].role"
        raise RowError(
            path, "assistant-first", "the assistant speaks before the user", "begin with a user turn, or remove that turn"
        )


def _check_turns(messages: list[Message]) -> None:
    """Order from the first user turn on, and which result answers which call."""
    previous = "system"
    calls: list[str | None] = []  # ids of the calls without a result, None where a call has no id
    results = 0
    for index, message in enumerate(messages):
        role = message["role"]
        path = f"$.messages[{index}]"
        if role == "tool":
            _take_result(message, calls, previous, path)
            results += 1
        elif role not in SYSTEM:
            # One result without an id may answer several calls; with ids each call has its own.
            if calls and (not results or any(call is not None for call in calls)):
                problem = f"{len(calls)} calls have no result before this {role} turn"
                raise RowError(path, "call-without-result", problem, "add a tool turn for each call, or remove the calls")
            expected = {"system": "user", "user": "assistant", "assistant": "user", "tool": "assistant"}[previous]
            if role != expected and previous != "tool":
                problem = f"expected {expected} after {previous}, found {role}"
                raise RowError(
                    f"{path}.role", "role-order", problem, "user and assistant take turns; tool results stand between them"
                )
            calls = [call.get("id") for call in message.get("tool_calls", [])]
            results = 0
        previous = "system" if role in SYSTEM else role
    if previous != "assistant":
        raise RowError(
            "$.messages", "no-answer", f"the last turn is of {previous}, not the assistant's", "end with the answer to learn"
        )


def _take_result(message: Message, calls: list[str | None], previous: str, path: str) -> None:
    if not calls:
        problem = "a tool result without a call" if previous != "tool" else "more tool results than calls"
        raise RowError(path, "result-without-call", problem, "add tool_calls to the assistant turn before it, or remove it")
    call_id = message.get("tool_call_id")
    if call_id is None:
        calls.pop(0)
    elif call_id in calls:
        calls.remove(call_id)
    else:
        problem = f"tool_call_id {call_id!r:.40} names none of the calls before it"
        raise RowError(f"{path}.tool_call_id", "unknown-call-id", problem, "use the id of the call, or leave both out")
