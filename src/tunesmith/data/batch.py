"""What a batch gives back, joined with what was sent: the answers of one file and the questions of another, by ``custom_id``.

A batch of OpenAI's (chat completions or responses) or of Anthropic's returns its answers alone, in any order, and leaves some
out. Each answer becomes the row that a log of its request would be, and is read by the dialect of that row. An answer without
a question and a request that failed are no examples: they are left out, counted and named.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from tunesmith.data.choices import NotTaken
from tunesmith.data.cut_off import refuse_cut_off
from tunesmith.data.dialects.responses import ELSEWHERE, INCOMPLETE
from tunesmith.data.problems import RowError
from tunesmith.data.source import chunks, find
from tunesmith.data.strict_json import loads
from tunesmith.errors import DataError

_SHOWN = 3  # ids in a note
_SENT = ("body", "params")  # of OpenAI's requests, of Anthropic's


class Requests:
    """The requests of a batch.

    Args:
        path: the file that was sent.

    Raises:
        DataError: nothing to read there, a line that is no request, or two of one ``custom_id``.
    """

    def __init__(self, path: Path):
        self._name = path.name
        self._sent: dict[str, Any] = {}  # custom_id -> bytes of the line, or its value
        self._answered: set[str] = set()
        self._left_out: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}
        for chunk in chunks(find(path), frozenset(("custom_id", *_SENT))):
            for number, item in zip(chunk.numbers, chunk.items, strict=True):
                if isinstance(item, bytes) and not item.strip():
                    continue
                name = _id_of(item)
                if name is None:
                    message = f"{path}: {chunk.prefix} {number}: no request of a batch (custom_id with body or params)"
                    raise DataError(message, "name what was sent: tunesmith convert OUTPUT rows.jsonl --requests REQUESTS")
                if name in self._sent:
                    raise DataError(f"{path}: two requests of custom_id {name!r:.60}", "rename one, or remove it")
                self._sent[name] = item

    def joined(self, output: dict[str, Any]) -> dict[str, Any]:
        """The answer of a request as the row that a log of both would be.

        Args:
            output: a row of the batch's output.

        Raises:
            RowError: it is none, answers twice, or was cut off.
            NotTaken: its request failed, or is not in the file.
        """
        name = output.get("custom_id")
        if not isinstance(name, str):
            raise RowError("$.custom_id", "no-question", "no custom_id: not the output of a batch", "leave --requests out")
        if name in self._answered:
            raise RowError("$.custom_id", "several-answers", f"custom_id {name!r:.60} is answered twice", "keep one of the two")
        self._answered.add(name)
        answer = _answer(output)
        if answer is None:
            raise self._leave_out("failed requests of the batch", name)
        if name not in self._sent:
            raise self._leave_out(f"answers whose custom_id is not in {self._name}", name)
        item = self._sent[name]
        request = loads(item) if isinstance(item, bytes) else item
        sent = next(request[key] for key in _SENT if isinstance(request.get(key), dict))
        if "params" in request:
            return _anthropic(sent, answer)
        if "messages" in sent:
            return {"request": {"body": sent}, "response": {"body": answer}}
        asked = {key: value for key, value in sent.items() if key in ("input", "instructions", "tools", *ELSEWHERE)}
        return {**asked, **{key: answer[key] for key in ("output", *INCOMPLETE) if key in answer}}

    def notes(self) -> list[str]:
        """What was joined and what was left out, for people."""
        without = [name for name in self._sent if name not in self._answered]
        self._left_out["requests that the output does not answer"] = len(without)
        self._first["requests that the output does not answer"] = without[:_SHOWN]
        lines = [f"answers are joined with the requests of {self._name} by custom_id"]
        for what, rows in self._left_out.items():
            if rows:
                names = ", ".join(self._first[what]) + (", ..." if rows > len(self._first[what]) else "")
                lines.append(f"left out: {rows:,} {what} ({names})")
        return lines

    def _leave_out(self, what: str, name: str) -> NotTaken:
        self._left_out[what] += 1
        shown = self._first.setdefault(what, [])
        if len(shown) < _SHOWN:
            shown.append(name)
        return NotTaken()


def _id_of(item: Any) -> str | None:
    """The ``custom_id`` of a request; None for anything else."""
    try:
        value = loads(item) if isinstance(item, bytes) else item
    except RowError:
        return None
    name = value.get("custom_id") if isinstance(value, dict) else None
    return name if isinstance(name, str) and any(isinstance(value.get(key), dict) for key in _SENT) else None


def _answer(output: dict[str, Any]) -> dict[str, Any] | None:
    """The body of an answer; None where the request failed."""
    result, response = output.get("result"), output.get("response")
    if isinstance(result, dict):
        message = result.get("message")
        return message if result.get("type", "succeeded") == "succeeded" and isinstance(message, dict) else None
    if output.get("error") or not isinstance(response, dict) or response.get("status_code", 200) != 200:
        return None
    body = response.get("body")
    return body if isinstance(body, dict) and not body.get("error") else None


def _anthropic(sent: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The turns that were sent, and the answer's blocks."""
    refuse_cut_off(answer, "$.result.message")
    system = [{"role": "system", "content": sent["system"]}] if sent.get("system") else []
    turns = sent["messages"] if isinstance(sent.get("messages"), list) else []
    tools = {"tools": sent["tools"]} if sent.get("tools") else {}
    return {"messages": [*system, *turns, {"role": "assistant", "content": answer.get("content")}], **tools}
