"""Tools, the choice between them, and the format of an answer, as a request names them.

A model calls a function by writing in the form that its own template writes, and the answer is read in that form
(``chat/calls``); where the template has none, tools are refused. A call that is demanded (``required``, or a function by name)
is begun for the model (``forced_call.py``), and its arguments meet their schema. Where the model may choose, nothing binds
them, so ``strict`` is refused there.

A format is a grammar that the engine obeys token by token. One that cannot be enforced whole is refused before the engine is
asked, because llama.cpp would write that to its log and answer freely.
"""

import json
from dataclasses import dataclass
from functools import lru_cache

from pydantic import JsonValue

from tunesmith.chat.calls.forms import CallForm
from tunesmith.chat.render import Renderer
from tunesmith.data.conversation import check_tools
from tunesmith.data.problems import RowError
from tunesmith.engines.constraint import as_text
from tunesmith.errors import RecipeError
from tunesmith.messages import Tool, Tools
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.fields import Fields, missing, unsupported_value, wrong_type, wrong_value
from tunesmith.serve.forced_call import Forced, forced_call
from tunesmith.serve.habits import habits_of

REMEMBERED = 16 * 1024  # characters of a schema whose grammar is kept


@dataclass(frozen=True, kw_only=True)
class Calling:
    """What an answer may call.

    Attributes:
        tools: that the prompt declares; None: none.
        form: in which calls are looked for; None: in none.
        one: whether calls after the first are left out.
        forced: how the call begins that is demanded; None: none is.
    """

    tools: Tools = None
    form: CallForm | None = None
    one: bool = False
    forced: Forced | None = None


def read_tools(body: Fields, renderer: Renderer) -> Calling:
    """The fields ``tools``, ``tool_choice`` and ``parallel_tool_calls``.

    Raises:
        ApiError: they are wrong, or this model cannot do that.
    """
    entries = body.items("tools") or []
    declared = [_tool(entry, f"tools[{number}]") for number, entry in enumerate(entries)]
    parallel, demanded = body.flag("parallel_tool_calls"), _demanded(body, declared)
    if not declared or body.take("tool_choice") == "none":
        return Calling()
    form = habits_of(renderer).form
    if form is None:
        raise unsupported_value("tools", "the chat template of this model writes no tool calls that could be read back.")
    if demanded:
        return Calling(tools=declared, forced=forced_call(renderer, demanded))
    for number, entry in enumerate(entries):
        if isinstance(entry, dict) and isinstance(entry["function"], dict) and entry["function"].get("strict"):
            why = "where the model may choose, arguments are not bound to a schema; demand the call by 'tool_choice'."
            raise unsupported_value(f"tools[{number}].function.strict", why)
    return Calling(tools=declared, form=form, one=parallel is False)


def _tool(entry: JsonValue, path: str) -> Tool:
    tool = Fields(entry, path)
    kind = tool.needed_text("type")
    if kind != "function":
        raise unsupported_value(tool.at("type"), f"tools are of type 'function', found {kind!r:.40}.")
    tool.needed("function")
    function = tool.inner("function")
    assert function is not None
    function.needed_text("name")
    function.text("description")
    parameters = function.take("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise wrong_type(function.at("parameters"), "an object, a JSON schema", parameters)
    function.flag("strict")
    function.finish()
    tool.finish()
    try:
        checked = check_tools([entry], "$.tools")
    except RowError as bad:
        raise wrong_value(path, f"{bad.message:.200}.") from None
    assert checked is not None
    return checked[0]


def _demanded(body: Fields, declared: list[Tool]) -> list[Tool]:
    """The functions of which one has to be called; none of them: the model may do as it likes.

    Raises:
        ApiError: the choice is wrong, or of a kind that is not known here.
    """
    choice = body.take("tool_choice")
    if choice in (None, "none"):
        return []
    if not declared:
        raise wrong_value("tool_choice", "it is only allowed when 'tools' are declared.")
    if choice in ("auto", "required"):
        return declared if choice == "required" else []
    if isinstance(choice, str):
        raise wrong_value("tool_choice", f"expected 'none', 'auto', 'required' or a function, found {choice!r:.40}.")
    asked = Fields(choice, "tool_choice")
    if asked.needed_text("type") != "function":
        raise unsupported_value("tool_choice.type", "known here: 'function'.")
    asked.needed("function")
    function = asked.inner("function")
    assert function is not None
    name = function.needed_text("name")
    function.finish()
    asked.finish()
    named = [tool for tool in declared if tool["function"]["name"] == name]
    if not named:
        raise wrong_value("tool_choice.function.name", f"{name!r:.60} is none of the 'tools'.")
    return named[:1]


def read_format(body: Fields, calling: Calling) -> str | None:
    """The grammar of ``response_format``; None where the answer is free text.

    Raises:
        ApiError: it is wrong, cannot be enforced, or stands beside tools.
    """
    asked = body.inner("response_format")
    if asked is None:
        return None
    kind = asked.needed_text("type")
    if kind == "text":
        asked.finish()
        return None
    schema: JsonValue = {"type": "object"}
    where = "response_format"
    if kind == "json_schema":
        asked.needed("json_schema")
        described = asked.inner("json_schema")
        assert described is not None
        described.needed_text("name")
        described.text("description")
        described.flag("strict")  # an answer meets its schema either way
        schema, where = described.needed("schema"), described.at("schema")
        described.finish()
    elif kind != "json_object":
        raise wrong_value("response_format.type", f"expected 'text', 'json_object' or 'json_schema', found {kind!r:.40}.")
    asked.finish()
    if calling.tools is not None:
        said = "a format holds for the whole answer, which could then call no tool; set tool_choice to 'none'."
        raise unsupported_value("response_format", said)
    if not isinstance(schema, dict):
        raise wrong_type(where, "an object, a JSON schema", schema) if schema is not None else missing(where)
    text = json.dumps(schema)
    return _known_grammar(text, where) if len(text) <= REMEMBERED else _grammar(text, where)


def _grammar(schema: str, where: str) -> str:
    try:
        return as_text(json.loads(schema))
    except RecipeError as error:
        raise ApiError(400, f"Invalid schema for '{where}': {error.message:.400}", "invalid_json_schema", where) from None


_known_grammar = lru_cache(maxsize=256)(_grammar)
