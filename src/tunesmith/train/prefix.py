"""Rows that begin alike compute their beginning once.

A system prompt, an instruction, a document or few-shot examples stand in front of many rows, and stock training runs
them through the model again for every one. The hidden states of a token depend on nothing after it, so documents with a
common beginning can hold it once: each keeps its own rest, which attends to the shared part and to itself
(``kernels/attention.py``). Loss and gradients are those of the rows apart, since the gradient of the shared part is the
sum of what all rows send back. What is shared ends before the first supervised token of any of them, so that no shared
token has a loss of its own.

The documents of an optimizer step are grouped here by sorting: in lexicographic order the longest common beginnings are
between neighbours. Groups are then put into micro-batches anew, by the tokens that are left: the step is the same
documents with the same gradient, in fewer and fuller packs. With dropout, the shared tokens have one mask instead of one
a row.

Refused: a tree of prefixes (a second level saved nothing on chats), and sharing across steps (weights change).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunesmith.train.documents import Documents

SHORTEST = 16  # tokens: a shorter common beginning is not worth a piece of its own in attention


@dataclass(frozen=True)
class Group:
    """Documents that share their first ``shared`` tokens (0: a document by itself).

    Attributes:
        tokens: what the group computes: the shared part once, and the rest of each.
    """

    documents: tuple[int, ...]
    shared: int
    tokens: int


def find_groups(documents: Documents, chosen: Sequence[int], capacity: int) -> list[Group]:
    """Group documents by their common beginnings, none above ``capacity`` tokens but a single longer document.

    Deterministic: the result depends on the documents and not on their order.
    """
    ids = {document: documents.ids(document) for document in chosen}
    limits = {document: _limit(documents, document) for document in chosen}
    ordered = sorted(chosen, key=lambda document: (ids[document].astype(">u4").tobytes(), document))
    groups: list[Group] = []
    members: list[int] = []
    shared = tokens = 0
    for document in ordered:
        if members:
            common = min(shared, limits[document], _common(ids[members[-1]], ids[document]))
            joined = tokens + (len(members) - 1) * (shared - common) + len(ids[document]) - common
            saved = common * len(members)  # by the group with this document in it; without it: the right-hand side
            if common >= SHORTEST and saved >= shared * (len(members) - 1) and joined <= capacity:
                members.append(document)
                shared, tokens = common, joined
                continue
            groups.append(_group(members, shared, tokens))
        members, shared, tokens = [document], limits[document], len(ids[document])
    return [*groups, _group(members, shared, tokens)] if members else groups


def micro_batches(groups: Sequence[Group], capacity: int) -> list[list[Group]]:
    """Groups packed by falling size, each into the fullest pack with room for it."""
    packs: list[list[Group]] = []
    rooms: list[int] = []
    for group in sorted(groups, key=lambda group: (-group.tokens, group.documents)):
        fitting = [number for number, room in enumerate(rooms) if room >= group.tokens]
        if fitting:
            best = min(fitting, key=lambda number: rooms[number])
            packs[best].append(group)
            rooms[best] -= group.tokens
        else:
            packs.append([group])
            rooms.append(capacity - group.tokens)
    return packs


def _group(members: list[int], shared: int, tokens: int) -> Group:
    return Group(tuple(members), shared if len(members) > 1 else 0, tokens)


def _limit(documents: Documents, document: int) -> int:
    """Tokens before the one that predicts the first supervised token."""
    spans = documents.spans(document)
    return max(0, int(spans[0, 0]) - 1) if len(spans) else 0


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the common beginning."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
