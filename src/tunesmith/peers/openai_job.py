"""OpenAI: a fine-tuning job as its API returns it, or the request that makes one.

The base rate behind ``learning_rate_multiplier`` and what the service trains are not published, so they are said and not
mapped.

Source: the API reference of fine-tuning jobs (``fine_tuning.job``).
"""

from collections.abc import Mapping

from pydantic import JsonValue

from tunesmith.peers.hugging_face import LOOKED_AT, OUTPUT
from tunesmith.peers.translation import LARGEST, NamedRows, Translation

NAME = "OpenAI"
MARKS = ("training_file", "fine_tuned_model", "trained_tokens", "object", "validation_file", "hyperparameters", "method")

DROPPED = {
    **dict.fromkeys(
        ("object", "id", "created_at", "finished_at", "estimated_finish", "fine_tuned_model", "status", "error"), OUTPUT
    ),
    **dict.fromkeys(
        ("organization_id", "result_files", "trained_tokens", "suffix", "user_provided_suffix", "metadata"), OUTPUT
    ),
    **dict.fromkeys(("shared_with_openai", "eval_id", "integrations", "usage_metrics"), OUTPUT),
    "validation_file": LOOKED_AT,
}


def translate(t: Translation) -> None:
    """Say what becomes of a fine-tuning job."""
    model = t.text("model")
    if model is None or model.startswith(("gpt-", "ft:", "davinci", "babbage", "o1", "o3", "o4")):
        t.refuse("model", "its weights are not open", "name a model whose weights are: --set model=MODEL", final=True)
    else:
        t.map("model", "model", model)
    numbers = _hyperparameters(t)
    epochs, batch, rate = (_positive(t, name, numbers) for name in ("n_epochs", "batch_size", "learning_rate_multiplier"))
    left = "left to the service there"
    if epochs is None:
        t.walk.epochs_key = ""
        _follow(t, "n_epochs", "train.num_train_epochs", f"{left}, and to the rows here")
    else:
        t.walk.epochs, t.walk.epochs_key, t.walk.epochs_given = float(epochs), "n_epochs", True
    if batch is None:
        _follow(t, "batch_size", "train.tokens_per_step", f"{left}, and to the rows here")
    else:
        t.walk.batch, t.walk.batch_keys = max(1, round(batch)), f"batch_size {batch}"
    said = left if rate is None else f"{rate}, of a rate that is not published"
    _follow(t, "learning_rate_multiplier", "train.learning_rate", f"{said}; ours follows from the model and the rows")
    t.carry("seed", "seed", t.whole("seed"))
    t.differ(
        "the training: what OpenAI trains (rank, layers, schedule, lengths) is not published; keys that do not stand here have "
        "tunesmith's defaults"
    )
    if (path := t.text("training_file")) is not None:
        t.rows.append(NamedRows(key="training_file", path=path))
    t.rest(DROPPED, {})


def _follow(t: Translation, name: str, ours: str, words: str) -> None:
    """A hyperparameter whose place in the recipe is left to the rows."""
    if not t.is_refused(name):
        t.default(name, ours, "auto", words)


def _positive(t: Translation, name: str, numbers: Mapping[str, JsonValue]) -> int | float | None:
    """A number above 0; None where it is left to the service, and another is refused."""
    value = numbers.get(name)
    if value is None or value == "auto":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST:
        return value
    t.refuse(name, "expected a number above 0, or auto", "correct it in the file", final=True)
    return None


def _hyperparameters(t: Translation) -> dict[str, JsonValue]:
    """Of the supervised method, in the old place or the new one."""
    method, old = t.value("method"), t.value("hyperparameters")
    if isinstance(method, dict):
        kind = str(method.get("type") or "supervised")
        if kind != "supervised":
            t.refuse("method", f"{kind}: preference data or a reward is learnt there; tunesmith trains on answers", final=True)
        inner = method.get(kind)
        new = inner.get("hyperparameters") if isinstance(inner, dict) else None
        if isinstance(new, dict):
            return new
    return old if isinstance(old, dict) else {}
