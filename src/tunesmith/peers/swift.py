"""ms-swift: YAML or JSON of its arguments, or the ``args.json`` of a checkpoint.

Source: ms-swift 4.6.0, ``swift/arguments``.
"""

from tunesmith.peers import hugging_face
from tunesmith.peers.hugging_face import FULL, LOOKED_AT, MULTIMODAL, OUTPUT, SPEED, SPREAD, Arguments
from tunesmith.peers.translation import NamedRows, Translation

NAME = "ms-swift"
MARKS = (
    "tuner_type",
    "train_type",
    "split_dataset_ratio",
    "lorap_lr_ratio",
    "quant_bits",
    "model_author",
    "load_from_cache_file",
)
MARKS += ("truncation_strategy", "loss_scale", "attn_impl", "tuner_backend", "torch_dtype")

DROPPED = {
    **hugging_face.DROPPED,
    **dict.fromkeys(("attn_impl", "experts_impl", "lazy_tokenize", "packing_*", "load_from_cache_file", "padding_side"), SPEED),
    **dict.fromkeys(
        ("dataset_shuffle", "val_dataset_shuffle", "shuffle_buffer_size", "download_mode", "stopping_strategy"), SPEED
    ),
    **dict.fromkeys(
        ("use_hf", "enable_npu_*", "zero_hpz_*", "max_memory", "max_model_len", "vit_gradient_checkpointing", "data_seed"),
        SPEED,
    ),
    **dict.fromkeys(("tuner_backend", "bnb_4bit_*", "hqq_axis", "lora_dtype", "device_groups", "offload_*"), SPEED),
    **dict.fromkeys(("model_type", "local_repo_path", "model_kwargs", "strict", "gc_*"), SPEED),
    **dict.fromkeys(("model_name", "model_author", "add_version", "create_checkpoint_symlink", "merge_lora"), OUTPUT),
    **dict.fromkeys(("ignore_args_error", "load_args", "load_data_args", "use_logits_to_keep", "acc_*"), OUTPUT),
    **dict.fromkeys(
        ("max_new_tokens", "temperature", "top_*", "repetition_penalty", "num_beams", "stream", "stop_words"), OUTPUT
    ),
    **dict.fromkeys(
        ("predict_with_generate", "logprobs", "structured_outputs_regex", "result_path", "metric", "zero_bubble"), OUTPUT
    ),
    **dict.fromkeys(("val_dataset", "cached_val_dataset", "early_stop_interval"), LOOKED_AT),
    **dict.fromkeys(
        ("lora_ga_*", "boft_*", "vera_*", "fourier_*", "adalora_*", "*_num_new_blocks", "*_num_groups", "reft_*", "adapter_*"),
        "of another kind of adapter",
    ),
    **dict.fromkeys(("freeze_llm", "freeze_vit", "freeze_aligner", "max_pixels", "norm_bbox"), "no images are read here"),
    "agent_template": "the model's own template writes calls here",
    "is_binary_loss_scale": "answers alone are trained here",
    "add_non_thinking_prefix": "the model's own template writes it here",
    "disable_ignore_empty_think": "the model's own template writes it here",
    "disable_auto_column_mapping": "columns are told from the rows",
    "use_chat_template": "the chat template renders here",
}
REFUSED = {
    **hugging_face.REFUSED,
    **dict.fromkeys(("freeze_parameters*", "trainable_parameters*"), "weights beside the adapters are trained there"),
    **dict.fromkeys(("target_parameters",), "adapters on weights that are no linear layers"),
    **dict.fromkeys(("new_special_tokens", "num_labels", "problem_type"), "the vocabulary or the head is changed there"),
    **dict.fromkeys(("rlhf_type", "reward_*", "ref_model", "teacher_model"), "preference data or a reward is learnt there"),
    **dict.fromkeys(
        ("streaming", "interleave_prob", "custom_dataset_info", "cached_dataset", "columns"), "rows that are made there"
    ),
    **dict.fromkeys(("adapters", "init_weights", "response_prefix", "init_strategy", "rope_scaling"), "another beginning"),
    **dict.fromkeys(
        ("external_plugins", "custom_register_path", "loss_type", "optimizer", "optimizer_*"),
        "a loss or an optimizer of its own",
    ),
    **dict.fromkeys(
        ("use_galore", "galore_*", "lisa_*", "use_muon*", "aligner_lr", "vit_lr"), "an optimizer that tunesmith does not have"
    ),
    **dict.fromkeys(("sequence_parallel*", "deepspeed_autotp_size"), SPREAD),
    "router_aux_loss_coef": "a loss on the routing is added there",
    "enable_dft_loss": "another loss",
    "max_epochs": "ends a streamed training",
    "lora_bias": "biases are trained there",
    "use_swift_lora": "adapters of its own kind",
    "preserve_thinking": "reasoning of earlier turns is kept there",
}


def translate(t: Translation, shipped: tuple[str, ...]) -> None:
    """Say what becomes of the arguments of ms-swift.

    Args:
        shipped: names of the chat templates that tunesmith brings.
    """
    if (task := t.text("task_type")) not in (None, "causal_lm"):
        t.refuse("task_type", f"{task}: an encoder or classifier with a head of its own is trained there", final=True)
        return
    model = t.text("model")
    if model is None:
        t.refuse("model", "no model is named", "--set model=MODEL", final=True)
    else:
        t.map("model", "model", model)
    t.carry("model_revision", "revision", t.text("model_revision"))
    key = "train_type" if t.has("train_type") else "tuner_type"
    kind = t.text(key) or "lora"
    is_full = kind != "lora"
    if is_full:
        words = FULL if kind == "full" else f"{kind} is not trained here, LoRA alone is"
        t.refuse(key, words, f"--set {key}=lora trains an adapter with the keys of this file")
        for name in ("lora_rank", "lora_alpha", "lora_dropout", "target_modules", "target_regex", "use_rslora", "use_dora"):
            if t.has(name):
                t.drop(name, "of another kind of training")
    else:
        if t.has(key):
            t.map(key, None, None, "an adapter, as every training here")
        _lora(t)
    hugging_face.training_arguments(t, Arguments(rate=None if is_full else 1e-4, schedule="cosine", checkpointing=True))
    _precision(t)
    _rows(t)
    _chat(t, shipped)
    t.rest(DROPPED, REFUSED)


def _lora(t: Translation) -> None:
    t.carry("lora_rank", "lora.r", t.whole("lora_rank"), 8)
    t.carry("lora_alpha", "lora.alpha", t.number("lora_alpha"), 32)
    t.carry("lora_dropout", "lora.dropout", t.number("lora_dropout"), 0.05)
    regex, names = t.text("target_regex"), t.value("target_modules")
    if regex is not None:
        hugging_face.targets(t, "target_regex", regex)
    elif names is not None:
        hugging_face.targets(t, "target_modules", names if isinstance(names, list) else [str(names)])
    else:
        t.default("target_modules", "lora.target_modules", "all-linear")
    hugging_face.saved_modules(t, "modules_to_save", t.value("modules_to_save"))
    t.carry("use_rslora", "lora.use_rslora", t.flag("use_rslora"))
    t.carry("use_dora", "lora.use_dora", t.flag("use_dora"))
    t.carry("lorap_lr_ratio", "train.loraplus_lr_ratio", t.number("lorap_lr_ratio"))


def _precision(t: Translation) -> None:
    bits, method = t.value("quant_bits"), t.text("quant_method")
    if bits is not None and (bits != 4 or method not in (None, "bnb")):
        t.refuse("quant_bits", f"a base of {bits} bits by {method}", "--set quant_bits=4 --set quant_method=bnb", final=True)
    elif method is not None:
        t.drop("quant_method", "4 bits are NF4 here")
    dtype = t.text("torch_dtype")
    hugging_face.precision(t, ("quant_bits", bits == 4))
    if dtype is not None and t.ours("base") in (None, "nf4"):
        ours = "train.compute" if t.ours("base") == "nf4" else "base"
        if dtype == "float16":
            ours = "train.compute"
        t.map("torch_dtype", ours, {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(dtype, "auto"))
    elif dtype is not None:
        t.drop("torch_dtype", "bf16 and fp16 say it already")


def _rows(t: Translation) -> None:
    walk, length = t.walk, t.whole("max_length")
    walk.max_length = length or 0  # the model's own, which every row fits
    t.carry("max_length", "train.max_length", length)
    strategy = t.text("truncation_strategy") or "delete"
    if strategy == "delete":
        t.carry("truncation_strategy", "data.on_too_long", "drop" if t.has("truncation_strategy") else None, "drop")
    else:
        walk.cuts = True
        t.map("truncation_strategy", "data.on_too_long", "refuse", "no row is ever cut here")
    if t.flag("packing"):
        walk.packed = t.whole("packing_length") or walk.max_length or None
    if t.has("packing"):
        t.drop("packing", "rows are always packed here, and attend to themselves alone")
    walk.held_out_key, walk.held_out = "split_dataset_ratio", t.number("split_dataset_ratio") or 0.0
    names = t.value("dataset")
    for number, name in enumerate(names if isinstance(names, list) else [] if names is None else [names]):
        path, _, count = str(name).partition("#")
        first = int(count) if count.isdigit() else None
        path = path.removeprefix("HF::").removeprefix("MS::")
        if ":" in path or not path:
            t.refuse_rows(f"dataset[{number}]", "a subset of a data set")
            continue
        if first is not None:
            t.differ(
                f"the rows: {NAME} draws {first:,} of {path} by its seed, a recipe draws as many by a hash of their content"
            )
        t.rows.append(NamedRows(key=f"dataset[{number}]", path=path, first=first))


def _chat(t: Translation, shipped: tuple[str, ...]) -> None:
    hugging_face.template(t, "template", shipped)
    if t.text("template") is None:
        t.differ(f"the texts: {NAME} renders the rows by a template of its own for this model; tunesmith preview shows ours")
    t.carry("enable_thinking", "chat.enable_thinking", t.flag("enable_thinking"))
    t.carry("system", "task.short_prompt", t.text("system"))
    scale = t.text("loss_scale") or "default"
    if scale == "default":
        if t.has("loss_scale"):
            t.drop("loss_scale", "every answer counts, as here")
    else:
        t.refuse("loss_scale", f"answers count by {scale} there; here each supervised token counts alike")
    if t.text("template_backend"):
        t.drop("template_backend", "the model's own template renders here")
    if t.value("modality"):
        t.refuse("modality", MULTIMODAL, final=True)
