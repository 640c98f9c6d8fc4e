"""The engines of a run: the base, the tuned model, its exported form and endpoints, each made when an arm first asks.

Loading is what an evaluation on a small model mostly costs, so nothing is loaded for an arm whose answers are already
there: an engine is handed around as a function that makes it, beside the fingerprint of the weights behind it. Behind an
endpoint the weights cannot be known; its address and the model's name stand for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from tunesmith.chat.render import Renderer
from tunesmith.checkpoints.resolve import model_key
from tunesmith.engines.engine import Engine
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.engines.open import endpoint_key, open_endpoint, open_llama_cpp
from tunesmith.export.forms.form import gguf_name
from tunesmith.layers.experts import Adapted
from tunesmith.messages import Message
from tunesmith.models.adapter import WEIGHTS, load_adapted
from tunesmith.models.device import best_device
from tunesmith.models.identity import refuse_other_base
from tunesmith.models.load import load_model
from tunesmith.models.precision import precision
from tunesmith.models.swap import merge_lora
from tunesmith.pipeline.model_access import base_of, model_directory
from tunesmith.recipe import EXTERNAL, PROMPT_ARMS, Recipe
from tunesmith.rundir import RunDir, fingerprint
from tunesmith.rundir.hashes import content_hash


@dataclass(frozen=True)
class Loaded:
    """A model as the recipe holds it, where it computes best.

    Attributes:
        layers: what carries the adapter; empty without one.
        base: storage of the frozen weights (``models/precision.py``).
    """

    model: PreTrainedModel
    layers: dict[str, Adapted]
    renderer: Renderer
    base: str


def load(run: RunDir, recipe: Recipe, adapter: Path | None) -> Loaded:
    """The base model, with the adapter of a directory on it where one is given.

    Raises:
        ModelError: the adapter was trained on another base.
    """
    directory, renderer = base_of(run, recipe)
    if adapter is not None:
        refuse_other_base(adapter, directory)
    base, compute = precision(recipe.base, recipe.train.compute, directory)
    model = load_model(directory, compute, base, best_device(), recipe.per_layer_embeddings)
    layers = {}
    if adapter is not None:
        layers = load_adapted(model, adapter)
    return Loaded(model, layers, renderer, base)


def in_process(run: RunDir, recipe: Recipe, adapter: Path | None) -> InProcessEngine:
    """The base model in this process, or with the adapter of a directory."""
    loaded = load(run, recipe, adapter)
    if loaded.base == "fp32":  # exact to fp32 rounding, and decoding runs as fast as the base
        merge_lora(loaded.model, loaded.layers)
    return InProcessEngine(loaded.model, loaded.renderer, recipe.evaluate.batch_size)


def engine_of(
    run: RunDir, recipe: Recipe, arm: str, base: Callable[[], Engine], prompts: list[list[Message]], budget: int
) -> tuple[str, Callable[[], Engine]]:
    """Fingerprint of an arm's weights, and how to make its engine.

    Args:
        base: how to get the base model's engine.
        prompts: the arm's prompts, which say how much context the deployed engine needs.

    Raises:
        RunError: the arm's model was not trained or exported yet.
    """
    if arm in PROMPT_ARMS:
        return base_key(recipe), base
    if arm.startswith(EXTERNAL):
        endpoint = recipe.evaluate.endpoint_of(arm)
        return endpoint_key(endpoint), lambda: open_endpoint(endpoint)
    if arm in ("tuned", "tuned_retrieval"):
        return content_hash(run.adapter / WEIGHTS), lambda: in_process(run, recipe, run.adapter)
    gguf = gguf_path(run, recipe.export.gguf[-1])

    return content_hash(gguf), lambda: open_llama_cpp(gguf, base_of(run, recipe)[1], prompts, budget)


def base_key(recipe: Recipe) -> str:
    """Fingerprint of the base model and of how it is held while it answers."""
    return fingerprint(model_key(model_directory(recipe)), recipe.base, recipe.train.compute, recipe.per_layer_embeddings)


def gguf_path(run: RunDir, file_type: str) -> Path:
    """Where the exported model of a llama.cpp file type lies."""
    return run.export / gguf_name(str(run.recipe().name), file_type)
