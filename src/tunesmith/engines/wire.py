"""Conversations as servers take them: OpenAI's chat schema, in which arguments of a call are JSON text.

Our messages carry the parsed object, because templates want it. The schema wants an id for every call, and a ``tool`` turn for
each before anybody speaks again; an example in a prompt ends with its call, and nobody carried that out. Such a call gets an
empty result, which servers of the schema demand and templates write as an empty turn. Everything else goes as it is.

Answers come back the same way: ``tool_calls`` beside ``content``. Arguments that are no JSON object are a malformed call; what
the server's parser did not take out stays in the content, and reaches nobody (``chat/calls``).
"""

import json
from typing import Any

from tunesmith.chat.calls.forms import read_calls
from tunesmith.chat.calls.values import call_of_text
from tunesmith.messages import Message, ToolCall, Tools
from tunesmith.rundir.records.calls import Call, Calls


def wire_messages(messages: list[Message]) -> list[Message]:
    """The conversation in OpenAI's schema."""
    sent: list[Message] = []
    open_ids: list[str] = []  # of calls that have no result yet
    for message in messages:
        turn = message.copy()
        turn.pop("weight", None)  # of training; a server need not know it
        if message["role"] == "tool":
            turn["tool_call_id"] = message.get("tool_call_id") or (open_ids[0] if open_ids else "")
            open_ids = [number for number in open_ids if number != turn["tool_call_id"]]
        else:
            sent += _empty_results(open_ids)
            open_ids = []
        if "tool_calls" in message:
            calls = [_wire_call(call, f"call_{len(sent)}_{place}") for place, call in enumerate(message["tool_calls"])]
            turn["tool_calls"] = calls
            open_ids = [call["id"] for call in calls]
        sent.append(turn)
    return sent


def _empty_results(ids: list[str]) -> list[Message]:
    return [{"role": "tool", "tool_call_id": number, "content": ""} for number in ids]


def _wire_call(call: ToolCall, number: str) -> Any:
    arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    function = {"name": call["function"]["name"], "arguments": arguments}
    return {"id": call.get("id") or number, "type": "function", "function": function}


def calls_of_reply(message: Any, tools: Tools) -> tuple[str, Calls]:
    """What a server's answer says, calls included, and what it calls.

    Raises:
        AttributeError, KeyError, TypeError: not the schema's shape.
    """
    content = message.get("content") or ""
    calls: list[Call] = []
    malformed = 0
    for entry in message.get("tool_calls") or ():
        function = entry["function"]
        try:
            calls.append(call_of_text(str(function["name"]), function["arguments"]))
        except ValueError:
            malformed += 1
    if not calls and not malformed:
        return content, read_calls(content, None, tools)
    read = Calls(calls=tuple(calls), malformed=malformed)
    return "\n".join(text for text in (content, read.text) if text), read
