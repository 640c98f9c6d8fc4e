"""The quality report: what is in the rows that a person would not want to find out from the tuned model.

Everything is counted in one pass over a stream, since the data may be larger than memory: a row is looked at and
forgotten, and what stays of it is about 80 bytes of numbers (hashes, lengths, codes) in flat arrays. Questions that need
all rows at once (which repeat, which prompts have two answers, what the majority looks like) are asked of those arrays at
the end, by sorting. Nothing is removed or altered here: the report names rows, a person decides.

The alternative was a data frame of the texts with a query for each question: shorter to write, and 1 GB of JSONL would
take 3 GB of memory. The cost of the choice is that a finding made at the end can show a row's id and place but not its
text, unless an excerpt was kept on the way.

Findings are sorted by severity, then by share. All figures depend on the rows and their order alone, never on how they
were cut into batches.
"""

import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.data.answer_profile import Answers
from tunesmith.data.columns import columns
from tunesmith.data.finding import SHOWN, Example, Finding
from tunesmith.data.language import languages
from tunesmith.data.personal import PATTERNS, SECRETS, Personal
from tunesmith.data.sample import Sample, diversity, diversity_finding, openings
from tunesmith.data.size_advice import advice
from tunesmith.rundir.rows import Row

_BLOCK = 2048  # rows whose ids and places are compressed together
_TOGETHER = 1024  # rows looked at together: fewer, and patterns are compiled too often; more, and they leave the cache
_SEVERITIES = ("wrong", "suspect", "note")


class Places:
    """Ids and places of all rows, compressed: looked up for the few that are shown."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._open: list[str] = []

    def add(self, rows: list[Row]) -> None:
        """Append the rows of a batch."""
        self._open.extend([f"{row.id}\t{row.place}" for row in rows])
        while len(self._open) >= _BLOCK:
            self._blocks.append(zlib.compress("\0".join(self._open[:_BLOCK]).encode("utf-8", "surrogatepass"), 1))
            del self._open[:_BLOCK]

    def find(self, rows: set[int]) -> dict[int, dict[str, str]]:
        """``{"id", "place"}`` of each of ``rows``, by row number."""
        found, number, names = {}, -1, []
        for row in sorted(rows):
            if row // _BLOCK != number:
                number = row // _BLOCK
                whole = number < len(self._blocks)
                names = (
                    zlib.decompress(self._blocks[number]).decode("utf-8", "surrogatepass").split("\0") if whole else self._open
                )
            identity, _, place = names[row % _BLOCK].partition("\t")
            found[row] = {"id": identity, "place": place}
        return found


class PlaceColumn(Sequence[str]):
    """Ids (or places) of all rows as a sequence, each looked up when asked for."""

    def __init__(self, places: Places, name: str, rows: int):
        self._places, self._name, self._rows = places, name, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # no slices
        return self._places.find({row})[row][self._name]


class Quality:
    """Collects the report: ``add`` for each batch of rows as they are read, then ``report`` once.

    Attributes:
        places: ids and places of the rows.
    """

    def __init__(self) -> None:
        self.places = Places()
        self._answers = Answers()
        self._personal = Personal()
        self._sample = Sample()
        self._content, self._prompt, self._last = array("q"), array("q"), array("q")
        self._prompt_length, self._answer_length, self._whole_length = array("i"), array("i"), array("i")
        self._asks = bytearray()  # 1 where the row has a prompt: chat rows of two turns or more
        self._conversations: Counter[tuple[int, int, int]] = Counter()  # (turns, user turns, supervised turns) of chat rows
        self._supervised_length = 0
        self._waiting: list[Row] = []  # patterns are compiled for each look, which should be at many rows

    def add(self, rows: list[Row]) -> None:
        """Take in the next rows, any number. None is kept for longer than until there are 1,024 to be looked at together."""
        self.places.add(rows)
        self._waiting.extend(rows)
        if len(self._waiting) >= _TOGETHER:
            self._look()

    def _look(self) -> None:
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        first, batch = len(self._content), columns(rows)
        self._content.frombytes(batch.content.tobytes())
        self._prompt.frombytes(batch.prompt.tobytes())
        self._last.frombytes(batch.last.tobytes())
        self._asks += batch.asks.tobytes()
        self._prompt_length.frombytes(batch.prompt_length.tobytes())
        self._answer_length.frombytes(batch.answer_length.tobytes())
        self._whole_length.frombytes(batch.whole_length.tobytes())
        self._supervised_length += batch.supervised_length
        self._conversations.update(batch.conversations)
        self._personal.add(rows, batch.texts, batch.owners, first)
        self._answers.add(batch.answers, batch.called, batch.answer_texts)
        for number, row in enumerate(rows):
            if row.id < self._sample.threshold:
                asked = next((turn["content"] for turn in reversed(row.messages) if turn["role"] == "user"), "")
                asked = row.messages[0]["content"] if row.kind == "text" else asked
                self._sample.add(self._content[first + number], row.id, first + number, asked, batch.answers[number])

    def report(self) -> dict[str, Any]:
        """Everything found, as plain values for JSON.

        Returns:
            ``rows``, ``kinds``, ``turns`` and ``supervised_turns`` (number -> rows, of chat rows), ``single_turn`` (count,
            share, note), ``supervised_share`` (assistant characters by all characters), ``lengths`` (``prompt``,
            ``answer``, ``whole`` in characters and ``answer_words``: min, median, p95, p99, max, histogram, longest),
            ``duplicates``, ``prompts``, ``formats``, ``json``, ``classes``, ``languages``, ``diversity``, ``advice``, and
            ``findings``, the worst first, each with ``code``, ``severity``, ``text``, ``count``, ``of``, ``share``,
            ``hint`` and up to 20 ``examples`` (``id``, ``place``, and where useful ``excerpt`` and ``same_as``).
        """
        self._look()
        rows = len(self._content)
        sampled = self._sample.rows()
        duplicates, distinct, found = self._duplicates()
        prompts, conflicts = self._prompts(distinct)
        spoken, mixed = languages(sampled)
        diverse = diversity(sampled)
        single, single_found = self._single_turn()
        found += [*conflicts, *single_found, *mixed, *diversity_finding(diverse), *openings(sampled)]
        found += self._answers.findings() + self._personal_findings()
        found.sort(key=lambda finding: (_SEVERITIES.index(finding.severity), -finding.share, finding.code, finding.text))
        lengths = self._lengths()
        shown = {example.row for finding in found for example in finding.examples}
        shown |= {example.same_as for finding in found for example in finding.examples if example.same_as is not None}
        shown |= {row for length in lengths.values() for row, _ in length["longest"]}
        places = self.places.find(shown)
        for length in lengths.values():
            length["longest"] = [{**places[row], "value": value} for row, value in length["longest"]]
        turns, supervised_turns = Counter(), Counter()
        for (length, _, supervised), count in self._conversations.items():
            turns[length] += count
            supervised_turns[supervised] += count
        whole = int(np.frombuffer(self._whole_length, np.int32).sum(dtype=np.int64))
        return {
            "rows": rows,
            "kinds": {"chat": self._conversations.total(), "text": rows - self._conversations.total()},
            "turns": {str(number): turns[number] for number in sorted(turns)},
            "supervised_turns": {str(number): supervised_turns[number] for number in sorted(supervised_turns)},
            "single_turn": single,
            "supervised_share": self._supervised_length / whole if whole else 0.0,
            "lengths": lengths,
            "duplicates": duplicates,
            "prompts": prompts,
            "formats": self._answers.formats(),
            "json": self._answers.shapes(),
            "classes": self._answers.classes(),
            "languages": spoken,
            "diversity": diverse,
            "advice": advice(duplicates["distinct"], prompts["distinct"] if prompts["rows"] else None),
            "findings": [_as_dict(finding, places) for finding in found],
        }

    def _duplicates(self) -> tuple[dict[str, int], np.ndarray, list[Finding]]:
        """Figures, the numbers of the rows that are the first of their content, and the finding."""
        keys = np.frombuffer(self._content, np.int64)
        order, starts, sizes = _groups(keys)
        distinct = np.sort(order[starts])
        extra = len(keys) - len(distinct)
        figures = {"rows": extra, "distinct": len(distinct)}
        if not extra:
            return figures, distinct, []
        shown = [
            Example(int(order[starts[group] + 1]), f"{sizes[group]:,} times", int(order[starts[group]]))
            for group in np.lexsort((order[starts], -sizes))[:SHOWN]
            if sizes[group] > 1
        ]
        hint = "A row seen twice weighs twice, and may stand in train and test: remove the copies."
        text = "rows that repeat an earlier row exactly"
        return figures, distinct, [Finding("exact-duplicates", "suspect", text, extra, len(keys), hint, shown)]

    def _prompts(self, distinct: np.ndarray) -> tuple[dict[str, int], list[Finding]]:
        """Repeated prompts and conflicting answers, exact duplicates aside."""
        rows = distinct[np.frombuffer(self._asks, np.uint8)[distinct] == 1]
        if not len(rows):
            return {"rows": 0, "distinct": 0, "conflicting_prompts": 0, "conflicting_rows": 0}, []
        prompt, last = np.frombuffer(self._prompt, np.int64)[rows], np.frombuffer(self._last, np.int64)[rows]
        order, starts, sizes = _groups(prompt)
        first = last[order[np.repeat(starts, sizes)]]
        differs = last[order] != first
        conflicting = np.add.reduceat(differs, starts, dtype=np.int64) > 0
        conflicts, conflict_rows = int(conflicting.sum()), int(sizes[conflicting].sum())
        figures = {
            "rows": len(rows),
            "distinct": len(starts),
            "conflicting_prompts": conflicts,
            "conflicting_rows": conflict_rows,
        }
        found = []
        if len(starts) < len(rows):
            ranked = [group for group in np.lexsort((order[starts], -sizes))[:SHOWN] if sizes[group] > 1]
            shown = [
                Example(int(rows[order[starts[group] + 1]]), f"{sizes[group]:,} rows", int(rows[order[starts[group]]]))
                for group in ranked
            ]
            hint = "Rows of one prompt must stand in the same part: the split keeps them together."
            text = "rows that ask what an earlier row asks"
            found.append(Finding("repeated-prompts", "note", text, len(rows) - len(starts), len(rows), hint, shown))
        if conflicts:
            shown = []
            for group in np.flatnonzero(conflicting)[np.lexsort((order[starts][conflicting], -sizes[conflicting]))][:SHOWN]:
                members = slice(starts[group], starts[group] + sizes[group])
                other = order[members][differs[members]][0]
                shown.append(Example(int(rows[other]), f"{sizes[group]:,} rows", int(rows[order[starts[group]]])))
            hint = f"{conflicts:,} prompts have more than one answer: the model can only learn their mean. Keep the right one."
            severity = "wrong" if conflict_rows < 0.5 * len(rows) else "suspect"
            text = "rows whose prompt is answered differently elsewhere"
            found.append(Finding("conflicting-answers", severity, text, conflict_rows, len(rows), hint, shown))
        return figures, found

    def _single_turn(self) -> tuple[dict[str, Any], list[Finding]]:
        chats = self._conversations.total()
        single = sum(count for (_, users, _), count in self._conversations.items() if users <= 1)
        figures = {"count": single, "share": single / chats if chats else 0.0, "note": ""}
        if not chats or single < chats:
            return figures, []
        figures["note"] = "all rows are single-turn: a multi-turn chat was never shown"
        hint = "If users will answer back, add conversations of several turns; for one question and one answer this is right."
        return figures, [Finding("single-turn", "note", figures["note"], single, chats, hint)]

    def _lengths(self) -> dict[str, dict[str, Any]]:
        prompt, answer = np.frombuffer(self._prompt_length, np.int32), np.frombuffer(self._answer_length, np.int32)
        words, answered = np.frombuffer(self._answers.words, np.int32), np.flatnonzero(answer >= 0)
        asked = np.flatnonzero((prompt >= 0) & (np.frombuffer(self._asks, np.uint8) == 1))
        whole = np.frombuffer(self._whole_length, np.int32)
        return {
            "prompt": summary(prompt[asked], asked),
            "answer": summary(answer[answered], answered),
            "whole": summary(whole, np.arange(len(whole))),
            "answer_words": summary(words[answered], answered),
        }

    def _personal_findings(self) -> list[Finding]:
        found = []
        for pattern in PATTERNS:
            seen = self._personal.found.get(pattern.code)
            if seen is None:
                continue
            secret = pattern.code in SECRETS
            hint = (
                "Revoke it, and remove it from the data: a tuned model repeats rare strings word for word."
                if secret
                else "Whose is it, and may the model tell it to anybody? Replace what is not needed by made-up values."
            )
            text = f"rows with what looks like: {pattern.name} ({seen.matches:,} in all)"
            shown = [Example(row, f"{role}: {shown}") for row, role, shown in seen.examples]
            severity = "wrong" if secret else "suspect"
            found.append(Finding(pattern.code, severity, text, seen.rows, len(self._content), hint, shown))
        return found


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equal keys together: positions in stable order, where each group starts in that order, and its size."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), ranked[1:] != ranked[:-1]]))
    return order, starts, np.diff(np.append(starts, len(keys)))


def histogram(values: np.ndarray, log: bool = True, bins: int = 40) -> dict[str, list[float]]:
    """Counts of non-negative values in bins.

    Args:
        values: one-dimensional.
        log: bins of equal width in the logarithm, with a bin of its own for values below 1; else of equal width.
        bins: at most this many (and one for zero); whole numbers get whole edges, so fewer where values are small.

    Returns:
        ``edges`` (one more than counts, rising; a bin holds ``edges[i] <= value < edges[i + 1]``) and ``counts``, which
        add up to the number of values; both empty without values.
    """
    if not len(values):
        return {"edges": [], "counts": []}
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer)
    end = high + 1 if whole else np.nextafter(high, np.inf)
    if log:
        rising = np.geomspace(max(low, 1.0), max(end, 2.0), bins + 1)
        rising[-1] = max(end, 2.0)
    else:
        rising = np.linspace(low, end, bins + 1)
    edges = np.unique(np.rint(rising) if whole else rising)
    if log and low < 1:
        edges = np.unique(np.append(edges, 0.0))
    counts = np.histogram(values, edges)[0]
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def summary(values: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Order statistics and histogram of ``values``, and the ten largest as (row, value); ``rows`` numbers the values."""
    if not len(values):
        return {"count": 0, "histogram": histogram(values), "longest": []}
    median, p95, p99 = np.percentile(values, [50, 95, 99], method="inverted_cdf").tolist()
    top = np.lexsort((rows, -values))[:10]
    return {
        "count": len(values),
        "min": int(values.min()),
        "median": median,
        "p95": p95,
        "p99": p99,
        "max": int(values.max()),
        "histogram": histogram(values),
        "longest": [(int(rows[position]), int(values[position])) for position in top],
    }


def _as_dict(finding: Finding, places: dict[int, dict[str, str]]) -> dict[str, Any]:
    shown = []
    for example in finding.examples:
        entry: dict[str, Any] = dict(places[example.row])
        if example.excerpt:
            entry["excerpt"] = example.excerpt
        if example.same_as is not None:
            entry["same_as"] = places[example.same_as]
        shown.append(entry)
    return {
        "code": finding.code,
        "severity": finding.severity,
        "text": finding.text,
        "count": finding.count,
        "of": finding.of,
        "share": finding.share,
        "hint": finding.hint,
        "examples": shown,
    }


def headlines(report: dict[str, Any], limit: int = 12) -> list[str]:
    """The report in short, for the terminal: a line for the whole, one a finding (the worst ``limit``), then the advice."""
    lengths, duplicates = report["lengths"], report["duplicates"]
    line = f"{report['rows']:,} rows ({duplicates['distinct']:,} distinct)"
    if report["kinds"]["chat"]:
        turns = [int(number) for number in report["turns"]]
        line += f", {min(turns)} to {max(turns)} turns" if min(turns) < max(turns) else f", {turns[0]} turns"
        line += f", {report['supervised_share']:.0%} of the characters supervised"
    if lengths["answer"]["count"]:
        answer = lengths["answer"]
        line += f"; answers of {answer['min']:,} to {answer['max']:,} characters (median {answer['median']:,})"
    lines = [line]
    for finding in report["findings"][:limit]:
        first = ", ".join(f"{example['place']} ({example['id']})" for example in finding["examples"][:3])
        share = f"{finding['count']:,} of {finding['of']:,} ({finding['share']:.2%})"
        lines.append(f"{finding['severity']}: {share} {finding['text']}" + (f": {first}" if first else ""))
    if len(report["findings"]) > limit:
        lines.append(f"{len(report['findings']) - limit} more findings are in the report.")
    if report["rows"]:
        lines.append(f"{report['advice']['band']} rows: {' '.join(report['advice']['sentences'])}")
    return lines
