"""What all arms of a run share: rows, metric, prompts, stores and the base engine, each made when it is first asked for.

Every arm answers the same sealed rows with the same decoding and the same metric. Stores and connections are closed with
``closing``, at the end of the session that opened them.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from tunesmith.engines.dealt import open_dealt
from tunesmith.engines.engine import Allowed, Answer, Engine
from tunesmith.engines.open import (
    answer_language,
    endpoint_key,
    open_endpoint,
    open_llama_cpp,
    output_constraint,
)
from tunesmith.engines.swapped import SwappedEngine
from tunesmith.errors import RecipeError
from tunesmith.evaluate.arms import by_time, by_tokens
from tunesmith.evaluate.candidates import is_tuned
from tunesmith.evaluate.metrics import Metric, make_metric
from tunesmith.evaluate.prompts import PromptBook, shown_pool
from tunesmith.evaluate.references import check_references
from tunesmith.export.names import deployed_files
from tunesmith.messages import Message, Tools
from tunesmith.pipeline.base import base_of
from tunesmith.pipeline.stage import Session
from tunesmith.pipeline.tuned_model import TunedModel, tuned_model
from tunesmith.recipe import EXTERNAL, PROMPT_ARMS, PROMPT_DEPLOYED, Recipe
from tunesmith.recipe.metrics import METRIC_KEYS
from tunesmith.retrieval.corpus import Corpus, check_sealed, open_store, read_corpus
from tunesmith.retrieval.embed import load_embedder
from tunesmith.retrieval.store import Store, build_store
from tunesmith.rundir import RunDir, fingerprint, read_rows
from tunesmith.rundir.hashes import content_hash
from tunesmith.rundir.records.data import Rendered
from tunesmith.rundir.records.evaluation import Candidate
from tunesmith.rundir.rows import Row

ROOM = 256  # new tokens that a prompted model may spend on reasoning before its answer


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
    allowed: Allowed | None  # of every arm
    language: Allowed | None  # of a prompt that is held to something
    base: Callable[[], Engine]
    shared: Callable[[], PreTrainedModel]
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

        @functools.cache
        def nearest(selection: str) -> Store:
            return closing.enter_context(contextlib.closing(_open_questions(run, recipe, pool, selection)))

        return cls(
            run,
            recipe,
            metric,
            dev,
            test,
            Rendered.read(run.rendered_file).max_new_tokens,
            output_constraint(recipe.task),
            output_constraint(recipe.task) or answer_language(recipe.task),
            functools.cache(lambda: open_dealt(base_of(run, recipe), None, recipe.evaluate.batch_size)),
            functools.cache(lambda: base_of(run, recipe).load().model),
            corpus,
            documents,
            PromptBook(recipe, pool, dev + test, nearest, documents),
            closing,
        )

    def prompts(self, arm: str, chosen: dict[str, Candidate]) -> list[list[Message]]:
        """An arm's prompts for the test rows.

        Args:
            chosen: by prompt arm or finalist, what was chosen on dev; not looked at for a tuned arm.
        """
        if arm in chosen or arm.startswith(EXTERNAL):
            candidate = self.candidate_of(arm, chosen)
            return [self.book.messages(candidate, row) for row in self.test]
        documents = self.recipe.evaluate.retrieval.k if arm == "tuned_retrieval" else 0
        return [self.book.tuned(row, documents) for row in self.test]

    def budget_of(self, arm: str) -> int:
        """New tokens that an answer of an arm may take: of a prompted model with ``ROOM`` to reason, see ``prompt_budget``."""
        return self.max_new_tokens if is_tuned(arm) else self.prompt_budget

    @property
    def prompt_budget(self) -> int:
        """New tokens that an answer to a prompt may take.

        The budget of the answers that are trained, and where the metric finds an answer in a longer text also ``ROOM`` for the
        text before it, unless the recipe says how many.
        """
        task = self.recipe.task
        reasons = task.max_new_tokens is None and METRIC_KEYS[task.metric].within_text
        return self.max_new_tokens + (ROOM if reasons else 0)

    def allowed_of(self, arm: str, chosen: dict[str, Candidate]) -> Allowed | None:
        """What the answers of an arm are constrained to; arguments as of ``prompts``."""
        if arm in self.recipe.evaluate.replaced and self.recipe.evaluate.endpoint_of(arm).recorded is not None:
            return None  # written as it was asked then
        if arm in chosen or arm.startswith(EXTERNAL):
            return self.language if self.candidate_of(arm, chosen).held_to else self.allowed
        return self.allowed

    def candidate_of(self, arm: str, chosen: dict[str, Candidate]) -> Candidate:
        """How a prompt arm, a finalist or an endpoint asks; one that is to be replaced as the row asks."""
        if arm in self.recipe.evaluate.replaced:
            return Candidate(arm=arm, instruction=None)
        return chosen[arm if arm in chosen else self.recipe.evaluate.prompt_of(arm)]

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


def engine_of(
    run: RunDir,
    recipe: Recipe,
    arm: str,
    base: Callable[[], Engine],
    prompts: list[list[Message]],
    budget: int,
    tools: list[Tools] | None = None,
    shared: Callable[[], PreTrainedModel] | None = None,
) -> tuple[str, Callable[[], Engine]]:
    """Fingerprint of an arm's weights, and how to make its engine.

    Args:
        base: how to get the base model's engine.
        shared: how to get the base that several adapters take turns on.
        prompts, tools: the arm's prompts and what they declare, which say how much context the deployed engine needs.
    """
    if arm.startswith(EXTERNAL):
        endpoint = recipe.evaluate.endpoint_of(arm)
        return endpoint_key(endpoint), lambda: open_endpoint(endpoint)
    model = base_of(run, recipe)
    if arm.partition(":")[0] in PROMPT_ARMS:
        return model.answering_key, base
    if is_tuned(arm) and (arm != "deployed" or recipe.tuned):
        tuned = tuned_model(run, recipe, arm)
        if arm != "deployed" or tuned.gguf is not None:  # a file that was brought is deployed as it lies
            return _tuned_engine(tuned, recipe, arm, shared, (prompts, budget, tools))
    gguf, lora = (run.export / name if name else None for name in deployed_files(recipe, arm == PROMPT_DEPLOYED))
    assert gguf is not None
    key = content_hash(gguf) if lora is None else fingerprint(content_hash(gguf), content_hash(lora))
    return key, lambda: open_llama_cpp(gguf, model.renderer, prompts, budget, tools, lora)


def _tuned_engine(
    model: TunedModel,
    recipe: Recipe,
    arm: str,
    shared: Callable[[], PreTrainedModel] | None,
    asked: tuple[list[list[Message]], int, list[Tools] | None],
) -> tuple[str, Callable[[], Engine]]:
    """The same of a tuned model: behind its endpoint, in its own file, on a base that others share, or by itself."""
    key, endpoint, batch_size = model.answering_key, model.endpoint, recipe.evaluate.batch_size
    if endpoint is not None:
        return key, lambda: open_endpoint(endpoint)
    base, adapter, gguf = model.here, model.adapter, model.gguf
    if gguf is not None and (arm == "deployed" or recipe.tuned_kind == "several"):  # of several each as it came
        return model.key, lambda: open_llama_cpp(gguf, base.renderer, *asked)
    if shared is not None and adapter is not None and recipe.tuned_kind == "several":
        return key, lambda: SwappedEngine(shared(), adapter, base.renderer, batch_size)
    return key, lambda: open_dealt(base, adapter, batch_size)


def _read_corpus(recipe: Recipe, pool: list[Row], test: list[Row]) -> Corpus:

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
    texts, ids = [row.question for row in pool], [row.id for row in pool]
    return build_store(run.evaluation / f"questions-{selection}.sqlite", texts, ids, embed)
