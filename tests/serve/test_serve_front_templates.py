"""Answers of every published template, as it writes them itself: they are read back as what they were."""

import sys

import pytest

from shared import ROOT
from tunesmith.chat.calls.probe import CALLS, TOOLS
from tunesmith.errors import DataError, ModelError
from tunesmith.serve.answer_reader import AnswerReader
from tunesmith.serve.api_error import ApiError
from tunesmith.serve.forced_call import forced_call
from tunesmith.serve.habits import habits_of
from tunesmith.serve.request_tools import Calling

sys.path.append(str(ROOT / "tests" / "chat"))

from published import renderer, texts

QUESTION = {"role": "user", "content": "a"}
CALLED = {"role": "assistant", "content": "", "tool_calls": CALLS[:1]}


def _written(renderer, answer, tools):
    """An answer without its end, as an engine returns it; None where the template cannot write it."""
    try:
        pieces = [piece for piece in renderer.pieces([QUESTION, answer], tools) if piece.supervised]
    except DataError:
        return None
    ends = [number for number, piece in enumerate(pieces) if piece.control and piece.ids[0] in renderer.stop_ids]
    return "".join(piece.text for piece in pieces[: ends[-1 if "reasoning_content" in answer else 0] if ends else None])


def _read(renderer, calling, text, size):
    reader = AnswerReader(calling, habits_of(renderer).thinking)
    parts = [reader.feed(text[start : start + size]) for start in range(0, len(text), size)] + [reader.finish()]
    calls = [call.name for part in parts for call in part.calls]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts), calls


@pytest.mark.parametrize("name", texts())
def test_what_a_template_writes_is_read_back(name):
    try:
        own = renderer(name)
    except ModelError as error:
        pytest.skip(error.message)
    form, answered = habits_of(own).form, {"role": "assistant", "content": "It < is."}
    calling = Calling(tools=TOOLS, form=form)
    for answer, given, expected in (
        (answered, Calling(), ("", "It < is.", [])),
        (answered | {"reasoning_content": "So <it."}, Calling(), ("So <it.", "It < is.", [])),
        (CALLED, calling, ("", "", ["first_one"])),
        (CALLED | {"reasoning_content": "So <it."}, calling, ("So <it.", "", ["first_one"])),
    ):
        text = _written(own, answer, given.tools) if given.form is not None or "tool_calls" not in answer else None
        for size in (1, 1000) if text is not None else ():
            reasoning, content, calls = _read(own, given, text, size)
            assert (reasoning, content.lstrip() if name == "mistral" else content, calls) == expected, (text, size)
    for tools in (TOOLS[:1], TOOLS):
        try:
            ids = [*own.prompt_ids([QUESTION], tools), *forced_call(own, tools).ids]
        except (ApiError, DataError):
            continue
        assert own.render([QUESTION, CALLED], tools).ids[: len(ids)] == ids
