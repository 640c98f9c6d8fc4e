"""What an advice measures where it may take minutes: every prompt on dev, the machine's GPU, and how the base would compute."""

import logging
from typing import Any

import torch

from tunesmith import hardware
from tunesmith.advise.facts import Arm, MachineFacts
from tunesmith.evaluate.prompts import Candidate, framed, tuned
from tunesmith.evaluate.stats import wilson
from tunesmith.models.device import best_device, device_name
from tunesmith.models.precision import precision
from tunesmith.pipeline.model_access import base_of, model_directory
from tunesmith.recipe import Recipe
from tunesmith.rundir import RunDir, read_json, read_rows, write_json

logger = logging.getLogger(__name__)


def measure(run: RunDir, recipe: Recipe) -> tuple[tuple[Arm, ...], dict[str, Any], float]:
    """Every prompt candidate on dev, the choice as ``selection.json`` keeps it, and the tokens a tuned model does without."""

    choice = read_json(run.evaluation / "selection.json")
    arms = []
    for tried in choice["candidates"]:
        score, n = tried["score"], tried["n"]
        if score is None:
            continue  # a judge that could score none of its answers: not measured
        low, high = wilson(round(score * n), n)
        retrieves = tried["candidate"]["documents"] > 0
        arms.append(
            Arm(tried["arm"], tried["name"], score, low, high, n, tried["prompt_tokens"], tried["new_tokens"], retrieves)
        )
    _, renderer = base_of(run, recipe)
    dev = read_rows(run.data / "dev.jsonl")[: choice["dev_rows"]]
    short = sum(len(renderer.prompt_ids(tuned(recipe, row))) for row in dev) / len(dev)
    best = max((arm for arm in arms if not arm.retrieves), key=lambda arm: (arm.score, -arm.prompt_tokens), default=None)
    return tuple(arms), choice, 0.0 if best is None else max(0.0, best.prompt_tokens - short)


def machine() -> MachineFacts | None:
    """The GPU that training would use; None where it would use the CPU."""
    device = best_device()
    if device.type == "cpu":
        return None
    memory = torch.cuda.get_device_properties(device).total_memory
    return MachineFacts(device_name(device), "gpu", hardware.cpu_count(), memory)


def computed_in(recipe: Recipe) -> tuple[str, str]:
    """Storage of the base weights and dtype of the products, as training would choose them."""
    return precision(recipe.base, recipe.train.compute, model_directory(recipe))


def write_prompt(run: RunDir, recipe: Recipe, choice: dict[str, Any], arm: str) -> str:
    """Messages to copy: the chosen prompt with ``{question}`` (and ``{passage 1}`` ...) where each call puts its own."""

    prompt_arm = recipe.evaluate.prompt_of(arm) if arm.startswith("external:") else arm
    chosen = Candidate.read(choice["arms"][prompt_arm])
    train = {row["id"]: row for row in read_rows(run.data / "train.jsonl")}
    shown = [
        {"role": message["role"], "content": message["content"]}
        for row_id in chosen.demonstrations
        for message in train[row_id]["messages"]
        if message["role"] != "system"
    ]
    question = framed([f"{{passage {n}}}" for n in range(1, chosen.documents + 1)], "{question}")
    system = [] if chosen.instruction is None else [{"role": "system", "content": chosen.instruction}]
    written: dict[str, Any] = {"messages": [*system, *shown, {"role": "user", "content": question}]}
    if chosen.k and not chosen.demonstrations:
        written["note"] = (
            f"before the question stand the {chosen.k} train rows nearest to it ({chosen.selection}), nearest last"
        )
    write_json(run.path / "advice" / "prompt.json", written)
    logger.info(f"advise: the prompt is in {run.path / 'advice' / 'prompt.json'}")
    return "advice/prompt.json"
