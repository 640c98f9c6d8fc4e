"""What an advice measures where it may take minutes: every prompt on dev, the machine's GPU, and how the base would compute."""

import logging
from contextlib import ExitStack

from pydantic import JsonValue

from tunesmith import hardware
from tunesmith.engines.base import open_base
from tunesmith.evaluate.judge import calibrate
from tunesmith.evaluate.prompts import framed, tuned
from tunesmith.models.device import best_device, device_memory, device_name
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.judge import make_judge
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_rows, write_json
from tunesmith.rundir.records import Json
from tunesmith.rundir.records.advice import DevArm, MachineFacts, best_of
from tunesmith.rundir.records.evaluation import Selection
from tunesmith.rundir.records.evidence import Calibration

logger = logging.getLogger(__name__)


def measure(run: RunDir, recipe: Recipe) -> tuple[tuple[DevArm, ...], Selection, float]:
    """Every prompt candidate on dev, the choice, and the prompt tokens that a tuned model does without."""
    selection = Selection.read(run.evaluation / "selection.json")
    arms: list[DevArm] = []
    for trial in selection.candidates:
        if trial.score is None:
            continue  # a judge that could score none of its answers: not measured
        arms.append(
            DevArm(
                name=trial.arm,
                detail=trial.name,
                score=trial.score,
                n=trial.n,
                prompt_tokens=trial.prompt_tokens,
                new_tokens=trial.new_tokens,
                retrieves=trial.candidate.documents > 0,
            )
        )
    renderer = base_of(run, recipe).renderer
    dev = read_rows(run.data / "dev.jsonl")[: selection.dev_rows]
    short = sum(len(renderer.prompt_ids(tuned(recipe, row), row.tools)) for row in dev) / len(dev)
    best = best_of([arm for arm in arms if not arm.retrieves])
    return tuple(arms), selection, 0.0 if best is None else max(0.0, best.prompt_tokens - short)


def calibration_of(recipe: Recipe) -> Calibration:
    """The recipe's judge against the labels of people, asked now.

    Raises:
        RecipeError: a bad schema or pattern in the task, or labels that cannot be used.
        RunError: the variable that should hold the judge's key is not set.
    """
    judge, close = make_judge(recipe)
    with ExitStack() as closing:
        closing.callback(close)
        return calibrate(judge, recipe.task.judge.human_labels)


def machine() -> MachineFacts | None:
    """The GPU that training would use; None where it would use the CPU."""
    device = best_device()
    if device.type == "cpu":
        return None
    return MachineFacts(name=device_name(device), kind="gpu", cores=hardware.cpu_count(), memory=device_memory(device))


def computed_in(recipe: Recipe) -> tuple[str, str]:
    """Storage of the base weights and dtype of the products, as training would choose them."""
    base = open_base(recipe)
    return base.storage, base.compute


def write_prompt(run: RunDir, recipe: Recipe, selection: Selection, arm: str) -> str:
    """Messages to copy: the chosen prompt with ``{question}`` (and ``{passage 1}`` ...) where each call puts its own."""
    prompt_arm = recipe.evaluate.prompt_of(arm) if arm.startswith("external:") else arm
    chosen = selection.arms[prompt_arm]
    train = {row.id: row for row in read_rows(run.data / "train.jsonl")}
    examples: list[JsonValue] = [
        {"role": message["role"], "content": message["content"]}
        for row_id in chosen.demonstrations
        for message in train[row_id].messages
        if message["role"] != "system"
    ]
    question = framed([f"{{passage {n}}}" for n in range(1, chosen.documents + 1)], "{question}")
    system: list[JsonValue] = [] if chosen.instruction is None else [{"role": "system", "content": chosen.instruction}]
    prompt: Json = {"messages": [*system, *examples, {"role": "user", "content": question}]}
    if chosen.k and not chosen.demonstrations:
        prompt["note"] = f"before the question stand the {chosen.k} train rows nearest to it ({chosen.selection}), nearest last"
    write_json(run.path / "advice" / "prompt.json", prompt)
    logger.info(f"advise: the prompt is in {run.path / 'advice' / 'prompt.json'}")
    return "advice/prompt.json"
