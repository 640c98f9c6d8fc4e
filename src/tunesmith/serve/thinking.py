"""How a model writes what it thinks before it answers, found by its own template.

The template writes a turn with a known reasoning and a known answer; what stands before the one is the opening, what stands
between the two the closing. A prompt may end with the opening itself (the open tag of DeepSeek R1 and its kin), and the answer
then begins inside. A template that writes no reasoning, or is switched not to think, has none, and nothing is cut out of its
answers.

Refused: ``<think>`` for all, which is wrong for half of the families.
"""

from dataclasses import dataclass
from functools import lru_cache

from tunesmith.chat.render import Renderer
from tunesmith.errors import DataError
from tunesmith.messages import Message

_THOUGHT, _SAID = "r1r", "x1x"


@dataclass(frozen=True, kw_only=True)
class Thinking:
    """Where the reasoning of an answer stands.

    Attributes:
        opening: what it begins with; empty where the prompt has opened it.
        closing: what it ends with.
    """

    opening: str
    closing: str


@lru_cache(maxsize=64)
def thinking_of(renderer: Renderer) -> Thinking | None:
    """How a renderer's model thinks; None: it does not, or where cannot be told."""
    question: Message = {"role": "user", "content": "a"}
    answer: Message = {"role": "assistant", "content": _SAID, "reasoning_content": _THOUGHT}
    try:
        pieces = renderer.pieces([question, answer])
    except DataError:
        return None
    text = "".join(piece.text for piece in pieces if piece.supervised)
    before, found, rest = text.partition(_THOUGHT)
    between, answered, _ = rest.partition(_SAID)
    closing = between.strip()
    if not found or not answered or not closing:
        return None
    return Thinking(opening=before.strip(), closing=closing)
