"""Keys and types of answers that are JSON objects, and which of them differ from the others.

An object's shape is its sorted keys with the types of their values. Shapes are kept in a table and a row keeps the number of
its own, 4 bytes; beyond 4,096 shapes keys are data, and no table can say what an answer should have.
"""

from array import array
from collections import Counter
from typing import Any

import jiter
import numpy as np

from tunesmith.data.answer_format import ARRAY, BROKEN, MAJORITY, OBJECT
from tunesmith.data.finding import SHOWN, Example, Finding, excerpt
from tunesmith.rundir.records.quality import JsonKey, JsonShapes

MOST_SHAPES = 4096  # distinct ones beyond which keys are data
MOST_CHARACTERS = 4096  # of the keys of one shape
MOST_KEYS = 50  # in the report
LONG = 1 << 20  # characters from which JSON in an answer is not parsed

_TYPES = {dict: "object", list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
Shape = tuple[str, tuple[str, ...], tuple[str, ...]]  # kind, keys, types


def shape_of(value: Any) -> Shape:
    """Kind, sorted keys and types of a JSON object's values; of an array, the set of its items' types."""
    if isinstance(value, dict):
        keys = tuple(sorted(value))
        return "object", keys, tuple(_TYPES[type(value[key])] for key in keys)
    return "array", (), tuple(sorted({_TYPES[type(item)] for item in value}))


class Shapes:
    """Collects the shapes of the answers over a stream: ``add`` the number that ``read`` gave for each row."""

    def __init__(self) -> None:
        self._rows = array("i")
        self._numbers: dict[Shape, int] = {}
        self._by_types: dict[tuple[tuple[str, ...], tuple[type, ...]], int] = {}  # the same, keys in the order of the answer
        self._not_judged = 0

    def add(self, number: int) -> None:
        """Append a row's shape, -1 for none."""
        self._rows.append(number)

    def read(self, text: str) -> tuple[int, int]:
        """Format and number of the shape; -1 for a shape that is not kept."""
        if len(text) > LONG:
            self._not_judged += 1
            return (OBJECT if text[0] == "{" else ARRAY), -1
        try:
            value = jiter.from_json(text.encode("utf-8", "surrogatepass"), allow_inf_nan=False)
        except ValueError:
            return BROKEN, -1
        form = OBJECT if isinstance(value, dict) else ARRAY
        raw = (
            (tuple(value), tuple(map(type, value.values()))) if form == OBJECT else ((), tuple(dict.fromkeys(map(type, value))))
        )
        number = self._by_types.get(raw, -1) if form == OBJECT else -1
        if number < 0:
            shape = shape_of(value)
            number = self._numbers.get(shape, -1)
            if number < 0 and len(self._numbers) < MOST_SHAPES and sum(map(len, shape[1])) <= MOST_CHARACTERS:
                number = self._numbers[shape] = len(self._numbers)
            if number >= 0 and form == OBJECT and len(self._by_types) < MOST_SHAPES:
                self._by_types[raw] = number
        self._not_judged += number < 0
        return form, number

    def report(self) -> JsonShapes | None:
        """Presence and types of each key, and the commonest key set; None without objects."""
        shapes, counts = self._objects()
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
        ranked = sorted(presence.items(), key=lambda item: (-item[1], item[0]))[:MOST_KEYS]
        return JsonShapes(
            objects=total,
            key_sets=sum(1 for count in sets.values() if count),
            common_keys=tuple(excerpt(key) for key in common),
            common_share=rows / total,
            keys={excerpt(key): JsonKey(share=count / total, types=dict(sorted(types[key].items()))) for key, count in ranked},
            not_judged=self._not_judged,
        )

    def _objects(self) -> tuple[list[Shape], np.ndarray]:
        codes = np.frombuffer(self._rows, np.int32)
        counts = np.bincount(codes[codes >= 0], minlength=len(self._numbers))
        numbers = [number for number, shape in enumerate(self._numbers) if shape[0] == "object"]
        shapes = list(self._numbers)
        return [shapes[number] for number in numbers], counts[numbers]

    def findings(self) -> list[Finding]:
        """Answers whose keys or types differ from the others', where objects are what the answers are meant to be."""
        report = self.report()
        if report is None:
            return []
        common, usual = set(report.common_keys), _usual_types(report)
        rare = {key for key, known in report.keys.items() if known.share < 0.01}
        keys_differ, types_differ = {}, {}
        for number, (kind, keys, kinds) in enumerate(self._numbers):
            if kind != "object":
                continue
            if report.common_share >= MAJORITY:
                differ = [f"missing {key!r}" for key in sorted(common.difference(keys))]
                differ += [f"extra {key!r}" for key in keys if key not in common]
            else:
                differ = [f"rare key {key!r}" for key in keys if key in rare]
            if differ:
                keys_differ[number] = excerpt(", ".join(differ))
            wrong = [f"{key!r} is {kind}, mostly {usual[key]}" for key, kind in zip(keys, kinds, strict=True)
                     if key in usual and kind not in (usual[key], "null")]  # fmt: skip
            if wrong:
                types_differ[number] = excerpt(", ".join(wrong))
        if report.common_share >= MAJORITY:
            text = "JSON answers whose keys differ from the commonest key set"
            hint = f"{report.common_share:.1%} have exactly: {excerpt(', '.join(report.common_keys))}."
        else:
            text = "JSON answers with a key that fewer than 1 % have"
            hint = "Keys vary from answer to answer here; a rare one may be a misspelling."
        findings = [self._finding("json-keys", text, hint, keys_differ, report.objects)]
        text = "JSON answers with a value of another type than 90 % have"
        hint = "Write one type: a parser behind the model expects it."
        findings.append(self._finding("json-types", text, hint, types_differ, report.objects))
        return [finding for finding in findings if finding.count]

    def _finding(self, code: str, text: str, hint: str, reasons: dict[int, str], total: int) -> Finding:
        codes = np.frombuffer(self._rows, np.int32)
        rows = np.flatnonzero(np.isin(codes, list(reasons)))
        shown = [Example(row, reasons[int(codes[row])]) for row in rows[:SHOWN].tolist()]
        return Finding(code, "suspect", text, len(rows), total, hint, shown)


def _usual_types(report: JsonShapes) -> dict[str, str]:
    """The type of each key that has one: 90 % of its values, null apart."""
    usual = {}
    for key, known in report.keys.items():
        kinds = {kind: count for kind, count in known.types.items() if kind != "null"}
        kind, count = max(kinds.items(), key=lambda item: (item[1], item[0]), default=("null", 0))
        if count >= 0.9 * sum(kinds.values()):
            usual[key] = kind
    return usual
