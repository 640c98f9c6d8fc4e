"""``evaluation/choice.json``: which of several tuned models that were brought is exported, and judged as it is deployed."""

from dataclasses import dataclass

from tunesmith.rundir.records.base import FileRecord
from tunesmith.rundir.records.evaluation import CandidateResult


@dataclass(frozen=True, kw_only=True)
class Choice(FileRecord):
    """The candidate that is deployed, and what it was chosen from.

    Attributes:
        name: its arm.
        key: what tells it from all other candidates, in whichever form it is.
        candidates: how each of them stood, in the form in which it came.
    """

    name: str
    key: str
    candidates: tuple[CandidateResult, ...]
