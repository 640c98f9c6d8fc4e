"""Choose the prompts on dev: for every prompt arm its best way to ask, and which arm is the one to beat.

Every candidate answers the same dev rows. The best headline wins; among equals the finer figure decides (field F1, strict
match), then the shorter prompt. The test part is not read here.

Candidates of local arms are answered by the base model. An endpoint gets the prompts that were best for the base: to
search on a paid endpoint again would multiply its bill by the number of candidates. It answers the dev rows once, when
the recipe lets it be the one to beat.

A judge compares answers in pairs, so on dev every candidate is compared with the first one, which then scores one half.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.engines.engine import Constraint, Engine
from tunesmith.errors import RunError
from tunesmith.evaluate.arms import Outputs, ask, summary
from tunesmith.evaluate.gepa import Written, write_instruction
from tunesmith.evaluate.metrics import HEADLINE, Metric
from tunesmith.evaluate.prompts import Candidate, PromptBook, Row, candidates
from tunesmith.evaluate.search import search, space
from tunesmith.recipe import PROMPT_ARMS, Recipe
from tunesmith.rundir import write_json

logger = logging.getLogger(__name__)

Judged = Callable[[Outputs, Outputs], Outputs]  # an arm's records and those it is compared with -> with scores


@dataclass(frozen=True)
class PromptTask:
    """What is the same for every candidate.

    Attributes:
        engine_of: the engine of ``base``, or of an arm ``external:...``.
        allowed: what the engine holds answers to (``task.constrained``).
        judged: scores of records that need a judge.
        writer: a question to the answer of the model that writes instructions.
    """

    recipe: Recipe
    book: PromptBook
    dev: list[Row]
    metric: Metric
    max_new_tokens: int
    engine_of: Callable[[str], Engine]
    allowed: Constraint | None = None
    judged: Judged | None = None
    writer: Callable[[str], str] | None = None


class Selection:
    """Scores candidates on the dev rows and remembers what each got."""

    def __init__(self, asking: PromptTask):
        self._asking = asking
        self.rows = asking.dev[: asking.recipe.evaluate.few_shot.dev_rows]  # every candidate answers these
        self._first: Outputs | None = None  # what a judge compares with
        self.tried: list[dict[str, Any]] = []

    def ask(self, title: str, candidate: Candidate, part: slice = slice(None), answerer: str = "base") -> Outputs:
        """A candidate's records on dev rows, scored."""
        outputs = self.answers(title, candidate, self.rows[part], answerer)
        if self._asking.judged is None:
            return outputs
        if self._first is None:
            first = candidates(self._asking.recipe, self._asking.book.pool, "instruction")[0]
            whole = len(outputs) == len(self.rows)
            self._first = outputs if whole else self.answers(first.name, first, self.rows, "base")
        return self._asking.judged(outputs, self._first[part])

    def answers(self, title: str, candidate: Candidate, rows: list[Row], answerer: str) -> Outputs:
        """A candidate's records on some rows; a judge has not seen them."""
        asking = self._asking
        prompts = [asking.book.messages(candidate, row) for row in rows]
        references = [row["messages"][-1]["content"] for row in rows]
        engine, ids = asking.engine_of(answerer), [row["id"] for row in rows]
        return ask(f"dev {title}", engine, ids, prompts, references, asking.metric, asking.max_new_tokens, asking.allowed)

    def keep(self, arm: str, candidate: Candidate, outputs: Outputs) -> None:
        """Write down what a candidate got."""
        name = candidate.name if arm == candidate.arm else arm
        figures = {key: None if math.isnan(v) else v for key, v in summary(outputs, self._asking.metric).items()}
        self.tried.append({"name": name, "arm": arm, "candidate": candidate.written(), **figures})

    def rank(self, figures: dict[str, Any]) -> tuple[float, float, float]:
        """What is larger for a better prompt; a prompt of which nothing could be scored is the worst."""
        values = [figures.get(HEADLINE), figures.get(self._asking.metric.tie_break)]
        return *(-1.0 if value is None or math.isnan(value) else value for value in values), -figures["prompt_tokens"]  # pyright: ignore[reportReturnType]

    def best(self, arms: set[str]) -> dict[str, Any] | None:
        """The best of what was tried for these arms."""
        return max((c for c in self.tried if c["arm"] in arms), key=self.rank, default=None)


def select_prompt(asking: PromptTask, target: Path) -> dict[str, Any]:
    """Score all candidates on dev and write the choice to ``target``.

    Returns:
        ``arms``: the chosen ``Candidate`` of every prompt arm, written; ``best_prompt``: the arm to beat, and
        ``best_prompt_name``: its way to ask; ``candidates``: name, arm and dev figures of each; ``search``: what
        ``optimized_prompt`` cost; ``dev_rows``.

    Raises:
        RunError: a k larger than the train part, or a budget that pays for no candidate.
    """
    recipe = asking.recipe
    settings = recipe.evaluate
    external = [arm for arm in settings.arms if arm.startswith("external:")]
    needed = {*settings.arms, *(settings.prompt_of(arm) for arm in external)}
    selection = Selection(asking)
    if not selection.rows:
        raise RunError("the dev part has no rows to choose a prompt on", "raise data.dev_fraction")
    for arm in PROMPT_ARMS:
        if arm in needed and arm != "optimized_prompt":
            for candidate in candidates(recipe, asking.book.pool, arm):
                selection.keep(arm, candidate, selection.ask(candidate.name, candidate))
    cost = _optimize(asking, selection) if "optimized_prompt" in needed else None
    chosen = {arm: best["candidate"] for arm in PROMPT_ARMS if (best := selection.best({arm})) is not None}
    for arm in external:
        if settings.is_rival(arm):
            candidate = Candidate.read(chosen[settings.prompt_of(arm)])
            selection.keep(arm, candidate, selection.ask(arm, candidate, answerer=arm))
    best = selection.best({arm for arm in settings.arms if settings.is_rival(arm)})
    assert best is not None
    choice = {
        "best_prompt": best["arm"],
        "best_prompt_name": best["name"],
        "arms": chosen,
        "search": cost,
        "dev_rows": len(selection.rows),
        "candidates": selection.tried,
    }
    write_json(target, choice)
    return choice


def _optimize(asking: PromptTask, selection: Selection) -> dict[str, Any]:
    """Search for the ``optimized_prompt``; returns what that cost. The few-shot arm's winner is one of its starts."""
    recipe = asking.recipe
    start = candidates(recipe, asking.book.pool, "instruction")
    few_shot = selection.best({"few_shot"})
    start += [Candidate.read(few_shot["candidate"])] if few_shot else []
    written = None if asking.writer is None else _write(asking, selection, asking.writer)
    found = search(
        space(recipe, asking.book.pool, start, written and written.instruction),
        len(selection.rows),
        recipe.evaluate.optimized_prompt.calls,
        lambda candidate, part: selection.ask(candidate.name, candidate, part),
        lambda outputs: selection.rank(summary(outputs, asking.metric)),
    )
    selection.keep("optimized_prompt", found.candidate, found.outputs)
    logger.info(f"optimized_prompt: {found.tried} prompts in {found.calls} answers; best on dev: {found.candidate.name}")
    return {"calls": found.calls, "tried": found.tried, "written": None if written is None else asdict(written)}


def _write(asking: PromptTask, selection: Selection, writer: Callable[[str], str]) -> Written:
    """Let another model write an instruction from train rows, chosen on the dev rows of the selection."""

    def answers_of(instruction: str, rows: list[Row]) -> Outputs:
        return selection.answers("written", Candidate("optimized_prompt", instruction), rows, "base")

    written = write_instruction(asking.recipe, asking.book.pool, selection.rows, answers_of, writer)
    logger.info(f"optimized_prompt: {written.rewritings} instructions written, chosen by {written.answers} answers")
    return written
