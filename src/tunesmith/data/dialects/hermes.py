"""Calls, results and declared tools that stand in the text, between the tags of Hermes models.

``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` ends an assistant's text, ``<tool_response>`` stands in the turn of
a tool or of a user, a list in ``<tools>`` in the system text. As text they would be learnt as letters of one family's template;
as calls they are written as the model at hand writes its own. A text is cut only when every block in it is whole; one that is
not stays a text, and is a finding (``data/text_calls.py``).
"""

import re
from typing import Any

from tunesmith.data.dialects.calls import call_of, decoded
from tunesmith.data.problems import RowError
from tunesmith.data.strict_json import loads_text

CALLS = "<tool_call> and <tool_response> in a turn are read as tool_calls and tool turns"
TOOLS = "<tools> in the system text is read as tools, and taken out of the text"
TRACE = "<tool"
_BLOCK = re.compile(r"<(tool_call|tool_response)>\s*(.*?)\s*</\1>", re.DOTALL)
_TAG = re.compile(r"</?tool_(?:call|response)>")
_TOOLS = re.compile(r"<tools>\s*([\[{].*?)\s*</tools>", re.DOTALL)
_OWNERS = {"assistant": "tool_call", "tool": "tool_response", "user": "tool_response"}


def holds_tags(messages: list[Any]) -> bool:
    """Whether a tag could stand in any of many texts."""
    return any(TRACE in message["content"] for message in messages)


def hermes_turns(role: str, text: str, path: str, said: set[str]) -> list[Any] | None:
    """The turns of a text: calls of an assistant, results of a tool; None where no whole blocks are all that it ends with.

    Args:
        role: whose text it is; a user may say more after the results.
        text: of the turn.
        path: where it stands.
        said: receives what is read as something else.

    Raises:
        RowError: a call that is no JSON.
    """
    tag = _OWNERS.get(role)
    if tag is None or f"<{tag}>" not in text:
        return None
    blocks = [block[2] for block in _BLOCK.finditer(text) if block[1] == tag]
    before, *between = [part.strip() for part in _BLOCK.sub("\0", text).split("\0")]
    after = between.pop() if between and role == "user" else ""
    if not blocks or any(between) or _TAG.search(before + after) or (before and role != "assistant"):
        return None
    if role != "assistant":
        said.add(CALLS)
        results = [{"role": "tool", "content": block} for block in blocks]
        return [*results, {"role": "user", "content": after}] if after else results
    if not all(block.startswith("{") for block in blocks):
        return None  # words about tags
    calls = [loads_text(block, path) for block in blocks]
    for call in calls:
        if not isinstance(call, dict) or not {"name", "arguments"} <= set(call):
            hint = 'write {"name": ..., "arguments": {...}} between the tags'
            raise RowError(path, "bad-tool-call", f"expected name and arguments, found {call!s:.60}", hint)
    said.add(CALLS)
    turn = {"role": "assistant", "content": before}
    return [{**turn, "tool_calls": [call_of(call["name"], decoded(call["arguments"], path, said)) for call in calls]}]


def declared_tools(text: str) -> tuple[list[Any], str] | None:
    """The tools that a system text declares, and the text without them; None where there are none or they are no JSON."""
    blocks = _TOOLS.findall(text)
    if len(blocks) != 1:
        return None
    try:
        listed = loads_text(blocks[0], "") if blocks[0].startswith("[") else None
        tools = [loads_text(line, "") for line in blocks[0].splitlines() if line.strip()] if listed is None else listed
    except RowError:
        return None
    if not tools or not all(isinstance(tool, dict) and {"name", "function"} & tool.keys() for tool in tools):
        return None
    return tools, _TOOLS.sub("", text).strip()
