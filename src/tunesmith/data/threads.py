"""Rows that are pieces of one conversation, which a split must not part and which are no independent evidence.

Two things make rows pieces of one conversation:

- *They begin alike*: what one asks is where the other began (growing prefixes, steps of a trace, another answer in the
  middle, an edited end), whatever system turn or tools stand around it.
- *They overlap*: a question with its answer stands in both, and up to the end of one of them the turns before and after agree
  (windows that lost their oldest turns).

"Hello" opens a third of all support chats and "Thanks!" closes it, and neither may chain them all into one group. So a
beginning that goes on in more than ``MOST`` ways, or stands under more than ``MOST`` system turns (the text to be judged
stands there then), holds nothing together; and an exchange in the middle that anywhere has two different neighbours on one
side holds nothing together either. Beginnings form trees and overlaps need agreement up to an end, so no chain runs through
a whole file. Refused: likeness of whole conversations (it sees no prefix of a third of the length), and one group for all
rows with the same first turn (one greeting makes a group of half the file). What still stands inside a row of another part
is a leak (``leaks.py``).

The rules look at contents alone, so the order of the file plays no role. A group of joined rows is named by its shortest
row, the beginning: a conversation that goes on keeps its name.
"""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tunesmith.data.turns import ASKING, Turns, few


def threads(turns: Turns, keys: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The group of each row: its key, or the key of the shortest row of its conversation.

    Args:
        turns: of the rows.
        keys: uint64, one a row: equal for rows that are together already.
        free: bool, one a row: whether it may be joined with rows of another key.
    """
    if len(np.unique(keys)) < 2:
        return keys
    lengths, starts = turns.lengths, turns.starts
    row_of_turn = np.repeat(np.arange(len(lengths)), lengths)
    answers = np.flatnonzero((turns.speakers != ASKING) & free[row_of_turn])
    rows = row_of_turn[answers]
    begins = starts[rows]
    first = np.diff(rows, prepend=-1) != 0  # answers that are their row's first
    last = np.diff(rows, append=-1) != 0
    asked = answers > begins
    questions = turns.runs(begins, answers)
    opening = few(questions, _following(questions, last)) & few(questions, turns.settings[rows]) & asked
    if last.all():  # nobody speaks twice: an exchange is a beginning
        return _joined(keys, lengths, rows[opening], questions[opening])
    since = np.where(first, begins, np.concatenate([[0], answers[:-1] + 1]))
    exchanges, blocks = turns.runs(since, answers + 1), turns.runs(since, answers)
    single = few(exchanges, _following(blocks, last), 1) & few(exchanges, _preceding(exchanges, first), 1)
    single &= few(blocks, turns.settings[rows]) & (answers > since)
    nodes = np.concatenate([questions[opening], ~exchanges[single]])
    return _joined(keys, lengths, np.concatenate([rows[opening], rows[single]]), nodes)


def _joined(keys: np.ndarray, lengths: np.ndarray, rows: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Groups by the keys and by the nodes that rows share."""
    _, node, counts = np.unique(nodes, return_inverse=True, return_counts=True)
    shared = counts[node] > 1
    rows, node = rows[shared], node[shared]
    if not len(rows):
        return keys
    names, key_of_row = np.unique(keys, return_inverse=True)
    total = len(names) + int(node.max()) + 1
    graph = coo_array((np.ones(len(rows), bool), (key_of_row[rows], len(names) + node)), shape=(total, total))
    component = connected_components(graph, directed=False)[1][key_of_row]
    order = np.lexsort((keys, lengths, component))
    heads = order[np.diff(component[order], prepend=-1) != 0]
    return keys[heads][np.searchsorted(component[heads], component)]


def _following(values: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The value after each; 0 where it is its row's last."""
    return np.where(last, np.uint64(0), np.append(values[1:], np.uint64(0)))


def _preceding(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The value before each; 0 where it is its row's first."""
    return np.where(first, np.uint64(0), np.concatenate([np.zeros(1, np.uint64), values[:-1]])[: len(values)])
