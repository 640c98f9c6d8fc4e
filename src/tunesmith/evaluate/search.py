"""The ``optimized_prompt`` arm: a seeded random search over instructions and demonstrations, paid in model calls.

A candidate is an instruction (as written, or rewritten by a fixed rule: an explicit format line from the schema or the
labels, emphasis, another order; and the user's own) with a set of demonstrations. Successive halving spends the calls:
all candidates answer a quarter of the dev rows, the better half of them half of the rows, the better half of those all
of them. Answers are kept, so a survivor is asked only what is new. How many candidates there are follows from the budget.

A model that writes instructions needs a strong one beside the one under test. Who has one names it as
``evaluate.optimized_prompt.writer`` (``gepa.py``); what it wrote joins the search as one more instruction.

The choice is made on dev, where the best of many looks better than it is (by up to 7 points for the best of ten on 100
rows); the sealed test says what it is worth.

Source: Jamieson and Talwalkar 2016 (arXiv 1502.07943), algorithm 1.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from tunesmith.errors import RunError
from tunesmith.evaluate.metrics import format_line
from tunesmith.evaluate.prompts import random_draw
from tunesmith.recipe import Recipe
from tunesmith.rundir.records.evaluation import Candidate, Output
from tunesmith.rundir.rows import Row

DRAWS = 4  # random sets of demonstrations for each k
EMPHASIS = "This matters: follow the instruction to the letter."
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


@dataclass(frozen=True, kw_only=True)
class Winner:
    """What a search ends with.

    Attributes:
        candidate: the best way to ask.
        outputs: its answers to all dev rows.
        calls: answers that the search cost.
        tried: candidates that were asked at all.
    """

    candidate: Candidate
    outputs: list[Output]
    calls: int
    tried: int


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


def space(recipe: Recipe, pool: list[Row], start: list[Candidate], written: str | None = None) -> list[Candidate]:
    """Every candidate, in the order in which a budget takes them: ``start`` first, then what another model has written (by
    itself), the rest shuffled by the seed."""
    settings = recipe.evaluate.few_shot
    first = [replace(candidate, arm="optimized_prompt", variant="as written") for candidate in start]
    first += [Candidate(arm="optimized_prompt", instruction=written, variant="written")] if written else []
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
    random.Random(f"{recipe.seed}/search").shuffle(rest)
    return first + [candidate for candidate in rest if candidate not in first]


def rungs(rows: int, most: int, calls: int) -> list[tuple[int, int]]:
    """``(candidates alive, rows answered by the end of the rung)``, as many candidates (up to ``most``) as ``calls`` pay.

    Raises:
        RunError: the calls do not pay for one candidate on all rows.
    """
    marks = sorted({math.ceil(rows / 4), math.ceil(rows / 2), rows})

    def plan(count: int) -> list[tuple[int, int]]:
        return [(math.ceil(count / 2**number), mark) for number, mark in enumerate(marks)]

    for count in range(min(most, calls), 0, -1):
        if cost(plan(count)) <= calls:
            return plan(count)
    raise RunError(
        f"evaluate.optimized_prompt.calls: {calls} answers do not cover one prompt on {rows} dev rows",
        f"set it to {rows} or more, or lower evaluate.few_shot.dev_rows",
    )


def cost(plan: list[tuple[int, int]]) -> int:
    """Answers that a plan asks for."""
    before = [0, *(mark for _, mark in plan[:-1])]
    return sum(alive * (mark - start) for (alive, mark), start in zip(plan, before, strict=True))


def search(
    options: list[Candidate],
    rows: int,
    calls: int,
    ask: Callable[[Candidate, slice], list[Output]],
    rank: Callable[[list[Output]], tuple[float, ...]],
) -> Winner:
    """The best of ``options`` that ``calls`` answers find.

    Args:
        options: candidates in the order in which the budget takes them.
        rows: how many dev rows there are.
        ask: a candidate's answers to a slice of the dev rows.
        rank: what is larger for a better set of answers.

    Raises:
        RunError: the calls do not pay for one candidate.
    """
    plan = rungs(rows, len(options), calls)
    outputs: dict[Candidate, list[Output]] = {}
    alive, done = options[: plan[0][0]], 0
    for count, mark in plan:
        alive = alive[:count]
        for candidate in alive:
            outputs[candidate] = outputs.get(candidate, []) + ask(candidate, slice(done, mark))
        alive = sorted(alive, key=lambda candidate: rank(outputs[candidate]), reverse=True)
        done = mark
    return Winner(candidate=alive[0], outputs=outputs[alive[0]], calls=cost(plan), tried=plan[0][0])
