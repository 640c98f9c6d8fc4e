"""Answers of a model elsewhere, kept before it is switched off: a line a row, and what a recording came to."""

from dataclasses import dataclass

from tunesmith.messages import Message
from tunesmith.rundir.records.base import Record
from tunesmith.rundir.records.calls import Calls


@dataclass(frozen=True, kw_only=True)
class RecordedAnswer(Record):
    """A line of a recording.

    Attributes:
        key: of what was asked: conversation and tools.
        asked: where and how: address, model, most new tokens and further keys of the request, as a fingerprint.
        endpoint, model: address and name there.
        prompt: the conversation that was asked.
        text: the answer.
        calls: the tool calls in it; None where no tools were declared.
        prompt_tokens, new_tokens: as the endpoint counted them.
        seconds: wall time, the network included.
        finished: whether the model ended its turn itself.
        at: moment of the answer, UTC, ISO 8601.
    """

    key: str
    asked: str
    endpoint: str
    model: str
    prompt: list[Message]
    text: str
    calls: Calls | None
    prompt_tokens: int
    new_tokens: int
    seconds: float
    finished: bool
    at: str


@dataclass(frozen=True, kw_only=True)
class Recording(Record):
    """What was recorded.

    Attributes:
        file: where the answers are.
        model: name at the endpoint.
        rows: that were to be asked.
        asked: answers that were asked for now; the others were there.
        failed: rows that the endpoint refused, and why, in the order of the rows.
        prompt_tokens, new_tokens: of all answers of these rows, as the endpoint counted them.
        cost: of all of them; None without a price.
    """

    file: str
    model: str
    rows: int
    asked: int
    failed: tuple[str, ...]
    prompt_tokens: int
    new_tokens: int
    cost: float | None
