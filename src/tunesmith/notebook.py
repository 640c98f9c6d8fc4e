"""What records draw of themselves in a notebook: tables, a loss curve, a forest of intervals; HTML and inline SVG.

A notebook shows a record by ``_repr_html_``, for which the record's own class calls these functions. The pictures are written
by hand: records lie on the floor of the tree, where matplotlib is an extra that may not be installed, takes half a second to
import, and draws 30 kB where 3 are enough. The page of a run, which has room and is printed, is drawn by matplotlib
(``report/figures.py``) with the same colours, chosen to tell apart in print and for the colour-blind (Okabe and Ito 2008).

Text is drawn in ``currentColor``, so that it can be read in a dark notebook as well. Other people's names are escaped.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

PROMPT, TUNED, DEV, QUIET = "#0072b2", "#d55e00", "#009e73", "#8a8f98"
WIDTH, HEIGHT = 560, 240  # pixels of a picture
LEFT, RIGHT, TOP, BOTTOM = 52, 130, 10, 40  # margins of the curve; its legend stands at the right
NAMES, FIGURES, LINE = 170, 170, 24  # of the forest: columns beside it, and the height of a row
SHOWN = 24  # letters of a name
TICKS = 5  # at most, about


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A line of a forest.

    Attributes:
        name: at its left.
        value, low, high: the point and its interval; an interval of no width is drawn as the point alone.
        figures: at its right.
        is_chosen: whether it stands out.
    """

    name: str
    value: float
    low: float
    high: float
    figures: str
    is_chosen: bool = False


def table(head: Sequence[str], rows: Iterable[Sequence[str | None]], caption: str = "") -> str:
    """A table of texts; None is an empty cell."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    cells = ("".join(f"<td>{escape(cell or '')}</td>" for cell in row) for row in rows)
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table>{above}<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def paragraph(text: str, strong: str = "") -> str:
    """A paragraph that may begin with strong words."""
    return f"<p><strong>{escape(strong)}</strong> {escape(text)}</p>" if strong else f"<p>{escape(text)}</p>"


def loss_curve(dev: Sequence[tuple[int, float]], train: Sequence[tuple[int, float]], best: int) -> str:
    """Losses by optimizer step: dev as points on a line, mean train loss, and the step that was kept.

    Args:
        dev, train: steps done and the loss there, in order; ``dev`` has one at least.
        best: the step that was kept.
    """
    steps, losses = [step for step, _ in (*dev, *train)], [loss for _, loss in (*dev, *train)]
    last, ticks = max(1, *steps), nice_ticks(min(losses), max(losses))
    bottom, top = ticks[0], ticks[-1]

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - loss) / (top - bottom)

    parts: list[str] = []
    for tick in ticks:
        parts.append(_line(LEFT, y(tick), WIDTH - RIGHT, y(tick), QUIET, 'stroke-opacity="0.3"'))
        parts.append(_text(LEFT - 6, y(tick) + 4, f"{tick:g}", "end"))
    for tick in nice_ticks(0, last):
        if tick <= last and tick == int(tick):
            parts.append(_text(x(tick), HEIGHT - BOTTOM + 16, f"{int(tick):,}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "optimizer step; loss in nats a supervised token", "middle"))
    parts.append(_line(x(best), TOP, x(best), HEIGHT - BOTTOM, QUIET, 'stroke-dasharray="4 3"'))
    series = (("train", train, PROMPT), ("dev", dev, DEV))
    for name, points, colour in series:
        places = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [_dot(x(step), y(loss), colour, f"{name}, step {step}: {loss:.4f}") for step, loss in points]
    legend = [(name, colour) for name, points, colour in series if points] + [(f"kept: step {best}", QUIET)]
    for number, (name, colour) in enumerate(legend):
        parts.append(_dot(WIDTH - RIGHT + 20, TOP + 12 + 18 * number, colour, name))
        parts.append(_text(WIDTH - RIGHT + 30, TOP + 16 + 18 * number, name, "start"))
    return _svg(WIDTH, HEIGHT, "Losses by optimizer step", parts)


def forest(lines: Sequence[Interval], least: float, unit: str) -> str:
    """Points with their intervals, one below the other, around zero.

    Args:
        lines: one at least.
        least: the smallest value that counts, drawn as a dashed line where it is above zero.
        unit: what the axis counts.
    """
    bounds = [bound for line in lines for bound in (line.low, line.high)]
    ticks = nice_ticks(min(0.0, least, *bounds), max(0.0, least, *bounds))
    low, high, bottom = ticks[0], ticks[-1], TOP + LINE * len(lines)

    def x(value: float) -> float:
        return NAMES + (WIDTH - NAMES - 20) * (value - low) / (high - low)

    parts: list[str] = []
    for tick in ticks:
        parts.append(_line(x(tick), TOP, x(tick), bottom, QUIET, f'stroke-opacity="{0.3 if tick else 1}"'))
        parts.append(_text(x(tick), bottom + 16, f"{tick:+g}" if tick else "0", "middle"))
    parts.append(_text((NAMES + WIDTH - 20) / 2, bottom + 32, unit, "middle"))
    if least > 0.0:
        parts.append(_line(x(least), TOP, x(least), bottom, PROMPT, 'stroke-dasharray="4 3"'))
    for number, line in enumerate(lines):
        middle, colour = TOP + LINE * (number + 0.5), TUNED if line.is_chosen else "currentColor"
        name = line.name if len(line.name) <= SHOWN else f"{line.name[: SHOWN - 1]}…"
        parts.append(_text(NAMES - 10, middle + 4, name, "end", line.is_chosen))
        if line.high > line.low:
            parts.append(_line(x(line.low), middle, x(line.high), middle, colour, 'stroke-width="2"'))
        parts.append(_dot(x(line.value), middle, colour, f"{line.name}: {line.figures}"))
        parts.append(_text(WIDTH, middle + 4, line.figures, "start", line.is_chosen))
    return _svg(WIDTH + FIGURES, bottom + 40, unit, parts)


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers, evenly spaced, the first at most ``low`` and the last at least ``high``; two at least.

    >>> nice_ticks(0.3, 2.2)
    [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    """
    span = high - low or abs(high) or 1.0
    rough = span / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, max(last, first + 1) + 1)]


def _svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    style = "max-width:100%;height:auto;font:12px sans-serif;fill:currentColor"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" style="{style}"'
    return f'{head} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'


def _dot(x: float, y: float, colour: str, title: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"><title>{escape(title)}</title></circle>'


def _text(x: float, y: float, text: str, anchor: str, is_strong: bool = False) -> str:
    weight = ' font-weight="bold"' if is_strong else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'
