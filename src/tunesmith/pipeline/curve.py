"""The learning curve of a run: train on nested shares of the train part, score each on dev, carry the curve on.

A share takes the rows with the smallest hash of (seed, row id), so a larger one holds every smaller one and the file's
order plays no role. Each share is rendered and trained in a run directory of its own below ``curve/`` with the recipe as it
is: the same epochs, so fewer rows are fewer steps, as with less data they would be. The share 1.0 is the run's own adapter.

Scored is dev and not test: what more data would buy is a question about collecting, asked before a verdict is final, and
the test part is read for verdicts alone. Dev also chose each adapter's checkpoint, which flatters all shares alike.

The cost of [0.1, 0.25, 0.5, 1.0] is 0.85 of a training and four answers a dev row. The fit is ``evaluate/curve.py``.

Shape suffixes here: K shares of the train part, M dev rows, B draws.
"""

import hashlib
import logging
import math
import shutil
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import RunError
from tunesmith.evaluate.compare import scores
from tunesmith.evaluate.curve import bootstrap, fit_curve
from tunesmith.pipeline.base import keep_moment
from tunesmith.pipeline.dev_answers import adapter_on_dev
from tunesmith.pipeline.evaluation import evaluation_of
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.subrun import changed, make_inner, open_inner
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_rows, write_rows
from tunesmith.rundir.records.answers import Output
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.evidence import Seeds
from tunesmith.rundir.rows import Row
from tunesmith.train.documents import Documents

logger = logging.getLogger(__name__)


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
        return hashlib.blake2b(f"{recipe.seed}/{row.id}".encode(), digest_size=8).digest()

    chosen = {row.id for row in sorted(rows, key=place)[:count]}
    return [row for row in rows if row.id in chosen]


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Train, score and fit the shares of ``evaluate.learning_curve``; writes ``evaluation/curve.json``.

    Raises:
        RunError: a share without a row, or no dev row with a score.
    """
    counts: list[int] = []
    outputs: list[list[Output]] = []
    evaluation = evaluation_of(run, recipe, session)
    for share in recipe.evaluate.learning_curve:
        inner = run if share == 1.0 else _train_share(run, recipe, share)
        counts.append(Documents.open(inner.tokens("train")).rows)
        outputs.append(adapter_on_dev(evaluation, inner.adapter, run.path / "curve" / f"{share:g}" / "dev"))
    scores_KM = np.stack([scores(answers) for answers in outputs])
    scored = np.flatnonzero(~np.isnan(scores_KM).any(axis=0))
    if len(scored) == 0 or len(set(counts)) < len(counts):
        raise RunError(
            f"evaluate.learning_curve: {len(scored)} dev rows have a score, and the shares hold {counts} train rows",
            "give more rows, or shares that are further apart",
        )
    over = evaluation.metric.corpus

    def headline(k: int, draw_M: NDArray[np.int64]) -> float:
        assert over is not None
        return over([outputs[k][scored[i]] for i in draw_M])

    seeds = run.evaluation / "seeds.json"
    seed_sd = Seeds.read(seeds).sd if recipe.evaluate.seeds > 1 and seeds.exists() else None
    scores_K, draws_BK = bootstrap(scores_KM[:, scored], None if over is None else headline)
    curve = fit_curve(counts, scores_K, draws_BK, len(scored), recipe.task.min_gain, seed_sd)
    result = replace(curve, unscored=scores_KM.shape[1] - len(scored))
    result.write(run.evaluation / "curve.json")
    logger.info(f"learning curve: {curve.verdict}: {curve.reason}")


def _train_share(run: RunDir, recipe: Recipe, share: float) -> RunDir:
    budget = Rendered.read(run.rendered_file).max_new_tokens
    share_recipe = changed(recipe, task=recipe.task.model_copy(update={"max_new_tokens": budget}))
    inner = open_inner(run.path / "curve" / f"{share:g}", share_recipe)
    keep_moment(run, inner)
    write_rows(inner.data / "train.jsonl", share_of(recipe, read_rows(run.data / "train.jsonl"), share))
    shutil.copyfile(run.data / "dev.jsonl", inner.data / "dev.jsonl")
    if recipe.train.replay:
        shutil.copyfile(run.tokens("replay"), inner.tokens("replay"))  # a share of the rows takes a share of it
    if recipe.grid_is_weighed:
        shutil.copyfile(run.base_imatrix, inner.base_imatrix)  # one grid for all
    for file in (run.base_forms_file, run.base_sensitivity_file) if recipe.base_budget else ():
        shutil.copyfile(file, inner.data / file.name)  # shares of the rows stand on one base
    logger.info(f"learning curve: training on {share:g} of the train rows, in {inner.path}")
    make_inner(inner, share_recipe, "render", "train")
    return inner
