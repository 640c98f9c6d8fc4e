"""Reasoning that stands in the text of an answer, between the tags of the model that wrote it.

Exports of chats and distilled answers carry ``<think>...</think>`` inside ``content``. Text is never a control token here
(``chat/vocabulary.py``), so the tags would be learnt as letters, behind an empty thinking block where the template writes one:
a model that thinks twice and means neither. Templates have a place of their own for reasoning, ``reasoning_content``; whether
it goes there is the owner's choice (``data.reasoning``), since there is text in which a tag is what is meant.

Only what can be parted without a guess is parted: one block that begins the answer, or one closing tag behind a whole sentence
and before a blank line (prompts of reasoning models end with the opening one, and all of them write that line). Two blocks,
words before the block, a block that never closes and a closing tag beside any other line break are named. A tag within a
sentence is prose about tags, and tags that are plain words (``<reasoning>``) count at the beginning of an answer alone.
Refused: splitting at the last closing tag wherever it stands, as templates do, which loses what stands before the opening one.

Source: the published chat templates of reasoning models, and the harmony format.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.data.finding import SHOWN, Example, Finding, excerpt
from tunesmith.data.problems import RowError
from tunesmith.messages import Message
from tunesmith.rundir.rows import Row

Mode = Literal["split", "keep", "drop"]
_HARMONY_FINAL = "<|start|>assistant<|channel|>final<|message|>"
_THOUGHT = "<|begin_of_thought|>"
# What opens and what closes reasoning; the fifth is the harmony format's.
_FORMS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", f"<|end|>{_HARMONY_FINAL}"),
    ("<|channel>thought", "<channel|>"),
    (_THOUGHT, "<|end_of_thought|>"),
)
_WORDS = tuple((f"<{word}>", f"</{word}>") for word in ("thinking", "thought", "thoughts", "reasoning"))  # XML of prompts
_TRACES = (b"think>", b"THINK", b"<|channel", b"<channel|>", _THOUGHT.encode(), *(closing.encode() for _, closing in _WORDS))
_SOLUTION = re.compile(r"\A\s*<\|begin_of_solution\|>\s*|\s*<\|end_of_solution\|>\s*\Z")  # around the answer behind it
_UNFINISHED = re.compile(r"[^\W\d_]\Z|[,:;-]\Z")  # how a text ends that goes on behind a tag: a letter, no mark of an end
_HARMONY_AROUND = re.compile(r"\A\s*<\|start\|>assistant(?=<\|channel\|>)|(?:<\|return\|>|<\|end\|>)\s*\Z")


@dataclass(frozen=True, slots=True)
class Reasoning:
    """An answer taken apart.

    Attributes:
        tag: what opens the reasoning, as the model writes it.
        thoughts: the reasoning, without the line breaks around it.
        answer: the rest.
        problem: why the two cannot be told apart; empty where they can.
    """

    tag: str
    thoughts: str = ""
    answer: str = ""
    problem: str = ""


def may_hold(texts: bytes) -> bool:
    """Whether a tag could stand anywhere in many texts joined; nearly free, for the data in which none does."""
    return any(trace in texts for trace in _TRACES)


def taken_apart(content: str) -> Reasoning | None:
    """The reasoning and the answer of a text; None where there is no reasoning in it."""
    for opening, closing in (*_FORMS, *_WORDS):
        text = _HARMONY_AROUND.sub("", content) if opening.startswith("<|channel|>") else content
        closings = text.count(closing)
        if text.lstrip().startswith(opening):
            return _block(text.lstrip(), opening, closing, closings)
        if not closings or (opening, closing) in _WORDS:
            continue
        if closings == 1 and opening not in text:
            before, _, after = text.partition(closing)
            if after.startswith("\n\n") and before.strip() and not _UNFINISHED.search(before.rstrip()):
                return Reasoning(opening, before.strip("\n"), after.lstrip("\n"))
            if before.endswith("\n") or after.startswith("\n"):
                return Reasoning(opening, problem=f"no {opening} opens it, and {closing} may be a word of the answer")
        if re.search(rf"^[ \t]*{re.escape(opening)}", text, re.MULTILINE):
            return Reasoning(opening, problem=f"words stand before {opening}")
    return None


def _block(text: str, opening: str, closing: str, closings: int) -> Reasoning:
    """A text that begins with reasoning."""
    if closings != 1:
        problem = "the reasoning never ends" if not closings else f"{closing} stands there {closings} times"
        return Reasoning(opening, problem=problem)
    before, _, after = text.removeprefix(opening).partition(closing)
    if "<|channel" in before + after:
        return Reasoning(opening, problem="there are further channels")
    answer = _SOLUTION.sub("", after) if opening == _THOUGHT else after.lstrip("\n")
    return Reasoning(opening, before.strip("\n"), answer)


def settled(messages: list[Message], mode: Mode | None) -> tuple[list[Message], int, int]:
    """The conversation as ``data.reasoning`` wants it.

    Args:
        messages: checked ones.
        mode: ``split`` puts reasoning that stands in a text into ``reasoning_content``; ``drop`` does the same, and then takes
            it from the turns of weight 0: a turn that is trained keeps its own.

    Returns:
        The turns, how many of them were split, and how many lost their reasoning.

    Raises:
        RowError: reasoning and answer of a turn cannot be told apart, or there is no answer.
    """
    if mode is None or mode == "keep":
        return messages, 0, 0
    split = dropped = 0
    turns: list[Message] = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            found = taken_apart(message["content"])
            if found is not None:
                message, split = _split(message, found, f"$.messages[{number}].content"), split + 1
            if mode == "drop" and message.get("weight") == 0 and "reasoning_content" in message:
                message, dropped = message.copy(), dropped + 1
                message.pop("reasoning_content")
        turns.append(message)
    return (turns, split, dropped) if split or dropped else (messages, 0, 0)


def _split(message: Message, found: Reasoning, path: str) -> Message:
    hint = "mend the row, or remove it; data.reasoning: keep (--reasoning keep) trains the tags as text"
    if found.problem:
        raise RowError(path, "reasoning-not-parted", f"{found.problem}, so it cannot be told from the answer", hint)
    if message.get("reasoning_content"):
        raise RowError(path, "reasoning-twice", f"{found.tag} in the text, and reasoning_content beside it", hint)
    if not found.answer.strip() and "tool_calls" not in message:
        raise RowError(path, "empty-turn", "reasoning without an answer", "add the answer, or remove the row")
    split: Message = {**message, "content": found.answer}
    split.pop("reasoning_content", None)
    if found.thoughts.strip():
        split["reasoning_content"] = found.thoughts
    return split


class ReasoningInText:
    """Collects the rows whose answers hold reasoning as text; ``finding`` names them."""

    def __init__(self) -> None:
        self._rows = self._not_parted = 0
        self._tags: set[str] = set()
        self._examples: list[Example] = []

    def add(self, rows: Sequence[Row], first: int) -> None:
        """Look at rows in some of which a tag stands; ``first`` is the number of the first one."""
        for number, row in enumerate(rows, first):
            if row.kind == "text":
                continue
            spoken = (turn["content"] for turn in row.messages if turn["role"] == "assistant")
            found = [reasoning for text in spoken if (reasoning := taken_apart(text)) is not None]
            if not found:
                continue
            self._rows += 1
            self._tags.add(found[0].tag)
            problem = next((reasoning.problem for reasoning in found if reasoning.problem), "")
            self._not_parted += bool(problem)
            if len(self._examples) < SHOWN:
                self._examples.append(Example(number, problem or excerpt(f"{found[0].tag}{found[0].thoughts}")))

    def finding(self, of: int) -> list[Finding]:
        """The finding, where there is one."""
        if not self._rows:
            return []
        hint = (
            "Set data.reasoning: split (--reasoning split), which puts it where the model's own template writes reasoning; "
            "keep trains the tags as text, where that is meant or the template has no reasoning."
        )
        if self._not_parted:
            hint += f" In {self._not_parted:,} rows it cannot be told from the answer: mend them first."
        text = f"rows whose answers hold reasoning as text ({', '.join(sorted(self._tags))}): the tags are trained as letters"
        return [Finding("reasoning-in-content", "wrong", text, self._rows, of, hint, self._examples)]
