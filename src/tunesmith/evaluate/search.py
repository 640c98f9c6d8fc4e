"""Successive halving over prompts, and the space that the ``optimized_prompt`` arm searches with it.

**Halving.** All prompts answer a quarter of dev; the better half of them goes on to half of it, and the better half of those
answer *all* of dev. Answers are kept, so a survivor is asked only what is new. Two rules make the end honest. Nobody is
thrown out on fewer than 32 rows: on 16 of 64 the best of sixteen prompts goes too often. And never fewer than ``survivors``
reach the end, since that many finalists answer the test part and the tuned model has to beat each. Refused: all prompts on all
rows, which costs up to twice as much and chooses hardly better; one winner of a few rows, which lets the tuned model win
against a prompt that is not the best (``benchmarks/gate_simulation.py`` measures it: ``docs/explanation/deciding.md``).

**The space.** A candidate is an instruction (as written, or rewritten by a fixed rule: an explicit format line from the schema
or the labels, emphasis, another order; and the user's own) with a set of demonstrations, answered freely or constrained to the
schema or the labels (``task.constrained``). Both ways begin together: a prompt whose free answers no parser reads would be
thrown out before it is constrained, if that came after the first rung. How many are tried follows from the
budget. A model that writes instructions needs a strong one beside the one under test. Who has one names it as
``evaluate.optimized_prompt.writer`` (``gepa.py``); what it wrote joins the search as one more instruction.

Source: Jamieson and Talwalkar 2016 (arXiv 1502.07943), algorithm 1.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tunesmith.errors import RunError
from tunesmith.evaluate.metrics import format_line
from tunesmith.evaluate.prompts import random_draw
from tunesmith.recipe import HeldTo, Recipe
from tunesmith.rundir.records.evaluation import Candidate
from tunesmith.rundir.rows import Row

FIRST_RUNG = 32  # rows below which no prompt is thrown out
PROMPTS = 16  # that the search tries where the recipe names no budget
DRAWS = 4  # random sets of demonstrations for each k
EMPHASIS = "This matters: follow the instruction to the letter."
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")

Option = TypeVar("Option")


def instructions(recipe: Recipe, written: str | None = None) -> dict[str, str]:
    """Instructions by the name of what was done to the recipe's; the same text is listed once.

    Args:
        written: by another model.
    """
    base, line = recipe.task.prompt or recipe.task.short_prompt or "", format_line(recipe.task)
    sentences = [sentence for sentence in _SENTENCE_END.split(base.strip()) if sentence]
    texts = {
        "as written": base,
        "format line last": f"{base}\n{line}",
        "format line first": f"{line}\n{base}",
        "emphasis": f"{base}\n{EMPHASIS}",
        "emphasis and format line": f"{base}\n{EMPHASIS}\n{line}",
        "last sentence first": " ".join(sentences[-1:] + sentences[:-1]),
        "first sentence repeated": f"{base}\n{sentences[0] if sentences else ''}",
        "short": recipe.task.short_prompt or base,
    }
    texts |= {f"own {number}": text for number, text in enumerate(recipe.evaluate.optimized_prompt.instructions, 1)}
    texts |= {"written": written} if written else {}
    unique: dict[str, str] = {}
    for name, text in texts.items():
        if text.strip() and text.strip() not in unique.values():
            unique[name] = text.strip()
    return unique


def space(
    recipe: Recipe,
    pool: list[Row],
    start: list[Candidate],
    written: str | None = None,
    held_to: Sequence[HeldTo] = ("",),
) -> list[Candidate]:
    """Every candidate, in the order in which a budget takes them: ``start`` first, then what another model has written (by
    itself), the rest shuffled by the seed.

    Args:
        held_to: what answers are constrained to: each of the ways, for every prompt but ``start``.
    """
    settings = recipe.evaluate.few_shot
    first = [replace(candidate, arm="optimized_prompt", variant="as written") for candidate in start]
    first += (
        in_each_way([Candidate(arm="optimized_prompt", instruction=written, variant="written")], held_to) if written else []
    )
    rest: list[Candidate] = []
    for variant, text in instructions(recipe, written).items():
        plain = Candidate(arm="optimized_prompt", instruction=text, variant=variant)
        rest.append(plain)
        for k in settings.k:
            for draw in range(DRAWS if "random" in settings.selection else 0):
                ids = random_draw(f"{recipe.seed}/search/{k}/{draw}", pool, k)
                rest.append(replace(plain, selection="random", k=k, draw=draw, demonstrations=ids))
            nearest = [selection for selection in settings.selection if selection != "random"]
            rest += [replace(plain, selection=selection, k=k) for selection in nearest]
    rest = in_each_way(rest, held_to)
    random.Random(f"{recipe.seed}/search").shuffle(rest)
    return first + [candidate for candidate in rest if candidate not in first]


def in_each_way(options: Sequence[Candidate], held_to: Sequence[HeldTo]) -> list[Candidate]:
    """Every candidate with its answers constrained in each of the ways; the free one comes first and wins a tie."""
    return [replace(candidate, held_to=way) for way in held_to for candidate in options]


def rungs(count: int, rows: int, survivors: int) -> list[tuple[int, int]]:
    """``(prompts alive, rows answered by the end of the rung)`` of a halving.

    Args:
        count: prompts that begin, at least 1.
        rows: of dev; the last rung has them all.
        survivors: how many reach the end at least, where there are so many.

    >>> rungs(16, 200, 3), rungs(16, 64, 3), rungs(16, 60, 3)
    ([(16, 50), (8, 100), (4, 200)], [(16, 32), (8, 64)], [(16, 60)])
    """
    marks = [mark for mark in (math.ceil(rows / 4), math.ceil(rows / 2)) if mark >= FIRST_RUNG] + [rows]
    return [(max(math.ceil(count / 2**number), min(count, survivors)), mark) for number, mark in enumerate(marks)]


def cost(plan: list[tuple[int, int]]) -> int:
    """Answers that a plan asks for."""
    before = [0, *(mark for _, mark in plan[:-1])]
    return sum(alive * (mark - start) for (alive, mark), start in zip(plan, before, strict=True))


def affordable(most: int, rows: int, survivors: int, calls: int) -> int:
    """How many prompts, up to ``most``, a halving within ``calls`` answers can begin with.

    Raises:
        RunError: the calls do not pay for one.
    """
    for count in range(min(most, calls), 0, -1):
        if cost(rungs(count, rows, survivors)) <= calls:
            return count
    raise RunError(
        f"evaluate.optimized_prompt.calls: {calls} answers do not cover one prompt on {rows} dev rows",
        f"set it to {rows} or more, or leave it out for what {PROMPTS} prompts cost",
    )


def halving(
    options: Sequence[Option],
    rows: int,
    survivors: int,
    standing: Callable[[Option, int], tuple[float, ...]],
) -> list[tuple[Option, int]]:
    """Successive halving.

    Args:
        options: at least one; among equals the earlier one goes on.
        rows: of dev.
        survivors: how many answer all rows at least, where there are so many options.
        standing: of an option that has answered so many of the first rows; larger is better.

    Returns:
        All options with the rows they have answered, the best first: who came further, and then who stood higher there.
    """
    plan = rungs(len(options), rows, survivors)
    alive: list[Option] = list(options)
    ranked: list[tuple[Option, int]] = []
    for (_, mark), (going_on, _) in zip(plan, [*plan[1:], (0, 0)], strict=True):
        order = sorted(alive, key=lambda option: standing(option, mark), reverse=True)
        alive = order[:going_on]
        ranked = [(option, mark) for option in order[going_on:]] + ranked
    return ranked
