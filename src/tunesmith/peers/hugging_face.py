"""Keys of transformers' ``TrainingArguments``, which several tools take over, and of PEFT's LoRA under each tool's names.

Source: transformers 5.23 ``training_args.py``, PEFT 0.21 ``LoraConfig``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from tunesmith.peers.translation import Translation, plain
from tunesmith.recipe.tables import table_of

SPEED = "about speed or memory alone"
OUTPUT = "about what is written and shown alone"
LOOKED_AT = "rows that are only looked at; dev and test parts are drawn from the rows here"
FULL = "all weights are trained there; tunesmith trains LoRA adapters alone"
MULTIMODAL = "images, sound or video; tunesmith trains on text alone"
SPREAD = "spreads one model over several devices or hosts; tunesmith keeps it whole on each"
ADAM: Mapping[str, float] = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
HOST = "its states move to host memory there when the GPU is full"
OPTIMIZERS = {  # ours, and what is to be said
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw"), ("adamw", "")),
    **dict.fromkeys(("paged_adamw_32bit", "paged_adamw"), ("adamw", HOST)),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), ("adamw_8bit", "")),
    "adamw_torch_8bit": ("adamw_8bit", "torchao's 8-bit states there, those of bitsandbytes here"),
    "paged_adamw_8bit": ("paged_adamw_8bit", ""),
}

DROPPED = {
    **dict.fromkeys(("logging_*", "log_*", "save_*", "report_to", "run_name", "project", "trackio_*", "push_to_hub"), OUTPUT),
    **dict.fromkeys(("hub_*", "output_dir", "disable_tqdm", "overwrite_output_dir", "load_best_model_at_end"), OUTPUT),
    **dict.fromkeys(("metric_for_best_model", "greater_is_better", "skip_memory_metrics", "include_*", "debug"), OUTPUT),
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "resume_from_checkpoint", "ignore_data_skip"), OUTPUT),
    **dict.fromkeys(("wandb_*", "swanlab_*", "use_wandb", "use_swanlab", "mlflow_*", "use_mlflow", "comet_*"), OUTPUT),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_*", "prediction_loss_only", "batch_eval_metrics"), LOOKED_AT),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval", "enable_jit_checkpoint", "restore_callback_states*"), LOOKED_AT),
    **dict.fromkeys(("dataloader_*", "ddp_*", "torch_compile*", "tf32", "use_cpu", "group_by_length", "use_cache"), SPEED),
    **dict.fromkeys(("torch_empty_cache_steps", "auto_find_batch_size", "gradient_checkpointing_kwargs"), SPEED),
    **dict.fromkeys(("remove_unused_columns", "local_rank", "accelerator_config", "use_liger_kernel"), SPEED),
    **dict.fromkeys(("liger_kernel_config", "full_determinism", "data_seed", "label_names", "length_column_name"), SPEED),
    **dict.fromkeys(("train_sampling_strategy", "average_tokens_across_devices", "activation_checkpointing*"), SPEED),
    **dict.fromkeys(("trust_remote_code", "attn_implementation", "device_map", "dataset_num_proc", "use_ray"), SPEED),
    **dict.fromkeys(("activation_offloading", "padding_free", "pad_to_multiple_of", "packing_strategy"), SPEED),
    "deepspeed": "how the training is spread over devices",
    "fsdp": "how the training is spread over devices",
    "fsdp_*": "how the training is spread over devices",
}
REFUSED = {
    "label_smoothing_factor": "labels are smoothed there",
    "neftune_noise_alpha": "noise is added to the embeddings there (NEFTune)",
    "lr_scheduler_kwargs": "parameters of a schedule that tunesmith does not have",
    "optim_args": "arguments of the optimizer",
    "optim_target_modules": "an optimizer of low rank for some of the weights",
    "parallelism_config": SPREAD,
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a tool calls the training arguments, and what it defaults them to.

    Attributes:
        rate: learning rate; None where another training than LoRA's is named, whose rate is too low for an adapter.
        schedule, epochs, batch, seed, dropout: as the recipe has them.
        checkpointing: whether layers are recomputed.
    """

    rate: float | None = 5e-5
    schedule: str = "linear"
    epochs: float = 3.0
    batch: int = 8
    seed: int = 42
    checkpointing: bool = False


def training_arguments(t: Translation, d: Arguments) -> None:
    """Take the keys of ``TrainingArguments``.

    Args:
        d: the tool's defaults.
    """
    if d.rate is not None:
        t.carry("learning_rate", "train.learning_rate", t.number("learning_rate"), d.rate)
    elif t.has("learning_rate"):
        t.drop("learning_rate", "of another kind of training than LoRA's; ours follows from the model and the rows")
    schedule(t, "lr_scheduler_type", d.schedule)
    optimizer(t, "optim")
    adam(t)
    steps(t, d)
    t.carry("max_grad_norm", "train.max_grad_norm", _clip(t), 1.0)
    t.carry("weight_decay", "train.weight_decay", t.number("weight_decay"), 0.0)
    t.carry("seed", "seed", t.whole("seed"), d.seed)
    recompute(t, "gradient_checkpointing", t.flag("gradient_checkpointing") if _is_switch(t) else True, d.checkpointing)
    strategy = t.text("eval_strategy") or t.text("evaluation_strategy")
    t.walk.eval_steps = t.number("eval_steps") if strategy == "steps" else None
    if t.has("eval_strategy"):
        t.drop("eval_strategy", LOOKED_AT)
    if t.has("eval_steps") and t.walk.eval_steps is None:
        t.drop("eval_steps", LOOKED_AT)


def _is_switch(t: Translation) -> bool:
    return not isinstance(t.value("gradient_checkpointing"), str)


def _clip(t: Translation) -> float | None:
    norm = t.number("max_grad_norm")
    if norm is not None and norm <= 0.0:
        t.refuse("max_grad_norm", "gradients are not clipped there", "--set max_grad_norm=1.0 clips them", final=True)
        return None
    return norm


def steps(t: Translation, d: Arguments) -> None:
    """How the tool walks over its rows."""
    walk, batch, accumulation = t.walk, "per_device_train_batch_size", "gradient_accumulation_steps"
    walk.batch = max(1, t.whole(batch) or d.batch)
    walk.accumulation = max(1, t.whole(accumulation) or 1)
    given = f"{batch} {walk.batch}{'' if t.has(batch) else ' (its default)'}"
    walk.batch_keys = f"{given} x {accumulation} {walk.accumulation}"
    walk.epochs_key, walk.epochs_given = "num_train_epochs", t.has("num_train_epochs")
    walk.epochs = t.number("num_train_epochs") or d.epochs
    most = t.whole("max_steps")
    walk.max_steps = most if most is not None and most > 0 else None
    ratio, number = t.number("warmup_ratio"), t.number("warmup_steps")
    walk.warmup_key = "warmup_steps" if number or ratio is None else "warmup_ratio"
    walk.warmup_given = t.has(walk.warmup_key)
    walk.warmup = number or ratio or 0.0


def schedule(t: Translation, key: str, default: str) -> None:
    """The schedule of the learning rate."""
    name = t.text(key)
    if name is None:
        t.carry(key, "train.schedule", None, default)
    elif name in SCHEDULES:
        t.map(key, "train.schedule", SCHEDULES[name])
    else:
        t.refuse(key, f"no such schedule here; there are cosine, linear and constant, and {default} is that tool's own")


def optimizer(t: Translation, key: str) -> None:
    """The optimizer; AdamW of any make is one."""
    name = t.text(key)
    if name is None:
        t.carry(key, "train.optimizer", None, "adamw")
    elif name in OPTIMIZERS:
        ours, words = OPTIMIZERS[name]
        t.map(key, "train.optimizer", ours, words)
    else:
        t.refuse(key, "no such optimizer here; there are adamw, adamw_8bit and paged_adamw_8bit")


def adam(t: Translation) -> None:
    """Parameters of Adam, which a recipe does not have."""
    for key, ours in ADAM.items():
        value = t.number(key)
        if value is None:
            continue
        if value == ours:
            t.drop(key, "what it is here as well")
        else:
            t.refuse(key, f"it is {ours:g} here, and no recipe changes it")


def recompute(t: Translation, key: str, value: bool | None, default: bool) -> None:
    """Gradient checkpointing, which changes memory and no result: ``auto`` turns it on where a GPU's memory asks for it."""
    if value is None and not default:
        return
    if value is None:
        t.default(
            key,
            "train.recompute",
            "auto",
            f"absent, and on by default in {t.tool}; the planner decides, the result is the same",
        )
    else:
        t.map(key, "train.recompute", "auto", "the planner decides by the memory at hand; the result is the same")


def precision(
    t: Translation, four_bits: tuple[str, bool], *, bf16: str = "bf16", fp16: str = "fp16", default: bool = False
) -> None:
    """What the base is kept in, and what it is multiplied in.

    Args:
        four_bits: the key behind 4 bits, and whether it says so.
        bf16, fp16: keys of the arithmetic.
        default: whether it is bf16 where nothing is said.
    """
    half, narrow = _switch(t, bf16), _switch(t, fp16)
    key, is_nf4 = four_bits
    if is_nf4:
        if t.has(key):
            t.map(key, "base", "nf4")
        else:
            t.default(key, "base", "nf4")
        ours = "train.compute"
    else:
        ours = "base"
    if narrow == "on":
        t.map(fp16, "train.compute", "fp16")
    elif half == "on" or (half is None and default):
        (t.map if half else t.default)(bf16, ours, "bf16")
    elif half is not None:
        t.map(bf16, ours, "auto", "whichever this machine multiplies faster")


def _switch(t: Translation, key: str) -> str | None:
    """``on``, ``off`` or ``auto``; a question to the machine (``is_bf16_supported()``) is auto."""
    value = t.value(key)
    if value is None:
        return None
    word = plain(value).lower()
    return {"true": "on", "1": "on", "false": "off", "0": "off"}.get(word, "auto")


def targets(t: Translation, key: str, value: JsonValue | list[str]) -> None:
    """The layers that get an adapter.

    Args:
        value: a name, a list of names, or a regular expression.
    """
    listed = [str(name) for name in value] if isinstance(value, list) else None
    if listed in (["all-linear"], ["all"]):
        t.map(key, "lora.target_modules", "all-linear")
    elif listed is not None and {"lm_head", "embed_tokens"} & set(listed):
        t.refuse(
            key,
            "the embedding or the head is trained there",
            "--set KEY=all-linear trains the linear layers".replace("KEY", key),
        )
    elif listed is not None:
        t.map(key, "lora.target_modules", [*listed])
    else:
        t.map(key, "lora.target_modules", str(value))


def saved_modules(t: Translation, key: str, value: JsonValue | list[str]) -> None:
    """What is trained whole beside the adapters: the embedding and the head here, anything else is refused.

    Args:
        value: names in a list, or in a text with commas or spaces; nothing for none.
    """
    names = value.replace(",", " ").split() if isinstance(value, str) else value if isinstance(value, list) else []
    names = [str(name) for name in names]
    if not names:
        if t.has(key) and not t.is_refused(key):
            t.drop(key, "names none")
        return
    if odd := [name for name in names if table_of(name) is None]:
        t.refuse(key, f"{', '.join(odd)}: weights beside the adapters are trained there; here embed_tokens and lm_head can be")
        return
    t.map(key, "lora.modules_to_save", [*names], "trained whole, in fp32")
    t.differ(
        f"a table that is both head and embedding: {t.tool} trains copies of it that go apart, tunesmith one that stays both"
    )


def template(t: Translation, key: str, shipped: tuple[str, ...], own: tuple[str, ...] = ("tokenizer_default",)) -> None:
    """The chat template by its name: ours where it has that name, else the model's own.

    Args:
        shipped: names of the templates that tunesmith brings.
        own: names under which the tool means the model's own.
    """
    name = t.text(key)
    if name is None:
        return
    if name in own:
        t.drop(key, "the model's own, as here")
    elif name.endswith(".jinja") or name in shipped:
        t.map(key, "chat.template", name)
    else:
        t.drop(key, "a rendering of the tool's own; here the model's own template renders")
        t.differ(
            f"the texts: {t.tool} renders the rows by its own template {name!r}, tunesmith by the one that the model brings; "
            "tunesmith preview shows what that is, and chat.template names another"
        )


def only_answers(t: Translation, whole: str) -> None:
    """Say that the original trains on more than the answers.

    Args:
        whole: the key behind that, and what it says.
    """
    t.differ(
        f"the tokens that count: {t.tool} trains on the whole text of a conversation ({whole}), questions included; tunesmith "
        "trains on what the assistant says alone, so the loss is of other tokens and cannot be compared"
    )
