"""Where a chat template puts each text, and which spans of the result the assistant is taught.

A template is a program; its output is one string in which the turns have drowned. Peers find them again by searching
for marker strings (and train on tool results that hold them), by the difference of two renderings (and break where a
template rewrites earlier turns), or by ``{% generation %}``, which few published templates have. Here the
template is run a second time with every text of the conversation wrapped in two private-use characters that stand for
that text alone. What lies between is that text as the template wrote it, whatever it did with it; what lies outside is
the template's own. Without the marks the second run must equal the first, and hold no control token more: a name that
ends in ``<|im_end|`` before a ``>`` of the template would make one. A text must be written as it is, without the white
space around it, or as JSON writes it; a template that does anything else with it is refused.

An assistant's turn starts where the template's generation prompt for the turns before it ends: that prompt must be a
prefix of the whole, character for character, or the turn could not be asked for in deployment as it was trained. It
ends with the last control token that the template writes when the conversation stops there (end of turn, or handing
over to a tool), as far as it writes the same when the conversation goes on. One difference is mended: a thinking
block that only the prompt has (``chat/thinking_block.py``).

A plain conversation (texts only) has a layout that depends on its roles alone. It is found once and filled in; the
result must equal the template's, which is run for every row. So the common case costs one run, and no case is guessed.

Not marked, because templates compare them: roles, ids, the keys of arguments, tool declarations. They are neutral
(``Vocabulary.hide_controls``) all the same, and broken by a mark where they begin or end like a control token.

Cost: one more run for a conversation with tools, names or reasoning, one for each supervised turn of a layout that is
new, and one for each kind of turn whose end has not been seen.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

import tunesmith.chat.template_limits  # noqa: F401 - every template of this process has them from here on
from tunesmith.chat.markers import check_message, map_strings, mark_message, named
from tunesmith.chat.thinking_block import Span, Turn, block_notes, block_of, with_blocks
from tunesmith.chat.vocabulary import BREAK, MARK, Vocabulary
from tunesmith.errors import DataError, ModelError
from tunesmith.messages import Message, Tools

_MARKS = re.compile(f"[{chr(MARK)}-{BREAK}]")
_DEVELOPER = re.compile(r"""(["'])developer\1""")
_REFUSED = (jinja2.TemplateError, TypeError, LookupError, ValueError, AttributeError, ArithmeticError, RecursionError)
_REFUSED += (NameError,)  # Jinja writes a number past all floats into its program as ``inf``
_THINKING = re.compile(r"""\.thinking\b|\[["']thinking["']\]""")


@dataclass(frozen=True)
class Leaf:
    """One text of a conversation: the message it belongs to, and its JSON path."""

    message: int
    path: str


@dataclass(frozen=True)
class RenderedText:
    """A rendered conversation.

    Attributes:
        text: what the template wrote, control tokens that stood in messages still neutral.
        spans: the supervised character spans, one for each assistant turn of weight 1, in order.
        dropped: JSON paths of texts that the template left out although they may be left out (names, old reasoning).
        control: the control tokens that the template wrote by itself, in order; None when no text could add one.
        notes: what else is to be said of the row, for people.
    """

    text: str
    spans: list[Span]
    dropped: list[str]
    control: list[str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Marked:
    """Outcome of a run with marks.

    Attributes:
        text: what the template wrote, without the marks.
        where: number of a leaf -> the first span of ``text`` that it takes; a leaf that was left out is missing.
        control: the control tokens that the template wrote by itself, in order.
    """

    text: str
    where: dict[int, Span]
    control: list[str]


@dataclass(frozen=True)
class PlainLayout:
    """Layout of a plain conversation: the template's text before each message's and after the last, spans by gap.

    Attributes:
        order: message whose text follows gap n.
        turns: for each supervised message: (message, its turn with the start counted back from the start of its text and
            the end from the end of its text).
        control: the control tokens of the gaps and of the blocks.
    """

    gaps: list[str]
    order: list[int]
    turns: list[tuple[int, Turn]]
    control: list[str]

    def fill(self, contents: list[str]) -> tuple[str, list[Turn]]:
        """What the template writes with these texts, one for each message, and where the supervised turns are in it."""
        position, starts, parts = len(self.gaps[0]), {}, [self.gaps[0]]
        for gap, message in zip(self.gaps[1:], self.order, strict=True):
            starts[message] = position
            parts += (contents[message], gap)
            position += len(contents[message]) + len(gap)
        turns = [
            turn._replace(start=starts[m] - turn.start, end=starts[m] + len(contents[m]) + turn.end) for m, turn in self.turns
        ]
        return "".join(parts), turns


class Template:
    """A chat template and the two ways of running it.

    Attributes:
        source: the Jinja text.
        plain: (roles, supervised turns) of a plain conversation -> its layout, the error that it leads to, or None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str, vocabulary: Vocabulary):
        self.source = source
        self._vocabulary = vocabulary
        self._special = dict(tokenizer.special_tokens_map)
        self.plain = lru_cache(maxsize=512)(self._find_plain)
        self._thinking = "reasoning_content" not in source and _THINKING.search(source) is not None
        self._system = "developer" if _DEVELOPER.search(source) else "system"
        self._closings: dict[tuple[Any, ...], str] = {}

    def run(self, messages: list[Message], tools: Tools = None, *, generate: bool = False) -> str:
        """The template's text; with ``generate``, up to where the assistant begins to speak.

        Raises:
            DataError: the template refuses the conversation.
        """
        return self.run_many([messages], tools, generate=generate)[0]

    def run_many(self, conversations: list[list[Message]], tools: Tools = None, *, generate: bool = False) -> list[str]:
        """The same for many conversations with the same tools, which is cheaper than one at a time.

        Raises:
            DataError: the template refuses a conversation.
        """
        if self._thinking:
            conversations = [[_with_thinking(message) for message in messages] for messages in conversations]
        special, arguments = cast("Any", self._special), cast("Any", (conversations, tools))  # stated too narrowly there
        try:
            texts = render_jinja_template(
                conversations=arguments[0],
                tools=arguments[1],
                chat_template=self.source,
                add_generation_prompt=generate,
                **special,
            )
        except _REFUSED as error:
            raise DataError(
                f"the chat template refuses the conversation: {error}", "mend the template, or name another: chat.template"
            ) from error
        return cast("list[str]", texts[0])

    def prepare(self, messages: list[Message], tools: Tools) -> tuple[list[Message], Tools]:
        """The conversation as the template may see it: no control token in any text, no weights, a role it knows.

        Raises:
            DataError: a message or a tool is not of OpenAI's form, or ``Vocabulary.hide_controls`` refuses a text.
        """
        hide = self._vocabulary.hide_controls
        visible: list[Message] = []
        for number, message in enumerate(messages):
            role = message.get("role")
            if not isinstance(role, str) or not role.isidentifier():
                raise DataError(f"$.messages[{number}].role is {role!r}", "expected system, user, assistant or tool")
            role = self._system if role == "developer" else role
            content = message.get("content")
            if len(message) == 2 and isinstance(content, str):
                visible.append({"role": role, "content": hide(content)})
            else:
                check_message(message, number)
                changed: Message = map_strings({"role": role, **message}, hide)
                changed.pop("weight", None)
                # No content beside tool calls means that the turn has no text; templates print None as a word.
                visible.append({**changed, "role": role, "content": changed.get("content") or ""})
        for number, tool in enumerate(tools or []):
            named(tool, f"$.tools[{number}]")
        return visible, None if tools is None else map_strings(tools, hide)

    def prompt(self, messages: list[Message], tools: Tools) -> RenderedText:
        """A prompt that the assistant is to answer; ``messages`` and ``tools`` from ``prepare``."""
        text = self.run(messages, tools, generate=True)
        parted = map_strings(messages, self._vocabulary.split_controls), map_strings(tools, self._vocabulary.split_controls)
        if parted == (messages, tools):
            return RenderedText(text, [], [])
        marked = self.run(*parted, generate=True)
        if _MARKS.sub("", marked) != text:
            raise _unsteady()
        return RenderedText(text, [], [], self._vocabulary.tokens(marked))

    def locate(self, messages: list[Message], tools: Tools, text: str, supervised_turns: list[int]) -> RenderedText:
        """Find the supervised spans of a document.

        Args:
            messages, tools: from ``prepare``.
            text: what ``run`` writes of them.
            supervised_turns: the assistant turns of weight 1.

        Raises:
            DataError: the template drops or reorders a part of this conversation, or writes a supervised turn otherwise
                than it asks for it.
            ModelError: the template ends an answer without a control token.
        """
        if tools is None and is_plain(messages):
            plain_layout = self._fill(messages, text, supervised_turns)
            if plain_layout is not None:
                return plain_layout
        return self.locate_marked(messages, tools, text, supervised_turns)[0]

    def _fill(self, messages: list[Message], text: str, supervised_turns: list[int]) -> RenderedText | None:
        """Spans by the layout of the roles, or None when the template's text is not what that layout gives.

        For texts with a bracket, which ``TokenLayout`` may not fill; a run with marks each would take 1.4 to 1.7 times as long.
        """
        plain = self.plain(tuple(message["role"] for message in messages), tuple(supervised_turns))
        if isinstance(plain, DataError):
            raise DataError(plain.message, plain.hint)
        if plain is None:
            return None
        contents = [message["content"] for message in messages]
        for texts in (contents, [content.strip() for content in contents]):
            output, turns = plain.fill(texts)
            if output == text:
                return RenderedText(*with_blocks(text, turns), [], plain.control, block_notes(turns))
        return None

    def _find_plain(self, roles: tuple[str, ...], supervised_turns: tuple[int, ...]) -> PlainLayout | DataError | None:
        """The layout of a plain conversation, from one whose texts are single letters; None if it cannot be had so.

        An error is returned, not raised, so that it is remembered as a layout is.
        """
        messages: list[Message] = [{"role": role, "content": "x"} for role in roles]
        try:
            marked, leaves = self._run_marked(messages, None)
            if len(marked.where) < len(leaves):
                return None
            turns = self._turns(messages, None, marked, leaves, list(supervised_turns))
        except DataError as error:
            return error
        order = sorted(marked.where, key=lambda leaf: marked.where[leaf])
        borders = [0, *(border for leaf in order for border in marked.where[leaf]), len(marked.text)]
        gaps = [marked.text[a:b] for a, b in zip(borders[::2], borders[1::2], strict=True)]
        offsets = [
            (m, turn._replace(start=marked.where[m][0] - turn.start, end=turn.end - marked.where[m][1]))
            for m, turn in zip(supervised_turns, turns, strict=True)
        ]
        control = [token for gap in gaps for token in self._vocabulary.tokens(gap)]
        return PlainLayout(
            gaps, [leaves[leaf].message for leaf in order], offsets, self._with_blocks_of(control, marked.text, turns)
        )

    def locate_marked(
        self, messages: list[Message], tools: Tools, text: str, supervised_turns: list[int]
    ) -> tuple[RenderedText, list[Turn]]:
        """What ``locate`` finds, with marks whatever the conversation holds, and the turns in ``text`` as it was given.

        Raises:
            DataError, ModelError: see ``locate``.
        """
        marked, leaves = self._run_marked(messages, tools)
        if marked.text != text:
            raise _unsteady()
        dropped = self._dropped(leaves, marked)
        if tools:
            without = self.run(messages, None)
            missing = [f"$.tools[{i}]" for i, tool in enumerate(tools) if tool["function"]["name"] not in text]
            if without == text or missing:
                raise DataError("the chat template leaves the tool declarations out", "choose a model whose template has tools")
        turns = self._turns(messages, tools, marked, leaves, supervised_turns)
        reasoning = {f"$.messages[{m}].reasoning_content": turn for m, turn in zip(supervised_turns, turns, strict=True)}
        for path in dropped:
            if path in reasoning and not reasoning[path].reasoning:
                raise _left_out(path)
        dropped = [path for path in dropped if path not in reasoning]
        control = self._with_blocks_of(marked.control, text, turns)
        return RenderedText(*with_blocks(text, turns), dropped, control, block_notes(turns)), turns

    def _with_blocks_of(self, control: list[str], text: str, turns: list[Turn]) -> list[str]:
        """The control tokens that stand in ``text`` with the blocks, those of ``text`` being given."""
        tokens = self._vocabulary.tokens
        for turn in reversed(turns):
            if turn.added:
                before, cut = len(tokens(text[: turn.start])), len(tokens(text[turn.start : turn.start + turn.cut]))
                control = [*control[:before], *tokens(turn.block), *tokens(turn.closing), *control[before + cut :]]
        return control

    def _run_marked(self, messages: list[Message], tools: Tools) -> tuple[_Marked, list[Leaf]]:
        leaves: list[Leaf] = []
        cores: list[str] = []

        def mark(text: str, path: str, message: int) -> str:
            core = text.strip()
            if not core:
                return text
            start = text.index(core)
            first = MARK + 2 * len(leaves)
            if first + 1 >= ord(BREAK):
                raise DataError("the conversation has more than 32,000 texts", "split it")
            leaves.append(Leaf(message, path))
            cores.append(core.replace(BREAK, ""))
            return f"{text[:start]}{chr(first)}{core}{chr(first + 1)}{text[start + len(core) :]}"

        split = self._vocabulary.split_controls
        wrapped = [mark_message(map_strings(message, split), number, mark) for number, message in enumerate(messages)]
        text = self.run(wrapped, map_strings(tools, split))
        bare = _MARKS.sub("", text)
        where: dict[int, Span] = {}
        opened: dict[int, int] = {}
        for count, match in enumerate(_MARKS.finditer(text)):
            if match.group() == BREAK:
                continue
            leaf, closes = divmod(ord(match.group()) - MARK, 2)
            if not closes:
                opened[leaf] = match.start() - count
                continue
            if leaf not in opened:
                raise _apart(leaves[leaf].path)
            span = opened.pop(leaf), match.start() - count
            if not _is_same_text(bare[slice(*span)], cores[leaf]):
                raise DataError(f"the chat template rewrites {leaves[leaf].path}", "name another chat.template")
            where.setdefault(leaf, span)
        if opened:
            raise _apart(leaves[min(opened)].path)
        return _Marked(bare, where, self._vocabulary.tokens(text)), leaves

    def _dropped(self, leaves: list[Leaf], marked: _Marked) -> list[str]:
        """Paths of texts that the template left out. Whether reasoning may be among them, the turns decide.

        Raises:
            DataError: one of them is more than a name, an id or reasoning.
        """
        dropped = [leaf.path for number, leaf in enumerate(leaves) if number not in marked.where]
        for path in dropped:
            name = path.endswith(".name") and "function" not in path
            if not (name or path.endswith(".reasoning_content")):
                raise _left_out(path)
        return dropped

    def _turns(
        self, messages: list[Message], tools: Tools, marked: _Marked, leaves: list[Leaf], supervised_turns: list[int]
    ) -> list[Turn]:
        return [self._turn(messages, tools, marked, leaves, index) for index in supervised_turns]

    def _turn(self, messages: list[Message], tools: Tools, marked: _Marked, leaves: list[Leaf], index: int) -> Turn:
        """The assistant turn ``index``: from the end of its generation prompt to its end of turn."""
        own_spans = [marked.where[n] for n, leaf in enumerate(leaves) if leaf.message == index and n in marked.where]
        if not own_spans:
            raise DataError(f"the assistant turn $.messages[{index}] is empty", "fill it, give it weight 0, or remove the row")
        others = [span for n, span in marked.where.items() if leaves[n].message != index]
        first, last = min(span[0] for span in own_spans), max(span[1] for span in own_spans)
        if any(first < span[0] < last for span in others):
            ids = [call.get("id") for message in messages for call in message.get("tool_calls") or []]
            raise DataError(
                f"the chat template writes other turns inside $.messages[{index}]",
                "give each tool call an id of its own, and each tool message the id of its call"
                if len(set(ids)) < len(ids)
                else "an assistant turn with both content and tool_calls may have to be two turns",
            )
        prompt = self.run(messages[:index], tools, generate=True)
        turn = Turn(len(prompt), 0)
        if not marked.text.startswith(prompt) or len(prompt) > first:
            path = f"$.messages[{index}].reasoning_content"
            thinks = any(leaf.path == path and n in marked.where for n, leaf in enumerate(leaves))

            def run(conversation: list[Message]) -> str:
                return self.run(conversation, tools)

            turn = block_of(self._vocabulary, run, messages, index, marked.text[:first], prompt, thinks)
            turn = turn._replace(start=len(prompt) - len(turn.block))
        return turn._replace(end=last + self._closing(messages, tools, index, marked.text[last:]))

    def _closing(self, messages: list[Message], tools: Tools, index: int, rest: str) -> int:
        """Length of what belongs to the assistant turn ``index`` after its last text, where the template goes on with
        ``rest``: as much of what it writes when the conversation stops there as ``rest`` begins with.

        Closings are remembered by the form of the turn, since only what follows its last text counts. That text can
        hold numbers of the arguments; then ``rest`` does not begin so, and the closing is found afresh.
        """
        if index == len(messages) - 1:
            return len(self._ends(rest)[-1])
        message = messages[index]
        form = tuple(sorted(key for key, value in message.items() if value)), len(message.get("tool_calls") or [])
        known = self._closings.get((tools is None, *form))
        if known is not None and (length := _begins(rest, known)):
            return length
        marked, leaves = self._run_marked(messages[: index + 1], tools)
        last = max((span[1] for n, span in marked.where.items() if leaves[n].message == index), default=0)
        for closing in reversed(self._ends(marked.text[last:])):
            if length := _begins(rest, closing):
                self._closings[(tools is None, *form)] = closing
                return length
        raise DataError(f"the chat template closes $.messages[{index}] in two ways", "give the turn weight 0")

    def _ends(self, text: str) -> list[str]:
        """The beginnings of ``text`` that end in a control token, shortest first.

        Raises:
            ModelError: there is no control token in it.
        """
        pieces = self._vocabulary.split(text)
        stops = [number for number, (_, control) in enumerate(pieces) if control is not None]
        if not stops:
            raise ModelError(
                "the chat template ends an answer without a special token, so a tuned model would never stop",
                "choose a model and a template that belong together: the end of turn has to be one token of the tokenizer",
            )
        return ["".join(piece for piece, _ in pieces[: stop + 1]) for stop in stops]


def is_plain(messages: list[Message]) -> bool:
    """Whether messages from ``Template.prepare`` are texts and nothing else."""
    return all(len(message) == 2 and message["content"].strip() for message in messages)


def _with_thinking(message: Message) -> Message:
    """A message with its reasoning under the name ``thinking``, the only one that some templates know."""
    if "reasoning_content" not in message:
        return message
    renamed = {"thinking" if key == "reasoning_content" else key: value for key, value in message.items()}
    return cast("Message", renamed)


def _left_out(path: str) -> DataError:
    return DataError(f"the chat template leaves {path} out", "remove it from the row, or name another chat.template")


def _begins(rest: str, closing: str) -> int:
    """Length of ``closing`` at the beginning of ``rest``, whatever white space either begins with; 0 if it is not there."""
    blank = len(rest) - len(rest.lstrip())
    core = closing.lstrip()
    return blank + len(core) if rest.startswith(core, blank) else 0


def _is_same_text(output: str, text: str) -> bool:
    """Whether a template wrote ``text`` as it is or as a JSON string writes it."""
    if output == text:
        return True
    try:
        return json.loads(f'"{output}"') == text
    except ValueError:
        return False


def _apart(path: str) -> DataError:
    return DataError(f"the chat template takes {path} apart", "name another chat.template, or reword the text")


def _unsteady() -> DataError:
    return DataError(
        "the chat template writes the texts of this conversation differently depending on what they hold",
        "name another chat.template",
    )
