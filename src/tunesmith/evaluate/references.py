"""Whether a metric fits the rows: every reference must score 1 against itself."""

from typing import Any

from tunesmith.errors import DataError
from tunesmith.evaluate.metrics import Metric


def check_references(rows: list[dict[str, Any]], metric: Metric) -> None:
    """Refuse rows that cannot be scored, or whose own reference does not score.

    Raises:
        DataError: the first such row.
    """
    for row in rows:
        if row.get("kind") == "text" or "tool_calls" in row["messages"][-1]:
            what = "a plain text, which asks nothing" if row.get("kind") == "text" else "ended by a tool call"
            raise DataError(
                f"row {row['id']}, {row['place']}: {what}, so no arm can be scored", "train and preview such rows alone"
            )
        reference = row["messages"][-1]["content"]
        if not metric.fits(reference):
            raise DataError(
                f"row {row['id']}, {row['place']}: its own reference does not score under task.metric: {reference[:80]!r}",
                "choose another metric, or mend the row",
            )
