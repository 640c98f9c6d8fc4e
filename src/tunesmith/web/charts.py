"""Curves as SVG that the server writes: text stays text, colours are the style sheet's, and no script draws.

A picture of 100,000 steps has 700 columns of pixels: of each column the smallest and the largest value are drawn, in the order
in which they came, so that a spike of one step is seen. A value that is no finite number is a gap in its line. Each picture is
drawn for a wide and for a narrow screen, since letters in an SVG shrink with it; the style sheet shows one of the two.

Refused: matplotlib (half a second and 30 kB a picture, and it need not be installed here); a library in the browser (50 kB
from somewhere, and a canvas that nobody can read aloud).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tunesmith.notebook import nice_ticks
from tunesmith.tracking import visible

Floats = NDArray[np.float64]

WIDE, NARROW, SMALL = (720, 280), (340, 230), (340, 150)  # pixels
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 26  # margins
DOTS = 80  # points of a line that are dotted, at most


@dataclass(frozen=True)
class Line:
    """One line of a picture.

    Attributes:
        name: in the legend.
        style: class in the style sheet.
        x, y: in order of x; y may be NaN (left out) or infinite (a gap).
        is_dotted: whether its points are dots with their values.
    """

    name: str
    style: str
    x: Floats
    y: Floats
    is_dotted: bool = False


@dataclass(frozen=True)
class Frame:
    """What is around the lines.

    Attributes:
        title: what the picture is, for who cannot see it.
        x_name: of the axis.
        from_zero: whether the axis of values begins at 0.
        mark: an x that is marked by a dashed line, with its words.
    """

    title: str
    x_name: str = "optimizer step"
    from_zero: bool = True
    mark: tuple[float, str] | None = None


def picture(lines: Sequence[Line], frame: Frame) -> Markup:
    """A picture for a wide screen and one for a narrow screen."""
    return Markup(_svg(lines, frame, WIDE, "wide") + _svg(lines, frame, NARROW, "narrow"))


def small_picture(lines: Sequence[Line], frame: Frame) -> Markup:
    """A small picture, which fits every screen."""
    return Markup(_svg(lines, frame, SMALL, "small"))


def interval_bar(value: float, low: float, high: float, style: str) -> Markup:
    """A point of 0..1 with its interval, on a track."""
    parts = [
        '<svg class="track" viewBox="0 0 200 16" preserveAspectRatio="none" aria-hidden="true" focusable="false">',
        '<rect class="rail" x="0" y="7.5" width="200" height="1"/>',
        f'<rect class="reach {style}" x="{200 * low:.2f}" y="5" width="{max(0.0, 200 * (high - low)):.2f}" height="6"/>',
        f'<rect class="point {style}" x="{min(197.0, max(0.0, 200 * value - 1.5)):.2f}" y="1" width="3" height="14"/></svg>',
    ]
    return Markup("".join(parts))


def running_mean(y: Floats) -> Floats:
    """Mean over the last twentieth of the values so far that are finite; NaN where there is none."""
    finite = np.isfinite(y)
    width = max(1, len(y) // 20)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    first = np.maximum(0, np.arange(1, len(y) + 1) - width - 1)
    number = counts[1:] - counts[first]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(number > 0, (sums[1:] - sums[first]) / number, np.nan)


def thinned(x: Floats, y: Floats, columns: int) -> tuple[Floats, Floats]:
    """At most two points a column: the smallest and the largest, in their order; one where all are infinite."""
    keep = ~np.isnan(y)
    x, y = x[keep], y[keep]
    if len(x) <= 2 * columns:
        return x, y
    span = (x[-1] - x[0]) or 1.0
    column = np.minimum(((x - x[0]) / span * columns).astype(np.int64), columns - 1)
    edges = np.flatnonzero(np.diff(column, prepend=-1))
    chosen: list[int] = []
    for start, stop in zip(edges, [*edges[1:], len(x)], strict=True):
        part = y[start:stop]
        finite = np.flatnonzero(np.isfinite(part))
        if not len(finite):
            chosen.append(int(start))
            continue
        values = part[finite]
        ends = {int(start + finite[values.argmin()]), int(start + finite[values.argmax()])}
        chosen += sorted(ends)
    return x[chosen], y[chosen]


def _svg(lines: Sequence[Line], frame: Frame, size: tuple[int, int], style: str) -> str:
    width, height = size
    thin = [(line, *thinned(line.x, line.y, width - LEFT - RIGHT)) for line in lines]
    values = np.concatenate([y[np.isfinite(y)] for _, _, y in thin]) if thin else np.empty(0)
    if not len(values):
        return ""
    ticks = nice_ticks(min(0.0, float(values.min())) if frame.from_zero else float(values.min()), float(values.max()))
    xs = np.concatenate([x for _, x, _ in thin])
    first, last = float(xs.min()), max(float(xs.max()), float(xs.min()) + 1.0)
    scale = _Scale(first, last, ticks[0], ticks[-1], width, height)
    parts = [*_axes(scale, ticks, frame)]
    for line, x, y in thin:
        parts += _drawn(line, x, y, scale)
    return (
        f'<svg class="chart {style}" viewBox="0 0 {width} {height}" role="img" aria-label="{_text(frame.title)}">'
        f"{''.join(parts)}</svg>"
    )


@dataclass(frozen=True)
class _Scale:
    first: float
    last: float
    bottom: float
    top: float
    width: int
    height: int

    def x(self, value: float) -> float:
        return LEFT + (self.width - LEFT - RIGHT) * (value - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        return TOP + (self.height - TOP - BOTTOM) * (self.top - value) / (self.top - self.bottom)


def _axes(scale: _Scale, ticks: Sequence[float], frame: Frame) -> Iterator[str]:
    right, floor = scale.width - RIGHT, scale.height - BOTTOM
    for tick in ticks if scale.height > SMALL[1] else ticks[:: max(1, (len(ticks) - 1) // 3)]:
        y = scale.y(tick)
        yield f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    places = [tick for tick in nice_ticks(scale.first, scale.last) if scale.first <= tick <= scale.last and tick == int(tick)]
    for tick in places if scale.width > NARROW[0] or len(places) < 4 else places[::2]:
        anchor = "end" if scale.x(tick) > right - 20 else "middle"
        yield f'<text x="{scale.x(tick):.1f}" y="{floor + 17}" text-anchor="{anchor}">{int(tick):,}</text>'
    if frame.mark is not None:
        x = scale.x(frame.mark[0])
        title = f"<title>{_text(frame.mark[1])}</title>"
        yield f'<line class="mark" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{floor}">{title}</line>'


def _drawn(line: Line, x: Floats, y: Floats, scale: _Scale) -> Iterator[str]:
    """A line, broken where a value is infinite, and its dots."""
    breaks = np.flatnonzero(~np.isfinite(y))
    for piece in np.split(np.arange(len(y)), breaks):
        inside = piece[np.isfinite(y[piece])]
        places = [(scale.x(step), scale.y(value)) for step, value in zip(x[inside].tolist(), y[inside].tolist(), strict=True)]
        if len(places) == 1 and not line.is_dotted:
            yield f'<circle class="dot {line.style}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="1.5"/>'
        elif places:
            corners = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
            yield f'<polyline class="line {line.style}" points="{corners}"/>'
    if line.is_dotted and len(x) <= DOTS:
        for step, value in zip(x, y, strict=True):
            if np.isfinite(value):
                title = f"{line.name}, {step:g}: {value:.4f}"
                yield (
                    f'<circle class="dot {line.style}" cx="{scale.x(step):.1f}" cy="{scale.y(value):.1f}" r="3.5">'
                    f"<title>{_text(title)}</title></circle>"
                )


def _text(text: str) -> str:
    return escape(visible(text))
