"""What the answers look like, and which of them do not look like the others.

A model learns the format of its answers before anything else, so one answer in a hundred with a code fence around its
JSON, or ``positive.`` among ``Positive``, becomes one wrong output in a hundred, in production, for ever. Nothing here
knows what the format should be: the majority decides, and a minority is shown with its rows. A schema would be a better
judge where there is one (``task.json_schema`` measures with it); this finds the broken rows before anybody wrote one.

Per row it keeps about 14 bytes: the format (1), words (4), the shape of a JSON answer (4) and the number of a short
answer (4), the last two as indices into tables that are bounded. The answer itself is forgotten, but for the first twenty
excerpts of each kind.
"""

import math
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jiter
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.data.finding import SHOWN, Example, Finding, examples, excerpt

FORMATS = ("none", "empty", "tool call", "JSON object", "JSON array", "broken JSON", "code fence", "number", "text")
NONE, EMPTY, CALL, OBJECT, ARRAY, BROKEN, FENCED, NUMBER, TEXT = range(len(FORMATS))
_FORMAT, _EDGE, _OPEN = 0x0F, 0x80, 0x40  # one byte a row: format, white space at an edge, no final punctuation

MAJORITY = 0.6  # share from which one format is what the answers are meant to have
_SHORT = 64  # characters of an answer that may be a class
_MAX_SHORT = 10_000  # distinct short answers beyond which answers are no classes
_MAX_CLASSES = 50
_MAX_SHAPES = 4096  # distinct JSON shapes beyond which keys are data
_MAX_SHAPE = 4096  # characters of the keys of one shape
_LONG = 1 << 20  # characters from which JSON in an answer is not parsed

_NUMBER = re.compile(r"[-+]?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?\s?%?")
_CLOSED = frozenset(".!?:;\"'”’»)]}>`*_|…。！？」』）।؟")
_TYPES = {dict: "object", list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}

# Phrases of other assistants. RE2 reads all forms at once over every answer, Python tells them apart on the hits. RE2 sees
# bytes: the curly apostrophe is an alternative, since in a class it would be three letters.
PHRASES = {
    "as-an-ai": (
        r"\bas an? (?:large )?(?:ai|language|artificial intelligence)\b"
        r"|\bi(?:(?:'|’)m| am) (?:just )?an? (?:ai|language model)\b",
        'speak of themselves as an AI ("As an AI language model")',
        "Answers copied from another assistant teach its disclaimers; rewrite or leave them out.",
    ),
    "refusal": (
        r"\bi(?:(?:'|’)m| am) (?:sorry|afraid),? (?:but )?(?:i|that)\b"
        r"|\bi(?: cannot| can(?:'|’)?t| can not| won(?:'|’)?t| am unable to|(?:'|’)m unable to| am not able to) "
        r"(?:help|assist|provide|fulfil|comply|answer|do that|engage|create|generate|support)",
        'refuse ("I\'m sorry, but I cannot help")',
        "Refusals spread: a few per cent in training teach refusing ordinary questions. Keep those that are meant.",
    ),
    "knowledge-cutoff": (
        r"\bknowledge cut-?off\b"
        r"|\bas of my (?:last|latest|most recent) (?:knowledge |training )?(?:update|data)\b",
        "mention the knowledge cutoff of another model",
        "Facts about another model become false claims of this one.",
    ),
    "filler-opening": (
        r"^\s*(?:sure|certainly|of course|absolutely|great question)\b[!,.:]"
        r"|^\s*(?:sure|certainly)[^.!\n]{0,20}[!,]? here(?: is| are|(?:'|’)s)\b",
        'open with filler ("Sure! Here is ...")',
        "Filler is learned first and breaks programs that read the answer; strip it unless it is wanted.",
    ),
}
_PHRASE_FORMS = {code: re.compile(form, re.IGNORECASE) for code, (form, _, _) in PHRASES.items()}
_ANY_PHRASE = "(?i)" + "|".join(form for form, _, _ in PHRASES.values())


def _is_prose(first: str, last: str) -> bool:
    """Whether an answer that begins and ends so, and is too long for a class or a number, is text and nothing else."""
    return first not in "{[`" and not first.isspace() and not last.isspace()


def shape_of(value: Any) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Kind, sorted keys and types of a JSON object's values; of an array, the set of its items' types."""
    if isinstance(value, dict):
        keys = tuple(sorted(value))
        return "object", keys, tuple(_TYPES[type(value[key])] for key in keys)
    return "array", (), tuple(sorted({_TYPES[type(item)] for item in value}))


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
    """Collects formats, shapes, classes and phrases over a stream of answers; ``findings`` and ``tables`` read them out."""

    def __init__(self) -> None:
        self.words = array("i")
        self._formats = bytearray()
        self._shapes = array("i")
        self._shape_numbers: dict[tuple[str, tuple[str, ...], tuple[str, ...]], int] = {}
        self._raw_shapes: dict[tuple[tuple[str, ...], tuple[type, ...]], int] = {}
        self._unread_shapes = 0
        self._short: array[int] | None = array("i")
        self._short_numbers: dict[str, int] = {}
        self._phrases: dict[str, int] = dict.fromkeys(PHRASES, 0)
        self._seen: dict[str, list[Example]] = {}

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
        hits = pc.call_function("match_substring_regex", [texts], pc.MatchSubstringOptions(_ANY_PHRASE)).to_numpy(
            zero_copy_only=False
        )
        for position in np.flatnonzero(hits).tolist():
            answer = answers[position] or ""
            for code, form in _PHRASE_FORMS.items():
                match = form.search(answer)
                if match:
                    self._phrases[code] += 1
                    self._show(code, first + position, answer[match.start() :])

    def _add_one(self, row: int, answer: str | None, calls: bool, words: int) -> None:
        form, shape, short = NONE, -1, -1
        if answer is not None and words > 1 and len(answer) > _SHORT and _is_prose(answer[0], answer[-1]):
            form = TEXT  # as below, in a third of the time: nearly all answers of most chats
            if words >= 20 and answer[-1] not in _CLOSED:
                self._show("open", row, answer, tail=True)
                form |= _OPEN
            if len(self._seen.get(FORMATS[TEXT], ())) < SHOWN:
                self._show(FORMATS[TEXT], row, answer)
        elif answer is not None:
            stripped = answer.strip()
            start = stripped[:1]
            if not stripped:
                form = CALL if calls else EMPTY
            elif start in "{[":
                form, shape = self._read_json(stripped)
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
            if len(answer) <= _SHORT and self._short is not None and stripped and not calls:
                short = self._short_numbers.setdefault(answer, len(self._short_numbers))
            self._show(FORMATS[form & _FORMAT], row, stripped)
            if words <= 1:
                self._show("short", row, stripped)
        self._formats.append(form)
        self._shapes.append(shape)
        if self._short is not None:
            self._short.append(short)
            if len(self._short_numbers) > _MAX_SHORT:
                self._short, self._short_numbers = None, {}

    def _show(self, kind: str, row: int, text: str, tail: bool = False) -> None:
        kept = self._seen.setdefault(kind, [])
        if len(kept) < SHOWN:
            kept.append(Example(row, excerpt(text, tail)))

    def _read_json(self, text: str) -> tuple[int, int]:
        """Format and number of the shape; -1 for a shape that is not kept."""
        if len(text) > _LONG:
            self._unread_shapes += 1
            return (OBJECT if text[0] == "{" else ARRAY), -1
        try:
            value = jiter.from_json(text.encode("utf-8", "surrogatepass"), allow_inf_nan=False)
        except ValueError:
            return BROKEN, -1
        form = OBJECT if isinstance(value, dict) else ARRAY
        raw = (
            (tuple(value), tuple(map(type, value.values()))) if form == OBJECT else ((), tuple(dict.fromkeys(map(type, value))))
        )
        number = self._raw_shapes.get(raw, -1) if form == OBJECT else -1
        if number < 0:
            shape = shape_of(value)
            number = self._shape_numbers.get(shape, -1)
            if number < 0 and len(self._shape_numbers) < _MAX_SHAPES and sum(map(len, shape[1])) <= _MAX_SHAPE:
                number = self._shape_numbers[shape] = len(self._shape_numbers)
            if number >= 0 and form == OBJECT and len(self._raw_shapes) < _MAX_SHAPES:
                self._raw_shapes[raw] = number
        self._unread_shapes += number < 0
        return form, number

    def findings(self) -> list[Finding]:
        """Everything about the answers that is worth a look, in no order."""
        coded = np.frombuffer(bytes(self._formats), np.uint8)
        formats = coded & _FORMAT
        found = self._format_findings(formats) + self._edge_findings(coded) + self._short_findings(formats)
        found += self._shape_findings(formats)
        found += self._class_findings(formats)
        answered = int(np.count_nonzero(formats != NONE))
        for code, count in self._phrases.items():
            if count:
                _, text, hint = PHRASES[code]
                severity = "note" if code == "filler-opening" else "suspect"
                found.append(Finding(code, severity, f"answers that {text}", count, answered, hint, self._seen[code]))
        return found

    def formats(self) -> dict[str, Any]:
        """How many answers have each format, and the one that at least 60 % of them have (tool calls aside), or None."""
        counts = np.bincount(np.frombuffer(bytes(self._formats), np.uint8) & _FORMAT, minlength=len(FORMATS))
        return {
            "counts": {name: int(count) for name, count in zip(FORMATS, counts, strict=True) if count and name != "none"},
            "majority": _majority(counts),
        }

    def _format_findings(self, formats: np.ndarray) -> list[Finding]:
        counts = np.bincount(formats, minlength=len(FORMATS))
        judged = int(counts[OBJECT:].sum())
        majority = _majority(counts)
        found = []
        if counts[EMPTY]:
            answered = int(counts[EMPTY:].sum())
            hint = "An empty answer teaches to say nothing; leave the row out or fill it in."
            found.append(
                Finding(
                    "empty-answers", "wrong", "answers that are empty", int(counts[EMPTY]), answered, hint, self._seen["empty"]
                )
            )
        if majority in (None, "text"):
            return found
        hint = f"{counts[FORMATS.index(majority)] / judged:.1%} of the answers are: {majority}. Bring these into the same form."
        for form in (OBJECT, ARRAY, BROKEN, FENCED, NUMBER, TEXT):
            if counts[form] and FORMATS[form] != majority:
                code, text = {
                    BROKEN: ("broken-json", "answers that begin like JSON and do not parse"),
                    FENCED: ("fenced-answers", "answers inside a code fence, where most are bare"),
                }.get(form, ("other-format", f"answers that are {FORMATS[form]}, where most are {majority}"))
                severity = "suspect" if code == "other-format" else "wrong"
                shown = self._seen[FORMATS[form]]
                found.append(Finding(code, severity, text, int(counts[form]), judged, hint, shown))
        return found

    def _edge_findings(self, coded: np.ndarray) -> list[Finding]:
        found, formats = [], coded & _FORMAT
        edge, filled = int(np.count_nonzero(coded & _EDGE)), int(np.count_nonzero(formats > CALL))
        if 0 < edge < (1 - MAJORITY) * filled:
            hint = "White space at the start or end is a token of its own to the model: strip it."
            text = "answers that begin or end with white space, where most do not"
            found.append(Finding("edge-white-space", "suspect", text, edge, filled, hint, self._seen["edge"]))
        long = (formats == TEXT) & (np.frombuffer(self.words, np.int32) >= 20)
        cut, prose = int(np.count_nonzero(coded & _OPEN)), int(np.count_nonzero(long))
        if 0 < cut < 0.1 * prose:
            hint = "Where nearly all end with punctuation, these may be cut off: look at their last words."
            text = "answers of 20 words or more that end without punctuation"
            found.append(Finding("cut-off", "suspect", text, cut, prose, hint, self._seen["open"]))
        return found

    def _short_findings(self, formats: np.ndarray) -> list[Finding]:
        filled = formats > CALL
        words = np.frombuffer(self.words, np.int32)[filled]
        if not len(words) or np.median(words) < 10:
            return []
        short = np.flatnonzero(filled)[words <= 1]
        if not len(short):
            return []
        hint = f"The median answer has {int(np.median(words))} words: are these finished?"
        shown = [example for example in self._seen["short"] if filled[example.row]]
        return [
            Finding(
                "one-word-answers", "suspect", "answers of one word, where others are long", len(short), len(words), hint, shown
            )
        ]

    def _ranked(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Numbers of the classes, the largest first, and the rows of every short answer; None where there are no classes."""
        answered = len(self._formats) - self._formats.count(NONE) - self._formats.count(CALL)
        if self._short is None or not self._short_numbers or not answered:
            return None
        codes = np.frombuffer(self._short, np.int32)
        counts = np.bincount(codes[codes >= 0], minlength=len(self._short_numbers))
        ranked = np.argsort(-counts, kind="stable")
        if len(ranked) > _MAX_CLASSES:
            ranked = ranked[:_MAX_CLASSES]
            ranked = ranked[counts[ranked] > 1]
        if counts[ranked].sum() < 0.9 * answered or answered < max(20, 5 * len(ranked)):
            return None
        return ranked, counts

    def classes(self) -> dict[str, Any] | None:
        """Class balance, where at most 50 short answers cover 90 % of the rows and each has 5 rows on average.

        Returns:
            ``counts`` (answer -> rows, the largest first), ``covered``, ``majority_share``, ``entropy_bits`` and
            ``entropy_share`` (1 is balanced), ``below_10`` (answers with fewer than 10 rows); None for other data.
        """
        found = self._ranked()
        if found is None:
            return None
        ranked, counts = found
        names = list(self._short_numbers)
        shares = counts[ranked] / counts[ranked].sum()
        entropy = float(-(shares * np.log2(shares)).sum()) + 0.0
        named: Counter[str] = Counter()
        for number in ranked.tolist():
            named[excerpt(names[number])] += int(counts[number])
        return {
            "counts": dict(named.most_common()),
            "covered": int(counts[ranked].sum()),
            "majority_share": float(shares[0]),
            "entropy_bits": entropy,
            "entropy_share": entropy / math.log2(len(ranked)) if len(ranked) > 1 else 0.0,
            "below_10": [excerpt(names[number]) for number in ranked.tolist() if counts[number] < 10],
        }

    def _class_findings(self, formats: np.ndarray) -> list[Finding]:
        ranking = self._ranked()
        if ranking is None or self._short is None:
            return []
        ranked, counts = ranking
        codes, names = np.frombuffer(self._short, np.int32), [excerpt(name) for name in self._short_numbers]
        covered = int(counts[ranked].sum())
        found = []
        groups: dict[str, list[int]] = {}
        spelled = list(self._short_numbers)
        for number in np.argsort(-counts, kind="stable").tolist():
            groups.setdefault(folded_label(spelled[number]), []).append(number)
        variants = {number: group[0] for group in groups.values() for number in group[1:]}
        if variants:
            rows = np.flatnonzero(np.isin(codes, list(variants)))
            shown = [
                Example(row, f"{names[codes[row]]!r}, elsewhere {names[variants[int(codes[row])]]!r}")
                for row in rows[:SHOWN].tolist()
            ]
            hint = "To an exact metric, and to the program behind it, these are different answers: write one of them."
            text = "answers that spell a class in another way"
            found.append(Finding("label-variants", "wrong", text, len(rows), covered, hint, shown))
        other = np.flatnonzero(~np.isin(codes, [*ranked.tolist(), *variants]) & (formats > CALL))
        if len(other):
            hint = f"{covered:,} answers are one of {len(ranked)} short ones; is there a class for these?"
            shown = [Example(row, names[codes[row]] if codes[row] >= 0 else "") for row in other[:SHOWN].tolist()]
            text = "answers that are none of the classes"
            found.append(Finding("not-a-class", "suspect", text, len(other), covered + len(other), hint, shown))
        rare = [number for number in ranked.tolist() if counts[number] < 10 and number not in variants]
        if rare:
            rows = np.flatnonzero(np.isin(codes, rare))
            listed = ", ".join(f"{names[number]!r} {counts[number]}" for number in rare[:10])
            hint = f"{listed}. A class needs tens of rows to be learned and to be measured: collect more, or merge it."
            text = "answers of a class with fewer than 10 rows"
            found.append(Finding("rare-classes", "note", text, len(rows), covered, hint, examples(rows)))
        share = counts[ranked[0]] / covered
        if share >= 0.8 and len(ranked) > 1:
            hint = f"Always answering {names[ranked[0]]!r} scores {share:.0%}: choose macro F1, or balance the classes."
            text = "answers that are the largest class"
            found.append(Finding("imbalance", "note", text, int(counts[ranked[0]]), covered, hint))
        return found

    def shapes(self) -> dict[str, Any] | None:
        """Keys of JSON object answers: presence and types of each, and the commonest key set; None without objects."""
        shapes, counts = self._object_shapes()
        total = int(counts.sum())
        if not total:
            return None
        presence, types, sets = Counter(), {}, Counter()
        for (_, keys, kinds), count in zip(shapes, counts.tolist(), strict=True):
            sets[keys] += count
            for key, kind in zip(keys, kinds, strict=True):
                presence[key] += count
                types.setdefault(key, Counter())[kind] += count
        common, rows = min(sets.items(), key=lambda item: (-item[1], item[0])) if sets else ((), 0)
        ranked = sorted(presence.items(), key=lambda item: (-item[1], item[0]))[:_MAX_CLASSES]
        return {
            "objects": total,
            "key_sets": sum(1 for count in sets.values() if count),
            "common_keys": [excerpt(key) for key in common],
            "common_share": rows / total,
            "keys": {
                excerpt(key): {"share": count / total, "types": dict(sorted(types[key].items()))} for key, count in ranked
            },
            "not_judged": self._unread_shapes,
        }

    def _object_shapes(self) -> tuple[list[tuple[str, tuple[str, ...], tuple[str, ...]]], np.ndarray]:
        codes = np.frombuffer(self._shapes, np.int32)
        counts = np.bincount(codes[codes >= 0], minlength=len(self._shape_numbers))
        numbers = [number for number, shape in enumerate(self._shape_numbers) if shape[0] == "object"]
        shapes = list(self._shape_numbers)
        return [shapes[number] for number in numbers], counts[numbers]

    def _shape_findings(self, formats: np.ndarray) -> list[Finding]:
        summary = self.shapes()
        if summary is None or _majority(np.bincount(formats, minlength=len(FORMATS))) != FORMATS[OBJECT]:
            return []
        common, total = set(summary["common_keys"]), summary["objects"]
        types = {}
        for key, known in summary["keys"].items():
            kinds = {kind: count for kind, count in known["types"].items() if kind != "null"}
            kind, count = max(kinds.items(), key=lambda item: (item[1], item[0]), default=("null", 0))
            if count >= 0.9 * sum(kinds.values()):
                types[key] = kind
        rare = {key for key, known in summary["keys"].items() if known["share"] < 0.01}
        keys_differ, types_differ = {}, {}
        for number, (kind, keys, kinds) in enumerate(self._shape_numbers):
            if kind != "object":
                continue
            if summary["common_share"] >= MAJORITY:
                differ = [f"missing {key!r}" for key in sorted(common.difference(keys))]
                differ += [f"extra {key!r}" for key in keys if key not in common]
            else:
                differ = [f"rare key {key!r}" for key in keys if key in rare]
            if differ:
                keys_differ[number] = excerpt(", ".join(differ))
            wrong = [f"{key!r} is {kind}, mostly {types[key]}" for key, kind in zip(keys, kinds, strict=True)
                     if key in types and kind not in (types[key], "null")]  # fmt: skip
            if wrong:
                types_differ[number] = excerpt(", ".join(wrong))
        if summary["common_share"] >= MAJORITY:
            text = "JSON answers whose keys differ from the commonest key set"
            hint = f"{summary['common_share']:.1%} have exactly: {excerpt(', '.join(summary['common_keys']))}."
        else:
            text = "JSON answers with a key that fewer than 1 % have"
            hint = "Keys vary from answer to answer here; a rare one may be a misspelling."
        found = [self._by_shape("json-keys", text, hint, keys_differ, total)]
        text = "JSON answers with a value of another type than 90 % have"
        found.append(
            self._by_shape("json-types", text, "Write one type: a parser behind the model expects it.", types_differ, total)
        )
        return [finding for finding in found if finding.count]

    def _by_shape(self, code: str, text: str, hint: str, reasons: dict[int, str], total: int) -> Finding:
        codes = np.frombuffer(self._shapes, np.int32)
        rows = np.flatnonzero(np.isin(codes, list(reasons)))
        shown = [Example(row, reasons[int(codes[row])]) for row in rows[:SHOWN].tolist()]
        return Finding(code, "suspect", text, len(rows), total, hint, shown)


def _majority(counts: np.ndarray) -> str | None:
    """The format that at least 60 % of the filled answers have; broken JSON is nobody's intention."""
    judged = counts[OBJECT:].copy()
    judged[BROKEN - OBJECT] = 0
    best = int(np.argmax(judged)) + OBJECT
    return FORMATS[best] if counts[best] and counts[best] >= MAJORITY * counts[OBJECT:].sum() else None


def folded_label(label: str) -> str:
    """``label`` without case, outer punctuation, and the difference of space, hyphen and underscore.

    Leading signs and inner punctuation stay: ``-1`` is not ``1``, ``C#`` is not ``C``.
    """
    bare = label.strip().strip("\"'`*").rstrip(" .,;:!?\"'`*")
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", " ", bare).casefold() or label
