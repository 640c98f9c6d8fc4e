"""How often "prompt is enough" is wrong, and how often it is said when it is right: whole advices over simulated prompts.

A task is a set of prompts whose best has a fixed true accuracy, the others below it by a normal spread (spread 0: all alike,
the hardest case for whoever chooses). Rows share their difficulty as in ``gate_simulation.py``. Answers to dev go through the
product's halving, its cross-fitted figure (``evaluate/cross_fit.py``) and its rules (``advise/decide.py``), ``min_gain`` being
5 points. Where 10 points are left (``min_gain`` and 5 more) "prompt is enough" is wrong; where 2 or none are left it is right.
``before`` is the rule that it replaced: the winner's figure on the rows that chose it. Of 31 dev rows none may be wrong for it
to be said, of 49 one: these are the smallest such parts, where a bound is least certain. ``fitted`` and ``winner`` are mean
figures.

A second table is the coverage of the 95 % interval of one prompt's figure for metrics whose rows are not right or wrong:
before, Wilson's of the figure; now, what fits the metric. It takes a quarter of the runs.

    python benchmarks/advice_simulation.py --runs 2000 --out benchmarks/results/advice-simulation-DATE.json

A cell that is there with as many runs is skipped. ``tests/evaluate/test_cross_fit.py`` holds the stored file to the promise.
"""

import argparse
import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from gate_simulation import EMPTY, YES_NO, Answers, answers_right

from tunesmith.advise.decide import decide
from tunesmith.evaluate.compare import figure_with_interval
from tunesmith.evaluate.cross_fit import cross_fit
from tunesmith.evaluate.metrics import Metric, make_metric
from tunesmith.evaluate.search import halving
from tunesmith.evaluate.select import FEWEST
from tunesmith.evaluate.stats import wilson
from tunesmith.recipe import Task
from tunesmith.rundir.records.advice import (
    DevArm,
    Facts,
    MachineFacts,
    MemoryFacts,
    MetricFacts,
    PriceFacts,
    RowFacts,
)
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evidence import CrossFit

Cell = dict[str, int | float | str]

MIN_GAIN = 0.05
LEFT, DEV, PROMPTS, SPREAD = (10, 2, 0), (31, 49, 64, 100, 200), (8, 17), (0, 2, 5)  # points, rows, prompts, points
CELLS = tuple(itertools.product(LEFT, DEV, PROMPTS, SPREAD))
SPAM, ACCURACY = 0.14, 0.95  # of a spam filter's rows, and of its answers
COVERED = tuple(itertools.product(("macro_f1", "share"), (64, 200)))
ROWS = RowFacts(
    rows=2000,
    distinct=2000,
    prompts=2000,
    conflicting=0,
    distinct_4=0.9,
    compression=3.0,
    sampled=2000,
    train=1500,
    dev=200,
    test=300,
    split=True,
    tokens=100_000,
    supervised=50_000,
    counted=True,
)
METRIC = MetricFacts(
    name="exact_match",
    tried=500,
    calibrated=None,
    min_gain=MIN_GAIN,
    planned=2 * MIN_GAIN,
    detectable=0.08,
    test_needed=145,
    min_score=None,
    discordance=0.2,
)
FACTS = Facts(
    rows=ROWS,
    metric=METRIC,
    arms=(),
    prompt=None,
    retrieval=None,
    documents=False,
    price=PriceFacts(calls_per_month=None, per_million=None, per_hour=None, tokens_saved=0.0, counted=True),
    machine=MachineFacts(name="this machine", kind="cpu", cores=2, memory=2**34),
    memory=MemoryFacts(base="auto", by_base={}, why_not="not asked", parameters=0, adapter_per_rank=0, hidden=0),
)


class Dev:
    """The prompts' answers to dev, as successive halving leaves them.

    Attributes:
        winner: the best prompt's figure on the rows that chose it.
        fit: the figure that the advice goes by.
    """

    def __init__(self, left: int, rows: int, prompts: int, spread: int, rng: np.random.Generator, answers: Answers):
        below = spread / 100 * rng.standard_normal(prompts)
        accuracies = np.clip(1.0 - left / 100 + below - below.max(), 0.01, 1.0)
        right = answers_right(accuracies, rows, rng)
        outputs = [answers.of(right[prompt]) for prompt in range(prompts)]
        order = halving(range(prompts), rows, FEWEST, lambda prompt, mark: (float(right[prompt, :mark].mean()),))
        ways = [outputs[prompt][:mark] for prompt, mark in sorted(order)]
        fit = cross_fit(ways, _mean, YES_NO)
        assert fit is not None
        self.fit: CrossFit = fit
        self.winner = float(right[order[0][0]].mean())
        self.rows = rows

    @property
    def says_enough(self) -> bool:
        """Whether the advice is "prompt is enough"."""
        arm = DevArm(
            name="few_shot",
            detail="k=4",
            score=self.winner,
            n=self.rows,
            prompt_tokens=1,
            new_tokens=1,
            retrieves=False,
        )
        return decide(replace(FACTS, arms=(arm,), prompt=self.fit), None).ending == "prompt is enough"


def _mean(answers: Sequence[Output]) -> tuple[float, ...]:
    return (sum(answer.score or 0.0 for answer in answers) / len(answers),)


def _rate(name: str, hits: int, runs: int) -> Cell:
    """A share with its Monte-Carlo standard error (of (x + 1) / (n + 2), never 0)."""
    smoothed = (hits + 1) / (runs + 2)
    return {name: round(hits / runs, 4), f"{name}_se": round(math.sqrt(smoothed * (1.0 - smoothed) / runs), 4)}


def simulate(left: int, rows: int, prompts: int, spread: int, runs: int) -> Cell:
    """How often "prompt is enough" is said, now and before, and the mean figures beside the true one of the best."""
    rng, answers = np.random.default_rng([left, rows, prompts, spread]), Answers(rows)
    now = before = 0
    figures = np.zeros(2)
    for _ in range(runs):
        dev = Dev(left, rows, prompts, spread, rng, answers)
        now += dev.says_enough
        before += 1.0 - dev.winner < MIN_GAIN - 1e-9
        figures += (dev.fit.score, dev.winner)
    cell = {"left": left, "dev": rows, "prompts": prompts, "sd": spread, "runs": runs}
    shown = dict(zip(("fitted", "winner"), (figures / runs).round(4).tolist(), strict=True))
    return {**cell, **_rate("enough", now, runs), **_rate("enough_before", before, runs), **shown}


def _filtered(rows: int, rng: np.random.Generator) -> list[Output]:
    """Answers of a spam filter."""
    spam = rng.random(rows) < SPAM
    said = spam ^ (rng.random(rows) > ACCURACY)
    names = ("ham", "spam")
    return [
        replace(EMPTY, id=str(row), output=names[is_said], reference=names[is_spam], score=float(is_said == is_spam))
        for row, (is_spam, is_said) in enumerate(zip(spam.tolist(), said.tolist(), strict=True))
    ]


def _shares(rows: int, rng: np.random.Generator) -> list[Output]:
    """Answers that are partly right, most of them little, as ROUGE scores them."""
    return [replace(EMPTY, id=str(row), score=float(score)) for row, score in enumerate(rng.beta(0.6, 0.9, rows))]


def coverage(kind: str, rows: int, runs: int) -> Cell:
    """How often the 95 % interval of one prompt's figure holds the true one."""
    rng = np.random.default_rng([len(kind), rows])
    if kind == "macro_f1":
        metric, draw = make_metric(Task(metric="macro_f1", labels=("ham", "spam"))), _filtered
        spam_right, ham_right, wrong = SPAM * ACCURACY, (1.0 - SPAM) * ACCURACY, 1.0 - ACCURACY
        truth = sum(2 * right / (2 * right + wrong) for right in (spam_right, ham_right)) / 2
    else:
        metric, draw = Metric(name="rouge", score=YES_NO.score, tie_break="score", binary=False), _shares
        truth = 0.6 / 1.5
    now = before = 0
    for _ in range(runs):
        figure, (low, high) = figure_with_interval(draw(rows, rng), metric)
        old = wilson(round(figure * rows), rows)
        now, before = now + (low <= truth <= high), before + (old.low <= truth <= old.high)
    return {"metric": kind, "dev": rows, "runs": runs, **_rate("covered", now, runs), **_rate("covered_before", before, runs)}


def main() -> None:
    """Simulate the cells that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="tasks a cell")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of cells; goes on with one that is there")
    options = parser.parse_args()
    stored: dict[str, list[Cell]] = {"cells": [], "coverage": []}
    if options.out.exists():
        stored = json.loads(options.out.read_text())

    def fill(table: str, key: Cell, runs: int, measure: Callable[[], Cell]) -> None:
        known = [cell for cell in stored[table] if key.items() <= cell.items()]
        if any(int(cell["runs"]) >= runs for cell in known):
            return
        cell = measure()
        stored[table] = [other for other in stored[table] if other not in known] + [cell]
        tables = (f'"{name}": [\n' + ",\n".join(map(json.dumps, cells)) + "\n]" for name, cells in stored.items())
        options.out.write_text("{" + ",\n".join(tables) + "}\n")
        print(json.dumps(cell), file=sys.stderr, flush=True)

    for left, rows, prompts, spread in CELLS:
        key: Cell = {"left": left, "dev": rows, "prompts": prompts, "sd": spread}
        fill("cells", key, options.runs, functools.partial(simulate, left, rows, prompts, spread, options.runs))
    for metric, rows in COVERED:
        few = options.runs // 4
        fill("coverage", {"metric": metric, "dev": rows}, few, functools.partial(coverage, metric, rows, few))


if __name__ == "__main__":
    main()
