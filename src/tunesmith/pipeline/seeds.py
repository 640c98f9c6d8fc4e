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

from tunesmith.errors import RunError
from tunesmith.pipeline.evaluation import evaluate, log_reading
from tunesmith.pipeline.subrun import changed, with_shared_data
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_json, write_json
from tunesmith.rundir.records.training import Training

logger = logging.getLogger(__name__)

ARM = "tuned"


def seed_recipes(recipe: Recipe) -> list[Recipe]:
    """The recipe of every adapter, the run's own first."""
    return [changed(recipe, seed=(recipe.seed + k) % 2**31) for k in range(recipe.evaluate.seeds)]


def seeds(run: RunDir) -> dict[str, Any] | None:
    """Train and score the adapters of ``evaluate.seeds``; writes ``evaluation/seeds.json``.

    Returns:
        ``arm``, ``n`` test rows, ``runs`` (seed, score, best_dev_loss of each), ``mean``, ``min``, ``max``, and ``sd``
        (over seeds, n - 1 in the denominator), scores in 0..1; None where the recipe asks for one seed.

    Raises:
        RunError: the run's own adapter was not trained or not scored yet.
    """
    from tunesmith.pipeline.verbs import train

    recipes = seed_recipes(run.recipe())
    if len(recipes) == 1:
        return None
    own = run.key_of(f"evaluate {ARM}")
    found = [_scored(run, recipes[0])]
    for k, recipe in enumerate(recipes[1:], 1):
        inner = with_shared_data(run, run.path / "seeds" / str(k), recipe)
        logger.info(f"seeds: training seed {recipe.seed}, {k + 1} of {len(recipes)}, in {inner.path}")
        train(inner)
        before = inner.stages().get(f"evaluate {ARM}")
        evaluate(inner, (ARM,))
        if inner.stages()[f"evaluate {ARM}"] != before:
            log_reading(run, f"{ARM} seed {recipe.seed}", inner.key_of(f"evaluate {ARM}"))
        found.append(_scored(inner, recipe))
    rows = read_json(run.evaluation / ARM / "scores.json")["n"]
    result = {"arm": ARM, "n": rows, "inputs": own, "runs": found, **spread([entry["score"] for entry in found])}
    write_json(run.evaluation / "seeds.json", result)
    logger.info(
        f"seeds: {ARM} scores {100 * result['mean']:.1f} of 100 over {len(found)} seeds, "
        f"{100 * result['min']:.1f} to {100 * result['max']:.1f} (sd {100 * result['sd']:.1f} points)"
    )
    return result


def read_seeds(run: RunDir) -> dict[str, Any] | None:
    """What ``seeds`` found, for the verdict; None where the recipe asks for one seed.

    Raises:
        RunError: asked for and not done, or done beside an earlier adapter.
    """
    wanted = run.recipe().evaluate.seeds
    if wanted == 1:
        return None
    file = run.evaluation / "seeds.json"
    result = read_json(file) if file.exists() else {"runs": [], "inputs": ""}
    if len(result["runs"]) != wanted or result["inputs"] != run.key_of(f"evaluate {ARM}"):
        raise RunError(
            f"{file}: {len(result['runs'])} of the {wanted} seeds that evaluate.seeds asks for go with this adapter",
            f"run: tunesmith seeds {run.path}",
        )
    return result


def spread(scores: list[float]) -> dict[str, float]:
    """Mean, smallest, largest and standard deviation (n - 1) of two scores or more."""
    return {"mean": statistics.fmean(scores), "min": min(scores), "max": max(scores), "sd": statistics.stdev(scores)}


def _scored(run: RunDir, recipe: Recipe) -> dict[str, Any]:
    training = Training.read(run.training_file)
    score = read_json(run.evaluation / ARM / "scores.json")["score"]
    return {"seed": recipe.seed, "score": score, "best_dev_loss": training.best_dev_loss}
