"""Columns that stand beside a question and its answer and belong to one of them: a passage, options, a system text, reasoning.

Left unread they change what is asked, which is worse than an unread number: half a question is trained. Where a name can mean
one thing alone it is read as that (``system_prompt``, ``context`` behind an instruction); where the two halves can be put
together in more than one way, their owner says which: a line of ``--column`` that reads all of them is proposed, and until
then a finding names them. A column whose text the row says already (a prompt that was built from its parts) lacks nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

SYSTEM = ("system_prompt", "system_message", "sys_prompt")
_BEHIND = ("context", "passage")  # an instruction, and read as its input
_INPUT = ("input", *_BEHIND, "document", "article", "paragraph", "background")
_OF_QUESTION = (*_INPUT, "history", "options", "choices", "system", *SYSTEM)
_OF_ANSWER = ("reasoning", "reasoning_content", "rationale", "thinking", "thought", "chain_of_thought", "cot")
NAMES = frozenset((*_OF_QUESTION, *_OF_ANSWER))


def completed(columns: Mapping[str, str], row: Mapping[str, Any]) -> dict[str, str]:
    """Our names to a row's, with the columns beside them that can mean one thing alone.

    Args:
        columns: our names to theirs, as the format of the row has them.
        row: without nulls.
    """
    found = dict(columns)
    if NAMES.isdisjoint(row):
        return found
    for ours, names in (("system", SYSTEM), ("input", _BEHIND if "instruction" in found else ())):
        if not row.get(found.get(ours, "")):  # an empty cell is no input
            found |= next(({ours: name} for name in names if name in row), {})
    return found


def named(asked: str, answered: str, names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Our names to those of a row, with all that belongs to the question; and the columns for which there is no name.

    Args:
        asked, answered: the columns of the question and its answer.
        names: all columns.
    """
    others = [str(name) for name in names if name not in (asked, answered)]
    behind = next((name for name in _INPUT if name in others), None)
    columns = {"prompt": asked, "completion": answered}
    if behind is not None:
        columns = {"instruction": asked, "input": behind, "output": answered}
    columns |= next(({"system": name} for name in ("system", *SYSTEM) if name in others), {})
    columns |= {"history": "history"} if "history" in others else {}
    return columns, [name for name in others if name in NAMES and name not in columns.values()]


def left_out(row: Mapping[str, Any], unread: Iterable[str], said: Iterable[str]) -> list[str]:
    """The columns of a question or its answer that nothing reads, and that hold what the turns do not say.

    Args:
        unread: columns of the row.
        said: the texts of its turns.
    """
    names = [name for name in unread if name in NAMES]
    if not names:
        return []
    whole = "\n".join(said)
    return [name for name in names if any(text.strip() not in whole for text in _texts(row[name]))]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for member in value:
            yield from _texts(member)
    elif value is not None:
        yield str(value)
