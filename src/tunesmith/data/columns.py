"""What the quality report keeps of rows, as columns: hashes, lengths and roles of a batch at a time.

Texts are encoded once, into one Arrow array, and everything that can be asked of all of them together (patterns, words,
folding) is asked of that array: it is a third of the size of the strings and stays in the processor's cache. A row of
plain turns costs Python two lists and a look-up: what its roles say is remembered, and lengths are sums over all turns
of the batch.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tunesmith.data.normalize import as_binary, folded_all
from tunesmith.data.personal import texts_of
from tunesmith.rundir.rows import Row


class _Shape(NamedTuple):
    """What a sequence of turns is, but for its texts.

    Attributes:
        counted: number of turns without system ones, of user turns, of supervised turns.
        supervised: for each turn, whether it is trained on.
        answer: turn that is the answer, -1 without one.
        asks: whether there is a prompt: chat rows of two turns or more.
        called: whether the answer calls tools.
        asking: equal for prompts that differ in their texts alone.
        calls: the tool calls of the last turn.
        chat: False for a plain text.
    """

    counted: tuple[int, int, int]
    supervised: tuple[bool, ...]
    answer: int
    asks: bool
    called: bool
    asking: int
    calls: str | None
    chat: bool


@dataclass(frozen=True, slots=True)
class Columns:
    """A batch of rows, measured.

    Attributes:
        content: int64, equal for rows with equal content.
        prompt: int64, equal for rows that ask the same up to case and white space; of rows with ``asks`` only.
        last: int64, equal for rows whose last turn says the same.
        asks: bool, whether the row has a prompt: chat rows of two turns or more.
        prompt_length, answer_length: int32, characters before the last supervised turn, and of it; -1 without one.
        whole_length: int32, characters of all turns, with reasoning and tool calls.
        supervised_length: characters of all supervised turns of the batch.
        conversations: (turns, user turns, supervised turns) of chat rows -> rows.
        answers: content of the last supervised turn, None where there is none.
        called: whether that turn calls tools.
        answer_texts: large_binary, ``answers`` in UTF-8, empty where None.
        texts: large_binary, everything that is said, in no order.
        owners: int, for each of ``texts`` the number of its row in the batch.
    """

    content: np.ndarray
    prompt: np.ndarray
    last: np.ndarray
    asks: np.ndarray
    prompt_length: np.ndarray
    answer_length: np.ndarray
    whole_length: np.ndarray
    supervised_length: int
    conversations: Counter[tuple[int, int, int]]
    answers: list[str | None]
    called: list[bool]
    answer_texts: pa.Array
    texts: pa.Array
    owners: np.ndarray


def columns(rows: list[Row]) -> Columns:
    """Measure a batch; some hundred rows at a time are fast, since patterns and arrays cost the same for one."""
    turns: list[str] = []  # contents, of all rows
    others: list[str] = []  # reasoning and tool calls
    owners: list[int] = []  # for each of ``others``, its turn
    shapes: list[_Shape] = []
    for row in rows:
        messages = row.messages
        if row.tools is None and row.kind == "chat" and sum(map(len, messages)) == 2 * len(messages):
            shapes.append(_plain(tuple([message["role"] for message in messages])))
        else:
            for turn, message in enumerate(messages, len(turns)):
                texts = texts_of(message)[1:]
                others += texts
                owners += [turn] * len(texts)
            shapes.append(_structured(row))
        turns += [message["content"] for message in messages]
    counts = np.array([len(shape.supervised) for shape in shapes])
    ends = np.cumsum(counts)
    starts = ends - counts
    spoken = np.fromiter(map(len, turns), np.int64, len(turns))
    lengths = spoken.copy()
    np.add.at(lengths, np.array(owners, np.int64), np.fromiter(map(len, others), np.int64, len(others)))
    before = np.concatenate([[0], np.cumsum(lengths)])
    answer = np.array([shape.answer for shape in shapes])
    answered = answer >= 0
    answer += starts
    answers = [turns[turn] if there else None for turn, there in zip(answer.tolist(), answered.tolist(), strict=True)]
    texts = as_binary([*turns, *others, ""])  # the last is the answer of rows without one
    row_of_turn = np.repeat(np.arange(len(rows)), counts)
    supervised = np.concatenate([shape.supervised for shape in shapes])
    last = [hash((turns[end - 1].strip(), shape.calls)) for end, shape in zip(ends.tolist(), shapes, strict=True)]
    return Columns(
        content=np.array([int(row.id[:12], 16) for row in rows]),
        prompt=_prompts(texts.slice(0, len(turns)), starts, ends, [shape.asking for shape in shapes]),
        last=np.array(last),
        asks=np.array([shape.asks for shape in shapes]),
        prompt_length=(before[np.where(answered, answer, ends - 1)] - before[starts]).astype(np.int32),
        answer_length=np.where(answered, spoken[answer], -1).astype(np.int32),
        whole_length=(before[ends] - before[starts]).astype(np.int32),
        supervised_length=int(lengths[supervised].sum()),
        conversations=Counter([shape.counted for shape in shapes if shape.chat]),
        answers=answers,
        called=[shape.called for shape in shapes],
        answer_texts=texts.take(pa.array(np.where(answered, answer, len(texts) - 1))),
        texts=texts,
        owners=np.concatenate([row_of_turn, row_of_turn[owners] if owners else [], [0]]).astype(np.int64),
    )


def _prompts(turns: pa.Array, starts: np.ndarray, ends: np.ndarray, asking: Sequence[int]) -> np.ndarray:
    """int64 per row: every turn but the last, normalized, and what else the prompt is.

    Built-in hashes differ from run to run, but are only compared with each other, and cost a third of blake2b. Those of
    a row's turns are added, each times a number of its place.
    """
    in_prompt = np.ones(len(turns), bool)
    in_prompt[ends - 1] = False
    keys = np.zeros(len(turns), np.int64)
    keys[in_prompt] = [hash(text) for text in folded_all(turns.filter(pa.array(in_prompt)))]
    places = np.arange(1, len(turns) + 1) - np.repeat(starts, ends - starts)
    keys *= places * -7046029254386353131 | 1  # 2^64 over the golden ratio, as signed
    return np.add.reduceat(keys, starts) + np.array(asking)


@lru_cache(4096)
def _plain(roles: tuple[str, ...]) -> _Shape:
    """Of a chat whose turns are texts only."""
    supervised = tuple([role == "assistant" for role in roles])
    return _shape(roles, supervised, None, None)


def _structured(row: Row) -> _Shape:
    """Of any row."""
    roles = tuple([message["role"] for message in row.messages])
    supervised = tuple([message["role"] == "assistant" and message.get("weight", 1) != 0 for message in row.messages])
    calls = [message.get("tool_calls") for message in row.messages]
    declared = json.dumps([calls[:-1], row.tools], sort_keys=True) if row.tools or any(calls[:-1]) else None
    shape = _shape(roles, supervised, declared, json.dumps(calls[-1], sort_keys=True) if calls[-1] else None)
    if row.kind == "text":
        return shape._replace(answer=-1, asks=False, chat=False)
    return shape._replace(called=shape.answer >= 0 and "tool_calls" in row.messages[shape.answer])


def _shape(roles: tuple[str, ...], supervised: tuple[bool, ...], declared: str | None, calls: str | None) -> _Shape:
    turns = sum(role not in ("system", "developer") for role in roles)
    return _Shape(
        counted=(turns, roles.count("user"), sum(supervised)),
        supervised=supervised,
        answer=max((turn for turn, taught in enumerate(supervised) if taught), default=-1),
        asks=len(roles) > 1,
        called=False,
        asking=hash((roles[:-1], declared)),
        calls=calls,
        chat=True,
    )
