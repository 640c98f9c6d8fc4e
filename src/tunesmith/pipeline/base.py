"""The base model of a run, with the chat template that the run has settled on.

The template is settled at the first rendering, with thinking switched and a date written out, and lies in
``data/chat_template.jinja`` from then on; whoever trains, asks, exports or serves renders with that text. Rows that are
rendered anew on a later day (a longer ``train.max_length``, a share of the rows for a learning curve) get the date of the first
rendering, which stands in the manifest: with another date every row would be another, and all that was trained would be made
again.
"""

import logging
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tunesmith.engines.base import BaseModel, open_base
from tunesmith.pipeline.dials import placed
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, write_text

logger = logging.getLogger(__name__)


def directory_of(recipe: Recipe) -> Path:
    """The directory of the recipe's model, fetched or converted when need be."""
    return open_base(recipe).directory


def base_of(run: RunDir, recipe: Recipe) -> BaseModel:
    """The base model of a run; before the first rendering with the template as it is today."""
    settled = run.template_file.read_text(encoding="utf-8") if run.template_file.exists() else None
    base = open_base(recipe, settled, importance=run.base_imatrix)
    return placed(base if base.budget is None else replace(base, forms=run.base_forms_file), recipe)


def settle_template(run: RunDir, recipe: Recipe) -> BaseModel:
    """Settle the template of a run, and write it down."""
    known = run.manifest().moment
    moment = datetime.now().replace(microsecond=0) if known is None else datetime.fromisoformat(known)
    renderer = replace(open_base(recipe), moment=moment).renderer
    if renderer.date is not None:
        replace(run.manifest(), moment=moment.isoformat()).write(run.manifest_file)
        since = "from now on" if known is None else "since its first rendering"
        logger.info(f"render: the chat template writes a date; in this run it is {renderer.date}, {since}")
    write_text(run.template_file, renderer.template)
    return base_of(run, recipe)


def keep_moment(run: RunDir, inner: RunDir) -> None:
    """Let a run inside a run write the date of that run."""
    replace(inner.manifest(), moment=run.manifest().moment).write(inner.manifest_file)
