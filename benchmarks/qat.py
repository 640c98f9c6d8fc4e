"""What training onto the grid of the deployed file wins back: each task trained plainly and with ``train.qat``, and deployed.

    python benchmarks/qat.py --room /tmp/qat                    # all tasks and seeds; hours on two cores
    python benchmarks/qat.py --tasks addresses --seeds 0        # one task, one seed
    python benchmarks/qat.py --table benchmarks/results/qat-DATE.json

Both trainings of a task and seed have the same recipe, rows, order and rate; only ``train.qat`` differs. A seed is that of the
adapter, the order and the dropout, the split is one for all. Each is scored twice on the sealed test rows: the tuned model in
this process, in the precision it was trained in, and the GGUF by llama.cpp. No prompt is searched and no verdict given. The
ledger of test readings is the benchmark's own.

Intervals are scipy's paired bootstrap of the test rows (BCa, 95 %), a row's score being its mean over the seeds: they say how
sure the figures are of other rows, not of other seeds, whose range stands beside them. The share of the gap that is closed is
given where the gap itself is certain. Every cell is written when it is there, and a second start goes on, stage by stage.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from data import machine
from tunesmith.evaluate.compare import scores
from tunesmith.pipeline import verbs
from tunesmith.pipeline.subrun import changed, make_inner, open_inner, share_data
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.training import Training

ROOT = Path(__file__).resolve().parents[1]
METHODS, ARMS = ("plain", "qat"), ("tuned", "deployed")
ROWS, HELD_OUT = 864, 132  # of a task; for dev, and for test
DRAWS = 9999
Result = dict[str, Any]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Task:
    """A recipe, and what of it is another here.

    Attributes:
        recipe: of this repository.
        kind: of the deployed file.
        rate: of learning; None for the recipe's.
    """

    recipe: str
    kind: str
    rate: float | None = None


TASKS = {
    "addresses": Task("us_addresses", "Q4_0", 2e-3),  # SmolLM2-135M
    "gemma": Task("us_addresses_gemma", "Q4_K_M"),  # Gemma-3-270M; its base is a Q4_K_M file already
    "gemma_Q4_0": Task("us_addresses_gemma", "Q4_0"),  # the same base, which lies on no grid of this type
}


def recipe_of(task: Task, rows: Path, method: str, seed: int, held_out: float) -> Recipe:
    """The recipe of a cell.

    Args:
        held_out: share of the rows for dev, and for test.
    """
    recipe = load_recipe(ROOT / "recipes" / f"{task.recipe}.yaml")
    rate = recipe.train.learning_rate if task.rate is None else task.rate
    train = recipe.train.model_copy(update={"learning_rate": rate, "num_train_epochs": 1, "qat": method == "qat"})
    data = recipe.data.model_copy(update={"path": str(rows), "test_fraction": held_out, "dev_fraction": held_out})
    export = recipe.export.model_copy(update={"gguf": (task.kind,), "lora_gguf": False})
    evaluate = recipe.evaluate.model_copy(update={"arms": ("zero_shot", *ARMS)})  # a recipe has one to beat; it is not asked
    return changed(recipe, data=data, train=train, export=export, seed=seed).model_copy(update={"evaluate": evaluate})


def _rendered(name: str, room: Path, count: int) -> tuple[RunDir, Path]:
    """The run whose split and rendered rows all cells of a task share."""
    room.mkdir(parents=True, exist_ok=True)
    rows = room / f"{name}-{count}.jsonl"
    if not rows.exists():
        whole = Path(str(load_recipe(ROOT / "recipes" / f"{TASKS[name].recipe}.yaml").data.path))
        rows.write_text("".join(whole.read_text(encoding="utf-8").splitlines(keepends=True)[:count]), encoding="utf-8")
    run = RunDir.create(room / f"{name}-{count}", recipe_of(TASKS[name], rows, "plain", 0, HELD_OUT / ROWS), replace=True)
    verbs.make(run, ["render"], all_needed=True)
    return run, rows


def measure(name: str, method: str, seed: int, room: Path, count: int) -> Result:
    """Train once, export, and score both arms on the test rows."""
    begun = time.perf_counter()
    run, rows = _rendered(name, room, count)
    recipe = recipe_of(TASKS[name], rows, method, seed, HELD_OUT / ROWS)
    inner = open_inner(run.path / f"{method}-{seed}", recipe)
    share_data(run, inner)
    make_inner(inner, recipe, "train", "evaluate tuned", "export", "evaluate deployed")
    answers = {arm: Output.read_lines(inner.answers(arm) / "outputs.jsonl") for arm in ARMS}
    training = Training.read(inner.training_file)
    return {
        "task": name,
        "method": method,
        "seed": seed,
        "rows": count,
        "kind": TASKS[name].kind,
        "learning_rate": training.learning_rate,
        "steps": training.steps,
        "best_step": training.best_step,
        "dev_loss": training.best_dev_loss,
        "ids": [output.id for output in answers["tuned"]],
        "scores": {arm: scores(outputs).tolist() for arm, outputs in answers.items()},
        "figures": {
            arm: [{name: round(value, 4) for name, value in output.figures.items()} for output in outputs]
            for arm, outputs in answers.items()
        },
        "seconds": round(time.perf_counter() - begun, 1),
    }


def per_row(results: list[Result], name: str, figure: str | None) -> dict[tuple[str, str], Scores]:
    """The score of each test row, mean over the seeds that both methods have, by method and arm.

    Args:
        figure: one of the metric's in the place of its headline.
    """
    own = [one for one in results if one["task"] == name]
    seeds = set.intersection(*({one["seed"] for one in own if one["method"] == method} for method in METHODS))
    if not seeds:
        return {}
    assert len({tuple(one["ids"]) for one in own}) == 1, f"{name}: cells of other rows"
    found = {}
    for method, arm in itertools.product(METHODS, ARMS):
        cells = [one for one in own if one["method"] == method and one["seed"] in seeds]
        values = [
            one["scores"][arm] if figure is None else [row.get(figure, 0.0) for row in one["figures"][arm]] for one in cells
        ]
        found[method, arm] = np.asarray(values, dtype=np.float64).mean(0)
    return found


def _interval(statistic: Any, *values: Scores) -> tuple[float, float]:
    """Paired bootstrap of rows; the figure itself twice where no row differs."""
    point = float(statistic(*values, axis=-1))
    if all(np.ptp(a - b) == 0 for a, b in itertools.pairwise(values)):
        return point, point
    found = stats.bootstrap(values, statistic, n_resamples=DRAWS, paired=True, vectorized=True, rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _difference(a: Scores, b: Scores, axis: int = -1) -> Any:
    return a.mean(axis) - b.mean(axis)


def _share(qat: Scores, plain: Scores, tuned: Scores, axis: int = -1) -> Any:
    gap = tuned.mean(axis) - plain.mean(axis)
    return (qat.mean(axis) - plain.mean(axis)) / np.where(gap == 0, np.nan, gap)


def row_of(results: list[Result], name: str, figure: str | None) -> str | None:
    """A line of the table: four arms, the gap of the plain training, and what of it is closed; None before both are there."""
    values = per_row(results, name, figure)
    if not values:
        return None
    own = [one for one in results if one["task"] == name]
    ends = [f"{100 * values[method, arm].mean():.1f}" for method, arm in itertools.product(METHODS, ARMS)]
    tuned, plain, qat = values["plain", "tuned"], values["plain", "deployed"], values["qat", "deployed"]
    gap, low, high = _difference(tuned, plain), *_interval(_difference, tuned, plain)
    won, least, most = _difference(qat, plain), *_interval(_difference, qat, plain)
    closed = "the gap is not certain"
    if low > 0:
        first, last = _interval(_share, qat, plain, tuned)
        closed = f"{_share(qat, plain, tuned):.0%} ({first:.0%} to {last:.0%})"
    seeds = sorted({one["seed"] for one in own})
    each = [
        100 * float(np.mean(next(o for o in own if (o["method"], o["seed"]) == ("qat", seed))["scores"]["deployed"]))
        - 100 * float(np.mean(next(o for o in own if (o["method"], o["seed"]) == ("plain", seed))["scores"]["deployed"]))
        for seed in seeds
        if {("qat", seed), ("plain", seed)} <= {(o["method"], o["seed"]) for o in own}
    ]
    spread = f"{min(each):+.1f} to {max(each):+.1f}" if figure is None else ""
    label = f"{name} ({own[0]['kind']})" if figure is None else f"- {figure}"
    return (
        f"| {label} | {' | '.join(ends)} | {100 * gap:.1f} ({100 * low:.1f} to {100 * high:.1f}) "
        f"| {100 * won:+.1f} ({100 * least:+.1f} to {100 * most:+.1f}) | {closed} | {spread} | {len(each)} |"
    )


def table(results: list[Result]) -> str:
    """All tasks in Markdown, of 100: the headline, and F1 of the fields, which moves before whole answers do."""
    lines = [
        "| task | plain: tuned | deployed | QAT: tuned | deployed | gap of plain | won by QAT, deployed | gap closed "
        "| won, by seed | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(one["task"] for one in results):
        lines += [line for figure in (None, "field_f1") if (line := row_of(results, name, figure)) is not None]
    return "\n".join(lines)


def main() -> None:
    """Measure what is not measured yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"some of {', '.join(TASKS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of a task; {HELD_OUT} of {ROWS} are dev, as many test")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / f"qat-{datetime.now(UTC):%Y-%m-%d}.json")
    parser.add_argument("--room", type=Path, help="keep the runs here (default: a directory that is removed)")
    parser.add_argument("--table", type=Path, help="print the table of a stored output, measure nothing")
    chosen = parser.parse_args()
    if chosen.table is not None:
        print(table(json.loads(chosen.table.read_text(encoding="utf-8"))["results"]))
        return
    if unknown := set(chosen.tasks.split(",")) - set(TASKS):
        parser.error(f"--tasks: {', '.join(sorted(unknown))}; known: {', '.join(TASKS)}")
    results: list[Result] = json.loads(chosen.out.read_text(encoding="utf-8"))["results"] if chosen.out.exists() else []
    done = {(one["task"], one["method"], one["seed"]) for one in results}
    if other := {one["rows"] for one in results} - {chosen.rows}:
        parser.error(f"{chosen.out} holds cells of {other.pop()} rows; give another --out")
    wanted = itertools.product(map(int, chosen.seeds.split(",")), chosen.tasks.split(","), METHODS)
    with tempfile.TemporaryDirectory() as temporary:
        room = (chosen.room or Path(temporary)).resolve()
        os.environ["XDG_DATA_HOME"] = str(room / "ledger")
        for seed, name, method in wanted:
            if (name, method, seed) not in done:
                results.append(measure(name, method, seed, room, chosen.rows))
                said = {key: value for key, value in results[-1].items() if key not in ("ids", "scores", "figures")}
                print(json.dumps(said), file=sys.stderr)
                chosen.out.write_text(json.dumps({"machine": machine(), "rows": chosen.rows, "results": results}))
    print(table(results))


if __name__ == "__main__":
    main()
