"""Gemini and Vertex AI: ``contents`` of ``parts``, and a ``systemInstruction`` beside them."""

import json
from typing import Any

from tunesmith.data.conversation import media
from tunesmith.data.dialects.calls import call_of
from tunesmith.data.draft import Draft
from tunesmith.data.problems import RowError

NOTE = "gemini: Gemini's contents and parts are read as turns, functionCall and functionResponse as tool_calls and tool turns"
READS = ("contents", "systemInstruction", "system_instruction", "tools")
_SYSTEM = ("systemInstruction", "system_instruction")
_ROLES = {"user": "user", "model": "assistant", "function": "tool", "tool": "tool"}


def matches(row: Any) -> bool:
    """Whether a row is one."""
    contents = row.get("contents")
    return isinstance(contents, list) and any(isinstance(turn, dict) and "parts" in turn for turn in contents)


def draft(row: Any, said: set[str]) -> Draft:
    """The turns of a row.

    Raises:
        RowError: a part that is neither text nor a call nor its result.
    """
    turns: list[Any] = []
    origins: list[tuple[str, bool]] = []
    name = next((name for name in _SYSTEM if name in row), None)
    if name is not None:
        turns.append({"role": "system", "content": _system(row[name], f"$.{name}")})
        origins.append((f"$.{name}", False))
    for index, turn in enumerate(row["contents"]):
        read = _turn(turn, f"$.contents[{index}]")
        turns += read
        origins += [(f"$.contents[{index}]", False)] * len(read)
    return Draft(turns, row.get("tools"), origins=origins, whole="$.contents")


def _system(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    parts = value.get("parts") if isinstance(value, dict) else None
    parts = [parts] if isinstance(parts, dict) else parts
    if not isinstance(parts, list) or not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise RowError(path, "not-text", f"expected parts of text, found {value!s:.60}", 'write {"parts": [{"text": "..."}]}')
    return "".join(part["text"] for part in parts)


def _turn(turn: Any, path: str) -> list[Any]:
    role = turn.get("role", "user") if isinstance(turn, dict) else None
    parts = turn.get("parts") if isinstance(turn, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(path, "unknown-role", f"unknown role {role!r:.40}", "Gemini has user, model and function")
    if not isinstance(parts, list):
        raise RowError(path, "not-object", f"expected a list of parts, found {parts!s:.40}", 'write [{"text": "..."}]')
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Any] = []
    results: list[Any] = []
    for index, raw in enumerate(parts):
        where = f"{path}.parts[{index}]"
        part = {key: value for key, value in raw.items() if value is not None} if isinstance(raw, dict) else {}
        call = part.get("functionCall", part.get("function_call"))
        result = part.get("functionResponse", part.get("function_response"))
        if isinstance(call, dict):
            calls.append(call_of(call.get("name"), call.get("args", {}), call.get("id")))
        elif isinstance(result, dict):
            results.append(_result(result))
        elif isinstance(part.get("text"), str):
            if calls or (part.get("thought") and texts):
                raise RowError(where, "block-order", "text after a call, or a thought after text", "split the turn")
            (thoughts if part.get("thought") else texts).append(part["text"])
        elif {"inlineData", "fileData", "inline_data", "file_data"} & set(part):
            raise media(where, "a part of data")
        else:
            raise RowError(where, "not-text", f"expected text or a call, found {raw!s:.60}", 'write {"text": "..."}')
    if results and not texts and not calls:
        return results
    message = {"role": _ROLES[role], "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    return [*results, {**message, "tool_calls": calls} if calls else message]


def _result(result: Any) -> Any:
    response = result.get("response", "")
    text = response if isinstance(response, str) else json.dumps(response, ensure_ascii=False)
    turn = {"role": "tool", "content": text}
    return {**turn, "tool_call_id": result["id"]} if "id" in result else turn
