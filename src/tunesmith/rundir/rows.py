"""Rows of ``data/train.jsonl``, ``dev.jsonl`` and ``test.jsonl`` as every stage reads them.

A row is the object that ``tunesmith.data`` wrote: ``id``, ``place``, ``messages``, and where given ``tools``, ``group`` and
``kind``. What it asks and what its answer is are asked in many places, and answered here alone.
"""

from typing import Any

Row = dict[str, Any]


def reference_of(row: Row) -> str:
    """The answer that a row brings: the text of its last turn."""
    return row["messages"][-1]["content"]


def question_of(row: Row) -> str:
    """What a row asks: its last user turn (empty when it has none), as a user of the deployed model would type it."""
    return next((turn["content"] for turn in reversed(row["messages"][:-1]) if turn["role"] == "user"), "")


def why_not_scored(row: Row) -> str | None:
    """Why no answer can be compared with this row's: it asks nothing, or it ends by calling a tool. None where one can."""
    if row.get("kind") == "text":
        return "a plain text, which asks nothing"
    return "ended by a tool call" if "tool_calls" in row["messages"][-1] else None
