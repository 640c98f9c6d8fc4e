"""Turns of other programs as OpenAI's: other roles, other names of keys, flags of loss, blocks in place of a text.

Reasoning has three names, a flag of loss four, a call two roles. Each says one thing without doubt and is read so; two that say
different things of one turn are left for the checks to refuse. A turn that is OpenAI's already is looked at once and kept.
"""

from typing import Any

from tunesmith.data.dialects.blocks import result_text, sorted_blocks
from tunesmith.data.dialects.calls import are_openai_calls, openai_calls
from tunesmith.data.dialects.hermes import TOOLS, TRACE, declared_tools, hermes_turns
from tunesmith.data.draft import Draft
from tunesmith.data.problems import RowError
from tunesmith.data.strict_json import loads_text

CALL_ROLES = ("tool_call", "function_call")
RESULT_ROLES = ("tool_response", "toolResult", "tool_result", "observation")
SWIFT = "turns of tool_call and tool_response are read as tool_calls and tool turns"
_ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
_PLAIN = frozenset(("role", "content", "name", "weight", "reasoning_content", "tool_call_id"))
_CALLING = _PLAIN | {"tool_calls"}
_CAMEL = {
    **{"toolCalls": "tool_calls", "toolCallId": "tool_call_id", "reasoningContent": "reasoning_content"},
    **{"toolName": "name", "tool_name": "name"},
}
_REASONING = ("reasoning", "thinking")
_LOSS = ("loss", "train", "loss_weight", "training")


def openai_turns(draft: Draft, said: set[str]) -> Draft:
    """A draft whose turns are in OpenAI's form; the same draft where they are already.

    Args:
        draft: as ``formats.py`` made it.
        said: receives a sentence for everything that is read as something else.

    Raises:
        RowError: a turn that says two things, or nothing that a conversation has; at ``$.messages[i]``.
    """
    raw = draft.messages
    if not isinstance(raw, list) or all(map(_is_openai, raw)):
        return draft
    turns: list[Any] = []
    origins: list[tuple[str, bool]] = []
    swift = False  # whether the last turn is one of calls alone, to which further calls belong
    for index, turn in enumerate(raw):
        path = f"$.messages[{index}]"
        origin = draft.origins[index] if draft.origins else (f"{draft.whole}[{index}]", True)
        if _is_openai(turn):
            turns.append(turn)
            origins.append(origin)
            swift = False
            continue
        role = turn.get("role")
        if isinstance(role, str) and role in CALL_ROLES:
            said.add(SWIFT)
            calls = _calls_of(turn, f"{path}.content", said)
            if swift:
                turns[-1]["tool_calls"] += calls["tool_calls"]
                continue
            read, swift = [calls], True
        else:
            read, swift = _turn(turn, path, said), False
        turns += read
        origins += [origin if len(read) == 1 else (origin[0], False)] * len(read)
    tools, tools_path = draft.tools, draft.tools_path
    declared = declared_tools(turns[0]["content"]) if tools is None and _is_system(turns[0]) else None
    if declared is not None:
        said.add(TOOLS)
        (tools, left), tools_path = declared, origins[0][0] + ("" if not origins[0][1] else ".content")
        turns[0] = {**turns[0], "content": left}
        turns, origins = (turns, origins) if left else (turns[1:], origins[1:])
    return Draft(turns, tools, draft.text, origins, draft.whole, tools_path)


def _is_system(turn: Any) -> bool:
    """Whether it is a system text in which tools may be declared."""
    content = turn.get("content") if isinstance(turn, dict) and turn.get("role") in ("system", "developer") else None
    return isinstance(content, str) and "<tools>" in content


def _is_openai(turn: Any) -> bool:
    """Whether there is nothing to read otherwise, or nothing that could be."""
    if not isinstance(turn, dict):
        return True
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or role not in _ROLES or (isinstance(content, str) and TRACE in content):
        return False
    if role == "assistant" and "tool_calls" in turn:
        plain = turn.keys() <= _CALLING and are_openai_calls(turn["tool_calls"])
        return plain and (content is None or isinstance(content, str))
    return turn.keys() <= _PLAIN and isinstance(content, str) and (role == "assistant" or "weight" not in turn)


def _calls_of(turn: Any, path: str, said: set[str]) -> Any:
    """ms-swift's turn of a call: its content is JSON of one call or of several."""
    rest = {key: value for key, value in turn.items() if key not in ("role", "content") and value is not None}
    content = turn.get("content")
    calls = loads_text(content, path) if isinstance(content, str) else content
    for call in calls if isinstance(calls, list) else [calls]:
        if not isinstance(call, dict) or "name" not in call:
            hint = 'write {"name": ..., "arguments": {...}}, or a list of these'
            raise RowError(path, "bad-tool-call", f"expected name and arguments, found {call!s:.60}", hint)
    quiet: set[str] = set()  # that a call is flat is what the role says
    read = {"role": "assistant", "content": "", **rest, "tool_calls": openai_calls(calls, path, quiet)}
    _loss(read, path, said)
    return read


def _turn(raw: Any, path: str, said: set[str]) -> list[Any]:
    turn = {_CAMEL.get(key, key): value for key, value in raw.items() if value is not None}
    role = turn.get("role")
    if isinstance(role, str) and role in RESULT_ROLES:
        said.add(SWIFT)
        role = turn["role"] = "tool"
    for key in [key for key in turn if key not in _PLAIN and key != "tool_calls" and turn[key] == []]:
        del turn[key]  # an empty list says nothing: OpenAI's SDK writes annotations so
    _loss(turn, path, said)
    if role == "assistant":
        _reasoning(turn, said)
        if "tool_calls" in turn:
            turn["tool_calls"] = openai_calls(turn["tool_calls"], f"{path}.tool_calls", said)
    if role == "tool":
        turn["content"] = result_text(turn.get("content", ""), f"{path}.content", said)
    if isinstance(turn.get("content"), list):
        return _blocks(turn, path, said)
    return _texts(turn, f"{path}.content", said)


def _texts(turn: Any, path: str, said: set[str]) -> list[Any]:
    """A turn whose text may hold calls or results."""
    role, text = turn.get("role"), turn.get("content")
    if not isinstance(role, str) or not isinstance(text, str) or TRACE not in text or "tool_calls" in turn:
        return [turn]
    rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
    read = [turn] if role == "user" and rest else hermes_turns(role, text, path, said) or [turn]
    return [{**part, **rest} if part["role"] == role else part for part in read]


def _blocks(turn: Any, path: str, said: set[str]) -> list[Any]:
    blocks = sorted_blocks(turn["content"], f"{path}.content", said)
    if blocks is None:
        return [turn]
    for kind, there, owner in (("calls", blocks.calls, "assistant"), ("thinking", blocks.thoughts, "assistant")):
        if there and turn.get("role") != owner:
            raise RowError(
                f"{path}.content", "misplaced-key", f"{kind} on a turn of {turn.get('role')}", f"they are the {owner}'s"
            )
    if blocks.results and turn.get("role") == "assistant":
        raise RowError(
            f"{path}.content", "misplaced-key", "results on a turn of assistant", "they are the user's or the tool's"
        )
    for name, value in (("reasoning_content", "\n".join(blocks.thoughts)), ("tool_calls", blocks.calls)):
        if value and name in turn:
            raise RowError(f"{path}.{name}", "misplaced-key", f"{name} beside blocks that say the same", "keep one of the two")
        if value:
            turn[name] = value
    turn["content"] = "".join(blocks.texts)
    return [*blocks.results, *([turn] if blocks.texts or not blocks.results else [])]


def _reasoning(turn: Any, said: set[str]) -> None:
    for name in _REASONING:
        value = turn.get(name)
        if isinstance(value, str) and turn.get("reasoning_content", value) == value:
            said.add(f"{name} is read as reasoning_content")
            del turn[name]
            if value:
                turn["reasoning_content"] = value
    details = turn.get("reasoning_details")
    if isinstance(details, list) and all(isinstance(detail, dict) for detail in details):
        texts = [detail["text"] for detail in details if isinstance(detail.get("text"), str)]
        whole = "".join(texts)
        if turn.get("reasoning_content", whole).strip() == whole.strip() or not texts:
            said.add("reasoning_details is read as reasoning_content, or left out where that stands already or it is encrypted")
            del turn["reasoning_details"]
            if whole:
                turn["reasoning_content"] = whole


def _loss(turn: Any, path: str, said: set[str]) -> None:
    """Flags of loss as weights. On turns that are never learned a flag that says so is left out.

    Raises:
        RowError: it asks to learn another's turn, or is neither yes nor no.
    """
    is_answer = turn.get("role") in ("assistant", *CALL_ROLES)
    for name in [name for name in (*_LOSS, "weight") if name in turn]:
        value = turn[name]
        if name == "weight" and (is_answer or value not in (0, 0.0) or isinstance(value, bool)):
            continue  # OpenAI's own key, which the checks know
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(f"{path}.{name}", "bad-weight", f"{name} {value!r:.40}, expected true or false", "use 0 or 1")
        if not is_answer and value:
            problem = f"{name} on a turn of {turn.get('role')}"
            raise RowError(f"{path}.{name}", "bad-weight", problem, "only assistant turns are learned")
        if is_answer and turn.get("weight", value) != value:
            raise RowError(f"{path}.{name}", "bad-weight", f"{name} and weight differ", "keep one of the two")
        del turn[name]
        if is_answer:
            turn["weight"] = int(value)
            said.add(f"{name} of a turn is read as weight")
        else:
            said.add(f"{name} of a turn that nobody learns is left out")
