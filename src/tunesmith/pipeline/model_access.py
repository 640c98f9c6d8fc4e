"""The base model of a run: its directory, its renderer, and the template that the run has settled on.

The template is settled at the first rendering, with thinking switched and a date written out, and lies in
``data/chat_template.jinja`` from then on; whoever trains, asks, exports or serves renders with that text.
"""

import functools
from pathlib import Path

from tunesmith.chat.render import Renderer
from tunesmith.chat.template_choice import template_text
from tunesmith.checkpoints.resolve import find_model
from tunesmith.models.load import load_tokenizer
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, write_text


def model_directory(recipe: Recipe) -> Path:
    """The recipe's model as a local directory."""
    file = Path(recipe.model)
    stamp = file.stat().st_mtime_ns if file.is_file() else 0
    return _cached_model_dir(recipe.model, recipe.revision, recipe.model_sha256, stamp)


@functools.lru_cache(maxsize=8)
def _cached_model_dir(model: str, revision: str | None, sha256: str | None, stamp: int) -> Path:
    """A GGUF is hashed to find its directory; once a process is enough while the file has the same time stamp."""
    return find_model(model, revision, sha256)


def resolve_model(model: str) -> Path:
    """A model that is named on the command line, as a local directory: hub id, directory or .gguf file."""
    path = Path(model).expanduser()
    return _cached_model_dir(str(path.resolve()) if path.exists() or model.endswith(".gguf") else model, None, None, 0)


def base_of(run: RunDir, recipe: Recipe) -> tuple[Path, Renderer]:
    """Directory and renderer of a run's model; before the first rendering with the template as it is today."""
    directory = model_directory(recipe)
    if run.template_file.exists():
        return directory, Renderer(load_tokenizer(directory), run.template_file.read_text(encoding="utf-8"))
    return directory, load_renderer(directory, recipe.chat.template, recipe.chat.enable_thinking)


def freeze_template(run: RunDir, recipe: Recipe, directory: Path) -> Renderer:
    """Settle the template of a run, and write it down."""
    renderer = load_renderer(directory, recipe.chat.template, recipe.chat.enable_thinking)
    write_text(run.template_file, renderer.template)
    return renderer


def load_renderer(directory: Path, template: Path | None = None, enable_thinking: bool | None = None) -> Renderer:
    """The renderer of a model directory, with its own template, the one in a file, or one of ours by name.

    Raises:
        ModelError: no tokenizer there, or a template that cannot be used.
    """
    text = None if template is None else template_text(template)
    return Renderer(load_tokenizer(directory), text, enable_thinking)
