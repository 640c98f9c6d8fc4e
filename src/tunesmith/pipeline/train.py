"""The stage ``train``: the adapter, trained on the rendered rows; the best one is kept in ``adapter/``."""

import gc
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from tunesmith.chat.fit_template import check_template
from tunesmith.data.pack import Plan
from tunesmith.engines.base import BaseModel, LoadedModel
from tunesmith.errors import RecipeError, RunError, TrainingError
from tunesmith.launch.group import Group, Order, group
from tunesmith.layers.experts import Adapted, LoRAExpertWeight
from tunesmith.layers.new_rows import NewRows
from tunesmith.layers.whole_table import WholeTable
from tunesmith.models.adapter import load_adapter_state, read_adapter
from tunesmith.models.device import best_device, device_name, give_back, gpu_use, watch_gpu
from tunesmith.models.load import head_weight
from tunesmith.models.nf4_load import shorten
from tunesmith.models.swap import target_names
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.dials import Shortage
from tunesmith.pipeline.disk import refuse_checkpoints
from tunesmith.pipeline.own_loop import make_ready, settings_for
from tunesmith.pipeline.replan import replanned
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.train_memory import MemoryOfSteps, memory_figures, told
from tunesmith.recipe import Lora, Recipe, TrainSettings
from tunesmith.recipe.adapter import CONFIG, WEIGHTS, read_lora, words_of_start
from tunesmith.rundir import RunDir, fingerprint, write_text
from tunesmith.rundir.hashes import content_hash
from tunesmith.rundir.records.base import Json
from tunesmith.rundir.records.training import GpuUse, Race, Training
from tunesmith.tracking import MetricsLog, write_csv
from tunesmith.train.checkpoint import Checkpoints
from tunesmith.train.distributed import World
from tunesmith.train.documents import Documents
from tunesmith.train.health_data import check_part
from tunesmith.train.loop import FirstStepFull, Fitted, fit
from tunesmith.train.race import race
from tunesmith.train.replay import replay_count
from tunesmith.train.together import END

logger = logging.getLogger(__name__)

TRAIN = "train"  # a job for processes that were launched together
CARD = "README.md"


def execute(run: RunDir, recipe: Recipe, session: Session, argument: str) -> None:
    """Train the adapter and write the best one to ``adapter/``.

    Raises:
        TrainingError: nothing to train, or a loss that is not finite.
        ModelError: a base that cannot be trained.
        RunError: too little room on the disk for the checkpoints.
    """
    base = base_of(run, recipe)
    again = _trained(run, recipe, base, None)
    if again is not None:  # what the first try loaded is gone with its frame
        gc.collect()
        give_back(best_device())
        _trained(run, recipe, *again)


def _trained(run: RunDir, recipe: Recipe, base: BaseModel, shortage: Shortage | None) -> tuple[BaseModel, Shortage] | None:
    """Train; where the first step does not fit the GPU and another plan might, that instead, once.

    Args:
        shortage: what the GPU said at the first try.
    """
    documents = {part: Documents.open(run.tokens(part)) for part in ("train", "dev")}
    parts = [check_part(part, rows, run.data / f"{part}.jsonl", base.renderer) for part, rows in documents.items()]
    watch_gpu(best_device())
    first = recipe.train.from_adapter
    tuned = _adapted(base, recipe)
    model, layers = tuned.model, tuned.layers
    _warn_of_own_grid(base)
    template = check_template(base.renderer, len(head_weight(model)))
    trained_weights = sum(p.numel() for layer in layers.values() for p in layer.parameters() if p.requires_grad)
    beside = _beside(base, layers)
    adapted = sum(not isinstance(layer, NewRows) for layer in layers.values())
    _say_where(base, model.device, f"LoRA on {adapted} layers{beside}, {trained_weights:,} weights")
    derived = settings_for(tuned, documents["train"], recipe.train, shortage)
    settings = derived.settings
    for line in derived.lines:
        logger.info(f"train: {line}")
    connection = _begin_training(run, recipe, base, settings)
    train, dev = _with_replay(run, recipe, documents["train"]), documents["dev"]
    ready = make_ready(model, layers, train, settings, recipe.seed, is_new=first is None)
    steps = ready.steps
    logger.info(f"train: {ready.swapped}")
    _say_health(recipe, len(layers), ready.first_loss, [*(part.words() for part in parts)], template)
    logger.info(
        f"train: {len(steps)} steps of {steps.packs_per_step} packs of {steps.capacity} tokens, {100 * steps.fill:.1f} % full"
    )
    try:
        outcome, settings, fitted, memory = _fitted(run, recipe, base, tuned, train, steps, dev, settings)
    except FirstStepFull as error:
        if connection is not None and (settings.shard or settings.sequence_parallel > 1):
            raise  # the others are in the middle of a pass, and end with this one
        _end_training(connection)
        again = None if shortage is not None else replanned(error, base, recipe, settings)
        if again is None:
            raise
        return again
    _end_training(connection)
    measured = memory.measured()
    load_adapter_state(layers, read_adapter(fitted.checkpoint))
    _save(run, tuned)
    write_csv(run.metrics_file, run.metrics_file.with_suffix(".csv"))
    speed = fitted.tokens_per_second
    predicted = None if fitted.largest is None else told(base, recipe, settings, model.device, fitted.largest, measured)
    Training(
        steps=len(steps),
        fill=round(steps.fill, 4),
        learning_rate=settings.learning_rate,
        tokens_per_step=settings.tokens_per_step,
        num_train_epochs=settings.num_train_epochs,
        derivation=derived.lines,
        from_adapter=None if first is None else str(first),
        trained_weights=trained_weights,
        target_layers=adapted,
        race=outcome,
        replayed_rows=train.rows - documents["train"].rows,
        dev_losses=fitted.dev_losses,
        best_step=fitted.best.step,
        best_dev_loss=fitted.best.dev_loss,
        first_dev_loss=fitted.dev_losses[0].dev_loss,
        only_worse=fitted.only_worse,
        overfit=fitted.overfit,
        undertrained=fitted.undertrained,
        tokens_per_second=None if speed is None else round(speed, 1),
        computed_on=fitted.computed_on,
        spikes=fitted.spikes,
        recompute=settings.recompute,
        gpu=(gpu := memory.whole(gpu_use(model.device))),
        predicted=predicted,
        measured=None if fitted.largest is None else measured,
    ).write(run.training_file)
    if gpu is not None:
        _note_gpu(run, gpu, {} if predicted is None else memory_figures(predicted, measured))
    at = "" if speed is None else f", {speed:,.0f} tokens/s"
    logger.info(f"train: best dev loss {fitted.best.dev_loss:.4f} at step {fitted.best.step} of {len(steps)}{at}")
    return None


def follow_training(run: RunDir, job: Json, connection: Group) -> None:
    """Compute for a training that the first of several launched processes has begun, until it ends.

    Raises:
        RunError: this process sees other rows or another base; or the first one is gone.
        TrainingError, ModelError: see ``execute``.
    """
    recipe = run.recipe()
    settings = TrainSettings.model_validate(job["settings"])
    base = replace(base_of(run, recipe), resident_layers=settings.resident_layers, embedding_on=settings.embedding_on)
    if _inputs(run, recipe, base, settings) != job["inputs"]:
        raise RunError(
            f"{run.path}: rank {connection.rank} sees other rows or another base there than rank 0",
            "all processes need the same run directory and model: a disk that all machines share",
        )
    documents = {part: Documents.open(run.tokens(part)) for part in ("train", "dev")}
    tuned = _adapted(base, recipe)
    connection.wait_for_all()
    train = _with_replay(run, recipe, documents["train"])
    ready = make_ready(tuned.model, tuned.layers, train, settings, recipe.seed, is_new=recipe.train.from_adapter is None)
    logger.info(f"following: {len(ready.steps)} steps as rank {connection.rank} of {connection.size}, {ready.swapped}")
    args = (tuned.model, tuned.layers, train, ready.steps, documents["dev"], settings, recipe.seed, connection)
    with World(*args) as world:
        world.follow()
    logger.info("following: the training has ended")


def _begin_training(run: RunDir, recipe: Recipe, base: BaseModel, settings: TrainSettings) -> Group | None:
    """Give the training to those that follow, where there are some."""
    connection = group()
    if connection is not None:
        connection.send(_job(run, recipe, base, settings))
        connection.wait_for_all()  # they load the model now, which may take longer than an exchange is waited for
    return connection


def _end_training(connection: Group | None) -> None:
    """Let those that follow a training go, where there are some."""
    if connection is not None:
        connection.order(Order(END, 0))


def _job(run: RunDir, recipe: Recipe, base: BaseModel, settings: TrainSettings) -> Json:
    """What other processes need to know of a training."""
    inputs = _inputs(run, recipe, base, settings)
    own = {"resident_layers": base.resident_layers, "embedding_on": base.embedding_on}  # by the plan for this one's GPU
    placed = settings.model_copy(update=own).model_dump(mode="json")
    return {"kind": TRAIN, "run": str(run.path.resolve()), "settings": placed, "inputs": inputs}


def _adapted(base: BaseModel, recipe: Recipe) -> LoadedModel:
    """The model with what is trained on it."""
    first, shard, parallel = recipe.train.from_adapter, recipe.train.shard, recipe.train.sequence_parallel
    if (shard or parallel > 1) and group() is None:
        key = "train.shard: true" if shard else f"train.sequence_parallel: {parallel}"
        hint = "torchrun --standalone --nproc-per-node gpu -m tunesmith run ..."
        raise TrainingError(f"{key}, and this process is alone", hint)
    if first is None:
        return base.load(shard=shard).adapt(recipe.lora, recipe.seed)
    return _go_on_from(base, recipe.lora, first, shard)


def _with_replay(run: RunDir, recipe: Recipe, train: Documents) -> Documents:
    """The documents that are trained on, with the base model's own answers where the recipe mixes some in."""
    if not recipe.train.replay:
        return train
    return train.joined(Documents.open(run.tokens("replay")).first(replay_count(recipe.train.replay, train.rows)))


def _fitted(
    run: RunDir,
    recipe: Recipe,
    base: BaseModel,
    tuned: LoadedModel,
    train: Documents,
    steps: Plan,
    dev: Documents,
    settings: TrainSettings,
) -> tuple[Race | None, TrainSettings, Fitted, MemoryOfSteps]:
    """Race where the recipe asks for it, then train; with the settings that were trained by, and what watched memory."""
    model, layers, inputs = tuned.model, tuned.layers, _inputs(run, recipe, base, settings)
    trained = sum(p.numel() for layer in layers.values() for p in layer.parameters() if p.requires_grad)
    lying = Checkpoints(run.checkpoints, inputs, settings.keep_checkpoints).bytes_there()
    refuse_checkpoints(run, trained, settings, lying)
    outcome = race(model, layers, train, steps, dev, settings, recipe.seed, run.checkpoints, inputs, group())
    if outcome is not None:
        logger.info(f"train: {outcome.words}, from the start")
        settings = settings.model_copy(update={"learning_rate": outcome.learning_rate})
        inputs = _inputs(run, recipe, base, settings)
    metrics = MetricsLog(run.metrics_file)
    memory = MemoryOfSteps(model.device)
    fitted = fit(model, layers, train, steps, dev, settings, recipe.seed, run.checkpoints, metrics, inputs, group())
    return outcome, settings, fitted, memory


def _save(run: RunDir, tuned: LoadedModel) -> None:
    """Write ``adapter/``; the card of the same adapter, which an export has written into it, stays."""
    card, weights, known = run.adapter / CARD, run.adapter / WEIGHTS, run.stages().get("train")
    text = card.read_text(encoding="utf-8") if card.is_file() else None
    recorded = None if known is None else known.outputs.get(f"{run.adapter.name}/{WEIGHTS}")
    before = recorded.sha256 if recorded is not None else content_hash(weights) if weights.is_file() else None
    if not (run.adapter / CONFIG).exists():  # what is left of an adapter that lost it; a folder of others is never taken over
        shutil.rmtree(run.adapter, ignore_errors=True)
    tuned.save_adapter(run.adapter)
    if text is not None and before == content_hash(weights):
        write_text(card, text)


def _go_on_from(base: BaseModel, lora: Lora, adapter: Path, shard: bool) -> LoadedModel:
    """The base with an adapter that is there already, and with the recipe's dropout.

    Raises:
        ModelError: an adapter that cannot be read, or that belongs to another base.
        RecipeError: ``lora.target_modules`` of the recipe means other layers than it has.
    """
    loaded = base.load(adapter, dropout=lora.dropout, shard=shard)
    assert loaded.lora is not None
    if base.grown.texts and not any(isinstance(layer, NewRows) for layer in loaded.layers.values()):
        raise RecipeError(
            "chat.new_tokens: the adapter of train.from_adapter has no rows for new tokens", "leave one of the two keys out"
        )
    for words in words_of_start(loaded.lora, adapter):
        logger.info(f"train: {words}")
    if lora.target_modules != read_lora(adapter).target_modules:
        adapted = {name: layer for name, layer in loaded.layers.items() if not isinstance(layer, NewRows)}
        own = {name.rpartition(".")[0] if isinstance(x, LoRAExpertWeight) else name for name, x in adapted.items()}
        wanted = set(target_names(loaded.model, lora.target_modules))
        if wanted != own:
            lacking, more = sorted(wanted - own), sorted(own - wanted)
            found = [*([f"lacks {shorten(lacking)}"] if lacking else []), *([f"also has {shorten(more)}"] if more else [])]
            raise RecipeError(
                f"lora.target_modules: {lora.target_modules!r}, but the adapter of train.from_adapter {' and '.join(found)}",
                "leave lora.target_modules out: the adapter's own are taken over",
            )
    return loaded


def _beside(base: BaseModel, layers: Mapping[str, Adapted]) -> str:
    """What is trained beside linear layers and experts, for people."""
    if tables := {name: layer for name, layer in layers.items() if isinstance(layer, WholeTable)}:
        shared = next((f", one table with {table.twin}" for table in tables.values() if table.twin is not None), "")
        return f" and all of {' and '.join(tables)}{shared}"
    tokens = len(base.grown.texts)
    return f" and rows of {tokens} new token{'s' * (tokens != 1)}" if tokens else ""


def _say_where(base: BaseModel, device: torch.device, what: str) -> None:
    logger.info(f"train: {what}, base {base.storage}, computing in {base.compute} on {device_name(device)}")


def _say_health(recipe: Recipe, layers: int, loss: float, parts: list[str], template: Iterable[str]) -> None:
    change = "change nothing yet" if recipe.train.from_adapter is None else "are as they were left"
    supervised = f"supervised {', '.join(parts)}; {'; '.join(template)}"
    logger.info(
        f"health: adapters {change} and {layers} of {layers} get a gradient; loss {loss:.2f} on the first rows; {supervised}"
    )


def _warn_of_own_grid(base: BaseModel) -> None:
    """Say what is lost where a base lies on the very grid that is trained onto."""
    if base.lies_on_grid:
        kept = "gguf" if base.own_grid else base.grid
        logger.warning(
            "train.qat: the base lies on this grid already, where an update of less than half a step moves no weight; "
            f"base: {kept} without train.qat deploys the adapter beside that file, and loses none"
        )


def _note_gpu(run: RunDir, gpu: GpuUse, memory: Json) -> None:
    """Say which GPU it was, and write it and the figures of memory into the manifest."""
    logger.info(f"train: {gpu.words}")
    manifest = run.manifest()
    replace(manifest, hardware={**manifest.hardware, "gpu": gpu.to_json(), **memory}).write(run.manifest_file)


def _forms(base: BaseModel) -> list[str]:
    """What each layer of the base is kept in, where that was chosen."""
    return [] if base.forms is None else [content_hash(base.forms)]


def _inputs(run: RunDir, recipe: Recipe, base: BaseModel, settings: TrainSettings) -> str:
    """What checkpoints must have been made with to be resumed from; how their rate was found is no part of it."""
    parts = ("train", "dev", *(["replay"] if recipe.train.replay else []))
    places = {"memory", "recompute", "resident_layers", "shard", "offload", "embedding_on"}
    trained_by = settings.model_dump(exclude={"keep_checkpoints", "ranks", "race", "from_adapter", *places})
    first = recipe.train.from_adapter
    began = [] if first is None else [[content_hash(first / name) for name in (CONFIG, WEIGHTS)]]
    return fingerprint(
        [content_hash(run.tokens(part)) for part in parts],
        [base.renderer.template, base.key, recipe.base, recipe.per_layer_embeddings, recipe.base_head, *_forms(base)],
        [recipe.lora.model_dump(), trained_by, recipe.seed],
        *began,
    )
