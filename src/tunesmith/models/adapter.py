"""The adapter on disk: a PEFT directory, ``adapter_config.json`` and ``adapter_model.safetensors``.

Key names are PEFT's (``base_model.model.<layer>.lora_A.weight``, and ``.lora_magnitude_vector`` for DoRA), so any tool of
the ecosystem reads what we write, and PEFT is the oracle of the round trip. The file is deterministic: same weights,
same bytes.

**Experts** are PEFT's ``target_parameters``. PEFT wraps their module once for ``gate_up_proj`` and that once more for
``down_proj``, so the keys of the first carry a ``.base_layer`` and those of the second are the module's own. All experts lie
in one matrix: A as (E R, I), expert by expert, and B as (O, R E), rank by rank. PEFT refuses ``lora_dropout`` beside such
targets, so the file says 0; dropout has no meaning once training is over.

**Rows of new tokens** are PEFT's ``trainable_token_indices``: whole rows, one tensor for the embedding, and one for the head
where it is a table of its own. Whoever loads them with PEFT gives the base a row for each token first
(``resize_token_embeddings`` to the length of the tokenizer beside the adapter); what these rows were does not matter.

**Whole tables** are PEFT's ``modules_to_save``, each under its module's own name. A table that is head and embedding stands
there under both names, as PEFT writes it, and ``ensure_weight_tying`` says that it is one.

**What an adapter is, its own configuration says**: rank, alpha, targets, rsLoRA and DoRA are read from it wherever an adapter
is loaded (``load_adapted``), and never from a recipe, which may have been changed since (``recipe/adapter.py`` reads it).

**Adapters of others** are read with suspicion. The header is scanned before it is parsed (``checkpoints/prescan.py``), factors
must be finite numbers, and what the configuration asks for and we do not do is an error (``recipe/adapter.py``).

Source: ``ParamWrapper`` in ``peft/tuners/lora/layer.py`` and ``_inject_parameters`` in ``peft/tuners/tuners_utils.py`` of
PEFT 0.21. Refused: files of our own with a converter, which somebody would have to run.

Shape suffixes: E experts, O out_features, R rank, N rows, D hidden size, V vocabulary.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from tunesmith.checkpoints.hf import read_config
from tunesmith.checkpoints.prescan import ADAPTER, check_safetensors
from tunesmith.errors import ModelError
from tunesmith.layers.dora import DoRALinear
from tunesmith.layers.experts import Adapted, LoRAExpertWeight
from tunesmith.layers.lora import LoRALinear
from tunesmith.layers.new_rows import NewRows
from tunesmith.layers.whole_table import WholeTable
from tunesmith.models.new_tokens import add_new_rows
from tunesmith.models.nf4_load import STACKS, shorten
from tunesmith.models.swap import adaptable_names, add_lora
from tunesmith.models.whole_tables import add_whole_tables
from tunesmith.recipe import Lora
from tunesmith.recipe.adapter import (
    CONFIG,
    PATTERNS,
    WEIGHTS,
    lora_of,
    read_adapter_config,
    read_lora,
    weights_file,
)
from tunesmith.recipe.tables import table_of

PREFIX = "base_model.model."
TOKEN_IDS, TYING = "trainable_token_indices", "ensure_weight_tying"  # keys of PEFT's configuration
ROWS = "token_adapter.trainable_tokens_delta"  # what PEFT's keys of rows of new tokens end with


class _Slot(NamedTuple):
    """A trained tensor and its form in the file.

    Attributes:
        view: the tensor itself, detached, its dimensions in the order of the file.
        shape: in the file.
    """

    view: Tensor
    shape: tuple[int, ...]


def adapter_state(layers: Mapping[str, Adapted]) -> dict[str, Tensor]:
    """The trained tensors under PEFT's names, detached, fp32, on the CPU."""
    return {key: slot.view.reshape(slot.shape).cpu() for key, slot in _trained(layers).items()}


def load_adapted(model: PreTrainedModel, directory: Path, dropout: float | None = None) -> dict[str, Adapted]:
    """Put the adapter of a PEFT directory on a stock model: rank, scale, kind and targets are those of its own configuration.

    Args:
        dropout: in the place of its own, where it is trained further.

    Returns:
        Everything that has an adapter by full name, as ``add_lora`` returns it.

    Raises:
        ModelError: see ``read_adapter_config`` and ``read_adapter``; or an adapter for layers that the model does not have.
    """
    config, state = read_adapter_config(directory), read_adapter(directory)
    names = [name for name in adaptable_names(model) if _is_target(name, config)]
    if not names:
        raise ModelError(
            f"{directory}: no layer of {model.config.model_type} is one of its target_modules, {config['target_modules']!r}",
            "it was trained on a model of another architecture",
        )
    lora = read_lora(directory).model_copy(update={"target_modules": tuple(names)})
    if dropout is not None:
        lora = lora.model_copy(update={"dropout": dropout})
    layers = add_lora(model, lora, 0, partial(lora_of, lora=lora, config=config))
    try:
        ids = token_ids(config.get(TOKEN_IDS))
        if ids is not None and lora.modules_to_save:
            raise ModelError(f"{TOKEN_IDS} beside modules_to_save, which is not applied here", "merge it with PEFT")
        if ids is not None:
            layers |= add_new_rows(model, ids.start, len(ids))
        layers |= add_whole_tables(model, lora.modules_to_save, tie=_ties(directory))
        load_adapter_state(layers, _one_of_twins(layers, state))
    except ModelError as error:
        raise ModelError(f"{directory}: {error.message}", error.hint) from error
    return layers


def _one_of_twins(layers: Mapping[str, Adapted], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an adapter without the second one of a table that is head and embedding.

    Raises:
        ModelError: the two differ.
    """
    rest = dict(state)
    for name, layer in layers.items():
        if not isinstance(layer, WholeTable) or layer.twin is None:
            continue
        first, second = (f"{PREFIX}{module}.weight" for module in (name, layer.twin))
        twin_VD = rest.pop(second, None)
        if twin_VD is not None and not twin_VD.is_meta and not torch.equal(rest.setdefault(first, twin_VD), twin_VD):
            raise ModelError(f"{first} and {second} differ, but {TYING} says that they are one", f"write {TYING}: false there")
    return rest


def check_fits(base: Path, directory: Path) -> tuple[Lora, int]:
    """Hold the adapter of a PEFT directory against a base, without its weights.

    Args:
        base: directory of the base model (safetensors).

    Returns:
        Rank, scale, kind and targets, and how many weights it changes.

    Raises:
        ModelError: see ``load_adapted``.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_config(base)[0])
    return read_lora(directory), len(load_adapted(model, directory))


def token_ids(indices: dict[str, list[int]] | list[int] | None) -> range | None:
    """The ids of the new tokens whose rows lie in an adapter; None for one without.

    Args:
        indices: ``trainable_token_indices`` of its configuration.

    Raises:
        ModelError: ids that are no run of numbers, or not the same for both tables.
    """
    if not indices:
        return None
    lists = list(indices.values()) if isinstance(indices, dict) else [indices]
    ids = lists[0]
    if not all(type(index) is int for index in ids) or any(other != ids for other in lists):
        raise ModelError(f"trainable_token_indices is {indices!r}", "the same whole numbers for each table; merge it with PEFT")
    run = range(ids[0], ids[0] + len(ids))
    if list(run) != ids:
        raise ModelError(f"trainable_token_indices {ids!r} are no run of ids, as new tokens have", "merge it with PEFT")
    return run


def adapter_shapes(layers: Mapping[str, Adapted]) -> dict[str, tuple[int, ...]]:
    """Shapes of the trained tensors in the file, under PEFT's names."""
    return {key: slot.shape for key, slot in _trained(layers).items()}


def load_adapter_state(layers: Mapping[str, Adapted], state: Mapping[str, Tensor]) -> None:
    """Copy tensors into the layers.

    Raises:
        ModelError: a tensor is missing, extra, or of another shape.
    """
    slots = _trained(layers)
    if extra := sorted(state.keys() - slots.keys()):
        raise ModelError(
            f"{len(extra)} of {len(state)} tensors of the adapter belong to no layer that is adapted here: {shorten(extra)}",
            "its target_modules and the model's layers are not the same",
        )
    if missing := sorted(slots.keys() - state.keys()):
        raise ModelError(
            f"{len(missing)} of {len(slots)} tensors are not in the adapter's file: {shorten(missing)}",
            "its target_modules name more layers than were saved; get the whole adapter",
        )
    for key, tensor in state.items():
        if slots[key].shape != tensor.shape:
            raise ModelError(
                f"{key}: shape {tuple(tensor.shape)}, expected {slots[key].shape}",
                "another rank, or a base whose layers are wider or narrower",
            )
        slots[key].view.copy_(tensor.view(slots[key].view.shape))


def save_adapter(
    directory: Path, layers: Mapping[str, Adapted], lora: Lora, base_model: str, revision: str | None = None
) -> None:
    """Write a PEFT adapter directory (into an existing, empty directory).

    Args:
        base_model: hub id or path, as the recipe says it.
        revision: commit of a hub id; None for a path.
    """
    experts = sorted(name for name, layer in layers.items() if isinstance(layer, LoRAExpertWeight))
    tables = {name: layer for name, layer in layers.items() if isinstance(layer, WholeTable)}
    rows = {name: layer for name, layer in layers.items() if isinstance(layer, NewRows) and name not in tables}
    twins = {name: layer.twin for name, layer in tables.items() if layer.twin is not None}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "revision": revision,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0 if experts else lora.dropout,
        "target_modules": sorted(set(layers) - set(experts) - set(rows) - set(tables)),
        "bias": "none",
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
        "inference_mode": True,
    }
    if experts:
        config["target_parameters"] = experts
    if rows:
        config[TOKEN_IDS] = {name.rpartition(".")[2]: list(range(layer.first, layer.end)) for name, layer in rows.items()}
    config |= _patterns(layers, lora)
    if tables:
        config["modules_to_save"] = [name.rpartition(".")[2] for name in (*tables, *twins.values())]
        config[TYING] = bool(twins)
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
    state = adapter_state(layers)
    state |= {f"{PREFIX}{twin}.weight": state[f"{PREFIX}{name}.weight"].clone() for name, twin in twins.items()}
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})


def _patterns(layers: Mapping[str, Adapted], lora: Lora) -> dict[str, dict[str, float]]:
    """Ranks and alphas of the layers that have some of their own, as PEFT's configuration says them."""
    ranks: dict[str, float] = {}
    alphas: dict[str, float] = {}
    for name, layer in layers.items():
        if not isinstance(layer, LoRALinear):
            continue
        rank = len(layer.lora_A)
        if rank != lora.r:
            ranks[name] = rank
        alpha = layer.scale * (math.sqrt(rank) if lora.use_rslora else rank)
        if not math.isclose(alpha, lora.alpha, rel_tol=1e-9):
            alphas[name] = alpha
    return {key: pattern for key, pattern in zip(PATTERNS, (ranks, alphas), strict=True) if pattern}


def read_adapter(directory: Path) -> dict[str, Tensor]:
    """Tensors of a PEFT adapter directory.

    Raises:
        ModelError: no adapter there, a pickle, a file that is not whole, or weights that are not finite numbers.
    """
    path = weights_file(directory)
    try:
        check_safetensors(path, ADAPTER)
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read: {error}", "get the file again") from error
    if odd := sorted(name for name, tensor in state.items() if not tensor.is_floating_point()):
        raise ModelError(f"{path}: {shorten(odd)}: {state[odd[0]].dtype}, expected floating point", "is it an adapter?")
    if odd := sorted(name for name, tensor in state.items() if not torch.isfinite(tensor.float()).all()):
        raise ModelError(
            f"{path}: NaN or infinity in {len(odd)} of {len(state)} tensors: {shorten(odd)}", "train it again, at a lower rate"
        )
    return state


def read_new_rows(directory: Path, state: Mapping[str, Tensor]) -> dict[str, tuple[int, Tensor]]:
    """Rows of new tokens in a PEFT adapter directory.

    Args:
        state: from ``read_adapter``.

    Returns:
        Id of the first and the rows, shape (N, D), by the full name of their table, as ``model.embed_tokens``. Empty where the
        adapter has none.

    Raises:
        ModelError: rows without ids, or of another number.
    """
    ids = token_ids(read_adapter_config(directory).get(TOKEN_IDS))
    rows = {key.removeprefix(PREFIX).removesuffix(f".{ROWS}"): state[key] for key in state if key.endswith(ROWS)}
    if {len(rows_ND) for rows_ND in rows.values()} != ({len(ids)} if ids else set()):
        shapes = ", ".join(f"{name} {tuple(rows_ND.shape)}" for name, rows_ND in rows.items()) or "none"
        raise ModelError(f"{directory}: rows of new tokens: {shapes}, expected {len(ids or ())} each", "get the adapter again")
    return {} if ids is None else {name: (ids.start, rows_ND) for name, rows_ND in rows.items()}


def read_whole_tables(directory: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tables in a PEFT adapter directory.

    Args:
        state: from ``read_adapter``.

    Returns:
        Each of shape (V, D) by the full name of its module, as ``model.embed_tokens``. Empty where the adapter has none.

    Raises:
        ModelError: one that its configuration names is not in its file.
    """
    names = read_lora(directory).modules_to_save
    modules = [key.removeprefix(PREFIX).removesuffix(".weight") for key in state if key.endswith(".weight")]
    tables = {module: table for module in modules if names and (table := table_of(module)) is not None}
    missing = [name for name in names if table_of(name) not in tables.values()]
    if missing and not (tables and _ties(directory)):
        raise ModelError(
            f"{directory}: modules_to_save names {missing[0]}, and its file has no such weight", "get the whole adapter"
        )
    return {module: state[f"{PREFIX}{module}.weight"] for module in tables}


def splits_tables(directory: Path, base: Path) -> bool:
    """Whether an adapter takes apart what is one table in its base: a head and an embedding that were trained each for itself.

    Args:
        base: directory of the base model (safetensors).

    Raises:
        ModelError: adapter or base cannot be read.
    """
    names = read_lora(directory).modules_to_save
    return bool(names) and not _ties(directory) and bool(read_config(base)[0].tie_word_embeddings)


def _ties(directory: Path) -> bool:
    return bool(read_adapter_config(directory).get(TYING))


def read_experts(directory: Path, state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Adapters of experts in a PEFT adapter directory.

    Args:
        state: from ``read_adapter``.

    Returns:
        ``(A_ERI, B_EOR)``, shapes (E, R, I) and (E, O, R), by the full name of the parameter that they adapt, as
        ``model.layers.0.mlp.experts.gate_up_proj``. Empty where the adapter has none.

    Raises:
        ModelError: one of its targets has no tensors, or tensors whose shapes are not those of the rank.
    """
    config, experts_by_name = read_adapter_config(directory), {}
    rank, targets = config["r"], config.get("target_parameters") or []
    for name in targets:
        prefix = _prefix_of(name, targets)
        A, B = (state.get(f"{prefix}.lora_{side}.weight") for side in "AB")
        if A is None or B is None:
            raise ModelError(f"{directory}: no {prefix}.lora_A.weight there", "target_parameters must be full names")
        if A.ndim != 2 or B.ndim != 2 or not len(A) or len(A) % rank or B.shape[1] != len(A):
            shapes = f"A {tuple(A.shape)} and B {tuple(B.shape)}"
            raise ModelError(f"{directory}: {name} has {shapes}, which is no stack of rank {rank}", "get the adapter again")
        experts = len(A) // rank
        experts_by_name[name] = (A.view(experts, -1, A.shape[1]), B.view(len(B), -1, experts).permute(2, 0, 1).contiguous())
    return experts_by_name


def _is_target(name: str, config: dict[str, Any]) -> bool:
    """Whether PEFT adapts a module of this full name (``check_target_module_exists`` in its tuners_utils.py)."""
    parameters = [f"{name}.{leaf}" for leaf in STACKS]
    if any(_matches(parameter, config.get("target_parameters") or []) for parameter in parameters):
        return True
    excluded = config.get("exclude_modules")
    if excluded and _matches(name, excluded):
        return False
    if not _matches(name, config["target_modules"]):
        return False
    chosen = config.get("layers_to_transform")
    if chosen is None:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    number = next((match[1] for pattern in patterns if (match := re.match(rf".*\.{pattern}\.(\d+)\.", name))), None)
    return number is not None and int(number) in (chosen if isinstance(chosen, list) else [chosen])


def _matches(name: str, pattern: str | list[str]) -> bool:
    """A regular expression matches the whole name, an entry of a list its end."""
    if isinstance(pattern, str):
        return re.fullmatch(pattern, name) is not None
    return any(f".{name}".endswith(f".{entry}") for entry in pattern)


def _prefix_of(name: str, names: list[str]) -> str:
    """What PEFT's keys of an adapted parameter begin with: a module is wrapped in the order of its parameters."""
    module, _, leaf = name.rpartition(".")
    inner = leaf == "gate_up_proj" and f"{module}.down_proj" in names
    return f"{PREFIX}{module}{'.base_layer' if inner else ''}"


def _trained(layers: Mapping[str, Adapted]) -> dict[str, _Slot]:
    """The layers' own tensors under PEFT's names, where they are."""
    slots: dict[str, _Slot] = {}
    names = list(layers)
    for name, layer in layers.items():
        if isinstance(layer, NewRows):
            leaf = "weight" if isinstance(layer, WholeTable) else ROWS
            slots[f"{PREFIX}{name}.{leaf}"] = _Slot(layer.rows.detach(), tuple(layer.rows.shape))
            continue
        A, B = layer.lora_A.detach(), layer.lora_B.detach()
        if isinstance(layer, LoRAExpertWeight):
            prefix = _prefix_of(name, names)
            view_ORE = B.permute(1, 2, 0)
            slots[f"{prefix}.lora_A.weight"] = _Slot(A, (A.shape[0] * A.shape[1], A.shape[2]))
            slots[f"{prefix}.lora_B.weight"] = _Slot(view_ORE, (B.shape[1], B.shape[2] * B.shape[0]))
            continue
        slots[f"{PREFIX}{name}.lora_A.weight"] = _Slot(A, tuple(A.shape))
        slots[f"{PREFIX}{name}.lora_B.weight"] = _Slot(B, tuple(B.shape))
        if isinstance(layer, DoRALinear):
            magnitude_O = layer.lora_magnitude_vector.detach()
            slots[f"{PREFIX}{name}.lora_magnitude_vector"] = _Slot(magnitude_O, tuple(magnitude_O.shape))
    return slots
