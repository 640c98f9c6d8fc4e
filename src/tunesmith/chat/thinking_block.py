"""The thinking block that a prompt ends with, and a turn that was said lacks.

Two kinds of template end the prompt for a turn with more than they write before the same turn once it is said.

*A closed block.* Where thinking is switched off, many write a thinking block that opens and closes at once, and leave it out
of what was said. An answer is asked for behind that block, so it is put before the supervised turn, as context.

*An open tag.* The templates of DeepSeek R1 and its kin end every prompt with ``<think>``: what the model writes first is its
reasoning, then the closing tag, then the answer; the template keeps the answer alone. The supervised turn is therefore the
row's ``reasoning_content``, the closing tag and the answer, behind the prompt with its open tag. A row without reasoning closes
the tag at once, as these models do themselves when they do not think. The template says nowhere how the tag is closed, so the
white space follows the opening: a tag with a line break behind it is closed on a line of its own and an empty line follows
(``<think>\\n\\n</think>\\n\\n``, DeepSeek's own form of an empty block), a bare tag by a bare one. Others do say it, since they
write reasoning where there is some, and put an empty block of another form (``<think></think>``) before answers without: that
is taken out, because no answer can begin with it behind a prompt that has opened the tag.

Either way the document is, character for character, what deployment writes. Refused: to train on the answer without the block,
as whoever renders the whole conversation does, because the model is never asked so; and to refuse such rows, because with these
templates it would be every row.
"""

from collections.abc import Callable
from typing import NamedTuple

from tunesmith.chat.vocabulary import Vocabulary
from tunesmith.errors import DataError
from tunesmith.messages import Message

Span = tuple[int, int]
Run = Callable[[list[Message]], str]  # what the template writes of messages, with the conversation's tools


class Turn(NamedTuple):
    """A supervised turn in what the template wrote.

    Attributes:
        start, end: its span.
        block: what the prompt for it ends with and the text lacks, put before the turn as context; mostly nothing.
        reasoning, closing: what is put behind that, supervised: the reasoning that an open tag asks for, and the closing tag.
        cut: characters of the text at ``start`` that all this takes the place of: an empty block of another form.
    """

    start: int
    end: int
    block: str = ""
    reasoning: str = ""
    closing: str = ""
    cut: int = 0

    @property
    def added(self) -> str:
        """All that is put before it."""
        return self.block + self.reasoning + self.closing


def with_blocks(text: str, turns: list[Turn]) -> tuple[str, list[Span]]:
    """``text`` with what is put before each turn, and the supervised spans there."""
    parts, spans, cursor, shift = [], [], 0, 0
    for turn in turns:
        start = turn.start + shift + len(turn.block)
        if turn.added:
            parts += (text[cursor : turn.start], turn.added)
            cursor, shift = turn.start + turn.cut, shift + len(turn.added) - turn.cut
        spans.append((start, turn.end + shift))
    return "".join([*parts, text[cursor:]]), spans


def block_notes(turns: list[Turn]) -> tuple[str, ...]:
    """What is to be said of a row whose answer closes a tag that its prompt opens."""
    turn = next((turn for turn in turns if turn.closing and not turn.reasoning), None)
    if turn is None:
        return ()
    return (f"the prompt opens {turn.block!r}; an answer without reasoning_content closes it at once, with {turn.closing!r}",)


def block_of(
    vocabulary: Vocabulary, run: Run, messages: list[Message], index: int, before: str, prompt: str, thinks: bool
) -> Turn:
    """What has to be put before the turn ``index``, whose prompt is not how the conversation begins; start and end are 0.

    Args:
        before: what the conversation holds before the first text of the turn.
        prompt: what asks for that turn; ``before`` does not begin so.
        thinks: the template writes the turn's reasoning.

    Raises:
        DataError: the prompt differs in something else than a thinking block at its end, or the turn thinks although the
            prompt says not to.
    """
    pieces = vocabulary.split(prompt)
    control = [number for number, (_, token) in enumerate(pieces) if token is not None]
    if control and not "".join(text for text, _ in pieces[control[-1] + 1 :]).strip():
        heads = ["".join(text for text, _ in pieces[:number]) for number in control[-2:]]
        if len(heads) == 2 and before.startswith(heads[0]) and run(_answered(messages[:index])).startswith(f"{heads[0]}x"):
            block = prompt[len(heads[0]) :]
            if thinks or messages[index].get("reasoning_content"):
                raise DataError(
                    f"$.messages[{index}] has reasoning_content, and the chat template asks for it with thinking switched "
                    f"off ({block!r})",
                    "set chat.enable_thinking: true, or remove reasoning_content",
                )
            return Turn(0, 0, block)
        turn = _opened(vocabulary, run, messages, index, before, prompt, heads[-1], pieces[control[-1]][0])
        if turn is not None and not thinks:
            return turn
    both = any(message.get("tool_calls") and message["content"].strip() for message in messages[:index])
    raise DataError(
        f"the chat template writes $.messages[{index}] otherwise than it asks for it: its prompt for that turn is not how the "
        "conversation up to there begins",
        "an assistant turn with both content and tool_calls may have to be two turns"
        if both
        else "name another chat.template, or give the turn weight 0",
    )


def _answered(messages: list[Message], reasoning: str = "") -> list[Message]:
    """A conversation that goes on with a short answer and a question."""
    answer = Message(role="assistant", content="x")
    if reasoning:
        answer["reasoning_content"] = reasoning
    return [*messages, answer, Message(role="user", content="y")]


def _opened(
    vocabulary: Vocabulary, run: Run, messages: list[Message], index: int, before: str, prompt: str, head: str, tag: str
) -> Turn | None:
    """What stands behind an open tag; None where ``tag``, with which the prompt ends behind ``head``, is none.

    How the tag is closed is what the template writes between a reasoning and an answer, where it knows any.
    """
    closing = f"</{tag[1:]}"
    if closing not in vocabulary.control or not before.startswith(head):
        return None
    empty = before[len(head) :]
    empty = empty[: empty.rfind(closing) + len(closing)] if closing in empty else ""
    if "".join(empty.split()) not in ("", tag + closing) or not run(_answered(messages[:index])).startswith(f"{head}{empty}x"):
        return None
    block = prompt[len(head) :]
    written = run(_answered(messages[:index], "r")[:-1])
    between = written.removeprefix(f"{prompt}r").partition("x")[0] if written.startswith(f"{prompt}r") else ""
    if between.strip() == closing:
        closing = between
    elif block.endswith("\n"):
        closing = f"\n{closing}\n\n"
    return Turn(0, 0, block, messages[index].get("reasoning_content") or "", closing, len(empty))
