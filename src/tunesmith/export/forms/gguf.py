"""The merged model as GGUF files, one for each llama.cpp type of the recipe, and a Modelfile for the deployed one.

llama.cpp's converter writes the 16-bit file; the other types are quantised from it, with an importance matrix where the recipe
asks for one, and with a type chosen for each tensor where it asks for that (``forms/dynamic.py``). A 16-bit file that
the recipe does not name goes again after the last type that needs it.

A chat template that a Modelfile cannot express is no failure of the export: the GGUF carries the Jinja template, which every
other engine runs. The reason is said, and stands in ``commands.json`` beside the commands that there are.

LM Studio moves an imported file unless it is told to copy; ``--copy`` leaves the run as it is. llama-server is told to run the
GGUF's own template (``--jinja``).
"""

import logging
import math
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tunesmith.checkpoints.gguf_blocks import BlockFile
from tunesmith.checkpoints.gguf_write import convert as converter
from tunesmith.checkpoints.gguf_write.imatrix import CHUNK, read_imatrix, write_imatrix
from tunesmith.checkpoints.gguf_write.quantize import ImatrixOrigin, quantize
from tunesmith.checkpoints.gguf_write.rewrite import rewrite_gguf
from tunesmith.engines.base import open_base
from tunesmith.engines.form import ExportedForm, gguf_form
from tunesmith.errors import ExportError
from tunesmith.export.companions import stop_ids
from tunesmith.export.forms import dynamic
from tunesmith.export.forms.form import (
    ROUNDING,
    TEXT,
    Facts,
    Form,
    Job,
    Operation,
    Written,
    gguf_size,
)
from tunesmith.export.gguf.imatrix import measure
from tunesmith.export.gguf.updates import told, updates_of
from tunesmith.export.names import gguf_name
from tunesmith.export.ollama import modelfile
from tunesmith.export.sizes import FULL
from tunesmith.layers.grid import GridLinear
from tunesmith.models.precision import precision
from tunesmith.recipe import Recipe
from tunesmith.recipe.run import plain_type
from tunesmith.rundir.records.export import Command, GgufFile, NotWritten

logger = logging.getLogger(__name__)


def imatrix_name(run: str) -> str:
    """File of the importance matrix."""
    return f"{run}.imatrix.gguf"


def _plan(recipe: Recipe, facts: Facts) -> list[Operation]:
    settings, name = recipe.export, facts.name
    half, importance = gguf_name(name, "F16"), imatrix_name(name)
    trained = settings.gguf[-1] if recipe.train.qat else None  # on the grid of that file: nothing is quantised
    smaller = [kind for kind in settings.gguf if kind not in FULL and kind != trained]
    steps: list[Operation] = []
    for kind in FULL:
        if kind in settings.gguf or (kind == "F16" and smaller):
            steps.append(
                Operation(
                    kind="convert",
                    target=gguf_name(name, kind),
                    sources=("merged",),
                    nbytes=gguf_size(facts, kind),
                    file_type=kind,
                    until=None if kind in settings.gguf else gguf_name(name, smaller[-1]),
                    write=_convert,
                    record=GgufFile,
                )
            )
    if settings.imatrix and (smaller or trained is None):
        size = _imatrix_bytes(facts)
        steps.append(Operation(kind="imatrix", target=importance, sources=("merged",), nbytes=size, write=_write_imatrix))
    weighed = importance if settings.imatrix else None
    if dynamic.has_dynamic(recipe):
        steps += dynamic.pricing_steps(facts, half, weighed)
    for kind in smaller:
        if plain_type(kind) != kind:
            steps += dynamic.quantize_steps(facts, kind, half, weighed)
            continue
        steps.append(
            Operation(
                kind="quantize",
                target=gguf_name(name, kind),
                sources=(half, importance) if settings.imatrix else (half,),
                nbytes=gguf_size(facts, kind, settings.imatrix),
                file_type=kind,
                write=_quantize_merged,
                record=GgufFile,
            )
        )
    deployed = gguf_name(name, settings.gguf[-1])
    if trained is not None:
        size = gguf_size(facts, trained, settings.imatrix)
        steps.append(
            Operation(
                kind="trained-gguf", target=deployed, nbytes=size, file_type=trained, write=_write_trained, record=GgufFile
            )
        )
    steps.append(modelfile_step("Modelfile", deployed, deployed, None))
    return steps


def convert_16bit(model: Path, target: Path, file_type: str | None) -> GgufFile:
    """Write a 16-bit GGUF of a model directory, and say what it holds."""
    kind = "BF16" if file_type == "BF16" else "F16"
    converter.convert(model, target, kind)
    return converter.describe(target)


def _convert(job: Job, step: Operation) -> GgufFile:
    logger.info(f"export: converting to GGUF ({step.file_type}) with llama.cpp's converter")
    return convert_16bit(job.staged / "merged", job.staged / step.target, step.file_type)


def quantize_step(job: Job, step: Operation) -> GgufFile:
    """Quantise the 16-bit file, the first of the step's sources; the second is an importance matrix."""
    source, target, file_type = job.staged / step.sources[0], job.staged / step.target, str(step.file_type)
    if len(step.sources) == 1:
        return quantize(source, target, file_type)
    importance = read_imatrix(job.staged / step.sources[1])
    origin = ImatrixOrigin(step.sources[1], f"train part of {job.name}", max(1, importance.tokens // CHUNK))
    return quantize(source, target, file_type, importance.values, origin)


def _quantize_merged(job: Job, step: Operation) -> GgufFile:
    written, source = quantize_step(job, step), job.staged / step.sources[0]
    return told(written, source, job.staged / step.target, updates_of(job, job.staged / "merged", source))


def _write_trained(job: Job, step: Operation) -> GgufFile:
    """The base's file with the blocks that were trained in the place of its own."""
    base = open_base(job.recipe, importance=job.run.base_imatrix)
    loaded, path = base.load(job.adapter), base.blocks
    assert path is not None
    file, target = BlockFile.of_base(path, base.directory), job.staged / step.target
    layers = {name: layer for name, layer in loaded.layers.items() if isinstance(layer, GridLinear)}
    replaced = {file.tensor_of(f"{name}.weight"): partial(_trained_rows, file, name, layer) for name, layer in layers.items()}
    rewrite_gguf(path, target, job.renderer.template, replaced)
    return converter.describe(target)


def _trained_rows(file: BlockFile, name: str, layer: GridLinear) -> NDArray[np.uint8]:
    return file.in_file(f"{name}.weight", layer.blocks().raw)


def _write_imatrix(job: Job, step: Operation) -> None:
    """Read train rows with the merged model, in the dtype that the run computed in."""
    merged, documents = job.staged / "merged", job.train_rows()
    _, compute = precision(job.recipe.base, job.recipe.train.compute, job.base)
    importance, rows = measure(merged, compute, documents.lengths, documents.ids)
    write_imatrix(job.staged / step.target, importance, f"train part of {job.name}")
    logger.info(f"export: importance of the columns over {importance.tokens:,} train tokens, {rows} rows")


def _imatrix_bytes(facts: Facts) -> int:
    """A value in fp32 for each column of each matrix of the blocks, and a count for each matrix."""
    total = 0
    for source in facts.tensors:
        if len(source.shape) > 1 and source.name.startswith("blk."):
            total += 4 * math.prod(source.shape[:-2]) * (source.shape[-1] + 1)
    return total


def modelfile_step(target: str, source: str, model: str, adapter: str | None) -> Operation:
    """The step that writes a Modelfile, where the template allows one.

    Args:
        target: its name.
        source: the file that it speaks of.
        model: the GGUF of the model, by name or path.
        adapter: that of an adapter on it.
    """

    def write(job: Job, step: Operation) -> NotWritten | None:
        renderer = job.renderer
        stops = modelfile.stop_texts(renderer.tokenizer, stop_ids(job.base, renderer.stop_ids))
        system = job.recipe.task.short_prompt
        try:
            modelfile.write_modelfile(
                job.staged / step.target, model, renderer.template, renderer.tokenizer, system, stops, job.context, adapter
            )
        except ExportError as error:
            logger.warning(f"export: no {step.target}: {error.message}")
            return NotWritten(reason=error.message)
        return None

    return Operation(kind="modelfile", target=target, sources=(source,), nbytes=TEXT, write=write, record=NotWritten, text=True)


def ollama_commands(name: str, target: str) -> tuple[tuple[str, ...], ...]:
    """How Ollama makes and runs the model of a Modelfile in ``export/``."""
    # Ollama's names are of lower case letters, digits, dots, dashes and underscores; a recipe's name has capitals at most.
    return ("ollama", "create", name.lower(), "-f", f"export/{target}"), ("ollama", "run", name.lower())


def llama_server(job: Job, *model: str) -> tuple[str, ...]:
    """llama-server on these files, under the name and with the context of every other engine."""
    return ("llama-server", *model, "--alias", job.name, "--ctx-size", str(job.context), "--jinja")


def _commands(job: Job) -> dict[str, Command]:
    file = f"export/{gguf_name(job.name, job.recipe.export.gguf[-1])}"
    server = llama_server(job, "--model", file)
    studio = ("lms", "import", file, "--copy", "--yes", "--user-repo", f"tunesmith/{job.name}")
    commands = {
        "llama_server": Command(engine="llama.cpp", of="merge", argvs=(server,)),
        "lm_studio": Command(engine="LM Studio", of="merge", argvs=(studio,)),
    }
    if (job.staged / "Modelfile").exists():
        commands["ollama"] = Command(engine="Ollama", of="merge", argvs=ollama_commands(job.name, "Modelfile"))
    return commands


def _opened(written: Written) -> list[ExportedForm]:
    recipe, run = written.recipe, written.run
    differs = written.merge.into == "original" and "nf4" in (recipe.base, recipe.per_layer_embeddings)
    differs = differs or recipe.base_head == "int8"  # a merge keeps the original head
    differs = differs or recipe.train.qat  # it merges what was not rounded
    return [
        gguf_form(kind, run.export / gguf_name(str(recipe.name), kind), None if differs else ROUNDING.get(kind))
        for kind in written.types
    ]


GGUF = Form(name="gguf", plan=_plan, commands=_commands, opened=_opened)
