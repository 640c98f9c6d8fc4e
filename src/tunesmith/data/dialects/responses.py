"""OpenAI's Responses API: ``input`` and ``output`` as lists of items, ``instructions`` before them.

An item is a message, a call, the output of a call, or reasoning. Of reasoning only what was thought is read; a summary of it
is another text, and encrypted reasoning is none.
"""

from typing import Any

from tunesmith.data.cut_off import HINT
from tunesmith.data.dialects.blocks import result_text
from tunesmith.data.dialects.calls import call_of
from tunesmith.data.draft import Draft
from tunesmith.data.problems import RowError

NOTE = "responses: items of OpenAI's Responses API are read as turns, function_call as tool_calls"
ELSEWHERE = ("previous_response_id", "conversation", "prompt")  # names of what stands before the input, on the provider's side
INCOMPLETE = ("status", "incomplete_details")
READS = ("input", "output", "instructions", "tools", "previous_response_id", "incomplete_details")
SUMMARY = "summaries of reasoning are left out: they are not what was thought"


def matches(row: Any) -> bool:
    """Whether a row is one."""
    output = row.get("output")
    return isinstance(output, list) and "input" in row and any(isinstance(item, dict) and "type" in item for item in output)


def draft(row: Any, said: set[str]) -> Draft:
    """The turns of a row.

    Raises:
        RowError: an item that a conversation has no place for, an answer that was cut off, or a question that stands elsewhere.
    """
    _refuse_incomplete(row, "$")
    for name in ELSEWHERE:
        if row.get(name) is not None:
            message = f"{name}: a part of what was asked is stored by the provider, and not in this row"
            raise RowError(
                f"$.{name}", "no-question", message, f"write all turns into input and remove {name}, or remove the row"
            )
    turns: list[Any] = []
    origins: list[tuple[str, bool]] = []
    if isinstance(row.get("instructions"), str):
        turns.append({"role": "system", "content": row["instructions"]})
        origins.append(("$.instructions", False))
    asked = row["input"]
    if isinstance(asked, str):
        turns.append({"role": "user", "content": asked})
        origins.append(("$.input", False))
        asked = []
    thought: str | None = None
    for name, items in (("input", asked), ("output", row["output"])):
        if not isinstance(items, list):
            raise RowError(f"$.{name}", "not-object", f"expected a list of items, found {type(items).__name__}", "write a list")
        for index, item in enumerate(items):
            where = f"$.{name}[{index}]"
            if isinstance(item, dict) and item.get("type") == "reasoning":
                thought = _thought(item, said) or thought
                continue
            if name == "output" and isinstance(item, dict):
                _refuse_incomplete(item, where)
            turn = _item(item, where, said)
            if turn["role"] == "assistant" and thought is not None:
                turn["reasoning_content"], thought = thought, None
            if "tool_calls" in turn and turns and turns[-1]["role"] == "assistant" and "reasoning_content" not in turn:
                calls = [*turns[-1].get("tool_calls", []), *turn["tool_calls"]]
                turns[-1] = {**turns[-1], "tool_calls": calls}
                continue
            turns.append(turn)
            origins.append((where, "role" in item))
    return Draft(turns, row.get("tools"), origins=origins, whole="$.input")


def _refuse_incomplete(holder: Any, path: str) -> None:
    """Refuse a response, or an item of one, that did not come to its end."""
    status, details = holder.get("status"), holder.get("incomplete_details")
    if status in (None, "completed") and not details:
        return
    reason = f", {details['reason']}" if isinstance(details, dict) and "reason" in details else ""
    message = f"the answer was cut off (status {status or 'incomplete'}{reason}), and its end would be trained"
    raise RowError(f"{path}.status" if status is not None else f"{path}.incomplete_details", "cut-off-answer", message, HINT)


def _thought(item: Any, said: set[str]) -> str | None:
    content = item.get("content") or []
    texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not texts and item.get("summary"):
        said.add(SUMMARY)
    return "\n".join(texts) or None


def _item(item: Any, path: str, said: set[str]) -> Any:
    if not isinstance(item, dict):
        raise RowError(path, "not-object", f"expected an item, found {type(item).__name__}", "write a message or a call")
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "message" and "role" in item:
        return {key: value for key, value in item.items() if key in ("role", "content", "name")}
    if kind == "function_call":
        call = call_of(item.get("name"), item.get("arguments"), item.get("call_id"))
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        turn = {"role": "tool", "content": result_text(item.get("output", ""), f"{path}.output", said)}
        return {**turn, "tool_call_id": item["call_id"]} if "call_id" in item else turn
    hint = "keep messages, function calls and their outputs; remove the row"
    raise RowError(path, "unknown-key", f"an item of type {kind!r:.40}, which no conversation has", hint)
