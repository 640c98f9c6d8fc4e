"""The engines of a run: the base, the tuned model, its exported form and endpoints, each made when an arm first asks.

Loading is what an evaluation on a small model mostly costs, so nothing is loaded for an arm whose answers are already
there: an engine is handed around as a function that makes it, beside the fingerprint of the weights behind it. Behind an
endpoint the weights cannot be known; its address and the model's name stand for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.pipeline.stage import model_key, renderer
from tunesmith.recipe import EXTERNAL, PROMPT_ARMS, Recipe
from tunesmith.rundir import RunDir, fingerprint, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunesmith.chat.render import Renderer
    from tunesmith.engines.engine import Constraint, Engine
    from tunesmith.engines.in_process import InProcessEngine
    from tunesmith.layers.experts import Adapted
    from tunesmith.recipe.evaluate import Writer

WRITTEN_TOKENS = 2048  # of a new instruction, and of what its writer thinks before it


@dataclass(frozen=True)
class Loaded:
    """A model as the recipe holds it, where it computes best.

    Attributes:
        layers: what carries the adapter; empty without one.
        base: storage of the frozen weights (``models/precision.py``).
    """

    model: "PreTrainedModel"
    layers: "dict[str, Adapted]"
    renderer: "Renderer"
    base: str


def load(recipe: Recipe, adapter: Path | None) -> Loaded:
    """The base model, with the adapter of a directory on it where one is given.

    Raises:
        ModelError: the adapter was trained on another base.
    """
    from tunesmith.models.adapter import load_adapted
    from tunesmith.models.device import best_device
    from tunesmith.models.identity import refuse_other_base
    from tunesmith.models.load import load_model
    from tunesmith.models.precision import precision

    directory, made = renderer(recipe)
    if adapter is not None:
        refuse_other_base(adapter, directory)
    base, compute = precision(recipe.base, recipe.train.compute, directory)
    model = load_model(directory, compute, base, best_device(), recipe.per_layer_embeddings)
    layers = {}
    if adapter is not None:
        layers = load_adapted(model, adapter)
    return Loaded(model, layers, made, base)


def in_process(recipe: Recipe, adapter: Path | None) -> "InProcessEngine":
    """The base model in this process, or with the adapter of a directory."""
    from tunesmith.engines.in_process import InProcessEngine
    from tunesmith.models.swap import merge_lora

    found = load(recipe, adapter)
    if found.base == "fp32":  # exact to fp32 rounding, and decoding runs as fast as the base
        merge_lora(found.model, found.layers)
    return InProcessEngine(found.model, found.renderer, recipe.evaluate.batch_size)


def engine_of(
    run: RunDir, recipe: Recipe, arm: str, base: "Callable[[], Engine]", asked: list[list[dict[str, str]]], budget: int
) -> "tuple[str, Callable[[], Engine]]":
    """Fingerprint of an arm's weights, and how to make its engine.

    Args:
        base: how to get the base model's engine.
        asked: the arm's prompts, which say how much context the deployed engine needs.

    Raises:
        RunError: the arm's model was not trained or exported yet.
    """
    if arm in PROMPT_ARMS:
        return base_key(recipe), base
    if arm.startswith(EXTERNAL):
        endpoint = recipe.evaluate.endpoint_of(arm)
        return fingerprint(endpoint.base_url, endpoint.model, endpoint.body), lambda: external(recipe, arm)
    if arm in ("tuned", "tuned_retrieval"):
        return run.key_of("train"), lambda: in_process(recipe, run.adapter)
    gguf = gguf_path(run, recipe.export.gguf[-1])

    def llama_cpp() -> "Engine":
        from tunesmith.engines.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(gguf, context_for(recipe, asked, budget))

    return run.key_of("export"), llama_cpp


def context_for(recipe: Recipe, asked: list[list[dict[str, str]]], budget: int) -> int:
    """Tokens that the longest of some prompts and its answer need, with room for what an engine's own template adds."""
    _, made = renderer(recipe)
    return max(len(made.prompt_ids(prompt)) for prompt in asked) + budget + 64


def output_constraint(recipe: Recipe) -> "Constraint | None":
    """What engines hold answers to, where the recipe asks for that: its JSON schema, or its labels."""
    task = recipe.task
    if not task.constrained:
        return None
    return task.labels if task.json_schema is None else read_json(task.json_schema)


def external(recipe: Recipe, arm: str) -> "Engine":
    """The endpoint of an arm ``external:...``.

    Raises:
        RecipeError: the variable that should hold its key is not set.
    """
    from tunesmith.engines.openai_endpoint import OpenAIEndpoint

    endpoint = recipe.evaluate.endpoint_of(arm)
    return OpenAIEndpoint(
        endpoint.base_url,
        endpoint.model,
        endpoint.api_key_env,
        body=endpoint.body,
        timeout=endpoint.timeout,
        concurrency=endpoint.concurrency,
    )


def open_writer(settings: "Writer") -> "tuple[Callable[[str], str], Callable[[], None]]":
    """The model that writes instructions, as a function from a question to its answer, and how to close its connections.

    Raises:
        RecipeError: the variable that should hold its key is not set.
    """
    from tunesmith.engines.openai_endpoint import OpenAIEndpoint

    endpoint = OpenAIEndpoint(settings.base_url, settings.model, settings.api_key_env)

    def write(question: str) -> str:
        return endpoint.generate([[{"role": "user", "content": question}]], WRITTEN_TOKENS, lambda _: None)[0].text

    return write, endpoint.close


def base_key(recipe: Recipe) -> str:
    """Fingerprint of the base model and of how it is held while it answers."""
    return fingerprint(model_key(recipe), recipe.base, recipe.train.compute, recipe.per_layer_embeddings)


def gguf_path(run: RunDir, file_type: str) -> Path:
    """Where the exported model of a llama.cpp file type lies."""
    from tunesmith.export.forms.form import gguf_name

    return run.export / gguf_name(str(run.recipe().name), file_type)
