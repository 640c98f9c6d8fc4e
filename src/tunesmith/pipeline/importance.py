"""The stage ``importance``: what the train rows send through the columns of the base, before anything is trained.

A training onto a grid (``train.qat``) keeps the scales that a quantiser chose for the base. With ``export.imatrix`` it chooses
them by this matrix, which lies in the run: whoever goes on with the training, exports it or asks it has the same grid.
"""

import logging

from tunesmith.checkpoints.gguf_write.imatrix import write_imatrix
from tunesmith.export.gguf.imatrix import measure
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir
from tunesmith.train.documents import Documents

logger = logging.getLogger(__name__)


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Write ``data/base.imatrix.gguf``.

    Raises:
        ExportError: no rows, or a model whose weights have no GGUF names.
    """
    base, documents = base_of(run, recipe), Documents.open(run.tokens("train"))
    importance, rows = measure(base.directory, base.compute, documents.lengths, documents.ids)
    write_imatrix(run.base_imatrix, importance, f"train part of {recipe.name}")
    logger.info(f"importance: of the base's columns over {importance.tokens:,} train tokens, {rows} rows")
