"""Several seeds: is the gain the method's, or the luck of one training run?

The interval of a score says what other test rows would have given; it knows nothing of another initialisation of the
adapter, another order of rows or another dropout. ``evaluate.seeds: 3`` trains adapters with ``seed``, ``seed + 1`` and
``seed + 2`` on the same split and scores each on the sealed test part. The first is the run's own and is not trained
again; the others lie in ``seeds/1/``, ``seeds/2/``. Refused: choosing the best seed, which is selection on the test part.
The run deploys its own seed, and the spread says how much that choice mattered.

The cost is one training and one test arm a seed. Every reading of the test part is booked
in the ledger, behind the run's own (``booking.py``).
"""

import logging
import statistics

from tunesmith.formatting import percent
from tunesmith.pipeline.booking import adapter_key, book, is_booked
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.subrun import changed, make_inner, open_inner, share_data
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.records.answers import Scores
from tunesmith.rundir.records.evidence import SeedRun, Seeds
from tunesmith.rundir.records.training import Training

logger = logging.getLogger(__name__)

ARM = "tuned"


def seed_recipes(recipe: Recipe) -> list[Recipe]:
    """The recipe of every adapter, the run's own first."""
    return [changed(recipe, seed=(recipe.seed + k) % 2**31) for k in range(recipe.evaluate.seeds)]


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Train and score the adapters of ``evaluate.seeds``; writes ``evaluation/seeds.json``."""
    recipes = seed_recipes(recipe)
    runs = [_figures(run, recipes[0])]
    for k, other in enumerate(recipes[1:], 1):
        inner = open_inner(run.path / "seeds" / str(k), other)
        share_data(run, inner)
        logger.info(f"seeds: training seed {other.seed}, {k + 1} of {len(recipes)}, in {inner.path}")
        before = inner.stages().get(f"evaluate {ARM}")
        make_inner(inner, other, "train", f"evaluate {ARM}")
        rows, arm, candidate = read_rows(run.data / "test.jsonl"), f"{ARM} seed {other.seed}", adapter_key(inner)
        if inner.stages()[f"evaluate {ARM}"] != before or not is_booked(run, rows, arm, candidate):
            book(run, rows, arm, "tuned", candidate)
        runs.append(_figures(inner, other))
    result = spread(Scores.read(run.evaluation / ARM / "scores.json").summary.n, runs)
    result.write(run.evaluation / "seeds.json")
    logger.info(
        f"seeds: {ARM} scores {percent(result.mean)} of 100 over {len(runs)} seeds, "
        f"{percent(result.min)} to {percent(result.max)} (sd {percent(result.sd)} points)"
    )


def spread(rows: int, runs: list[SeedRun]) -> Seeds:
    """Mean, smallest, largest and standard deviation (n - 1) of the scores of two seeds or more on so many rows."""
    scores = [run.score for run in runs]
    return Seeds(
        arm=ARM,
        n=rows,
        runs=tuple(runs),
        mean=statistics.fmean(scores),
        min=min(scores),
        max=max(scores),
        sd=statistics.stdev(scores),
    )


def _figures(run: RunDir, recipe: Recipe) -> SeedRun:
    training = Training.read(run.training_file)
    score = Scores.read(run.evaluation / ARM / "scores.json").summary.score
    assert score is not None  # the recipe refuses seeds under a judge
    return SeedRun(seed=recipe.seed, score=score, best_dev_loss=training.best_dev_loss)
