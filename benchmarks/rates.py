"""Which learning rate suits a task: several rates and the rule's own, over tasks and seeds, scored on dev.

    python benchmarks/rates.py                                  # what docs/LOG.md shows; hours on two cores
    python benchmarks/rates.py --tasks sms_spam --seeds 0       # one task, one seed
    python benchmarks/rates.py --table benchmarks/results/rates-DATE.json

Each training takes the same rows of a recipe of this repository, once: the first ``ROWS`` of its file, a fifth of which is
dev. The tokens of a step follow from the rows as for any recipe (``tokens_per_step: auto``), the rate is the column's;
``auto`` is the rule, ``race`` the rule with its race. A seed is that of the adapter, the order and the dropout; the split is
that of seed 0 for all. Scores are those of the adapter that the run keeps (its lowest dev loss), on the dev rows that chose
it, which flatters all columns alike. Every result is written when it is there, and a second start goes on.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data import machine
from tunesmith.engines.open import open_in_process
from tunesmith.pipeline import verbs
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.dev_task import dev_task
from tunesmith.pipeline.subrun import changed, make_inner, open_inner, share_data
from tunesmith.recipe import Recipe, load_recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.training import Training

ROOT = Path(__file__).resolve().parents[1]
TASKS = "question_types,sms_spam,person_names,us_addresses"
RATES = "3e-4,auto,1e-3,2e-3"
ROWS = 600
Result = dict[str, Any]


def recipe_of(task: str, rows: Path, rate: str, seed: int) -> Recipe:
    """The recipe of a task on other rows, with this rate and seed and nothing derived taken away."""
    recipe = load_recipe(ROOT / "recipes" / f"{task}.yaml")
    train = recipe.train.model_copy(
        update={
            "learning_rate": "auto" if rate in ("auto", "race") else float(rate),
            "race": rate == "race",
            "tokens_per_step": "auto",
            "num_train_epochs": 1,
            "replay": 0.0,
        }
    )
    data = recipe.data.model_copy(update={"path": str(rows), "test_fraction": 0.05, "dev_fraction": 0.2})
    return changed(recipe, data=data, train=train, seed=seed)


def _rendered(task: str, room: Path) -> RunDir:
    """The run whose split and rendered rows all trainings of a task share."""
    room.mkdir(parents=True, exist_ok=True)
    rows = room / f"{task}.jsonl"
    if not rows.exists():
        whole = Path(load_recipe(ROOT / "recipes" / f"{task}.yaml").data.path)
        rows.write_text("".join(whole.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]), encoding="utf-8")
    run = RunDir.create(room / task, recipe_of(task, rows, "auto", 0), replace=True)
    verbs.make(run, ["render"], all_needed=True)
    return run


def measure(task: str, rate: str, seed: int, room: Path) -> Result:
    """Train once and score on dev."""
    begun = time.perf_counter()
    run, recipe = _rendered(task, room), recipe_of(task, room / f"{task}.jsonl", rate, seed)
    inner = open_inner(run.path / f"{rate}-{seed}", recipe)
    share_data(run, inner)
    make_inner(inner, recipe, "train")
    dev = dev_task(run, recipe, ROWS)
    assert not isinstance(dev, str), dev
    with closing(open_in_process(base_of(run, recipe), inner.adapter, recipe.evaluate.batch_size)) as engine:
        score = dev.score(dev.ask(f"{task} {rate} {seed}", engine))
    training = Training.read(inner.training_file)
    return {
        "task": task,
        "rate": rate,
        "seed": seed,
        "learning_rate": training.learning_rate,
        "steps": training.steps,
        "best_step": training.best_step,
        "dev_loss": training.best_dev_loss,
        "last_dev_loss": training.dev_losses[-1].dev_loss,
        "score": score,
        "dev_rows": dev.n,
        "seconds": round(time.perf_counter() - begun, 1),
    }


def table(results: list[Result]) -> str:
    """Mean dev score of 100, its range over seeds, and the mean dev loss, of every task and rate; in Markdown."""
    lines = [
        "| task | rate | trained at | steps | dev score: mean (min to max) | dev loss: mean | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, rate in dict.fromkeys((one["task"], one["rate"]) for one in results):
        own = [one for one in results if (one["task"], one["rate"]) == (task, rate)]
        scores = [100 * one["score"] for one in own]
        figures = f"{statistics.fmean(scores):.1f} ({min(scores):.1f} to {max(scores):.1f})"
        rates = " ".join(f"{value:.1e}" for value in sorted({one["learning_rate"] for one in own}))
        loss = statistics.fmean(one["dev_loss"] for one in own)
        lines.append(f"| {task} | {rate} | {rates} | {own[0]['steps']} | {figures} | {loss:.4f} | {len(own)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is not measured yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--rates", default=RATES)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / f"rates-{datetime.now(UTC):%Y-%m-%d}.json"
    )
    parser.add_argument("--room", type=Path, help="keep the runs here (default: a directory that is removed)")
    parser.add_argument("--table", type=Path, help="print the table of a stored output, measure nothing")
    chosen = parser.parse_args()
    if chosen.table is not None:
        print(table(json.loads(chosen.table.read_text(encoding="utf-8"))["results"]))
        return
    results: list[Result] = json.loads(chosen.out.read_text(encoding="utf-8"))["results"] if chosen.out.exists() else []
    done = {(one["task"], one["rate"], one["seed"]) for one in results}
    wanted = itertools.product(map(int, chosen.seeds.split(",")), chosen.tasks.split(","), chosen.rates.split(","))
    with tempfile.TemporaryDirectory() as temporary:
        for seed, task, rate in wanted:
            if (task, rate, seed) not in done:
                results.append(measure(task, rate, seed, chosen.room or Path(temporary)))
                print(json.dumps(results[-1]), file=sys.stderr)
                chosen.out.write_text(json.dumps({"machine": machine(), "rows": ROWS, "results": results}, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
