"""What the quality report keeps of rows, as columns: hashes, lengths and roles of a batch at a time.

Texts are encoded once, into one Arrow array, and everything that can be asked of all of them together (patterns, words,
folding) is asked of that array: it is a third of the size of the strings and stays in the processor's cache.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tunesmith.data.fold import as_binary, folded_all
from tunesmith.data.personal import texts_of
from tunesmith.data.row import Row


class _Roles(NamedTuple):
    """What a sequence of roles says of a conversation whose turns all count."""

    turns: int
    users: int
    assistants: tuple[int, ...]
    asking: tuple[str, ...]


@dataclass(slots=True)
class Columns:
    """A batch of rows, measured.

    Attributes:
        content: equal for rows with equal content.
        prompt: equal for rows that ask the same up to case and white space; of rows with ``asks`` only.
        last: equal for rows whose last turn says the same.
        asks: whether the row has a prompt: chat rows of two turns or more.
        prompt_length, answer_length: characters before the last supervised turn, and of it; -1 without one.
        whole_length: characters of all turns, with reasoning and tool calls.
        supervised_length: characters of all supervised turns of the batch.
        conversations: (turns, user turns, supervised turns) of chat rows -> rows.
        answers: content of the last supervised turn, None where there is none.
        called: whether that turn calls tools.
        answer_texts: large_binary, ``answers`` in UTF-8, empty where None.
        texts: large_binary, everything that is said, in no order.
        owners: int, for each of ``texts`` the number of its row in the batch.
    """

    content: list[int]
    prompt: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    asks: list[bool] = field(default_factory=list)
    prompt_length: list[int] = field(default_factory=list)
    answer_length: list[int] = field(default_factory=list)
    whole_length: list[int] = field(default_factory=list)
    supervised_length: int = 0
    conversations: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    answers: list[str | None] = field(default_factory=list)
    called: list[bool] = field(default_factory=list)
    answer_texts: pa.Array = None
    texts: pa.Array = None
    owners: np.ndarray = None  # pyright: ignore[reportAssignmentType]  # set before anybody sees it


def columns(rows: list[Row]) -> Columns:
    """Measure a batch; some 2,000 rows at a time are fast, since patterns and arrays cost the same for one."""
    batch = Columns([int(row.id[:12], 16) for row in rows])
    turns: list[str] = []  # of all rows
    others: list[str] = []  # reasoning and tool calls
    owners: list[int] = []  # rows of ``others``
    counts: list[int] = []
    spoken: list[int] = []  # where the answers stand in ``turns``, -1 without one
    asking: list[tuple[tuple[str, ...], str | None]] = []
    calls: list[str | None] = []
    for number, row in enumerate(rows):
        messages = row.messages
        contents = [message["content"] for message in messages]
        roles = _roles(tuple([message["role"] for message in messages]))
        assistants, lengths = roles.assistants, list(map(len, contents))
        called, declared, last_calls = False, None, None
        if row.tools is not None or sum(map(len, messages)) != 2 * len(messages):
            extra = [texts_of(message)[1:] for message in messages]
            for turn, texts in enumerate(extra):
                lengths[turn] += sum(map(len, texts))
                others += texts
                owners += [number] * len(texts)
            assistants = tuple([turn for turn in assistants if messages[turn].get("weight", 1) != 0])
            called = bool(assistants) and "tool_calls" in messages[assistants[-1]]
            declared, last_calls = _structure(row)
        is_chat = row.kind == "chat"
        answer = assistants[-1] if assistants and is_chat else None
        spoken.append(-1 if answer is None else len(turns) + answer)
        turns += contents
        counts.append(len(contents))
        asking.append((roles.asking, declared))
        calls.append(last_calls)
        batch.asks.append(is_chat and len(contents) > 1)
        batch.called.append(called)
        batch.answers.append(None if answer is None else contents[answer])
        batch.answer_length.append(-1 if answer is None else len(contents[answer]))
        batch.prompt_length.append(sum(lengths[:answer]) if answer is not None else sum(lengths[:-1]))
        batch.whole_length.append(sum(lengths))
        batch.supervised_length += sum([lengths[turn] for turn in assistants])
        if is_chat:
            batch.conversations[roles.turns, roles.users, len(assistants)] += 1
    # An empty text at the end is the answer of rows without one.
    batch.texts = as_binary([*turns, *others, ""])
    batch.answer_texts = batch.texts.take(pa.array(np.array(spoken) % len(batch.texts)))
    batch.owners = np.concatenate([np.repeat(np.arange(len(rows)), counts), np.array([*owners, 0], np.int64)])
    ends = np.cumsum(counts)
    _compare(batch, batch.texts.slice(0, len(turns)), ends, asking, calls)
    return batch


def _compare(
    batch: Columns, turns: pa.Array, ends: np.ndarray, asking: list[tuple[tuple[str, ...], str | None]], calls: list[str | None]
) -> None:
    """Set ``prompt`` and ``last``. Built-in hashes differ from run to run, but are only compared with each other, and
    cost a third of blake2b."""
    said_last = turns.take(pa.array(ends - 1)).to_pylist()
    batch.last = [hash((text.strip(), called)) for text, called in zip(said_last, calls, strict=True)]
    before = np.ones(len(turns), bool)
    before[ends - 1] = False
    keys = iter([hash(text) for text in folded_all(turns.filter(pa.array(before)))])
    sizes = np.diff(ends, prepend=0) - 1
    batch.prompt = [hash((asked, *islice(keys, size))) for asked, size in zip(asking, sizes.tolist(), strict=True)]


def _structure(row: Row) -> tuple[str | None, str | None]:
    """The tool calls before the last turn with the declared tools, and those of the last turn, as JSON; None without."""
    calls = [message.get("tool_calls") for message in row.messages]
    declared = json.dumps([calls[:-1], row.tools], sort_keys=True) if row.tools or any(calls[:-1]) else None
    return declared, json.dumps(calls[-1], sort_keys=True) if calls[-1] else None


@lru_cache(4096)
def _roles(names: tuple[str, ...]) -> _Roles:
    return _Roles(
        turns=sum(name not in ("system", "developer") for name in names),
        users=names.count("user"),
        assistants=tuple(turn for turn, name in enumerate(names) if name == "assistant"),
        asking=names[:-1],
    )
