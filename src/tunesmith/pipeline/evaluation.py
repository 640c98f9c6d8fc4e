"""What all arms of a run share: rows, metric, prompts, stores and the base engine, each made when it is first asked for.

Every arm answers the same sealed rows with the same decoding and the same metric. Stores and connections are closed with
``closing``, at the end of the session that opened them.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.engines.engine import Answer, Constraint, Engine
from tunesmith.errors import RecipeError
from tunesmith.evaluate.arms import by_time, by_tokens
from tunesmith.evaluate.metrics import Metric, make_metric
from tunesmith.evaluate.prompts import PromptBook, shown_pool
from tunesmith.evaluate.references import check_references
from tunesmith.pipeline.engines import in_process, output_constraint
from tunesmith.pipeline.stage import Session
from tunesmith.recipe import EXTERNAL, PROMPT_ARMS, Recipe
<<<<<<< HEAD
from tunesmith.retrieval.corpus import Corpus, check_sealed, open_store, read_corpus
from tunesmith.retrieval.embed import load_embedder
from tunesmith.retrieval.store import Store, build_store
from tunesmith.rundir import RunDir, read_json, read_rows
from tunesmith.rundir.records.evaluation import Candidate
from tunesmith.rundir.rows import Row, question_of
=======
from tunesmith.rundir import RunDir, fingerprint, read_json, read_rows
from tunesmith.rundir.records.evaluation import Candidate, Selection, Summary, Verdict
from tunesmith.rundir.records.evidence import RetrievalRecall
from tunesmith.rundir.records.training import Training
from tunesmith.rundir.rows import Row, question_of, reference_of, why_not_scored

if TYPE_CHECKING:
    from tunesmith.engines.engine import Answer, Constraint, Engine
    from tunesmith.evaluate.metrics import Metric
    from tunesmith.evaluate.prompts import PromptBook
    from tunesmith.evaluate.select import PromptTask
    from tunesmith.retrieval.corpus import Corpus
    from tunesmith.retrieval.store import Store

logger = logging.getLogger(__name__)
>>>>>>> eval


@dataclass(frozen=True)
class Evaluation:
    """What all arms of a run share. Engines, stores and passages are made when they are first asked for; stores and
    connections are closed with ``closing``."""

    run: RunDir
    recipe: Recipe
    metric: Metric
    dev: list[Row]
    test: list[Row]
    max_new_tokens: int
    allowed: Constraint | None
    base: Callable[[], Engine]
    corpus: Callable[[], Corpus]
    documents: Callable[[], Store]
    book: PromptBook
    closing: contextlib.ExitStack

    @classmethod
    def of(cls, run: RunDir, recipe: Recipe) -> "Evaluation":
        """Read what the run holds.

        Raises:
            RunError: the rows were not rendered yet.
            DataError: a row that the metric cannot score.
        """

        closing = contextlib.ExitStack()
        metric = make_metric(recipe.task)
        train, dev, test = (read_rows(run.data / f"{part}.jsonl") for part in ("train", "dev", "test"))
        check_references(test + dev, metric)
        pool = shown_pool(train, dev + test)
        corpus = functools.cache(lambda: _read_corpus(recipe, pool, test))
        documents = functools.cache(lambda: closing.enter_context(contextlib.closing(_open_documents(run, recipe, corpus()))))
        nearest = functools.cache(
            lambda selection: closing.enter_context(contextlib.closing(_open_questions(run, recipe, pool, selection)))
        )
        return cls(
            run,
            recipe,
            metric,
            dev,
            test,
            read_json(run.rendered_file)["max_new_tokens"],
            output_constraint(recipe),
            functools.cache(lambda: in_process(run, recipe, None)),
            corpus,
            documents,
            PromptBook(recipe, pool, dev + test, nearest, documents),
            closing,
        )

    def prompts(self, arm: str, chosen: dict[str, Candidate]) -> list[list[dict[str, str]]]:
        """An arm's prompts for the test rows.

        Args:
            chosen: by prompt arm, what was chosen on dev; not looked at for a tuned arm.
        """
        if arm in PROMPT_ARMS or arm.startswith(EXTERNAL):
            candidate = chosen[arm if arm in PROMPT_ARMS else self.recipe.evaluate.prompt_of(arm)]
            return [self.book.messages(candidate, row) for row in self.test]
        documents = self.recipe.evaluate.retrieval.k if arm == "tuned_retrieval" else 0
        return [self.book.tuned(row, documents) for row in self.test]

    def cost_of(self, arm: str) -> Callable[[Answer], float] | None:
        """What an answer of an arm costs, where the recipe gives a price."""

        settings = self.recipe.evaluate
        if arm.startswith(EXTERNAL):
            price = settings.endpoint_of(arm).price
            return None if price is None else by_tokens(price)
        return None if settings.price_per_hour is None else by_time(settings.price_per_hour)


def evaluation_of(run: RunDir, recipe: Recipe, session: Session) -> Evaluation:
    """The evaluation of a session, read once."""

    def read() -> Evaluation:
        evaluation = Evaluation.of(run, recipe)
        session.closing.enter_context(evaluation.closing)
        return evaluation

    return session.once("evaluation", read)


<<<<<<< HEAD
def _read_corpus(recipe: Recipe, pool: list[Row], test: list[Row]) -> Corpus:
=======
def evaluate(run: RunDir, arms: tuple[str, ...] | None = None) -> None:
    """Score arms (all of the recipe's when not named) on the sealed test part.

    Raises:
        RunError: an arm that the recipe does not have, or whose model was not made yet.
        DataError: a row that the metric cannot score.
    """
    known = run.recipe().evaluate.arms
    if unknown := set(arms or ()) - set(known):
        raise RunError(f"{min(unknown)}: not an arm of this recipe", f"arms: {', '.join(known)}")
    wanted = arms or known
    evaluation = Evaluation.of(run)
    with evaluation.closing:
        chosen = select(evaluation).arms if any(arm in PROMPT_ARMS or arm.startswith(EXTERNAL) for arm in wanted) else {}
        for arm in wanted:
            _score_arm(evaluation, arm, evaluation.prompts(arm, chosen))


def _score_arm(evaluation: Evaluation, arm: str, prompts: list[list[dict[str, str]]]) -> None:
    """One arm on the test rows, unless its answers and scores follow from the same inputs already."""
    from tunesmith.evaluate.arms import run_arm

    run, budget, allowed = evaluation.run, evaluation.max_new_tokens, evaluation.allowed
    weights, engine = engine_of(run, evaluation.recipe, arm, evaluation.base, prompts, budget)
    answers_key = fingerprint(weights, prompts, budget, allowed)
    arm_key = fingerprint(answers_key, evaluation.scoring_key(arm))
    with stage(run, f"evaluate {arm}", arm_key) as needed:
        if needed:
            if arm in ("retrieval", "tuned_retrieval"):
                _report_recall(evaluation)
            folder, price = run.evaluation / arm, evaluation.cost_of(arm)
            rows, metric = evaluation.test, evaluation.metric
            summary = run_arm(folder, engine, answers_key, rows, prompts, metric, budget, allowed, price)
            log_reading(run, arm, arm_key)
            logger.info(f"evaluate: {_summary_line(summary)}")


def choose_prompts(run: RunDir) -> Selection:
    """Score the prompt arms on dev rows alone, so that advice spends no sealed row."""
    evaluation = Evaluation.of(run)
    with evaluation.closing:
        return select(evaluation)


def verdict(run: RunDir) -> Verdict:
    """Decide from the arms' outputs and the forgetting check; writes and returns ``evaluation/verdict.json``.

    Raises:
        RunError: an arm was not scored yet, or seeds were asked for and not trained.
    """
    from tunesmith.evaluate import gate
    from tunesmith.evaluate.arms import read_outputs
    from tunesmith.evaluate.metrics import make_metric
    from tunesmith.pipeline.seeds import read_seeds

    recipe = run.recipe()
    for arm in recipe.evaluate.arms:
        run.key_of(f"evaluate {arm}")
    selection = Selection.read(run.evaluation / "selection.json")
    metric = make_metric(recipe.task)
    judge = judge_arms(run, recipe, metric, selection.best_prompt) if metric.name == "judge" else None
    outputs = {arm: read_outputs(run.evaluation / arm) for arm in recipe.evaluate.arms}
    # Done already after a whole run; a verdict made by hand must not deploy what nobody has looked at.
    tuned = any(arm in gate.TUNED_ARMS for arm in outputs)
    recall = run.evaluation / "retrieval.json"
    evidence = gate.Evidence(
        forgetting=forgetting(run) if tuned else None,
        forgetting_required=recipe.evaluate.forgetting.required,
        seeds=read_seeds(run),
        parity=deployed_parity(run),
        judge=judge,
        retrieval=RetrievalRecall.read(recall) if recall.exists() else None,
        only_worse=tuned and Training.read(run.training_file).only_worse,
    )
    result = gate.verdict(outputs, selection, metric, recipe.task.min_gain, _groups(run, recipe), evidence)
    result.write(run.verdict_file)
    return result


def select(evaluation: Evaluation) -> Selection:
    """The prompts chosen on dev, chosen now if they were not for these inputs."""
    from tunesmith.evaluate.metrics import scoring_key
    from tunesmith.evaluate.select import select_prompt

    run, recipe = evaluation.run, evaluation.recipe
    target = run.evaluation / "selection.json"
    settings = recipe.evaluate
    external_arms = [arm for arm in settings.arms if arm.startswith(EXTERNAL)]
    needed_arms = {*settings.arms, *(settings.prompt_of(arm) for arm in external_arms)}
    retrieves = "retrieval" in needed_arms
    asked_of = {"base_url", "model", "prompt", "body"}  # a price or a time-out asks nobody anew
    key = fingerprint(
        run.key_of("data"),
        base_key(recipe),
        scoring_key(recipe.task),
        evaluation.allowed,
        (recipe.seed, recipe.task.prompt, recipe.task.short_prompt),
        settings.few_shot.model_dump(),
        settings.optimized_prompt.model_dump() if "optimized_prompt" in needed_arms else None,
        [settings.retrieval.model_dump(), evaluation.corpus().texts] if retrieves else settings.retrieval.embedder,
        [(arm, settings.endpoint_of(arm).model_dump(include=asked_of)) for arm in external_arms if settings.is_rival(arm)],
        [arm for arm in settings.arms if arm in PROMPT_ARMS or arm in external_arms],
        evaluation.max_new_tokens,
    )
    with stage(run, "select prompt", key) as needed:
        if needed:
            selection = select_prompt(_prompt_task(evaluation))
            selection.write(target)
            logger.info(
                f"select prompt: {selection.best_prompt} leads on {selection.dev_rows} dev rows ({selection.best_prompt_name})"
            )
    return Selection.read(target)


def _prompt_task(evaluation: Evaluation) -> "PromptTask":
    """What every candidate has in common."""
    from tunesmith.evaluate.select import PromptTask

    @functools.cache
    def engine(answerer: str) -> "Engine":
        if answerer == "base":
            return evaluation.base()
        endpoint = external(evaluation.recipe, answerer)
        evaluation.closing.callback(endpoint.close)
        return endpoint

    judge_answers = None
    if evaluation.metric.name == "judge":
        judge, close = make_judge(evaluation.recipe)
        evaluation.closing.callback(close)
        judge_answers = comparing(judge, evaluation.dev)
    writer = None
    if evaluation.recipe.evaluate.optimized_prompt.writer is not None:
        writer, close = open_writer(evaluation.recipe.evaluate.optimized_prompt.writer)
        evaluation.closing.callback(close)
    return PromptTask(
        recipe=evaluation.recipe,
        book=evaluation.book,
        dev=evaluation.dev,
        metric=evaluation.metric,
        max_new_tokens=evaluation.max_new_tokens,
        engine_of=engine,
        allowed=evaluation.allowed,
        judge=judge_answers,
        writer=writer,
    )


def log_reading(run: RunDir, arm: str, key: str) -> None:
    """The test part is sealed; every reading of it is written down."""
    with (run.evaluation / "test_readings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"arm": arm, "key": key[:16], "at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")


def _summary_line(summary: Summary) -> str:
    """An arm's result in one line."""
    scored = summary.score is not None
    result = f"scores {percent(summary.score)} of 100" if scored else "has answered, and waits for the judge"
    cost = "" if summary.cost is None else f", {summary.n * summary.cost:.4g} in all"
    return f"{summary.name} {result}, {summary.ms:.0f} ms an example{cost}"


def _read_corpus(recipe: Recipe, pool: list[Row], test: list[Row]) -> "Corpus":
    from tunesmith.retrieval.corpus import check_sealed, read_corpus
>>>>>>> eval

    corpus = read_corpus(recipe, pool)
    check_sealed(corpus, test)
    return corpus


def _open_documents(run: RunDir, recipe: Recipe, corpus: Corpus) -> Store:

    return open_store(recipe, run.evaluation / "documents.sqlite", corpus)


def _open_questions(run: RunDir, recipe: Recipe, pool: list[Row], selection: str) -> Store:
    """The questions of the rows that may be shown, to find the nearest ones."""

    embed = None
    if selection == "embeddings":
        if recipe.evaluate.retrieval.embedder is None:
            raise RecipeError(
                "evaluate.few_shot.selection: embeddings needs evaluate.retrieval.embedder", "name one, or use bm25"
            )
        embed = load_embedder(recipe.evaluate.retrieval.embedder)
    texts, ids = [question_of(row) for row in pool], [row["id"] for row in pool]
    return build_store(run.evaluation / f"questions-{selection}.sqlite", texts, ids, embed)
