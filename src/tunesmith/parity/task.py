"""The task that the forms are asked: dev rows, and what an evaluation makes of answers to them.

Asking and comparing belong to the evaluation, another stage. Here they are functions that whoever builds the task hands in, and
outputs pass through unread.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.engines.engine import Engine
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.parity import TaskScore

Outputs = list[Output]


@dataclass(frozen=True, kw_only=True)
class Task:
    """Dev rows that every form answers.

    Attributes:
        metric: its name.
        n: rows.
        context: tokens that the longest prompt and its answer need.
        margin: the largest loss that is accepted (``parity/checks.py``).
        ask: from a title and an engine to its answers, scored.
        score: the metric's headline of scored answers, 0 to 1.
        compare: of answers and the reference's, paired by row.
    """

    metric: str
    n: int
    context: int
    margin: float
    ask: Callable[[str, Engine], Outputs]
    score: Callable[[Outputs], float]
    compare: Callable[[Outputs, Outputs], TaskScore]
