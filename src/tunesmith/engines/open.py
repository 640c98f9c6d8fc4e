"""What opens the engines of a run: a base in this process, llama.cpp, an endpoint, and a model that writes instructions.

Loading is what an evaluation on a small model mostly costs, so nothing here runs for an arm whose answers are already there:
callers hand these around as functions, beside the fingerprint of the weights behind them. Behind an endpoint the weights cannot
be known; its address and the model's name stand for them (``endpoint_key``).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.chat.render import Renderer
from tunesmith.engines.base import BaseModel
from tunesmith.engines.engine import Allowed, Choices, Constraint
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.engines.llama_cpp import LlamaCppEngine
from tunesmith.engines.openai_endpoint import OpenAIEndpoint
from tunesmith.engines.recorded import RecordedEngine
from tunesmith.messages import Message, Tools
from tunesmith.models.fuse import fuse_on_gpu
from tunesmith.models.swap import merge_lora
from tunesmith.recipe import Task
from tunesmith.recipe.evaluate import External, Writer
from tunesmith.rundir import fingerprint, read_json
from tunesmith.rundir.hashes import content_hash

WRITTEN_TOKENS = 2048  # of a new instruction, and of what its writer thinks before it
TEMPLATE_ROOM = 64  # tokens that an engine's own template may add to a prompt


def open_in_process(base: BaseModel, adapter: Path | None, batch_size: int) -> InProcessEngine:
    """The base model in this process, or with the adapter of a directory.

    Raises:
        ModelError: see ``BaseModel.load``.
    """
    loaded = base.load(adapter)
    if base.storage == "fp32" or base.grid is not None:  # exact to fp32 rounding, on a grid to the bit; and as fast as the base
        merge_lora(loaded.model, loaded.layers)
    fuse_on_gpu(loaded.model)
    return InProcessEngine(loaded.model, base.renderer, batch_size)


def open_llama_cpp(
    gguf: Path,
    renderer: Renderer,
    prompts: Sequence[list[Message]],
    max_new_tokens: int,
    tools: Sequence[Tools] | None = None,
    lora: Path | None = None,
) -> LlamaCppEngine:
    """An exported model in llama.cpp, with the context that some prompts and their answers need.

    Args:
        lora: adapter GGUF, applied to every answer.

    Raises:
        ExportError: llama.cpp cannot run the file.
    """
    return LlamaCppEngine(gguf, context_for(renderer, prompts, max_new_tokens, tools), lora, len(prompts))


def context_for(
    renderer: Renderer, prompts: Sequence[list[Message]], max_new_tokens: int, tools: Sequence[Tools] | None = None
) -> int:
    """Tokens that the longest of some prompts and its answer need, with room for what an engine's own template adds."""
    declared = tools or [None] * len(prompts)
    longest = max(len(renderer.prompt_ids(prompt, own)) for prompt, own in zip(prompts, declared, strict=True))
    return longest + max_new_tokens + TEMPLATE_ROOM


def open_endpoint(endpoint: External) -> OpenAIEndpoint | RecordedEngine:
    """The endpoint of an arm ``external:...``, or its recording.

    Raises:
        RecipeError: the variable that should hold its key is not set.
        MissingPackage: its extra is not installed.
        RunError: the recording cannot be read.
    """
    if endpoint.recorded is not None:
        return RecordedEngine(endpoint.recorded)
    assert endpoint.base_url is not None and endpoint.model is not None
    return OpenAIEndpoint(
        endpoint.base_url,
        endpoint.model,
        endpoint.api_key_env,
        body=endpoint.body,
        timeout=endpoint.timeout,
        concurrency=endpoint.concurrency,
    )


def endpoint_key(endpoint: External) -> str:
    """Fingerprint of what answers behind an endpoint, as far as it can be known."""
    if endpoint.recorded is not None:
        return content_hash(endpoint.recorded)
    return fingerprint(endpoint.base_url, endpoint.model, endpoint.body)


def open_writer(settings: Writer) -> tuple[Callable[[str], str], Callable[[], None]]:
    """The model that writes instructions, as a function from a question to its answer, and how to close its connections.

    Raises:
        RecipeError: the variable that should hold its key is not set.
        MissingPackage: its extra is not installed.
    """
    endpoint = OpenAIEndpoint(settings.base_url, settings.model, settings.api_key_env)

    def write(question: str) -> str:
        return endpoint.generate([[{"role": "user", "content": question}]], WRITTEN_TOKENS, lambda _: None)[0].text

    return write, endpoint.close


def output_constraint(task: Task) -> Allowed | None:
    """What engines constrain the answers of every arm to, where the recipe asks for that, or labels to choose."""
    if task.metric == "calibrated":
        return Choices(task.labels or ())
    return answer_language(task) if task.constrained is True else None


def answer_language(task: Task) -> Constraint | None:
    """What an answer can be constrained to: the JSON schema, the labels; None where the recipe has neither."""
    if not task.can_constrain:
        return None
    return task.labels if task.json_schema is None else read_json(task.json_schema)
