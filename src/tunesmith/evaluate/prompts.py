"""The prompts of the arms, and the choice of demonstrations.

Prompt arms get the recipe's full instruction as system turn, the tuned arms the short one they were trained with.
Demonstrations are earlier turns of the same conversation, drawn from the train part; how many and which is chosen on
dev rows, and the test part plays no role in it.
"""

import random
from dataclasses import dataclass
from typing import Any

from tunesmith.chat.render import Message, with_system
from tunesmith.errors import RunError
from tunesmith.recipe import Recipe

Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One way to prompt: ``k`` demonstrations, draw number ``draw``; k = 0 is zero-shot."""

    k: int
    draw: int
    demonstrations: tuple[str, ...]  # row ids

    @property
    def name(self) -> str:
        """``zero_shot``, or ``k=3 draw=1``."""
        return f"k={self.k} draw={self.draw}" if self.k else "zero_shot"


def candidates(recipe: Recipe, train: list[Row]) -> list[Candidate]:
    """Zero-shot, and every draw of every k, deterministic from the recipe's seed.

    Raises:
        RunError: a k larger than the train part.
    """
    found = [Candidate(0, 0, ())]
    if "few_shot" in recipe.evaluate.arms:
        for k in recipe.evaluate.few_shot.k:
            if k > len(train):
                raise RunError(f"evaluate.few_shot.k: {k} examples asked, train has {len(train)} rows", "lower k")
            for draw in range(recipe.evaluate.few_shot.draws):
                rows = random.Random(f"{recipe.seed}/{k}/{draw}").sample(train, k)
                found.append(Candidate(k, draw, tuple(row["id"] for row in rows)))
    return found


def prompted(recipe: Recipe, row: Row, demonstrations: list[Row]) -> list[Message]:
    """What a prompt arm is asked: full instruction, demonstrations, then the row without its answer."""
    question = with_system(row["messages"][:-1], recipe.task.prompt)
    system = question[:1] if question[0]["role"] == "system" else []
    shown = [m for demonstration in demonstrations for m in demonstration["messages"] if m["role"] != "system"]
    return [*system, *shown, *question[len(system) :]]


def tuned(recipe: Recipe, row: Row) -> list[Message]:
    """What the tuned model is asked: the short instruction, then the row without its answer."""
    return with_system(row["messages"][:-1], recipe.task.short_prompt)
