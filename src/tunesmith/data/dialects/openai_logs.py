"""OpenAI's stored completions and other logs of a request beside its answer, and what a batch gives back.

A log holds ``messages`` (or ``request.messages``) and the answer's ``choices``. The output of a batch holds the answer alone:
its question is in the file that was sent, so a row of it is no example and is refused with what would make it one.
"""

from typing import Any

from tunesmith.data.cut_off import refuse_cut_off
from tunesmith.data.draft import Draft
from tunesmith.data.problems import RowError

NOTE = "openai_log: the messages of a logged request, and the message of its first choice as the answer"
READS = ("messages", "choices", "request", "response", "tools", "input", "output", "body")
_REQUESTS = ("request", "input", "body")
_ANSWERS = ("response", "output")
_SENT = ("body", "params")  # of a request of a batch, OpenAI's or Anthropic's


def matches(row: Any) -> bool:
    """Whether a row is one, or the output of a batch."""
    return "custom_id" in row or _choices(row) is not None


def draft(row: Any, said: set[str]) -> Draft:
    """The turns of a row.

    Raises:
        RowError: an answer without its question, a question without an answer, or an answer that was cut off.
    """
    found = _choices(row)
    asked = _request(row)
    sent = asked[1] if asked is not None else next((f"$.{key}" for key in _SENT if isinstance(row.get(key), dict)), None)
    if found is None and sent is not None:
        hint = "bring its output too, by custom_id: tunesmith convert OUTPUT rows.jsonl --requests REQUESTS"
        raise RowError(sent, "no-answer", "a request of a batch, without its answer", hint)
    if found is None and "result" not in row and not (isinstance(response := row.get("response"), dict) and _output(response)):
        raise RowError("$", "no-answer", "OpenAI batch output without choices: the request failed", "remove the row")
    if asked is None or found is None:
        hint = "join it with the file that was sent, by custom_id: tunesmith convert OUTPUT rows.jsonl --requests REQUESTS"
        of = "Anthropic" if "result" in row else "OpenAI"
        raise RowError("$", "no-question", f"{of} batch output: an answer without the messages that it answers", hint)
    choices, path = found
    request, where = asked
    answer = choices[0].get("message") if choices and isinstance(choices[0], dict) else None
    if len(choices) != 1 or not isinstance(answer, dict):
        hint = "keep one choice, the one to learn"
        raise RowError(path, "no-answer", f"{len(choices)} choices, expected one with a message", hint)
    refuse_cut_off(choices[0], f"{path}[0]")
    turns = request["messages"]
    if not isinstance(turns, list):
        raise RowError(where, "no-messages", f"expected a list of turns, found {type(turns).__name__}", "write a list")
    origins = [(f"{where}[{index}]", True) for index in range(len(turns))]
    return Draft([*turns, answer], request.get("tools"), origins=[*origins, (f"{path}[0].message", True)], whole=where)


def _output(response: Any) -> bool:
    """Whether there is an answer of the Responses API."""
    body = response.get("body")
    return isinstance(body, dict) and isinstance(body.get("output"), list)


def _request(row: Any) -> tuple[Any, str] | None:
    """The object that holds the messages, and their path."""
    if "messages" in row:
        return row, "$.messages"
    for name in _REQUESTS:
        inner = row.get(name)
        if isinstance(inner, dict):
            body = inner.get("body")
            if isinstance(body, dict) and "messages" in body:
                return body, f"$.{name}.body.messages"
            if "messages" in inner:
                return inner, f"$.{name}.messages"
    return None


def _are_choices(value: Any) -> bool:
    """Objects, unlike the choices of a question."""
    return isinstance(value, list) and all(isinstance(choice, dict) for choice in value)


def _choices(row: Any) -> tuple[list[Any], str] | None:
    """The choices of the answer, and their path."""
    if _are_choices(row.get("choices")):
        return row["choices"], "$.choices"
    for name in _ANSWERS:
        inner = row.get(name)
        body = inner.get("body") if isinstance(inner, dict) else None
        for holder, path in ((inner, f"$.{name}"), (body, f"$.{name}.body")):
            if isinstance(holder, dict) and _are_choices(holder.get("choices")):
                return holder["choices"], f"{path}.choices"
    return None
