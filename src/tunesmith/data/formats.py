"""From the formats people have to the one the program knows: a row of any kind becomes turns, tools and their origins.

The kind is decided for each row by its keys, and the reader counts kinds over the whole file: a sample of the first
rows would call a file ``messages`` whose row 10,000 is not. Naming a format forces it, and a row that does not fit is
then a bad row. Nothing is checked here but what must be known to convert; ``conversation.py`` has the rules.

kind               a row has                                      becomes
messages           messages or conversations, with role/content   itself; system and tools beside it are used
sharegpt           conversations or messages, with from/value     the same turns; function_call becomes tool_calls
alpaca             instruction, output (input, system, history)   user: instruction, line break, input; history before it
prompt_completion  prompt, completion (system, tools, history)    user and assistant; lists of turns are joined
text               text                                           a single assistant turn of kind ``text``

What other programs write (exports, logs, trees) and other names of columns are in ``dialects/``; they come after these.
Null values are absent values: a table has a null in every column that a row does not use.
"""

import itertools
from collections.abc import Mapping
from typing import Any, get_args

from tunesmith.data.conversation import MEDIA, is_media, media, nearest
from tunesmith.data.cut_off import KEYS as CUT_OFF
from tunesmith.data.dialects import beside, table
from tunesmith.data.dialects.column_names import PUBLISHED, answer_hint, hint_with, naming_hint, published
from tunesmith.data.dialects.hermes import TRACE
from tunesmith.data.draft import Draft
from tunesmith.data.preference import KEYS
from tunesmith.data.problems import RowError
from tunesmith.data.strict_json import loads_text
from tunesmith.recipe.data import Format

KINDS = get_args(Format)
_PUBLISHED = {names.name: names for names in PUBLISHED}
COLUMNS = (
    *("messages", "conversations", "tools", "system"),
    *("instruction", "input", "output", "history", "prompt", "completion", "text"),
)
# Not ours to use, but to know: media, preference data, OpenAI's old calls, and our own mark of a plain text.
KNOWN = frozenset((*COLUMNS, *MEDIA, *KEYS, *table.COLUMNS, *beside.NAMES, *CUT_OFF, "functions", "function_call", "format"))
NOTES = {
    "sharegpt": "sharegpt: from/value turns are read as role/content, function_call as tool_calls",
    "alpaca": "alpaca: instruction and input are joined by a line break",
    "prompt_completion": "prompt_completion: prompt is the user's turn, completion the assistant's; "
    "assistant turns inside a prompt list get weight 0",
    "text": "text: each text is a single assistant turn, nobody asks",
    **{names.name: names.note for names in PUBLISHED},
    **{dialect.name: dialect.note for dialect in table.DIALECTS},
}
_SHAREGPT = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "function"), "tool"),
    **{"system": "system", "developer": "developer"},
}
_SHAREGPT_KEYS = ("from", "value", "weight", "name", "loss", "train", "reasoning_content", "reasoning", "thinking")
_USED = {
    "messages": ("tools", "system"),
    "sharegpt": ("tools", "system"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "prompt_completion": ("prompt", "completion", "system", "tools", "history"),
    "text": ("text",),
}
_QUESTIONS, _ANSWERS = ("instruction", "prompt"), ("output", "completion")
PAIRS = ("alpaca", "prompt_completion", *_PUBLISHED)  # kinds of a question beside its answer
# A text beside both of them is a third thing: mostly the two, put together for another program.
_ASKED = frozenset(("prompt", "instruction", "question", "query", "input", "problem"))
_ANSWERED = frozenset(("completion", "output", "response", "answer", "reply", "solution"))


def kind_of(row: Mapping[str, Any]) -> str | None:
    """The kind of a row without nulls that is no preference data: one of ``KINDS``, or None when unknown."""
    if ("messages" in row or "conversations" in row) and not ("choices" in row and table.BY_NAME["openai_log"].matches(row)):
        if _is_written_text(row):
            return "text"
        key = _turns_key(row)
        turns = _listed(row[key], f"$.{key}")
        first = turns[0] if isinstance(turns, list) and turns else None
        return "sharegpt" if isinstance(first, dict) and ("from" in first or "value" in first) else "messages"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    other = next((dialect for dialect in table.DIALECTS if dialect.matches(row)), None) or published(row)
    if other is not None:
        return other.name
    if "instruction" in row:
        return "alpaca"
    if "text" in row:
        return None if not _ASKED.isdisjoint(row) and not _ANSWERED.isdisjoint(row) else "text"
    return "prompt_completion" if "prompt" in row or "completion" in row else None


def unknown_keys(row: Mapping[str, Any], kind: str, group_by: str | None) -> list[str]:
    """The keys that a row of this kind has and that nothing reads. Media are read: they refuse the row."""
    if kind in table.BY_NAME:
        used = {*table.BY_NAME[kind].reads(row), *MEDIA, group_by}
    else:
        used = {*_names(row, kind).values(), *MEDIA, group_by}
    if kind in ("messages", "sharegpt"):
        used.add(_turns_key(row))
    if kind == "text" and _is_one_turn(row):
        used |= {"messages", "format"}
    return [key for key in row if key not in used]


def _names(row: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Our names to those of a row of a kind that is no dialect."""
    columns = _PUBLISHED[kind].columns if kind in _PUBLISHED else {name: name for name in _USED[kind]}
    return dict(columns) if kind == "text" else beside.completed(columns, row)


def draft(row: Mapping[str, Any], kind: str, columns: Mapping[str, str], said: set[str]) -> Draft:
    """The turns of a row.

    Args:
        row: keys are ours (after ``rename``), without nulls.
        kind: one of ``KINDS``.
        columns: our names to the file's, for the paths in problems.
        said: receives a sentence for everything that is read as something else.

    Raises:
        RowError: codes ``media``, ``missing-column``, ``not-text``, ``not-object``, ``unknown-role``, ``bad-tool-call``,
            ``no-content``; those of the dialects.
    """
    error = _media_column(row)
    if error is not None:
        raise error
    if kind in table.BY_NAME:
        if not table.BY_NAME[kind].matches(row):
            raise RowError(
                "$", "unknown-format", f"not a row of {kind}, found {', '.join(map(str, row)):.200}", naming_hint(row)
            )
        return table.BY_NAME[kind].draft(row, said)
    if kind in _PUBLISHED:
        names, base = _names(row, kind), _PUBLISHED[kind]
        said.update(_read_as(ours, theirs) for ours, theirs in names.items() if ours not in base.columns)
        return draft(rename(row, names), base.base, names, said)
    if not columns:
        columns = {ours: theirs for ours, theirs in _names(row, kind).items() if ours != theirs}
        said.update(itertools.starmap(_read_as, columns.items()))
        row = {**row, **rename(row, columns)} if columns else row
    if kind == "text":
        return _text_row(row, columns)
    if kind == "alpaca":
        result = _alpaca(row, columns)
    elif kind == "prompt_completion":
        result = _prompt_completion(row, columns)
    else:
        result = _turns_row(row, kind, columns, said)
    result.tools = row.get("tools") if "tools" in _USED[kind] else None
    result.tools_path = _path("tools", columns)
    return result


def naming(row: Mapping[str, Any]) -> str:
    """The options that name what is read of a row, for one whose other columns must not be looked at."""
    kind = kind_of(row)
    columns = _names(row, kind) if kind in _PUBLISHED or kind in _USED else {}
    if kind in ("messages", "sharegpt"):
        columns = {_turns_key(row): _turns_key(row), **columns}
    return " ".join(f"--column {ours}={theirs}" for ours, theirs in columns.items() if theirs in row)


def naming_with(row: Mapping[str, Any], left: list[str]) -> str:
    """The options that name what is read of a row, and as much as can be of columns that are not."""
    names = _names(row, kind_of(row) or "prompt_completion")
    asked, answered = (next(names[name] for name in pair if name in names) for pair in (_QUESTIONS, _ANSWERS))
    return hint_with(asked, answered, [*(name for name in names.values() if row.get(name)), *left])


def _read_as(ours: str, theirs: str) -> str:
    return f"{theirs} is read as {'the system turn' if ours == 'system' else 'what the question is about, behind a line break'}"


def rename(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The named columns of a row under our names; nothing else is read."""
    return {ours: row[theirs] for ours, theirs in columns.items() if row.get(theirs) is not None}


def unknown_format(row: Mapping[str, Any]) -> RowError:
    """The problem of a row whose keys make none of the kinds."""
    error = _media_column(row)
    if error is not None:
        return error
    keys = ", ".join(map(str, row)) or "no keys"
    suggestion = next(filter(None, (nearest(str(key)[:40], COLUMNS, 0.8) for key in row if key not in COLUMNS)), "")
    problem = f"found {keys:.200}{suggestion}; expected messages, conversations, instruction, prompt and completion, or text"
    if isinstance(row.get("segments"), list):
        hint = "Axolotl's segments mark parts of a text to learn; write prompt and completion, or messages"
    elif row and all(isinstance(cell, dict) and "0" in cell for cell in row.values()):
        return _whole_table(keys)
    else:
        hint = naming_hint(row)
    return RowError("$", "unknown-format", problem, hint)


def _whole_table(keys: str) -> RowError:
    problem = f"found {keys:.200}, each an object of all its cells: a whole table, as pandas writes it by columns"
    hint = "write one row a line: frame.to_json('rows.jsonl', orient='records', lines=True)"
    return RowError("$", "unknown-format", problem, hint)


def _media_column(row: Mapping[str, Any]) -> RowError | None:
    """The problem of a row with a filled column of media. With named columns a row holds these alone."""
    name = next((name for name in MEDIA if name in row and is_media(row[name])), None)
    hint = "remove the row; to train on its text alone, name the text's columns in data.columns (--column)"
    return None if name is None else media(f"$.{name}", f"{name} beside the text", hint)


def _path(name: str, columns: Mapping[str, str]) -> str:
    return f"$.{columns.get(name, name)}"


def _turns_key(row: Mapping[str, Any]) -> str:
    return "messages" if "messages" in row else "conversations"


def _is_written_text(row: Mapping[str, Any]) -> bool:
    """Whether this is how ``convert`` writes a plain text."""
    return row.get("format") == "text" and _is_one_turn(row)


def _is_one_turn(row: Mapping[str, Any]) -> bool:
    """Whether this is how ms-swift writes a plain text, which has to be named as one (``data.format: text``)."""
    turns = row.get("messages")
    return isinstance(turns, list) and len(turns) == 1 and "text" not in row


def _listed(value: Any, path: str) -> Any:
    """Lists stand as JSON text in a table that has no lists."""
    return loads_text(value, path) if isinstance(value, str) and value.lstrip().startswith("[") else value


def _needed(row: Mapping[str, Any], name: str, columns: Mapping[str, str]) -> Any:
    if name not in row:
        keys = ", ".join(columns.get(key, key) for key in row)
        problem = f"no {columns.get(name, name)} in this row, found {keys or 'nothing'}"
        other = "" if columns else answer_hint(row, name)
        raise RowError(_path(name, columns), "missing-column", problem, f"fill the column or remove the row{other}")
    return row[name]


def _string(row: Mapping[str, Any], name: str, columns: Mapping[str, str]) -> str:
    value = _needed(row, name, columns)
    if not isinstance(value, str):
        if isinstance(value, dict) and "0" in value:
            raise _whole_table(", ".join(map(str, row)))
        kind = type(value).__name__
        hint = (
            f'write it as text, as it is to be said: "{value}"' if isinstance(value, bool | int | float) else "write a string"
        )
        raise RowError(_path(name, columns), "not-text", f"expected text, found {kind}", hint)
    return value


def _system(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[list[Any], list[tuple[str, bool]]]:
    """The system turn from a column, where it is filled."""
    if "system" not in row or row["system"] == "":
        return [], []
    return [{"role": "system", "content": _string(row, "system", columns)}], [(_path("system", columns), False)]


def _text_row(row: Mapping[str, Any], columns: Mapping[str, str]) -> Draft:
    if _is_one_turn(row):
        return Draft(row["messages"], text=True, whole=_path("messages", columns))
    path = _path("text", columns)
    turn = {"role": "assistant", "content": _string(row, "text", columns)}
    return Draft([turn], text=True, origins=[(path, False)], whole=path)


def _turns_row(row: Mapping[str, Any], kind: str, columns: Mapping[str, str], said: set[str]) -> Draft:
    key = _turns_key(row)
    path = _path(key, columns)
    turns = _listed(_needed(row, key, columns), path)
    for name in ("functions", "function_call"):
        if name in row:
            problem = f"{name} is OpenAI's form of 2023, replaced by tools and tool_calls"
            raise RowError(f"$.{name}", "legacy-function-call", problem, "write tools, and tool_calls in the assistant's turns")
    before, origins = _system(row, columns)
    if not isinstance(turns, list) or not turns:
        return Draft(turns, whole=path)
    if before and turns[0] in (before[0], {"from": "system", "value": before[0]["content"]}):
        said.add(f"{columns.get('system', 'system')} says what the first turn says, and is read once")
        before, origins = [], []
    if kind == "messages":
        origins += [(f"{path}[{index}]", True) for index in range(len(turns))]
        return Draft(before + turns, origins=origins, whole=path)
    messages: list[Any] = []
    for index, turn in enumerate(turns):
        where = f"{path}[{index}].value"
        plain = _plain_sharegpt(turn)
        if plain is not None:
            messages.append(plain)
            origins.append((where, False))
            continue
        messages.append(_sharegpt(turn, f"{path}[{index}]", said))
        origins.append((where, False))
    return Draft(before + messages, origins=origins, whole=path)


def _plain_sharegpt(turn: Any) -> dict[str, str] | None:
    """A turn of two texts in which nothing but a speaker is to be read; None for any other."""
    if type(turn) is not dict or len(turn) != 2:
        return None
    speaker, value = turn.get("from"), turn.get("value")
    if type(speaker) is not str or type(value) is not str or speaker == "function_call" or TRACE in value:
        return None
    role = _SHAREGPT.get(speaker)
    return None if role is None else {"role": role, "content": value}


def _sharegpt(turn: Any, path: str, said: set[str]) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise RowError(path, "not-object", f"expected an object, found {type(turn).__name__}", "write from and value")
    fields = {key: value for key, value in turn.items() if value is not None}
    if fields.pop("id", None) is not None:
        said.add("id of a turn is left out")
    extra = [key for key in fields if key not in _SHAREGPT_KEYS]
    if extra:
        problem = f"unknown key in a turn{nearest(str(extra[0]), _SHAREGPT_KEYS)}"
        raise RowError(f"{path}.{extra[0]}", "unknown-key", problem, "nothing would read it")
    speaker = fields.pop("from", None)
    if not isinstance(speaker, str) or speaker not in _SHAREGPT:
        problem = f"unknown speaker {speaker!r:.40}{nearest(str(speaker), _SHAREGPT)}"
        raise RowError(f"{path}.from", "unknown-role", problem, "use human, gpt, system, function_call or observation")
    if "value" not in fields:
        raise RowError(path, "no-content", "value is missing", "a turn has from and value")
    value = fields.pop("value")
    message = {"role": _SHAREGPT[speaker], **fields}
    if speaker != "function_call":
        return {**message, "content": value}
    calls = loads_text(value, f"{path}.value") if isinstance(value, str) else value
    wrapped = []
    for call in calls if isinstance(calls, list) else [calls]:
        if not isinstance(call, dict) or "name" not in call:
            hint = 'write {"name": ..., "arguments": {...}}, or a list of these'
            raise RowError(f"{path}.value", "bad-tool-call", f"expected name and arguments, found {call!s:.60}", hint)
        wrapped.append({"type": "function", "function": call})
    if not wrapped:
        raise RowError(f"{path}.value", "bad-tool-call", "an empty list of calls", "remove the turn")
    return {**message, "content": "", "tool_calls": wrapped}


def _before(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[list[Any], list[tuple[str, bool]]]:
    """The system turn, and the turns of a history of pairs."""
    turns, origins = _system(row, columns)
    path = _path("history", columns)
    history = _listed(row.get("history", []), path)
    if not isinstance(history, list) and history != "":
        raise RowError(
            path, "not-object", f"expected a list of pairs, found {type(history).__name__}", "write [[asked, answered], ...]"
        )
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError(f"{path}[{index}]", "not-object", f"expected a pair, found {pair!s:.60}", "write [asked, answered]")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        origins += [(f"{path}[{index}][0]", False), (f"{path}[{index}][1]", False)]
    return turns, origins


def _alpaca(row: Mapping[str, Any], columns: Mapping[str, str]) -> Draft:
    turns, origins = _before(row, columns)
    prompt = [_string(row, "instruction", columns)] + ([_string(row, "input", columns)] if "input" in row else [])
    turns.append({"role": "user", "content": "\n".join(part for part in prompt if part)})
    turns.append({"role": "assistant", "content": _string(row, "output", columns)})
    origins += [(_path("instruction", columns), False), (_path("output", columns), False)]
    return Draft(turns, origins=origins, whole="$")


def _prompt_completion(row: Mapping[str, Any], columns: Mapping[str, str]) -> Draft:
    turns, origins = _before(row, columns)
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        path = _path(name, columns)
        value = _needed(row, name, columns)
        if not isinstance(value, list):
            turns.append({"role": role, "content": _string(row, name, columns)})
            origins.append((path, False))
            continue
        for index, turn in enumerate(value):
            if name == "prompt" and isinstance(turn, dict) and turn.get("role") == "assistant" and turn.get("weight") is None:
                turn = {**turn, "weight": 0}
            turns.append(turn)
            origins.append((f"{path}[{index}]", True))
    return Draft(turns, origins=origins, whole="$")
