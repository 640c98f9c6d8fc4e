"""Tool calls: the same functions with the same arguments, compared by structure.

A row's reference is what its last turn calls, or its text where no call is right. The headline is equality: each call of the
reference once, in any order (calls of one turn run side by side), its name to the letter and its arguments as JSON values
(``json_values.py``: ``1.0`` is ``1``, a key twice or NaN is no JSON), and nothing else called. Where no call is right, every
answer that calls nothing scores, whatever it says: another metric judges texts. Words beside right calls cost nothing.

Beside it: ``name``, the right functions as often as asked; ``arguments``, F1 over the fields of the arguments, each function's
calls against its own; ``parsed``, an answer from which a call was read; ``malformed``, one in which something begins as a call
does and is none; ``lost``, one with a whole call that the model's runtime does not look for (``chat/calls``). A lost call is
wrong: nobody carries it out. Refused: repair (an unclosed brace, arguments as a string), which no runtime does either.
"""

import json
from collections import Counter, defaultdict

from tunesmith.evaluate.metrics.json_values import Values
from tunesmith.evaluate.metrics.metric import Metric, Score
from tunesmith.recipe import Task
from tunesmith.rundir.records.calls import Call, Calls


def tool_calls(task: Task) -> Metric:
    """The metric; it needs no key of the task."""
    return Metric(
        name="tool_calls",
        score=lambda answer, reference: calls_score(calls_of_text(answer), reference),
        score_calls=calls_score,
        tie_break="arguments",
        binary=True,
    )


def calls_score(answer: Calls, reference: str) -> Score:
    """The figures of an answer's calls."""
    values = Values()
    wanted = calls_of_text(reference).calls
    given = answer.calls
    ours, theirs = (sorted(values.read(call.text) for call in calls) for calls in (given, wanted))
    fields, right_fields = (values.read(_by_name(calls)) for calls in (given, wanted))
    whole = not answer.malformed and not answer.lost
    return {
        "score": float(whole and ours == theirs),
        "name": float(Counter(call.name for call in given) == Counter(call.name for call in wanted)),
        "arguments": 2.0 * values.shared(fields, right_fields) / (values.leaves(fields) + values.leaves(right_fields)),
        "parsed": float(bool(given)),
        "malformed": float(answer.malformed > 0),
        "lost": float(answer.lost > 0),
    }


def calls_of_text(text: str) -> Calls:
    """The calls of a reference, which are none where it is not the JSON that ``Calls.text`` writes."""
    try:
        entries = json.loads(text)["tool_calls"]
        calls = [Call(name=entry["name"], arguments=json.dumps(entry["arguments"], ensure_ascii=False)) for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError):
        return Calls()
    return Calls(calls=tuple(calls))


def _by_name(calls: tuple[Call, ...]) -> str:
    """JSON text of each function's arguments, in a list."""
    arguments: dict[str, list[str]] = defaultdict(list)
    for call in calls:
        arguments[call.name].append(call.arguments)
    entries = (f"{json.dumps(name, ensure_ascii=False)}: [{', '.join(texts)}]" for name, texts in arguments.items())
    return "{" + ", ".join(entries) + "}"
