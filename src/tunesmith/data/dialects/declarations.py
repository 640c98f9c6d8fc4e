"""Declared tools of other programs as OpenAI's functions, parameters and all.

A declaration without its parameters teaches calls that nobody can read, so every form in use is either written as
``parameters`` or refused; none is passed on under a name that templates do not know.
"""

from typing import Any

from tunesmith.data.problems import RowError
from tunesmith.data.strict_json import loads_text

SCHEMA = "{} of a tool is read as parameters"
FLAT = "flat tool declarations are read as functions"
GEMINI = "functionDeclarations are read as functions, their types in small letters"
CACHE = "cache_control is left out"
STRICT = "strict beside a function is read as part of it"
_SCHEMAS = ("input_schema", "inputSchema", "parametersJsonSchema", "parameters_json_schema")
_KEYS = frozenset(("type", "function"))
_FOREIGN = frozenset((*_SCHEMAS, "cache_control"))
_GROUPS = ("functionDeclarations", "function_declarations")


def openai_tools(tools: Any, path: str, said: set[str]) -> Any:
    """Declared tools in OpenAI's form; anything that is none is returned as it is, for the checks to refuse.

    Args:
        tools: a list, or JSON text of one, or of any other type.
        path: where they stand.
        said: receives what was written otherwise.

    Raises:
        RowError: JSON text that is none, two schemas in one declaration, or a tool that is no function.
    """
    if isinstance(tools, str):
        tools = loads_text(tools, path) if tools.strip() else None
    if not isinstance(tools, list) or all(map(_is_openai, tools)):
        return tools
    declared: list[Any] = []
    for index, tool in enumerate(tools):
        where = f"{path}[{index}]"
        if isinstance(tool, str) and tool.lstrip().startswith("{"):
            tool = loads_text(tool, where)
        group = next((tool[name] for name in _GROUPS if isinstance(tool, dict) and name in tool), None)
        if isinstance(group, list):
            said.add(GEMINI)
            declared += [{"type": "function", "function": _small_types(_function(one, where, said))} for one in group]
        else:
            declared.append(_tool(tool, where, said))
    return declared


def _is_openai(tool: Any) -> bool:
    """Whether there is nothing to read otherwise."""
    function = tool.get("function") if isinstance(tool, dict) and tool.keys() <= _KEYS else None
    return isinstance(function, dict) and _FOREIGN.isdisjoint(function)


def _tool(tool: Any, path: str, said: set[str]) -> Any:
    if not isinstance(tool, dict):
        return tool
    if isinstance(tool.get("function"), dict):
        function = _function(tool["function"], f"{path}.function", said)
        rest = {key: value for key, value in tool.items() if key != "function"}
        if "strict" in rest and "strict" not in function:
            said.add(STRICT)
            function = {**function, "strict": rest.pop("strict")}
        return {**rest, "function": function}
    if tool.get("type", "function") not in ("function", "custom", None):
        hint = "declare the function that the model is to call, or remove the tool"
        raise RowError(path, "bad-tools", f"a tool of type {tool['type']!r:.40}, which its provider runs", hint)
    if "name" not in tool:
        return tool
    if "type" in tool:
        said.add(FLAT)
    function = _function({key: value for key, value in tool.items() if key != "type"}, path, said)
    return {"type": "function", "function": function}


def _function(function: Any, path: str, said: set[str]) -> Any:
    if not isinstance(function, dict):
        return function
    function = {key: value for key, value in function.items() if value is not None}
    if function.pop("cache_control", None) is not None:
        said.add(CACHE)
    for name in _SCHEMAS:
        if name in function:
            if "parameters" in function:
                hint = "keep one of the two"
                raise RowError(f"{path}.{name}", "bad-tools", f"{name} beside parameters: two schemas of one tool", hint)
            said.add(SCHEMA.format(name))
            function = {("parameters" if key == name else key): value for key, value in function.items()}
    return function


def _small_types(schema: Any) -> Any:
    """Gemini writes ``STRING`` where JSON schemas have ``string``."""
    if isinstance(schema, list):
        return [_small_types(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value.lower() if key == "type" and isinstance(value, str) and value.isupper() else _small_types(value)
        for key, value in schema.items()
    }
