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

from tunesmith.errors import RunError
from tunesmith.formatting import percent
from tunesmith.pipeline.evaluation import evaluate, log_reading
from tunesmith.pipeline.subrun import changed, with_shared_data
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.evaluation import Scores
from tunesmith.rundir.records.evidence import SeedRun, Seeds
from tunesmith.rundir.records.training import Training

logger = logging.getLogger(__name__)

ARM = "tuned"


def seed_recipes(recipe: Recipe) -> list[Recipe]:
    """The recipe of every adapter, the run's own first."""
    return [changed(recipe, seed=(recipe.seed + k) % 2**31) for k in range(recipe.evaluate.seeds)]


def seeds(run: RunDir) -> Seeds | None:
    """Train and score the adapters of ``evaluate.seeds``; writes ``evaluation/seeds.json``.

    Returns:
        The spread; None where the recipe asks for one seed.

    Raises:
        RunError: the run's own adapter was not trained or not scored yet.
    """
    from tunesmith.pipeline.verbs import train

    recipes = seed_recipes(run.recipe())
    if len(recipes) == 1:
        return None
    inputs = run.key_of(f"evaluate {ARM}")
    runs = [_figures(run, recipes[0])]
    for k, recipe in enumerate(recipes[1:], 1):
        inner = with_shared_data(run, run.path / "seeds" / str(k), recipe)
        logger.info(f"seeds: training seed {recipe.seed}, {k + 1} of {len(recipes)}, in {inner.path}")
        train(inner)
        before = inner.stages().get(f"evaluate {ARM}")
        evaluate(inner, (ARM,))
        if inner.stages()[f"evaluate {ARM}"] != before:
            log_reading(run, f"{ARM} seed {recipe.seed}", inner.key_of(f"evaluate {ARM}"))
        runs.append(_figures(inner, recipe))
    result = spread(Scores.read(run.evaluation / ARM / "scores.json").summary.n, runs, inputs)
    result.write(run.evaluation / "seeds.json")
    logger.info(
        f"seeds: {ARM} scores {percent(result.mean)} of 100 over {len(runs)} seeds, "
        f"{percent(result.min)} to {percent(result.max)} (sd {percent(result.sd)} points)"
    )
    return result


def read_seeds(run: RunDir) -> Seeds | None:
    """What ``seeds`` found, for the verdict; None where the recipe asks for one seed.

    Raises:
        RunError: asked for and not done, or done beside an earlier adapter.
    """
    wanted = run.recipe().evaluate.seeds
    if wanted == 1:
        return None
    file = run.evaluation / "seeds.json"
    result = Seeds.read(file) if file.exists() else None
    if result is None or len(result.runs) != wanted or result.inputs != run.key_of(f"evaluate {ARM}"):
        there = 0 if result is None else len(result.runs)
        raise RunError(
            f"{file}: {there} of the {wanted} seeds that evaluate.seeds asks for go with this adapter",
            f"run: tunesmith seeds {run.path}",
        )
    return result


def spread(rows: int, runs: list[SeedRun], inputs: str) -> Seeds:
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
        inputs=inputs,
    )


def _figures(run: RunDir, recipe: Recipe) -> SeedRun:
    training = Training.read(run.training_file)
    score = Scores.read(run.evaluation / ARM / "scores.json").summary.score
    assert score is not None  # the recipe refuses seeds under a judge
    return SeedRun(seed=recipe.seed, score=score, best_dev_loss=training.best_dev_loss)
