"""The adapter as a GGUF of its own, applied to a GGUF of the base; one base in memory serves many adapters.

The base is that of ``base_gguf.py``. A recipe whose model is a GGUF file has its base already.

Ollama from 0.34.1 on creates no model from a Modelfile with ADAPTER (ollama/ollama#14969, merged 2026-09-15; read in
generative-computing/mellea#1651, not run here); models that an older one created go on being served. So the command has a note,
and the merged GGUF is the way.
"""

import logging
from pathlib import Path

from tunesmith.engines.form import ExportedForm, gguf_form
from tunesmith.errors import ExportError
from tunesmith.export.forms.form import ROUNDING, Facts, Form, Job, Operation, Written, adapter_bytes
from tunesmith.export.forms.gguf import llama_server, modelfile_step, ollama_commands
from tunesmith.export.gguf.lora import NOT_APPLIED, write_lora_gguf
from tunesmith.export.names import LORA, base_file, lora_name
from tunesmith.recipe import Recipe
from tunesmith.rundir.records.export import Command

logger = logging.getLogger(__name__)

MODELFILE = "Modelfile.adapter"
OLLAMA_NOTE = "Ollama 0.34.1 and newer refuse to create a model with ADAPTER; there, serve the merged GGUF"


def _plan(recipe: Recipe, facts: Facts) -> list[Operation]:
    if not recipe.export.lora_gguf:
        return []
    if refused := _refused(facts):
        raise ExportError(f"export.lora_gguf: {refused}", "serve the merged GGUF, and set export.lora_gguf: false")
    assert facts.lora is not None, "the recipe refuses it beside a whole model"
    lora = lora_name(facts.name)
    nbytes = adapter_bytes(facts.adapted.values(), facts.lora.r)
    return [
        Operation(kind="lora-gguf", target=lora, nbytes=nbytes, write=_write_lora),
        modelfile_step(MODELFILE, lora, base_file(recipe), lora),
    ]


def _refused(facts: Facts) -> str | None:
    """Why llama.cpp could not apply the adapter."""
    if facts.lora is not None and facts.lora.use_dora:
        return "llama.cpp's adapters have no DoRA"
    if facts.lora is not None and facts.lora.modules_to_save:
        return "llama.cpp's adapters hold no whole tables (modules_to_save)"
    if facts.ranks_differ:
        return "llama.cpp's adapters have one scale for all layers, and rank_pattern or alpha_pattern gives some their own"
    if any(matrices > 1 for matrices, _, _ in facts.adapted.values()):
        return "llama.cpp's adapters do not hold those of experts"
    dead = [name for name in facts.adapted if name.endswith(NOT_APPLIED)]
    return f"llama.cpp applies no adapter to {dead[0]}" if dead else None


def _write_lora(job: Job, step: Operation) -> None:
    write_lora_gguf(job.adapter, job.base, job.staged / step.target)


def _commands(job: Job) -> dict[str, Command]:
    if not job.recipe.export.lora_gguf:
        return {}
    base = base_file(job.recipe)
    base = base if Path(base).is_absolute() else f"export/{base}"
    server = llama_server(job, "--model", base, "--lora", f"export/{lora_name(job.name)}")
    template = ("--chat-template-file", "export/merged/chat_template.jinja")
    commands = {
        "llama_server_adapter": Command(engine="llama.cpp, adapter on the base", of="adapter", argvs=((*server, *template),))
    }
    if (job.staged / MODELFILE).exists():
        argvs = ollama_commands(f"{job.name}-adapter", MODELFILE)
        engine = "Ollama, adapter on the base"
        commands["ollama_adapter"] = Command(engine=engine, of="adapter", argvs=argvs, note=OLLAMA_NOTE)
    return commands


def _opened(written: Written) -> list[ExportedForm]:
    recipe, run = written.recipe, written.run
    if not recipe.export.lora_gguf:
        return []
    base = Path(base_file(recipe))
    if recipe.deploys_adapter:
        return [gguf_form(LORA, run.export / base, None, run.export / lora_name(str(recipe.name)))]
    # The base file is made of the checkpoint; a recipe's own is in whatever type it is.
    differs = base.is_absolute() or "nf4" in (recipe.base, recipe.per_layer_embeddings) or recipe.base_head == "int8"
    rounding = None if differs else ROUNDING.get(recipe.export.gguf[-1])
    return [gguf_form(LORA, run.export / base, rounding, run.export / lora_name(str(recipe.name)))]


LORA_GGUF = Form(name="lora_gguf", plan=_plan, commands=_commands, opened=_opened)
