"""The arms of a run as a page lists them: those of the verdict, or, before it, as they finish.

Before the verdict an interval is of the rows alone: Wilson's where rows are right or wrong, a bootstrap of the mean else. The
verdict's knows of groups and of metrics that are no mean over rows; such a metric's score stands here without an interval until
then. The recipe's own metric is not called: it may be a user's Python file, and a page runs no code of a run.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from tunesmith.evaluate import stats
from tunesmith.formatting import percent, points, points_between
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.events import ArmScore
from tunesmith.web.charts import interval_bar
from tunesmith.web.life import Life

LEAST = 2  # rows of an interval


@dataclass(frozen=True, kw_only=True)
class ArmLine:
    """An arm in the table.

    Attributes:
        score: out of 100, with its interval.
        bar: the same as a picture.
        gain: over the strongest prompt, with its interval; empty before the verdict.
        p: of the gain.
        rows: that were scored.
        cut: answers cut at the limit of tokens; None before the verdict.
        is_candidate, is_best: it would be deployed; it is the strongest prompt.
    """

    name: str
    score: str
    between: str
    bar: Markup
    gain: str = ""
    p: str = ""
    rows: int
    cut: int | None = None
    is_candidate: bool = False
    is_best: bool = False


def arm_lines(run: RunDir, life: Life, verdict: Verdict | None) -> list[ArmLine]:
    """The arms with their scores and intervals.

    Args:
        verdict: None where there is none of this state of the run.

    Raises:
        RunError: answers that cannot be read.
    """
    if verdict is None:
        return [_finished(run, score) for score in life.arms.values()]
    lines: list[ArmLine] = []
    for arm in verdict.arms:
        versus = arm.against
        lines.append(
            ArmLine(
                name=arm.name,
                score=percent(arm.score),
                between=f"{percent(arm.low)} to {percent(arm.high)}",
                bar=interval_bar(arm.score, arm.low, arm.high, style_of(arm.name)),
                gain="" if versus is None else f"{points(versus.gain)} ({points_between(versus.low, versus.high)})",
                p="" if versus is None else f"{versus.p:.3f}" if versus.p >= 0.001 else "<.001",
                rows=arm.n - arm.unscored,
                cut=arm.cut,
                is_candidate=arm.name == verdict.candidate,
                is_best=arm.name == verdict.best_prompt,
            )
        )
    return lines


def style_of(arm: str) -> str:
    """The class of an arm's colour."""
    return "tuned" if arm.startswith(("tuned", "deployed")) else "prompt"


def _finished(run: RunDir, arm: ArmScore) -> ArmLine:
    interval = None if arm.score is None else _interval(run, arm)
    low, high = interval or (arm.score or 0.0, arm.score or 0.0)
    return ArmLine(
        name=arm.arm,
        score=percent(arm.score),
        between="" if interval is None else f"{percent(low)} to {percent(high)}",
        bar=Markup("") if arm.score is None else interval_bar(arm.score, low, high, style_of(arm.arm)),
        rows=arm.rows,
    )


def _interval(run: RunDir, arm: ArmScore) -> tuple[float, float] | None:
    """The 95 % interval of an arm's mean; None where its score is no mean over its rows."""
    places = (run.judged_answers(arm.arm), run.answers(arm.arm))
    folder = next((place for place in places if (place / "outputs.jsonl").exists()), None)
    if folder is None:
        return None
    file = folder / "outputs.jsonl"
    status = file.stat()
    return _of_file(file, (status.st_size, status.st_mtime_ns), arm.score or 0.0)


@functools.lru_cache(maxsize=500)
def _of_file(file: Path, _state: tuple[int, int], headline: float) -> tuple[float, float] | None:
    """Of the answers in a file, kept while its size and time are the same."""
    scores = [output.score for output in Output.read_lines(file) if output.score is not None]
    return _of_mean(np.array(scores), headline)


def _of_mean(scores: np.ndarray, headline: float) -> tuple[float, float] | None:
    if len(scores) < LEAST or not math.isclose(float(scores.mean()), headline, abs_tol=1e-6):
        return None
    if np.isin(scores, (0.0, 1.0)).all():
        return stats.wilson(int(scores.sum()), len(scores))
    low, high = stats.mean_interval(scores, np.arange(len(scores)))
    return max(0.0, low), min(1.0, high)
