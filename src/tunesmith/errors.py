"""Everything that can go wrong for a user, as one tree.

    TunesmithError            3   anything below, never raised itself
    |-- RecipeError           4   the recipe file
    |-- DataError             5   the rows
    |-- ModelError            6   the base model or its tokenizer
    |-- RunError              7   the run directory: missing stage, changed input, no permission
    |-- TrainingError         8   non-finite loss, nothing to train
    |-- ExportError           9   merging, conversion, quantisation, the deployed engine
    |-- MissingPackage       20   an extra that is not installed
    |-- ProvenanceError      25   a file is not the one that the verdict names
    `-- PushError            26   what may not be published, or could not be

The number is the exit code of the command line. Verdicts have their own (``evaluate/gate.py``): 0 deploy, 10 prompting is
enough, 11 not better, 12 too little data to tell or too little known of a judge (also the verb parity, when nothing shows that
a quantised form does the task as well), 13 regression, 14 not the model that was trained (also parity, when a form is not
deployable), 15 not good enough, 16 as good and cheaper, 17 may replace it. Advice has 21 to 24 (``advise/decide.py``). 2 is a
usage error, 130 an interrupt.

A message says what was found and what was expected, and where; ``hint`` says what to do next. Programmers get
assertions; users get these.
"""

import sys
from types import TracebackType

LONGEST = 8_000  # characters of a message or hint: a stranger's value may have a million


class TunesmithError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        message: what was found, what was expected, and where (file, line, row id, key).
        hint: the next thing to do.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = _cut(message)
        self.hint = _cut(hint)

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text) - LONGEST:,} more characters)"


class RecipeError(TunesmithError):
    """The recipe is not valid YAML, has an unknown key or a value out of range."""

    exit_code = 4


class DataError(TunesmithError):
    """The data cannot be read, or a row is wrong."""

    exit_code = 5


class ModelError(TunesmithError):
    """The base model or its tokenizer is missing, damaged or unsuitable."""

    exit_code = 6


class RunError(TunesmithError):
    """The run directory lacks a stage's output, was made from other inputs, or cannot be written."""

    exit_code = 7


class TrainingError(TunesmithError):
    """Training cannot go on: non-finite loss, no target modules, nothing supervised."""

    exit_code = 8


class ExportError(TunesmithError):
    """Merging, conversion, quantisation or the deployed engine failed."""

    exit_code = 9


class MissingPackage(TunesmithError):
    """A verb needs an extra that is not installed."""

    exit_code = 20


class ProvenanceError(TunesmithError):
    """A file of the run is gone, or is not the one that the verdict names."""

    exit_code = 25


class PushError(TunesmithError):
    """Something that may not be published, or that the hub did not take."""

    exit_code = 26


class damage_named:
    """Whatever a library raises of a stranger's file within the block is an error of ours that names the file.

    A class, because such errors have many types and no common one but ``Exception``.

    Args:
        kind: of our error.
        what: what was found, to be followed by the library's words.
        hint: what to do next.

    Raises:
        TunesmithError: of that kind.
    """

    def __init__(self, kind: type[TunesmithError], what: str, hint: str):
        self._kind, self._what, self._hint = kind, what, hint

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        is_panic = type(error).__name__ == "PanicException"  # of a library in Rust, derived from BaseException
        not_of_the_file = isinstance(error, TunesmithError | MemoryError | ModuleNotFoundError)
        if is_panic or (isinstance(error, Exception) and not not_of_the_file):
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self._kind(f"{self._what}: {reason}", self._hint) from error


def raised_by_triton() -> tuple[type[Exception], ...]:
    """The class of Triton's errors, which is no RuntimeError, where it is loaded."""
    module = sys.modules.get("triton.errors")
    return () if module is None else (module.TritonError,)


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
