"""What every verb needs: a stage's books, and the model of a recipe."""

import functools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith import hardware
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir

if TYPE_CHECKING:
    from tunesmith.chat.render import Renderer

logger = logging.getLogger(__name__)


@contextmanager
def stage(run: RunDir, name: str, key: str, output: Path | None = None) -> Iterator[bool]:
    """Run a block as a stage: skipped (False) when done with this key, else timed and recorded when it ends well.

    Args:
        output: what it writes where another stage may remove it; without it the stage is not done.
    """
    if run.is_done(name, key) and (output is None or output.exists()):
        logger.info(f"{name}: up to date")
        yield False
        return
    hardware.reset_peak_memory()
    started = time.perf_counter()
    yield True
    run.mark_done(name, key, time.perf_counter() - started, hardware.peak_memory())


def model_directory(recipe: Recipe) -> Path:
    """The recipe's model as a local directory."""
    file = Path(recipe.model)
    stamp = file.stat().st_mtime_ns if file.is_file() else 0
    return _found(recipe.model, recipe.revision, recipe.model_sha256, stamp)


@functools.lru_cache(maxsize=8)
def _found(model: str, revision: str | None, sha256: str | None, stamp: int) -> Path:
    """A GGUF is hashed to find its directory; once a process is enough while the file has the same time stamp."""
    from tunesmith.checkpoints.resolve import find_model

    return find_model(model, revision, sha256)


def find_base(model: str) -> Path:
    """A model that is named on the command line, as a local directory: hub id, directory or .gguf file."""
    path = Path(model).expanduser()
    return _found(str(path.resolve()) if path.exists() or model.endswith(".gguf") else model, None, None, 0)


def model_key(recipe: Recipe) -> str:
    """Fingerprint of the recipe's model."""
    from tunesmith.checkpoints.resolve import model_key as key_of

    return key_of(model_directory(recipe))


def renderer(recipe: Recipe) -> "tuple[Path, Renderer]":
    """Directory and renderer of the recipe's model."""
    directory = model_directory(recipe)
    return directory, load_renderer(directory, recipe.chat.template, recipe.chat.enable_thinking)


def load_renderer(directory: Path, template: Path | None = None, enable_thinking: bool | None = None) -> "Renderer":
    """The renderer of a model directory, with its own template, the one in a file, or one of ours by name.

    Raises:
        ModelError: no tokenizer there, or a template that cannot be used.
    """
    from tunesmith.chat.render import Renderer
    from tunesmith.chat.template_choice import template_text
    from tunesmith.models.load import load_tokenizer

    text = None if template is None else template_text(template)
    return Renderer(load_tokenizer(directory), text, enable_thinking)
