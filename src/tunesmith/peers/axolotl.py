"""Axolotl: one YAML file of flat keys, ``datasets`` a list.

Source: axolotl 0.19.0, ``utils/schemas`` and ``core/builders/base.py``.
"""

import re

from pydantic import JsonValue

from tunesmith.peers import hugging_face
from tunesmith.peers.hugging_face import FULL, LOOKED_AT, MULTIMODAL, OUTPUT, SPEED, SPREAD
from tunesmith.peers.translation import NamedRows, Translation, is_off

NAME = "Axolotl"
MARKS = ("base_model", "micro_batch_size", "sequence_len", "datasets", "lora_target_linear", "val_set_size", "num_epochs")
WARMUP, WARMUP_MOST = 0.03, 100  # where neither warmup_ratio nor warmup_steps is there

DROPPED = {
    **hugging_face.DROPPED,
    **dict.fromkeys(("flash_*", "xformers_attention", "sdp_attention", "flex_*", "sage_attention", "eager_attention"), SPEED),
    **dict.fromkeys(("sdpa_*", "s2_attention", "pad_to_sequence_len", "eval_sample_packing", "sample_packing_*"), SPEED),
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel", "lora_on_cpu"), SPEED),
    **dict.fromkeys(("liger_*", "cut_cross_entropy", "chunked_cross_entropy*", "tiled_mlp*", "layer_offloading"), SPEED),
    **dict.fromkeys(("use_kernels", "use_scattermoe", "use_sonicmoe", "*_hybrid_attn_impl", "fused_attn_kernel"), SPEED),
    **dict.fromkeys(("*_linearized_experts", "experts_implementation", "low_cpu_mem_usage", "max_memory"), SPEED),
    **dict.fromkeys(("gpu_memory_limit", "device", "world_size", "ddp", "deepcompile", "batch_flattening"), SPEED),
    **dict.fromkeys(("batch_size", "eval_batch_size", "selective_checkpointing", "gc_steps", "gc_collect_steps"), SPEED),
    **dict.fromkeys(("dataset_*", "shuffle_*", "skip_prepare_dataset", "push_dataset_to_hub", "is_preprocess"), SPEED),
    **dict.fromkeys(("preprocess_iterable", "num_dataset_shards_to_save", "multipack_real_batches", "trainer_cls"), SPEED),
    **dict.fromkeys(("max_packed_sequence_len", "total_num_tokens", "total_supervised_tokens", "fp32_norm*"), SPEED),
    **dict.fromkeys(("tokenizer_*", "model_type", "type_of_model", "base_model_config", "base_model_ignore_*"), SPEED),
    **dict.fromkeys(("is_*_derived_model", "hf_use_auth_token", "torchdistx_path", "experimental_*", "use_ray"), SPEED),
    **dict.fromkeys(("ray_*", "resources_per_worker", "qlora_sharded_model_loading", "lora_fan_in_fan_out"), SPEED),
    **dict.fromkeys(("peft_autocast_adapter_dtype", "bnb_config_kwargs", "gptq_*", "large_head_attention"), SPEED),
    **dict.fromkeys(("use_glm_*", "use_dsv*", "dsv*", "quantize_moe_experts", "embeddings_skip_upcast"), SPEED),
    **dict.fromkeys(("strict", "plugins", "saves_per_epoch", "use_tensorboard", "use_trackio", "use_comet"), OUTPUT),
    **dict.fromkeys(("gradio_*", "profiler_*", "use_otel*", "otel_*", "axolotl_config_path", "project_name"), OUTPUT),
    **dict.fromkeys(("auto_resume_from_checkpoints", "dynamic_checkpoint", "merge_lora", "merge_method"), OUTPUT),
    **dict.fromkeys(("generate_samples", "num_generation_samples", "generation_*", "do_bench_eval", "bench_*"), LOOKED_AT),
    **dict.fromkeys(("test_datasets", "do_causal_lm_eval", "early_stopping_patience", "test_value"), LOOKED_AT),
    **dict.fromkeys(("loss_watchdog_*",), "tunesmith stops at a loss that jumps up and stays there by itself"),
    **dict.fromkeys(("provider", "gpu", "gpu_count", "node_count", "volumes", "secrets", "branch", "memory*"), OUTPUT),
    **dict.fromkeys(("timeout*", "dockerfile_commands", "llmcompressor"), OUTPUT),
    "early_stopping_patience": "the adapter with the best dev loss is kept here in any case",
    "eot_tokens": "the template's own end of turn is trained here",
    "overrides_of_model_*": "settings of the attention and the like",
    "train_on_eos": "the end of each assistant turn is trained here",
    "processor_type": "the tokenizer alone is read here",
}
REFUSED = {
    **hugging_face.REFUSED,
    **dict.fromkeys(("trl", "vllm", "rl_beta", "orpo_alpha", "cpo_alpha", "rpo_alpha", "center_rewards*"), "a setting of RL"),
    **dict.fromkeys(("kto_*", "dpo_*", "simpo_*"), "a setting of RL"),
    **dict.fromkeys(("streaming*", "pretrain_*", "pretraining_*"), "texts are learnt there, not answers"),
    **dict.fromkeys(("relora*", "jagged_*"), "adapters are merged and begun anew along the way there (ReLoRA)"),
    **dict.fromkeys(("lisa_*",), "some layers are trained at a time there (LISA)"),
    **dict.fromkeys(("qgalore_*", "dion_*", "lr_groups", "embedding_lr*", "adam_epsilon2", "adam_beta3"), "another optimizer"),
    **dict.fromkeys(
        ("gptq", "model_quantization_config*", "use_onebitllms", "nvfp4*", "fp8*"), "a quantised base of another kind"
    ),
    **dict.fromkeys(("qat", "quantization"), "weights are trained to be quantised there"),
    "unfrozen_parameters": "weights beside the adapters are trained there",
    **dict.fromkeys(("lora_target_parameters",), "adapters on weights that are no linear layers"),
    **dict.fromkeys(("lora_rank_pattern", "lora_alpha_pattern"), "another rank or alpha for some layers"),
    **dict.fromkeys(("peft_layers_*",), "adapters in some of the layers; --set lora_target_modules=REGEX can name them"),
    **dict.fromkeys(("peft_init_lora_weights", "peft_trainable_*", "peft_ensure_*", "peft_layer_replication"), "PEFT's own"),
    **dict.fromkeys(("peft", "loraplus_lr_embedding"), "an extra of PEFT that tunesmith does not have"),
    **dict.fromkeys(
        ("context_parallel_size", "context_parapllel_size", "sequence_parallel_degree", "tensor_parallel_size"), SPREAD
    ),
    **dict.fromkeys(("expert_parallel_*", "dp_shard_size", "dp_replicate_size", "heads_k_stride", "ring_attn_func"), SPREAD),
    **dict.fromkeys(
        ("tokens", "added_tokens_overrides", "resize_token_*", "shrink_embeddings"), "the vocabulary is changed there"
    ),
    **dict.fromkeys(("mean_resizing_embeddings", "fix_untrained_tokens"), "the vocabulary is changed there"),
    **dict.fromkeys(("cosine_*", "lr_quadratic_warmup", "lr_div_factor", "eta_min"), "a schedule that tunesmith does not have"),
    **dict.fromkeys(("noisy_embedding_alpha",), "noise is added to the embeddings there (NEFTune)"),
    **dict.fromkeys(("use_eaft", "eaft_*", "use_pose", "pose_*", "scaling_softmax*"), "another loss or attention"),
    **dict.fromkeys(("freeze_mm_modules", "image_*", "role_boundaries", "processor_kwargs"), MULTIMODAL),
    **dict.fromkeys(("curriculum_sampling", "sample_packing_sequentially"), "rows come in their order there"),
    **dict.fromkeys(("lora_model_dir",), "an adapter is trained on there"),
    **dict.fromkeys(("reinit_weights", "model_config", "cls_model_config"), "another model than the one that is named"),
    **dict.fromkeys(("min_sample_len", "max_prompt_len"), "rows are left out by their length there"),
    **dict.fromkeys(("load_in_8bit",), "an 8-bit base; --set load_in_4bit=true --without load_in_8bit takes NF4"),
    **dict.fromkeys(("rope_scaling",), "positions are stretched there"),
}
OTHER_TRAININGS = {  # of which nothing is taken over
    **dict.fromkeys(("rl", "ebft"), "preference data or a reward is learnt there; tunesmith trains on answers"),
    **dict.fromkeys(("reward_model", "process_reward_model"), "a model of rewards is trained there"),
    "num_labels": "a classifier with a head of its own is trained there; task.metric: classification trains it in words",
    "pretraining_dataset": "texts are learnt there, not answers",
    "diffusion": "a model that writes by diffusion is trained there",
}
PROMPT = {"alpaca": "the Alpaca prompt", "alpaca_chat": "the Alpaca prompt", "alpaca:chat": "a prompt of its own"}


def translate(t: Translation, shipped: tuple[str, ...]) -> None:
    """Say what becomes of the keys of an Axolotl configuration.

    Args:
        shipped: names of the chat templates that tunesmith brings.
    """
    for key, words in OTHER_TRAININGS.items():
        if not is_off(t.value(key)):
            t.refuse(key, words, final=True)
            return
    if t.value("processor_type") and t.value("skip_prepare_dataset"):
        t.refuse("processor_type", MULTIMODAL, final=True)
        return
    _model(t)
    _adapter(t)
    _training(t)
    _walk(t)
    _chat(t, shipped)
    for number, entry in enumerate(_listed(t.value("datasets"))):
        _rows(t, f"datasets[{number}]", entry)
    t.rest(DROPPED, REFUSED)


def _model(t: Translation) -> None:
    model = t.text("base_model")
    if model is None:
        t.refuse("base_model", "no model is named", "--set base_model=MODEL", final=True)
    else:
        t.map("base_model", "model", model)
    t.carry("revision_of_model", "revision", t.text("revision_of_model"))
    adapter = t.text("adapter")
    four = t.flag("load_in_4bit") or adapter == "qlora"
    key = "load_in_4bit" if t.flag("load_in_4bit") else "adapter"
    _old_names(t)
    hugging_face.precision(t, (key, four))
    if t.has("load_in_4bit") and not t.flag("load_in_4bit"):
        t.drop("load_in_4bit", "switched off there")


def _old_names(t: Translation) -> None:
    for key in ("bfloat16", "float16", "float32"):
        if t.flag(key):
            t.refuse(key, "an older name", "--set bf16=true or --set fp16=true says the same", final=True)
        elif t.has(key):
            t.drop(key, "switched off there")


def _adapter(t: Translation) -> None:
    adapter = t.text("adapter")
    if adapter is None:
        t.refuse("adapter", FULL, "--without adapter trains an adapter of tunesmith's own rank and rate")
        t.value("learning_rate")
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_linear", "lora_target_modules"):
            if t.has(key):
                t.drop(key, "without an adapter it is not read there")
        if t.has("learning_rate"):
            t.drop(
                "learning_rate", "a rate for all weights is too low for an adapter; ours follows from the model and the rows"
            )
        return
    if adapter not in ("lora", "qlora"):
        t.refuse("adapter", f"adapters of the kind {adapter} are not trained here")
    elif not t.flag("load_in_4bit") and adapter == "qlora":
        pass
    else:
        t.map("adapter", None, None, "an adapter, as every training here")
    if (r := t.whole("lora_r")) is None:
        t.refuse("lora_r", "not given, and there is no default there", "--set lora_r=16", final=True)
    else:
        t.map("lora_r", "lora.r", r)
    if (alpha := t.number("lora_alpha")) is None:
        t.refuse("lora_alpha", "not given, and an error there", "--set lora_alpha=32", final=True)
    else:
        t.map("lora_alpha", "lora.alpha", alpha)
    t.carry("lora_dropout", "lora.dropout", t.number("lora_dropout"), 0.0)
    if t.flag("lora_target_linear"):
        t.map("lora_target_linear", "lora.target_modules", "all-linear")
        if t.value("lora_target_modules"):
            t.drop("lora_target_modules", "lora_target_linear names them all")
    elif (names := t.value("lora_target_modules")) is not None:
        hugging_face.targets(t, "lora_target_modules", names)
    else:
        t.default("lora_target_modules", "lora.target_modules", "peft-default", "absent, and PEFT chooses there")
    hugging_face.saved_modules(t, "lora_modules_to_save", t.value("lora_modules_to_save"))
    t.carry("peft_use_rslora", "lora.use_rslora", t.flag("peft_use_rslora"))
    t.carry("peft_use_dora", "lora.use_dora", t.flag("peft_use_dora"))
    t.carry("loraplus_lr_ratio", "train.loraplus_lr_ratio", t.number("loraplus_lr_ratio"))
    if (rate := t.number("learning_rate")) is None:
        t.refuse("learning_rate", "not given, and an error there", "--set learning_rate=0.0002", final=True)
    else:
        t.map("learning_rate", "train.learning_rate", rate)


def _training(t: Translation) -> None:
    hugging_face.schedule(t, "lr_scheduler", "cosine")
    hugging_face.optimizer(t, "optimizer")
    if (eps := t.number("adam_eps")) is not None:
        t.drop("adam_eps", f"{eps:g}: no key of {NAME}, which reads adam_epsilon")
    hugging_face.adam(t)
    t.carry("max_grad_norm", "train.max_grad_norm", t.number("max_grad_norm"), 1.0)
    t.carry("weight_decay", "train.weight_decay", t.number("weight_decay"), 0.0)
    t.carry("seed", "seed", t.whole("seed"), 42)
    checkpointing = t.value("gradient_checkpointing")
    hugging_face.recompute(t, "gradient_checkpointing", None if checkpointing is None else bool(checkpointing), default=False)
    t.carry("evals_per_epoch", "train.evals_per_epoch", t.whole("evals_per_epoch") or None)
    if t.has("evals_per_epoch") and not t.whole("evals_per_epoch"):
        t.drop("evals_per_epoch", LOOKED_AT)
    if t.flag("train_on_inputs"):
        t.refuse("train_on_inputs", "questions are trained there as well; tunesmith trains on answers alone")
    elif t.has("train_on_inputs"):
        t.drop("train_on_inputs", "answers alone, as here")


def _walk(t: Translation) -> None:
    walk = t.walk
    walk.batch, walk.accumulation = t.whole("micro_batch_size") or 1, t.whole("gradient_accumulation_steps") or 1
    walk.batch_keys = f"micro_batch_size {walk.batch} x gradient_accumulation_steps {walk.accumulation}"
    length = t.whole("sequence_len")
    t.carry("sequence_len", "train.max_length", length, 512)
    walk.max_length = length or 512
    if t.flag("sample_packing"):
        walk.packed = walk.max_length
        t.drop("sample_packing", "rows are always packed here")
    elif t.has("sample_packing"):
        t.drop("sample_packing", "rows are always packed here, and attend to themselves alone")
    walk.epochs_key, walk.epochs_given = "num_epochs", t.has("num_epochs")
    walk.epochs = t.number("num_epochs") or 1.0
    most = t.whole("max_steps")
    walk.max_steps = most if most is not None and most > 0 else None
    ratio, number = t.number("warmup_ratio"), t.number("warmup_steps")
    if ratio is None and number is None:
        walk.warmup, walk.warmup_most, walk.warmup_key = WARMUP, WARMUP_MOST, "warmup_ratio"
    else:
        walk.warmup = ratio or 0.0 if number is None else number
        walk.warmup_key, walk.warmup_given = "warmup_ratio" if number is None else "warmup_steps", True
    walk.held_out_key, walk.held_out = "val_set_size", t.number("val_set_size") or 0.0
    steps = t.number("eval_steps")
    walk.eval_steps = steps if steps else None
    excess = t.text("excess_length_strategy") or "drop"
    if excess == "drop":
        t.carry("excess_length_strategy", "data.on_too_long", t.text("excess_length_strategy"), "drop")
    elif excess == "raise":
        t.map("excess_length_strategy", "data.on_too_long", "refuse")
    else:
        walk.cuts = True
        t.map("excess_length_strategy", "data.on_too_long", "refuse", "no row is ever cut here")


def _chat(t: Translation, shipped: tuple[str, ...]) -> None:
    hugging_face.template(t, "chat_template", shipped)
    if t.text("chat_template_jinja"):
        t.refuse(
            "chat_template_jinja", "a template in the file", "write it to a file, and name that: --set chat_template=FILE.jinja"
        )
    kwargs = t.value("chat_template_kwargs")
    if isinstance(kwargs, dict) and set(kwargs) == {"enable_thinking"}:
        t.map("chat_template_kwargs", "chat.enable_thinking", bool(kwargs["enable_thinking"]))
    elif kwargs:
        t.refuse("chat_template_kwargs", "variables of the template that a recipe does not have")
    t.carry("default_system_message", "task.short_prompt", t.text("default_system_message"))
    special = t.value("special_tokens")
    if isinstance(special, dict):
        given = {name for name, token in special.items() if token}
        if given - {"pad_token", "bos_token", "eos_token", "unk_token"}:
            t.refuse("special_tokens", "the vocabulary is changed there")
        else:
            t.drop("special_tokens", "the tokenizer's own count here; padding is not used")


def _listed(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [] if value is None else [value]


ROW_KEYS = {"path", "type", "split", "name", "data_files", "ds_type", "field_messages", "message_property_mappings", "field"}
ROW_KEYS |= {"message_field_role", "message_field_content", "conversation", "chat_template", "trust_remote_code", "shards"}
ROW_KEYS |= {"roles_to_train", "train_on_eos", "train_on_eot", "field_tools", "roles", "revision", "field_thinking"}
ROW_KEYS |= {"template_thinking_key", "split_thinking", "preprocess_shards"}


ROWS_MADE = {
    "drop_system_message",
    "message_field_training",
    "message_field_training_detail",
    "input_transform",
    "input_format",
}
ROWS_MADE |= {"shards_idx", "field_human", "field_model", "logprobs_field", "temperature", "chat_template_jinja"}


def _rows(t: Translation, key: str, entry: JsonValue) -> None:
    """One entry of ``datasets``."""
    if not isinstance(entry, dict):
        t.refuse_rows(key, "expected keys and values")
        return
    if unknown := [name for name, value in entry.items() if name not in ROW_KEYS and value]:
        words = "rows are made otherwise there" if unknown[0] in ROWS_MADE else "not known as a key of a data set"
        t.refuse_rows(f"{key}.{unknown[0]}", words, "--data DATA names rows as they are to be read")
    trained = _listed(entry.get("roles_to_train"))
    if trained and {str(role) for role in trained} - {"assistant", "gpt"}:
        t.refuse(f"{key}.roles_to_train", "tunesmith trains on what the assistant says alone")
    format, columns = _form(t, key, entry)
    path, files = str(entry.get("path") or ""), _listed(entry.get("data_files"))
    if path in ("json", "csv", "parquet", "arrow") and files:
        path = str(files[0])
    elif files:
        t.refuse_rows(f"{key}.data_files", "files inside a data set of the hub", "download them, and name them with --data")
    split, first, share = _split(t, f"{key}.split", str(entry.get("split") or ""))
    name = entry.get("name")
    t.rows.append(
        NamedRows(
            key=f"{key}.path",
            path=path,
            split=split,
            config=None if name is None else str(name),
            first=first,
            share=share,
            format=format,
            columns=columns,
        )
    )


def _split(t: Translation, key: str, text: str) -> tuple[str | None, int | None, float | None]:
    """A split of the hub's, and how much of it: ``train[:500]``, ``train[:2%]``."""
    if not text:
        return None, None, None
    match = re.fullmatch(r"([\w.-]+)(?:\[:(\d+)(%?)\])?", text)
    if match is None:
        t.refuse_rows(key, f"a part of a split is named: {text}")
        return None, None, None
    name, number, percent = match.groups()
    if number is None:
        return name, None, None
    t.differ(
        f"the rows: {t.tool} reads the first {number}{percent} of the split, a recipe draws as many by a hash of their content"
    )
    return (name, None, int(number) / 100) if percent else (name, int(number), None)


def _form(t: Translation, key: str, entry: dict[str, JsonValue]) -> tuple[str | None, dict[str, str]]:
    """Format and columns of the rows of an entry."""
    kind = entry.get("type") or ("chat_template" if entry.get("field_messages") or entry.get("chat_template") else "")
    if isinstance(kind, dict):
        names = {
            "prompt": kind.get("field_instruction"),
            "completion": kind.get("field_output"),
            "system": kind.get("field_system"),
        }
        columns = {ours: str(theirs) for ours, theirs in names.items() if theirs}
        if kind.get("field_input"):
            columns = {
                "instruction": columns.pop("prompt", "instruction"),
                "output": columns.pop("completion", "output"),
                **columns,
            }
            columns["input"] = str(kind["field_input"])
        t.differ(
            f"the texts: {t.tool} writes the rows with a prompt that stands in the file ({key}.type), tunesmith with the "
            "chat template"
        )
        return None, columns
    base = str(kind).partition(".")[0]
    if base in ("chat_template", "sharegpt"):
        return _conversation(t, key, entry)
    if base.startswith("alpaca"):
        t.differ(
            f"the texts: {t.tool} writes these rows with {PROMPT.get(base, 'the Alpaca prompt')}, tunesmith with the "
            "chat template"
        )
        return "alpaca", {}
    if base in ("completion", "pretrain") or not base:
        words = "plain texts are learnt there, which nobody asks for" if base else "no type is named"
        t.refuse_rows(f"{key}.type", words, "--data DATA names rows with questions and answers")
    else:
        t.refuse_rows(
            f"{key}.type",
            f"rows of the type {kind} are made by code of {t.tool}",
            "--data DATA names rows as they are to be read",
        )
    return None, {}


def _conversation(t: Translation, key: str, entry: dict[str, JsonValue]) -> tuple[str | None, dict[str, str]]:
    names = entry.get("message_property_mappings")
    mapping = {str(ours): str(theirs) for ours, theirs in names.items()} if isinstance(names, dict) else {}
    role = mapping.get("role") or str(entry.get("message_field_role") or "role")
    content = mapping.get("content") or str(entry.get("message_field_content") or "content")
    field = str(entry.get("field_messages") or "messages")
    if (role, content) not in (("role", "content"), ("from", "value")):
        t.refuse_rows(
            f"{key}.message_property_mappings",
            f"turns of {role} and {content}",
            "rename them to role and content, and name the file with --data",
        )
    kind = "messages" if role == "role" else "conversations"
    return None, {} if field in ("messages", "conversations") else {kind: field}
