"""One function per verb; each composes the stages and keeps the run directory's books.

A stage is imported by the verb that needs it, so that ``check`` and ``--help`` start without torch. A verb whose inputs
did not change is skipped; one whose predecessor is missing says which to run.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunesmith.errors import RunError
from tunesmith.pipeline.curve import learning_curve
from tunesmith.pipeline.engines import in_process
from tunesmith.pipeline.evaluation import evaluate, verdict
from tunesmith.pipeline.examples import data, render
from tunesmith.pipeline.export import export
from tunesmith.pipeline.parity import parity
from tunesmith.pipeline.seeds import seeds
from tunesmith.pipeline.stage import renderer, stage
from tunesmith.recipe import load_recipe
from tunesmith.rundir import RunDir, atomic_directory, fingerprint, read_json
from tunesmith.tracking import MetricsLog, write_csv

logger = logging.getLogger(__name__)


def open_run(target: Path, out: Path | None = None) -> RunDir:
    """The run of a target: an existing run directory, or a recipe, whose run is ``runs/<name>`` unless ``out`` is given."""
    if target.is_dir():
        return RunDir.open(target)
    recipe = load_recipe(target)
    return RunDir.create(out or Path("runs") / str(recipe.name), recipe)


def train(run: RunDir) -> None:
    """Train the adapter and write the best one to ``adapter/``."""
    from tunesmith.chat.fit_template import check_template
    from tunesmith.data.pack import Plan
    from tunesmith.models.adapter import load_adapter_state, read_adapter, save_adapter
    from tunesmith.models.device import best_device, device_name
    from tunesmith.models.fuse import fuse
    from tunesmith.models.identity import base_identity, commit_of, write_identity
    from tunesmith.models.load import head_weight, load_model
    from tunesmith.models.precision import precision
    from tunesmith.models.swap import add_lora
    from tunesmith.rundir.records.training import Training
    from tunesmith.train.documents import Documents
    from tunesmith.train.health import check_adapter, first_rows, refuse_other_loss, stock_loss
    from tunesmith.train.health_data import check_part
    from tunesmith.train.loop import fit

    recipe = run.recipe()
    directory, made = renderer(recipe)
    kept = (recipe.base, recipe.per_layer_embeddings)
    trained_by = recipe.train.model_dump(exclude={"keep_checkpoints"})
    key = fingerprint(run.key_of("render"), *kept, recipe.lora.model_dump(), trained_by, recipe.seed)
    with stage(run, "train", key) as needed:
        if not needed:
            return
        documents = {part: Documents.open(run.tokens(part)) for part in ("train", "dev")}
        taught = [check_part(part, found, run.data / f"{part}.jsonl", made) for part, found in documents.items()]
        base, compute = precision(recipe.base, recipe.train.compute, directory)
        device = best_device()
        model = load_model(directory, compute, base, device, recipe.per_layer_embeddings)
        template = check_template(made, len(head_weight(model)))
        expected = stock_loss(model)
        layers = add_lora(model, recipe.lora, recipe.seed)
        trained_weights = sum(p.numel() for layer in layers.values() for p in layer.parameters() if p.requires_grad)
        where = f"base {base}, computing in {compute} on {device_name(device)}"
        logger.info(f"train: LoRA on {len(layers)} layers, {trained_weights:,} weights, {where}")
        logger.info(f"train: {fuse(model).summary()}")
        settings = recipe.train
        steps = Plan(
            documents["train"].lengths, settings.num_train_epochs, settings.tokens_per_step, settings.max_length, recipe.seed
        )
        refuse_other_loss(model, expected)
        first = check_adapter(model, layers, documents["train"], first_rows(documents["train"], steps[0][1]))
        logger.info(
            f"health: adapters change nothing yet and {len(layers)} of {len(layers)} get a gradient; loss {first:.2f} on the "
            f"first rows; supervised {', '.join(part.told() for part in taught)}; {'; '.join(template)}"
        )
        size = f"{steps.packs_per_step} packs of {steps.capacity} tokens"
        logger.info(f"train: {len(steps)} steps of {size}, {100 * steps.fill:.1f} % full")
        metrics = MetricsLog(run.metrics_file)
        fitted = fit(model, layers, documents["train"], steps, documents["dev"], recipe, run.checkpoints, metrics, key)
        load_adapter_state(layers, read_adapter(fitted.checkpoint))
        with atomic_directory(run.adapter) as temporary:
            save_adapter(temporary, layers, recipe.lora, recipe.model, commit_of(directory))
            write_identity(temporary, base_identity(directory, made.template))
        write_csv(run.metrics_file, run.metrics_file.with_suffix(".csv"))
        speed = fitted.tokens_per_second
        Training(
            steps=len(steps),
            fill=round(steps.fill, 4),
            trained_weights=trained_weights,
            target_layers=len(layers),
            dev_losses=fitted.dev_losses,
            best_step=fitted.best.step,
            best_dev_loss=fitted.best.dev_loss,
            first_dev_loss=fitted.dev_losses[0].dev_loss,
            only_worse=fitted.only_worse,
            overfit=fitted.overfit,
            tokens_per_second=None if speed is None else round(speed, 1),
            computed_on=fitted.computed_on,
        ).write(run.training_file)
        at = "" if speed is None else f", {speed:,.0f} tokens/s"
        logger.info(f"train: best dev loss {fitted.best.dev_loss:.4f} at step {fitted.best.step} of {len(steps)}{at}")


def accept_base(run: RunDir) -> str:
    """Write down that the run's adapter is meant for the base that the recipe names now. Returns the base's sha256.

    Raises:
        RunError: nothing was trained yet.
    """
    from tunesmith.models.identity import accept_base as accept
    from tunesmith.models.identity import base_identity

    run.key_of("train")
    directory, made = renderer(run.recipe())
    identity = base_identity(directory, made.template)
    accept(run.adapter, identity)
    return str(identity["sha256"])


def report(run: RunDir) -> Path:
    """Write ``report.html`` from what the run directory holds; needs a verdict."""
    from tunesmith.report.page import write_report

    if not run.verdict_file.exists():
        raise RunError(f"{run.path}: no verdict yet", f"run: tunesmith verdict {run.path}")
    write_report(run)
    return run.report_file


def run(directory: RunDir) -> dict[str, Any]:
    """All stages in order, prompts first: they cost no training and may already be enough. Returns the verdict."""
    arms = directory.recipe().evaluate.arms
    tuned = tuple(arm for arm in arms if arm in ("tuned", "tuned_retrieval"))
    data(directory)
    render(directory)
    evaluate(directory, tuple(arm for arm in arms if arm not in (*tuned, "deployed")))
    train(directory)
    if tuned:
        evaluate(directory, tuned)
    export(directory)
    parity(directory)
    if "deployed" in arms:
        evaluate(directory, ("deployed",))
    seeds(directory)
    learning_curve(directory)
    result = verdict(directory)
    report(directory)
    return result


def chat(run: RunDir, compare: bool = False) -> Callable[[list[dict[str, str]]], dict[str, str]]:
    """The tuned model (and with ``compare`` the base) to talk to.

    Returns:
        A function from a conversation to ``{"tuned": answer}``, or with the base's answer beside it.
    """
    from tunesmith.chat.render import with_system

    recipe = run.recipe()
    run.key_of("train")
    engines = {"base": in_process(recipe, None)} if compare else {}
    engines["tuned"] = in_process(recipe, run.adapter)
    budget = read_json(run.data / "rendered.json")["max_new_tokens"]
    system = {"base": recipe.task.prompt, "tuned": recipe.task.short_prompt}

    def answer(conversation: list[dict[str, str]]) -> dict[str, str]:
        return {
            name: engine.generate([with_system(conversation, system[name])], budget, lambda _: None)[0].text
            for name, engine in engines.items()
        }

    return answer
