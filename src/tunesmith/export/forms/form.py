"""What an export form is: its steps, how it is opened again, how it is served. One record a form, one file a form.

An export of a large model takes an hour and three times the model's bytes on the disk. What can go wrong with it (no room, an
adapter that a form cannot hold, an architecture that llama.cpp does not convert) is known from names and shapes. So a form
first plans: a pure function of the recipe and of ``Facts`` (``export/facts.py`` reads them) gives its steps, each with its size
and with the function that writes it. ``export/job.py`` carries them out, ``--dry-run`` prints them.

**Sizes** are those of ``export/sizes.py``. Held within 2 % of the real files by a test.

**Room.** The old export stays until the new one is whole, so everything counts that lies there at the same time. A file that
later steps alone need, as the 16-bit GGUF that the others are quantised from, is gone after the last of them.

Refused: to ask the file system for room before each step (an export that fails at its last file has wasted the hour); a
registry by decorator, whose order is that of imports.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.bits.mixed import MixedBase
from tunesmith.bits.sensitivity import Sensitivity
from tunesmith.chat.render import Renderer
from tunesmith.checkpoints.gguf_write.kept import Updates
from tunesmith.checkpoints.gguf_write.types import Metadata, Source
from tunesmith.engines.form import ExportedForm
from tunesmith.export.sizes import gguf_bytes
from tunesmith.recipe import Lora, Recipe
from tunesmith.rundir import RunDir
from tunesmith.rundir.records.base import Record
from tunesmith.rundir.records.export import Command, Merge

ROUNDING = {"F16": "fp16", "BF16": "bf16"}  # of a GGUF type that computes what was trained
TEXT = 4096  # bytes of a Modelfile, a card, the commands: a few kB each
Kind = TypeVar("Kind", bound=Record)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step of an export.

    Attributes:
        kind: what is done.
        target: file or directory that it writes, relative to ``export/``.
        nbytes: of the target, as predicted.
        write: does it, and returns what is to be remembered of the target.
        record: type of that, to read it back after a kill; None where nothing is.
        sources: targets that it reads; empty where it reads base and adapter.
        scratch: bytes beside the target that are gone when the step ends.
        file_type: llama.cpp's, of a GGUF.
        until: the target of the last step that needs this one, after which it is removed; None where it stays.
        text: written in milliseconds from what the other steps made: done last, and anew each time.
    """

    kind: str
    target: str
    nbytes: int
    write: "Callable[[Job, Operation], Record | None]" = field(compare=False)
    record: type[Record] | None = None
    sources: tuple[str, ...] = ()
    scratch: int = 0
    file_type: str | None = None
    until: str | None = None
    text: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the plan has to know of base and adapter.

    Attributes:
        name: of the run; files begin with it.
        merged: bytes of the merged directory.
        tensors: of the 16-bit GGUF.
        metadata: what the rule of types asks of a GGUF's metadata.
        header: bytes of a GGUF before its tensors.
        lora: rank and kind of the adapter; None of a whole model that was brought.
        adapted: (matrices, outputs, inputs) of each target by its full name; a stack of experts has several matrices.
        modeled: names of the text model's tensors.
        renamed: whether the checkpoint calls an adapted weight otherwise than the text model does.
        ranks_differ: some layers have a rank or an alpha of their own.
        is_4bit: the checkpoint lies in 4 bits, of which the converter makes no GGUF.
    """

    name: str
    merged: int
    tensors: tuple[Source, ...]
    metadata: Metadata
    header: int
    lora: Lora | None
    adapted: Mapping[str, tuple[int, int, int]]
    modeled: tuple[str, ...]
    renamed: bool
    is_4bit: bool
    ranks_differ: bool = False


class TokenRows(Protocol):
    """Rendered rows of a part."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        ...

    def ids(self, document: int) -> NDArray[Any]:
        """Token ids of a row."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the steps work with.

    Attributes:
        base: directory of the base model; of a whole tuned model that was brought its own.
        adapter: PEFT directory of the adapter; of such a model where one would lie.
        lora: rank and kind of the adapter, as its own configuration says; None of such a model.
        ranks_differ: some of its layers have a rank or an alpha of their own.
        mixed: what each layer of the base was kept in, where that was chosen under a budget.
        staged: where the new export is written.
        context: tokens that a served model reserves.
        differs: what llama.cpp computes otherwise than the model, a line each.
        train_rows: opens the rendered train part.
        sensitivity: what the loss on train rows says of every layer of a model, by module.
        dev_loss: mean dev loss of a model, nats a supervised token.
        adapter_loss: that of the adapter, as training measured it; None where it is not known.
        best_step, steps: of the training.
        results: what each finished step left to be remembered, by its target.
        updates: what the adapter added to the tensors of a 16-bit GGUF, by that file, once it was asked for.
    """

    run: RunDir
    recipe: Recipe
    base: Path
    renderer: Renderer
    adapter: Path
    lora: Lora | None
    staged: Path
    context: int
    ranks_differ: bool = False
    differs: tuple[str, ...] = ()
    mixed: MixedBase | None = None
    train_rows: Callable[[], TokenRows]
    sensitivity: Callable[[PreTrainedModel], Mapping[str, Sensitivity]]
    dev_loss: Callable[[PreTrainedModel], float]
    adapter_loss: float | None = None
    best_step: int | None = None
    steps: int | None = None
    results: dict[str, Record] = field(default_factory=dict)
    updates: dict[Path, Updates] = field(default_factory=dict[Path, Updates])

    @property
    def name(self) -> str:
        """Of the run; files begin with it."""
        return str(self.recipe.name)

    @property
    def is_on_hub(self) -> bool:
        """Whether the recipe names a hub id, and no file or directory."""
        return not Path(self.recipe.model).is_absolute()

    def result(self, target: str, kind: type[Kind]) -> Kind | None:
        """What a finished step left, if it did."""
        result = self.results.get(target)
        return result if isinstance(result, kind) else None


@dataclass(frozen=True, kw_only=True)
class Written:
    """An export that lies in its place.

    Attributes:
        compute: dtype that training computed in (``fp32``, ``bf16``, ``fp16``).
        types: llama.cpp types of the merged model's GGUF files.
    """

    run: RunDir
    recipe: Recipe
    compute: str
    merge: Merge
    types: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way in which a model is deployed.

    Attributes:
        name: of the form.
        plan: the steps that write it; none where the recipe does not ask for it. A pure function; raises ExportError where it
            cannot be written.
        commands: how engines serve it, by name; paths as they are seen from the run directory.
        opened: the forms to compare with what was trained; none where no engine here reads it.
    """

    name: str
    plan: Callable[[Recipe, Facts], list[Operation]]
    commands: Callable[[Job], dict[str, Command]]
    opened: Callable[[Written], list[ExportedForm]]


def peak(steps: Iterable[Operation], there: Iterable[str] = ()) -> int:
    """Most bytes that the steps' targets take at a time.

    Args:
        there: targets that lie on the disk already.
    """
    present, lying, most = set(there), 0, 0
    temporary: list[Operation] = []
    for step in steps:
        if step.target not in present:
            lying += step.nbytes
            most = max(most, lying + step.scratch)
            temporary += [step] if step.until is not None else []
        ended = [other for other in temporary if other.until == step.target]
        lying -= sum(other.nbytes for other in ended)
        temporary = [other for other in temporary if other not in ended]
    return most


def gguf_size(facts: Facts, file_type: str, has_imatrix: bool = False) -> int:
    """Bytes of a GGUF file of a type."""
    return gguf_bytes(facts.tensors, facts.metadata, facts.header, file_type, has_imatrix)


def adapter_bytes(adapted: Iterable[tuple[int, int, int]], rank: int) -> int:
    """Bytes of an adapter in fp32.

    Args:
        adapted: (matrices, outputs, inputs) of each target.
    """
    return sum(4 * matrices * rank * (outputs + inputs) for matrices, outputs, inputs in adapted)
