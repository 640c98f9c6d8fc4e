"""An engine in every process that was launched together: all are asked the same, and each computes its share.

The first process asks; the others open the same model when they first hear of it, keep it until another one is asked, and do as
the first does, with the same prompts. What is dealt out are batches (``engines/deal.py``): on a CPU those that one process
would have computed, so there answers do not depend on the number of processes; a GPU alone makes fewer and larger ones, and may
round otherwise than two or more.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from tunesmith.engines.base import BaseModel
from tunesmith.engines.deal import together
from tunesmith.engines.engine import Advance, Answer, Constraint, Engine, Scored
from tunesmith.engines.in_process import InProcessEngine
from tunesmith.engines.open import open_in_process
from tunesmith.launch.group import Group, group
from tunesmith.messages import Message, Tools
from tunesmith.recipe import NewToken, section_from

ANSWER = "answer"
PATHS = ("forms", "importance")  # fields of a base
Json = dict[str, Any]


def open_dealt(base: BaseModel, adapter: Path | None, batch_size: int) -> Engine:
    """An engine in this process, and in those that follow it where there are some.

    Raises:
        ModelError: see ``BaseModel.load``.
    """
    connection = group()
    if connection is None:
        return open_in_process(base, adapter, batch_size)
    return DealtEngine(connection, base, adapter, batch_size)


class DealtEngine:
    """A base with an adapter or none, in this process and in those that follow it.

    Args:
        group: which this process leads.
    """

    def __init__(self, group: Group, base: BaseModel, adapter: Path | None, batch_size: int):
        self._group = group
        self._model = {"base": _said(base), "adapter": None if adapter is None else str(adapter), "batch_size": batch_size}
        group.send({"kind": ANSWER, "model": self._model, "asked": None})
        self._engine = open_in_process(base, adapter, batch_size)

    def generate(
        self,
        prompts: list[list[Message]],
        max_new_tokens: int,
        advance: Advance,
        allowed: Constraint | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> list[Answer]:
        """See ``Engine``.

        Raises:
            RunError: a process is gone; or see ``InProcessEngine``.
            RecipeError: see ``InProcessEngine``.
        """
        labels = isinstance(allowed, tuple)
        asked = {"prompts": prompts, "max_new_tokens": max_new_tokens, "allowed": allowed, "labels": labels, "tools": tools}
        return self._asked({"generate": asked}, lambda: self._engine.generate(prompts, max_new_tokens, advance, allowed, tools))

    def score(self, items: list[tuple[list[Message], str]], advance: Advance) -> list[Scored]:
        """See ``Engine``.

        Raises:
            RunError: a process is gone; or see ``InProcessEngine``.
            ModelError: see ``InProcessEngine``.
        """
        return self._asked({"score": items}, lambda: self._engine.score(items, advance))

    def close(self) -> None:
        """Give back what this process holds; the others keep their model until another is asked."""
        self._engine.close()

    def _asked(self, asked: Json, answer: Callable[[], Any]) -> Any:
        self._group.send({"kind": ANSWER, "model": self._model, "asked": asked})
        with together(self._group):
            return answer()


class Follower:
    """The other side: what a process that follows does when the first one asks."""

    def __init__(self, group: Group):
        self._group = group
        self._model: Json | None = None
        self._engine: InProcessEngine | None = None

    def answer(self, job: Json) -> None:
        """Do as the process that leads does.

        Raises:
            TunesmithError: the model cannot be opened here, or what is asked cannot be answered.
        """
        if job["model"] != self._model or self._engine is None:
            self.close()
            model = job["model"]
            adapter = None if model["adapter"] is None else Path(model["adapter"])
            self._engine, self._model = open_in_process(_heard(model["base"]), adapter, model["batch_size"]), model
        if job["asked"] is None:
            return
        with together(self._group):
            if (asked := job["asked"].get("generate")) is not None:
                allowed = tuple(asked["allowed"]) if asked["labels"] else asked["allowed"]
                self._engine.generate(asked["prompts"], asked["max_new_tokens"], lambda _: None, allowed, asked["tools"])
            else:
                items = [(messages, answer) for messages, answer in job["asked"]["score"]]
                self._engine.score(items, lambda _: None)

    def close(self) -> None:
        """Give the model's memory back."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._model = None


def _said(base: BaseModel) -> Json:
    """A base as JSON."""
    fields = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(base).items()}
    fields["moment"] = None if base.moment is None else base.moment.isoformat()
    fields["new_tokens"] = [token.model_dump(mode="json") for token in base.new_tokens]
    return fields


def _heard(fields: Json) -> BaseModel:
    moment = fields["moment"]
    fields = fields | {name: Path(fields[name]) for name in PATHS if fields[name] is not None}
    tokens = tuple(section_from(NewToken, token, "chat.new_tokens") for token in fields["new_tokens"])
    return BaseModel(**{**fields, "moment": None if moment is None else datetime.fromisoformat(moment), "new_tokens": tokens})
