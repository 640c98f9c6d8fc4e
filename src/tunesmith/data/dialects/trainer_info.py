"""A trainer's ``dataset_info.json`` beside a file of rows: which columns it has, and what its turns call their speakers.

One such file describes many data sets by name, each with the name of its file; ``datasets`` writes another file of the same
name, which describes one and has none. What it says of a file is used where nobody names a format or columns, and is said.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = "dataset_info.json"
LONGEST = 1 << 20  # bytes
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
_SHARED = {"messages": "conversations", "system": "system", "tools": "tools"}
_SPEAKERS = {
    **{"user_tag": "human", "assistant_tag": "gpt", "observation_tag": "observation"},
    **{"function_tag": "function_call", "system_tag": "system"},
}


@dataclass(frozen=True, slots=True)
class TrainerInfo:
    """What is said of one file.

    Attributes:
        columns: our names to the file's.
        keys: the file's names of ``from`` and ``value`` in a turn.
        speakers: the file's names of speakers to ShareGPT's.
        note: what is said of it.
    """

    columns: dict[str, str]
    keys: tuple[str, str] = ("from", "value")
    speakers: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def turns(self, listed: Any) -> Any:
        """A list of turns under ShareGPT's names; anything that is no list of objects as it is."""
        if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
            return listed
        return [self._turn(turn) for turn in listed]

    def _turn(self, turn: Any) -> Any:
        speaker, value = self.keys
        names = {speaker: "from", value: "value"}
        renamed = {names.get(key, key): member for key, member in turn.items()}
        said = renamed.get("from")
        return {**renamed, "from": self.speakers.get(said, said)} if isinstance(said, str) else renamed


def info_beside(path: Path) -> TrainerInfo | None:
    """What a ``dataset_info.json`` beside a file says of it; None without one, or where it says nothing that is needed."""
    beside = path.with_name(NAME)
    if path.name == NAME or not path.is_file() or not beside.is_file() or beside.stat().st_size > LONGEST:
        return None
    try:
        sets = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    described = [entry for entry in sets.items() if _describes(entry[1], path)] if isinstance(sets, dict) else []
    if len(described) != 1:
        return None
    name, entry = described[0]
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if not isinstance(columns, dict) or not isinstance(tags, dict) or entry.get("ranking"):
        return None
    known = _SHARED if entry.get("formatting") == "sharegpt" else _ALPACA
    if not set(columns) <= set(known) or not (columns or tags):
        return None  # images, or preference data: the rows say what they are
    named = {known[key]: str(theirs) for key, theirs in columns.items() if theirs}
    named = named if named or known is _ALPACA else {"conversations": "conversations"}
    speakers = {str(tags[tag]): ours for tag, ours in _SPEAKERS.items() if tag in tags}
    keys = (str(tags.get("role_tag", "from")), str(tags.get("content_tag", "value")))
    return TrainerInfo(named, keys, speakers, f"{NAME}: columns and speakers of {path.name} as {name!r} names them")


def _describes(entry: Any, path: Path) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and Path(entry["file_name"]).name == path.name
