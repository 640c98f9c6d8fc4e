"""LLaMA-Factory: a YAML or JSON file of flat keys; its rows are a name, looked up in ``dataset_info.json``.

Source: LLaMA-Factory 0.9.5, ``hparams`` and ``data/parser.py``.
"""

import json
from pathlib import Path

from pydantic import JsonValue

from tunesmith.peers import hugging_face
from tunesmith.peers.hugging_face import FULL, LOOKED_AT, MULTIMODAL, OUTPUT, SPEED, SPREAD, Arguments
from tunesmith.peers.translation import NamedRows, Translation

NAME = "LLaMA-Factory"
MARKS = ("finetuning_type", "stage", "cutoff_len", "lora_target", "template", "dataset_dir", "do_train", "max_samples")
INFO = "dataset_info.json"

DROPPED = {
    **hugging_face.DROPPED,
    **dict.fromkeys(("preprocessing_*", "overwrite_cache", "data_shared_file_system", "buffer_size", "plot_loss"), SPEED),
    **dict.fromkeys(("flash_attn", "use_unsloth", "use_unsloth_gc", "enable_liger_kernel", "use_v1_kernels"), SPEED),
    **dict.fromkeys(("use_reentrant_gc", "low_cpu_mem_usage", "use_fast_tokenizer", "cache_dir", "offload_folder"), SPEED),
    **dict.fromkeys(("upcast_*", "double_quantization", "quantization_device_map", "quantization_method"), SPEED),
    **dict.fromkeys(("ray_*", "master_*", "device_map", "neat_packing", "ignore_pad_token_for_loss"), SPEED),
    **dict.fromkeys(("print_param_status", "enable_torch_profiler", "profiler_*", "profile_modules"), OUTPUT),
    **dict.fromkeys(("infer_*", "vllm_*", "sglang_*", "use_kv_cache", "max_new_tokens", "top_p", "top_k"), OUTPUT),
    **dict.fromkeys(("temperature", "do_sample", "num_beams", "repetition_penalty", "length_penalty"), OUTPUT),
    **dict.fromkeys(("*_hub_token", "export_*", "compute_accuracy", "predict_with_generate", "media_dir"), OUTPUT),
    **dict.fromkeys(("eval_dataset", "eval_num_beams", "eval_on_each_dataset"), LOOKED_AT),
    **dict.fromkeys(
        ("image_*", "video_*", "crop_to_patches", "use_audio_in_video", "audio_*"), "no images or sound are read here"
    ),
    "early_stopping_steps": "the adapter with the best dev loss is kept here in any case",
    "tool_format": "the model's own template writes calls here",
    "split_special_tokens": "control tokens come from the template alone here",
}
REFUSED = {
    **hugging_face.REFUSED,
    **dict.fromkeys(("pissa_*",), "the adapter begins with principal parts of the weights there (PiSSA)"),
    **dict.fromkeys(
        ("use_galore", "galore_*", "use_apollo", "apollo_*", "use_badam", "badam_*", "use_adam_mini", "use_muon"),
        "an optimizer that tunesmith does not have",
    ),
    **dict.fromkeys(("use_dft_loss", "use_asft_loss", "asft_alpha", "use_eaft_loss", "eaft_alpha"), "another loss"),
    **dict.fromkeys(("use_llama_pro", "freeze_*", "mixture_of_depths", "train_from_scratch"), "another training than LoRA's"),
    **dict.fromkeys(("oft_*", "module_dropout"), "adapters of another kind (OFT)"),
    **dict.fromkeys(
        ("resize_vocab", "add_tokens", "add_special_tokens", "new_special_tokens_config", "init_special_tokens"),
        "the vocabulary is changed there",
    ),
    **dict.fromkeys(
        ("pref_*", "kto_*", "ppo_*", "dpo_*", "simpo_*", "ld_alpha", "ref_model*", "reward_model*"),
        "a setting of preference data or rewards",
    ),
    **dict.fromkeys(("adapter_name_or_path", "adapter_folder", "create_new_adapter"), "an adapter is trained on there"),
    **dict.fromkeys(("rope_scaling", "shift_attn"), "positions or attention are changed there"),
    **dict.fromkeys(("streaming", "interleave_probs", "tokenized_path"), "rows that are not read as files"),
    **dict.fromkeys(("fp8", "fp8_*"), "products in 8 bits"),
    **dict.fromkeys(
        ("use_kt", "kt_*", "use_mca", "use_megatron*", "megatron_*", "use_hyper_parallel", "hyper_parallel_*"), SPREAD
    ),
    **dict.fromkeys(("*_parallel_size", "*_model_parallel_size", "cp_size", "cp_mode", "sequence_parallel"), SPREAD),
    **dict.fromkeys(
        ("moe_*", "recompute_*", "use_distributed_optimizer", "overlap_*", "*_fusion", "export_hf_on_finish"), SPREAD
    ),
    "moe_aux_loss_coef": "a loss on the routing is added there",
    "loraplus_lr_embedding": "a rate for embeddings; none is trained here",
    "disable_shuffling": "rows come in their order there",
    "preserve_thinking": "reasoning of earlier turns is kept there",
    "model_max_length": "another longest row beside cutoff_len",
}
STAGES = {
    "pt": "texts are learnt there, not answers",
    "rm": "a model of rewards is trained there",
    **dict.fromkeys(("ppo", "dpo", "kto"), "preference data or a reward is learnt there; tunesmith trains on answers"),
}


def translate(t: Translation, shipped: tuple[str, ...], beside: Path) -> None:
    """Say what becomes of the keys of a LLaMA-Factory configuration.

    Args:
        shipped: names of the chat templates that tunesmith brings.
        beside: the directory of the configuration.
    """
    if _is_other(t):
        return
    is_full = _method(t)
    _model(t)
    if not is_full:
        _lora(t)
    hugging_face.training_arguments(t, Arguments(rate=None if is_full else 5e-5))
    _lengths(t)
    _chat(t, shipped)
    first = t.whole("max_samples")
    if first is not None and t.rows_given:
        t.drop("max_samples", "--data names the rows")
    names = t.value("dataset")
    listed = [str(name) for name in names] if isinstance(names, list) else str(names or "").split(",")
    for name in [name.strip() for name in listed if name.strip()]:
        t.rows += _rows(t, name, beside, first)
    t.rest(DROPPED, REFUSED)


def _is_other(t: Translation) -> bool:
    """Whether it is no training on answers, of which nothing is taken over."""
    if not t.flag("do_train"):
        t.refuse(
            "do_train",
            "is not true, and then nothing is trained there: it predicts, serves or exports",
            "--set do_train=true",
            final=True,
        )
        return True
    stage = t.text("stage") or "sft"
    if stage != "sft":
        t.refuse("stage", STAGES.get(stage, f"expected sft, found {stage}"), final=True)
    return stage != "sft"


def _method(t: Translation) -> bool:
    """Whether another training than LoRA's is named."""
    if t.has("stage"):
        t.map("stage", None, None, "answers are trained, as here")
    t.drop("do_train", "a training, as here")
    kind = t.text("finetuning_type") or "lora"
    if kind == "lora":
        if t.has("finetuning_type"):
            t.map("finetuning_type", None, None, "an adapter, as every training here")
        return False
    words = FULL if kind == "full" else f"{kind} is not trained here, LoRA alone is"
    t.refuse("finetuning_type", words, "--without finetuning_type trains an adapter of tunesmith's own rank and rate")
    for key in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target"):
        if t.has(key):
            t.drop(key, "without an adapter it is not read there")
    return True


def _model(t: Translation) -> None:
    model = t.text("model_name_or_path")
    if model is None:
        t.refuse("model_name_or_path", "no model is named", "--set model_name_or_path=MODEL", final=True)
    else:
        t.map("model_name_or_path", "model", model)
    t.carry("model_revision", "revision", t.text("model_revision"))
    bits = t.whole("quantization_bit")
    if bits not in (None, 4):
        t.refuse("quantization_bit", f"a base of {bits} bits", "--set quantization_bit=4 takes NF4", final=True)
    method = t.text("quantization_method")
    if method not in (None, "bnb", "bitsandbytes") and bits is not None:
        t.refuse("quantization_method", f"a base quantised by {method}", "--set quantization_method=bnb takes NF4", final=True)
    if t.text("quantization_type") not in (None, "nf4"):
        t.refuse("quantization_type", "4 bits of another kind than NF4", "--set quantization_type=nf4", final=True)
    elif t.has("quantization_type"):
        t.map("quantization_type", "base", "nf4")
    if t.has("pure_bf16"):
        t.map("pure_bf16", "base", "bf16" if t.flag("pure_bf16") else "auto")
    hugging_face.precision(t, ("quantization_bit", bits == 4))


def _lora(t: Translation) -> None:
    rank = t.whole("lora_rank")
    t.carry("lora_rank", "lora.r", rank, 8)
    alpha = t.number("lora_alpha")
    if alpha is None:
        t.default("lora_alpha", "lora.alpha", 2 * (rank or 8), f"absent, and twice the rank in {NAME}")
    else:
        t.map("lora_alpha", "lora.alpha", alpha)
    t.carry("lora_dropout", "lora.dropout", t.number("lora_dropout"), 0.0)
    names = t.value("lora_target")
    if names in (None, "all"):
        t.carry("lora_target", "lora.target_modules", None if names is None else "all-linear", "all-linear")
    else:
        listed = names.split(",") if isinstance(names, str) and "," in names else names
        listed = [str(name).strip() for name in listed] if isinstance(listed, list) else [str(listed)]
        hugging_face.targets(t, "lora_target", [*listed])
    hugging_face.saved_modules(t, "additional_target", t.value("additional_target"))
    t.carry("use_rslora", "lora.use_rslora", t.flag("use_rslora"))
    t.carry("use_dora", "lora.use_dora", t.flag("use_dora"))
    t.carry("loraplus_lr_ratio", "train.loraplus_lr_ratio", t.number("loraplus_lr_ratio"))


def _lengths(t: Translation) -> None:
    walk, length = t.walk, t.whole("cutoff_len")
    t.carry("cutoff_len", "train.max_length", length, 2048)
    walk.max_length, walk.cuts = length or 2048, True
    t.default("(none)", "data.on_too_long", "refuse", f"{NAME} cuts longer rows, tunesmith cuts none")
    if t.flag("packing") or t.flag("neat_packing"):
        walk.packed = walk.max_length
    if t.has("packing"):
        t.drop("packing", "rows are always packed here, and attend to themselves alone")
    walk.held_out_key, walk.held_out = "val_size", t.number("val_size") or 0.0
    for key in ("train_on_prompt", "mask_history"):
        if t.flag(key):
            words = (
                "questions are trained there as well" if key == "train_on_prompt" else "the last answer alone is trained there"
            )
            t.refuse(key, f"{words}; tunesmith trains on every answer, and on nothing else")
        elif t.has(key):
            t.drop(key, "as here")
    if t.has("disable_gradient_checkpointing"):
        t.drop("disable_gradient_checkpointing", SPEED)
    if (mixed := t.text("mix_strategy")) not in (None, "concat"):
        t.refuse("mix_strategy", f"data sets are mixed by {mixed} there; here each is read whole")
    elif mixed:
        t.drop("mix_strategy", "each data set is read whole, as here")


def _chat(t: Translation, shipped: tuple[str, ...]) -> None:
    hugging_face.template(t, "template", shipped, own=())
    thinking = t.flag("enable_thinking")
    t.carry("enable_thinking", "chat.enable_thinking", thinking)
    t.carry("default_system", "task.short_prompt", t.text("default_system"))


def _rows(t: Translation, name: str, beside: Path, first: int | None) -> list[NamedRows]:
    """The rows of a name, as ``dataset_info.json`` describes them."""
    folder = t.value("dataset_dir")
    if isinstance(folder, str) and folder.upper() == "ONLINE":
        return [NamedRows(key="dataset", path=name, first=first)]
    places = [Path(str(folder or "data")), beside / str(folder or "data"), beside]
    place = next((place for place in places if (place / INFO).is_file()), None)
    hint = "name the folder with --set dataset_dir=DIRECTORY, or the rows with --data DATA"
    if place is None:
        t.refuse_rows("dataset", f"{name}: no {INFO} in {places[0]}, which says what rows these are", hint)
        return []
    try:
        entries = json.loads((place / INFO).read_text(encoding="utf-8"))
        entry = entries.get(name)
    except (ValueError, OSError, AttributeError) as error:
        t.refuse_rows("dataset", f"{place / INFO} cannot be read: {error}", hint)
        return []
    if not isinstance(entry, dict):
        t.refuse_rows("dataset", f"{place / INFO} has no {name!r}, it has {', '.join([*entries][:8])}", hint)
        return []
    if entry.get("ranking"):
        t.refuse_rows("dataset", f"{name}: preference data; tunesmith trains on answers", "--data DATA names other rows")
    columns = entry.get("columns")
    if isinstance(columns, dict) and {"images", "videos", "audios"} & columns.keys():
        t.refuse_rows("dataset", f"{name}: {MULTIMODAL}", "--data DATA names other rows")
    path = str(place / entry["file_name"]) if "file_name" in entry else str(entry.get("hf_hub_url") or "")
    if not path:
        t.refuse_rows("dataset", f"{name}: neither file_name nor hf_hub_url")
        return []
    count = entry.get("num_samples")
    first = min((number for number in (first, count) if isinstance(number, int)), default=None)
    if first is not None:
        t.differ(f"the rows: {NAME} reads the first {first:,} of a data set, a recipe draws as many by a hash of their content")
    return [
        NamedRows(
            key=f"dataset {name}",
            path=path,
            split=entry.get("split"),
            config=entry.get("subset"),
            first=first,
            columns={} if "file_name" in entry else _columns(entry),
        )
    ]


def _columns(entry: dict[str, JsonValue]) -> dict[str, str]:
    """Columns of a data set of the hub, under our names; those of a file are read from ``dataset_info.json`` beside it."""
    given = entry.get("columns")
    theirs = {str(name): str(column) for name, column in given.items() if column} if isinstance(given, dict) else {}
    if entry.get("formatting") == "sharegpt":
        tags = entry.get("tags")
        is_openai = isinstance(tags, dict) and tags.get("role_tag") == "role"
        names = {"messages": "messages" if is_openai else "conversations", "system": "system", "tools": "tools"}
    else:
        names = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
    return {names[name]: column for name, column in theirs.items() if name in names}
