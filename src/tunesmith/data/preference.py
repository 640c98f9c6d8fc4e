"""Preference data: rows that hold an answer that people liked, one that they did not, or a mark that says which it is.

tunesmith trains on good answers. A row of two would train one of them or none, and a row with ``"label": false`` its bad
answer, so all of these are told by their keys and refused, with the way out: ``data.take: chosen`` keeps the good half as an
ordinary row. What both answers begin with was asked and not chosen: its assistant turns get weight 0, as those in a prompt.

a row has                                            of                                    becomes
chosen, rejected; prompt, instruction, question or   TRL, UltraFeedback, Orca              the question and chosen
query, or none of them
conversations, chosen, rejected                      ShareGPT                              the turns and chosen
chosen_messages, rejected_messages                   OLMo, Tulu                            chosen_messages
chosen_response, rejected_response                   TRL's older scripts                   the prompt and chosen_response
messages (or prompt, completion; query, response)    ms-swift                              the row without the bad answer
and rejected, rejected_response, rejected_messages
input, preferred_output                              OpenAI                                input.messages and preferred_output
label or kto_tag, true or false, beside an answer    KTO, in TRL and others                the row where true, nothing where not
the same as 0 and 1                                  KTO from a table                      the same, where nothing else is there

A label that is a word, or one of more than two numbers, is a class and no preference, and is left alone (``marks.py``).
"""

from collections.abc import Mapping

from pydantic import JsonValue

from tunesmith.data.dialects.column_names import columns_named
from tunesmith.data.problems import RowError

BAD = ("rejected", "rejected_messages", "rejected_response", "non_preferred_output")
GOOD = ("chosen", "chosen_messages", "chosen_response", "preferred_output")
PAIRED = ("rejected", "rejected_messages", "rejected_response", "non_preferred_output")  # the bad answer beside each
_ASKED = ("prompt", "messages", "conversations", "instruction", "input", "question", "query")
# What the good answer is called beside each question, the surest first.
_ANSWER = {"instruction": "output", "prompt": "completion", "question": "answer", "query": "response"}
MARKS = ("label", "kto_tag")  # of KTO's rows
KEYS = (*GOOD, *BAD, *MARKS)
_KEY_SET = frozenset(KEYS)
HINT = "data.take: chosen (--take chosen) trains the good answers of such rows; tunesmith trains on single answers"
_BOOLEAN = {"true": True, "false": False}
_NUMBERS = {"0": False, "1": True, "0.0": False, "1.0": True}
_ANSWERED = ("messages", "conversations", "contents", *_ANSWER.values())
_ROLES = {"human": "user", "gpt": "assistant"}


def described(row: Mapping[str, JsonValue]) -> str | None:
    """What makes a row preference data, in words; None for any other row.

    Args:
        row: as in the file, without nulls.
    """
    if _KEY_SET.isdisjoint(row):
        return None
    answers = [key for key in (*GOOD, *BAD) if isinstance(row.get(key), str | list | dict)]
    pair = next(((good, bad) for good, bad in zip(GOOD, PAIRED, strict=True) if {good, bad} <= {*answers}), None)
    if pair is not None:
        return f"{pair[0]} and {pair[1]} answers"
    if answers and any(key in row for key in _ASKED):
        return f"{answers[0]} answers"
    marked = next((key for key in MARKS if mark(row, key) is not None), None)
    return None if marked is None else f"answers marked {marked}: true or false"


def marked_as_bad(row: Mapping[str, JsonValue]) -> bool:
    """Whether a row says that its answer is a bad one, whatever its columns are called."""
    return any(row.get(key) is False for key in MARKS)


def mark_key(row: Mapping[str, JsonValue]) -> str | None:
    """The column that may mark the answer of a row; None where there is none, or no answer that it could be of."""
    if not any(name in row for name in _ANSWERED):
        return None
    return next((key for key in MARKS if key in row), None)


def mark(row: Mapping[str, JsonValue], key: str) -> bool | None:
    """The mark of an answer; in a CSV file it is a word. None where there is none, or no answer that it could be of."""
    value = row.get(key)
    value = _BOOLEAN.get(value.strip().lower()) if isinstance(value, str) else value
    return value if isinstance(value, bool) and mark_key(row) is not None else None


def number_mark(value: JsonValue) -> bool | None:
    """What a mark says that is written as 0 or 1, a number or a cell of a table; None for anything else."""
    return _NUMBERS.get(str(value).strip()) if isinstance(value, int | float | str) else None


def chosen(row: Mapping[str, JsonValue]) -> dict[str, JsonValue] | None:
    """The good answer of a row of preference data, as a row of another format; None where its answer is a bad one.

    Raises:
        RowError: the row has no good answer, or not what was asked.
    """
    left = {key: value for key, value in row.items() if key not in KEYS}
    if not any(key in row for key in (*GOOD, *BAD)):
        return left if not any(_says_bad(row, key) for key in MARKS) else None
    key = next((key for key in GOOD if key in row), None)
    if key is None:
        return _without_bad(row, left)
    good, asked = row[key], row.get("input")
    if isinstance(asked, dict) and key == "preferred_output":
        left = {name: value for name, value in left.items() if name not in ("input", "messages", "tools")}
        left |= {"tools": tools} if (tools := asked.get("tools")) else {}
        return {**left, "prompt": asked.get("messages"), "completion": good}
    if isinstance(good, list) and good and _role(good[0]) not in ("assistant", None):
        return _whole(row, left, key, good)
    turns, before = _turns(row)
    if turns:
        answer = good if isinstance(good, list) else [good]
        if not before or not all(isinstance(turn, dict) for turn in answer):
            raise RowError(f"$.{key}", "not-object", f"expected turns to follow those of {turns}", "write role and content")
        return {**left, turns: [*map(_context, before), *answer]}
    asked = next((name for name in _ANSWER if name in row), None)
    if asked is not None:
        return {**left, _ANSWER[asked]: [good] if isinstance(good, dict) and asked == "prompt" else good}
    problem = f"no prompt beside {key}, found {', '.join(map(str, row))}"
    hint = f"name what is read instead of data.take: {columns_named('input' if 'input' in row else 'QUESTION', key, row)}"
    raise RowError("$.prompt", "missing-column", problem, hint)


def _says_bad(row: Mapping[str, JsonValue], key: str) -> bool:
    """Whether a mark, of either form, says that the answer is a bad one."""
    return mark(row, key) is False or number_mark(row.get(key)) is False


def _turns(row: Mapping[str, JsonValue]) -> tuple[str, list[JsonValue]]:
    """The column of a row's turns and what it holds; an empty name where there is none."""
    for name in ("messages", "conversations"):
        value = row.get(name)
        if name in row:
            return name, value if isinstance(value, list) else []
    return "", []


def _role(turn: JsonValue) -> str | None:
    """Who speaks; None where that is not to be seen."""
    speaker = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
    return _ROLES.get(speaker, speaker) if isinstance(speaker, str) else None


def _context(turn: JsonValue) -> JsonValue:
    """A turn that was not chosen; what is no turn is left to the rules of conversations."""
    return {**turn, "weight": 0} if isinstance(turn, dict) and _role(turn) == "assistant" else turn


def _whole(row: Mapping[str, JsonValue], left: dict[str, JsonValue], key: str, good: list[JsonValue]) -> dict[str, JsonValue]:
    """The chosen answer stands at the end of the whole conversation, which other columns may repeat."""
    bad = row.get(PAIRED[GOOD.index(key)])
    shared = 0
    if isinstance(bad, list):
        while shared < min(len(good), len(bad)) - 1 and good[shared] == bad[shared]:
            shared += 1
    prompt = row.get("prompt")
    if prompt and not _asks(good, prompt):
        problem = f"prompt is not what {key} begins with"
        raise RowError("$.prompt", "two-prompts", problem, f"remove prompt, or the turns before the answer from {key}")
    left = {name: value for name, value in left.items() if name not in ("prompt", "messages", "conversations")}
    turns = "conversations" if isinstance(good[0], dict) and "from" in good[0] else "messages"
    return {**left, turns: [*map(_context, good[:shared]), *good[shared:]]}


def _asks(turns: list[JsonValue], prompt: JsonValue) -> bool:
    if isinstance(prompt, list):
        return turns[: len(prompt)] == prompt
    return any(isinstance(turn, dict) and turn.get("content", turn.get("value")) == prompt for turn in turns)


def _without_bad(row: Mapping[str, JsonValue], left: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """A row whose own answer is the good one: that of its last turn, or its completion."""
    turns, said = _turns(row)
    if said:
        return {**left, turns: [*map(_context, said[:-1]), said[-1]]}
    if any(name in row for name in _ANSWER.values()):
        return left
    bad = next(key for key in BAD if key in row)
    raise RowError(f"$.{bad}", "missing-column", f"{bad}, and no answer that is better", "add the good answer as chosen")
