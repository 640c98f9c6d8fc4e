"""A content that is a list of blocks: Anthropic's, the Responses API's, those of trainers, and camel case forms of them.

What a block is decides where it goes: text is content, thinking is reasoning, a call is a tool call, a result is a turn of its
own. A message has one order of these (reasoning, text, calls; results before text), so blocks in any other order would be said
in another order than they were written, and are refused.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.conversation import MEDIA_PARTS, media
from tunesmith.data.dialects.calls import call_of, decoded
from tunesmith.data.problems import RowError

ANTHROPIC = "Anthropic blocks: tool_use is read as tool_calls, tool_result as a tool turn, thinking as reasoning_content"
CAMEL = "toolCall and toolResult are read as tool_calls and tool turns"
REASONING = "parts of type reasoning are read as reasoning_content"
IS_ERROR = "is_error of a tool_result is left out"
CACHE = "cache_control is left out"
TOOL_JSON = "results of tools that are objects or lists are written as JSON text"
_TEXT = ("text", "input_text", "output_text")
_THOUGHT = {"thinking": "thinking", "reasoning": "value", "thought": "text"}
_CALL = ("tool_use", "toolCall", "tool_call", "tool-call")
_RESULT = ("tool_result", "toolResult", "tool-result")
_ORDER = ("thinking", "text", "a call")
_SILENT = ("annotations", "citations", "logprobs")  # where they are empty


@dataclass
class Blocks:
    """The blocks of one content, sorted by where they go."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    last: int = 0  # of _ORDER

    def follow(self, kind: str, path: str) -> None:
        """Note that a block of this kind comes next.

        Raises:
            RowError: it belongs before what stands there already.
        """
        number = _ORDER.index(kind)
        if number < self.last:
            problem = f"{kind} after {_ORDER[self.last]} in one turn"
            raise RowError(path, "block-order", problem, "split the turn, or put thinking first, then text, then calls")
        self.last = number


def sorted_blocks(content: list[Any], path: str, said: set[str]) -> Blocks | None:
    """The blocks of a content; None where one of them has no type, or all are plain text.

    Args:
        content: the list.
        path: where it stands.
        said: receives what is read as something else.

    Raises:
        RowError: media, a type that is not known, or an order that a message has not.
    """
    kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
    if not content or not all(isinstance(kind, str) for kind in kinds):
        return None
    blocks = Blocks()
    for index, (kind, raw) in enumerate(zip(kinds, content, strict=True)):
        where = f"{path}[{index}]"
        part = {key: value for key, value in raw.items() if value is not None and not (key in _SILENT and value == [])}
        if part.pop("cache_control", None) is not None:
            said.add(CACHE)
        if kind in _TEXT:
            _text(blocks, part, where)
        elif kind in _THOUGHT:
            blocks.follow("thinking", where)
            blocks.thoughts.append(_one_text(part, (_THOUGHT[kind], "text", "thinking"), where))
            said.add(ANTHROPIC if kind == "thinking" else REASONING)
        elif kind in _CALL:
            blocks.follow("a call", where)
            said.add(ANTHROPIC if kind == "tool_use" else CAMEL)
            blocks.calls.append(_call(part, where, said))
        elif kind in _RESULT:
            if blocks.texts:
                raise RowError(where, "block-order", f"{kind} after text in one turn", "put results first, or split the turn")
            said.add(ANTHROPIC if kind == "tool_result" else CAMEL)
            blocks.results.append(_result(part, where, said))
        elif kind in MEDIA_PARTS:
            raise media(where, f"a part of type {kind}")
        else:
            hint = 'write {"type": "text", "text": "..."}'
            raise RowError(where, "not-text", f"expected a text part, found a part of type {kind:.40}", hint)
    return blocks


def _text(blocks: Blocks, part: Any, path: str) -> None:
    if blocks.results:
        blocks.last = 1
    else:
        blocks.follow("text", path)
    extra = set(part) - {"type", "text", "value"}
    if extra or len(part) != 2:
        hint = 'write {"type": "text", "text": "..."}'
        raise RowError(path, "not-text", f"expected a text part, found {part!s:.60}", hint)
    blocks.texts.append(_one_text(part, ("text", "value"), path))


def _one_text(part: Any, names: tuple[str, ...], path: str) -> str:
    name = next((name for name in names if name in part), names[0])
    if not isinstance(part.get(name), str):
        raise RowError(f"{path}.{name}", "not-text", f"expected text, found {part.get(name)!s:.40}", "write a string")
    return part[name]


def _call(part: Any, path: str, said: set[str]) -> Any:
    name = next((key for key in ("name", "toolName") if key in part), None)
    if name is None:
        raise RowError(path, "bad-tool-call", f"expected a name, found {part!s:.60}", "write name and input")
    arguments = next((key for key in ("input", "arguments", "args") if key in part), None)
    call_id = part.get("id", part.get("toolCallId"))
    return call_of(part[name], decoded(part[arguments], f"{path}.{arguments}", said) if arguments else {}, call_id)


def _result(part: Any, path: str, said: set[str]) -> Any:
    if part.get("is_error"):
        said.add(IS_ERROR)
    call_id = next((part[key] for key in ("tool_use_id", "toolCallId", "tool_call_id") if key in part), None)
    content = part.get("content", part.get("result", part.get("output", "")))
    turn = {"role": "tool", "content": result_text(content, f"{path}.content", said)}
    return turn if call_id is None else {**turn, "tool_call_id": call_id}


def result_text(content: Any, path: str, said: set[str]) -> Any:
    """What a tool gave back, as text: parts of text joined, any other object or list as JSON text.

    Raises:
        RowError: a part that is no text.
    """
    if isinstance(content, list) and content and all(isinstance(part, dict) and "type" in part for part in content):
        blocks = sorted_blocks(content, path, said)
        return content if blocks is None else "".join(blocks.texts)
    if isinstance(content, dict | list):
        said.add(TOOL_JSON)
        return json.dumps(content, ensure_ascii=False)
    return content
