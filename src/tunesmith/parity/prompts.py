"""What the forms are asked: some dev rows, as the tuned arm asks them, and fixed prompts that templates stumble over.

A prompt that the model's template or its room cannot take is left out, with the reason.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.chat.render import Renderer
from tunesmith.errors import DataError
from tunesmith.messages import Message

logger = logging.getLogger(__name__)


NEW_TOKENS = 32  # of the reference's continuation: enough for the first divergence, cheap on a CPU
LONG = 500  # tokens of the long prompt, at most


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt as the reference renders it.

    Attributes:
        name: row id, or what a fixed prompt is for.
        text: rendered, up to where the assistant begins.
        ids: its token ids.
        forged: whether a message holds a control token as text.
        continuation: the reference's greedy answer, its end of turn included.
    """

    name: str
    messages: list[Message]
    text: str
    ids: list[int]
    forged: bool
    continuation: list[int]


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """What a form makes of a prompt's messages; ``refused`` says why it makes nothing of them."""

    text: str
    ids: list[int]
    refused: str = ""


def choose_prompts(
    dev_prompts: Mapping[str, list[Message]], renderer: Renderer, room: int
) -> tuple[dict[str, list[Message]], dict[str, str]]:
    """Prompts by name, the fixed ones among them; and why others were left out.

    Args:
        dev_prompts: those of dev rows, by row id.
        room: tokens that a prompt may have.
    """
    text = renderer.text([{"role": "user", "content": "a"}], generate=True)
    control = list(dict.fromkeys(renderer.vocabulary.tokens(text)))[:4]
    sentences = LONG // 10
    while sentences > 1 and len(renderer.vocabulary.encode([(long_text(sentences), "middle")])[0]) > min(LONG, room // 2):
        sentences //= 2
    chosen: dict[str, list[Message]] = {}
    left_out: dict[str, str] = {}
    for name, messages in {**dev_prompts, **fixed_prompts(control, long_text(sentences))}.items():
        try:
            length = len(renderer.prompt_ids(messages))
        except DataError as error:
            left_out[name] = error.message
            continue
        if length > room:
            left_out[name] = f"{length:,} tokens, and an answer does not fit after them"
        else:
            chosen[name] = messages
    for name, reason in left_out.items():
        logger.warning(f"parity: prompt {name} is left out: {reason}")
    return chosen, left_out


def fixed_prompts(control: Sequence[str], long: str) -> dict[str, list[Message]]:
    """Prompts of our own that templates and tokenizers stumble over, by what they are for.

    Args:
        control: the model's own control tokens, to be written in a user's text.
        long: a text of a few hundred tokens.
    """

    def user(text: str) -> Message:
        return {"role": "user", "content": text}

    between = [user("Which is larger, a lake or a pond?"), {"role": "assistant", "content": "A lake."}]
    return {
        "multi-turn": [*between, user("And a sea?")],
        "system": [{"role": "system", "content": "Answer in one word."}, user("What colour is the sky?")],
        "empty": [user("")],
        "long": [user(long)],
        # In NFC, which some tokenizers demand: q with a tilde has no letter of its own. Hebrew and Arabic run right to left.
        "unicode": [user("q\u0303 क्षि שלום مرحبا 漢字かな 한글 👩\u200d🚀🇪🇺 ½ x² ٣ Ⅳ naïve ß")],
        "control tokens": [user(f"Repeat this: {' '.join(control)} And then?")],
    }


def long_text(sentences: int) -> str:
    """Distinct short sentences and a question: about ten tokens each."""
    return "".join(f"Box {n} holds {n * n % 97} red stones. " for n in range(1, sentences + 1)) + "How many boxes are there?"
