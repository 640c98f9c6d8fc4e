"""What an adapter's own configuration says, in the recipe's keys: read without torch, before a model is.

A recipe that goes on from an adapter (``train.from_adapter``) has that adapter's rank, alpha, kind and targets: they are facts
of the file, and another rank would be another adapter. So keys of ``lora`` that a recipe leaves out are taken over as it is
read, and from there on everything that asks a recipe for its adapter (the plan of memory, the rule of the rate, the export)
has one answer. Keys that are written and contradict the file are refused by name before the first stage, not overruled;
``lora.dropout`` alone is the recipe's own, since it leaves nothing behind in an adapter.

A file that is not there, or cannot be read, takes nothing over and stops nothing here: a run whose adapter was trained long ago
is still shown, scored and exported when the one that it began from is gone. ``refuse_contradiction`` says what is wrong where
something is about to be trained.

**Adapters of others** are read with suspicion. What the configuration asks for and we do not do (layers that are used twice,
other modules than embedding and head saved beside the adapter) is an error, because leaving it out gives another model.
Pickles (``adapter_model.bin``, ``.pt``) run code while they are read; they are refused with the command that converts them.

Source: ``LoraConfig`` in ``peft/tuners/lora/config.py`` of PEFT 0.21; ``TrainerState`` in ``trainer_callback.py``.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jiter
from pydantic import JsonValue, ValidationError

from tunesmith.errors import ModelError, RecipeError
from tunesmith.recipe.tables import tables_of
from tunesmith.recipe.train import Lora

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
CONFIG_BYTES = 2**22
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
NOT_APPLIED = ("layer_replication", "lora_bias", "alora_invocation_tokens")  # keys that change what the tensors mean
PATTERNS = ("rank_pattern", "alpha_pattern")  # ranks and alphas of some layers
OTHER_BASE = ("pissa", "olora", "corda")  # initialisations that take something out of the base before training


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """The configuration of a PEFT adapter directory, of an adapter that can be applied here.

    Raises:
        ModelError: none there, no LoRA, or one that asks for what we do not do.
    """
    path = directory / CONFIG
    try:
        text = path.read_bytes() if path.stat().st_size <= CONFIG_BYTES else b""
        parsed: object = jiter.from_json(text, catch_duplicate_keys=True, allow_inf_nan=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}", "give a directory that PEFT or tunesmith train wrote") from error
    if not isinstance(parsed, dict):
        raise ModelError(f"{path}: a {type(parsed).__name__}, expected an object with peft_type", "get the file again")
    config = cast("dict[str, Any]", parsed)
    if (kind := config.get("peft_type")) != "LORA":
        raise ModelError(f"{path}: peft_type is {kind!r}, expected 'LORA'", "other kinds of adapters are not read")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or alpha <= 0:
        raise ModelError(f"{path}: r is {rank!r} and lora_alpha {alpha!r}", "a rank is a whole number, both are positive")
    dropout = config.setdefault("lora_dropout", 0.0)
    if not isinstance(dropout, int | float) or not 0.0 <= dropout < 1.0:
        raise ModelError(f"{path}: lora_dropout is {dropout!r}", "a share from 0 to below 1")
    targets = config.setdefault("target_modules", [])
    if not isinstance(targets, str | list):
        raise ModelError(f"{path}: target_modules is {targets!r}", "a list of names or a regular expression; get it again")
    experts: JsonValue = config.get("target_parameters") or []
    if not isinstance(experts, list) or not all(isinstance(name, str) for name in experts):
        raise ModelError(f"{path}: target_parameters is {experts!r:.200}", "a list of names; get the file again")
    settings = [key for key in NOT_APPLIED if config.get(key)]
    if config.get("bias", "none") != "none":
        settings.append("bias")
    if settings:
        raise ModelError(f"{path}: asks for {', '.join(settings)}, which is not applied here", "merge it with PEFT")
    try:
        tables_of(_saved_modules(config))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}", "merge it with PEFT") from error
    _refuse_patterns(path, config)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(OTHER_BASE):
        raise ModelError(
            f"{path}: init_lora_weights is {start}, so the adapter belongs to a base that was changed before training",
            "save it again as a plain adapter: save_pretrained(..., path_initial_model_for_weight_conversion=...) in PEFT",
        )
    return config


def read_lora(directory: Path) -> Lora:
    """What the configuration of a PEFT adapter directory says in our keys: rank, alpha, dropout, kind and targets.

    Raises:
        ModelError: see ``read_adapter_config``.
    """
    config = read_adapter_config(directory)
    targets: str | tuple[str, ...] = config["target_modules"]
    experts = dict.fromkeys(name.rpartition(".")[0] for name in config.get("target_parameters") or ())
    if not isinstance(targets, str):
        targets = (*targets, *experts)
    elif experts:
        targets = "|".join([f"(?:{targets})", *(rf"(?:.*\.)?{re.escape(name)}" for name in experts)])
    try:
        return Lora(
            r=config["r"],
            alpha=config["lora_alpha"],
            dropout=config["lora_dropout"],
            target_modules=targets,
            use_rslora=bool(config.get("use_rslora")),
            use_dora=bool(config.get("use_dora")),
            modules_to_save=_saved_modules(config),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]} is {first['input']!s:.100}" if first["loc"] else "the configuration"
        raise ModelError(f"{directory / CONFIG}: {where}: {first['msg'].lower()}", "get the file again") from error


def lora_of(name: str, lora: Lora, config: dict[str, Any]) -> Lora:
    """What an adapter is on one layer, which may have a rank or an alpha of its own.

    Args:
        name: full name of the layer.
        lora: from ``read_lora``.
        config: from ``read_adapter_config``.
    """
    rank, alpha = (_by_pattern(config.get(key) or {}, name) for key in PATTERNS)
    if rank is None and alpha is None:
        return lora
    return lora.model_copy(update={"r": lora.r if rank is None else int(rank), "alpha": lora.alpha if alpha is None else alpha})


def has_patterns(config: dict[str, Any]) -> bool:
    """Whether some layers of an adapter have a rank or an alpha of their own."""
    return any(config.get(key) for key in PATTERNS)


def _by_pattern(pattern: dict[str, float], name: str) -> float | None:
    """The value of the first key that matches the end of a name."""
    return next((value for key, value in pattern.items() if re.match(_at_the_end(key), name)), None)


def _at_the_end(key: str) -> str:
    """What PEFT makes of a key (``get_pattern_key`` in ``peft/utils/other.py``)."""
    return rf"(.*\.)?({key})$"


def _refuse_patterns(path: Path, config: dict[str, Any]) -> None:
    for key, whole in zip(PATTERNS, (True, False), strict=True):
        pattern: JsonValue = config.get(key) or {}
        if not isinstance(pattern, dict):
            raise ModelError(f"{path}: {key} is {pattern!r}, expected names and numbers", "get the file again")
        for name, value in pattern.items():
            kinds = (int,) if whole else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or value <= 0:
                raise ModelError(f"{path}: {key} gives {name} {value!r}", "a rank is a whole number, both are positive")
            try:
                re.compile(_at_the_end(name))
            except re.error as error:
                raise ModelError(f"{path}: {key}: {name!r} is no regular expression: {error}", "get the file again") from error
    if has_patterns(config) and config.get("target_parameters"):
        raise ModelError(f"{path}: rank_pattern or alpha_pattern beside target_parameters (experts)", "merge it with PEFT")


def _saved_modules(config: dict[str, Any]) -> tuple[str, ...]:
    """``modules_to_save`` of a configuration.

    Raises:
        TypeError: it is no list of names.
    """
    names: JsonValue = config.get("modules_to_save") or []
    found = [name for name in names if isinstance(name, str)] if isinstance(names, list) else None
    if found is None or found != names:
        raise TypeError(f"modules_to_save is {names!r}, expected a list of names")
    return tuple(found)


def weights_file(directory: Path) -> Path:
    """The file of an adapter's tensors.

    Raises:
        ModelError: not there, or a pickle in its place.
    """
    path = directory / WEIGHTS
    if not path.exists():
        _refuse_pickle(directory)
        raise ModelError(
            f"{directory}: no {WEIGHTS} there", f"the weights lie beside {CONFIG}; get them again, or run: tunesmith train RUN"
        )
    return path


# Keys of ``lora`` that are facts of an adapter.
TAKEN = ("r", "alpha", "target_modules", "use_rslora", "use_dora", "modules_to_save")
TRAINER_STATE = "trainer_state.json"
STATE_BYTES = 2**26  # a line of its log a step
Json = dict[str, JsonValue]


def taken_over(lora: Lora, directory: Path) -> Lora:
    """The section ``lora`` with what it leaves out taken from an adapter; as it is where that cannot be read.

    Args:
        lora: as the recipe has it; what is written there stands.
        directory: PEFT adapter directory.
    """
    try:
        known = read_lora(directory)
    except ModelError:
        return lora
    left_out = [key for key in TAKEN if key not in lora.model_fields_set]
    return lora.model_copy(update={key: getattr(known, key) for key in left_out})


def refuse_contradiction(lora: Lora, directory: Path) -> None:
    """Refuse to go on from an adapter that cannot be read, or that the recipe contradicts; targets are compared on the model.

    Args:
        lora: the recipe's.
        directory: PEFT adapter directory.

    Raises:
        RecipeError: no adapter there, or another rank, alpha or kind than the recipe's.
        ModelError: see ``read_adapter_config`` and ``weights_file``.
    """
    if not (directory / CONFIG).is_file():
        what = "no such directory" if not directory.exists() else f"no {CONFIG} there"
        raise RecipeError(f"train.from_adapter: {directory}: {what}", _nearby(directory))
    known = read_lora(directory)
    weights_file(directory)
    for key in TAKEN:
        written, own = getattr(lora, key), getattr(known, key)
        if key == "modules_to_save":
            written, own = list(written), list(own)  # as a recipe spells them
            if tables_of(written) == tables_of(own):
                continue
        if key != "target_modules" and written != own:
            raise RecipeError(
                f"lora.{key}: {written}, but the adapter of train.from_adapter has {own} ({directory / CONFIG})",
                f"leave lora.{key} out, or write {own}; a new adapter, without train.from_adapter, may have any",
            )


def words_of_start(lora: Lora, directory: Path) -> Iterator[str]:
    """What a training that goes on from an adapter takes from it and what not, for people.

    Raises:
        ModelError: see ``read_adapter_config``.
    """
    config = read_adapter_config(directory)
    kind = " and ".join(name for name, on in (("rsLoRA", lora.use_rslora), ("DoRA", lora.use_dora)) if on) or "LoRA"
    of = config.get("base_model_name_or_path")
    named = f"; it names {of} as its base" if of else ""
    if has_patterns(config):
        named = f", and a rank or alpha of their own on some layers{named}"
    yield f"goes on from {directory}: {kind} of rank {lora.r}, alpha {lora.alpha:g}, as its own file says{named}"
    state = _json(directory / TRAINER_STATE)
    step, total = state.get("global_step"), state.get("max_steps")
    if type(step) is int:
        whole = f" of {total:,}" if type(total) is int and total > 0 else ""
        yield f"it is a trainer's checkpoint of step {step:,}{whole}; rows, order and rate begin anew here, by this recipe"
    left = ", ".join(name for name in ("optimizer.pt", "scheduler.pt") if (directory / name).exists())
    yield f"the optimizer is fresh: moments at zero, the rate from its warm-up{f' ({left} is not read)' if left else ''}"
    if config["lora_dropout"] != lora.dropout:
        yield f"lora.dropout {lora.dropout:g} is the recipe's; the adapter was trained with {config['lora_dropout']:g}"


def _nearby(directory: Path) -> str:
    """A hint: the adapter that may be meant."""
    below = sorted(directory.glob(f"*/{CONFIG}"), key=lambda file: (len(file.parent.name), file.parent.name))
    if below:
        return f"there is one below: {below[-1].parent}"
    return f"a directory with {CONFIG} and {WEIGHTS}, as PEFT, a trainer or tunesmith train write it; relative to the recipe"


def _json(file: Path) -> Json:
    """A JSON object that is a nicety: nothing where it is not there or cannot be read."""
    try:
        found: object = jiter.from_json(file.read_bytes()) if file.stat().st_size <= STATE_BYTES else {}
    except (OSError, ValueError):
        return {}
    return cast("Json", found) if isinstance(found, dict) else {}


def _refuse_pickle(place: Path) -> None:
    """Refuse an adapter that is a pickle, or a directory with nothing else, and say how to convert it."""
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    pickles = [file for file in files if file.suffix in PICKLES and file.is_file()]
    if not pickles:
        return
    file = next((file for file in pickles if file.stem == "adapter_model"), pickles[0])
    load = f"torch.load('{file.name}', weights_only=True, map_location='cpu')"
    raise ModelError(
        f"{file}: a pickle, which may run code while it is read; adapters are read from {WEIGHTS} alone",
        "convert it in an environment that you can lose:\n"
        f"  cd {file.parent}\n"
        f'  python -c "import torch, safetensors.torch as s; '
        f"s.save_file({{k: v.clone() for k, v in {load}.items()}}, '{WEIGHTS}')\"",
    )
