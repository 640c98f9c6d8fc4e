"""One function per verb; each composes the stages and keeps the run directory's books.

A stage is imported by the verb that needs it, so that ``check`` and ``--help`` start without torch. A verb whose inputs
did not change is skipped; one whose predecessor is missing says which to run.
"""

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.api.examples import data, render
from tunesmith.api.merged import merge_adapter
from tunesmith.api.stage import model_key, renderer, stage
from tunesmith.errors import DataError, RunError
from tunesmith.recipe import PROMPT_ARMS, Recipe, load_recipe
from tunesmith.rundir import (
    RunDir,
    fingerprint,
    read_json,
    read_rows,
    sha256_file,
    whole_directory,
    write_json,
)
from tunesmith.track import MetricsLog, say, write_csv

if TYPE_CHECKING:
    from tunesmith.infer.engine import Engine
    from tunesmith.infer.in_process import InProcessEngine


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
    from tunesmith.models.load import head_weight, load_model
    from tunesmith.models.precision import precision
    from tunesmith.models.swap import add_lora
    from tunesmith.train.documents import Documents
    from tunesmith.train.health import check_adapter, first_rows, refuse_other_loss, stock_loss
    from tunesmith.train.health_data import check_part
    from tunesmith.train.loop import fit

    recipe = run.recipe()
    directory, made = renderer(recipe)
    kept = (recipe.base, recipe.per_layer_embeddings)
    key = fingerprint(run.key_of("render"), *kept, recipe.lora.model_dump(), recipe.train.model_dump(), recipe.seed)
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
        say(f"train: LoRA on {len(layers)} layers, {trained_weights:,} weights, {where}")
        say(f"train: {fuse(model).summary()}")
        settings = recipe.train
        steps = Plan(
            documents["train"].lengths, settings.num_train_epochs, settings.tokens_per_step, settings.max_length, recipe.seed
        )
        refuse_other_loss(model, expected)
        first = check_adapter(model, layers, documents["train"], first_rows(documents["train"], steps[0][1]))
        say(
            f"health: adapters change nothing yet and {len(layers)} of {len(layers)} get a gradient; loss {first:.2f} on the "
            f"first rows; supervised {', '.join(part.told() for part in taught)}; {'; '.join(template)}"
        )
        size = f"{steps.packs_per_step} packs of {steps.capacity} tokens"
        say(f"train: {len(steps)} steps of {size}, {100 * steps.fill:.1f} % full")
        metrics = MetricsLog(run.metrics_file)
        trained = fit(model, layers, documents["train"], steps, documents["dev"], recipe, run.checkpoints, metrics, key)
        load_adapter_state(layers, read_adapter(trained.checkpoint))
        with whole_directory(run.adapter) as temporary:
            save_adapter(temporary, layers, recipe.lora, recipe.model)
        write_csv(run.metrics_file, run.metrics_file.with_suffix(".csv"))
        best = min(trained.progress.dev_losses, key=lambda entry: entry[1])
        facts = {
            "steps": len(steps),
            "fill": round(steps.fill, 4),
            "best_step": best[0],
            "best_dev_loss": best[1],
            "tokens_per_second": round(trained.tokens_per_second, 1),
            "overfit": trained.overfit,
            "trained_weights": trained_weights,
            "target_layers": len(layers),
        }
        run.add_to_manifest(training=facts)
        say(f"train: best dev loss {best[1]:.4f} at step {best[0]} of {len(steps)}, {trained.tokens_per_second:,.0f} tokens/s")


def export(run: RunDir) -> None:
    """Merge the adapter and write the GGUF files of the recipe."""
    from tunesmith.export import gguf

    recipe = run.recipe()
    key = fingerprint(run.key_of("train"), recipe.export.model_dump(), recipe.towers)
    with stage(run, "export", key) as needed:
        if not needed:
            return
        merge_adapter(run)
        f16 = _gguf_path(run, "F16")
        say("export: converting to GGUF (F16) with llama.cpp's converter")
        gguf.convert(run.merged, f16)
        files = {"F16": gguf.describe(f16)}
        for file_type in recipe.export.gguf:
            if file_type != "F16":
                files[file_type] = gguf.quantize(f16, _gguf_path(run, file_type), file_type)
        if "F16" not in recipe.export.gguf:
            f16.unlink()
            del files["F16"]
        write_json(run.export / "export.json", files)
        for file_type, facts in files.items():
            say(f"export: {file_type} {facts['bytes'] / 1e6:.0f} MB, {facts['bits_per_weight']:.2f} bits a weight")


def evaluate(run: RunDir, arms: tuple[str, ...] | None = None) -> None:
    """Score arms (all of the recipe's when not named) on the sealed test part."""
    from tunesmith.evaluate import prompts
    from tunesmith.evaluate.arms import run_arm
    from tunesmith.evaluate.metrics import make_scorer

    recipe = run.recipe()
    run.key_of("render")
    unknown = set(arms or ()) - set(recipe.evaluate.arms)
    if unknown:
        raise RunError(f"{sorted(unknown)[0]}: not an arm of this recipe", f"arms: {', '.join(recipe.evaluate.arms)}")
    budget = read_json(run.data / "rendered.json")["max_new_tokens"]
    scorer = make_scorer(recipe.task.metric, recipe.task.json_schema)
    parts = {part: read_rows(run.data / f"{part}.jsonl") for part in ("train", "dev", "test")}
    _check_references(parts["test"] + parts["dev"], scorer)
    by_id = {row["id"]: row for row in parts["train"]}
    base = functools.cache(lambda: _in_process(recipe, None))  # loaded when an arm first asks
    for arm in arms or recipe.evaluate.arms:
        demonstrations: list[dict[str, Any]] = []
        if arm in PROMPT_ARMS:
            choice = _selection(run, recipe, base, parts, scorer, budget)
            demonstrations = [by_id[row_id] for row_id in choice["few_shot"]] if arm == "few_shot" else []
            asked = [prompts.prompted(recipe, row, demonstrations) for row in parts["test"]]
        else:
            asked = [prompts.tuned(recipe, row) for row in parts["test"]]
        model_key, engine = _engine_of(run, recipe, arm, base, asked, budget)
        arm_key = fingerprint(model_key, asked, _scoring(recipe), budget)
        with stage(run, f"evaluate {arm}", arm_key) as needed:
            if needed:
                figures = run_arm(run.evaluation / arm, engine, arm_key, parts["test"], asked, scorer, budget)
                _log_reading(run, arm, arm_key)
                say(f"evaluate: {arm} gets {100 * figures['score']:.1f} of 100 right, {figures['ms']:.0f} ms an example")


def verdict(run: RunDir) -> dict[str, Any]:
    """Decide from the arms' outputs; writes and returns ``evaluation/verdict.json``."""
    from tunesmith.evaluate import gate

    recipe = run.recipe()
    outputs = {}
    for arm in recipe.evaluate.arms:
        run.key_of(f"evaluate {arm}")
        outputs[arm] = read_rows(run.evaluation / arm / "outputs.jsonl")
    choice = read_json(run.evaluation / "selection.json")
    result = gate.verdict(outputs, choice["best_prompt"], recipe.task.min_gain)
    result["selection"] = choice
    write_json(run.verdict_file, result)
    return result


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
    data(directory)
    render(directory)
    evaluate(directory, tuple(arm for arm in arms if arm in PROMPT_ARMS))
    train(directory)
    if "tuned" in arms:
        evaluate(directory, ("tuned",))
    export(directory)
    if "deployed" in arms:
        evaluate(directory, ("deployed",))
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
    engines = {"base": _in_process(recipe, None)} if compare else {}
    engines["tuned"] = _in_process(recipe, run.adapter)
    budget = read_json(run.data / "rendered.json")["max_new_tokens"]
    system = {"base": recipe.task.prompt, "tuned": recipe.task.short_prompt}

    def answer(conversation: list[dict[str, str]]) -> dict[str, str]:
        return {
            name: engine.generate([with_system(conversation, system[name])], budget, lambda _: None)[0].text
            for name, engine in engines.items()
        }

    return answer


def _in_process(recipe: Recipe, adapter: Path | None) -> "InProcessEngine":
    from tunesmith.infer.in_process import InProcessEngine
    from tunesmith.models.adapter import load_adapter_state, read_adapter
    from tunesmith.models.load import load_model
    from tunesmith.models.precision import precision
    from tunesmith.models.swap import add_lora, merge_lora

    directory, made = renderer(recipe)
    base, compute = precision(recipe.base, recipe.train.compute, directory)
    model = load_model(directory, compute, base, per_layer_embeddings=recipe.per_layer_embeddings)
    if adapter is not None:
        layers = add_lora(model, recipe.lora, recipe.seed)
        load_adapter_state(layers, read_adapter(adapter))
        if base == "fp32":  # exact to fp32 rounding, and decoding runs as fast as the base
            merge_lora(model, layers)
    return InProcessEngine(model, made, recipe.evaluate.batch_size)


def _engine_of(
    run: RunDir, recipe: Recipe, arm: str, base: "Callable[[], InProcessEngine]", asked: list[list[dict[str, str]]], budget: int
) -> "tuple[str, Callable[[], Engine]]":
    """Fingerprint of an arm's weights, and how to make its engine."""
    if arm in PROMPT_ARMS:
        return fingerprint(model_key(recipe), *_held(recipe)), base
    if arm == "tuned":
        return run.key_of("train"), lambda: _in_process(recipe, run.adapter)
    gguf = _gguf_path(run, recipe.export.gguf[-1])

    def llama_cpp() -> "Engine":
        from tunesmith.infer.llama_cpp import LlamaCppEngine

        _, made = renderer(recipe)
        longest = max(len(made.prompt_ids(prompt)) for prompt in asked)
        return LlamaCppEngine(gguf, longest + budget + 64)

    return run.key_of("export"), llama_cpp


def _selection(
    run: RunDir,
    recipe: Recipe,
    base: "Callable[[], InProcessEngine]",
    parts: dict[str, list[dict[str, Any]]],
    scorer: Any,
    budget: int,
) -> dict[str, Any]:
    from tunesmith.evaluate.select import select_prompt

    target = run.evaluation / "selection.json"
    key = fingerprint(
        run.key_of("data"),
        model_key(recipe),
        *_held(recipe),
        _scoring(recipe),
        recipe.task.prompt,
        recipe.evaluate.few_shot.model_dump(),
        [arm for arm in recipe.evaluate.arms if arm in PROMPT_ARMS],
        budget,
    )
    with stage(run, "select prompt", key) as needed:
        if needed:
            choice = select_prompt(recipe, base(), parts["train"], parts["dev"], scorer, budget, target)
            say(
                f"select prompt: {choice['best_prompt']} leads on dev"
                + (f" ({choice['few_shot_name']})" if choice["few_shot"] else "")
            )
    return read_json(target)


def _held(recipe: Recipe) -> tuple[str, str, str]:
    """How the base model is held while it answers."""
    return recipe.base, recipe.train.compute, recipe.per_layer_embeddings


def _scoring(recipe: Recipe) -> tuple[str, str | None]:
    """What decides a score: the metric, and the content of the schema."""
    schema = recipe.task.json_schema
    return recipe.task.metric, None if schema is None else sha256_file(schema)


def _gguf_path(run: RunDir, file_type: str) -> Path:
    return run.export / f"{run.recipe().name}-{file_type}.gguf"


def _log_reading(run: RunDir, arm: str, key: str) -> None:
    """The test part is sealed; every reading of it is written down."""
    with (run.evaluation / "test_readings.jsonl").open("a", encoding="utf-8") as file:
        file.write(f'{{"arm": "{arm}", "key": "{key[:16]}", "at": "{datetime.now(UTC).isoformat(timespec="seconds")}"}}\n')


def _check_references(rows: list[dict[str, Any]], scorer: Any) -> None:
    """Every reference must score 1 against itself, or the metric does not fit the data."""
    for row in rows:
        if row.get("kind") == "text" or "tool_calls" in row["messages"][-1]:
            what = "a plain text, which asks nothing" if row.get("kind") == "text" else "ended by a tool call"
            raise DataError(
                f"row {row['id']}, {row['place']}: {what}, so no arm can be scored", "train and preview such rows alone"
            )
        reference = row["messages"][-1]["content"]
        try:
            fits = scorer(reference, reference)["score"] == 1.0
        except ValueError:
            fits = False
        if not fits:
            raise DataError(
                f"row {row['id']}, {row['place']}: its own reference does not score under task.metric: {reference[:80]!r}",
                "choose another metric, or mend the row",
            )
