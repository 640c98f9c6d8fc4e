"""OpenAssistant's messages, one a row, put together into the trees that they are.

A message names its parent and nothing says in which order rows come, so all of them are held until the last has come: this is
the one form for which memory grows with the file. Each tree is then a row of the nested form, at the place of its prompt, and
read by the same code (``dialects/oasst.py``): the best ranked reply of each turn, as the published training sets are made.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tunesmith.data.chunk import CHUNK_ROWS, Chunk
from tunesmith.data.dialects.oasst import best_path, is_message
from tunesmith.data.problems import RowError


@dataclass(slots=True)
class _Prompt:
    """The root of a tree, and where it stands."""

    tree: dict[str, Any]
    place: str
    part: str | None
    entry: int


class Forest:
    """Collects messages: ``add`` each, then ``chunks``."""

    def __init__(self) -> None:
        self._nodes: dict[str, Any] = {}  # message_id -> its node of the nested form
        self._parents: dict[str, str] = {}  # message_id of a reply -> that of what it answers
        self._prompts: list[_Prompt] = []
        self._lost = self._left_out = 0

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def add(self, row: Mapping[str, Any], place: str, part: str | None, entry: int, group_by: str | None) -> None:
        """Take in a message.

        Args:
            row: without nulls.
            place: of the row.
            part, entry: of its chunk.
            group_by: a column of the prompt that the tree keeps.

        Raises:
            RowError: it is no message, or one of its id is there already.
        """
        name, parent = row["message_id"], row.get("parent_id")
        if not isinstance(name, str) or not isinstance(parent, str | None) or not is_message(row):
            hint = "a message has message_id, parent_id (none for a prompt), text, and the role prompter or assistant"
            raise RowError("$", "unknown-role", "expected a message of an OASST tree", hint)
        if name in self._nodes:
            raise RowError("$.message_id", "duplicate-key", f"two messages of message_id {name:.60}", "keep one of the two")
        node = {key: row[key] for key in ("role", "text", "rank", "deleted") if key in row}
        self._nodes[name] = node = {**node, "replies": []}
        if parent:
            self._parents[name] = parent
            return
        group = {group_by: row[group_by]} if group_by is not None and group_by in row else {}
        tree = {"prompt": node, **group}
        self._prompts.append(_Prompt(tree, place, part, entry))

    def chunks(self) -> Iterator[Chunk]:
        """The trees, each at the place of its prompt."""
        for name, parent in self._parents.items():
            if parent in self._nodes:
                self._nodes[parent]["replies"].append(self._nodes[name])
            else:
                self._lost += 1
        self._left_out = len(self._nodes) - self._lost
        for (prefix, part, entry), prompts in groupby(
            self._prompts, lambda prompt: (prompt.place.rpartition(" ")[0], prompt.part, prompt.entry)
        ):
            together = list(prompts)
            for start in range(0, len(together), CHUNK_ROWS):
                some = together[start : start + CHUNK_ROWS]
                self._left_out -= sum(len(best_path(prompt.tree["prompt"])) for prompt in some)
                numbers = [int(prompt.place.rpartition(" ")[2]) for prompt in some]
                yield Chunk(prefix, numbers, [prompt.tree for prompt in some], 0, part=part, entry=entry)

    def notes(self) -> list[str]:
        """What the messages became, for people."""
        if not self:
            return []
        lines = [f"OASST: {len(self._nodes):,} messages, one a row, make {len(self._prompts):,} trees"]
        if self._left_out:
            lines.append(
                f"left out: {self._left_out:,} messages off the best ranked path of their tree, or after its last answer"
            )
        if self._lost:
            lines.append(f"left out: {self._lost:,} messages whose parent_id is in no row")
        return lines
