"""What each arm is asked for a question that somebody types: the base, the best prompt, and the deployed model.

The prompts are those of the race (``evaluate/prompts.py``), built from what the run holds. Where the best prompt cannot be put
here, the reason is said in its place: it searches with vectors, for which a model would have to be loaded, or among documents.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from tunesmith.chat.render import with_system
from tunesmith.errors import RunError
from tunesmith.evaluate.prompts import PromptBook, shown_pool
from tunesmith.messages import Message
from tunesmith.retrieval.store import SqliteStore, Store
from tunesmith.rundir import RunDir, read_rows
from tunesmith.rundir.records.evaluation import Candidate, Selection, Verdict
from tunesmith.rundir.rows import Row

BASE, PROMPT, DEPLOYED = "base", "best prompt", "deployed"
ARMS = (BASE, PROMPT, DEPLOYED)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What an arm is asked.

    Attributes:
        arm: its name here.
        way: how it asks, for people.
        messages: empty where it cannot be asked.
        asks_base: the base answers, and not the tuned model.
        note: what is other than in the race, or why it cannot be asked.
    """

    arm: str
    way: str
    messages: list[Message]
    asks_base: bool
    note: str = ""


def questions_for(run: RunDir, conversations: dict[str, list[Message]]) -> list[Question]:
    """What each arm is asked.

    Args:
        conversations: by arm: the turns so far, a question last.

    Raises:
        RunError: a file of the run is damaged.
    """
    recipe = run.recipe()
    base = Question(
        arm=BASE, way="with the instruction", messages=with_system(conversations[BASE], recipe.task.prompt), asks_base=True
    )
    deployed = Question(
        arm=DEPLOYED,
        way="with the short instruction" if recipe.task.short_prompt else "without an instruction",
        messages=with_system(conversations[DEPLOYED], recipe.task.short_prompt),
        asks_base=False,
    )
    return [base, _best_prompt(run, conversations[PROMPT]), deployed]


def _best_prompt(run: RunDir, conversation: list[Message]) -> Question:
    file = run.evaluation / "selection.json"
    if not file.exists():
        return Question(arm=PROMPT, way="", messages=[], asks_base=True, note="no prompt is chosen yet")
    selection = Selection.read(file)
    name = Verdict.read(run.verdict_file).best_prompt if run.verdict_file.exists() else selection.leader
    way, candidate = selection.way_of(name), selection.arms.get(name)
    if candidate is None:
        return Question(arm=PROMPT, way=way, messages=[], asks_base=True, note=f"{name} answers elsewhere")
    if reason := _not_here(run, candidate):
        return Question(arm=PROMPT, way=way, messages=[], asks_base=True, note=reason)
    held = f"in the race its answers were held to the {candidate.held_to}; here they are free" if candidate.held_to else ""
    return Question(arm=PROMPT, way=way, messages=_messages(run, candidate, conversation), asks_base=True, note=held)


def _not_here(run: RunDir, candidate: Candidate) -> str:
    """Why a prompt cannot be made here; empty where it can."""
    if candidate.documents:
        return "it searches among documents, which is not done here"
    if candidate.k and candidate.selection not in ("random", "bm25"):
        return "it finds its examples by vectors, for which a model would have to be loaded"
    if candidate.selection == "bm25" and not _questions(run).exists():
        return f"{_questions(run).name}, in which it finds its examples, is gone"
    return ""


def _messages(run: RunDir, candidate: Candidate, conversation: list[Message]) -> list[Message]:
    row = Row(id="", place="", messages=[*conversation, {"role": "assistant", "content": ""}])
    train, dev, test = (read_rows(run.data / f"{part}.jsonl") for part in ("train", "dev", "test"))
    with contextlib.ExitStack() as closing:

        def nearest(_: str) -> Store:
            return closing.enter_context(contextlib.closing(SqliteStore(_questions(run))))

        def documents() -> Store:
            raise RunError("no documents are searched here")

        book = PromptBook(run.recipe(), shown_pool(train, dev + test), dev + test, nearest, documents)
        return book.messages(candidate, row)


def _questions(run: RunDir) -> Path:
    return run.evaluation / "questions-bm25.sqlite"
