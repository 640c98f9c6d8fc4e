"""The training of a run as pictures, each with a table: loss, gradient norm, tokens a second, learning rate."""

import math
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tunesmith.formatting import duration
from tunesmith.rundir.records.training import Training
from tunesmith.web.charts import Floats, Frame, Line, picture, running_mean, small_picture
from tunesmith.web.life import FIGURES, Steps

ROWS = 20  # of the table


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What is shown of a training.

    Attributes:
        loss: the picture of train and dev loss, with the best step marked.
        small: pictures of other figures, with their titles.
        facts: words and figures beside them.
        rows: steps of the table: step, loss, dev loss, gradient norm, learning rate, tokens a second.
        notes: what was not measured, or no finite number.
    """

    loss: Markup
    small: list[tuple[str, Markup]]
    facts: list[tuple[str, str]]
    rows: list[tuple[str, ...]]
    notes: list[str]


def curves_of(steps: Steps, training: Training | None) -> Curves | None:
    """The pictures and the table of a training; None before its first step."""
    if not len(steps.steps):
        return None
    x = np.array(steps.steps, dtype=np.float64)
    columns = {name: np.array(steps.columns[name]) for name in FIGURES}
    dev_x, dev_y = _dev(x, columns["dev_loss"], training)
    best = _best(dev_x, dev_y)
    with np.errstate(invalid="ignore", divide="ignore"):
        speed = columns["tokens"] / columns["seconds"]
    mark = None if best is None else (best[0], f"best: step {best[0]:g}")
    lines = [
        Line("train", "train", x, columns["loss"]),
        Line("train, running mean", "mean", x, running_mean(columns["loss"])),
        Line("dev", "dev", dev_x, dev_y, is_dotted=True),
    ]
    told = "" if best is None else f"; dev loss is lowest at step {best[0]:g}, {best[1]:.4f}"
    frame = Frame(f"Loss by optimizer step, {len(x):,} steps{told}", mark=mark)
    small = [
        ("gradient norm", small_picture([Line("gradient norm", "train", x, columns["grad_norm"])], Frame("Gradient norm"))),
        ("tokens a second", small_picture([Line("tokens/s", "train", x, speed)], Frame("Tokens a second"))),
        ("learning rate", small_picture([Line("rate", "train", x, columns["learning_rate"])], Frame("Learning rate"))),
    ]
    return Curves(
        loss=picture(lines, frame),
        small=[(title, drawn) for title, drawn in small if drawn],
        facts=_facts(steps, columns, speed, best),
        rows=_rows(x, columns, speed),
        notes=_not_finite(columns, x),
    )


def _dev(x: Floats, dev: Floats, training: Training | None) -> tuple[Floats, Floats]:
    """Dev losses with their steps; the one before the first step is in the record of the training alone."""
    keep = ~np.isnan(dev)
    xs, ys = x[keep], dev[keep]
    if training is not None and training.dev_losses and training.dev_losses[0].step == 0:
        xs, ys = np.concatenate([[0.0], xs]), np.concatenate([[training.first_dev_loss], ys])
    return xs, ys


def _best(x: Floats, y: Floats) -> tuple[float, float] | None:
    finite = np.isfinite(y)
    if not finite.any():
        return None
    place = int(np.argmin(np.where(finite, y, np.inf)))
    return float(x[place]), float(y[place])


def _facts(steps: Steps, columns: dict[str, Floats], speed: Floats, best: tuple[float, float] | None) -> list[tuple[str, str]]:
    tokens, seconds = columns["tokens"], columns["seconds"]
    fresh = speed[np.isfinite(speed)][-20:]
    facts = [
        ("steps", f"{steps.steps[-1]:,}"),
        ("train loss", _newest(columns["loss"], ".4f")),
        ("dev loss", _newest(columns["dev_loss"], ".4f")),
        ("best dev loss", "not yet" if best is None else f"{best[1]:.4f} at step {best[0]:g}"),
        ("gradient norm", _newest(columns["grad_norm"], ".3g")),
        ("learning rate", _newest(columns["learning_rate"], ".3g")),
        ("tokens seen", f"{int(tokens[np.isfinite(tokens)].sum()):,}"),
    ]
    if len(fresh):
        facts.append(("tokens a second", f"{float(fresh.mean()):,.0f}, mean of the last {len(fresh)} steps"))
        facts.append(("time in steps", duration(float(seconds[np.isfinite(seconds)].sum()))))
    return facts


def _rows(x: Floats, columns: dict[str, Floats], speed: Floats) -> list[tuple[str, ...]]:
    """Some steps, evenly spaced, the last one always: half of them such as have a dev loss, where there are any."""
    dev = np.flatnonzero(~np.isnan(columns["dev_loss"]))
    places = {*_spaced(np.arange(len(x)), ROWS - min(len(dev), ROWS // 2)), *_spaced(dev, ROWS // 2)}
    return [
        (
            f"{x[place]:,.0f}",
            _figure(columns["loss"][place], ".4f"),
            _figure(columns["dev_loss"][place], ".4f"),
            _figure(columns["grad_norm"][place], ".3g"),
            _figure(columns["learning_rate"][place], ".3g"),
            _figure(speed[place], ",.0f"),
        )
        for place in sorted(places)
    ]


def _spaced(places: NDArray[np.int64], most: int) -> list[int]:
    """At most so many of some places, the first and the last among them."""
    return places[np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int))].tolist()


def _newest(column: Floats, form: str) -> str:
    measured = column[~np.isnan(column)]
    return _figure(float(measured[-1]), form) if len(measured) else "not yet"


def _figure(value: float, form: str) -> str:
    return "" if math.isnan(value) else "not finite" if math.isinf(value) else format(value, form)


def _not_finite(columns: dict[str, Floats], x: Floats) -> list[str]:
    names = {"loss": "train loss", "dev_loss": "dev loss", "grad_norm": "gradient norm", "learning_rate": "learning rate"}
    notes: list[str] = []
    for name, words in names.items():
        places = np.flatnonzero(np.isinf(columns[name]))
        if len(places):
            notes.append(
                f"{words}: no finite number at {len(places):,} of the steps, first at step {x[places[0]]:g}; a gap in the line"
            )
    return notes
