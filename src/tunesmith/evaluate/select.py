"""Choose the prompt on dev: how many demonstrations, which draw, and which prompt arm is the one to beat.

Every candidate answers the same dev rows. The best headline score wins; among equals the finer figure decides (field F1,
strict match), then the shorter prompt. The test part is not read here.
"""

from pathlib import Path
from typing import Any

from tunesmith.evaluate.arms import ask, summary
from tunesmith.evaluate.metrics import HEADLINE, TIE_BREAK, Scorer
from tunesmith.evaluate.prompts import Row, candidates, prompted
from tunesmith.infer.engine import Engine
from tunesmith.recipe import Recipe
from tunesmith.rundir import write_json


def select_prompt(
    recipe: Recipe, engine: Engine, train: list[Row], dev: list[Row], scorer: Scorer, max_new_tokens: int, target: Path
) -> dict[str, Any]:
    """Score all candidates on dev and write the choice to ``target``.

    Returns:
        ``few_shot``: ids of the chosen demonstrations (None without that arm); ``best_prompt``: name of the arm to
        beat; ``candidates``: dev figures of each.
    """
    by_id = {row["id"]: row for row in train}
    rows = dev[: recipe.evaluate.few_shot.dev_rows]
    references = [row["messages"][-1]["content"] for row in rows]
    ids = [row["id"] for row in rows]
    tried: list[dict[str, Any]] = []
    for candidate in candidates(recipe, train):
        shown = [by_id[row_id] for row_id in candidate.demonstrations]
        prompts = [prompted(recipe, row, shown) for row in rows]
        outputs = ask(f"dev {candidate.name}", engine, ids, prompts, references, scorer, max_new_tokens)
        tried.append({"name": candidate.name, "demonstrations": list(candidate.demonstrations), **summary(outputs)})

    def rank(figures: dict[str, Any]) -> tuple[float, float, float]:
        return figures[HEADLINE], figures[TIE_BREAK[recipe.task.metric]], -figures["prompt_tokens"]

    few_shot = max((c for c in tried if c["demonstrations"]), key=rank, default=None)
    eligible = [c for c in tried if c["demonstrations"] or "zero_shot" in recipe.evaluate.arms]
    best = max(eligible, key=rank)
    choice = {
        "few_shot": few_shot and few_shot["demonstrations"],
        "few_shot_name": few_shot and few_shot["name"],
        "best_prompt": "few_shot" if best["demonstrations"] else "zero_shot",
        "dev_rows": len(rows),
        "candidates": tried,
    }
    write_json(target, choice)
    return choice
