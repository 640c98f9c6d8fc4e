"""How long rows are: order statistics, a histogram to draw, and the ``max_length`` that keeps enough of them.

Percentiles are values that occur (``inverted_cdf``), because a length between two rows is nobody's.
"""

import numpy as np

from tunesmith.data.places import FindPlaces
from tunesmith.rundir.records.quality import Histogram, Lengths, RowLength

SHARES = (95, 99, 100)  # per cent of the rows that a max_length should keep


def histogram(values: np.ndarray, log: bool = True, bins: int = 40) -> Histogram:
    """Counts of non-negative values in bins.

    Args:
        values: one-dimensional.
        log: bins of equal width in the logarithm, with a bin of its own for values below 1; else of equal width.
        bins: at most this many (and one for zero); whole numbers get whole edges, so fewer where values are small.
    """
    if not len(values):
        return Histogram()
    low, high = float(values.min()), float(values.max())
    whole = np.issubdtype(values.dtype, np.integer)
    end = high + 1 if whole else np.nextafter(high, np.inf)
    if log:
        rising = np.geomspace(max(low, 1.0), max(end, 2.0), bins + 1)
        rising[-1] = max(end, 2.0)
    else:
        rising = np.linspace(low, end, bins + 1)
    edges = np.unique(np.rint(rising) if whole else rising)
    if log and low < 1:
        edges = np.unique(np.append(edges, 0.0))
    counts = np.histogram(values, edges)[0]
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def summary(values: np.ndarray, rows: np.ndarray, find: FindPlaces) -> Lengths:
    """Order statistics and histogram of ``values``, and the ten largest; ``rows`` numbers the values."""
    if not len(values):
        return Lengths(count=0)
    median, p95, p99 = np.percentile(values, [50, 95, 99], method="inverted_cdf").tolist()
    longest = [(int(rows[position]), int(values[position])) for position in np.lexsort((rows, -values))[:10]]
    return Lengths(
        count=len(values),
        min=int(values.min()),
        median=median,
        p95=p95,
        p99=p99,
        max=int(values.max()),
        histogram=histogram(values),
        longest=row_lengths(longest, find),
    )


def row_lengths(rows: list[tuple[int, int]], find: FindPlaces) -> tuple[RowLength, ...]:
    """Rows given as (number, length), by id and place."""
    places = find({row for row, _ in rows})
    return tuple(RowLength(id=places[row].id, place=places[row].place, length=length) for row, length in rows)


def keep_shares(lengths: list[int]) -> dict[str, int]:
    """The ``max_length`` that keeps 95, 99 and 100 % of the rows, by the percentage."""
    limits = np.percentile(np.array(lengths or [0]), SHARES, method="inverted_cdf").astype(int).tolist()
    return dict(zip(map(str, SHARES), limits, strict=True))
