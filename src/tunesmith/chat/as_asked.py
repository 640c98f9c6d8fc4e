"""Which documents a conversation is trained as: every supervised turn stands in one as it is asked.

A turn that was said is one text while it is the last, and another in a later history, wherever a template rewrites earlier
turns: it drops their reasoning, moves tools to the last question, ends them with another token. In deployment a turn is always
written as the last. So a conversation is one document only where each of its supervised turns, with all that stands before it,
is what the template writes of the conversation that stops there. Otherwise every supervised turn has a document of its own:
the conversation up to that turn, which alone is supervised in it.

With documents of their own the tokens of k turns are those of the whole conversation once, and every answer once more: what
the documents have in common is computed once (``train/prefix.py``). One document of all turns costs less, so it is kept where
it is exact; which it is, is measured here and not known of a template.

Refused: one document in which earlier turns are supervised as they are remembered, which teaches a model that thinks not to.
Refused as well: earlier turns as context alone, which throws their answers away.

Cost: of a plain conversation nothing, since its roles decide; of another one more run of the template for each supervised turn.
"""

from functools import lru_cache

from tunesmith.chat.layout import PlainLayout, RenderedText, Template
from tunesmith.chat.thinking_block import Turn
from tunesmith.errors import DataError
from tunesmith.messages import Message, Tools

Part = tuple[int, tuple[int, ...]]  # messages of a document, and its supervised turns


class AsAsked:
    """The documents that a template makes of conversations.

    Attributes:
        parts: (roles, supervised turns) of a plain conversation -> its documents; None where its roles do not tell.
    """

    def __init__(self, template: Template):
        self._template = template
        self.parts = lru_cache(maxsize=512)(self._find_parts)

    def lay_out(self, messages: list[Message], tools: Tools, supervised_turns: list[int]) -> list[RenderedText]:
        """The documents of a conversation, in the order of their turns.

        Args:
            messages, tools: from ``Template.prepare``.
            supervised_turns: the assistant turns of weight 1, at least one.

        Raises:
            DataError: see ``Template.locate``.
            ModelError: the template ends an answer without a control token.
        """
        template = self._template
        if supervised_turns != [len(messages) - 1]:
            whole = self._whole(messages, tools, supervised_turns)
            if whole is not None:
                return [whole]
        alone = [messages[: index + 1] for index in supervised_turns]
        return [template.locate(part, tools, template.run(part, tools), [len(part) - 1]) for part in alone]

    def _whole(self, messages: list[Message], tools: Tools, supervised_turns: list[int]) -> RenderedText | None:
        """The conversation as one document, or None where a turn in it is not as it is asked."""
        try:
            text = self._template.run(messages, tools)
            layout, turns = self._template.locate_marked(messages, tools, text, supervised_turns)
            return layout if self._is_as_asked(messages, tools, text, supervised_turns, turns) else None
        except DataError:  # what is wrong is wrong with one of the parts too, which says so, or with what follows them
            return None

    def _find_parts(self, roles: tuple[str, ...], supervised_turns: tuple[int, ...]) -> list[Part] | None:
        whole = (len(roles), supervised_turns)
        if supervised_turns == (len(roles) - 1,):
            return [whole]
        layout = self._template.plain(roles, supervised_turns)
        if layout is None:
            return None
        if isinstance(layout, PlainLayout):
            messages: list[Message] = [{"role": role, "content": "x"} for role in roles]
            text, turns = layout.fill(["x"] * len(roles))
            try:
                if self._is_as_asked(messages, None, text, list(supervised_turns), turns):
                    return [whole]
            except DataError:
                return None
        return [(index + 1, (index,)) for index in supervised_turns]

    def _is_as_asked(
        self, messages: list[Message], tools: Tools, text: str, supervised_turns: list[int], turns: list[Turn]
    ) -> bool:
        """Whether every supervised turn in ``text`` is, with all before it, what the template writes of a conversation that
        stops there.

        Raises:
            DataError: the template refuses a conversation that stops there.
        """
        if any(turn.added for turn in turns[:-1]):
            return False
        ends = [(index, turn.end) for index, turn in zip(supervised_turns, turns, strict=True) if index < len(messages) - 1]
        return all(text[:end] == self._template.run(messages[: index + 1], tools)[:end] for index, end in ends)
