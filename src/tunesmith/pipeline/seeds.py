"""Several seeds: is the gain the method's, or the luck of one training run?

The interval of a score says what other test rows would have given; it knows nothing of another initialisation of the
adapter, another order of rows or another dropout. ``evaluate.seeds: 3`` trains adapters with ``seed``, ``seed + 1`` and
``seed + 2`` on the same split and scores each on the sealed test part. The first is the run's own and is not trained
again; the others lie in ``seeds/1/``, ``seeds/2/``. Refused: choosing the best seed, which is selection on the test part.
The run deploys its own seed, and the spread says how much that choice mattered.

The cost is one training and one test arm a seed. Every reading of the test part is written down in the run's book.
"""

import logging
import statistics
from typing import Any

from tunesmith.pipeline.evaluate import log_reading
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.subrun import changed, make_inner, open_inner, share_data
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_json, write_json
from tunesmith.rundir.records.training import Training

logger = logging.getLogger(__name__)

ARM = "tuned"


def seed_recipes(recipe: Recipe) -> list[Recipe]:
    """The recipe of every adapter, the run's own first."""
    return [changed(recipe, seed=(recipe.seed + k) % 2**31) for k in range(recipe.evaluate.seeds)]


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Train and score the adapters of ``evaluate.seeds``; writes ``evaluation/seeds.json``: ``arm``, ``n`` test rows, ``runs``
    (seed, score, best_dev_loss of each), ``mean``, ``min``, ``max``, and ``sd`` (over seeds, n - 1 in the denominator), scores
    in 0..1.
    """
    recipes = seed_recipes(recipe)
    runs = [_figures(run, recipes[0])]
    for k, other in enumerate(recipes[1:], 1):
        inner = open_inner(run.path / "seeds" / str(k), other)
        share_data(run, inner)
        logger.info(f"seeds: training seed {other.seed}, {k + 1} of {len(recipes)}, in {inner.path}")
        before = inner.stages().get(f"evaluate {ARM}")
        make_inner(inner, other, "train", f"evaluate {ARM}")
        if inner.stages()[f"evaluate {ARM}"] != before:
            log_reading(run, f"{ARM} seed {other.seed}", read_json(inner.evaluation / ARM / "scores.json")["key"])
        runs.append(_figures(inner, other))
    rows = read_json(run.evaluation / ARM / "scores.json")["n"]
    result = {"arm": ARM, "n": rows, "runs": runs, **spread([entry["score"] for entry in runs])}
    write_json(run.evaluation / "seeds.json", result)
    logger.info(
        f"seeds: {ARM} scores {100 * result['mean']:.1f} of 100 over {len(runs)} seeds, "
        f"{100 * result['min']:.1f} to {100 * result['max']:.1f} (sd {100 * result['sd']:.1f} points)"
    )


def spread(scores: list[float]) -> dict[str, float]:
    """Mean, smallest, largest and standard deviation (n - 1) of two scores or more."""
    return {"mean": statistics.fmean(scores), "min": min(scores), "max": max(scores), "sd": statistics.stdev(scores)}


def _figures(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    training = Training.read(run.training_file)
    score = read_json(run.evaluation / ARM / "scores.json")["score"]
    return {"seed": recipe.seed, "score": score, "best_dev_loss": training.best_dev_loss}
