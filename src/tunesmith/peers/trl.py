"""TRL's command line (``trl sft --config FILE``): YAML keys of ``ScriptArguments``, ``SFTConfig`` and ``ModelConfig``.

Source: trl 1.16.0, ``trainer/sft_config.py``, ``trainer/model_config.py``, ``scripts/utils.py``.
"""

from pydantic import JsonValue

from tunesmith.peers import hugging_face
from tunesmith.peers.hugging_face import FULL, LOOKED_AT, OUTPUT, SPEED, Arguments
from tunesmith.peers.translation import NamedRows, Translation

NAME = "TRL"
MARKS = ("dataset_name", "use_peft", "lora_r", "lora_target_modules", "dataset_text_field", "completion_only_loss")
MARKS += ("assistant_only_loss", "dataset_train_split", "dataset_config", "datasets")

DROPPED = {
    **hugging_face.DROPPED,
    **dict.fromkeys(("shuffle_dataset", "eval_packing", "dataset_kwargs", "model_init_kwargs", "use_bnb_nested_quant"), SPEED),
    **dict.fromkeys(("bnb_4bit_quant_storage", "truncation_mode", "env", "dataset_streaming", "ignore_bias_buffers"), SPEED),
    **dict.fromkeys(("lora_task_type", "dataset_test_split", "test_split_size"), LOOKED_AT),
    **dict.fromkeys(("gradient_checkpointing_use_reentrant", "torch_dtype"), SPEED),
    "config": OUTPUT,
    "pad_token": "padding is not used here",
}
REFUSED = {
    **hugging_face.REFUSED,
    "load_in_8bit": "an 8-bit base; --set load_in_4bit=true takes NF4",
    "lora_target_parameters": "adapters on weights that are no linear layers",
    "router_aux_loss_coef": "a loss on the routing is added there",
    "streaming": "rows that are not read as files",
    "eos_token": "another end of turn than the model's own",
}


def translate(t: Translation, shipped: tuple[str, ...]) -> None:
    """Say what becomes of the keys of a configuration for ``trl sft``.

    Args:
        shipped: names of the chat templates that tunesmith brings.
    """
    model = t.text("model_name_or_path")
    if model is None:
        t.refuse("model_name_or_path", "no model is named", "--set model_name_or_path=MODEL", final=True)
    else:
        t.map("model_name_or_path", "model", model)
    t.carry("model_revision", "revision", t.text("model_revision"))
    is_full = not t.flag("use_peft")
    if is_full:
        words = FULL if t.has("use_peft") else f"absent, and then {FULL}"
        t.refuse("use_peft", words, "--set use_peft=true trains an adapter with the keys of this file")
        for key in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
            if t.has(key):
                t.drop(key, "of a training of all weights; ours follows from the model and the rows")
    else:
        t.map("use_peft", None, None, "an adapter, as every training here")
        _lora(t)
    hugging_face.training_arguments(t, Arguments(rate=None if is_full else 2e-5, checkpointing=True))
    _precision(t)
    lengths(t, "max_length", 1024)
    masks(t)
    hugging_face.template(t, "chat_template_path", shipped)
    _rows(t)
    t.rest(DROPPED, REFUSED)


def _precision(t: Translation) -> None:
    kind = t.text("bnb_4bit_quant_type")
    if kind not in (None, "nf4"):
        t.refuse("bnb_4bit_quant_type", "4 bits of another kind than NF4", "--set bnb_4bit_quant_type=nf4", final=True)
    elif kind:
        t.drop("bnb_4bit_quant_type", "NF4, as here")
    four = t.flag("load_in_4bit") or False
    if t.has("load_in_4bit") and not four:
        t.drop("load_in_4bit", "switched off there")
    hugging_face.precision(t, ("load_in_4bit", four), default=not t.flag("fp16"))
    dtype = t.text("dtype") or ("float32" if not t.has("torch_dtype") else None)
    if not four and dtype == "float32" and t.ours("base") == "bf16":
        t.differ(
            f"the base: {NAME} keeps its weights in fp32 and multiplies in bf16, tunesmith keeps them in bf16; base: fp32 does "
            "both in fp32"
        )
    if t.has("dtype"):
        t.drop("dtype", "what the weights are kept in follows from base")


def lengths(t: Translation, key: str, default: int) -> None:
    """Longest rows, which TRL cuts.

    Args:
        key: behind them.
        default: the tool's.
    """
    length = t.whole(key)
    t.carry(key, "train.max_length", length, default)
    t.walk.max_length, t.walk.cuts = length or default, True
    t.default("(none)", "data.on_too_long", "refuse", f"{t.tool} cuts longer rows, tunesmith cuts none")
    if t.flag("packing"):
        t.walk.packed = t.walk.max_length
    if t.has("packing"):
        t.drop("packing", "rows are always packed here, and attend to themselves alone")


def masks(t: Translation) -> None:
    """What the loss is of."""
    if (loss := t.text("loss_type")) not in (None, "nll", "chunked_nll"):
        t.refuse("loss_type", f"another loss ({loss})")
    elif loss:
        t.drop("loss_type", "the same loss, computed in another way")
    if t.flag("assistant_only_loss"):
        t.map("assistant_only_loss", None, None, "answers alone, as here")
    else:
        whole = (
            "assistant_only_loss is false" if t.has("assistant_only_loss") else "assistant_only_loss is absent, and false then"
        )
        if t.has("assistant_only_loss"):
            t.drop("assistant_only_loss", "see what is trained otherwise")
        if not t.flag("completion_only_loss"):
            hugging_face.only_answers(t, f"{whole}; rows of prompt and completion apart")
    if t.has("completion_only_loss"):
        t.drop("completion_only_loss", "answers alone are trained here")


def _lora(t: Translation) -> None:
    t.carry("lora_r", "lora.r", t.whole("lora_r"), 16)
    t.carry("lora_alpha", "lora.alpha", t.number("lora_alpha"), 32)
    t.carry("lora_dropout", "lora.dropout", t.number("lora_dropout"), 0.05)
    names = t.value("lora_target_modules")
    if names is None:
        t.default("lora_target_modules", "lora.target_modules", "peft-default", "absent, and PEFT chooses there")
    else:
        hugging_face.targets(t, "lora_target_modules", [*names] if isinstance(names, list) else str(names).split())
    hugging_face.saved_modules(t, "lora_modules_to_save", t.value("lora_modules_to_save"))
    t.carry("use_rslora", "lora.use_rslora", t.flag("use_rslora"))
    t.carry("use_dora", "lora.use_dora", t.flag("use_dora"))


def _rows(t: Translation) -> None:
    mixture = t.value("datasets")
    split = t.text("dataset_train_split") or "train"
    if isinstance(mixture, list) and mixture:
        for number, entry in enumerate(mixture):
            _mixed(t, f"datasets[{number}]", entry)
        return
    path = t.text("dataset_name")
    if path is None:
        return
    text = t.text("dataset_text_field")
    columns = {} if text in (None, "text") else {"text": text}
    t.rows.append(NamedRows(key="dataset_name", path=path, split=split, config=t.text("dataset_config"), columns=columns))
    if text is not None:
        t.drop("dataset_text_field", "columns are told from the rows")


def _mixed(t: Translation, key: str, entry: JsonValue) -> None:
    if not isinstance(entry, dict) or not entry.get("path"):
        t.refuse_rows(key, "expected a path")
        return
    if entry.get("fraction"):
        t.refuse(f"{key}.fraction", "data sets are mixed by shares there; a recipe counts their rows (data.path with count)")
    files = entry.get("data_files")
    path = str(files) if isinstance(files, str) and files else str(entry["path"])
    name = entry.get("name")
    t.rows.append(NamedRows(key=key, path=path, split=str(entry.get("split") or "train"), config=str(name) if name else None))
