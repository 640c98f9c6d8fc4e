"""Turns that a conversation has no place for: cut off or joined where a recipe says so (``data.turns``).

``trim`` takes what stands outside of questions and answers: the assistant's greeting before anybody asked, and what was said
after the last answer. ``merge`` joins turns of one speaker that follow each other. Both lose no answer; anything else that is
out of order (a system turn in the middle, a result without its call) stays a bad row, because what was meant cannot be told.
"""

from typing import Any, Literal

from tunesmith.data.conversation import SYSTEM, check_messages
from tunesmith.data.draft import Draft
from tunesmith.data.problems import RowError

Mode = Literal["trim", "merge"]
TRIMMED = "turns: trim: turns before the first question or after the last answer are left out"
MERGED = "turns: merge: turns of one speaker that follow each other are joined by an empty line"
_CODES = ("no-answer", "assistant-first", "role-order", "two-systems")
_WHAT: dict[Mode, str] = {"trim": "leaves out the turns outside of questions and answers", "merge": "joins such turns"}
_JOINED = "\n\n"


def ordered(draft: Draft, mode: Mode, said: set[str]) -> Draft:
    """A draft without such turns; the same draft where there are none."""
    turns = draft.messages
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in turns):
        return draft
    origins = draft.origins or [(f"{draft.whole}[{index}]", True) for index in range(len(turns))]
    kept, places = (_trimmed if mode == "trim" else _merged)(turns, origins)
    if len(kept) == len(turns):
        return draft
    said.add(TRIMMED if mode == "trim" else MERGED)
    return Draft(kept, draft.tools, draft.text, places, draft.whole, draft.tools_path)


def with_way_out(bad: RowError, draft: Draft) -> RowError:
    """The problem with a mode in its hint, where one would give a good row."""
    if bad.code not in _CODES:
        return bad
    for mode, what in _WHAT.items():
        try:
            check_messages(ordered(draft, mode, set()).messages)
        except RowError:
            continue
        hint = f"{bad.hint}; --turns {mode} (data.turns: {mode}) {what}"
        return RowError(bad.path, bad.code, bad.message, hint)
    return bad


def _trimmed(turns: list[Any], origins: list[tuple[str, bool]]) -> tuple[list[Any], list[tuple[str, bool]]]:
    roles = [turn["role"] for turn in turns]
    systems = next((index for index, role in enumerate(roles) if role not in SYSTEM), len(roles))
    first = next((index for index in range(systems, len(roles)) if roles[index] != "assistant"), len(roles))
    last = max((index for index, role in enumerate(roles) if role == "assistant"), default=-1)
    kept = [index for index in range(len(turns)) if index < systems or first <= index <= last]
    return [turns[index] for index in kept], [origins[index] for index in kept]


def _merged(turns: list[Any], origins: list[tuple[str, bool]]) -> tuple[list[Any], list[tuple[str, bool]]]:
    kept: list[Any] = []
    places: list[tuple[str, bool]] = []
    for turn, origin in zip(turns, origins, strict=True):
        joined = _joined(kept[-1], turn) if kept and kept[-1]["role"] == turn["role"] else None
        if joined is None:
            kept.append(turn)
            places.append(origin)
        else:
            kept[-1] = joined
            places[-1] = (places[-1][0], False)
    return kept, places


def _joined(first: Any, second: Any) -> Any | None:
    """Two turns of one speaker as one; None where one turn cannot say both."""
    if first["role"] == "tool" or "tool_calls" in first or "reasoning_content" in second:
        return None
    contents = [turn.get("content") or "" for turn in (first, second)]
    rest = [{key: value for key, value in turn.items() if key not in ("content", "tool_calls")} for turn in (first, second)]
    if not all(isinstance(content, str) for content in contents) or any(rest[1][key] != rest[0].get(key) for key in rest[1]):
        return None
    if rest[0].get("weight") != rest[1].get("weight"):
        return None
    merged = {**rest[0], "content": _JOINED.join(content for content in contents if content)}
    return {**merged, "tool_calls": second["tool_calls"]} if "tool_calls" in second else merged
