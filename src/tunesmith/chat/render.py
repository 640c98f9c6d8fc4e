"""Render conversations to token ids, and mark what is supervised: one renderer for training, evaluation and serving.

Supervised is what the assistant says (text, reasoning, tool calls) and the token that ends its turn, in the turns of
weight 1: nothing else, and never less. A peer that masks by ``pad == eos`` loses the end of turn (in many models they
are one token) and trains a model that never stops; one that searches for marker strings trains on tool results.

The template says where everything stands (``chat/layout.py``); its text is cut at its control tokens and at the start of
each supervised turn; the pieces between are encoded without any control token (``chat/vocabulary.py``). Three things
follow by construction: ids are those of ``apply_chat_template`` on ordinary text, no text forges a control token, and a
generation prompt's ids are how the training ids of that turn begin. The last costs the first in one place: where a
supervised turn begins in the middle of plain text, and the stock tokenizer has a token that spans that border. So it is
where an answer begins with white space after a header's line break, and where a template writes more than its own
generation prompt before the answer (reasoning templates do). No generation could begin inside such a token.

The price against a bare tokenizer is one run of the template for each row.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from tunesmith.chat.layout import Laid, Message, Template, Tools
from tunesmith.chat.vocabulary import AFTER, MIDDLE, START, Vocabulary
from tunesmith.errors import DataError, ModelError

_ZEROS, _ONES = [0] * 4096, [1] * 4096
BATCH = 256  # conversations that are encoded together, while the next ones go through the template


@dataclass(frozen=True)
class Conversation:
    """What is rendered: OpenAI messages, declared tools, or a plain text in a single assistant turn (kind ``text``)."""

    messages: list[Message]
    tools: Tools = None
    kind: Literal["chat", "text"] = "chat"

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Conversation":
        """The conversation of a row as the run directory holds it."""
        return cls(row["messages"], row.get("tools"), row.get("kind", "chat"))


@dataclass(frozen=True)
class Piece:
    """A stretch of rendered text with one role.

    Attributes:
        text: the text, control tokens of messages as they were written.
        control: whether it is a control token of the template.
        supervised: whether it is trained on.
        ids: its token ids.
    """

    text: str
    control: bool
    supervised: bool
    ids: list[int]


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation.

    Attributes:
        ids: token ids.
        supervised: 1 for a supervised token, 0 for context, as long as ``ids``.
        notes: what the template left out or took as plain text, for people: ``chat template leaves out name``, ...
    """

    ids: list[int]
    supervised: list[int]
    notes: tuple[str, ...] = ()

    @property
    def last_answer(self) -> int:
        """Tokens of the last supervised turn, its end of turn included."""
        end = len(self.supervised) - self.supervised[::-1].index(1)
        before = self.supervised[:end][::-1]
        return before.index(0) if 0 in before else end


@dataclass(frozen=True)
class _Cut:
    """Laid-out text cut into pieces: (text, control id or None, supervised, where it begins)."""

    pieces: list[tuple[str, int | None, bool, str]]
    notes: tuple[str, ...]


class Renderer:
    """A tokenizer and a chat template, checked once.

    Args:
        tokenizer: a fast tokenizer.
        template: Jinja text that takes the place of the tokenizer's own.

    Attributes:
        tokenizer: as given.
        template: the Jinja text in use.
        stop_ids: the tokens that end an answer: the template's end of turn (of a text, and of a tool call where the
            template knows them) and the tokenizer's eos.

    Raises:
        ModelError: no template, one that never ends a turn, one that writes the beginning-of-text token twice, or a
            vocabulary in which plain text can forge a control token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None):
        source = template or tokenizer.chat_template
        if not isinstance(source, str):
            raise ModelError("the tokenizer has no chat template", "choose an instruction-tuned model, or name chat.template")
        self.tokenizer = tokenizer
        self.template = source
        self._vocabulary = Vocabulary(tokenizer, source)
        self._template = Template(tokenizer, source, self._vocabulary)
        asked = {"role": "user", "content": "a"}
        try:
            probe = self.pieces([asked, {"role": "assistant", "content": "b"}])
        except DataError as error:
            raise ModelError(f"the chat template cannot be used: {error.message}", error.hint) from error
        bos = tokenizer.bos_token
        if isinstance(bos, str) and self.text([asked], generate=True).startswith(2 * bos):
            raise ModelError("the chat template writes the beginning-of-text token twice", "name another chat.template")
        # The last control token of the turn, and the first after the answer: a template may end a conversation with more
        # than a turn.
        answer = next(number for number, piece in enumerate(probe) if piece.supervised and "b" in piece.text)
        ends = [piece.ids[0] for piece in probe[answer:] if piece.supervised and piece.control]
        stops = [ends[0], ends[-1], *self._tool_stops(asked)]
        self.stop_ids = sorted({*stops, *_as_ids(tokenizer.eos_token_id)})

    def text(self, messages: list[Message], tools: Tools = None, *, generate: bool = False) -> str:
        """The conversation as the template writes it; with ``generate``, up to where the assistant begins to speak."""
        return self._vocabulary.restored(self._template.run(*self._template.neutral(messages, tools), generate=generate))

    def prompt_ids(self, messages: list[Message], tools: Tools = None) -> list[int]:
        """Token ids of a prompt that the assistant is to answer."""
        laid = self._template.prompt(*self._template.neutral(messages, tools))
        return [token for ids in self._encode([self._cut(laid)])[0] for token in ids]

    def render(self, messages: list[Message], tools: Tools = None, kind: Literal["chat", "text"] = "chat") -> Rendered:
        """Token ids and supervision of a conversation.

        Raises:
            DataError: see ``Template.lay``; or a character has no token; or no token is supervised.
            ModelError: the template ends an answer without a control token.
        """
        rendered = self._finish(self._prepare([Conversation(messages, tools, kind)]))[0]
        if isinstance(rendered, DataError):
            raise rendered
        return rendered

    def pieces(self, messages: list[Message], tools: Tools = None, kind: Literal["chat", "text"] = "chat") -> list[Piece]:
        """The same, piece by piece, for people to look at. Raises what ``render`` raises."""
        cut = self._prepare([Conversation(messages, tools, kind)])[0]
        if isinstance(cut, DataError):
            raise cut
        tokens = self._encode([cut])[0]
        return [Piece(text, c is not None, s, ids) for (text, c, s, _), ids in zip(cut.pieces, tokens, strict=True)]

    def render_batch(self, conversations: Sequence[Conversation]) -> list[Rendered | DataError]:
        """Many conversations at once: the template runs for some while others are encoded.

        Returns:
            For each conversation its ids, or the error that keeps it from being rendered.
        """
        results: list[Rendered | DataError] = []
        waiting = None
        with ThreadPoolExecutor(1) as pool:
            for start in range(0, len(conversations), BATCH):
                cuts = self._prepare(conversations[start : start + BATCH])
                if waiting is not None:
                    results += waiting.result()
                waiting = pool.submit(self._finish, cuts)
            results += waiting.result() if waiting is not None else []
        return results

    def _finish(self, cuts: list[_Cut | DataError]) -> list[Rendered | DataError]:
        good = [cut for cut in cuts if isinstance(cut, _Cut)]
        encoded = iter(self._encode(good))
        results: list[Rendered | DataError] = []
        for cut in cuts:
            if isinstance(cut, DataError):
                results.append(cut)
                continue
            ids: list[int] = []
            supervised: list[int] = []
            for (_, _, taught, _), tokens in zip(cut.pieces, next(encoded), strict=True):
                ids += tokens
                supervised += (
                    (_ONES if taught else _ZEROS)[: len(tokens)] if len(tokens) <= 4096 else [int(taught)] * len(tokens)
                )
            results.append(Rendered(ids, supervised, cut.notes))
        return results

    def _prepare(self, conversations: Sequence[Conversation]) -> list[_Cut | DataError]:
        """Run the template and cut its text; plain chats go through it together."""
        cuts: list[_Cut | DataError | None] = [None] * len(conversations)
        plain: list[tuple[int, list[Message]]] = []
        for number, conversation in enumerate(conversations):
            try:
                if conversation.kind == "text":
                    cuts[number] = self._cut_text(conversation.messages[0]["content"])
                    continue
                messages, tools = self._template.neutral(conversation.messages, conversation.tools)
                if tools is None:
                    plain.append((number, messages))
                else:
                    cuts[number] = self._lay(conversation, messages, tools, self._template.run(messages, tools))
            except DataError as error:
                cuts[number] = error
        for (number, messages), text in zip(plain, self._run([messages for _, messages in plain]), strict=True):
            try:
                cuts[number] = text if isinstance(text, DataError) else self._lay(conversations[number], messages, None, text)
            except DataError as error:
                cuts[number] = error
        return [cut for cut in cuts if cut is not None]

    def _run(self, conversations: list[list[Message]]) -> list[str | DataError]:
        try:
            return list(self._template.run_many(conversations))
        except DataError as error:
            if len(conversations) == 1:
                return [error]
        return [text for messages in conversations for text in self._run([messages])]

    def _lay(self, conversation: Conversation, messages: list[Message], tools: Tools, text: str) -> _Cut:
        taught = [
            number
            for number, message in enumerate(conversation.messages)
            if message["role"] == "assistant" and message.get("weight", 1) == 1
        ]
        if not taught:
            raise DataError("no token is supervised", "give an assistant turn weight 1, or remove the row")
        return self._cut(self._template.lay(messages, tools, text, taught))

    def _cut(self, laid: Laid) -> _Cut:
        pieces: list[tuple[str, int | None, bool, str]] = []
        position, spans, begins = 0, iter(laid.spans), START
        start, end = next(spans, (len(laid.text), len(laid.text)))
        parts = self._vocabulary.split(laid.text)
        if laid.control is not None and laid.control != [text for text, control in parts if control is not None]:
            raise DataError(
                "a text of the conversation joins with the template's text into a control token", "remove or change the text"
            )
        for number, (text, control) in enumerate(parts):
            if control is not None:
                pieces.append((text, control, start <= position < end, begins))
                position += len(text)
                begins = AFTER
                if position >= end:
                    start, end = next(spans, (len(laid.text), len(laid.text)))
                continue
            whole = position + len(text)
            before = parts[number - 1][0] if number else None
            after = parts[number + 1][0] if number + 1 < len(parts) else None
            if position < start < whole:
                if self._add(pieces, text[: start - position], False, begins, before, None):
                    begins = MIDDLE
                text, position = text[start - position :], start
            self._add(pieces, text, start <= position < end, begins, before, after)
            position = whole
        for text, control, _, _ in pieces:
            if control is None:
                self._vocabulary.refuse_lost(text)
        forged = not laid.text.isascii() and laid.text != self._vocabulary.restored(laid.text)
        notes = [f"the chat template leaves out {path.rsplit('.', 1)[-1]}" for path in laid.dropped]
        return _Cut(pieces, (*notes, *(["text that looks like a control token is encoded as plain text"] if forged else [])))

    def _add(
        self,
        pieces: list[tuple[str, int | None, bool, str]],
        text: str,
        supervised: bool,
        begins: str,
        before: str | None,
        after: str | None,
    ) -> bool:
        """Append plain text, restored, without what the control tokens beside it swallow; False if nothing is left."""
        text = self._vocabulary.swallowed(text, before if begins == AFTER else None, after)
        if text:
            pieces.append((self._vocabulary.restored(text), None, supervised, begins))
        return bool(text)

    def _cut_text(self, text: str) -> _Cut:
        """A plain text: bos where the tokenizer puts one, the text, eos; all but bos supervised."""
        self._vocabulary.neutral(text)
        self._vocabulary.refuse_lost(text)
        eos = self.tokenizer.eos_token
        if eos is None:
            raise DataError("the tokenizer has no end-of-text token, so a plain text would have no end", "use messages")
        bos = self.tokenizer.bos_token
        starts = bos is not None and self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id
        head = [(str(bos), self._vocabulary.control[str(bos)], False, START)] if starts else []
        body = (text, None, True, AFTER if starts else START)
        return _Cut([*head, body, (str(eos), self._vocabulary.control[str(eos)], True, MIDDLE)], ())

    def _encode(self, cuts: list[_Cut]) -> list[list[list[int]]]:
        """Token ids of every piece."""
        plain = [(text, begins) for cut in cuts for text, control, _, begins in cut.pieces if control is None]
        encoded = iter(self._vocabulary.encode(plain))
        return [[next(encoded) if control is None else [control] for _, control, _, _ in cut.pieces] for cut in cuts]

    def _tool_stops(self, asked: Message) -> list[int]:
        """The token that ends a tool call, where the template has tool calls."""
        function = {"name": "f", "arguments": {"a": "b"}}
        call = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call00000", "type": "function", "function": function}],
        }
        parameters = {"type": "object", "properties": {"a": {"type": "string", "description": "c"}}, "required": ["a"]}
        declared = {"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters}}
        probe = self._prepare([Conversation([asked, call], [declared])])[0]
        return [] if isinstance(probe, DataError) else [c for _, c, taught, _ in probe.pieces if taught and c is not None][-1:]


def with_system(messages: list[Message], instruction: str | None) -> list[Message]:
    """The conversation with ``instruction`` as its system turn, in front of a system turn of its own."""
    if instruction is None:
        return messages
    if messages[0]["role"] in ("system", "developer"):
        own = messages[0]["content"]
        return [{"role": "system", "content": f"{instruction}\n\n{own}"}, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


def _as_ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else value
