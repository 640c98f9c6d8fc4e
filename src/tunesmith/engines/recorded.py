"""An engine that has its answers already: those that another model gave before it was switched off.

``pipeline/record.py`` writes them, a line an answer, under a key of what was asked: the row's own conversation and tools.
Nothing is made up: a question that nobody recorded is an error that says how many there are, and log-probabilities of given
answers are not in a recording.
"""

from collections.abc import Sequence
from pathlib import Path

from tunesmith.engines.engine import Advance, Answer, Constraint, Scored
from tunesmith.errors import RunError
from tunesmith.messages import Message, Tools
from tunesmith.rundir import fingerprint
from tunesmith.rundir.records.recording import RecordedAnswer


def question_of(prompt: list[Message], tools: Tools) -> str:
    """Key of a conversation and what it declares."""
    return fingerprint(prompt, list(tools or []))


def read_recording(path: Path) -> dict[str, RecordedAnswer]:
    """The answers of a file by the key of their question. A last line without its end, left by a kill, is not read.

    Raises:
        RunError: no such file, or a line that is no recorded answer.
    """
    try:
        whole_lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}", "tunesmith record writes such a file") from error
    answers = (RecordedAnswer.parse(line, f"{path}:{number}") for number, line in enumerate(whole_lines, 1))
    return {answer.key: answer for answer in answers}


class RecordedEngine:
    """The model of a recording.

    Args:
        path: what ``tunesmith record`` wrote.

    Raises:
        RunError: see ``read_recording``.
    """

    def __init__(self, path: Path):
        self._path, self._answers = path, read_recording(path)

    def generate(
        self,
        prompts: list[list[Message]],
        max_new_tokens: int,
        advance: Advance,
        allowed: Constraint | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> list[Answer]:
        """See ``Engine``; how long an answer may be was settled when it was recorded.

        Raises:
            RunError: a question that nobody recorded, or answers that are to be constrained.
        """
        if allowed is not None:
            raise RunError(f"{self._path}: recorded answers were written freely", "task.constrained: false")
        declared = tools or [None] * len(prompts)
        found = [self._answers.get(question_of(prompt, own)) for prompt, own in zip(prompts, declared, strict=True)]
        if missing := [prompt for prompt, answer in zip(prompts, found, strict=True) if answer is None]:
            text = " ".join(str(missing[0][-1]["content"]).split())
            raise RunError(
                f"{self._path}: {len(missing)} of {len(prompts)} questions were not recorded, such as {text!r:.80}",
                "record the rows of the run: tunesmith record --data RUN (what is there is not asked again)",
            )
        answers: list[Answer] = []
        for recorded in found:
            assert recorded is not None
            calls = recorded.calls if tools is not None else None
            counts = recorded.prompt_tokens, recorded.new_tokens
            answers.append(Answer(recorded.text, *counts, recorded.seconds, recorded.finished, calls))
            advance(1)
        return answers

    def score(self, items: list[tuple[list[Message], str]], advance: Advance) -> list[Scored]:
        """Not to be had.

        Raises:
            RunError: always.
        """
        raise RunError(f"{self._path}: no log-probability of a given answer", "score with the engine in process")

    def close(self) -> None:
        """Nothing to give back."""
