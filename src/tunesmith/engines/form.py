"""An exported form as something that can be opened: a merged directory in this process, a GGUF in llama.cpp.

A form computes by its own means: its template, its tokenizer, its products. Every kind offers the same five calls, so whoever
compares forms knows of one kind only; which one it is, the export says when it lists what it wrote. Refused: the run's renderer
for the merged directory. It would hide a template or a tokenizer that went wrong on the way there, which is what is looked for.

Shape suffixes: V vocabulary.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.chat.render import Renderer
from tunesmith.engines.engine import Engine, Pair, Scored
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.engines.llama_cpp import LlamaCppEngine
from tunesmith.engines.llama_model import LlamaModel
from tunesmith.engines.score import Scorer
from tunesmith.errors import ExportError
from tunesmith.messages import Message
from tunesmith.models.load import load_model, load_tokenizer


class FormModel(Protocol):
    """What a form computes by its own means: template, tokenizer, logits. A GGUF has them of llama.cpp."""

    def render(self, messages: list[Message]) -> str:
        """The form's own rendering, up to where the assistant begins. Raises ExportError where it has none."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Ids of a rendered prompt."""
        ...

    def logits(self, ids: list[int], first: int = 0) -> NDArray[np.float32]:
        """Shape (len(ids) - first, V); row i is of what follows ``ids[: first + i + 1]``."""
        ...

    def continuation_logprobs(self, pairs: Sequence[Pair], advance: Callable[[int], None] = ...) -> list[Scored]:
        """Log-probability of each continuation given its context; ``advance(n)`` is called as pairs are done."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@dataclass(frozen=True, kw_only=True)
class ComputePlace:
    """Where and in which arithmetic models in process compute."""

    device: torch.device
    arithmetic: str


@dataclass(frozen=True, kw_only=True)
class ExportedForm:
    """One exported form.

    Attributes:
        name: ``merged``, a llama.cpp file type, or ``LoRA`` (the adapter GGUF on the base GGUF).
        files: what it is made of, the model first.
        rounding: the coarsest rounding of a form that computes what was trained (``fp32``, ``fp16``, ``bf16``); None for one
            that differs by design.
        open: from a place and tokens of context to its template, tokenizer and logits.
        engine: from the same, and the number of prompts that will be asked in a call, to what answers.
    """

    name: str
    files: tuple[Path, ...]
    rounding: str | None
    open: Callable[[ComputePlace, int], FormModel]
    engine: Callable[[ComputePlace, int, int], Engine]


def directory_form(name: str, directory: Path, rounding: str | None, batch_size: int) -> ExportedForm:
    """A Hugging Face directory, computed in this process.

    Args:
        batch_size: rows that its engine answers at a time.
    """

    def engine(place: ComputePlace, context: int, prompts: int) -> Engine:
        opened = DirectoryModel(directory, place)
        return InProcessEngine(opened.model, Renderer(opened.tokenizer), batch_size)

    return ExportedForm(
        name=name,
        files=(directory,),
        rounding=rounding,
        open=lambda place, context: DirectoryModel(directory, place),
        engine=engine,
    )


def gguf_form(name: str, file: Path, rounding: str | None, lora: Path | None = None) -> ExportedForm:
    """A GGUF file in llama.cpp: its library for template, tokenizer and logits, its server for answers.

    Args:
        lora: an adapter file, applied to it.
    """
    return ExportedForm(
        name=name,
        files=(file,) if lora is None else (file, lora),
        rounding=rounding,
        open=lambda place, context: LlamaModel(file, context, lora),
        engine=lambda place, context, prompts: LlamaCppEngine(file, context, lora, prompts),
    )


def model_logits(model: PreTrainedModel, ids: list[int], first: int) -> NDArray[np.float32]:
    """As ``FormModel.logits``."""
    input_ids = torch.tensor([ids], device=model.device)
    out = model(input_ids=input_ids, use_cache=False, logits_to_keep=len(ids) - first)
    return out.logits[0].float().cpu().numpy()


class DirectoryModel:
    """A model directory as a stranger loads it: its files alone, a fresh tokenizer, its own template."""

    def __init__(self, directory: Path, place: ComputePlace):
        self._directory = directory
        self.tokenizer = load_tokenizer(directory)
        self.model = load_model(directory, place.arithmetic, None, place.device)

    def render(self, messages: list[Message]) -> str:
        """See ``FormModel``.

        Raises:
            ExportError: the template of the form fails.
        """
        try:
            text = self.tokenizer.apply_chat_template(cast("Any", messages), tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError) as error:
            raise ExportError(f"{self._directory}: its chat template fails: {error}", "export again") from error
        return str(text)

    def tokenize(self, text: str) -> list[int]:
        """See ``FormModel``."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def logits(self, ids: list[int], first: int = 0) -> NDArray[np.float32]:
        """See ``FormModel``."""
        with torch.inference_mode():
            return model_logits(self.model, ids, first)

    def continuation_logprobs(self, pairs: Sequence[Pair], advance: Callable[[int], None] = lambda _: None) -> list[Scored]:
        """See ``FormModel``.

        Raises:
            RunError: a pair exceeds the model's context.
            ModelError: the model does something to its logits that is not known here.
        """
        return Scorer(self.model.eval()).continuation_logprobs(pairs, advance)

    def close(self) -> None:
        """See ``FormModel``."""
        gc.collect()
