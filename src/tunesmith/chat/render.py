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

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from tunesmith.chat.as_asked import AsAsked, Part
from tunesmith.chat.frozen_date import freeze_date
from tunesmith.chat.layout import PlainLayout, RenderedText, Template, is_plain
from tunesmith.chat.rendered import Rendered
from tunesmith.chat.template_choice import SWITCH, shipped_names, thinking_of, with_thinking
from tunesmith.chat.thinking_block import block_notes, with_blocks
from tunesmith.chat.token_layout import BRACKETS, Encodable, FilledLayout, Slot, TokenLayout
from tunesmith.chat.vocabulary import AFTER, MIDDLE, START, Vocabulary
from tunesmith.errors import DataError, ModelError
from tunesmith.messages import Message, Tool, Tools
from tunesmith.rundir.rows import Row

_LOOKALIKE = ("text that looks like a control token is encoded as plain text",)
BATCH = 256  # conversations that are encoded together, while the next ones go through the template


@dataclass(frozen=True)
class Conversation:
    """What is rendered: OpenAI messages, declared tools, or a plain text in a single assistant turn (kind ``text``)."""

    messages: list[Message]
    tools: Tools = None
    kind: Literal["chat", "text"] = "chat"

    @classmethod
    def of(cls, row: Row) -> "Conversation":
        """The conversation of a row."""
        return cls(row.messages, row.tools, row.kind)


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
class _Cut:
    """Laid-out text cut into pieces: (text, control id or None, supervised, where it begins)."""

    pieces: list[tuple[str, int | None, bool, str]]
    notes: tuple[str, ...]

    def texts(self) -> list[Encodable]:
        return [(text, begins) for text, control, _, begins in self.pieces if control is None]

    def assemble(self, encoded: Iterator[list[int]]) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        supervised: list[int] = []
        for _, control, is_supervised, _ in self.pieces:
            tokens = next(encoded) if control is None else [control]
            ids += tokens
            supervised += [int(is_supervised)] * len(tokens)
        return ids, supervised


_Document = _Cut | FilledLayout


class Renderer:
    """A tokenizer and a chat template, checked once.

    Args:
        tokenizer: a fast tokenizer.
        template: Jinja text that takes the place of the tokenizer's own.
        enable_thinking: switches thinking in the template, on or off; None is what the template does when it is not told.
        moment: at which a template that reads the clock is frozen; None: now.

    Attributes:
        tokenizer: as given.
        template: the Jinja text in use, the switch and the frozen date included: what an export has to carry.
        frozen_template: the template with its date frozen, before the switch; None where it depends on no date.
        enable_thinking: how thinking is switched; None where the template has no switch, or none that changes a prompt.
        vocabulary: what its tokens are.
        stop_ids: the tokens that end an answer: the template's end of turn (of a text, and of a tool call where the
            template knows them) and the tokenizer's eos.

    Raises:
        ModelError: no template, one that never ends a turn, one that writes the beginning-of-text token twice, one without
            a switch for thinking where it is to be switched, or a vocabulary in which plain text can forge a control token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        enable_thinking: bool | None = None,
        moment: datetime | None = None,
    ):
        source = template or tokenizer.chat_template
        if not isinstance(source, str):
            known = ", ".join(shipped_names())
            raise ModelError(
                "the tokenizer has no chat template",
                f"choose an instruction-tuned model, or set chat.template: a .jinja file, or one of {known}",
            )
        self.frozen_template = freeze_date(source, moment or datetime.now())
        source = source if self.frozen_template is None else self.frozen_template.text
        self.tokenizer = tokenizer
        self.vocabulary = Vocabulary(tokenizer, source)
        self.enable_thinking = self._default_thinking(source) if enable_thinking is None else enable_thinking
        if self.enable_thinking is not None:
            source = with_thinking(source, self.enable_thinking)
        self.template = source
        self._template = Template(tokenizer, source, self.vocabulary)
        self._as_asked = AsAsked(self._template)
        self._frame = lru_cache(maxsize=512)(self._find_frame)
        question: Message = {"role": "user", "content": "a"}
        try:
            probe = self.pieces([question, {"role": "assistant", "content": "b"}])
        except DataError as error:
            raise ModelError(f"the chat template cannot be used: {error.message}", error.hint) from error
        bos = tokenizer.bos_token
        if isinstance(bos, str) and self.text([question], generate=True).startswith(2 * bos):
            raise ModelError("the chat template writes the beginning-of-text token twice", "name another chat.template")
        # The last control token of the turn, and the first after the answer: a template may end a conversation with more
        # than a turn.
        answer = next(number for number, piece in enumerate(probe) if piece.supervised and "b" in piece.text)
        ends = [piece.ids[0] for piece in probe[answer:] if piece.supervised and piece.control]
        stops = [ends[0], ends[-1], *self._tool_stops(question)]
        self.stop_ids = sorted({*stops, *_as_ids(tokenizer.eos_token_id)})

    def text(self, messages: list[Message], tools: Tools = None, *, generate: bool = False) -> str:
        """The conversation as the template writes it; with ``generate``, up to where the assistant begins to speak."""
        return self.vocabulary.restore_controls(self._template.run(*self._template.prepare(messages, tools), generate=generate))

    @property
    def date(self) -> str | None:
        """The date that the template writes into every conversation, ``2026-11-28``; None where it writes none."""
        return None if self.frozen_template is None else self.frozen_template.date

    @property
    def text_begin(self) -> list[int]:
        """The token that the tokenizer itself begins a plain text with, or none."""
        return list(self.tokenizer("").input_ids)[:1]

    def prompt_ids(self, messages: list[Message], tools: Tools = None) -> list[int]:
        """Token ids of a prompt that the assistant is to answer."""
        cut = self._cut(self._template.prompt(*self._template.prepare(messages, tools)))
        return cut.assemble(iter(self.vocabulary.encode(cut.texts())))[0]

    def render(self, messages: list[Message], tools: Tools = None, kind: Literal["chat", "text"] = "chat") -> Rendered:
        """Token ids and supervision of a conversation.

        Raises:
            DataError: see ``Template.locate``; or a character has no token; or no token is supervised.
            ModelError: the template ends an answer without a control token.
        """
        rendered = self._finish(self._prepare([Conversation(messages, tools, kind)]))[0]
        if isinstance(rendered, DataError):
            raise rendered
        return rendered

    def pieces(self, messages: list[Message], tools: Tools = None, kind: Literal["chat", "text"] = "chat") -> list[Piece]:
        """``ids`` and ``supervised`` of ``render``, piece by piece. Raises what ``render`` raises."""
        return self.documents(messages, tools, kind)[-1]

    def documents(
        self, messages: list[Message], tools: Tools = None, kind: Literal["chat", "text"] = "chat"
    ) -> list[list[Piece]]:
        """All documents of ``render``, piece by piece, for people to look at. Raises what ``render`` raises."""
        if kind == "text":
            cuts = [self._cut_text(messages[0]["content"])]
        else:
            prepared, supervised_turns = self._template.prepare(messages, tools), _supervised_turns(messages)
            cuts = [self._cut(layout) for layout in self._as_asked.lay_out(*prepared, supervised_turns)]
        return [
            [
                Piece(text, control is not None, is_supervised, next(encoded) if control is None else [control])
                for text, control, is_supervised, _ in cut.pieces
            ]
            for cut in cuts
            for encoded in (iter(self.vocabulary.encode(cut.texts())),)
        ]

    def left_out(self, messages: list[Message], tools: Tools = None, kind: Literal["chat", "text"] = "chat") -> list[list[str]]:
        """JSON paths of the texts that the template does not write, of each document. Raises what ``render`` raises."""
        if kind == "text":
            return [[]]
        prepared, supervised_turns = self._template.prepare(messages, tools), _supervised_turns(messages)
        return [layout.dropped for layout in self._as_asked.lay_out(*prepared, supervised_turns)]

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

    def _finish(self, conversations: list[list[_Document] | DataError]) -> list[Rendered | DataError]:
        texts = [text for cuts in conversations if not isinstance(cuts, DataError) for cut in cuts for text in cut.texts()]
        encoded = iter(self.vocabulary.encode(texts))
        return [
            cuts
            if isinstance(cuts, DataError)
            else Rendered.of([Rendered(*cut.assemble(encoded), cut.notes) for cut in cuts])  # in this order
            for cuts in conversations
        ]

    def _prepare(self, conversations: Sequence[Conversation]) -> list[list[_Document] | DataError]:
        """Run the template and take its text apart; plain chats go through it together."""
        results: list[list[_Document] | DataError] = []
        plain: list[tuple[int, Part]] = []
        given: list[list[Message]] = []  # of each of these
        for number, conversation in enumerate(conversations):
            try:
                if conversation.kind == "text":
                    results.append([self._cut_text(conversation.messages[0]["content"])])
                    continue
                messages, tools = self._template.prepare(conversation.messages, conversation.tools)
                supervised_turns = _supervised_turns(conversation.messages)
                roles = tuple([message["role"] for message in messages])
                plainly = tools is None and is_plain(messages)
                parts = self._as_asked.parts(roles, tuple(supervised_turns)) if plainly else None
                if parts is None:
                    layouts = self._as_asked.lay_out(messages, tools, supervised_turns)
                    results.append([self._cut(layout) for layout in layouts])
                else:
                    plain += [(number, part) for part in parts]
                    given += [messages[: part[0]] for part in parts]
                    results.append([])
            except DataError as error:
                results.append(error)
        for (number, (count, supervised_turns)), messages, text in zip(plain, given, self._run(given), strict=True):
            done, written = results[number], conversations[number].messages[:count]
            if isinstance(done, DataError):
                continue
            try:
                if isinstance(text, DataError):
                    raise text
                done.append(self._take_apart(written, messages, text, supervised_turns))
            except DataError as error:
                results[number] = error
        return results

    def _run(self, conversations: list[list[Message]]) -> list[str | DataError]:
        try:
            return list(self._template.run_many(conversations))
        except DataError as error:
            if len(conversations) == 1:
                return [error]
        return [text for messages in conversations for text in self._run([messages])]

    def _take_apart(
        self, written: list[Message], messages: list[Message], text: str, supervised_turns: tuple[int, ...]
    ) -> _Document:
        """A document of plain messages, as they were written and from ``Template.prepare``."""
        contents = "\n".join([message["content"] for message in written])
        frame = self._frame(tuple([message["role"] for message in messages]), supervised_turns)
        if frame is not None and not any(bracket in contents for bracket in BRACKETS):
            filled = frame.fill(messages, text)
            if filled is not None:
                self.vocabulary.refuse_lost(contents)
                return filled
        return self._cut(self._template.locate(messages, None, text, list(supervised_turns)))

    def _find_frame(self, roles: tuple[str, ...], supervised_turns: tuple[int, ...]) -> TokenLayout | None:
        """The frame of a plain conversation; None where a text is not all that changes from row to row."""
        plain = self._template.plain(roles, supervised_turns)
        if not isinstance(plain, PlainLayout) or not self.vocabulary.bracketed or self.vocabulary.strips(plain.control):
            return None
        output, turns = plain.fill(["x"] * len(roles))
        text, spans = with_blocks(output, turns)
        places = [sum(map(len, plain.gaps[: number + 1])) + number for number in range(len(plain.order))]
        places = [place + sum(len(turn.added) - turn.cut for turn in turns if turn.start <= place) for place in places]
        cut = self._cut(RenderedText(text, spans, [], plain.control))
        slots: list[Slot] = []
        ids: list[list[int]] = [[]]
        supervised: list[list[int]] = [[]]
        position, encoded = 0, iter(self.vocabulary.encode(cut.texts()))
        for piece, control, is_supervised, begins in cut.pieces:
            tokens = next(encoded) if control is None else [control]
            inside = [place - position for place in places if position <= place < position + len(piece)]
            position += len(piece)
            if not inside:
                ids[-1] += tokens
                supervised[-1] += [int(is_supervised)] * len(tokens)
                continue
            before, after = piece[: inside[0]], piece[inside[0] + 1 :]
            if len(inside) > 1 or any(bracket in before + after for bracket in BRACKETS):
                return None
            slots.append(Slot(plain.order[len(slots)], before, after, begins, int(is_supervised)))
            ids.append([])
            supervised.append([])
        return TokenLayout(plain.gaps, slots, ids, supervised, block_notes(turns)) if position == len(text) else None

    def _cut(self, layout: RenderedText) -> _Cut:
        pieces: list[tuple[str, int | None, bool, str]] = []
        position, spans, begins = 0, iter(layout.spans), START
        start, end = next(spans, (len(layout.text), len(layout.text)))
        parts = self.vocabulary.split(layout.text)
        if layout.control is not None and layout.control != [text for text, control in parts if control is not None]:
            raise DataError(
                "a text of the conversation joins with the template's text into a control token", "remove or change the text"
            )
        for number, (text, control) in enumerate(parts):
            if control is not None:
                pieces.append((text, control, start <= position < end, begins))
                position += len(text)
                begins = AFTER
                if position >= end:
                    start, end = next(spans, (len(layout.text), len(layout.text)))
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
                self.vocabulary.refuse_lost(text)
        has_lookalike = not layout.text.isascii() and layout.text != self.vocabulary.restore_controls(layout.text)
        notes = [f"the chat template leaves out {path.rsplit('.', 1)[-1]}" for path in layout.dropped]
        return _Cut(
            pieces,
            (
                *notes,
                *layout.notes,
                *(_LOOKALIKE if has_lookalike else ()),
            ),
        )

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
        text = self.vocabulary.stripped_by_neighbours(text, before if begins == AFTER else None, after)
        if text:
            pieces.append((self.vocabulary.restore_controls(text), None, supervised, begins))
        return bool(text)

    def _cut_text(self, text: str) -> _Cut:
        """A plain text: bos where the tokenizer puts one, the text, eos; all but bos supervised."""
        has_lookalike = self.vocabulary.hide_controls(text) != text
        self.vocabulary.refuse_lost(text)
        eos = self.tokenizer.eos_token
        if eos is None:
            raise DataError("the tokenizer has no end-of-text token, so a plain text would have no end", "use messages")
        bos = self.tokenizer.bos_token
        starts = bos is not None and self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id
        head = [(str(bos), self.vocabulary.control[str(bos)], False, START)] if starts else []
        body = (text, None, True, AFTER if starts else START)
        return _Cut(
            [*head, body, (str(eos), self.vocabulary.control[str(eos)], True, MIDDLE)], _LOOKALIKE if has_lookalike else ()
        )

    def _default_thinking(self, source: str) -> bool | None:
        """The switch that leaves a prompt as the template writes it without being told."""
        if SWITCH not in source:
            return None
        if (present := thinking_of(source)) is not None:
            return present
        sources = (source, with_thinking(source, False), with_thinking(source, True))
        question: list[Message] = [{"role": "user", "content": "a"}]
        try:
            default, off, on = (Template(self.tokenizer, s, self.vocabulary).run(question, generate=True) for s in sources)
        except DataError as error:
            raise ModelError(f"the chat template cannot be used: {error.message}", error.hint) from error
        return None if off == on or default not in (off, on) else default == on

    def _tool_stops(self, question: Message) -> list[int]:
        """The token that ends a tool call, where the template has tool calls."""
        call: Message = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}],
        }
        parameters = {"type": "object", "properties": {"a": {"type": "string", "description": "c"}}, "required": ["a"]}
        declared: Tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters}}
        try:
            probe = self.pieces([question, call], [declared])
        except DataError:
            return []
        return [piece.ids[0] for piece in probe if piece.supervised and piece.control][-1:]


def with_system(messages: list[Message], instruction: str | None) -> list[Message]:
    """The conversation with ``instruction`` as its system turn, in front of a system turn of its own."""
    if instruction is None:
        return messages
    if messages[0]["role"] in ("system", "developer"):
        own = messages[0]["content"]
        return [{"role": "system", "content": f"{instruction}\n\n{own}"}, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]


def _supervised_turns(messages: list[Message]) -> list[int]:
    """Numbers of the assistant turns of weight 1.

    Raises:
        DataError: there is none.
    """
    turns = [n for n, message in enumerate(messages) if message["role"] == "assistant" and message.get("weight", 1) == 1]
    if not turns:
        raise DataError("no token is supervised", "give an assistant turn weight 1, or remove the row")
    return turns


def _as_ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else value
