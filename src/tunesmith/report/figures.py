"""The two pictures of a run's report (arms with intervals, loss curves) and what all pictures share: inline SVG by matplotlib.

Text stays text (searchable, and in the reader's font); colours are chosen to tell apart in print and for the
colour-blind (Okabe and Ito 2008).
"""

import io
import re
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tunesmith", "font.family": "sans-serif", "font.size": 11})

INK, QUIET, PROMPT, TUNED, DEV = "#1b1b1f", "#8a8f98", "#0072b2", "#d55e00", "#009e73"
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def arms_figure(arms: list[dict[str, Any]], best_prompt: str) -> str:
    """Score of each arm with its 95 % interval; the best prompt is the line to beat."""
    figure = Figure(figsize=(7.6, 0.9 + 0.52 * len(arms)), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate(reversed(arms)):
        colour = TUNED if arm["arm"] in {"tuned", "deployed"} else PROMPT
        axes.plot([arm["low"], arm["high"]], [place, place], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot([arm["score"]], [place], "o", color=colour, markersize=9)
        axes.annotate(
            f"{100 * arm['score']:.1f}", (arm["score"], place), (0, 9), textcoords="offset points", ha="center", color=INK
        )
        if arm["arm"] == best_prompt:
            axes.axvline(arm["score"], color=QUIET, linewidth=1, linestyle="--", zorder=0)
    axes.set_yticks(range(len(arms)), [arm["arm"].replace("_", "-") for arm in reversed(arms)])
    axes.set_ylim(-0.6, len(arms) - 0.3)
    axes.set_xlim(-0.03, 1.03)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("right answers on the sealed test part, 95 % interval")
    return svg(figure, axes)


def loss_figure(metrics: list[dict[str, Any]], best_step: int) -> str:
    """Train loss of every step (with a running mean), dev loss where it was taken, and the step that was kept."""
    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
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
