"""A fixed sample of the rows, for what is too dear to ask of every one.

The 2,000 distinct rows with the smallest ids: an id is a hash of the content, so this is a uniform sample that depends
neither on the order of the rows nor on a seed, and that a repeated row cannot fill. A share measured on it is within
about 2 points of the truth.

The diversity figures are two old ones that agree. Distinct-4 is the share of the word 4-grams that differ (Li et al.
2016, distinct-n, arXiv 1510.03055); the compression ratio is how many times smaller bzip2 makes the texts, whose window
of 900 kB sees repetition across hundreds of rows. Embedding distances were refused: they need a model, and duplicates
and templates, which are what ruins small data sets, show here already.
"""

import bz2
from collections import Counter
from typing import NamedTuple

from tunesmith.data.finding import Example, Finding, excerpt
from tunesmith.rundir.records.quality import Diversity, TextDiversity

SIZE = 2000
CHARACTERS = 2000  # kept of each text
_WORDS = 100  # of each text, for 4-grams
_OPENING = 3  # words

LOW = (
    "Distinct-4 is the share of four-word sequences that are different; the compression ratio tells how often the texts "
    "repeat. Low diversity (distinct-4 below 0.3, ratio above 10) means that rows say the same again: more of them teach "
    "nothing new. Distinct data, not more data."
)


class Sampled(NamedTuple):
    """A row of the sample: its number, the last user turn before the answer, and the answer (None for plain text, whose
    text stands as the prompt), each cut to 2,000 characters."""

    row: int
    prompt: str
    answer: str | None


class Sample:
    """Keeps the sample over a stream."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[str, Sampled]] = {}
        self.threshold = "\U0010ffff"  # rows with an id from here on are not of the sample

    def add(self, key: int, identity: str, row: int, prompt: str, answer: str | None) -> None:
        """Consider row number ``row``; ``key`` is equal for rows with equal content, ``identity`` is the row's id."""
        if key in self._rows:
            return
        self._rows[key] = (identity, Sampled(row, prompt[:CHARACTERS], answer and answer[:CHARACTERS]))
        if len(self._rows) >= 2 * SIZE:
            ranked = sorted(self._rows.items(), key=lambda item: (item[1][0], item[1][1].row))[:SIZE]
            self._rows = dict(ranked)
            self.threshold = ranked[-1][1][0]

    def rows(self) -> list[Sampled]:
        """The sample, by id: at most 2,000 rows."""
        ranked = sorted(self._rows.values(), key=lambda item: (item[0], item[1].row))
        return [row for _, row in ranked[:SIZE]]


def distinct_4(texts: list[str]) -> float | None:
    """Share of distinct word 4-grams in the first 100 words of each text, 0 to 1; None without any 4-gram."""
    total, seen = 0, set()
    for text in texts:
        words = text.casefold().split()[:_WORDS]
        grams = [" ".join(words[start : start + 4]) for start in range(len(words) - 3)]
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else None


def compression_ratio(texts: list[str]) -> float | None:
    """Bytes of the texts by their bytes under bzip2: about 3 for varied English prose; None without text."""
    raw = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(raw) / len(bz2.compress(raw)) if raw else None


def diversity(rows: list[Sampled]) -> Diversity:
    """Both figures for the prompts and for the answers of the sample, and what low means."""
    return Diversity(
        sampled=len(rows),
        prompts=_figures([row.prompt for row in rows]),
        answers=_figures([row.answer for row in rows if row.answer is not None]),
        meaning=LOW,
    )


def _figures(texts: list[str]) -> TextDiversity:
    return TextDiversity(distinct_4=distinct_4(texts), compression_ratio=compression_ratio(texts))


def diversity_finding(measured: Diversity) -> list[Finding]:
    """A note where the prompts (the answers may be few by design) are all alike."""
    figure, ratio = measured.prompts.distinct_4, measured.prompts.compression_ratio
    if measured.sampled < 200 or figure is None or ratio is None or (figure >= 0.3 and ratio <= 10):
        return []
    hint = f"Distinct-4 of the prompts is {figure:.2f}, compression ratio {ratio:.1f}. {LOW}"
    text = "sampled prompts, which repeat each other's words (an instruction copied into every row counts)"
    return [Finding("low-diversity", "note", text, measured.sampled, measured.sampled, hint)]


def openings(rows: list[Sampled]) -> list[Finding]:
    """The first three words that at least 10 % of the longer answers of the sample share."""
    starts: dict[str, list[int]] = {}
    counted = 0
    for row in rows:
        words = (row.answer or "").split(maxsplit=8)
        if len(words) >= 8 and words[0][0] not in "{[`":
            counted += 1
            starts.setdefault(" ".join(words[:_OPENING]), []).append(row.row)
    shares = Counter({start: len(numbers) for start, numbers in starts.items()})
    findings: list[Finding] = []
    for start, count in sorted(shares.items(), key=lambda item: (-item[1], item[0]))[:5]:
        if count >= max(10, 0.1 * counted):
            text = f"sampled answers that begin with {excerpt(start)!r}"
            hint = "A shared opening is learned first: keep it only if it is wanted in every answer."
            findings.append(
                Finding("same-opening", "note", text, count, counted, hint, [Example(n) for n in sorted(starts[start])[:20]])
            )
    return findings
