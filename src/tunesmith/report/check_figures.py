"""The pictures of the check: how long the rows are, how many turns they have, how much of each is trained on.

Only numbers are drawn. Whatever is named by the data (classes, keys, languages) becomes a table with bars in the page
itself: matplotlib would read ``$`` in a label as mathematics and has no glyphs for most scripts, and a table wraps on a
telephone, is read aloud, and can be copied.

Lengths have a logarithmic axis, because they spread over decades and a linear one would be a single bar; an empty text
stands in the linear part left of 1.
"""

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from tunesmith.report.figures import INK, PROMPT, TUNED, svg
from tunesmith.rundir.records.quality import Histogram, Lengths

SIZE = (4.9, 2.7)  # inches: two beside each other on a screen, one on a telephone, with letters of a readable size
_STYLES = (":", "--", "-.")  # of median, p95 and p99


def length_figure(lengths: Lengths, label: str, max_length: int | None = None) -> str:
    """Histogram of ``lengths`` with median, p95 and p99; bins beyond ``max_length`` in another colour, behind a line."""
    figure, axes = _start()
    _bars(axes, lengths.histogram, max_length)
    _log_axis(axes, lengths.histogram.edges, max_length)
    marks = (("median", lengths.median), ("p95", lengths.p95), ("p99", lengths.p99))
    for (name, length), style in zip(marks, _STYLES, strict=True):
        axes.axvline(length, color=INK, linewidth=1.2, linestyle=style, label=f"{name} {length:,}")
    if max_length is not None:
        axes.axvline(max_length, color=TUNED, linewidth=2.2, label=f"max_length {max_length:,}")
    axes.set_xlabel(label)
    ncols = 3 if max_length is None else 2
    figure.legend(loc="outside upper left", ncols=ncols, frameon=False, fontsize=10, handlelength=1.7, columnspacing=1.2)
    return svg(figure, axes, grid="y")


def count_figure(counts: dict[str, int], label: str) -> str:
    """Bars over whole numbers (``{"2": rows}``), such as turns."""
    figure, axes = _start()
    numbers = sorted(counts, key=int)
    axes.bar([int(number) for number in numbers], [counts[number] for number in numbers], width=0.8, color=PROMPT)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.set_xlabel(label)
    return svg(figure, axes, grid="y")


def share_figure(histogram: Histogram, label: str) -> str:
    """Histogram of shares from 0 to 1."""
    figure, axes = _start()
    _bars(axes, histogram, None)
    axes.set_xlim(-0.01, 1.01)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(label)
    return svg(figure, axes, grid="y")


def _start() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel("rows")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    return figure, axes


def _bars(axes: Axes, histogram: Histogram, max_length: int | None) -> None:
    edges, counts = histogram.edges, histogram.counts
    widths = [end - start for start, end in pairwise(edges)]
    beyond = [max_length is not None and start > max_length for start in edges[:-1]]
    colours = [TUNED if over else PROMPT for over in beyond]
    axes.bar(edges[:-1], counts, widths, align="edge", color=colours, edgecolor="white", linewidth=0.5)


def _log_axis(axes: Axes, edges: Sequence[float], max_length: int | None) -> None:
    low, high = edges[0], max(edges[-1], max_length or 0)
    if low < 1:
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
    else:
        axes.set_xscale("log")
    axes.set_xlim(low / 1.05, high * 1.05)
    decades = high / max(low, 1)
    steps = (1, 2, 5) if decades < 300 else (1,)
    ticks = [value for value in LogLocator(subs=steps).tick_values(max(low, 1), high) if max(low, 1) <= value <= high]
    if len(ticks) < 2:  # all lengths between two round numbers
        ticks = sorted({max(low, 1), high})
    axes.set_xticks([0.0, *ticks] if low < 1 else ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    """``950``, ``1.5k``, ``20k``, ``3M``."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"
