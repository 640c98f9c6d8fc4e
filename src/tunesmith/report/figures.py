"""The pictures of a run's report (loss curves, learning curve, sweep of types) and what all share: inline SVG by matplotlib.

Only numbers are drawn here; arms, which have names, are drawn by the page itself. A picture is 4.9 inches wide: on a
telephone it shrinks to 350 pixels and its letters stay legible. Text stays text (searchable, and in the reader's font);
colours are chosen to tell apart in print and for the colour-blind (Okabe and Ito 2008).
"""

import io
import re
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter
from rich.filesize import decimal

from tunesmith.rundir.records.evidence import Curve
from tunesmith.rundir.records.parity import Sweep

matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tunesmith", "font.family": "sans-serif", "font.size": 11})

INK, QUIET, PROMPT, TUNED, DEV = "#1b1b1f", "#8a8f98", "#0072b2", "#d55e00", "#009e73"
SIZE = (4.9, 3.0)  # inches
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def loss_figure(metrics: list[dict[str, float]], best_step: int) -> str:
    """Train loss of every step (with a running mean), dev loss where it was taken, and the step that was kept."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    steps, losses = [m["step"] for m in metrics], [m["loss"] for m in metrics]
    axes.plot(steps, losses, color=PROMPT, alpha=0.3, linewidth=1)
    width = max(1, len(losses) // 20)
    smooth = [sum(losses[max(0, i - width) : i + 1]) / len(losses[max(0, i - width) : i + 1]) for i in range(len(losses))]
    axes.plot(steps, smooth, color=PROMPT, linewidth=2, label="train, running mean")
    dev = [(m["step"], m["dev_loss"]) for m in metrics if m.get("dev_loss") is not None]
    axes.plot([s for s, _ in dev], [v for _, v in dev], "o-", color=DEV, linewidth=2, label="dev")
    axes.axvline(best_step, color=QUIET, linewidth=1, linestyle="--", label=f"kept: step {best_step}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats a supervised token)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return svg(figure, axes)


def curve_figure(curve: Curve) -> str:
    """Dev score over train rows: measured points with intervals, the fitted law with its band, and where data end."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    line, points = curve.line, curve.points
    rows = [p.rows for p in line]
    axes.fill_between(rows, [p.low for p in line], [p.high for p in line], color=TUNED, alpha=0.15, linewidth=0)
    now = points[-1].rows
    for style, part in (("-", [p for p in line if p.rows <= now]), ("--", [p for p in line if p.rows >= now])):
        label = "fitted, 95 %" if style == "-" else "carried on"
        axes.plot([p.rows for p in part], [p.value for p in part], style, color=TUNED, linewidth=2, label=label)
    reach = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
    measured = ([p.rows for p in points], [p.value for p in points])
    axes.errorbar(*measured, yerr=reach, fmt="o", color=INK, markersize=6, linewidth=1.6, label="measured on dev", zorder=3)
    axes.axvline(now, color=QUIET, linewidth=1, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks([p.rows for p in points] + [gain.rows for gain in curve.gains])
    axes.tick_params(axis="x", labelrotation=45)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("train rows")
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9.5, handlelength=1.5, columnspacing=1.0)
    return svg(figure, axes, grid="y")


def sweep_figure(sweep: Sweep) -> str:
    """Difference from the tuned model for each type, smallest file first: a point with its interval, and the margin.

    Files of like size would hide each other on an axis of bytes, so each type has a place of its own.
    """
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    entries = sorted(sweep.types, key=lambda entry: entry.bytes)
    for number, entry in enumerate(entries):
        task = entry.task
        colour = TUNED if entry.type == sweep.recommended else INK
        reach = [[100 * (task.gain - task.low)], [100 * (task.high - task.gain)]]
        axes.errorbar([number], [100 * task.gain], yerr=reach, fmt="o", color=colour, markersize=6, linewidth=1.6)
    names = [f"{entry.type}\n{decimal(entry.bytes, precision=0)}" for entry in entries]
    axes.set_xticks(range(len(entries)), names, fontsize=8)
    axes.axhline(0.0, color=QUIET, linewidth=1)
    axes.axhline(-100 * sweep.margin, color=PROMPT, linewidth=1.2, linestyle="--", label="margin")
    axes.margins(x=0.08, y=0.08)
    axes.set_ylabel("points against tuned, on dev")
    figure.legend(loc="outside upper right", frameon=False, fontsize=9.5)
    return svg(figure, axes, grid="y")


def svg(figure: Figure, axes: Axes, grid: Literal["x", "y"] = "x") -> str:
    """The figure as an element for a page, with grid lines across one axis."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color="#e6e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_NO_METADATA, transparent=True)
    text = buffer.getvalue()
    # Names of groups (axes_1 ...) would stand in a page once for each of its figures; nothing refers to them.
    return re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])
