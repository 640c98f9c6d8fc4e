"""The base model of a run, with the chat template that the run has settled on.

The template is settled at the first rendering, with thinking switched and a date written out, and lies in
``data/chat_template.jinja`` from then on; whoever trains, asks, exports or serves renders with that text.
"""

from pathlib import Path

from tunesmith.engines.base import BaseModel, open_base
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, write_text


def directory_of(recipe: Recipe) -> Path:
    """The directory of the recipe's model, fetched or converted when need be."""
    return open_base(recipe).directory


def base_of(run: RunDir, recipe: Recipe) -> BaseModel:
    """The base model of a run; before the first rendering with the template as it is today."""
    settled = run.template_file.read_text(encoding="utf-8") if run.template_file.exists() else None
    return open_base(recipe, settled)


def settle_template(run: RunDir, recipe: Recipe) -> BaseModel:
    """Settle the template of a run, and write it down."""
    write_text(run.template_file, open_base(recipe).renderer.template)
    return base_of(run, recipe)
