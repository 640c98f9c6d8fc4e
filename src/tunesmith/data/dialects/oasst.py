"""OpenAssistant's trees: a prompt, and replies below replies, ranked by people.

One row a tree: the best reply of each turn. Every path through a tree would share its beginning with the others, and a split
would put the same question on both sides. The flat form of the same data holds one message a row; ``forest.py`` makes trees
of them.
"""

from collections.abc import Iterator
from typing import Any

from tunesmith.data.draft import Draft
from tunesmith.data.problems import RowError

NOTE = "oasst: an OASST tree is read as one conversation, the best ranked reply of each turn; other replies are left out"
READS = ("prompt", "message_tree_id", "tree_state")
FLAT_READS = ("message_id", "parent_id", "role", "text", "rank", "deleted", "message_tree_id")
FLAT = "oasst_flat"  # a message a row
_ROLES = {"prompter": "user", "assistant": "assistant"}


def matches(row: Any) -> bool:
    """Whether a row is a tree."""
    prompt = row.get("prompt")
    return isinstance(prompt, dict) and "replies" in prompt


def is_flat(row: Any) -> bool:
    """Whether a row is one message of a tree."""
    return "message_id" in row and "role" in row and "text" in row


def draft(row: Any, said: set[str]) -> Draft:
    """The best conversation of a tree.

    Raises:
        RowError: a message without a role or text, or a prompt that nobody answered.
    """
    turns: list[Any] = []
    origins: list[tuple[str, bool]] = []
    for node, path in _nodes(row["prompt"]):
        if not is_message(node):
            raise RowError(path, "unknown-role", "expected a message of an OASST tree: role and text", "prompter or assistant")
        turns.append({"role": _ROLES[node["role"]], "content": node["text"]})
        origins.append((f"{path}.text", False))
    while turns and turns[-1]["role"] == "user":
        turns.pop()
        origins.pop()
    if not turns:
        raise RowError("$.prompt.replies", "no-answer", "a prompt that nobody answered", "remove the row")
    return Draft(turns, origins=origins, whole="$.prompt")


def is_message(node: Any) -> bool:
    """Whether it has a role and a text."""
    role = node.get("role") if isinstance(node, dict) else None
    return isinstance(role, str) and role in _ROLES and isinstance(node.get("text"), str)


def best_path(prompt: Any) -> list[Any]:
    """The messages that are read of a tree: the best ranked reply of each turn, up to the last answer."""
    path = [node for node, _ in _nodes(prompt)]
    last = max((number for number, node in enumerate(path) if node.get("role") == "assistant"), default=-1)
    return path[: last + 1]


def _nodes(prompt: Any) -> Iterator[tuple[Any, str]]:
    """The best ranked message of each turn, and its path."""
    node, path = prompt, "$.prompt"
    while node is not None:
        yield node, path
        replies = node["replies"] if isinstance(node, dict) and isinstance(node.get("replies"), list) else []
        kept = [index for index, reply in enumerate(replies) if isinstance(reply, dict) and not reply.get("deleted")]
        best = min(kept, key=lambda index: (_rank(replies[index]), index), default=None)
        node, path = (None, path) if best is None else (replies[best], f"{path}.replies[{best}]")


def _rank(reply: Any) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")
