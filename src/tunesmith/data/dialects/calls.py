"""Tool calls as programs write them: as JSON text, flat, in camel case, with an index, with arguments encoded twice.

All of these say a name and arguments without doubt, so they are read, and every form but JSON text is said. Calls that stand
in the text are ``hermes.py``'s.
"""

from typing import Any

from tunesmith.data.strict_json import loads_text

INDEX = "index of a tool call is left out"
FLAT = "tool calls without a function around name and arguments are read as calls of functions"
EMPTY = "empty arguments of a tool call are read as {}"
TWICE = "arguments that are JSON text twice over are decoded twice"
_KEYS = frozenset(("id", "type", "function"))
_NAMES = ("name", "toolName", "tool_name")
_IDS = ("id", "call_id", "toolCallId", "tool_call_id")
_ARGUMENTS = ("arguments", "args", "input")


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
