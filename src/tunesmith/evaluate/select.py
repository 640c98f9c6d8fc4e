"""Choose the prompts on dev: for every prompt arm its best way to ask, and the finalists, which the tuned model has to beat.

Every arm's prompts go through successive halving, which ends on all dev rows (``search.py``). The best headline wins; among
equals the finer figure decides (field F1, strict match), then the shorter prompt. The test part is not read here.

**Finalists.** The best prompt of dev is not the best prompt: chosen among sixteen on 64 rows it is two points worse than the
best one that was tried, and a model that beats it alone need not beat that one. So the ``evaluate.finalists`` best of dev,
whatever arms they come from, answer the test part as well; every arm's own best does anyway. The same prompt is a finalist
once. A finalist has its arm's name where it is the best of its arm, else the arm's name and its place among the arm's:
``few_shot:2``.

**How many** follows from three numbers (``finalist_count``). More test rows make the tuned model's lead over a second-best
prompt certain where it is none over the best one; fewer dev rows and more prompts make it likelier that the best one is not
among the first of dev. Each asks for more prompts to be held against the tuned model. Against 3 finalists a model equal to the
best of sixteen prompts is deployed 4.6 % of the time with 300 test rows and 64 of dev, but 9 % with 1,000 test rows
(``benchmarks/gate_simulation.py``); the power to find 10 points falls by 2 points with 2 finalists more.

Candidates of local arms are answered by the base model. An endpoint gets the prompts that were best for the base: to
search on a paid endpoint again would multiply its bill by the number of candidates. It answers the dev rows once, when
the recipe lets it be the one to beat.

A judge compares answers in pairs, so on dev every candidate is compared with the first one, which then scores one half.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from tunesmith.engines.engine import Allowed, Choices, Engine
from tunesmith.errors import RunError
from tunesmith.evaluate.arms import ask, summary
from tunesmith.evaluate.cross_fit import cross_fit
from tunesmith.evaluate.gepa import write_instruction
from tunesmith.evaluate.metrics import Metric
from tunesmith.evaluate.prompts import PromptBook, candidates
from tunesmith.evaluate.search import FIRST_RUNG, PROMPTS, affordable, halving, in_each_way, rungs, space
from tunesmith.evaluate.twin import in_common
from tunesmith.recipe import EXTERNAL, PROMPT_ARMS, HeldTo, Recipe
from tunesmith.rundir.records.answers import Output, Summary
from tunesmith.rundir.records.evaluation import Candidate, SearchCost, Selection, Trial, Written
from tunesmith.rundir.records.evidence import CrossFit
from tunesmith.rundir.rows import Row

logger = logging.getLogger(__name__)

FEWEST, MOST = 3, 20  # finalists, where the recipe says no number

JudgeAnswers = Callable[[list[Output], list[Output]], list[Output]]  # answers, and those they are compared with -> scored


@dataclass(frozen=True, kw_only=True)
class PromptTask:
    """What is the same for every candidate.

    Attributes:
        max_new_tokens: that an answer to a prompt may take.
        test_rows: how many rows the finalists will answer; none of them is read here.
        groups: group of each dev row, where rows belong together.
        engine_of: the engine of ``base``, or of an arm ``external:...``.
        allowed: what the engine constrains answers of a candidate with ``held_to`` to; labels to choose from bind them all.
        held_to: the ways in which every prompt is tried.
        judge: scores answers that need a judge.
        writer: a question to the answer of the model that writes instructions.
    """

    recipe: Recipe
    book: PromptBook
    dev: list[Row]
    metric: Metric
    max_new_tokens: int
    test_rows: int
    engine_of: Callable[[str], Engine]
    allowed: Allowed | None = None
    held_to: Sequence[HeldTo] = ("",)
    groups: Sequence[str] | None = None
    judge: JudgeAnswers | None = None
    writer: Callable[[str], str] | None = None


class Trials:
    """Scores candidates on the dev rows and remembers what each got; nobody is asked the same prompt for a row twice."""

    def __init__(self, task: PromptTask):
        self._task = task
        self._answers: dict[tuple[str, Candidate], list[Output]] = {}  # by who answers and how it is asked
        self._judged: dict[tuple[str, Candidate, int], list[Output]] = {}
        self.rows = task.dev
        self.asked = 0
        self.done: list[Trial] = []

    def outputs(self, candidate: Candidate, rows: int, answerer: str = "base") -> list[Output]:
        """A candidate's answers to so many of the first dev rows, scored."""
        task, way = self._task, way_to_ask(candidate)
        answers = self._answered(way, candidate.name if answerer == "base" else answerer, rows, answerer)
        if task.judge is None:
            return answers
        if (answerer, way, rows) not in self._judged:
            first = in_each_way(candidates(task.recipe, task.book.pool, "instruction"), task.held_to)[0]
            baseline = self._answered(way_to_ask(first), first.name, rows, "base")
            self._judged[answerer, way, rows] = task.judge(answers, baseline)
        return self._judged[answerer, way, rows]

    def _answered(self, way: Candidate, title: str, rows: int, answerer: str) -> list[Output]:
        answers = self._answers.setdefault((answerer, way), [])
        if len(answers) < rows:
            more = self.rows[len(answers) : rows]
            known = self._known(way, more, answerer)
            answers += self.answers(title, way, more, answerer, known)
            self.asked += len(more) - len(known)
        return answers[:rows]

    def _known(self, way: Candidate, rows: Sequence[Row], answerer: str) -> dict[str, Output]:
        """Answers to these rows that are those of the same prompt asked the other way."""
        known: dict[str, Output] = {}
        allowed = self._allowed(way)
        if answerer == "base" and not isinstance(allowed, Choices):
            ids = {row.id for row in rows}
            for held_to in {*self._task.held_to} - {way.held_to}:
                twin = self._answers.get((answerer, replace(way, held_to=held_to)), [])
                known |= in_common([output for output in twin if output.id in ids], allowed)
        return known

    def _allowed(self, candidate: Candidate) -> Allowed | None:
        allowed = self._task.allowed
        return allowed if candidate.held_to or isinstance(allowed, Choices) else None

    def answers(
        self,
        title: str,
        candidate: Candidate,
        rows: Sequence[Row],
        answerer: str,
        known: Mapping[str, Output] = MappingProxyType({}),
    ) -> list[Output]:
        """A candidate's answers to any rows; a judge has not seen them, and they are not remembered.

        Args:
            known: answers by row that need not be asked.
        """
        task = self._task
        prompts = [task.book.messages(candidate, row) for row in rows]
        engine = task.engine_of(answerer)
        allowed = self._allowed(candidate)
        return ask(f"dev {title}", engine, rows, prompts, task.metric, task.max_new_tokens, allowed, known=known)

    def halve(self, arm: str, options: Sequence[Candidate], survivors: int) -> None:
        """Successive halving of an arm's ways to ask; all of them are written down."""

        def standing(candidate: Candidate, rows: int) -> tuple[float, ...]:
            return self.rank(summary(arm, self.outputs(candidate, rows), self._task.metric))

        for candidate, rows in halving(options, len(self.rows), survivors, standing):
            self.add(arm, candidate, self.outputs(candidate, rows))

    def add(self, arm: str, candidate: Candidate, outputs: list[Output]) -> None:
        """Write down what a candidate got."""
        name = candidate.name if arm == candidate.arm else arm
        self.done.append(Trial(**vars(summary(name, outputs, self._task.metric)), arm=arm, candidate=candidate))

    def rank(self, figures: Summary) -> tuple[float, float, float]:
        """What is larger for a better prompt; a prompt of which nothing could be scored is the worst."""
        finer = figures.figures.get(self._task.metric.tie_break, figures.score)
        headline, second = (-1.0 if value is None else value for value in (figures.score, finer))
        return headline, second, -figures.prompt_tokens

    def best_first(self, arms: Collection[str]) -> list[Trial]:
        """What was tried for these arms and has answered all rows, the best first; the same prompt once.

        A prompt whose free answers are, row by row, those of its constrained twin is the same rival, and takes one seat.
        """
        last = sorted((t for t in self.done if t.arm in arms and t.n == len(self.rows)), key=self.rank, reverse=True)
        unique: dict[tuple[str, Candidate], Trial] = {}
        for trial in last:
            answerer = trial.arm if trial.arm.startswith(EXTERNAL) else "base"
            way = way_to_ask(trial.candidate)
            free = replace(way, held_to="")
            unique.setdefault((answerer, free if self._alike(answerer, way, free) else way), trial)
        return list(unique.values())

    def _alike(self, answerer: str, way: Candidate, free: Candidate) -> bool:
        """Whether two ways to ask got the same answer to every dev row."""
        answers = [self._answers.get((answerer, candidate), []) for candidate in (way, free)]
        texts = [[output.output for output in outputs] for outputs in answers]
        return len(texts[0]) == len(self.rows) and texts[0] == texts[1]

    def cross_fit(self, retrieves: bool) -> CrossFit | None:
        """What the best prompt that searches for passages, or that does not, is worth on rows that did not choose it.

        An instruction that another model wrote stays out: dev rows took part in the writing, so none of them is unseen. Under a
        judge there is no figure: what it says of a prompt is a comparison with another.
        """
        metric, groups = self._task.metric, self._task.groups
        if self._task.judge is not None:
            return None
        written = {way_to_ask(trial.candidate) for trial in self.done if trial.candidate.variant == "written"}
        ways = [  # in the order in which they were first asked
            answers for (_, way), answers in self._answers.items() if (way.documents > 0) == retrieves and way not in written
        ]
        return cross_fit(ways, lambda answers: self.rank(summary("held out", answers, metric)), metric, groups)


def way_to_ask(candidate: Candidate) -> Candidate:
    """What the messages follow from, without the names for it: equal for candidates that ask alike."""
    return replace(candidate, arm="", draw=0, variant="")


def finalist_count(test_rows: int, dev_rows: int, prompts: int) -> int:
    """How many prompts the tuned model has to beat, where the recipe does not say.

    Three hold the simulated rate of false deploys below 5 % with 16 prompts, 300 test and 64 dev rows; elsewhere more in
    proportion to the root of what makes dev's first prompts less likely to hold the best one.

    >>> finalist_count(300, 64, 16), finalist_count(1000, 64, 16), finalist_count(1000, 64, 32), finalist_count(200, 100, 26)
    (3, 6, 8, 3)
    """
    return min(MOST, max(FEWEST, math.ceil(FEWEST * math.sqrt(test_rows / 300 * 64 / dev_rows * prompts / 16))))


def _finalists(task: PromptTask, arms: Collection[str]) -> int:
    """``evaluate.finalists``, or what follows from the rows and from the prompts that these arms try at most."""
    settings = task.recipe.evaluate
    if settings.finalists is not None:
        return settings.finalists
    listed = [arm for arm in PROMPT_ARMS if arm in arms and arm != "optimized_prompt"]
    prompts = sum(len(candidates(task.recipe, task.book.pool, arm)) for arm in listed) * len(task.held_to)
    if "optimized_prompt" in arms:
        calls, first = settings.optimized_prompt.calls, min(FIRST_RUNG, len(task.dev))
        prompts += PROMPTS if calls is None else calls // first
    return finalist_count(task.test_rows, len(task.dev), prompts)


def select_prompt(task: PromptTask) -> Selection:
    """Score all candidates on dev and choose.

    Raises:
        RunError: a k larger than the train part, or a budget that pays for no candidate.
    """
    recipe = task.recipe
    settings = recipe.evaluate
    external = [arm for arm in settings.arms if arm.startswith(EXTERNAL)]
    needed = {*settings.asking}
    trials = Trials(task)
    if not trials.rows:
        raise RunError("the dev part has no rows to choose a prompt on", "raise data.dev_fraction")
    count = _finalists(task, needed)
    for arm in PROMPT_ARMS:
        if arm in needed and arm != "optimized_prompt":
            trials.halve(arm, in_each_way(candidates(recipe, task.book.pool, arm), task.held_to), count)
    search = _optimize(task, trials, count) if "optimized_prompt" in needed else None
    chosen = {arm: best[0].candidate for arm in PROMPT_ARMS if (best := trials.best_first({arm}))}
    rivals = tuple(arm for arm in settings.arms if settings.is_rival(arm))
    for arm in external:
        if arm in rivals:
            candidate = chosen[settings.prompt_of(arm)]
            trials.add(arm, candidate, trials.outputs(candidate, len(trials.rows), arm))
    finalists = _named(trials, rivals, count)
    return Selection(
        finalists=tuple(finalists),
        rivals=rivals,
        arms={**chosen, **{name: trial.candidate for name, trial in finalists.items() if name != trial.arm}},
        candidates=tuple(trials.done),
        search=search,
        dev_rows=len(trials.rows),
        prompt=trials.cross_fit(retrieves=False),
        retrieval=trials.cross_fit(retrieves=True),
    )


def _named(trials: Trials, rivals: Collection[str], count: int) -> dict[str, Trial]:
    """The finalists by name, best first."""
    finalists: dict[str, Trial] = {}
    for trial in trials.best_first(rivals)[:count]:
        place = trials.best_first({trial.arm}).index(trial)
        finalists[trial.arm if place == 0 else f"{trial.arm}:{place + 1}"] = trial
    return finalists


def _optimize(task: PromptTask, trials: Trials, survivors: int) -> SearchCost:
    """Search for the ``optimized_prompt``; returns what that cost. The few-shot arm's winner is one of its starts."""
    recipe = task.recipe
    start = in_each_way(candidates(recipe, task.book.pool, "instruction"), task.held_to)
    start += [trial.candidate for trial in trials.best_first({"few_shot"})[:1]]
    written = None if task.writer is None else _write(task, trials, task.writer)
    options = space(recipe, task.book.pool, start, written and written.instruction, task.held_to)
    calls = recipe.evaluate.optimized_prompt.calls
    count = min(PROMPTS, len(options)) if calls is None else affordable(len(options), len(trials.rows), survivors, calls)
    before = trials.asked
    trials.halve("optimized_prompt", options[:count], survivors)
    best, spent = trials.best_first({"optimized_prompt"})[0], trials.asked - before
    logger.info(f"optimized_prompt: {count} prompts in {spent} answers; best on dev: {best.candidate.name}")
    return SearchCost(calls=spent, tried=count, written=written)


def _write(task: PromptTask, trials: Trials, writer: Callable[[str], str]) -> Written:
    """Let another model write an instruction from train rows, chosen on the first dev rows."""

    def answers_of(instruction: str, rows: list[Row]) -> list[Output]:
        way = Candidate(arm="optimized_prompt", instruction=instruction, held_to=task.held_to[0])
        return trials.answers("written", way, rows, "base")

    first = rungs(1, len(trials.rows), 1)[0][1]
    written = write_instruction(task.recipe, task.book.pool, trials.rows[:first], answers_of, writer)
    logger.info(f"optimized_prompt: {written.rewritings} instructions written, chosen by {written.answers} answers")
    return written
