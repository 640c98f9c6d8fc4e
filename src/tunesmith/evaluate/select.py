"""Choose the prompts on dev: for every prompt arm its best way to ask, and which arm is the one to beat.

Every candidate answers the same dev rows. The best headline wins; among equals the finer figure decides (field F1, strict
match), then the shorter prompt. The test part is not read here.

Candidates of local arms are answered by the base model. An endpoint gets the prompts that were best for the base: to
search on a paid endpoint again would multiply its bill by the number of candidates. It answers the dev rows once, when
the recipe lets it be the one to beat.

A judge compares answers in pairs, so on dev every candidate is compared with the first one, which then scores one half.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunesmith.engines.engine import Allowed, Engine
from tunesmith.errors import RunError
from tunesmith.evaluate.arms import ask, summary
from tunesmith.evaluate.gepa import write_instruction
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.prompts import PromptBook, candidates
from tunesmith.evaluate.search import search, space
from tunesmith.recipe import EXTERNAL, PROMPT_ARMS, Recipe
from tunesmith.rundir.records.evaluation import Candidate, Output, SearchCost, Selection, Summary, Trial, Written
from tunesmith.rundir.rows import Row

logger = logging.getLogger(__name__)

JudgeAnswers = Callable[[list[Output], list[Output]], list[Output]]  # answers, and those they are compared with -> scored


@dataclass(frozen=True, kw_only=True)
class PromptTask:
    """What is the same for every candidate.

    Attributes:
        engine_of: the engine of ``base``, or of an arm ``external:...``.
        allowed: what the engine constrains answers to (``task.constrained``), or labels to choose from.
        judge: scores answers that need a judge.
        writer: a question to the answer of the model that writes instructions.
    """

    recipe: Recipe
    book: PromptBook
    dev: list[Row]
    metric: Metric
    max_new_tokens: int
    engine_of: Callable[[str], Engine]
    allowed: Allowed | None = None
    judge: JudgeAnswers | None = None
    writer: Callable[[str], str] | None = None


class Trials:
    """Scores candidates on the dev rows and remembers what each got."""

    def __init__(self, task: PromptTask):
        self._task = task
        self.rows = task.dev[: task.recipe.evaluate.few_shot.dev_rows]  # every candidate answers these
        self._first: list[Output] | None = None  # what a judge compares with
        self.done: list[Trial] = []

    def ask(self, title: str, candidate: Candidate, part: slice = slice(None), answerer: str = "base") -> list[Output]:
        """A candidate's answers to dev rows, scored."""
        outputs = self.answers(title, candidate, self.rows[part], answerer)
        if self._task.judge is None:
            return outputs
        if self._first is None:
            first = candidates(self._task.recipe, self._task.book.pool, "instruction")[0]
            whole = len(outputs) == len(self.rows)
            self._first = outputs if whole else self.answers(first.name, first, self.rows, "base")
        return self._task.judge(outputs, self._first[part])

    def answers(self, title: str, candidate: Candidate, rows: Sequence[Row], answerer: str) -> list[Output]:
        """A candidate's answers to some rows; a judge has not seen them."""
        task = self._task
        prompts = [task.book.messages(candidate, row) for row in rows]
        engine = task.engine_of(answerer)
        return ask(f"dev {title}", engine, rows, prompts, task.metric, task.max_new_tokens, task.allowed)

    def add(self, arm: str, candidate: Candidate, outputs: list[Output]) -> None:
        """Write down what a candidate got."""
        name = candidate.name if arm == candidate.arm else arm
        self.done.append(Trial(**vars(summary(name, outputs, self._task.metric)), arm=arm, candidate=candidate))

    def rank(self, figures: Summary) -> tuple[float, float, float]:
        """What is larger for a better prompt; a prompt of which nothing could be scored is the worst."""
        finer = figures.figures.get(self._task.metric.tie_break, figures.score)
        headline, second = (-1.0 if value is None else value for value in (figures.score, finer))
        return headline, second, -figures.prompt_tokens

    def best(self, arms: set[str]) -> Trial | None:
        """The best of what was tried for these arms."""
        return max((trial for trial in self.done if trial.arm in arms), key=self.rank, default=None)


def select_prompt(task: PromptTask) -> Selection:
    """Score all candidates on dev and choose.

    Raises:
        RunError: a k larger than the train part, or a budget that pays for no candidate.
    """
    recipe = task.recipe
    settings = recipe.evaluate
    external = [arm for arm in settings.arms if arm.startswith(EXTERNAL)]
    needed = {*settings.arms, *(settings.prompt_of(arm) for arm in external)}
    trials = Trials(task)
    if not trials.rows:
        raise RunError("the dev part has no rows to choose a prompt on", "raise data.dev_fraction")
    for arm in PROMPT_ARMS:
        if arm in needed and arm != "optimized_prompt":
            for candidate in candidates(recipe, task.book.pool, arm):
                trials.add(arm, candidate, trials.ask(candidate.name, candidate))
    cost = _optimize(task, trials) if "optimized_prompt" in needed else None
    chosen = {arm: best.candidate for arm in PROMPT_ARMS if (best := trials.best({arm})) is not None}
    for arm in external:
        if settings.is_rival(arm):
            candidate = chosen[settings.prompt_of(arm)]
            trials.add(arm, candidate, trials.ask(arm, candidate, answerer=arm))
    best = trials.best({arm for arm in settings.arms if settings.is_rival(arm)})
    assert best is not None
    return Selection(
        best_prompt=best.arm,
        best_prompt_name=best.name,
        arms=chosen,
        candidates=tuple(trials.done),
        search=cost,
        dev_rows=len(trials.rows),
    )


def _optimize(task: PromptTask, trials: Trials) -> SearchCost:
    """Search for the ``optimized_prompt``; returns what that cost. The few-shot arm's winner is one of its starts."""
    recipe = task.recipe
    start = candidates(recipe, task.book.pool, "instruction")
    few_shot = trials.best({"few_shot"})
    start += [few_shot.candidate] if few_shot else []
    written = None if task.writer is None else _write(task, trials, task.writer)
    winner = search(
        space(recipe, task.book.pool, start, written and written.instruction),
        len(trials.rows),
        recipe.evaluate.optimized_prompt.calls,
        lambda candidate, part: trials.ask(candidate.name, candidate, part),
        lambda outputs: trials.rank(summary("optimized_prompt", outputs, task.metric)),
    )
    trials.add("optimized_prompt", winner.candidate, winner.outputs)
    logger.info(f"optimized_prompt: {winner.tried} prompts in {winner.calls} answers; best on dev: {winner.candidate.name}")
    return SearchCost(calls=winner.calls, tried=winner.tried, written=written)


def _write(task: PromptTask, trials: Trials, writer: Callable[[str], str]) -> Written:
    """Let another model write an instruction from train rows, chosen on the dev rows of the selection."""

    def answers_of(instruction: str, rows: list[Row]) -> list[Output]:
        return trials.answers("written", Candidate(arm="optimized_prompt", instruction=instruction), rows, "base")

    written = write_instruction(task.recipe, task.book.pool, trials.rows, answers_of, writer)
    logger.info(f"optimized_prompt: {written.rewritings} instructions written, chosen by {written.answers} answers")
    return written
