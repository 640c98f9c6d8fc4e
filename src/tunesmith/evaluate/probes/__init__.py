"""Texts on which every run is asked whether its model has forgotten anything.

    passages.jsonl    40 short passages: English, code, German, Spanish    -> bits per byte
    prompts.jsonl     40 requests of everyday life                         -> KL divergence from the base model
    questions.jsonl   100 short questions, one right answer and three wrong -> probability of the right one

They are small on purpose: a run is checked in a minute on two cores, so the check is never left out. All three files were
written for this project and have its licence (Apache-2.0); public benchmarks were refused, because they stand in the
training data of most models and some of their licences do not allow to ship them. A recipe can name passages of its own
(``evaluate.forgetting.texts``): text of the kind that the model must not lose.

Questions are asked as plain text, not as chat, so that a model answers alike whatever template it wears.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import DataError

FOLDER = Path(__file__).parent
FILES = tuple(FOLDER / name for name in ("passages.jsonl", "prompts.jsonl", "questions.jsonl"))
FEWEST = 10  # passages: the interval of fewer says nothing


@dataclass(frozen=True)
class Passage:
    """A text whose bits per byte are taken. ``kind`` is english, code, german, spanish, or own."""

    id: str
    kind: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question with four answers, the right one first. ``kind`` is fact, common_sense or arithmetic."""

    id: str
    kind: str
    question: str
    answers: tuple[str, ...]

    @property
    def context(self) -> str:
        """What stands before an answer."""
        return f"Question: {self.question}\nAnswer:"


@dataclass(frozen=True)
class Probes:
    """All that a run is asked.

    Attributes:
        prompts: (id, request).
    """

    passages: tuple[Passage, ...]
    prompts: tuple[tuple[str, str], ...]
    questions: tuple[Question, ...]


def load_probes(texts: Path | None = None) -> Probes:
    """The shipped probes, with the passages of ``texts`` in the place of ours where it is given.

    Raises:
        DataError: see ``read_passages``.
    """
    passages, prompts, questions = (list(_rows(file)) for file in FILES)
    return Probes(
        tuple(Passage(row["id"], row["kind"], row["text"]) for row in passages) if texts is None else read_passages(texts),
        tuple((row["id"], row["prompt"]) for row in prompts),
        tuple(Question(row["id"], row["kind"], row["question"], (row["answer"], *row["wrong"])) for row in questions),
    )


def read_passages(path: Path) -> tuple[Passage, ...]:
    """Passages of a ``.jsonl`` file of ``{"text": ...}``, or of any other text file, where blank lines part them.

    Raises:
        DataError: the file cannot be read, a row has no text, or there are fewer than ``FEWEST`` passages.
    """
    hint = 'give a .jsonl file of {"text": ...}, or a text file whose passages are parted by blank lines'
    try:
        if path.suffix == ".jsonl":
            texts = [row.get("text") if isinstance(row, dict) else None for row in _rows(path)]
        else:
            texts = ["\n".join(lines) for lines in _paragraphs(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise DataError(f"evaluate.forgetting.texts: {path} cannot be read: {error}", hint) from error
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"evaluate.forgetting.texts: {path}: passage {number} has no text", hint)
    if len(texts) < FEWEST:
        raise DataError(f"evaluate.forgetting.texts: {path} holds {len(texts)} passages, at least {FEWEST} are needed", hint)
    return tuple(Passage(f"own-{number:03d}", "own", str(text)) for number, text in enumerate(texts, start=1))


def _rows(path: Path) -> Iterable[Any]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _paragraphs(text: str) -> list[list[str]]:
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    return [lines for lines in paragraphs if lines]
