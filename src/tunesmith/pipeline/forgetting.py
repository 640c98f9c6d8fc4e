"""The forgetting check of a run: base and tuned model on probes that are no part of the task.

The model is loaded once, its adapter not merged, so that switching the adapter off gives the base in the same memory. It is
a stage of its own: it needs the adapter and nothing else, and the verdict reads what it wrote.
"""

import logging

from tunesmith.pipeline.engines import load
from tunesmith.pipeline.stage import stage
from tunesmith.rundir import RunDir, fingerprint, sha256_file
from tunesmith.rundir.records.evidence import Forgetting
from tunesmith.tracking import progress

logger = logging.getLogger(__name__)


def forgetting(run: RunDir) -> Forgetting:
    """Compare the tuned model with its base; writes and returns ``evaluation/forgetting.json``.

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
            _measured(run).write(target)
    result = Forgetting.read(target)
    logger.info(f"forgetting: {result.verdict}: {result.reason}")
    return result


def _measured(run: RunDir) -> Forgetting:
    from tunesmith.evaluate.forgetting import STEPS, conclude, measure
    from tunesmith.evaluate.probes import load_probes

    recipe = run.recipe()
    settings = recipe.evaluate.forgetting
    probes = load_probes(settings.texts)
    loaded = load(recipe, run.adapter)
    tuned = (loaded.model, loaded.layers, loaded.renderer)
    with progress("forgetting", STEPS) as bar:
        decisive, figures = measure(*tuned, probes, settings.margin, recipe.evaluate.batch_size, bar.advance)
    if settings.tasks:
        from tunesmith.evaluate.lm_eval import run_tasks

        logger.info(f"forgetting: lm-evaluation-harness on {', '.join(settings.tasks)}, base and tuned")
        tasks = (settings.tasks, settings.tasks_path, settings.limit)
        decisive += run_tasks(*tuned, *tasks, settings.margin)
    return conclude(decisive, figures, settings.margin)
