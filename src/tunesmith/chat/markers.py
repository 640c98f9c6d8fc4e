"""The texts of a message: what they must be, and a walk over every one of them.

A message is a small tree: content, reasoning, names, and whatever JSON the arguments of a call hold. Two things are done
to its texts before a template sees them: every string is changed (control tokens become private-use characters), and
those whose place must be known are wrapped in marks (``chat/layout.py``). Refused: a schema library, which would copy the
tree once more to say what these few lines say with the path that people need.
"""

from collections.abc import Callable
from typing import Any, TypeVar, overload

from tunesmith.errors import DataError
from tunesmith.messages import Function, FunctionCall, Message, Tool, ToolCall

T = TypeVar("T")
DEEPEST = 64  # levels of lists and dictionaries in a message or a tool declaration; templates recurse too


def check_message(message: Message, number: int) -> None:
    """Refuse a message whose content is no text, or a tool call without name and arguments.

    Raises:
        DataError: content, tool calls or arguments are of another kind, or missing.
    """
    root, content, calls = f"$.messages[{number}]", message.get("content"), message.get("tool_calls")
    if not isinstance(content, str) and not (content is None and calls):
        raise DataError(f"{root}.content is {type(content).__name__}", "expected a text")
    if calls is not None and not isinstance(calls, list):
        raise DataError(f"{root}.tool_calls is {type(calls).__name__}", "expected a list")
    for position, call in enumerate(calls or []):
        path = f"{root}.tool_calls[{position}]"
        if "arguments" not in named(call, path):
            raise DataError(f"{path}.function has no arguments", "expected a dictionary, {} where there are none")


@overload
def named(value: ToolCall, path: str) -> FunctionCall: ...


@overload
def named(value: Tool, path: str) -> Function: ...


def named(value: Any, path: str) -> Any:
    """The ``function`` of a tool or of a tool call, which must have a name.

    Raises:
        DataError: the function has no name.
    """
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{path}.function.name is missing", 'expected {"type": "function", "function": {"name": ...}}')
    return function


def mark_message(marked: Message, number: int, mark: Callable[[str, str, int], str]) -> Message:
    """Mark, in place, the texts of a message: content, reasoning, names, and the strings of arguments."""
    root = f"$.messages[{number}]"
    if reasoning := marked.get("reasoning_content"):
        marked["reasoning_content"] = mark(reasoning, f"{root}.reasoning_content", number)
    marked["content"] = mark(marked["content"], f"{root}.content", number)
    if name := marked.get("name"):
        marked["name"] = mark(name, f"{root}.name", number)
    for position, call in enumerate(marked.get("tool_calls") or []):
        path = f"{root}.tool_calls[{position}].function"
        function = call["function"]
        function["name"] = mark(function["name"], f"{path}.name", number)
        function["arguments"] = _mark_values(function["arguments"], f"{path}.arguments", number, mark)
    return marked


def _mark_values(value: Any, path: str, number: int, mark: Callable[[str, str, int], str]) -> Any:
    if isinstance(value, str):
        return mark(value, path, number)
    if isinstance(value, dict):
        return {key: _mark_values(part, f"{path}.{key}", number, mark) for key, part in value.items()}
    if isinstance(value, list):
        return [_mark_values(part, f"{path}[{i}]", number, mark) for i, part in enumerate(value)]
    return value


def map_strings(value: T, change: Callable[[str], str]) -> T:
    """A copy of ``value`` with every string in it changed, keys included.

    Raises:
        DataError: more than ``DEEPEST`` levels.
    """
    return _mapped(value, change, 0)


def _mapped(value: Any, change: Callable[[str], str], depth: int) -> Any:
    if isinstance(value, str):
        return change(value)
    if depth > DEEPEST:
        raise DataError(f"a message or a tool is nested more than {DEEPEST} levels deep", "make it flatter")
    if isinstance(value, dict):
        return {change(key): _mapped(part, change, depth + 1) for key, part in value.items()}
    if isinstance(value, list):
        return [_mapped(part, change, depth + 1) for part in value]
    return value
