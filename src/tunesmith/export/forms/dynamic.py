"""The steps of a GGUF whose tensors have types of their own: scored, priced, chosen, quantised.

One backward pass over train rows scores the merged model, in the dtype that the run computed in. The scores price every type
of every tensor (``checkpoints/gguf_write/rounding.py``), and a file takes what costs least in the bytes of the plain type that
it is named after. Scores, costs and choice lie beside the files: whoever asks can see why, and a second
dynamic type or a sweep needs no other pass.

A mixture of experts is refused: its experts are no linear layers, nothing scores them, and they are nearly all of its bytes.

**Which columns are rounded well.** Where the recipe asks for an importance matrix it weighs the columns, as in every type. Else
the scores do: they are one, in which a token counts by what its output does to the loss, and it costs nothing more.

Cost: a forward and a backward pass over some 16,000 tokens and a quantisation to six types.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tunesmith.checkpoints.gguf_write.imatrix import CHUNK, read_imatrix
from tunesmith.checkpoints.gguf_write.quantize import ImatrixOrigin, Importance, quantize
from tunesmith.checkpoints.gguf_write.rounding import Rounding, rounding_costs
from tunesmith.errors import ExportError
from tunesmith.export.forms.form import TEXT, Facts, Job, Operation, gguf_size
from tunesmith.export.gguf.scores import EMBEDDING, choose_types, chosen_types, column_weights, read_scores, write_scores
from tunesmith.export.gguf.updates import told, updates_of
from tunesmith.export.names import gguf_name
from tunesmith.models.device import best_device
from tunesmith.models.load import load_model
from tunesmith.models.precision import precision
from tunesmith.recipe import Recipe
from tunesmith.recipe.run import plain_type
from tunesmith.rundir.records.export import GgufFile, RoundingCosts, TypeChoice

logger = logging.getLogger(__name__)

ENTRY = 320  # bytes of a matrix's entries in the header of a file of scores, at most


def scores_name(run: str) -> str:
    """File of what the loss says of each tensor."""
    return f"{run}.scores.safetensors"


def costs_name(run: str) -> str:
    """File of what each type of each tensor costs."""
    return f"{run}.rounding.json"


def choice_name(run: str, kind: str) -> str:
    """File of the types that were chosen."""
    return f"{run}-{kind}.types.json"


def pricing_steps(facts: Facts, half: str, importance: str | None) -> list[Operation]:
    """The steps that all dynamic types need once.

    Args:
        half: the 16-bit file.
        importance: the importance matrix, where there is one.

    Raises:
        ExportError: a mixture of experts.
    """
    if (stack := stack_of((tensor.name, tensor.shape) for tensor in facts.tensors)) is not None:
        raise ExportError(
            f"export.gguf: a dynamic type scores linear layers, and {stack} is a stack of experts",
            "name the plain type: Q4_K_M",
        )
    matrices = [tensor.shape for tensor in facts.tensors if len(tensor.shape) == 2]
    tables = [tensor.shape for tensor in facts.tensors if tensor.name == EMBEDDING]  # as a head too
    size = sum(4 * (outputs + inputs) + ENTRY for outputs, inputs in (*matrices, *tables))
    scores, costs = scores_name(facts.name), costs_name(facts.name)
    sources = (half, scores) if importance is None else (half, scores, importance)
    return [
        Operation(kind="scores", target=scores, sources=("merged", half), nbytes=size, write=_write_scores),
        Operation(kind="rounding", target=costs, sources=sources, nbytes=TEXT * (1 + len(matrices) // 16), write=_write_costs),
    ]


def quantize_steps(facts: Facts, kind: str, half: str, importance: str | None) -> list[Operation]:
    """The steps of one dynamic type."""
    choice, size = choice_name(facts.name, kind), TEXT * (1 + sum(len(tensor.shape) == 2 for tensor in facts.tensors) // 32)
    return [
        Operation(
            kind="choice",
            target=choice,
            sources=(half, costs_name(facts.name)),
            nbytes=size,
            file_type=kind,
            write=_write_choice,
        ),
        Operation(
            kind="quantize",
            target=gguf_name(facts.name, kind),
            sources=(half, choice, scores_name(facts.name) if importance is None else importance),
            nbytes=gguf_size(facts, kind, importance is not None),
            file_type=kind,
            write=_quantize,
            record=GgufFile,
        ),
    ]


def stack_of(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> str | None:
    """The first stack of experts among tensors, of which no dynamic type is made; None where there is none."""
    return next((name for name, shape in tensors if len(shape) > 2), None)


class Priced(NamedTuple):
    """What a dynamic type is chosen by, and quantised with.

    Attributes:
        rounding: what each type does to each tensor.
        weights: of the columns of each tensor, as an importance matrix has them.
    """

    rounding: Rounding
    weights: Importance


def priced(job: Job, merged: Path, source: Path, importance: Importance | None, scratch: Path) -> Priced:
    """Scores and costs of a model whose export made none.

    Args:
        merged: its directory.
        source: the 16-bit GGUF of it.
        importance: that columns are weighed by; None for the scores themselves.
        scratch: where the scores lie meanwhile.

    Raises:
        ExportError: no train rows, or nothing of the file was scored.
    """
    path = scratch / scores_name(job.name)
    _score(job, merged, source, path)
    scores = read_scores(path)
    weights = column_weights(scores) if importance is None else importance
    return Priced(rounding_costs(source, scores, weights, updates_of(job, merged, source)), weights)


def _write_scores(job: Job, step: Operation) -> None:
    _score(job, job.staged / "merged", job.staged / step.sources[1], job.staged / step.target)


def _score(job: Job, merged: Path, source: Path, target: Path) -> None:
    _, compute = precision(job.recipe.base, job.recipe.train.compute, job.base)
    scores = job.sensitivity(load_model(merged, compute, None, best_device()))
    write_scores(target, scores, source, merged)
    tokens = max(score.tokens for score in scores.values())
    logger.info(f"export: {len(scores)} layers and tables scored over {tokens:,} train tokens")


def _write_costs(job: Job, step: Operation) -> None:
    half, scores, *others = step.sources
    weights, _ = _weights(job, others[0] if others else scores)
    updates = updates_of(job, job.staged / "merged", job.staged / half)
    costs, lost = rounding_costs(job.staged / half, read_scores(job.staged / scores), weights, updates)
    RoundingCosts(costs=costs, weights="imatrix" if others else "scores", lost=lost).write(job.staged / step.target)
    if lost:
        kinds = ", ".join(sorted({kind for of in lost.values() for kind in of}))
        logger.info(f"export: {kinds} would take back or enlarge what was trained, in {len(lost)} tensors; not chosen there")


def _weights(job: Job, file: str) -> tuple[Importance, ImatrixOrigin]:
    """What weighs the columns, of a file of scores or an importance matrix, and what a GGUF says of it."""
    path, dataset = job.staged / file, f"train part of {job.name}"
    if file == scores_name(job.name):
        scores = read_scores(path)
        tokens = max(score.tokens for parts in scores.values() for score in parts)
        return column_weights(scores), ImatrixOrigin(file, dataset, max(1, tokens // CHUNK))
    importance = read_imatrix(path)
    return importance.values, ImatrixOrigin(file, dataset, importance.chunks)


def _write_choice(job: Job, step: Operation) -> None:
    costs = RoundingCosts.read(job.staged / step.sources[1])
    rounding = Rounding(costs.costs, costs.lost)
    choice = choose_types(job.staged / step.sources[0], rounding, str(step.file_type), costs.weights == "imatrix")
    choice.write(job.staged / step.target)
    logger.info(f"export: {step.file_type}: {choice_line(choice)}")


def choice_line(choice: TypeChoice) -> str:
    """A choice in a line."""
    others = sum(tensor.type != tensor.plain for tensor in choice.tensors.values())
    change = choice.cost / choice.plain_cost - 1 if choice.plain_cost else 0.0
    return f"{others} of {len(choice.tensors)} tensors otherwise than {choice.plain}, expected loss by rounding {change:+.0%}"


def _quantize(job: Job, step: Operation) -> GgufFile:
    half, choice, file = step.sources
    source, target = job.staged / half, job.staged / step.target
    chosen = chosen_types(TypeChoice.read(job.staged / choice))
    plain, (weights, origin) = plain_type(str(step.file_type)), _weights(job, file)
    if not chosen.keys and file == scores_name(job.name):  # no choice is better: the plain file, to the byte
        written = quantize(source, target, plain)
    else:
        written = quantize(source, target, plain, weights, origin, chosen)
    return told(written, source, target, updates_of(job, job.staged / "merged", source))


def has_dynamic(recipe: Recipe) -> bool:
    """Whether the recipe writes a dynamic type."""
    return any(plain_type(kind) != kind for kind in recipe.export.gguf)
