"""The forgetting check of a run: base and tuned model on probes that are no part of the task.

The model is loaded once, its adapter not merged, so that switching the adapter off gives the base in the same memory. It is
a stage of its own: it needs the adapter and nothing else, and the verdict reads what it wrote.
"""

import logging
from typing import Any

from tunesmith.pipeline.engines import load
from tunesmith.pipeline.stage import stage
from tunesmith.rundir import RunDir, fingerprint, read_json, sha256_file, write_json
from tunesmith.tracking import progress

logger = logging.getLogger(__name__)


def forgetting(run: RunDir) -> dict[str, Any]:
    """Compare the tuned model with its base; writes and returns ``evaluation/forgetting.json``.

    Returns:
        ``verdict`` (no regression, regression, or too little data to tell), ``reason``, ``margin``, ``required`` (whether
        deploying asks for "no regression"), ``probes`` and ``figures`` (``evaluate/forgetting.py``).

    Raises:
        RunError: nothing was trained here.
        DataError: ``evaluate.forgetting.texts`` cannot be used.
        RecipeError: a task cannot be run.
        MissingPackage: tasks are asked for and lm_eval is not installed.
    """
    from tunesmith.evaluate.probes import FILES

    recipe = run.recipe()
    settings = recipe.evaluate.forgetting
    target = run.evaluation / "forgetting.json"
    files = [*FILES, *([] if settings.texts is None else [settings.texts])]
    if settings.tasks_path is not None:
        files += sorted(file for file in settings.tasks_path.rglob("*") if file.is_file())
    hashes = [sha256_file(file) if file.is_file() else None for file in files]
    key = fingerprint(run.key_of("train"), settings.model_dump(mode="json", exclude={"required"}), hashes)
    with stage(run, "forgetting", key) as needed:
        if needed:
            write_json(target, _measured(run))
    result = {**read_json(target), "required": settings.required}
    write_json(target, result)
    logger.info(f"forgetting: {result['verdict']}: {result['reason']}")
    return result


def _measured(run: RunDir) -> dict[str, Any]:
    from tunesmith.evaluate.forgetting import STEPS, conclude, measure
    from tunesmith.evaluate.probes import load_probes

    recipe = run.recipe()
    settings = recipe.evaluate.forgetting
    probes = load_probes(settings.texts)
    found = load(recipe, run.adapter)
    held = (found.model, found.layers, found.renderer)
    with progress("forgetting", STEPS) as bar:
        result = measure(
            found.model, found.layers, found.renderer, probes, settings.margin, recipe.evaluate.batch_size, bar.advance
        )
    if settings.tasks:
        from tunesmith.evaluate.lm_eval import run_tasks

        logger.info(f"forgetting: lm-evaluation-harness on {', '.join(settings.tasks)}, base and tuned")
        tasks = (settings.tasks, settings.tasks_path, settings.limit)
        result["probes"] += run_tasks(*held, *tasks, settings.margin)
    return conclude(result, settings.margin)
