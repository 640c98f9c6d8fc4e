"""The prompts of the arms: instruction, demonstrations and documents put around a row's question.

A ``Candidate`` is one way to ask, written down so that it can be kept in ``selection.json`` and used again on the test
part; ``PromptBook`` turns it and a row into messages. Demonstrations are earlier turns of the same conversation, taken
from the train part: drawn once for all questions, or for each question the nearest rows, nearest last (what stands next
to the question weighs most). Documents stand before the question, inside its turn, in one fixed frame, for the base and
the tuned model alike.

A row whose question is also asked in dev or test is never shown, whatever the split says of it (``data.group_by`` may
hold other things together): the demonstrations come from a pool without such rows, and every prompt is checked again.

Source: nearest neighbours as demonstrations, Liu et al. 2022 (arXiv 2101.06804).
"""

import random
from collections.abc import Callable, Iterable

from tunesmith.chat.render import with_system
from tunesmith.errors import RunError
from tunesmith.messages import Message
from tunesmith.recipe import Recipe
from tunesmith.retrieval.store import Store
from tunesmith.rundir.records.evaluation import Candidate
from tunesmith.rundir.rows import Row


class PromptBook:
    """Makes the messages of a candidate or a tuned arm for a row.

    Args:
        pool: train rows that may be shown (``shown_pool``).
        nearest: from a selection (``bm25``, ``embeddings``) to the store of the pool's questions; asked when needed.
        documents: the store of documents; asked when needed.
        sealed: dev and test rows, none of which may be shown.
    """

    def __init__(
        self,
        recipe: Recipe,
        pool: list[Row],
        sealed: list[Row],
        nearest: Callable[[str], Store],
        documents: Callable[[], Store],
    ):
        self.recipe = recipe
        self.pool = pool
        self._by_id = {row.id: row for row in pool}
        self._sealed_ids = {row.id for row in sealed}
        self._sealed_questions = {question_key(row) for row in sealed}
        self._nearest = nearest
        self._documents = documents

    def messages(self, candidate: Candidate, row: Row) -> list[Message]:
        """What a prompt arm is asked: instruction, demonstrations, documents, then the row without its answer."""
        turns = with_system(row.messages[:-1], candidate.instruction)
        system = turns[:1] if turns[0]["role"] == "system" else []
        question = self._with_documents(turns[len(system) :], row, candidate.documents)
        examples = [m for example in self._examples(candidate, row) for m in example.messages if m["role"] != "system"]
        return [*system, *examples, *question]

    def tuned(self, row: Row, documents: int = 0) -> list[Message]:
        """What the tuned model is asked: the short instruction, then the row without its answer."""
        return self._with_documents(tuned(self.recipe, row), row, documents)

    def _examples(self, candidate: Candidate, row: Row) -> list[Row]:
        if candidate.k == 0:
            return []
        if candidate.selection == "random":
            ids: Iterable[str] = candidate.demonstrations
        else:
            ids = [hit.id for hit in reversed(self._nearest(candidate.selection).search(row.question, candidate.k))]
        rows = [self._by_id[row_id] for row_id in ids]
        for example in rows:
            leaks = example.id in self._sealed_ids or question_key(example) in self._sealed_questions
            assert not leaks, f"row {example.id} is shown to arms and also sealed"
        return rows

    def _with_documents(self, turns: list[Message], row: Row, documents: int) -> list[Message]:
        if documents == 0:
            return turns
        hits = self._documents().search(row.question, documents)
        assert not self._sealed_ids & {hit.id for hit in hits}, "a sealed row is among the documents"
        return [*turns[:-1], {**turns[-1], "content": framed([hit.text for hit in hits], turns[-1]["content"])}]


def framed(documents: list[str], question: str) -> str:
    """Documents before the question; without a hit the question alone."""
    if not documents:
        return question
    listed = "\n\n".join(f"[{number}] {text}" for number, text in enumerate(documents, 1))
    return f"Documents that may help:\n\n{listed}\n\n{question}"


def tuned(recipe: Recipe, row: Row) -> list[Message]:
    """What the tuned model is asked: the short instruction, then the row without its answer."""
    return with_system(row.messages[:-1], recipe.task.short_prompt)


def question_key(row: Row) -> str:
    """What a row asks in its last turn, without case and white space; empty when nobody asks."""
    return "".join(row.question.casefold().split())


def shown_pool(train: list[Row], sealed: list[Row]) -> list[Row]:
    """Rows of train that ask something, and nothing that a sealed row asks."""
    keys = {question_key(row) for row in sealed} | {""}
    return [row for row in train if question_key(row) not in keys]


def random_draw(seed: str, pool: list[Row], k: int) -> tuple[str, ...]:
    """Ids of ``k`` rows.

    Raises:
        RunError: a k larger than the pool.
    """
    if k > len(pool):
        raise RunError(f"evaluate.few_shot.k: {k} examples wanted, train has {len(pool)} rows to show", "lower k")
    return tuple(row.id for row in random.Random(seed).sample(pool, k))


def candidates(recipe: Recipe, pool: list[Row], arm: str) -> list[Candidate]:
    """The ways to ask that an arm chooses from, deterministic from the recipe's seed (``optimized_prompt`` makes its own).

    Raises:
        RunError: a k larger than the pool.
    """
    full = recipe.task.prompt
    if arm == "zero_shot":
        return [Candidate(arm=arm, instruction=recipe.task.short_prompt)]
    if arm == "instruction":
        return [Candidate(arm=arm, instruction=full)]
    if arm == "retrieval":
        return [Candidate(arm=arm, instruction=full, documents=recipe.evaluate.retrieval.k)]
    assert arm == "few_shot", arm
    settings, options = recipe.evaluate.few_shot, []
    for k in settings.k:
        for selection in settings.selection:
            for draw in range(settings.draws if selection == "random" else 1):
                ids = random_draw(f"{recipe.seed}/{k}/{draw}", pool, k) if selection == "random" else ()
                example = Candidate(arm=arm, instruction=full, selection=selection, k=k, draw=draw, demonstrations=ids)
                options.append(example)
    return options
