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

from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np

from tunesmith.data.answer_profile import Answers
from tunesmith.data.columns import columns
from tunesmith.data.finding import SHOWN, Example, Finding, recorded
from tunesmith.data.language import languages
from tunesmith.data.lengths import summary
from tunesmith.data.misread import Misread
from tunesmith.data.personal import PATTERNS, SECRETS, Personal
from tunesmith.data.places import Places
from tunesmith.data.sample import Sample, diversity, diversity_finding, openings
from tunesmith.data.size_advice import advice
from tunesmith.data.task_columns import task_finding
from tunesmith.rundir.records.check import Reading
from tunesmith.rundir.records.quality import (
    CheckFinding,
    Duplicates,
    Prompts,
    QualityLengths,
    QualityReport,
    SingleTurn,
)
from tunesmith.rundir.rows import Row

_TOGETHER = 1024  # rows looked at together: fewer, and patterns are compiled too often; more, and they leave the cache
_SEVERITIES = ("wrong", "suspect", "note")


class Quality:
    """Collects the report: ``add`` for each batch of rows as they are read, then ``report`` once.

    Args:
        reasoning_is_text: whether reasoning in the text of an answer is meant as text (``data.reasoning: keep``).

    Attributes:
        places: ids and places of the rows.
    """

    def __init__(self, *, reasoning_is_text: bool = False):
        self.places = Places()
        self._misread = Misread(reasoning_is_text=reasoning_is_text)
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
        self._misread.add(rows, batch.texts, first)
        self._answers.add(batch.answers, batch.called, batch.answer_texts)
        for number, row in enumerate(rows):
            if row.id < self._sample.threshold:
                question = next((turn["content"] for turn in reversed(row.messages) if turn["role"] == "user"), "")
                question = row.messages[0]["content"] if row.kind == "text" else question
                self._sample.add(self._content[first + number], row.id, first + number, question, batch.answers[number])

    def report(self, reading: Reading | None = None) -> QualityReport:
        """What is in the rows.

        Args:
            reading: how they were read, where they came from a source: what stands beside them is looked at too.
        """
        self._look()
        rows = len(self._content)
        sampled = self._sample.rows()
        duplicates, distinct, findings = self._duplicates()
        prompts, conflicts = self._prompts(distinct)
        spoken, mixed = languages(sampled)
        diverse = diversity(sampled)
        single, single_finding = self._single_turn()
        findings += [*conflicts, *single_finding, *mixed, *diversity_finding(diverse), *openings(sampled)]
        findings += self._answers.findings() + self._personal_findings() + self._misread.findings(rows)
        findings += [] if reading is None else task_finding(reading)
        findings.sort(key=lambda finding: (_SEVERITIES.index(finding.severity), -finding.share, finding.code, finding.text))
        shown = {example.row for finding in findings for example in finding.examples}
        shown |= {example.same_as for finding in findings for example in finding.examples if example.same_as is not None}
        places = self.places.find(shown)
        turns, supervised_turns = Counter(), Counter()
        for (length, _, supervised), count in self._conversations.items():
            turns[length] += count
            supervised_turns[supervised] += count
        whole = int(np.frombuffer(self._whole_length, np.int32).sum(dtype=np.int64))
        return QualityReport(
            rows=rows,
            chat_rows=self._conversations.total(),
            text_rows=rows - self._conversations.total(),
            turns={str(number): turns[number] for number in sorted(turns)},
            supervised_turns={str(number): supervised_turns[number] for number in sorted(supervised_turns)},
            single_turn=single,
            supervised_share=self._supervised_length / whole if whole else 0.0,
            lengths=self._lengths(),
            duplicates=duplicates,
            prompts=prompts,
            formats=self._answers.formats(),
            json=self._answers.shapes(),
            classes=self._answers.classes(),
            languages=spoken,
            diversity=diverse,
            advice=advice(duplicates.distinct, prompts.distinct if prompts.rows else None),
            findings=tuple(recorded(finding, places) for finding in findings),
        )

    def _duplicates(self) -> tuple[Duplicates, np.ndarray, list[Finding]]:
        """Figures, the numbers of the rows that are the first of their content, and the finding."""
        keys = np.frombuffer(self._content, np.int64)
        order, starts, sizes = _groups(keys)
        distinct = np.sort(order[starts])
        extra = len(keys) - len(distinct)
        figures = Duplicates(rows=extra, distinct=len(distinct))
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

    def _prompts(self, distinct: np.ndarray) -> tuple[Prompts, list[Finding]]:
        """Repeated prompts and conflicting answers, exact duplicates aside."""
        rows = distinct[np.frombuffer(self._asks, np.uint8)[distinct] == 1]
        if not len(rows):
            return Prompts(), []
        prompt, last = np.frombuffer(self._prompt, np.int64)[rows], np.frombuffer(self._last, np.int64)[rows]
        order, starts, sizes = _groups(prompt)
        first = last[order[np.repeat(starts, sizes)]]
        differs = last[order] != first
        conflicting = np.add.reduceat(differs, starts, dtype=np.int64) > 0
        conflicts, conflict_rows = int(conflicting.sum()), int(sizes[conflicting].sum())
        figures = Prompts(rows=len(rows), distinct=len(starts), conflicting_prompts=conflicts, conflicting_rows=conflict_rows)
        findings: list[Finding] = []
        if len(starts) < len(rows):
            ranked = [group for group in np.lexsort((order[starts], -sizes))[:SHOWN] if sizes[group] > 1]
            shown = [
                Example(int(rows[order[starts[group] + 1]]), f"{sizes[group]:,} rows", int(rows[order[starts[group]]]))
                for group in ranked
            ]
            hint = "Rows of one prompt must stand in the same part: the split keeps them together."
            text = "rows that ask what an earlier row asks"
            findings.append(Finding("repeated-prompts", "note", text, len(rows) - len(starts), len(rows), hint, shown))
        if conflicts:
            shown = []
            for group in np.flatnonzero(conflicting)[np.lexsort((order[starts][conflicting], -sizes[conflicting]))][:SHOWN]:
                members = slice(starts[group], starts[group] + sizes[group])
                other = order[members][differs[members]][0]
                shown.append(Example(int(rows[other]), f"{sizes[group]:,} rows", int(rows[order[starts[group]]])))
            hint = f"{conflicts:,} prompts have more than one answer: the model can only learn their mean. Keep the right one."
            severity = "wrong" if conflict_rows < 0.5 * len(rows) else "suspect"
            text = "rows whose prompt is answered differently elsewhere"
            findings.append(Finding("conflicting-answers", severity, text, conflict_rows, len(rows), hint, shown))
        return figures, findings

    def _single_turn(self) -> tuple[SingleTurn, list[Finding]]:
        chats = self._conversations.total()
        single = sum(count for (_, users, _), count in self._conversations.items() if users <= 1)
        if not chats or single < chats:
            return SingleTurn(count=single, share=single / chats if chats else 0.0, note=""), []
        note = "all rows are single-turn: a multi-turn chat was never shown"
        hint = "If users will answer back, add conversations of several turns; for one question and one answer this is right."
        return SingleTurn(count=single, share=1.0, note=note), [Finding("single-turn", "note", note, single, chats, hint)]

    def _lengths(self) -> QualityLengths:
        prompt, answer = np.frombuffer(self._prompt_length, np.int32), np.frombuffer(self._answer_length, np.int32)
        words, with_answer = np.frombuffer(self._answers.words, np.int32), np.flatnonzero(answer >= 0)
        with_prompt = np.flatnonzero((prompt >= 0) & (np.frombuffer(self._asks, np.uint8) == 1))
        whole, find = np.frombuffer(self._whole_length, np.int32), self.places.find
        return QualityLengths(
            prompt=summary(prompt[with_prompt], with_prompt, find),
            answer=summary(answer[with_answer], with_answer, find),
            whole=summary(whole, np.arange(len(whole)), find),
            answer_words=summary(words[with_answer], with_answer, find),
        )

    def _personal_findings(self) -> list[Finding]:
        findings: list[Finding] = []
        for pattern in PATTERNS:
            seen = self._personal.by_code.get(pattern.code)
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
            findings.append(Finding(pattern.code, severity, text, seen.rows, len(self._content), hint, shown))
        return findings


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equal keys together: positions in stable order, where each group starts in that order, and its size."""
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), ranked[1:] != ranked[:-1]]))
    return order, starts, np.diff(np.append(starts, len(keys)))


def headlines(report: QualityReport, limit: int = 12) -> tuple[str, ...]:
    """The report in short, for the terminal: a line for the whole, one a finding (the worst ``limit``), then the advice.

    What is wrong brings its hint.
    """
    line = f"{report.rows:,} rows ({report.duplicates.distinct:,} distinct)"
    if report.chat_rows:
        turns = [int(number) for number in report.turns]
        line += f", {min(turns)} to {max(turns)} turns" if min(turns) < max(turns) else f", {turns[0]} turns"
        line += f", {report.supervised_share:.0%} of the characters supervised"
    answer = report.lengths.answer
    if answer.count:
        line += f"; answers of {answer.min:,} to {answer.max:,} characters (median {answer.median:,})"
    lines = [line]
    for finding in report.findings[:limit]:
        lines += _finding_lines(finding)
    if len(report.findings) > limit:
        lines.append(f"{len(report.findings) - limit} more findings are in the report.")
    return (*lines, *advice_lines(report))


def advice_lines(report: QualityReport) -> tuple[str, ...]:
    """The advice by the number of rows, the last of the headlines; none without a row."""
    return (f"{report.advice.band} rows: {' '.join(report.advice.sentences)}",) if report.rows else ()


def wrong_lines(findings: Iterable[CheckFinding]) -> tuple[str, ...]:
    """What is wrong alone, for verbs that say little of the rows."""
    return tuple(line for finding in findings if finding.severity == "wrong" for line in _finding_lines(finding))


def _finding_lines(finding: CheckFinding) -> list[str]:
    first = ", ".join(f"{example.place} ({example.id})" for example in finding.examples[:3])
    share = f"{finding.count:,} of {finding.of:,} ({finding.share:.2%})"
    line = f"{finding.severity}: {share} {finding.text}" + (f": {first}" if first else "")
    return [line, f"  hint: {finding.hint}"] if finding.severity == "wrong" else [line]
