"""Whether a metric fits the rows: every reference must score 1 against itself."""

from tunesmith.errors import DataError
from tunesmith.evaluate.metrics import Metric
from tunesmith.rundir.rows import Row


def check_references(rows: list[Row], metric: Metric) -> None:
    """Refuse rows that cannot be scored, or whose own reference does not score.

    Raises:
        DataError: the first such row.
    """
    for row in rows:
        if why := row.why_not_scored(metric.score_calls is not None):
            hint = "calls are scored by task.metric: tool_calls, of functions that the row's tools declare"
            raise DataError(f"row {row.id}, {row.place}: {why}, so no arm can be scored", hint)
        if row.tools and metric.name == "calibrated":
            raise DataError(
                f"row {row.id}, {row.place}: it declares tools, and a choice among labels is asked without any",
                "leave its tools out, or set task.metric: classification",
            )
        reference = row.reference
        if not metric.fits(reference):
            raise DataError(
                f"row {row.id}, {row.place}: its own reference does not score under task.metric: {reference[:80]!r}",
                "choose another metric, or mend the row",
            )
