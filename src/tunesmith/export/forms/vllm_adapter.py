"""The adapter in the form that vLLM applies as it was trained.

Two things differ from the PEFT directory of a run. vLLM serves a multimodal checkpoint under the checkpoint's own names, so
the adapter takes them. And some models have layers whose values are their keys: there is a k_proj and no v_proj. vLLM loads
the keys' weight into both slots of its packed q, k and v, but packs only those adapters that exist, so an adapter on k_proj
would change the keys and leave the values as they were. Here such an adapter stands a second time, under v_proj. llama.cpp
and stock transformers compute the values from the adapted keys and take the plain directory.

Which layers these are is read from the checkpoint (a k_proj without a v_proj), so no fact of a family can be out of date.

With ``chat.new_tokens`` or ``lora.modules_to_save`` there is no such adapter: vLLM takes no trained rows and no whole modules
beside a base. The merged model has them.

DoRA is refused, as vLLM refuses it, and so are a rank above those it takes, and layers with a scale of their own, of which it
knows one; merge such an adapter. vLLM takes the chat template of the base that it is given, which may not be the one that was
trained with, so the command names its file.

Sources: vLLM 0.33 ``lora/model_manager.py`` (``_create_merged_loras_inplace``), ``lora/peft_helper.py``
(``_validate_features``), ``config/lora.py`` (``MaxLoRARanks``). Held here by merging, not by running vLLM.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors.torch import save_file

from tunesmith.checkpoints.names import Naming, naming
from tunesmith.checkpoints.quantized.layout import layout_of
from tunesmith.errors import ExportError
from tunesmith.export.forms.form import Facts, Form, Job, Operation, adapter_bytes
from tunesmith.models.adapter import CONFIG, PREFIX, WEIGHTS, read_adapter, read_adapter_config
from tunesmith.recipe import Lora, Recipe
from tunesmith.recipe.adapter import has_patterns
from tunesmith.rundir import atomic_directory, write_json
from tunesmith.rundir.records.export import Command

logger = logging.getLogger(__name__)

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM allocates for; any other value is refused by it
TARGET = "adapter-vllm"


def write_vllm_adapter(base: Path, adapter: Path, target: Path) -> int | None:
    """Write the adapter directory for vLLM, if it differs from the PEFT one.

    Args:
        base: directory of the base model (safetensors).
        adapter: PEFT adapter directory.
        target: directory to write, whole or not at all.

    Returns:
        Layers whose k_proj adapter stands under v_proj too; None if the two forms are the same and nothing was written.

    Raises:
        ExportError: DoRA, or a rank that vLLM does not take, where the form differs.
        ModelError: base or adapter cannot be read.
    """
    names = naming(base)
    doubled = keys_are_values(name for stored in layout_of(base).files if (name := names.of_model(stored)) is not None)
    state = read_adapter(adapter)
    renamed = vllm_state(state, names, doubled)
    if renamed.keys() == state.keys():
        return None
    config = read_adapter_config(adapter)
    if config.get("use_dora"):
        raise ExportError(f"{adapter}: vLLM does not apply DoRA", "serve the merged model")
    if config.get("modules_to_save"):
        raise ExportError(f"{adapter}: vLLM takes no whole modules beside a base (modules_to_save)", "serve the merged model")
    if has_patterns(config):
        raise ExportError(
            f"{adapter}: vLLM has one scale for all layers (rank_pattern, alpha_pattern)", "serve the merged model"
        )
    max_lora_rank(config["r"])
    experts = [names.of_checkpoint(name) for name in config.get("target_parameters") or []]
    if experts:
        config["target_parameters"] = experts
    # Full names take the place of a list or a pattern of the recipe, which could not say where v_proj is meant.
    apart = tuple(f"{PREFIX}{name.rpartition('.')[0]}." for name in experts)
    linears = {key.rsplit(".lora_", 1)[0].removeprefix(PREFIX) for key in renamed if not key.startswith(apart)}
    config["target_modules"] = sorted(linears)
    with atomic_directory(target) as directory:
        write_json(directory / CONFIG, config)
        save_file(renamed, directory / WEIGHTS, metadata={"format": "pt"})
    return sum(f"{PREFIX}{layer}.k_proj.lora_A.weight" in state for layer in doubled)


def keys_are_values(names: Iterable[str]) -> list[str]:
    """Attention modules that have a k_proj and no v_proj, in the order of the names.

    Args:
        names: of the text model's tensors.
    """
    known = list(dict.fromkeys(names))
    values = {name.removesuffix(".v_proj.weight") for name in known if name.endswith(".v_proj.weight")}
    keys = [name.removesuffix(".k_proj.weight") for name in known if name.endswith(".k_proj.weight")]
    return [module for module in keys if module not in values]


def vllm_state(state: dict[str, torch.Tensor], names: Naming, doubled: Iterable[str]) -> dict[str, torch.Tensor]:
    """The tensors under the checkpoint's names, and those of k_proj under v_proj too for the ``doubled`` modules.

    A pure function; the doubled tensors are copies.
    """
    renamed = {PREFIX + names.of_checkpoint(key.removeprefix(PREFIX)): tensor for key, tensor in state.items()}
    for module in doubled:
        old = f"{PREFIX}{module}.k_proj."
        for key, tensor in state.items():
            if key.startswith(old):
                name = f"{module}.v_proj.{key.removeprefix(old)}"
                renamed[PREFIX + names.of_checkpoint(name)] = tensor.clone()
    return renamed


def max_lora_rank(rank: int) -> int:
    """The smallest rank that vLLM can be told to make room for and that holds this one.

    Raises:
        ExportError: above the largest.
    """
    for allowed in RANKS:
        if rank <= allowed:
            return allowed
    raise ExportError(f"rank {rank}, vLLM takes {RANKS[-1]} at most", "serve the merged model")


def _is_taken(lora: Lora | None) -> TypeGuard[Lora]:
    return lora is not None and not lora.use_dora and not lora.modules_to_save and lora.r <= RANKS[-1]


def _plan(recipe: Recipe, facts: Facts) -> list[Operation]:
    """None where vLLM takes the PEFT directory, or such an adapter in no form."""
    doubled = [facts.adapted[key] for module in keys_are_values(facts.modeled) if (key := f"{module}.k_proj") in facts.adapted]
    if recipe.chat.new_tokens or facts.ranks_differ or not _is_taken(facts.lora) or not (doubled or facts.renamed):
        return []
    nbytes = adapter_bytes([*facts.adapted.values(), *doubled], facts.lora.r)
    return [Operation(kind=TARGET, target=TARGET, nbytes=nbytes, write=_write)]


def _write(job: Job, step: Operation) -> None:
    doubled = write_vllm_adapter(job.base, job.adapter, job.staged / step.target)
    if doubled is not None:
        repeated = f"k_proj repeated under v_proj in {doubled} layers, " if doubled else ""
        logger.info(f"export: adapter for vLLM ({repeated}names of the checkpoint)")


def _commands(job: Job) -> dict[str, Command]:
    if job.recipe.chat.new_tokens or job.ranks_differ or not _is_taken(job.lora):
        return {}
    is_as_published = job.is_on_hub and job.recipe.max_position_embeddings is None
    base = job.recipe.model if is_as_published else str(job.base)
    path = f"export/{TARGET}" if (job.staged / TARGET).exists() else job.adapter.relative_to(job.run.path).as_posix()
    module = {"name": job.name, "path": path, "base_model_name": base}
    argv = (
        *("vllm", "serve", base),
        *(("--revision", job.recipe.revision) if job.recipe.revision and is_as_published else ()),
        *("--enable-lora", "--max-lora-rank", str(max_lora_rank(job.lora.r))),
        *("--lora-modules", json.dumps(module, ensure_ascii=False)),
        *("--max-model-len", str(job.context)),
        *("--chat-template", "export/merged/chat_template.jinja"),
    )
    return {"vllm_adapter": Command(engine="vLLM, adapter on the base", of="adapter", argvs=(argv,))}


VLLM_ADAPTER = Form(name="vllm_adapter", plan=_plan, commands=_commands, opened=lambda written: [])
