"""Tool calls as programs write them: as JSON text, flat, in camel case, with an index, with arguments encoded twice.

All of these say a name and arguments without doubt, so they are read, and every form but JSON text is said. Hermes models
write their calls and get their results inside the text; there the text is cut only when every block in it is whole.
"""

import re
from typing import Any

from tunesmith.data.problems import RowError
from tunesmith.data.strict_json import loads_text

INDEX = "index of a tool call is left out"
FLAT = "tool calls without a function around name and arguments are read as calls of functions"
EMPTY = "empty arguments of a tool call are read as {}"
TWICE = "arguments that are JSON text twice over are decoded twice"
HERMES = "<tool_call> and <tool_response> in a turn are read as tool_calls and tool turns"
_KEYS = frozenset(("id", "type", "function"))
_NAMES = ("name", "toolName", "tool_name")
_IDS = ("id", "call_id", "toolCallId", "tool_call_id")
_ARGUMENTS = ("arguments", "args", "input")
_BLOCK = re.compile(r"<(tool_call|tool_response)>\s*(.*?)\s*</\1>", re.DOTALL)
_TAG = re.compile(r"</?tool_(?:call|response)>")


def call_of(name: Any, arguments: Any, call_id: Any = None) -> Any:
    """A call in OpenAI's form."""
    call = {"type": "function", "function": {"name": name, "arguments": {} if arguments is None else arguments}}
    return call if call_id is None else {"id": call_id, **call}


def are_openai_calls(calls: Any) -> bool:
    """Whether there is nothing to read otherwise in a list of calls."""
    return isinstance(calls, list) and all(map(_is_openai_call, calls))


def _is_openai_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) and call.keys() <= _KEYS else None
    if not isinstance(function, dict):
        return False
    arguments = function.get("arguments")
    return isinstance(arguments, dict) or (isinstance(arguments, str) and arguments.startswith("{"))


def openai_calls(calls: Any, path: str, said: set[str]) -> Any:
    """A list of calls in OpenAI's form; the same list where it is in that form already.

    Args:
        calls: as in the file, of any type.
        path: where they stand.
        said: receives what was written otherwise.

    Raises:
        RowError: JSON text that is none.
    """
    if isinstance(calls, str):
        calls = loads_text(calls, path) if calls.strip() else []
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        return calls
    return [_call(call, f"{path}[{index}]", said) for index, call in enumerate(calls)]


def _call(call: Any, path: str, said: set[str]) -> Any:
    if not isinstance(call, dict):
        return call
    call = {key: value for key, value in call.items() if value is not None}
    if "index" in call:
        said.add(INDEX)
        del call["index"]
    function = call.get("function")
    if function is None:
        return _flat_call(call, path, said)
    if isinstance(function, dict) and not isinstance(function.get("arguments", ""), dict):
        where = f"{path}.function.arguments"
        call["function"] = {**function, "arguments": decoded(function.get("arguments"), where, said)}
    return call


def _flat_call(call: Any, path: str, said: set[str]) -> Any:
    """A call whose name stands beside its id. What else stands there is left for the checks to refuse."""
    name, call_id, arguments = (next((key for key in keys if key in call), None) for keys in (_NAMES, _IDS, _ARGUMENTS))
    if name is None or set(call) - {name, call_id, arguments, "type"}:
        return call
    said.add(FLAT)
    value = decoded(call[arguments], f"{path}.{arguments}", said) if arguments else {}
    return call_of(call[name], value, call[call_id] if call_id else None)


def decoded(arguments: Any, path: str, said: set[str]) -> Any:
    """Arguments with one layer of JSON text, or none.

    Raises:
        RowError: the text within is no JSON.
    """
    if not isinstance(arguments, str):
        return arguments
    if not arguments.strip():
        said.add(EMPTY)
        return {}
    if arguments.lstrip().startswith('"'):
        inner = loads_text(arguments, path)
        if isinstance(inner, str):
            said.add(TWICE)
            return inner
    return arguments


def hermes_turns(role: str, text: str, path: str, said: set[str]) -> list[Any] | None:
    """The turns of a Hermes text: calls of an assistant, results of a tool; None where no whole block ends it.

    Raises:
        RowError: a call that is no JSON.
    """
    tag = {"assistant": "tool_call", "tool": "tool_response", "user": "tool_response"}.get(role)
    if tag is None or f"<{tag}>" not in text:
        return None
    blocks = [block[2] for block in _BLOCK.finditer(text) if block[1] == tag]
    before, *between = [part.strip() for part in _BLOCK.sub("\0", text).split("\0")]
    if not blocks or any(between) or _TAG.search(before) or (before and role != "assistant"):
        return None
    said.add(HERMES)
    if role != "assistant":
        return [{"role": "tool", "content": block} for block in blocks]
    calls = [loads_text(block, path) for block in blocks]
    for call in calls:
        if not isinstance(call, dict) or not {"name", "arguments"} <= set(call):
            hint = 'write {"name": ..., "arguments": {...}} between the tags'
            raise RowError(path, "bad-tool-call", f"expected name and arguments, found {call!s:.60}", hint)
    turn = {"role": "assistant", "content": before}
    return [{**turn, "tool_calls": [call_of(call["name"], decoded(call["arguments"], path, said)) for call in calls]}]
