"""Tool calls held against the tools that are declared beside them.

Two things go wrong in files of tool calls, and both teach silently. *Padding*: a table gives every struct the keys of all, and
written back as JSON lines they are nulls: a property ``null`` in a schema, an argument ``"day": null`` in a call of a function
that has no day. A null is no JSON schema, and a null argument that the function does not declare, or declares without null and
does not require, says nothing: these are dropped, and said. Every other null stays. *Calls that no tool answers*: an undeclared
function, an argument that it does not have, one that is missing or of another type, two tools of one name. These are findings:
the row may be what is wrong, or the declaration.

The schema is read as far as declarations go: ``type``, ``enum``, ``const``, ``properties``, ``required``,
``additionalProperties``, ``items``, ``anyOf``, ``oneOf``, ``allOf``, local ``$ref``; what else a schema says is not held
against a call. One reading is stricter than the specification: an object that lists its properties has no others unless it
says so. Refused: a validator's package, which compiles a schema to use it once.

Source: JSON Schema 2020-12; OpenAI's function calling.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from tunesmith.data.finding import SHOWN, Example, Finding, excerpt
from tunesmith.formatting import repeated
from tunesmith.messages import Message, Tool, Tools
from tunesmith.rundir.rows import Row

Schema = dict[str, JsonValue]
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_JOINED = ("anyOf", "oneOf", "allOf", "$ref", "patternProperties")  # what may declare further members of an object
_KEYWORDS = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "description",
    "title",
    "$defs",
    "definitions",
    "$schema",
}
# Keywords that no null may stand for; of any other key a null may mean something (default, const, a vendor's own).
_NEVER_NULL = {
    *("type", "description", "title", "format", "properties", "required", "additionalProperties", "items", "enum"),
    *("anyOf", "oneOf", "allOf", "$ref", "$defs", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("multipleOf", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties"),
}
_MOST_DEPTH = 32  # of a schema that refers to itself

KINDS = {
    "undeclared-tool": (
        "rows that call a function which their tools do not declare",
        "Declare it in tools, or correct the call: a server refuses what it does not know.",
    ),
    "unknown-argument": (
        "rows that call a function with an argument which it does not declare",
        "Correct the argument's name, or declare it in the function's parameters.",
    ),
    "missing-argument": (
        "rows that call a function without an argument which it requires",
        "Add the argument, or take it out of required.",
    ),
    "argument-type": (
        "rows that call a function with an argument of another type or value than it declares",
        "Write the value as the function's parameters say, or correct these.",
    ),
    "not-a-schema": (
        "rows that declare a function whose parameters are no JSON schema",
        'Write {"type": "object", "properties": {...}, "required": [...]}: templates look for these.',
    ),
    "null-argument": (
        "rows whose calls have arguments that are null, and no tools that say what a null means",
        "Remove the nulls if a table put them there, or declare the functions in tools.",
    ),
    "duplicate-tool": (
        "rows that declare two tools of one name",
        "Remove or rename one: nobody can say which of them a call means.",
    ),
}


def without_padding(messages: list[Message], tools: Tools) -> tuple[list[Message], Tools, int]:
    """The row without the nulls that a table put there; the third is how many were dropped.

    Args:
        messages, tools: checked ones; nothing of them is altered.
    """
    calls_of = [message["tool_calls"] for message in messages if "tool_calls" in message]
    if not tools or (not _holds_null(calls_of) and not _holds_null(tools)):
        return messages, tools, 0
    dropped = 0
    declared: list[Tool] = []
    for tool in tools:
        parameters, nulls = _schema_without_nulls(tool["function"].get("parameters", {}))
        dropped += nulls
        declared.append({**tool, "function": {**tool["function"], "parameters": parameters}} if nulls else tool)
    schemas = _schemas(declared)
    turns: list[Message] = []
    for message in messages:
        calls = []
        for call in message.get("tool_calls", ()):
            function, schema = call["function"], schemas.get(call["function"]["name"])
            nulls = 0
            if schema is not None:
                arguments, nulls = _arguments_without_nulls(function["arguments"], schema)
                call = {**call, "function": {**function, "arguments": arguments}} if nulls else call
            dropped += nulls
            calls.append(call)
        turns.append({**message, "tool_calls": calls} if calls else message)
    return (turns, declared, dropped) if dropped else (messages, tools, 0)


def _holds_null(value: object) -> bool:
    """Whether there is a null anywhere in a parsed value."""
    if type(value) is str:
        return False
    if type(value) is dict:
        return any(map(_holds_null, value.values()))
    return any(map(_holds_null, value)) if type(value) is list else value is None


def _schemas(tools: list[Tool]) -> dict[str, Schema]:
    return {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in tools}


def _schema_without_nulls(schema: JsonValue) -> tuple[Schema, int]:
    """A schema without keywords and properties that are null; every level is looked at."""
    kept: Schema = {}
    dropped = 0
    for key, value in schema.items() if isinstance(schema, dict) else ():
        if value is None and key in _NEVER_NULL:
            dropped += 1
            continue
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            named: Schema = {}
            for name, member in value.items():
                if member is None:
                    dropped += 1
                elif isinstance(member, dict):
                    named[name], nulls = _schema_without_nulls(member)
                    dropped += nulls
                else:
                    named[name] = member
            value = named
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            value, nulls = _schema_without_nulls(value)
            dropped += nulls
        elif key in ("anyOf", "oneOf", "allOf") and isinstance(value, list):
            members: list[JsonValue] = []
            for member in value:
                part, nulls = _schema_without_nulls(member) if isinstance(member, dict) else (member, 0)
                members.append(part)
                dropped += nulls
            value = members
        kept[key] = value
    return kept, dropped


def _arguments_without_nulls(arguments: Schema, schema: JsonValue) -> tuple[Schema, int]:
    """Arguments, or an object among them, without the nulls that its schema proves to be padding."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(schema, dict) or not isinstance(properties, dict):
        return arguments, 0
    required = schema.get("required")
    open_ended = schema.get("additionalProperties") not in (None, False) or any(key in schema for key in _JOINED)
    kept: Schema = {}
    dropped = 0
    for name, value in arguments.items():
        if value is None:
            says_something = _fits(None, properties[name], schema) if name in properties else open_ended
            if not says_something and not (isinstance(required, list) and name in required):
                dropped += 1
                continue
        elif isinstance(value, dict):
            value, nulls = _arguments_without_nulls(value, properties.get(name))
            dropped += nulls
        elif isinstance(value, list):
            member = properties.get(name)
            items = member.get("items") if isinstance(member, dict) else None
            parts = [_arguments_without_nulls(item, items) if isinstance(item, dict) else (item, 0) for item in value]
            value = [part for part, _ in parts]
            dropped += sum(nulls for _, nulls in parts)
        kept[name] = value
    return kept, dropped


def _fits(value: JsonValue, schema: JsonValue, root: Schema, depth: int = 0) -> bool:
    """Whether a value is what a schema allows."""
    return next(_faults(value, schema, root, "", depth, closed=False), None) is None


def _faults(
    value: JsonValue, schema: JsonValue, root: Schema, path: str, depth: int = 0, *, closed: bool = True
) -> Iterator[tuple[str, str]]:
    """(code, what) of everything that a value lacks to be what a schema describes.

    Args:
        closed: whether an object has no members but those that it declares, where the schema does not say.
    """
    if not isinstance(schema, dict) or depth > _MOST_DEPTH:
        return
    closed = closed and not any(key in schema for key in _JOINED)
    where = path or "the object of the arguments"
    wanted = schema.get("type")
    types = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []
    if types and not any(_is_a(value, name) for name in types) and not (value is None and schema.get("nullable") is True):
        yield "argument-type", f"{where} is {_NAMES[type(value)]}, declared {' or '.join(map(str, types))}"
        return
    choices = schema.get("enum")
    if isinstance(choices, list) and value not in choices:
        yield "argument-type", f"{where} is {value!r:.40}, not one of {', '.join(map(repr, choices)):.80}"
    if "const" in schema and value != schema["const"]:
        yield "argument-type", f"{where} is {value!r:.40}, declared {schema['const']!r:.40}"
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list) and options and not any(_fits(value, option, root, depth + 1) for option in options):
            yield "argument-type", f"{where} is {_NAMES[type(value)]}, which none of its forms ({key}) allows"
    parts, reference = schema.get("allOf"), schema.get("$ref")
    for part in parts if isinstance(parts, list) else ():
        yield from _faults(value, part, root, path, depth + 1, closed=False)
    if isinstance(reference, str):
        yield from _faults(value, _referred(reference, root), root, path, depth + 1, closed=len(schema) == 1)
    if isinstance(value, dict):
        yield from _object_faults(value, schema, root, path, depth, closed)
    items = schema.get("items")
    if isinstance(value, list) and isinstance(items, dict):
        for index, item in enumerate(value):
            yield from _faults(item, items, root, f"{path}[{index}]", depth + 1)


def _object_faults(
    value: Schema, schema: Schema, root: Schema, path: str, depth: int, closed: bool
) -> Iterator[tuple[str, str]]:
    declared, required, others = schema.get("properties"), schema.get("required"), schema.get("additionalProperties")
    properties = declared if isinstance(declared, dict) else {}
    for name in required if isinstance(required, list) else ():
        if name not in value:
            yield "missing-argument", f"{path}.{name} is missing".lstrip(".")
    closed = others is False or (closed and others is None and isinstance(declared, dict))
    for name, member in value.items():
        where = f"{path}.{name}".lstrip(".")
        if name in properties:
            yield from _faults(member, properties[name], root, where, depth + 1)
        elif isinstance(others, dict):
            yield from _faults(member, others, root, where, depth + 1)
        elif closed:
            yield "unknown-argument", f"{where}, declared are {', '.join(properties) or 'none'}"


def _is_a(value: JsonValue, name: JsonValue) -> bool:
    if name == "integer":
        return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    types = _TYPES.get(name) if isinstance(name, str) else None
    if types is None:
        return True  # a type of another dialect of schemas
    return isinstance(value, types) and (name == "boolean" or not isinstance(value, bool))


def _referred(reference: str, root: Schema) -> JsonValue:
    """What a reference within the schema leads to; None for one that leads elsewhere."""
    if not reference.startswith("#/"):
        return root if reference == "#" else None
    target: JsonValue = root
    for step in reference[2:].split("/"):
        target = target.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
    return target


def faults(row: Row) -> dict[str, str]:
    """What is wrong with the calls and the tools of a row: codes of ``KINDS``, each with its first case."""
    if not row.tools:
        calls = [call["function"] for message in row.messages for call in message.get("tool_calls", ())]
        return next(({"null-argument": call["name"]} for call in calls if _holds_null(call["arguments"])), {})
    first: dict[str, str] = {}
    schemas = _schemas(row.tools)
    if len(schemas) < len(row.tools):
        first["duplicate-tool"] = repeated(tool["function"]["name"] for tool in row.tools)[0]
    for name, schema in schemas.items():
        if schema and _KEYWORDS.isdisjoint(schema) and not any(key in schema for key in _JOINED):
            first.setdefault("not-a-schema", f"{name}: {', '.join(schema)}")
    for message in row.messages:
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            if name not in schemas:
                first.setdefault("undeclared-tool", f"{name}, declared are {', '.join(schemas)}")
                continue
            schema = schemas[name]
            for code, what in _faults(arguments, schema, schema, ""):
                first.setdefault(code, f"{name}: {what}")
    return first


@dataclass
class _Seen:
    rows: int = 0
    examples: list[Example] = field(default_factory=list)


class ToolUse:
    """Collects the rows whose calls and tools do not belong together."""

    def __init__(self) -> None:
        self._rows = 0
        self._seen: dict[str, _Seen] = {}

    def add(self, rows: Sequence[Row], first: int) -> None:
        """Look at a batch; ``first`` is the number of its first row."""
        for number, row in enumerate(rows, first):
            if row.tools is None and not any("tool_calls" in message for message in row.messages):
                continue
            self._rows += 1
            for code, what in faults(row).items():
                seen = self._seen.setdefault(code, _Seen())
                seen.rows += 1
                if len(seen.examples) < SHOWN:
                    seen.examples.append(Example(number, excerpt(what)))

    def findings(self) -> list[Finding]:
        """One for each kind of fault that there is."""
        return [
            Finding(
                code,
                "suspect" if code == "null-argument" else "wrong",
                KINDS[code][0],
                seen.rows,
                self._rows,
                KINDS[code][1],
                seen.examples,
            )
            for code, seen in self._seen.items()
        ]
