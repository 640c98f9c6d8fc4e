"""What the answers look like, and which of them do not look like the others.

A model learns the format of its answers before anything else, so one answer in a hundred with a code fence around its
JSON, or ``positive.`` among ``Positive``, becomes one wrong output in a hundred, in production, for ever. Nothing here
knows what the format should be: the majority decides, and a minority is shown with its rows. A schema would be a better
judge where there is one (``task.json_schema`` measures with it); this finds the broken rows before anybody wrote one.

This is the pass over the rows: it tells the format of each answer, and hands JSON to ``json_shapes``, short answers to
``classes`` and all of them to ``phrases``. Per row about 14 bytes stay: the format (1), words (4), the shape of a JSON answer
(4) and the number of a short answer (4), the last two as indices into tables that are bounded. The answer itself is forgotten,
but for the first twenty excerpts of each kind.
"""

import re
from array import array
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tunesmith.data.answer_format import (
    ARRAY,
    BROKEN,
    CALL,
    EMPTY,
    FENCED,
    FORMATS,
    MAJORITY,
    NONE,
    NUMBER,
    OBJECT,
    TEXT,
    majority,
)
from tunesmith.data.classes import SHORT, ShortAnswers
from tunesmith.data.finding import SHOWN, Example, Finding, excerpt
from tunesmith.data.json_shapes import Shapes
from tunesmith.data.phrases import Phrases
from tunesmith.rundir.records.quality import AnswerFormats, Classes, JsonShapes

_FORMAT, _EDGE, _OPEN = 0x0F, 0x80, 0x40  # one byte a row: format, white space at an edge, no final punctuation

_NUMBER = re.compile(r"[-+]?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?\s?%?")
_CLOSED = frozenset(".!?:;\"'”’»)]}>`*_|…。！？」』）।؟")


def _is_prose(first: str, last: str) -> bool:
    """Whether an answer that begins and ends so, and is too long for a class or a number, is text and nothing else."""
    return first not in "{[`" and not first.isspace() and not last.isspace()


def word_counts(texts: pa.Array) -> np.ndarray:
    """int64 per text of a large_binary array: runs of anything but ASCII white space."""
    _, offsets_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if offsets[-1] == offsets[0]:
        return np.zeros(len(texts), np.int64)
    raw = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    blank = (raw == ord(" ")) | (raw - np.uint8(ord("\t")) < 5)  # tab to carriage return; the subtraction wraps
    begins = ~blank
    begins[1:] &= blank[:-1]
    starts = offsets[:-1][np.diff(offsets) > 0]
    begins[starts] = ~blank[starts]
    return np.diff(np.searchsorted(np.flatnonzero(begins), offsets))


class Answers:
    """Collects formats, shapes, classes and phrases over a stream of answers."""

    def __init__(self) -> None:
        self.words = array("i")
        self._formats = bytearray()
        self._shapes, self._short, self._phrases = Shapes(), ShortAnswers(), Phrases()
        self._examples: dict[str, list[Example]] = {}

    def add(self, answers: Sequence[str | None], called: Sequence[bool], texts: pa.Array) -> None:
        """Take in one batch.

        Args:
            answers: per row, the content of the last supervised assistant turn; None where there is none.
            called: whether that turn calls tools.
            texts: the answers as a large_binary array, empty where None.
        """
        first = len(self._formats)
        words = word_counts(texts)
        self.words.frombytes(words.astype(np.int32).tobytes())
        for row, (answer, calls, count) in enumerate(zip(answers, called, words.tolist(), strict=True), first):
            self._add_one(row, answer, calls, count)
        self._phrases.add(answers, texts, first)

    def _add_one(self, row: int, answer: str | None, calls: bool, words: int) -> None:
        form, shape, short = NONE, -1, None
        if answer is not None and words > 1 and len(answer) > SHORT and _is_prose(answer[0], answer[-1]):
            form = TEXT  # as below, in a third of the time: nearly all answers of most chats
            if words >= 20 and answer[-1] not in _CLOSED:
                self._show("open", row, answer, tail=True)
                form |= _OPEN
            if len(self._examples.get(FORMATS[TEXT], ())) < SHOWN:
                self._show(FORMATS[TEXT], row, answer)
        elif answer is not None:
            stripped = answer.strip()
            start = stripped[:1]
            if not stripped:
                form = CALL if calls else EMPTY
            elif start in "{[":
                form, shape = self._shapes.read(stripped)
            elif start == "`" and stripped.startswith("```") and stripped.endswith("```") and len(stripped) > 6:
                form = FENCED
            elif len(stripped) <= 24 and _NUMBER.fullmatch(stripped) and any(map(str.isdecimal, stripped)):
                form = NUMBER
            else:
                form = TEXT
                if words >= 20 and stripped[-1] not in _CLOSED:
                    self._show("open", row, stripped, tail=True)
                    form |= _OPEN
            if len(stripped) != len(answer) and stripped:
                self._show("edge", row, answer, tail=not answer[0].isspace())
                form |= _EDGE
            if len(answer) <= SHORT and stripped and not calls:
                short = answer
            self._show(FORMATS[form & _FORMAT], row, stripped)
            if words <= 1:
                self._show("short", row, stripped)
        self._formats.append(form)
        self._shapes.add(shape)
        self._short.add(short)

    def _show(self, kind: str, row: int, text: str, tail: bool = False) -> None:
        examples = self._examples.setdefault(kind, [])
        if len(examples) < SHOWN:
            examples.append(Example(row, excerpt(text, tail)))

    def _coded(self) -> np.ndarray:
        return np.frombuffer(bytes(self._formats), np.uint8)

    def findings(self) -> list[Finding]:
        """Everything about the answers that is worth a look, in no order."""
        coded = self._coded()
        formats = coded & _FORMAT
        findings = self._format_findings(formats) + self._edge_findings(coded) + self._short_findings(formats)
        if majority(np.bincount(formats, minlength=len(FORMATS))) == FORMATS[OBJECT]:
            findings += self._shapes.findings()
        findings += self._short.findings(formats)
        return findings + self._phrases.findings(int(np.count_nonzero(formats != NONE)))

    def formats(self) -> AnswerFormats:
        """How many answers have each format, and the one that at least 60 % of them have (tool calls aside), or None."""
        counts = np.bincount(self._coded() & _FORMAT, minlength=len(FORMATS))
        return AnswerFormats(
            counts={name: int(count) for name, count in zip(FORMATS, counts, strict=True) if count and name != "none"},
            majority=majority(counts),
        )

    def shapes(self) -> JsonShapes | None:
        """Keys of JSON object answers; None without objects."""
        return self._shapes.report()

    def classes(self) -> Classes | None:
        """Class balance; None for answers that are no classes."""
        return self._short.report(self._coded() & _FORMAT)

    def _format_findings(self, formats: np.ndarray) -> list[Finding]:
        counts = np.bincount(formats, minlength=len(FORMATS))
        judged = int(counts[OBJECT:].sum())
        usual = majority(counts)
        findings: list[Finding] = []
        if counts[EMPTY]:
            answered = int(counts[EMPTY:].sum())
            hint = "An empty answer teaches to say nothing; leave the row out or fill it in."
            findings.append(
                Finding(
                    "empty-answers",
                    "wrong",
                    "answers that are empty",
                    int(counts[EMPTY]),
                    answered,
                    hint,
                    self._examples["empty"],
                )
            )
        if usual in (None, "text"):
            return findings
        hint = f"{counts[FORMATS.index(usual)] / judged:.1%} of the answers are: {usual}. Bring these into the same form."
        for form in (OBJECT, ARRAY, BROKEN, FENCED, NUMBER, TEXT):
            if counts[form] and FORMATS[form] != usual:
                code, text = {
                    BROKEN: ("broken-json", "answers that begin like JSON and do not parse"),
                    FENCED: ("fenced-answers", "answers inside a code fence, where most are bare"),
                }.get(form, ("other-format", f"answers that are {FORMATS[form]}, where most are {usual}"))
                severity = "suspect" if code == "other-format" else "wrong"
                shown = self._examples[FORMATS[form]]
                findings.append(Finding(code, severity, text, int(counts[form]), judged, hint, shown))
        return findings

    def _edge_findings(self, coded: np.ndarray) -> list[Finding]:
        findings: list[Finding] = []
        formats = coded & _FORMAT
        edge, filled = int(np.count_nonzero(coded & _EDGE)), int(np.count_nonzero(formats > CALL))
        if 0 < edge < (1 - MAJORITY) * filled:
            hint = "White space at the start or end is a token of its own to the model: strip it."
            text = "answers that begin or end with white space, where most do not"
            findings.append(Finding("edge-white-space", "suspect", text, edge, filled, hint, self._examples["edge"]))
        long = (formats == TEXT) & (np.frombuffer(self.words, np.int32) >= 20)
        cut, prose = int(np.count_nonzero(coded & _OPEN)), int(np.count_nonzero(long))
        if 0 < cut < 0.1 * prose:
            hint = "Where nearly all end with punctuation, these may be cut off: look at their last words."
            text = "answers of 20 words or more that end without punctuation"
            findings.append(Finding("cut-off", "suspect", text, cut, prose, hint, self._examples["open"]))
        return findings

    def _short_findings(self, formats: np.ndarray) -> list[Finding]:
        filled = formats > CALL
        words = np.frombuffer(self.words, np.int32)[filled]
        if not len(words) or np.median(words) < 10:
            return []
        short = np.flatnonzero(filled)[words <= 1]
        if not len(short):
            return []
        hint = f"The median answer has {int(np.median(words))} words: are these finished?"
        shown = [example for example in self._examples["short"] if filled[example.row]]
        return [
            Finding(
                "one-word-answers", "suspect", "answers of one word, where others are long", len(short), len(words), hint, shown
            )
        ]
