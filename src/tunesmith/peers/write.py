"""The recipe of an imported configuration: every key with a comment that names the key behind it, and on top what differs.

What was dropped or left out is named as well, so that the file says by itself what it was made from.
"""

import textwrap
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from tunesmith.peers.translation import plain
from tunesmith.recipe import Recipe, yaml_line
from tunesmith.rundir.records.imported import ImportedKey

SECTIONS = ("data", "chat", "task", "lora", "train", "export")
WIDTH = 110
LONGEST = 60  # characters of a value in a comment


def settings_of(keys: Sequence[ImportedKey]) -> dict[str, JsonValue]:
    """The recipe's keys, dotted, with what they say; of two that say one key the later counts."""
    return {key.ours: key.our_value for key in keys if key.ours is not None and key.kind in ("mapped", "defaulted")}


def nested(settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Dotted keys as sections."""
    sections: dict[str, dict[str, JsonValue]] = {}
    for dotted, value in settings.items():
        section, _, name = dotted.rpartition(".")
        sections.setdefault(section, {})[name] = value
    return {**sections.pop("", {}), **sections}


def recipe_text(source: str, tool: str, keys: Sequence[ImportedKey], differs: Sequence[str]) -> str:
    """The file.

    Args:
        source: name of the configuration.
        tool: that it was written for.
        keys: what became of each.
        differs: what is trained otherwise, a sentence each.
    """
    lines = [*_comment(f"Imported from {source} ({tool}) by tunesmith import.")]
    if differs:
        lines += ["#", *_comment("What is trained otherwise than there:")]
        lines += [line for sentence in differs for line in _comment(sentence, "- ")]
    if left_out := [key for key in keys if key.left_out]:
        lines += ["#", *_comment("Left out as asked (--without), although it changes what is trained:")]
        lines += [line for key in left_out for line in _comment(f"{_named(key)}: {key.words}", "- ")]
    if dropped := dict.fromkeys(key.key for key in keys if key.kind == "dropped"):
        lines += ["#", *_comment(f"Not taken over, being about speed or output alone: {', '.join(dropped)}.")]
    settings = settings_of(keys)
    reasons = {key.ours: _reason(key) for key in keys if key.ours in settings}
    lines.append("")
    lines += [_entry(name, settings[name], reasons[name]) for name in settings if "." not in name]
    for section in SECTIONS:
        inside = [name for name in settings if name.rpartition(".")[0] == section]
        if inside:
            lines += ["", f"{section}:"]
            keys_of = [f"{section}.{name}" for name in _keys_of(section)]
            lines += [
                f"  {_entry(name.rpartition('.')[2], settings[name], reasons[name])}"
                for name in sorted(inside, key=keys_of.index)
            ]
    return "\n".join([*lines, ""])


def _keys_of(section: str) -> list[str]:
    """The keys of a section in the recipe's own order."""
    schema = Recipe.model_json_schema()
    return [*schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]["properties"]]


def _entry(name: str, value: JsonValue, reason: str) -> str:
    return f"{yaml_line(name, value)}  # {reason}"


def _reason(key: ImportedKey) -> str:
    if key.kind == "defaulted":
        return key.words if key.key == "(none)" else f"{key.key}: {key.words}"
    return f"{_named(key)}{f': {key.words}' if key.words else ''}"


def _named(key: ImportedKey) -> str:
    """A key with the value that it had."""
    if key.value is None:
        return key.key
    text = " ".join(plain(key.value).split())
    return f"{key.key} {text if len(text) <= LONGEST else f'{text[: LONGEST - 3]}...'}"


def _comment(text: str, mark: str = "") -> list[str]:
    first, others = f"# {mark}", f"# {' ' * len(mark)}"
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)
