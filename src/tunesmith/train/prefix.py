"""Rows that begin alike compute their beginning once.

A system prompt, an instruction, a document or few-shot examples stand in front of many rows, and stock training runs
them through the model again for every one. The hidden states of a token depend on nothing after it, so documents with a
common beginning can hold it once: each keeps its own rest, which attends to the shared part and to itself
(``kernels/attention.py``). Loss and gradients are those of the rows apart, since the gradient of the shared part is the
sum of what all rows send back. What is shared ends before the first supervised token of any of them, so that no shared
token has a loss of its own.

The documents of an optimizer step are grouped here by sorting: in lexicographic order the longest common beginnings are
between neighbours. Sharing is not free: the shared part is one more piece for attention, and each document that joins it
has its keys put together with the shared ones, in every layer. Both are counted in tokens (``PIECE``, ``JOIN``), and a
group is made where it saves more. On the US addresses 12 of some 96 tokens are common to all rows, the chat header and a
three-word instruction: 11 % fewer tokens a step. Groups are then put into micro-batches anew, by the tokens that are left:
the step is the same documents with the same gradient, in fewer and fuller packs, or in equal ones where they are dealt out to
processes. With dropout, the shared tokens have one mask instead of one a row.

A row that is a document for each of its supervised turns (``chat/as_asked.py``) is a chain: each document begins with the
history of the one before. The history of the last is held once, and every document sees as much of it as is its own beginning,
so a chain costs the conversation once and every answer once more. Where the rows of a step have more in common with each other
than their own documents have (a long system prompt, few turns), they are grouped by sorting like all others: the cheaper of the
two is taken.

Refused: a tree of prefixes (a second level saved nothing on chats), and sharing across steps (weights change).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from tunesmith.train.documents import Documents

PIECE = 4  # tokens that one more piece costs in attention: some ten small operations a layer, forward and backward
JOIN = 1  # tokens that it costs a document to have its keys put together with the shared ones
SHORTEST = 8  # tokens: all chats begin with some three alike, and looking for groups of those costs more than they save


@dataclass(frozen=True)
class Group:
    """Documents that share their beginnings.

    Attributes:
        shared: for each document how many of its first tokens are the group's; of a document by itself 0. All are beginnings of
            the longest.
        tokens: what the group computes: the longest shared beginning once, and the rest of each.
    """

    documents: tuple[int, ...]
    shared: tuple[int, ...]
    tokens: int

    @property
    def cost(self) -> int:
        """In tokens, with what sharing costs."""
        return self.tokens + (PIECE + JOIN * len(self.documents) if len(self.documents) > 1 else 0)


def find_groups(documents: Documents, chosen: Sequence[int], capacity: int) -> list[Group]:
    """Group documents by their common beginnings, none above ``capacity`` tokens but a single longer document.

    Deterministic: the result depends on the documents and not on their order.
    """
    sorted_groups = _sorted_groups(documents, chosen, capacity)
    chains, others = _chains(documents, chosen, capacity)
    if not chains:
        return sorted_groups
    chained = [*chains, *_sorted_groups(documents, others, capacity)]
    return min(sorted_groups, chained, key=lambda groups: sum(group.cost for group in groups))


def row_tokens(documents: Documents) -> np.ndarray:
    """Tokens that each row computes, int64: what its documents begin with alike counted once."""
    firsts = np.cumsum(documents.row_sizes) - documents.row_sizes
    tokens = np.add.reduceat(documents.lengths, firsts) if len(firsts) else np.zeros(0, np.int64)
    for row in np.flatnonzero(documents.row_sizes > 1).tolist():
        members = range(firsts[row], firsts[row] + documents.row_sizes[row])
        tokens[row] = sum(group.tokens for group in _chain(documents, members, int(tokens[row])))
    return tokens


def _chains(documents: Documents, chosen: Sequence[int], capacity: int) -> tuple[list[Group], list[int]]:
    """The rows of several documents as chains, and the documents of all other rows."""
    chains: list[Group] = []
    others: list[int] = []
    if documents.rows == len(documents):
        return chains, list(chosen)
    for _, members in groupby(sorted(chosen), key=documents.row_number):
        row = list(members)
        if len(row) > 1:
            chains += _chain(documents, row, capacity)
        else:
            others += row
    return chains, others


def _chain(documents: Documents, members: Sequence[int], capacity: int) -> list[Group]:
    """Documents of one row in the order of their turns, with the last one's beginning held once; cut where that is too much."""
    groups: list[Group] = []
    left = list(members)
    while left:
        last = left.pop()
        ids, limit = documents.ids(last), _limit(documents, last)
        group, shared, tokens = [last], [0], len(ids)
        while left:
            before = documents.ids(left[-1])
            alike = min(limit, _limit(documents, left[-1]), _common(before, ids))
            if alike < SHORTEST or tokens + len(before) - alike > capacity:
                break
            tokens += len(before) - alike
            group.insert(0, left.pop())
            shared.insert(0, alike)
        shared[-1] = max(shared)
        groups.insert(0, Group(tuple(group), tuple(shared), tokens))
    return groups


def _sorted_groups(documents: Documents, chosen: Sequence[int], capacity: int) -> list[Group]:
    """Documents that are neighbours in lexicographic order, all of a group sharing the same.

    Of all ways to cut the sorted documents into groups it is the cheapest; taking neighbours greedily was refused, since one
    odd row that sorts first spoiled the sharing of forty (5,761 tokens instead of 4,301). A millisecond for a step.
    """
    ids = {document: documents.ids(document) for document in chosen}
    limits = {document: _limit(documents, document) for document in chosen}
    ordered = sorted(chosen, key=lambda document: (ids[document].astype(">u4").tobytes(), document))
    alike = [0, *(_common(ids[a], ids[b]) for a, b in pairwise(ordered))]  # with the one before
    cheapest = [0]  # cost in tokens of the first n documents
    last: list[Group] = [Group((), (), 0)]  # their last group
    for end in range(1, len(ordered) + 1):
        alone = ordered[end - 1]
        shared, total = limits[alone], len(ids[alone])
        best = Group((alone,), (0,), total)
        least = cheapest[end - 1] + total
        for start in range(end - 2, -1, -1):
            shared = min(shared, limits[ordered[start]], alike[start + 1])
            total += len(ids[ordered[start]])
            tokens = total - (end - start - 1) * shared
            if shared < SHORTEST or tokens > capacity:
                break
            cost = cheapest[start] + tokens + PIECE + JOIN * (end - start)
            if cost < least:
                least, best = cost, Group(tuple(ordered[start:end]), (shared,) * (end - start), tokens)
        cheapest.append(least)
        last.append(best)
    groups, end = [], len(ordered)
    while end:
        groups.append(last[end])
        end -= len(last[end].documents)
    return groups[::-1]


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


def even_parts(documents: Documents, groups: Sequence[Group], parts: int) -> list[list[int]]:
    """The documents of the groups, in their order, cut into so many parts of about equal tokens; none is empty.

    Neighbours begin alike, so what a group shares is computed once in each part that has some of it.
    """
    ordered = [document for group in groups for document in group.documents]
    own = [
        len(documents.ids(document)) - shared
        for group in groups
        for document, shared in zip(group.documents, group.shared, strict=True)
    ]
    middles = np.cumsum(own) - np.asarray(own) / 2
    numbers = (middles * min(parts, len(ordered)) / max(1, sum(own))).astype(int).tolist()
    return [[document for document, part in zip(ordered, numbers, strict=True) if part == n] for n in sorted({*numbers})]


def _limit(documents: Documents, document: int) -> int:
    """Tokens before the one that predicts the first supervised token."""
    spans = documents.spans(document)
    return max(0, int(spans[0, 0]) - 1) if len(spans) else 0


def _common(first: np.ndarray, second: np.ndarray) -> int:
    """Length of the common beginning."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
