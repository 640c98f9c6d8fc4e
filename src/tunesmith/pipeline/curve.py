"""The learning curve of a run: train on nested shares of the train part, score each on dev, carry the curve on.

A share takes the rows with the smallest hash of (seed, row id), so a larger one holds every smaller one and the file's
order plays no role. Each share is rendered and trained in a run directory of its own below ``curve/`` with the recipe as it
is: the same epochs, so fewer rows are fewer steps, as with less data they would be. The share 1.0 is the run's own adapter.

Scored is dev and not test: what more data would buy is a question about collecting, asked before a verdict is final, and
the test part is read for verdicts alone. Dev also chose each adapter's checkpoint, which flatters all shares alike.

The cost of [0.1, 0.25, 0.5, 1.0] is 0.85 of a training and four answers a dev row. The fit is ``evaluate/curve.py``.

Shape suffixes here: K shares of the train part, M dev rows, B draws.
"""

import dataclasses
import functools
import hashlib
import logging
import math
import shutil
from typing import TYPE_CHECKING, Any

from tunesmith.errors import RunError
from tunesmith.pipeline.engines import in_process
from tunesmith.pipeline.evaluation import Evaluation
from tunesmith.pipeline.examples import render
from tunesmith.pipeline.seeds import read_seeds
from tunesmith.pipeline.stage import stage
from tunesmith.pipeline.subrun import changed
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, fingerprint, read_json, read_rows, write_json, write_rows

if TYPE_CHECKING:
    from tunesmith.evaluate.arms import Outputs

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def share_of(recipe: Recipe, rows: list[Row], share: float) -> list[Row]:
    """The rows of a share, in the order of ``rows``.

    Raises:
        RunError: no row is left.
    """
    count = math.floor(share * len(rows) + 0.5)
    if count == 0:
        raise RunError(
            f"evaluate.learning_curve: {share:g} of {len(rows)} train rows is no row", "leave out the smallest share"
        )

    def place(row: Row) -> bytes:
        return hashlib.blake2b(f"{recipe.seed}/{row['id']}".encode(), digest_size=8).digest()

    chosen = {row["id"] for row in sorted(rows, key=place)[:count]}
    return [row for row in rows if row["id"] in chosen]


def learning_curve(run: RunDir) -> dict[str, Any] | None:
    """Train, score and fit the shares of ``evaluate.learning_curve``; writes ``evaluation/curve.json``.

    Returns:
        ``evaluate.curve.Curve`` as a dictionary, with ``unscored`` (dev rows without a score for some share)
        and ``seed_sd``; None where the recipe asks for no curve.

    Raises:
        RunError: the run's own adapter was not trained yet, a share without a row, or no dev row with a score.
    """
    import numpy as np

    from tunesmith.evaluate.curve import bootstrap, fit_curve
    from tunesmith.evaluate.metrics import HEADLINE

    recipe = run.recipe()
    if not recipe.evaluate.learning_curve:
        return None
    run.key_of("train")
    counts, outputs = [], []
    made = Evaluation.of(run)
    with made.closing:
        for share in recipe.evaluate.learning_curve:
            inner = run if share == 1.0 else _train_share(run, recipe, share)
            counts.append(_trained_rows(inner))
            outputs.append(_scored(made, inner, share))
    scores_KM = np.array([[row[HEADLINE] for row in rows] for rows in outputs], dtype=np.float64)
    kept = np.flatnonzero(~np.isnan(scores_KM).any(axis=0))
    if len(kept) == 0 or len(set(counts)) < len(counts):
        raise RunError(
            f"evaluate.learning_curve: {len(kept)} dev rows have a score, and the shares hold {counts} train rows",
            "give more rows, or shares that are further apart",
        )
    over = made.metric.corpus
    corpus = None if over is None else lambda k, draw_M: over([outputs[k][kept[i]] for i in draw_M])
    spread = read_seeds(run)
    seed_sd = None if spread is None else spread["sd"]
    scores_K, draws_BK = bootstrap(scores_KM[:, kept], corpus)
    curve = fit_curve(counts, scores_K, draws_BK, len(kept), recipe.task.min_gain, seed_sd)
    unscored = scores_KM.shape[1] - len(kept)
    result = {**dataclasses.asdict(curve), "unscored": unscored, "seed_sd": seed_sd, "inputs": run.key_of("train")}
    write_json(run.evaluation / "curve.json", result)
    logger.info(f"learning curve: {curve.verdict}: {curve.told}")
    return result


def _train_share(run: RunDir, recipe: Recipe, share: float) -> RunDir:
    from tunesmith.pipeline.verbs import train

    budget = read_json(run.data / "rendered.json")["max_new_tokens"]
    given = changed(recipe, task=recipe.task.model_copy(update={"max_new_tokens": budget}))
    inner = RunDir.create(run.path / "curve" / f"{share:g}", given)
    with stage(inner, "data", fingerprint(run.key_of("data"), recipe.seed, share)) as needed:
        if needed:
            write_rows(inner.data / "train.jsonl", share_of(recipe, read_rows(run.data / "train.jsonl"), share))
            shutil.copyfile(run.data / "dev.jsonl", inner.data / "dev.jsonl")
    logger.info(f"learning curve: training on {share:g} of the train rows, in {inner.path}")
    render(inner)
    train(inner)
    return inner


def _trained_rows(run: RunDir) -> int:
    from tunesmith.train.documents import Documents

    return len(Documents.open(run.tokens("train")))


def _scored(made: Evaluation, inner: RunDir, share: float) -> "Outputs":
    """Answers and scores of one share's adapter on dev, kept in ``curve/<share>/dev/``."""
    from tunesmith.evaluate.arms import read_outputs, run_arm

    folder = made.run.path / "curve" / f"{share:g}" / "dev"
    asked = [made.book.tuned(row, 0) for row in made.dev]
    asked_key = fingerprint(inner.key_of("train"), asked, made.max_new_tokens, made.allowed)
    with stage(inner, "score on dev", fingerprint(asked_key, made.scoring("tuned"))) as needed:
        if needed:
            engine = functools.partial(in_process, made.recipe, inner.adapter)
            run_arm(folder, engine, asked_key, made.dev, asked, made.metric, made.max_new_tokens, made.allowed)
    return read_outputs(folder)
