"""What is wrong with a recipe, in words: the key, what it expects, what was found there, and the nearest known key.

pydantic finds the problems and says them to programmers ("Value error", "valid tuple", a regular expression, one line for each
member of a union). Here every kind of them has its words. A key whose own parts are wrong says nothing itself: that a list is
empty once its only entry was refused is no news, and false.

Refused: messages written by each key's own validator, a hundred functions for what a table of thirty lines says.

Source: pydantic's table of validation errors (their ``type`` and ``ctx``), docs.pydantic.dev/latest/errors/validation_errors.
"""

import difflib
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tunesmith.recipe.section import PATTERNS, Section

NUMBER, WHOLE, SWITCH, KEYS = "a number", "a whole number", "true or false", "keys and values"
EXPECTED = {
    **{"int_type": WHOLE, "int_parsing": WHOLE, "int_from_float": WHOLE, "int_parsing_size": WHOLE},
    **{"float_type": NUMBER, "float_parsing": NUMBER, "finite_number": "a finite number"},
    **{"bool_type": SWITCH, "bool_parsing": SWITCH, "string_type": "text", "path_type": "a path", "tuple_type": "a list"},
    **{"dict_type": KEYS, "model_type": KEYS, "model_attributes_type": KEYS, "literal_error": "{expected}"},
    **{"greater_than": "more than {gt}", "greater_than_equal": "{ge} or more"},
    **{"less_than": "less than {lt}", "less_than_equal": "{le} or less"},
    **{"too_short": "at least {min_length} in the list", "string_too_short": "at least {min_length} character"},
}
NEEDED = ("model", "data", "data.path", "task", "task.metric")
Problem = tuple[tuple[int | str, ...], ErrorDetails]


def problems(where: str, error: ValidationError, root: type[Section]) -> tuple[str, str]:
    """Message and hint for all problems of a recipe or of one section, each with its dotted key.

    Args:
        where: what the message calls the origin of the keys.
        root: the section that was read.
    """
    located = [(_place(root, item["loc"]), item) for item in error.errors()]
    places = list(dict.fromkeys(place for place, _ in located))
    lines: list[str] = []
    hints: list[str] = []
    for place in places:
        if any(other != place and other[: len(place)] == place for other in places):
            continue
        items = [item for other, item in located if other == place]
        key = ".".join(str(part) for part in place)
        if items[0]["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key {key}")
            hints.append(_hint_of_key(str(place[-1]), _known_keys(root, place[:-1]), root if len(place) == 1 else None))
        elif items[0]["type"] == "missing":
            lines.append(f"{where}: {key} is missing")
            hints.append("every recipe names model, data.path and task.metric" if key in NEEDED else f"give {key} a value")
        else:
            lines.append(": ".join(part for part in (where, key, _reason(items)) if part))
    return "\n".join(lines), "; ".join(dict.fromkeys(hints)) or "tunesmith schema prints every key with its range"


def _reason(items: Sequence[ErrorDetails]) -> str:
    """What a key expects and what it holds; the members of a union each say what they expect."""
    value = items[0]["input"]
    if items[0]["type"] == "value_error":
        found = "" if isinstance(value, Mapping) else f"found {_shown(value)}: "
        return f"{found}{items[0].get('ctx', {})['error']}"
    expected = dict.fromkeys(_expected(item) for item in items if item["type"] != "value_error")
    return f"expected {', or '.join(expected)}, found {_shown(value)}"


def _expected(item: ErrorDetails) -> str:
    context = item.get("ctx", {})
    if item["type"] == "string_pattern_mismatch":
        return PATTERNS[context["pattern"]]
    whole = {name: int(bound) for name, bound in context.items() if isinstance(bound, float) and bound.is_integer()}
    known = EXPECTED.get(item["type"])  # what no recipe of a person has, a key that is no text, comes in pydantic's words
    return item["msg"].lower() if known is None else known.format(**{**context, **whole})


def _shown(value: object) -> str:
    return "nothing" if value is None else f"{value!r:.80}"


def _place(root: type[Section], location: Sequence[int | str]) -> tuple[int | str, ...]:
    """Where a problem is, in the keys of a recipe: without the names that pydantic gives to members of a union."""
    place: list[int | str] = []
    annotation: Any = root
    for part in location:
        if part == "[key]":  # an entry's name is wrong, and the part before says it
            break
        if _is_section(annotation):
            place.append(part)
            field = annotation.model_fields.get(str(part))
            annotation = None if field is None else _plain(field.annotation)
        elif get_origin(annotation) is dict:
            place.append(part)
            annotation = get_args(annotation)[1]
        elif isinstance(part, int):
            place.append(part)
            annotation = get_args(annotation)[0] if get_origin(annotation) is tuple else None
    return tuple(place)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _plain(annotation: Any) -> Any:
    """An annotation without its ``| None``."""
    if get_origin(annotation) in (UnionType, Union):
        return next((member for member in get_args(annotation) if member is not type(None)), None)
    return annotation


def _hint_of_key(name: str, known: list[str], root: type[Section] | None) -> str:
    """What was meant by an unknown key; at the top of ``root`` it may be a key of one of the sections."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not near and root is not None:
        below = {key: section for section in known for key in _keys_of_section(root, section)}
        if close := difflib.get_close_matches(name, below, n=1, cutoff=0.8):
            return f"{close[0]} is a key of the section {below[close[0]]}"
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known keys there: {', '.join(sorted(known))}"


def _keys_of_section(root: type[Section], name: str) -> list[str]:
    annotation: Any = root.model_fields[name].annotation
    return list(annotation.model_fields) if _is_section(annotation) else []


def _known_keys(root: type[Section], location: Sequence[int | str]) -> list[str]:
    section: Any = root
    for part in location:
        if get_origin(section) in (dict, tuple):
            section = get_args(section)[get_origin(section) is dict]
        else:
            section = _plain(section.model_fields[str(part)].annotation)
    return list(section.model_fields)
