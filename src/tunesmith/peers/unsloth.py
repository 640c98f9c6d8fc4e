"""Unsloth: a notebook or script, in which the settings are keyword arguments of a few calls.

Their names are kept, and so can be set: ``r`` of ``get_peft_model``, ``learning_rate`` of ``SFTConfig``.

Source: unsloth 2026.10.9, ``models`` and ``loader.py`` (defaults); unslothai/notebooks.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from tunesmith.errors import RecipeError
from tunesmith.peers import hugging_face, trl
from tunesmith.peers.hugging_face import FULL, LOOKED_AT, MULTIMODAL, OUTPUT, SPEED, Arguments
from tunesmith.peers.notebook import Call, calls_of
from tunesmith.peers.translation import NamedRows, Translation
from tunesmith.recipe.tables import table_of

NAME = "Unsloth"
MODELS = ("FastLanguageModel.from_pretrained", "FastModel.from_pretrained")
OTHER_MODELS = {
    "FastVisionModel.from_pretrained": MULTIMODAL,
    "FastSentenceTransformer.from_pretrained": "an encoder of sentences is trained there",
    "FastDiffusionModel.from_pretrained": MULTIMODAL,
}
OTHER_TRAINERS = {
    **dict.fromkeys(
        ("GRPOTrainer", "DPOTrainer", "ORPOTrainer", "KTOTrainer", "RewardTrainer", "PPOTrainer"),
        "preference data or a reward is learnt there; tunesmith trains on answers",
    ),
    "UnslothTrainer": "texts are learnt there (continued pretraining), with a rate for embeddings",
    "Trainer": "a trainer of transformers, with data made by code",
    "Seq2SeqTrainer": "a trainer of models that read with one stack and answer with another",
    "SentenceTransformerTrainer": "an encoder of sentences is trained there",
}
TRAINERS, CONFIGS = ("SFTTrainer",), ("SFTConfig", "TrainingArguments")
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OBJECTS = ("model", "tokenizer", "processing_class", "args", "train_dataset", "eval_dataset", "data_collator", "callbacks")

DROPPED = {
    **trl.DROPPED,
    **dict.fromkeys(("use_gradient_checkpointing", "max_lora_rank", "fast_inference", "gpu_memory_utilization"), SPEED),
    **dict.fromkeys(("device_map*", "offload_embedding", "unsloth_*", "use_exact_model_name", "fix_tokenizer"), SPEED),
    **dict.fromkeys(("load_in_16bit", "dtype", "torch_dtype", "float8_*", "max_seq_length", "text_only"), SPEED),
    **dict.fromkeys(("task_type", "layers_pattern", "model_patcher"), SPEED),
    **dict.fromkeys(("eval_dataset",), LOOKED_AT),
    **dict.fromkeys(("token", "save_method"), OUTPUT),
    **dict.fromkeys(("finetune_vision_layers", "finetune_audio_layers"), "no images or sound are read here"),
    "map_eos_token": "the template's own end of turn is trained here",
    "mapping": "names of turns are told from the rows",
    "random_state": "the seed of the training is that of the adapter here",
}
REFUSED = {
    **trl.REFUSED,
    "full_finetuning": FULL,
    "load_in_8bit": "an 8-bit base; --set load_in_4bit=true takes NF4",
    "load_in_fp8": "a base in 8 bits",
    "loftq_config": "the adapter begins with what quantisation lost there (LoftQ)",
    "init_lora_weights": "the adapter begins otherwise there",
    "layers_to_transform": "adapters in some of the layers",
    "auto_model": "another class of model than one that writes text",
    "whisper_*": MULTIMODAL,
    "qat_scheme": "weights are trained to be quantised there",
    "id2label": "classes are learnt by a head of their own there",
    "label2id": "classes are learnt by a head of their own there",
    "num_labels": "classes are learnt by a head of their own there",
    "embedding_learning_rate": "tables are trained at a rate of their own there",
    "rope_scaling": "positions are stretched there",
    "formatting_func": "rows are made by code there; look at yours with tunesmith preview, then --without formatting_func",
    "task": "a task of its own",
    "**": "keyword arguments that are made by code",
}
FINAL = ("auto_model", "whisper_*", "id2label", "label2id", "num_labels")


ADAPTER = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "finetune_attention_modules",
    "finetune_mlp_modules",
)


def read(path: Path) -> tuple[dict[str, JsonValue], dict[str, str]]:
    """The keyword arguments of the calls that matter, and those that are expressions.

    Raises:
        RecipeError: it is no notebook or script, or none of Unsloth's.
    """
    calls = calls_of(path)
    values: dict[str, JsonValue] = {}
    computed: dict[str, str] = {}
    models = [call for call in calls if call.name in MODELS]
    trainers = [call for call in calls if call.last in TRAINERS]
    others = [call for call in calls if call.name in OTHER_MODELS or call.last in OTHER_TRAINERS]
    if not models and not others:
        raise RecipeError(
            f"{path}: no call of FastLanguageModel.from_pretrained, so it is no notebook of {NAME}",
            "--from names the tool of another file",
        )
    if others:
        name = others[0].name if others[0].name in OTHER_MODELS else others[0].last
        values["(model)" if name in OTHER_MODELS else "(trainer)"] = name
    elif len(trainers) != 1:
        values["(trainer)"] = f"{len(trainers) or 'no'} call{'s' if len(trainers) > 1 else ''} of SFTTrainer"
    adapters = [call for call in calls if call.last == "get_peft_model"]
    configs = [call for call in calls if call.last in CONFIGS]
    for call in (*models[:1], *adapters[:1], *trainers[:1], *configs[:1]):
        _take(call, values, computed)
    values["get_peft_model"] = bool(adapters)
    values["train_on_responses_only"] = any(call.last == "train_on_responses_only" for call in calls)
    rows = [call for call in calls if call.last == "load_dataset"]
    values["load_dataset"] = [_loaded(call) for call in rows]
    templates = [call for call in calls if call.last == "get_chat_template"]
    if templates and isinstance(templates[0].values.get("chat_template"), str):
        values["chat_template"] = templates[0].values["chat_template"]
    kinds = [call.values.get("quantization_method") for call in calls if call.last == "save_pretrained_gguf"]
    values["quantization_method"] = [
        kind for entry in kinds for kind in (entry if isinstance(entry, list) else [entry]) if kind
    ]
    return values, computed


def _take(call: Call, values: dict[str, JsonValue], computed: dict[str, str]) -> None:
    if call.last == "from_pretrained" and call.positional and call.positional[0]:
        values["model_name"] = call.positional[0]
    for name, value in call.values.items():
        if name not in OBJECTS:
            values.setdefault(name, value)
    for name, text in call.computed.items():
        if name in OBJECTS or name in values:
            continue
        if name in ("bf16", "fp16") and "is_b" in text and "supported" in text:
            values[name] = "auto"  # a question to the machine
        else:
            computed[name] = text


def _loaded(call: Call) -> JsonValue:
    """What is loaded: the path, its configuration, split and files; None for what is an expression."""
    named: dict[str, JsonValue] = dict(call.values)
    path = call.positional[0] if call.positional else named.get("path")
    config = call.positional[1] if len(call.positional) > 1 else named.get("name")
    expression = call.computed.get("data_files") or call.computed.get("split")
    return {
        "path": path,
        "name": config,
        "split": named.get("split"),
        "data_files": named.get("data_files"),
        "computed": expression,
    }


def translate(t: Translation, shipped: tuple[str, ...]) -> None:
    """Say what becomes of the calls of a notebook of Unsloth.

    Args:
        shipped: names of the chat templates that tunesmith brings.
    """
    if (kind := t.text("(model)")) is not None:
        t.refuse("(model)", f"{kind}: {OTHER_MODELS[kind]}", final=True)
        return
    if (kind := t.text("(trainer)")) is not None:
        words, hint = OTHER_TRAINERS.get(kind, "expected one training"), ""
        if kind not in OTHER_TRAINERS:
            hint = "keep the cells of one training in the notebook"
        t.refuse("(trainer)", f"{kind}: {words}", hint, final=True)
        return
    model = t.text("model_name")
    if model is None and not t.is_refused("model_name"):
        t.refuse("model_name", "no model is named", "--set model_name=MODEL", final=True)
    elif model is not None:
        t.map("model_name", "model", model)
    t.carry("revision", "revision", t.text("revision"))
    full = t.flag("full_finetuning")
    four = t.flag("load_in_4bit")
    is_four = (not full and not t.flag("load_in_16bit")) if four is None else four
    if t.has("load_in_4bit") and not is_four:
        t.drop("load_in_4bit", "switched off there")
    hugging_face.precision(t, ("load_in_4bit", is_four))
    if full:
        t.refuse("full_finetuning", FULL)
        for key in (*ADAPTER, "get_peft_model"):
            if t.has(key):
                t.drop(key, "of an adapter, beside a training of all weights")
    elif not t.value("get_peft_model"):
        t.refuse(
            "get_peft_model", f"is not called, and then {FULL}", "--without get_peft_model trains an adapter of tunesmith's own"
        )
    else:
        _lora(t)
    hugging_face.training_arguments(t, Arguments(rate=None if full else 5e-5, seed=3407))
    trl.lengths(t, "max_length" if t.has("max_length") else "max_seq_length", 2048)
    _masks(t)
    hugging_face.template(t, "chat_template", shipped)
    _rows(t)
    _export(t)
    bias = t.text("bias")
    if bias not in (None, "none"):
        t.refuse("bias", "biases are trained there")
    elif bias:
        t.drop("bias", "none is trained, as here")
    t.rest(DROPPED, REFUSED, FINAL)


def _lora(t: Translation) -> None:
    t.map("get_peft_model", None, None, "an adapter, as every training here")
    t.carry("r", "lora.r", t.whole("r"), 16)
    t.carry("lora_alpha", "lora.alpha", t.number("lora_alpha"), 16)
    t.carry("lora_dropout", "lora.dropout", t.number("lora_dropout"), 0.0)
    names = _without_tables(t)
    parts = {"finetune_attention_modules": LAYERS[:4], "finetune_mlp_modules": LAYERS[4:]}
    if names is not None:
        hugging_face.targets(t, "target_modules", names)
        for part in parts:
            if t.has(part):
                t.drop(part, "target_modules names the layers")
    elif any(t.has(part) for part in parts):
        chosen = [name for part, layers in parts.items() if t.flag(part) is not False for name in layers]
        for part in parts:
            if t.has(part):
                t.map(part, "lora.target_modules", [*chosen])
    elif not t.is_refused("target_modules"):
        t.default("target_modules", "lora.target_modules", [*LAYERS])
    if t.flag("finetune_language_layers") is False:
        t.refuse("finetune_language_layers", MULTIMODAL, final=True)
    elif t.has("finetune_language_layers"):
        t.drop("finetune_language_layers", "as here")
    t.carry("use_rslora", "lora.use_rslora", t.flag("use_rslora"))


def _without_tables(t: Translation) -> JsonValue:
    """The layers that get an adapter; the tables among them are trained whole there, like those of ``modules_to_save``."""
    names, saved = t.value("target_modules"), t.value("modules_to_save")
    tables = [str(name) for name in names if table_of(str(name))] if isinstance(names, list) else []
    if tables and not saved:
        t.default("modules_to_save", "lora.modules_to_save", [*tables], f"{NAME} trains the tables of target_modules whole")
    else:
        more = [name for name in tables if not isinstance(saved, list) or name not in saved]
        hugging_face.saved_modules(t, "modules_to_save", [*saved, *more] if isinstance(saved, list) else saved)
    return [name for name in names if name not in tables] if isinstance(names, list) else names


def _masks(t: Translation) -> None:
    if (loss := t.text("loss_type")) not in (None, "nll", "chunked_nll"):
        t.refuse("loss_type", f"another loss ({loss})")
    elif loss:
        t.drop("loss_type", "the same loss, computed in another way")
    if t.flag("train_on_responses_only"):
        t.map("train_on_responses_only", None, None, "answers alone, as here")
        for key in ("assistant_only_loss", "completion_only_loss"):
            t.value(key)
        return
    t.drop("train_on_responses_only", "is not called; see what is trained otherwise")
    if not t.flag("assistant_only_loss") and not t.flag("completion_only_loss"):
        hugging_face.only_answers(t, "train_on_responses_only is not called")


def _rows(t: Translation) -> None:
    if t.text("dataset_text_field") is not None:
        t.drop("dataset_text_field", "columns are told from the rows")
    loaded = t.value("load_dataset")
    entries = [entry for entry in loaded if isinstance(entry, dict)] if isinstance(loaded, list) else []
    if len(entries) > 1:
        named = ", ".join(str(entry.get("path")) for entry in entries)
        t.refuse_rows("load_dataset", f"{len(entries)} data sets are loaded ({named}), and code makes the rows of them")
        return
    t.differ("the texts: the notebook makes them by code, which is not run here; tunesmith preview shows how rows are rendered")
    for entry in entries:
        _named(t, entry)


def _named(t: Translation, entry: Mapping[str, JsonValue]) -> None:
    path, files = entry.get("path"), entry.get("data_files")
    if isinstance(files, dict) and len(files) == 1:
        files = next(iter(files.values()))
    if path in ("json", "csv", "parquet") and isinstance(files, str):
        path = files
    if not isinstance(path, str) or entry.get("computed") or (path in ("json", "csv", "parquet")):
        t.refuse_rows("load_dataset", "what it loads is computed")
        return
    split = str(entry.get("split") or "train")
    name, bracket, part = split.partition("[")
    number = part.rstrip("]").lstrip(":")
    if bracket and not (part.startswith(":") and number.isdigit()):
        t.refuse_rows("load_dataset", f"a part of a split: {split}")
        return
    config = entry.get("name")
    first = int(number) if bracket else None
    t.rows.append(
        NamedRows(key="load_dataset", path=path, split=name, config=None if config is None else str(config), first=first)
    )


def _export(t: Translation) -> None:
    kinds = t.value("quantization_method")
    if not isinstance(kinds, list) or not kinds:
        return
    known = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "MXFP4_MOE")
    names = list(dict.fromkeys(str(kind).upper() for kind in kinds))
    ours = [name for name in names if name in known]
    if ours:
        t.map("quantization_method", "export.gguf", [*ours])
    else:
        t.drop("quantization_method", "no such file type here; those of a recipe are written")
