"""Phrases of other assistants in the answers: disclaimers, refusals, knowledge cutoffs, filler.

A model that is tuned on another's answers learns its manners with them. RE2 reads all forms at once over every answer,
Python tells them apart on the hits. RE2 sees bytes: the curly apostrophe is an alternative, since in a class it would be three
letters.
"""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunesmith.data.finding import SHOWN, Example, Finding, excerpt

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
_FORMS = {code: re.compile(form, re.IGNORECASE) for code, (form, _, _) in PHRASES.items()}
_ANY = "(?i)" + "|".join(form for form, _, _ in PHRASES.values())


class Phrases:
    """Counts answers with each phrase over a stream, and keeps the first twenty."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(PHRASES, 0)
        self._examples: dict[str, list[Example]] = {code: [] for code in PHRASES}

    def add(self, answers: Sequence[str | None], texts: pa.Array, first: int) -> None:
        """Take in one batch.

        Args:
            answers: per row, or None.
            texts: the same as a large_binary array, empty where None.
            first: number of the first row.
        """
        hits = pc.call_function("match_substring_regex", [texts], pc.MatchSubstringOptions(_ANY))
        for position in np.flatnonzero(hits.to_numpy(zero_copy_only=False)).tolist():
            answer = answers[position] or ""
            for code, form in _FORMS.items():
                match = form.search(answer)
                if match:
                    self._counts[code] += 1
                    if len(self._examples[code]) < SHOWN:
                        self._examples[code].append(Example(first + position, excerpt(answer[match.start() :])))

    def findings(self, answered: int) -> list[Finding]:
        """One for each phrase that stands in an answer; ``answered`` is the number of answers."""
        findings: list[Finding] = []
        for code, count in self._counts.items():
            if count:
                _, text, hint = PHRASES[code]
                severity = "note" if code == "filler-opening" else "suspect"
                findings.append(Finding(code, severity, f"answers that {text}", count, answered, hint, self._examples[code]))
        return findings
