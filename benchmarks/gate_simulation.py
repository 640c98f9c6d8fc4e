"""How often the gate is wrong: whole decisions over simulated tasks, through the product's own halving, comparison and verdict.

A task is 16 prompts with true accuracies around 60 of 100 (normal, with a standard deviation of 2, 5 or 10 points) and a tuned
model whose true accuracy is fixed against the *best prompt tried*: equal, 2 points worse, or 10 better. Some cells have 32 or
64 prompts: so many are tried when every prompt is also held to the schema or the labels. The two ways of one prompt are taken
as independent, which is harder. Rows share their difficulty (a normal copula with correlation 0.6 between any two ways of
answering, so that answers agree more often than chance). The prompts go through ``evaluate/search.py``'s halving on dev, the
finalists and the tuned model answer the test part, and ``evaluate/gate.py`` decides with ``min_gain`` 3 points.

    python benchmarks/gate_simulation.py --runs 1000 --out benchmarks/results/gate-simulation-DATE.json

Every cell is written when it is done and skipped when it is there with as many runs, so a simulation that was stopped goes on.
The claims (at most 5 % false deploys, at least 90 % power for 10 points at 300 rows) are checked in
``tests/evaluate/test_gate_simulation.py`` on this file's results, and on a smaller simulation.

``min_gain`` matters little for false deploys; all prompts stand for one arm, which is the hardest case, since every arm keeps
its own finalists to the end.
"""

import argparse
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from tunesmith.evaluate.gate import case_of, decide, rivals_of
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.search import halving
from tunesmith.evaluate.select import finalist_count
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.evaluation import Candidate, Selection, Terms

BASE, SHARED, MIN_GAIN = 0.60, 0.6, 0.03
TRUTHS = {"equal": 0.0, "worse2": -0.02, "gain10": 0.10}
# truth, test rows, spread of the prompts in points, dev rows, prompts
CELLS = (
    *itertools.product(TRUTHS, (100, 300, 1000), (2, 5, 10), (64, 200), (16,)),
    *itertools.product(("equal",), (300, 1000), (2, 5, 10), (64, 200), (32,)),
    *itertools.product(("equal",), (300, 1000), (2, 5), (64,), (64,)),
)
YES_NO = Metric(name="exact_match", score=lambda answer, reference: {"score": 1.0}, tie_break="score", binary=True)
EMPTY = Output(
    id="",
    prompt=[],
    output="",
    reference="",
    score=0.0,
    figures={},
    prompt_tokens=1,
    new_tokens=1,
    seconds=0.0,
    finished=True,
)
Bools = NDArray[np.bool_]


class Task:
    """One simulated task: which rows each prompt and the tuned model get right."""

    def __init__(self, truth: str, rows: int, spread: int, dev: int, rng: np.random.Generator, prompts: int = 16):
        accuracies = np.clip(BASE + spread / 100 * rng.standard_normal(prompts), 0.01, 0.99)
        tuned = float(np.clip(accuracies.max() + TRUTHS[truth], 0.01, 0.99))
        self.prompts_dev = answers_right(accuracies, dev, rng)
        both = answers_right(np.append(accuracies, tuned), rows, rng)
        self.prompts_test, self.tuned_test = both[:-1], both[-1]


def answers_right(accuracies: NDArray[np.float64], rows: int, rng: np.random.Generator) -> Bools:
    """Shape (ways of answering, rows)."""
    shared, own = rng.standard_normal(rows), rng.standard_normal((len(accuracies), rows))
    return ndtri(accuracies)[:, None] > math.sqrt(SHARED) * shared + math.sqrt(1.0 - SHARED) * own


def finalists_of(right: Bools, count: int) -> list[int]:
    """The best prompts of a dev part, as the product chooses them; shape (prompts, rows)."""
    ranked = halving(range(len(right)), right.shape[1], count, lambda prompt, rows: (float(right[prompt, :rows].mean()),))
    return [prompt for prompt, _ in ranked[:count]]


class Answers:
    """Right and wrong outputs of every row, made once."""

    def __init__(self, rows: int):
        self._pairs = [tuple(replace(EMPTY, id=str(row), score=score) for score in (0.0, 1.0)) for row in range(rows)]

    def of(self, right: Bools) -> list[Output]:
        """The outputs of an arm that gets these rows right."""
        return [pair[is_right] for pair, is_right in zip(self._pairs, right.tolist(), strict=True)]


def decision(task: Task, answers: Answers, finalists: int | None = None) -> str:
    """The verdict of a task.

    Args:
        finalists: as in the recipe.
    """
    prompts, dev_rows = task.prompts_dev.shape
    best = finalists_of(task.prompts_dev, finalists or finalist_count(len(task.tuned_test), dev_rows, prompts))
    names = [f"few_shot:{place}" if place > 1 else "few_shot" for place in range(1, len(best) + 1)]
    outputs = {name: answers.of(task.prompts_test[prompt]) for name, prompt in zip(names, best, strict=True)}
    outputs["tuned"] = answers.of(task.tuned_test)
    selection = Selection(
        finalists=tuple(names),
        rivals=("few_shot",),
        arms={name: Candidate(arm="few_shot", instruction=None) for name in names},
        candidates=(),
        search=None,
        dev_rows=task.prompts_dev.shape[1],
    )
    rivals, _ = rivals_of(outputs, "tuned", selection, YES_NO, None)
    return decide(case_of(rivals, float(task.tuned_test.mean()), Terms(min_gain=MIN_GAIN))).decision


def simulate(truth: str, rows: int, spread: int, dev: int, prompts: int, runs: int) -> dict[str, float | int | str]:
    """The share of deploys over so many tasks, with its Monte-Carlo standard error (of (x + 1) / (n + 2), never 0)."""
    rng = np.random.default_rng([sorted(TRUTHS).index(truth), rows, spread, dev, prompts])
    answers = Answers(rows)
    decisions = [decision(Task(truth, rows, spread, dev, rng, prompts), answers) for _ in range(runs)]
    share, smoothed = decisions.count("deploy") / runs, (decisions.count("deploy") + 1) / (runs + 2)
    return {
        "truth": truth,
        "n": rows,
        "sd": spread,
        "dev": dev,
        "prompts": prompts,
        "deploy": round(share, 4),
        "se": round(math.sqrt(smoothed * (1.0 - smoothed) / runs), 4),
        "runs": runs,
    }


def main() -> None:
    """Simulate the cells that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="tasks a cell")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of cells; goes on with one that is there")
    options = parser.parse_args()
    cells = json.loads(options.out.read_text())["cells"] if options.out.exists() else []
    for key in sorted(CELLS, key=lambda cell: cell[1]):
        known = [cell for cell in cells if tuple(cell[name] for name in ("truth", "n", "sd", "dev", "prompts")) == key]
        if any(cell["runs"] >= options.runs for cell in known):
            continue
        cell = simulate(*key, options.runs)
        cells = [other for other in cells if other not in known] + [cell]
        options.out.write_text(json.dumps({"cells": cells}, indent=1) + "\n")
        print(json.dumps(cell), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
