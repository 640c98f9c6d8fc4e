"""The exported forms of a run, and how each is opened: the merged directory in this process, a GGUF in llama.cpp.

A form computes by its own means: its template, its tokenizer, its products. Both kinds offer the same four calls, so that the
comparison (``api/parity.py``) knows of one only. Refused: the run's renderer for the merged directory. It would hide a template
or a tokenizer that went wrong on the way there, which is what is looked for.

The merged directory computes in fp32 where its weights fit, on the GPU or the CPU; see ``api/parity.py`` for the reason.

Shape suffixes: V vocabulary entries.
"""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tunesmith.errors import ExportError, RunError
from tunesmith.pipeline.engines import gguf_path
from tunesmith.pipeline.stage import renderer
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from tunesmith.engines.engine import Engine, Message

logger = logging.getLogger(__name__)


class FormModel(Protocol):
    """What a form computes by its own means: template, tokenizer, logits. A GGUF has them of llama.cpp."""

    def render(self, messages: "list[Message]") -> str:
        """The form's own rendering, up to where the assistant begins. Raises ExportError where it has none."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Ids of a rendered prompt."""
        ...

    def logits(self, ids: list[int], first: int = 0) -> "NDArray[np.float32]":
        """Shape (len(ids) - first, V); row i is of what follows ``ids[: first + i + 1]``."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


@dataclass(frozen=True)
class Form:
    """One exported form.

    Attributes:
        name: ``merged``, a llama.cpp file type, or ``LoRA`` (the adapter GGUF on the base GGUF).
        path: directory, or model file.
        lora: the adapter file.
        rounding: the coarsest rounding of a form that computes what was trained (``export.parity.BOUNDS``); None for one that
            differs by design.
    """

    name: str
    path: Path
    lora: Path | None
    rounding: str | None


@dataclass(frozen=True)
class Place:
    """Where and in which arithmetic models in process compute."""

    device: "torch.device"
    arithmetic: str


def forms_of(run: RunDir, recipe: Recipe) -> list[Form]:
    """The forms that an export has written.

    Raises:
        RunError: one of them is gone.
    """
    from tunesmith.export.forms import base_name, lora_name
    from tunesmith.models.precision import precision

    facts = read_json(run.export / "merge.json")
    _, compute = precision(recipe.base, recipe.train.compute, renderer(recipe)[0])
    differs = facts["into"] == "original" and "nf4" in (recipe.base, recipe.per_layer_embeddings)
    exact = facts["dtype"] == "float32" and compute == "fp32"
    forms = [Form("merged", run.merged, None, None if differs else "fp32" if exact else "fp16")]
    of_type = {"F16": "fp16", "BF16": "bf16"}
    for kind in read_json(run.export / "export.json"):
        forms.append(Form(kind, gguf_path(run, kind), None, None if differs else of_type.get(kind)))
    if recipe.export.lora_gguf:
        kind, name = recipe.export.gguf[-1], str(recipe.name)
        own = recipe.model.endswith(".gguf")  # it is its own base GGUF, in whatever type it is
        base = Path(recipe.model) if own else run.export / base_name(name, kind)
        differs = "nf4" in (recipe.base, recipe.per_layer_embeddings)  # the base file is made of the checkpoint
        rounding = None if differs or own else of_type.get(kind)
        forms.append(Form("LoRA", base, run.export / lora_name(name), rounding))
    for file in [path for form in forms for path in (form.path, form.lora) if path is not None]:
        if not file.exists():
            raise RunError(f"{file}: part of the export, and not there", f"run: tunesmith export {run.path}")
    return forms


def choose_place(run: RunDir, recipe: Recipe) -> Place:
    """fp32 on the GPU or the CPU, wherever the dense weights fit; else as training computed."""
    from tunesmith.models.device import ROOM, best_device, device_with_room
    from tunesmith.models.precision import precision

    facts = read_json(run.export / "merge.json")
    needed = facts["nbytes"] // (4 if facts["dtype"] == "float32" else 2) * 4
    device = device_with_room(needed)
    if device is not None:
        return Place(device, "fp32")
    _, compute = precision(recipe.base, recipe.train.compute, renderer(recipe)[0])
    logger.warning(
        f"parity: fp32 takes {ROOM * needed / 1e9:.0f} GB, which are not there; computing in {compute}, with its wider bounds"
    )
    return Place(best_device(), compute)


def open_gguf(form: Form, context: int) -> FormModel:
    """A GGUF form in llama.cpp, for its template, tokenizer and logits."""
    from tunesmith.engines.llama_model import LlamaModel

    return LlamaModel(form.path, context, form.lora)


def gguf_engine(form: Form, context: int) -> "Engine":
    """A GGUF form in llama.cpp's server, for answers."""
    from tunesmith.engines.llama_cpp import LlamaCppEngine

    return LlamaCppEngine(form.path, context, form.lora)


@contextmanager
def opened(form: Form, place: Place, context: int) -> Iterator[FormModel]:
    """The form's model, closed at the end."""
    model = _Merged(form.path, place) if form.name == "merged" else open_gguf(form, context)
    try:
        yield model
    finally:
        model.close()


def open_engine(form: Form, recipe: Recipe, place: Place, context: int) -> "Engine":
    """The form as it answers: with its own template, and within ``context`` tokens where the engine reserves them."""
    if form.name != "merged":
        return gguf_engine(form, context)
    from tunesmith.chat.render import Renderer
    from tunesmith.engines.in_process import InProcessEngine

    merged = _Merged(form.path, place)
    return InProcessEngine(merged.model, Renderer(merged.tokenizer), recipe.evaluate.batch_size)


def model_logits(model: "PreTrainedModel", ids: list[int], first: int) -> "NDArray[np.float32]":
    """As ``FormModel.logits``."""
    import torch

    given = torch.tensor([ids], device=model.device)
    out = model(input_ids=given, use_cache=False, logits_to_keep=len(ids) - first)
    return out.logits[0].float().cpu().numpy()


class _Merged:
    """The merged directory as a stranger loads it: its files alone, a fresh tokenizer, its own template."""

    def __init__(self, directory: Path, place: Place):
        from tunesmith.models.load import load_model, load_tokenizer

        self._directory = directory
        self.tokenizer = load_tokenizer(directory)
        self.model = load_model(directory, place.arithmetic, None, place.device)

    def render(self, messages: "list[Message]") -> str:
        """See ``FormModel``."""
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError) as error:
            raise ExportError(f"{self._directory}: its chat template fails: {error}", "export again") from error
        assert isinstance(text, str)
        return text

    def tokenize(self, text: str) -> list[int]:
        """See ``FormModel``."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def logits(self, ids: list[int], first: int = 0) -> "NDArray[np.float32]":
        """See ``FormModel``."""
        import torch

        with torch.inference_mode():
            return model_logits(self.model, ids, first)

    def close(self) -> None:
        """See ``FormModel``."""
        gc.collect()
