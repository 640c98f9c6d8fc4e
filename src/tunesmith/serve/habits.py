"""How a model writes what it thinks before it answers, and the header of its answer, found by its own template.

The template writes a turn with a known reasoning and a known answer; what stands before the one is the opening, what stands
between the two the closing. A prompt may end with the opening itself (the open tag of DeepSeek R1 and its kin), and the answer
then begins inside. A few templates write a header with control tokens before every answer (the channels of harmony); it is no
part of the answer, and stands behind the closing as well. A template that writes no reasoning, or is switched not to think, has
no opening and no closing, and nothing is cut out of its answers.

Refused: ``<think>`` for all, which is wrong for half of the families.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from tunesmith.chat.calls.forms import CallForm
from tunesmith.chat.calls.probe import CALLS, TOOLS, call_form
from tunesmith.chat.render import Renderer
from tunesmith.errors import DataError
from tunesmith.messages import Message, Tools

_QUESTION: Message = {"role": "user", "content": "a"}
_THOUGHT, _SAID = "r1r", "x1x"


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """Where the reasoning of an answer stands, and where what is said begins.

    Attributes:
        opening: what the reasoning begins with; empty where the prompt has opened it, or where there is none.
        closing: what it ends with; empty where there is none.
        header: of what is said; empty for nearly all.
    """

    opening: str
    closing: str
    header: str


@dataclass(frozen=True)
class Habits:
    """What a model writes beside the text of an answer.

    Attributes:
        thinking: how it thinks; None where an answer is all that it writes.
        form: of its calls; None where it writes none that can be read.
    """

    thinking: Thinking | None
    form: CallForm | None


_known: WeakKeyDictionary[Renderer, Habits] = WeakKeyDictionary()  # a model that is replaced takes its renderer with it


def habits_of(renderer: Renderer) -> Habits:
    """What a renderer's model writes beside the text of an answer; found once."""
    if renderer not in _known:
        _known[renderer] = Habits(_thinking(renderer), call_form(renderer))
    return _known[renderer]


def _thinking(renderer: Renderer) -> Thinking | None:
    header = _written(renderer, {"role": "assistant", "content": _SAID}).partition(_SAID)[0].strip()
    if not renderer.vocabulary.tokens(header):
        header = ""  # white space, or a word that belongs to the answer
    opening, closing = _around_thought(renderer)
    if closing:
        header = header.rpartition(closing)[2].strip()  # an answer without reasoning may close an empty one
        alone = closing.removesuffix(header).strip() if header else closing
        return Thinking(opening=opening, closing=alone, header=header)
    return Thinking(opening="", closing="", header=header) if header else None


def _around_thought(renderer: Renderer) -> tuple[str, str]:
    """What stands before and behind a reasoning; two empty texts where the template writes none.

    Some templates write one only where a call follows.
    """
    text = _written(renderer, {"role": "assistant", "content": _SAID, "reasoning_content": _THOUGHT})
    before, found, rest = text.partition(_THOUGHT)
    between, answered, _ = rest.partition(_SAID)
    if found and answered and between.strip():
        return before.strip(), between.strip()
    if (form := call_form(renderer)) is None:
        return "", ""
    called: Message = {"role": "assistant", "content": "", "tool_calls": CALLS[:1], "reasoning_content": _THOUGHT}
    before, _, rest = _written(renderer, called, TOOLS).partition(_THOUGHT)
    call = form.opening.search(rest)
    return (before.strip(), rest[: call.start()].strip()) if call else ("", "")


def _written(renderer: Renderer, answer: Message, tools: Tools = None) -> str:
    """What the template writes as an answer; nothing where it cannot."""
    try:
        return "".join(piece.text for piece in renderer.pieces([_QUESTION, answer], tools) if piece.supervised)
    except DataError:
        return ""
