"""Fit conversations into ``max_length`` tokens without cutting one in silence.

Peers cut what is too long and train on half an answer, or on none. Here a row fits, or it is refused, or dropped by
name, or loses its oldest exchanges as a whole (``drop_oldest_turns``): the system turn and the last exchange stay, tool
calls go with their results, and a row whose last exchange alone is too long is dropped by name all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tunesmith.chat.render import Conversation, Renderer
from tunesmith.chat.rendered import Rendered
from tunesmith.errors import DataError

OnTooLong = Literal["refuse", "drop", "drop_oldest_turns"]


@dataclass(frozen=True)
class Fitted:
    """What became of one conversation.

    Attributes:
        rendered: token ids and supervision, or None where it is left out.
        tokens: its length, of its longest document where it has several; 0 where it could not be rendered.
        dropped_turns: messages that were left out to make it fit.
        refused: why it could not be rendered at all, with what to do.
    """

    rendered: Rendered | None
    tokens: int = 0
    dropped_turns: int = 0
    refused: DataError | None = None


def fit(renderer: Renderer, conversations: Sequence[Conversation], max_length: int | None, policy: OnTooLong) -> list[Fitted]:
    """Render conversations; one that is longer than ``max_length`` is left out, or shortened where ``policy`` says so.

    With ``refuse`` it is left out too: the caller knows all lengths and refuses them together.
    """
    fitted = []
    for conversation, rendered in zip(conversations, renderer.render_batch(conversations), strict=True):
        if isinstance(rendered, DataError):
            fitted.append(Fitted(None, refused=rendered))
        elif max_length is None or rendered.longest <= max_length:
            fitted.append(Fitted(rendered, rendered.longest))
        elif policy == "drop_oldest_turns":
            fitted.append(_shortened(renderer, conversation, rendered.longest, max_length))
        else:
            fitted.append(Fitted(None, rendered.longest))
    return fitted


def _shortened(renderer: Renderer, conversation: Conversation, tokens: int, max_length: int) -> Fitted:
    messages = conversation.messages
    head = messages[:1] if messages[0]["role"] in ("system", "developer") else []
    asked = [number for number, message in enumerate(messages) if message["role"] == "user"]
    starts = [number for number in asked if messages[number - 1]["role"] != "tool"]  # not within an exchange
    for start in starts[1:]:
        remaining = [*head, *messages[start:]]
        if not any(message["role"] == "assistant" and message.get("weight", 1) == 1 for message in remaining):
            break
        rendered = renderer.render_batch([replace(conversation, messages=remaining)])[0]
        if isinstance(rendered, DataError):
            return Fitted(None, tokens, refused=rendered)
        if rendered.longest <= max_length:
            return Fitted(rendered, tokens, len(messages) - len(remaining))
    return Fitted(None, tokens)
